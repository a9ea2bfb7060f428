"""Verify a recorded run: replay it and compare every step, bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotimm.config import FitConfig
from autotimm.data.data_facts import content
from autotimm.data.loader import default_workers
from autotimm.errors import AutotimmError, DataError, DifferentError, ModelError, UsageError
from autotimm.records.causes import differences, likely_cause
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.records.ledger import Line, ReadLedger, read_ledger
from autotimm.records.ledger_diff import Comparer, Difference, numbers
from autotimm.records.manifest import Manifest
from autotimm.records.replay_versions import not_replayable
from autotimm.records.run_folder import RunFolder
from autotimm.runs.parent import check_parent
from autotimm.runs.restore import Rebuilt, read_config, read_manifest, rebuild
from autotimm.runs.verdict import Verdict, describe, worth_naming
from autotimm.train.callbacks.recorder import EnoughError
from autotimm.train.lightning_compat import of_first_process
from autotimm.train.progress import say
from autotimm.train.run_description import UNKEYED_WEIGHTS, surroundings

__all__ = ["EnoughError", "Verdict", "changed_files", "describe", "play", "read_run_ledger", "verify", "worth_naming"]

# What decides the bits of a CPU or GPU and no program can set back.
_HARDWARE = ("hardware.instructions", "hardware.machine", "hardware.devices", "device")


class _Listener:
    """Compares lines as they are written, and ends the replay at the first difference, unless it is to go on."""

    def __init__(
        self, recorded: ReadLedger, steps: int | None, last_epoch: int | None, *, go_on: bool, whole: bool
    ) -> None:
        self.comparer, self.lines = Comparer(recorded.lines), [*recorded.lines]
        self.whole = whole  # whether the record reaches the end of the run
        self.limit, self.last_epoch, self.go_on = steps, last_epoch, go_on
        self.taken: list[Line] = []
        self.steps = 0
        self.difference: Difference | None = None
        self._over = False

    def __call__(self, line: Line) -> None:
        if not self.whole and not self.comparer.remaining and not self._over:
            self._over = True
            raise EnoughError
        self.taken.append(line)
        self.steps += line["kind"] == "step"
        if not self._over:
            self.difference = self.comparer.take(line)
            self._over = self.difference is not None
        if self.difference is not None and not self.go_on:
            raise EnoughError
        limit = self.limit is not None and line["kind"] == "step" and line["step"] >= self.limit
        epoch = self.last_epoch is not None and line["kind"] == "epoch" and line["epoch"] + 1 >= self.last_epoch
        if limit or epoch:
            self._over = True
            raise EnoughError

    def finish(self) -> Difference | None:
        """The first difference, after the replay."""
        if not self._over:
            self.difference = self.comparer.finish()
        return self.difference


def read_run_ledger(folder: Path, manifest: Manifest) -> tuple[ReadLedger, list[str]]:
    """The ledger of a run, and the problems of its records, also of a ledger that was cut between two lines.

    Raises:
        ModelError: If it has no line.
    """
    ledger = read_ledger(folder / "ledger.jsonl")
    notes = []
    if problem := manifest.problem():
        notes.append(f"manifest.json: {problem}")
    if not ledger.problem and manifest.results.get("ledger") not in (None, ledger.last):
        ledger = ledger._replace(problem="its last lines are not the ones that the manifest refers to")
    if ledger.problem:
        notes.append(f"ledger.jsonl: {ledger.problem}; compared up to there")
    if not ledger.lines:
        raise ModelError(f"The run {folder} must have a ledger to compare with. It has none: {ledger.problem}. "
                         "Make the run again.")  # fmt: skip
    return ledger, notes


def verify(
    folder: Path,
    *,
    data: str | Path | None = None,
    steps: int | None = None,
    epochs: tuple[int, int] | None = None,
    workers: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Verdict:
    """Replay a run in a temporary folder, and compare it with its record step by step.

    Args:
        folder: The run's folder; only the levels of its manifest are updated.
        data: The folder of the data, if it was moved.
        steps: Compare only this number of optimizer steps, from where the comparison begins.
        epochs: Compare only the epochs from one to another, counted from 1; there must be a checkpoint before them.
        workers: Loading processes instead of the recorded number.
        changes: Options to replace by other values than recorded.

    Raises:
        UsageError: If there is no checkpoint where the epochs begin, or if they end after what is recorded.
        ModelError: If the folder has no record of a run.
    """
    manifest = read_manifest(folder)
    recorded, notes = read_run_ledger(folder, manifest)
    _check_stretch(recorded, epochs)
    if reason := not_replayable(manifest.environment):
        return Verdict("not comparable", ModelError.exit_code, reason, notes=tuple(notes))
    with tempfile.TemporaryDirectory(prefix="autotimm-verify-") as scratch:
        place = RunFolder(Path(scratch) / "replay", Path(scratch))
        try:
            first = _first_checkpoint(folder, epochs)
            rebuilt = rebuild(folder, place, data=data, workers=workers, weights_needed=first is None, changes=changes)
        except AutotimmError as error:
            if isinstance(error, UsageError):
                raise
            return Verdict("not comparable", error.exit_code, str(error), notes=tuple(notes))
        if changed := changed_files(folder, rebuilt):
            shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
            return Verdict("not comparable", DataError.exit_code, f"The data is not what it was: {shown}.",
                           notes=tuple(notes))  # fmt: skip
        chain = check_parent(folder, manifest)
        notes += chain.notes
        if chain.problem:
            return Verdict("different", DifferentError.exit_code, chain.problem, notes=tuple(notes))
        finished = manifest.results.get("status") == "finished"
        if not finished:
            notes.append("the run did not finish; compared up to where it stopped")
        whole, go_on = finished and not recorded.problem, _other_hardware(manifest, rebuilt)
        limit = None if steps is None else steps + _steps_before(recorded, epochs)
        listener = _Listener(recorded, limit, epochs[1] if epochs else None, go_on=go_on, whole=whole)
        say(f"replaying {folder}")
        play(rebuilt, listener, first)
        now = Manifest.load(place.manifest) if place.manifest.exists() else manifest
        verdict = of_first_process(lambda: _judge(manifest, now, listener, notes))
    if verdict.identical and not changes and steps is None and whole:
        _note_level(folder, manifest, workers, epochs)
    return verdict


def _check_stretch(recorded: ReadLedger, epochs: tuple[int, int] | None) -> None:
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


def changed_files(folder: Path, rebuilt: Rebuilt) -> list[str]:
    """The samples whose content differs from what the run recorded."""
    before = RunFolder(folder, folder.parent).samples.content()
    return [] if before is None else before.changed(content([*rebuilt.data.tables.values()]))


def _other_hardware(manifest: Manifest, rebuilt: Rebuilt) -> bool:
    now = surroundings(rebuilt.trainer)
    return any(_get(manifest.environment, name) != _get(now, name) for name in _HARDWARE)


def _get(values: Mapping[str, Any], name: str) -> Any:
    head, _, rest = name.partition(".")
    value = values.get(head)
    return _get(value, rest) if rest and isinstance(value, Mapping) else value


def play(rebuilt: Rebuilt, listener: Callable[[Line], None], first: Path | None) -> None:
    """Train a rebuilt run to its end, or until the listener raises :class:`EnoughError`."""
    rebuilt.trainer.listener = listener
    try:
        rebuilt.trainer.fit(rebuilt.task, datamodule=rebuilt.data, ckpt_path=first or rebuilt.checkpoint)
    except EnoughError:
        return


def _judge(manifest: Manifest, now: Manifest, listener: _Listener, notes: list[str]) -> Verdict:
    difference = listener.finish()
    if difference is None:
        return Verdict("identical", 0, steps=listener.steps, notes=tuple(notes))
    # Initial weights are compared by the ledgers; a replay that begins at a checkpoint has others.
    differing = [value for value in worth_naming(differences(manifest, now)) if value.name != "initial"]
    reason = f"{describe(difference)} {likely_cause(difference, differing, recorded=manifest)}"
    if not listener.go_on:
        return Verdict("different", 5, reason, difference, listener.steps, tuple(notes))
    return Verdict(
        "different", 5, reason, difference, listener.steps, tuple(notes),
        tuple(numbers(listener.lines, listener.taken)), _metrics(listener.lines, listener.taken),
    )  # fmt: skip


def _metrics(recorded: list[Line], taken: list[Line]) -> dict[str, tuple[float, float]]:
    ends = [[line for line in lines if line["kind"] == "epoch"] for lines in (recorded, taken)]
    if not all(ends):
        return {}
    same = [line for line in ends[0] if line["epoch"] == ends[1][-1]["epoch"]]
    if not same:
        return {}
    a, b = same[0]["metrics"], ends[1][-1]["metrics"]
    return {name: (float.fromhex(a[name]), float.fromhex(b[name])) for name in a.keys() & b.keys()}


def _note_level(folder: Path, manifest: Manifest, workers: int | None, epochs: tuple[int, int] | None) -> None:
    """Record in the run's manifest what was checked; nothing is recorded in a folder that cannot be written to."""
    checked = {}
    if workers is not None and workers != _recorded_workers(folder):
        checked["R3"] = f"checked with {workers} workers" + (f" in epochs {epochs[0]} to {epochs[1]}" if epochs else "")
    if epochs is None:
        checked["R1"] = "checked"
    elif epochs[0] > 1:
        checked["R2"] = f"checked from the checkpoint before epoch {epochs[0]} to epoch {epochs[1]}"
    changed = {name: claim for name, claim in checked.items() if _says_more(claim, manifest.levels.get(name, ""))}
    if changed and not manifest.problem():
        try:
            replace(manifest, levels=manifest.levels | changed).save(folder / "manifest.json")
        except OSError:
            return


def _says_more(claim: str, before: str) -> bool:
    """Whether a new claim may replace an earlier one: one about the whole run counts more than one about epochs."""
    return before in ("expected", UNKEYED_WEIGHTS) or (" in epochs " in before and " in epochs " not in claim)


def _recorded_workers(folder: Path) -> int:
    config = read_config(folder)
    given = config.num_workers if isinstance(config, FitConfig) else config["data"]["init_args"].get("num_workers")
    return default_workers(1) if given is None else int(given)
