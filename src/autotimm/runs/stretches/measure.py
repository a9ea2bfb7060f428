"""Measure stretches of a run: what their replays give, and how far apart they are. The result is plain data."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from autotimm.records.ledger import Line
from autotimm.runs.recorded_run import RecordedRun
from autotimm.runs.stretches.choice import Stretch, steps_before
from autotimm.runs.stretches.every_step import checkpoint_findings, every_step, settings_of
from autotimm.runs.stretches.replay import AS_RECORDED, OTHER_PIXELS, Played, State, Variant, named_state, play_stretch
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.train.progress import say

__all__ = ["Elsewhere", "Measured", "Measurement"]


@dataclass
class Measured:
    """What was measured in a stretch.

    Attributes:
        lines: The lines of the steps of each replay, by the name of its variant.
        initial: The digest of the weights at the start.
        apart: For each replay and tensor, the distance from the replay of the steps as they were recorded, after the
            last step; only of a stretch that reaches a checkpoint.
        recorded: For each tensor, the distance of the recorded checkpoint from that replay.
        sizes: For each tensor, its size.
        updates: For each tensor, the distance that training has moved it.
        findings: What a checkpoint says that its run cannot have written.
        wrong: The first step of the whole ledger that has other samples or another learning rate than the options give,
            as the fields of a :class:`~autotimm.records.ledger_diff.Difference`.
        rates: Whether the learning rates of all steps follow from the options.
        exact: Whether the first replay has all recorded bits, so that no other one was made.
    """

    lines: dict[str, list[Line]] = field(default_factory=dict)
    initial: str = ""
    apart: dict[str, dict[str, float]] = field(default_factory=dict)
    recorded: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    updates: dict[str, float] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    wrong: list[Any] | None = None
    rates: bool = True
    exact: bool = False


@dataclass(frozen=True)
class Elsewhere:
    """What a process with another instruction set has measured in a stretch.

    Attributes:
        name: What differs there, in words.
        lines: The lines of its steps.
    """

    name: str
    lines: list[Line]


@dataclass(frozen=True)
class Measurement:
    """What is asked for.

    Attributes:
        run: The record.
        scratch: The folder for what processes leave for each other.
        data: The folder of the data, if it was moved.
        workers: Loading processes instead of the recorded number.
        same_pixels: Whether images must have the recorded pixels here, as the versions of all that makes them say.
        gpus: The number of GPUs that a replay uses.
    """

    run: RecordedRun
    scratch: Path
    data: str | None = None
    workers: int | None = None
    same_pixels: bool = True
    gpus: int = 0

    def elsewhere(self, stretch: Stretch) -> list[Line]:
        """Replay a stretch in a process with another instruction set, and keep images and state for the first one."""
        folder = self._folder(stretch)
        folder.mkdir(parents=True, exist_ok=True)
        played = self._play(stretch, AS_RECORDED, images=folder, saves=True)
        if played.state is not None:
            save_file({name: tensor.contiguous() for name, tensor in played.state.items()}, folder / _STATE)
        return played.lines

    def measure(
        self, stretch: Stretch, others: Sequence[Variant], other: Elsewhere | None = None, *, every: bool = False
    ) -> Measured:
        """Replay a stretch as it was recorded, and with other roundings.

        Without others only the first replay is made, which is enough if it is exact.

        Args:
            stretch: The stretch.
            others: The variants that this process replays.
            other: What another process has measured.
            every: Whether to look at all steps of the ledger too.
        """
        say(f"replaying {stretch}")
        measured, images = Measured(), None
        if other is not None and not self.same_pixels and self._has_inputs(other.lines):
            images = self._folder(stretch)
        played = self._play(stretch, AS_RECORDED, images=images, on_start=partial(self._look, measured, stretch, every))
        if images is not None and other is not None:
            made = {(line["epoch"], line["batch"]): line["inputs"] for line in other.lines}
            played.lines = [{**line, "inputs": made[line["epoch"], line["batch"]]} for line in played.lines]
        measured.initial, measured.lines[AS_RECORDED.name] = played.initial, played.lines
        state = played.state
        if state is not None:
            end = _recorded_state(read_checkpoint(self._checkpoint(stretch.end)))
            measured.recorded, measured.updates = distances(state, end), distances(state, played.began or {})
            measured.sizes = {name: norm(tensor) for name, tensor in state.items()}
        measured.exact = self._equals(played.lines) and not any(measured.recorded.values())
        if not others:
            return measured
        if not self.same_pixels and images is None and not self._has_inputs(played.lines):
            others = [*others, *OTHER_PIXELS]
        for variant in others:
            again = self._play(stretch, variant, images=images)
            if again.left_out:
                continue
            measured.lines[variant.name] = again.lines
            if state is not None and again.state is not None:
                measured.apart[variant.name] = distances(state, again.state)
        if other is not None and _inputs(other.lines) == _inputs(played.lines):  # else it has seen other images
            measured.lines[other.name] = other.lines
            if state is not None and (file := self._folder(stretch) / _STATE).is_file():
                measured.apart[other.name] = distances(state, load_file(file))
        return measured

    def _play(self, stretch: Stretch, variant: Variant, **options: Any) -> Played:
        with tempfile.TemporaryDirectory(prefix="autotimm-stretch-") as scratch:
            given: dict[str, Any] = {"data": self.data, "workers": self.workers, **options}
            return play_stretch(self.run.folder, stretch, variant, Path(scratch), **given)

    def _folder(self, stretch: Stretch) -> Path:
        return self.scratch / str(stretch.first)

    def _checkpoint(self, name: str) -> Path:
        return self.run.folder / "checkpoints" / name

    def _has_inputs(self, lines: Sequence[Line]) -> bool:
        """Whether the images of some steps have the recorded digests."""
        recorded = {_place(line): line["inputs"] for line in self.run.ledger.lines if line["kind"] == "step"}
        return all(recorded.get(_place(line)) == line["inputs"] for line in lines)

    def _equals(self, lines: Sequence[Line]) -> bool:
        """Whether some steps have all recorded values."""
        recorded = {_place(line): line for line in self.run.ledger.lines if line["kind"] == "step"}
        names = ("step", "ids", "inputs", "loss", "lr")
        return all(_place(line) in recorded and all(recorded[_place(line)][name] == line[name] for name in names)
                   for line in lines)  # fmt: skip

    def _look(
        self, measured: Measured, stretch: Stretch, every: bool, trainer: pl.Trainer, module: pl.LightningModule
    ) -> None:
        """Compare with the options what the checkpoints of a stretch say, and all steps of the ledger."""
        settings, lines = settings_of(trainer, module), self.run.ledger.lines
        if "start" in self.run.manifest.inputs:  # its optimizer and its schedule may be those of another run
            settings = replace(settings, groups=(), rates=(), schedule=None)
        measured.rates = settings.rate(0) is not None
        for name, step in ((stretch.start, stretch.first), (stretch.end, stretch.first + stretch.length)):
            if name:
                checkpoint = read_checkpoint(self._checkpoint(name))
                measured.findings += checkpoint_findings(name, checkpoint, step, settings, lines)
        if every and (wrong := every_step(lines, settings, trainer, steps_before(self.run))) is not None:
            measured.wrong = [*wrong]


_STATE = "state.safetensors"


def _place(line: Line) -> tuple[Any, Any]:
    return line["epoch"], line["batch"]


def _inputs(lines: Sequence[Line]) -> list[Any]:
    return [line["inputs"] for line in lines]


def _recorded_state(checkpoint: Mapping[str, Any]) -> State:
    """The tensors of a checkpoint by the names that they have in a state; averaged weights come first in its file."""
    averaged = checkpoint.get("current_model_state")
    trained = averaged or checkpoint["state_dict"]
    average = checkpoint["state_dict"] if averaged else None
    return dict(named_state(trained, checkpoint.get("optimizer_states", []), average))


def norm(tensor: Tensor) -> float:
    """The Euclidean norm of a tensor of any type."""
    return float(torch.linalg.vector_norm(tensor.detach().cpu().double()))


def distances(a: State, b: State) -> dict[str, float]:
    """The distance of each tensor of two states; infinite if one of them lacks it, or has another shape."""
    apart = {}
    for name in a.keys() | b.keys():
        pair = a.get(name), b.get(name)
        if pair[0] is None or pair[1] is None or pair[0].shape != pair[1].shape:
            apart[name] = float("inf")
        else:
            apart[name] = norm(pair[0].cpu().double() - pair[1].cpu().double())
    return apart
