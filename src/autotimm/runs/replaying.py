"""Replay a run: train its rebuilt objects, as far as asked for or to the first difference from its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotimm.errors import UnreadableSampleError
from autotimm.models.backbone.weights import Weights
from autotimm.records.ledger import Line, ReadLedger
from autotimm.records.ledger_diff import Comparer
from autotimm.records.manifest import Manifest
from autotimm.records.run_folder import RunFolder
from autotimm.runs.compare_settings import is_portable
from autotimm.runs.recorded_run import RecordedRun
from autotimm.runs.repeated_tests import tested_again
from autotimm.runs.replayed_run import Replay
from autotimm.runs.restore import Rebuilt
from autotimm.serialization import plain_value
from autotimm.tasks import Task
from autotimm.train.callbacks.recorder import EnoughError
from autotimm.train.callbacks.run_checkpoint import RunCheckpoint
from autotimm.train.run_description import surroundings

__all__ = ["play", "recorded_value", "replay_run"]

# What decides the bits of a CPU or GPU, and no program can set back.
_HARDWARE = ("hardware.instructions", "hardware.machine", "hardware.devices", "device")


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


def _steps_before(recorded: ReadLedger, epochs: tuple[int, int] | None) -> int:
    """The number of optimizer steps before the epochs to compare."""
    before = 0 if epochs is None else epochs[0] - 1
    return max(
        (line["step"] for line in recorded.lines if line["kind"] == "step" and line["epoch"] < before), default=0
    )


def _other_hardware(manifest: Manifest, rebuilt: Rebuilt) -> bool:
    now = surroundings(rebuilt.trainer)
    if is_portable(manifest):  # no instruction set changes a bit of it
        return bool(recorded_value(manifest.environment, "device") != recorded_value(now, "device"))
    return any(recorded_value(manifest.environment, name) != recorded_value(now, name) for name in _HARDWARE)


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


def play(rebuilt: Rebuilt, listener: Callable[[Line], None], first: Path | None) -> None:
    """Train a rebuilt run to its end, or until the listener raises :class:`EnoughError`."""
    rebuilt.trainer.listener = listener
    if first is not None and isinstance(checkpoints := rebuilt.trainer.checkpoint_callback, RunCheckpoint):
        checkpoints.best_is_elsewhere = True
    try:
        rebuilt.trainer.fit(rebuilt.task, datamodule=rebuilt.data, ckpt_path=first or rebuilt.checkpoint)
    except EnoughError:
        return


def recorded_value(values: Mapping[str, Any], name: str) -> Any:
    """A value of nested mappings by its path, as ``hardware.cpu``; ``None`` where there is none."""
    head, _, rest = name.partition(".")
    value = values.get(head)
    return recorded_value(value, rest) if rest and isinstance(value, Mapping) else value
