"""Verify a recorded run: replay it, and compare every step and every file, bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
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
    IncompleteError,
    ModelError,
    UnreadableSampleError,
    UsageError,
    is_whole,
    join_names,
    require,
)
from autotimm.models.backbone.weights import Weights
from autotimm.records.causes import differences, likely_cause
from autotimm.records.checked_levels import keep_checked, level_claims
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.records.ledger import Line, ReadLedger
from autotimm.records.ledger_diff import Comparer, Difference, numbers
from autotimm.records.manifest import Manifest
from autotimm.records.replay_versions import not_replayable
from autotimm.records.run_folder import RunFolder
from autotimm.records.sample_index import Content
from autotimm.runs.compare_folders import compare_folders
from autotimm.runs.compare_settings import config_findings, is_portable, manifest_findings, planned
from autotimm.runs.file_contents import Finding
from autotimm.runs.parent import check_parent
from autotimm.runs.recorded_run import RecordedRun, export_findings, read_recorded
from autotimm.runs.repeated_tests import tested_again
from autotimm.runs.replayed_run import Replay
from autotimm.runs.restore import Rebuilt, read_config, rebuild
from autotimm.runs.search import search
from autotimm.runs.verdict import Verdict, describe, worth_naming
from autotimm.serialization import plain_value
from autotimm.tasks import Task
from autotimm.train.callbacks.recorder import EnoughError
from autotimm.train.callbacks.run_checkpoint import RunCheckpoint
from autotimm.train.lightning_compat import of_first_process
from autotimm.train.progress import say
from autotimm.train.run_description import UNKEYED_WEIGHTS, inputs, surroundings

__all__ = [
    "EnoughError",
    "Verdict",
    "changed_files",
    "describe",
    "judge",
    "other_data",
    "other_settings",
    "play",
    "replay_run",
    "verify",
    "worth_naming",
]

# What decides the bits of a CPU or GPU and no program can set back.
_NAMED = 5  # differences of files in the reason; all are in `findings`
_UNREADABLE = "The replay cannot read a sample, which the run does not name as dropped: {error}"
_HARDWARE = ("hardware.instructions", "hardware.machine", "hardware.devices", "device")


class _Listener:
    """Keeps lines as they are written, and ends the replay at the first difference, unless it is to go on."""

    def __init__(self, run: RecordedRun, steps: int | None, last_epoch: int | None, *, go_on: bool) -> None:
        self._comparer, self._whole = Comparer(run.ledger.lines, every_field=True), run.whole
        self._limit, self._last_epoch, self._go_on = steps, last_epoch, go_on
        self._differs = False
        self.lines: list[Line] = []

    @property
    def has_met_all(self) -> bool:
        """Whether all recorded lines came again."""
        return self._comparer.exhausted and not self._differs

    def __call__(self, line: Line) -> None:
        if not self._whole and not self._differs and self._comparer.exhausted:
            raise EnoughError  # what comes next was not recorded
        self.lines.append(line)
        if not self._differs:
            self._differs = self._comparer.take(line) is not None
        if self._differs and not self._go_on:
            raise EnoughError
        limit = self._limit is not None and line["kind"] == "step" and line["step"] >= self._limit
        epoch = self._last_epoch is not None and line["kind"] == "epoch" and line["epoch"] + 1 >= self._last_epoch
        if limit or epoch:
            raise EnoughError


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
                folder,
                place,
                data=data,
                workers=workers,
                devices=devices,
                threads=threads,
                weights_needed=first is None,
            )
        except AutotimmError as error:
            if isinstance(error, UsageError):
                raise
            return Verdict("not comparable", error.exit_code, str(error), notes=notes)
        chain = check_parent(folder, run.manifest, rebuilt)
        snapshot = Snapshot(rebuilt.data.tables.values(), cached=False)
        verdict = other_data(run, snapshot.content) or other_settings(run, rebuilt)
        if verdict is None and chain.problem:
            verdict = Verdict("different", DifferentError.exit_code, chain.problem, notes=notes)
        if verdict is None:
            if run.whole and steps is None and epochs is None:
                _search_again(rebuilt)
            say(f"replaying {folder}")
            try:
                replay = replay_run(run, rebuilt, place, first, steps=steps, epochs=epochs)
            except UnreadableSampleError as error:
                return Verdict("not comparable", error.exit_code, _UNREADABLE.format(error=error), notes=notes)
            verdict = of_first_process(lambda: _changed_meanwhile(run, snapshot) or judge(run, replay))
        verdict = replace(verdict, notes=(*verdict.notes, *chain.notes))
    if verdict.identical and steps is None and run.whole:
        _keep_levels(run, workers, epochs, devices, _other_arithmetic(run.manifest, rebuilt))
    return verdict


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
    reason = f"The settings of the run contradict each other: {_listed(wrong)}. It was not replayed."
    notes = tuple(map(str, run.findings))
    return Verdict("different", DifferentError.exit_code, reason, notes=notes, findings=tuple(wrong))


def _hidden_drops(run: RecordedRun) -> Iterator[Finding]:
    """Say which samples the ledger has as dropped and the manifest has not: a replay would stop at the first."""
    lines = (line for line in run.ledger.lines if line["kind"] == "dropped")
    if hidden := {str(id) for line in lines for id in line["ids"]} - {*recorded_drops(run.manifest)}:
        yield Finding(
            "manifest.json: decisions.dropped", f"the ledger says that {join_names(sorted(hidden))} was dropped"
        )


def _listed(findings: list[str]) -> str:
    """The first findings, and the number of the others."""
    more = f"; and {len(findings) - _NAMED} more" if len(findings) > _NAMED else ""
    return f"{'; '.join(findings[:_NAMED])}{more}"


def replay_run(
    run: RecordedRun, rebuilt: Rebuilt, place: RunFolder, first: Path | None = None, *, steps: int | None = None,
    epochs: tuple[int, int] | None = None,
) -> Replay:  # fmt: skip
    """Train a rebuilt run, as far as asked for or to the first difference.

    Args:
        run: The record.
        rebuilt: Its objects.
        place: The folder that they write to.
        first: The checkpoint to begin at.
        steps: The number of optimizer steps to compare.
        epochs: The first and the last epoch to compare, counted from 1.
    """
    resolved = _as_noted(run, rebuilt.task)
    other_hardware = _other_hardware(run.manifest, rebuilt)
    limit = None if steps is None else steps + _steps_before(run.ledger, epochs)
    # The last epoch leads to the end of the run, where more can be compared; but from a checkpoint on nobody can tell
    # which of all epochs are the best and what their average is, nor has anybody the weights of an earlier epoch.
    among_all = first is not None and (rebuilt.trainer.recipe != "plain" or _best_lies_before(run, epochs))
    last = epochs[1] if epochs is not None and (epochs[1] < _last_epoch(run.ledger) or among_all) else None
    listener = _Listener(run, limit, last, go_on=other_hardware)
    try:
        play(rebuilt, listener, first)
    except UnreadableSampleError:  # at which the run may have ended too
        if run.whole or not listener.has_met_all:
            raise
    lines = listener.lines
    replay = Replay(
        place.path, lines, Manifest.load(place.manifest) if place.manifest.exists() else run.manifest,
        ended=bool(lines) and lines[-1]["kind"] == "end",
        first_epoch=0 if first is None or epochs is None else epochs[0] - 1, part=_part(steps, epochs),
        other_hardware=other_hardware, config=rebuilt.config, weights=resolved, recipe=_chosen_recipe(rebuilt.task),
    )  # fmt: skip
    return tested_again(run, rebuilt, replay, epochs=max(_last_epoch(run.ledger), 1)) if replay.ended else replay


def _best_lies_before(run: RecordedRun, epochs: tuple[int, int] | None) -> bool:
    """Whether the best epoch of a finished run, by its record, comes before those that are replayed."""
    best = run.manifest.results.get("metrics")
    found = [line["epoch"] + 1 for line in run.ledger.lines if line["kind"] == "epoch" and line["metrics"] == best]
    return epochs is not None and bool(found) and max(found) < epochs[0]


def _as_noted(run: RecordedRun, task: Any) -> Weights | None:
    """The origin of the initial weights as it was found again; the task takes over how the run has described it.

    Checkpoints hold that description: those of the replay then have the bytes of those of the run.
    """
    if not isinstance(task, Task):
        return None
    found, recorded = task.weights, run.manifest.decisions.get("weights")
    if isinstance(recorded, Mapping) and recorded.get("sha256") == found.sha256:
        source = recorded.get("source") if found.pretrained else found.source
        task.weights = replace(found, source=str(source), note=str(recorded.get("note")))
    return found


def _chosen_recipe(task: Any) -> Mapping[str, Any] | None:
    """What would be chosen for the values that were left open, as plain data."""
    if not isinstance(task, Task) or task.recipe is None:
        return None
    recipe: Mapping[str, Any] = plain_value(task.choose_recipe().as_dict())
    return recipe


def _part(steps: int | None, epochs: tuple[int, int] | None) -> str:
    words = [] if epochs is None else [f"epochs {epochs[0]} to {epochs[1]}"]
    return ", ".join([*words, *([] if steps is None else [f"{steps} steps"])])


def _last_epoch(ledger: ReadLedger) -> int:
    return max((line["epoch"] + 1 for line in ledger.lines if line["kind"] == "step"), default=0)


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


def _steps_before(recorded: ReadLedger, epochs: tuple[int, int] | None) -> int:
    """The number of optimizer steps before the epochs to compare."""
    before = 0 if epochs is None else epochs[0] - 1
    return max(
        (line["step"] for line in recorded.lines if line["kind"] == "step" and line["epoch"] < before), default=0
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


def _other_hardware(manifest: Manifest, rebuilt: Rebuilt) -> bool:
    now = surroundings(rebuilt.trainer)
    if is_portable(manifest):  # no instruction set changes a bit of it
        return bool(_get(manifest.environment, "device") != _get(now, "device"))
    return any(_get(manifest.environment, name) != _get(now, name) for name in _HARDWARE)


def _other_arithmetic(manifest: Manifest, rebuilt: Rebuilt) -> str:
    """The threads and the instruction set of a replay, in words, if they are not those of a portable run."""
    if not is_portable(manifest):
        return ""
    now, names = surroundings(rebuilt.trainer), ("threads", "hardware.instructions", "hardware.cpu")
    if all(_get(manifest.environment, name) == _get(now, name) for name in names):
        return ""
    count, instructions = now["threads"], _get(now, "hardware.instructions")
    return f"{count} thread{'' if count == 1 else 's'} and {instructions}"


def _get(values: Mapping[str, Any], name: str) -> Any:
    head, _, rest = name.partition(".")
    value = values.get(head)
    return _get(value, rest) if rest and isinstance(value, Mapping) else value


def play(rebuilt: Rebuilt, listener: Callable[[Line], None], first: Path | None) -> None:
    """Train a rebuilt run to its end, or until the listener raises :class:`EnoughError`."""
    rebuilt.trainer.listener = listener
    if first is not None and isinstance(checkpoints := rebuilt.trainer.checkpoint_callback, RunCheckpoint):
        checkpoints.best_is_elsewhere = True
    try:
        rebuilt.trainer.fit(rebuilt.task, datamodule=rebuilt.data, ckpt_path=first or rebuilt.checkpoint)
    except EnoughError:
        return


def judge(run: RecordedRun, replay: Replay) -> Verdict:
    """Compare a record with a replay of it: each line of the ledger, then each file.

    It depends on the two alone, and trains nothing.
    """
    comparer = Comparer(run.ledger.lines, every_field=True)
    difference = next((each for line in replay.lines if (each := comparer.take(line)) is not None), None)
    if difference is None:
        difference = comparer.finish() if replay.ended else comparer.pending
    if difference is not None:
        return _different(run, replay, difference, comparer.steps)
    outcome = compare_folders(run, replay)
    findings = [*run.findings, *outcome.findings]
    if not replay.ended:
        findings += export_findings(run.folder)
    findings = list(dict.fromkeys(findings))
    not_checked = (*_lines_not_met(run, replay, comparer), *outcome.not_checked)
    return _verdict(run, replay, comparer, findings, not_checked)


def _lines_not_met(run: RecordedRun, replay: Replay, comparer: Comparer) -> list[str]:
    """The part of the ledger that was not to be compared."""
    if not (replay.part and comparer.remaining):
        return []
    return [f"{comparer.remaining} of {len(run.ledger.lines)} lines of ledger.jsonl"]


def _verdict(
    run: RecordedRun, replay: Replay, comparer: Comparer, findings: list[Finding], not_checked: tuple[str, ...]
) -> Verdict:
    """The verdict on a record whose lines are those of the replay, as far as they were compared."""
    contradictions = [str(finding) for finding in findings if not finding.damage]
    damages = [str(finding) for finding in findings if finding.damage]
    if not (run.finished or replay.part):
        damages.append("the run did not finish; compared up to where it stopped")
    total = run.steps if replay.part and not run.ledger.problem else None
    total = comparer.steps + comparer.missing if replay.whole else total
    said: dict[str, Any] = {
        "steps": comparer.steps, "of_steps": total if total != comparer.steps or replay.part else None,
        "notes": tuple(damages), "findings": tuple(contradictions + damages), "not_checked": not_checked,
        "partial": bool(replay.part),
    }  # fmt: skip
    if contradictions:
        reason = f"The steps are those of the record, and other values are not: {_listed(contradictions)}."
        return Verdict("different", DifferentError.exit_code, reason, **said)
    if damages or comparer.missing:
        reason = "What could be compared equals the replay."
        return Verdict("incomplete", IncompleteError.exit_code, reason, **said)
    return Verdict("identical", 0, **said)


def _different(run: RecordedRun, replay: Replay, difference: Difference, steps: int) -> Verdict:
    """The verdict at the first line that differs, with its likely cause."""
    # Initial weights are compared by the ledgers; a replay that begins at a checkpoint has others.
    apart = worth_naming(differences(run.manifest, replay.manifest))
    apart = [value for value in apart if value.name not in ("initial", "weights.source")]
    reason = f"{describe(difference)} {likely_cause(difference, apart, recorded=run.manifest)}"
    verdict = Verdict(
        "different", DifferentError.exit_code, reason, difference, steps, tuple(map(str, run.findings)),
        findings=tuple(map(str, run.findings)), partial=bool(replay.part),
    )  # fmt: skip
    if not replay.other_hardware:
        return verdict
    lines = [*run.ledger.lines]
    return replace(verdict, distances=tuple(numbers(lines, replay.lines)), metrics=_metrics(lines, replay.lines))


def _metrics(recorded: list[Line], taken: list[Line]) -> dict[str, tuple[float, float]]:
    ends = [[line for line in lines if line["kind"] == "epoch"] for lines in (recorded, taken)]
    if not all(ends):
        return {}
    same = [line for line in ends[0] if line["epoch"] == ends[1][-1]["epoch"]]
    if not same:
        return {}
    a, b = same[0]["metrics"], ends[1][-1]["metrics"]
    return {name: (float.fromhex(a[name]), float.fromhex(b[name])) for name in a.keys() & b.keys()}


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
