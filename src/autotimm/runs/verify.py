"""Verify a recorded run: replay it, and compare every step and every file, bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotimm.config import FitConfig
from autotimm.data.data_facts import Snapshot, content
from autotimm.data.dropped import recorded_drops
from autotimm.data.loader import default_workers
from autotimm.errors import (
    AutotimmError,
    DataError,
    DifferentError,
    ModelError,
    UnreadableSampleError,
    UsageError,
    is_whole,
    join_names,
    require,
)
from autotimm.records.checked_levels import keep_checked, level_claims
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.records.ledger import ReadLedger
from autotimm.records.manifest import Manifest
from autotimm.records.replay_versions import not_replayable
from autotimm.records.run_folder import RunFolder
from autotimm.records.sample_index import Content
from autotimm.runs.compare_settings import config_findings, is_portable, manifest_findings, planned
from autotimm.runs.file_contents import Finding
from autotimm.runs.judge import judge, listed
from autotimm.runs.parent import check_parent
from autotimm.runs.recorded_run import RecordedRun, read_recorded
from autotimm.runs.replayed_run import Replay
from autotimm.runs.replaying import recorded_value, replay_run
from autotimm.runs.restore import Rebuilt, read_config, rebuild
from autotimm.runs.search import search
from autotimm.runs.verdict import Verdict
from autotimm.tasks import Task
from autotimm.train.lightning_compat import of_first_process
from autotimm.train.progress import say
from autotimm.train.run_description import UNKEYED_WEIGHTS, inputs, surroundings

__all__ = ["changed_files", "other_data", "other_settings", "verify"]

_UNREADABLE = "The replay cannot read a sample, which the run does not name as dropped: {error}"


def verify(
    folder: Path,
    *,
    data: str | Path | None = None,
    steps: int | None = None,
    epochs: tuple[int, int] | None = None,
    workers: int | None = None,
    devices: int | None = None,
    threads: int | None = None,
) -> Verdict:
    """Replay a run in a temporary folder, and compare it with its record step by step.

    Nothing is written into the run's folder. What was checked is kept in this user's state, for ``Run.level``.

    Args:
        folder: The run's folder.
        data: The folder of the data, if it was moved.
        steps: Compare only this number of optimizer steps, from where the comparison begins.
        epochs: Compare only the epochs from one to another, counted from 1; there must be a checkpoint before them.
        workers: Loading processes instead of the recorded number.
        devices: Devices or processes instead of the recorded number, of a run with ``shards``.
        threads: Threads instead of the recorded number, of a run that is ``portable``.

    Raises:
        UsageError: If ``steps`` or ``epochs`` have no meaning, if ``devices`` are given for a run without ``shards``,
            or ``threads`` for one that is not portable, if there is no checkpoint where the epochs begin, or if they
            end after what is recorded.
        ModelError: If the folder has no record of a run.
    """
    _check_part(steps, epochs)
    run = read_recorded(folder)
    notes = tuple(str(finding) for finding in run.findings)
    _check_recorded(run.ledger, epochs)
    if reason := not_replayable(run.manifest.environment):
        return Verdict("not comparable", ModelError.exit_code, reason, notes=notes)
    if reason := run.manifest.changed_files:
        return Verdict("not comparable", DataError.exit_code, reason, notes=notes)
    with tempfile.TemporaryDirectory(prefix="autotimm-verify-") as scratch:
        place = RunFolder(Path(scratch) / "replay", Path(scratch))
        try:
            first = _first_checkpoint(folder, epochs)
            rebuilt = rebuild(
                folder, place, data=data, workers=workers, devices=devices, threads=threads,
                weights_needed=first is None,
            )  # fmt: skip
        except UsageError:
            raise
        except AutotimmError as error:
            return Verdict("not comparable", error.exit_code, str(error), notes=notes)
        verdict = _replayed(run, rebuilt, place, first, steps=steps, epochs=epochs)
    if verdict.identical and steps is None and run.whole:
        _keep_levels(run, workers, epochs, devices, _other_arithmetic(run.manifest, rebuilt))
    return verdict


def _replayed(
    run: RecordedRun, rebuilt: Rebuilt, place: RunFolder, first: Path | None, *, steps: int | None,
    epochs: tuple[int, int] | None,
) -> Verdict:  # fmt: skip
    """The verdict on a run that can be built again; where its record contradicts itself, it is not replayed."""
    notes = tuple(map(str, run.findings))
    chain = check_parent(run.folder, run.manifest, rebuilt)
    snapshot = Snapshot(rebuilt.data.tables.values(), cached=False)
    verdict = other_data(run, snapshot.content) or other_settings(run, rebuilt)
    if verdict is None and chain.problem:
        verdict = Verdict("different", DifferentError.exit_code, chain.problem, notes=notes)
    if verdict is None:
        if run.whole and steps is None and epochs is None:
            _search_again(rebuilt)
        say(f"replaying {run.folder}")
        try:
            replay = replay_run(run, rebuilt, place, first, steps=steps, epochs=epochs)
        except UnreadableSampleError as error:
            return Verdict("not comparable", error.exit_code, _UNREADABLE.format(error=error), notes=notes)
        verdict = of_first_process(lambda: _changed_meanwhile(run, snapshot) or judge(run, replay))
    return replace(verdict, notes=(*verdict.notes, *chain.notes))


def _search_again(rebuilt: Rebuilt) -> None:
    """Make the search of a run again, if it had one: the replay's manifest then says what it has chosen now."""
    trainer, config = rebuilt.trainer, rebuilt.config
    if trainer.searched is not None and config is not None:
        trainer.searched = search(config, rebuilt.task, rebuilt.data, recorded=trainer.searched).record


def other_data(run: RecordedRun, now: Content) -> Verdict | None:
    """The verdict on a run whose images are not what they were; ``None`` if they are, or if the list is damaged."""
    if any(finding.place == "files.csv" and finding.damage for finding in run.findings):
        return None
    if not (changed := _changed(run.folder, now)):
        return None
    shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
    reason = f"The data is not what it was: {shown}."
    return Verdict("not comparable", DataError.exit_code, reason, notes=tuple(map(str, run.findings)))


def other_settings(run: RecordedRun, rebuilt: Rebuilt) -> Verdict | None:
    """The verdict on a run whose `config.yaml` and manifest contradict each other: no replay can agree with both."""
    task: Any = rebuilt.task  # or any LightningModule
    settings = inputs(rebuilt.trainer, task, rebuilt.data, content={}, initial="")
    plan = Replay(
        run.folder / "no replay yet", [], planned(run, settings, surroundings(rebuilt.trainer)), ended=False,
        config=rebuilt.config, weights=task.weights if isinstance(task, Task) else None,
        recipe=run.manifest.decisions.get("recipe"),
    )  # fmt: skip
    findings = [*config_findings(run, plan), *manifest_findings(run, plan), *_hidden_drops(run)]
    wrong = [str(each) for each in findings if isinstance(each, Finding) and not each.damage]
    if not wrong:
        return None
    reason = f"The settings of the run contradict each other: {listed(wrong)}. It was not replayed."
    notes = tuple(map(str, run.findings))
    return Verdict("different", DifferentError.exit_code, reason, notes=notes, findings=tuple(wrong))


def _hidden_drops(run: RecordedRun) -> Iterator[Finding]:
    """Say which samples the ledger has as dropped and the manifest has not: a replay would stop at the first."""
    lines = (line for line in run.ledger.lines if line["kind"] == "dropped")
    if hidden := {str(id) for line in lines for id in line["ids"]} - {*recorded_drops(run.manifest)}:
        yield Finding(
            "manifest.json: decisions.dropped", f"the ledger says that {join_names(sorted(hidden))} was dropped"
        )


def _check_part(steps: object, epochs: object) -> None:
    """Refuse steps or epochs without a meaning: the verdict would be on something else than was asked for."""
    fine = steps is None or is_whole(steps, 1)
    require(fine, "steps", "verify", "a whole number, 1 or more", steps, "Give for example 5.")
    pair = (
        isinstance(epochs, (tuple, list))
        and len(epochs) == 2
        and is_whole(epochs[0], 1)
        and is_whole(epochs[1], epochs[0])
    )
    must = "the first and the last epoch, counted from 1"
    require(epochs is None or pair, "epochs", "verify", must, epochs, "Give for example (3, 4).")


def _check_recorded(recorded: ReadLedger, epochs: tuple[int, int] | None) -> None:
    """Refuse epochs that the run did not begin: nothing is known of them."""
    last = max((line["epoch"] + 1 for line in recorded.lines if line["kind"] == "step"), default=0)
    if epochs is not None and epochs[1] > last:
        raise UsageError(
            f"The `epochs` of verify must be among those that the run recorded. Got {epochs[0]}:{epochs[1]} instead. "
            f"The last is {last}."
        )


def _first_checkpoint(folder: Path, epochs: tuple[int, int] | None) -> Path | None:
    if epochs is None or epochs[0] == 1:
        return None
    store = CheckpointStore(folder / "checkpoints")
    kept = store.epochs()
    if epochs[0] - 1 not in kept:
        intact = [number for number in [*kept][:-1] if store.problem(kept[number]) is None]
        starts = ", ".join(["1", *(str(number + 1) for number in intact)])
        raise UsageError(
            f"The `epochs` of verify must begin after a kept checkpoint, or at 1. Got {epochs[0]}:{epochs[1]} instead. "
            f"It can begin at epoch {starts}."
        )
    path = kept[epochs[0] - 1]
    if problem := store.problem(path):
        raise ModelError(
            f"The checkpoint {path} must be intact to begin there. It may not be: {problem}. Begin at another epoch."
        )
    return path


def _changed_meanwhile(run: RecordedRun, snapshot: Snapshot) -> Verdict | None:
    """The verdict where images have changed during the replay, which has then read another mixture than the run."""
    if not (changed := snapshot.changed()).files:
        return None
    names = join_names([*map(str, changed.files)])
    reason = f"Files changed during the replay: {names}. Verify again, and leave them as they are until it has ended."
    return Verdict("not comparable", DataError.exit_code, reason, notes=tuple(map(str, run.findings)))


def changed_files(folder: Path, rebuilt: Rebuilt) -> list[str]:
    """The samples whose content differs from what the run recorded."""
    return _changed(folder, content(rebuilt.data.tables.values(), cached=False))


def _changed(folder: Path, now: Content) -> list[str]:
    try:
        before = RunFolder(folder, folder.parent).samples.content()
    except ModelError:  # a list in another form is a finding, once the replay has written its own
        return []
    return [] if before is None else before.changed(now)


def _other_arithmetic(manifest: Manifest, rebuilt: Rebuilt) -> str:
    """The threads and the instruction set of a replay, in words, if they are not those of a portable run."""
    if not is_portable(manifest):
        return ""
    now, names = surroundings(rebuilt.trainer), ("threads", "hardware.instructions", "hardware.cpu")
    if all(recorded_value(manifest.environment, name) == recorded_value(now, name) for name in names):
        return ""
    count, instructions = now["threads"], recorded_value(now, "hardware.instructions")
    return f"{count} thread{'' if count == 1 else 's'} and {instructions}"


def _keep_levels(
    run: RecordedRun, workers: int | None, epochs: tuple[int, int] | None, devices: int | None = None,
    arithmetic: str = "",
) -> None:  # fmt: skip
    """Keep what was checked in this user's state; nothing is kept if it cannot be written."""
    checked = {}
    if workers is not None and workers != _recorded_workers(run.folder):
        checked["R3"] = f"checked with {workers} workers" + (f" in epochs {epochs[0]} to {epochs[1]}" if epochs else "")
    if devices is not None and devices != run.manifest.volatile.get("processes"):
        checked["R4"] = f"checked with {devices} process{'' if devices == 1 else 'es'}" + (
            f" in epochs {epochs[0]} to {epochs[1]}" if epochs else ""
        )
    if arithmetic:
        checked["R5"] = f"checked with {arithmetic}" + (f" in epochs {epochs[0]} to {epochs[1]}" if epochs else "")
    if epochs is None:
        checked["R1"] = "checked"
    elif epochs[0] > 1:
        checked["R2"] = f"checked from the checkpoint before epoch {epochs[0]} to epoch {epochs[1]}"
    before = level_claims(run.folder)
    changed = {name: claim for name, claim in checked.items() if _says_more(claim, before.get(name, ""))}
    if changed:
        try:
            keep_checked(run.folder, changed)
        except OSError as error:
            say(f"what was checked is not kept: {error.strerror}")


def _says_more(claim: str, before: str) -> bool:
    """Whether a new claim may replace an earlier one: one about the whole run counts more than one about epochs."""
    return before in ("expected", UNKEYED_WEIGHTS) or (" in epochs " in before and " in epochs " not in claim)


def _recorded_workers(folder: Path) -> int:
    config = read_config(folder)
    given = config.num_workers if isinstance(config, FitConfig) else config["data"]["init_args"].get("num_workers")
    return default_workers(1) if given is None else int(given)
