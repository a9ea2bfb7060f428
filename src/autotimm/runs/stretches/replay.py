"""Replay one stretch of a run, as the run says or with other roundings, and take what is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch import Tensor

from autotimm.errors import ModelError, UsageError
from autotimm.records.ledger import Line
from autotimm.records.manifest import Manifest
from autotimm.records.run_folder import RunFolder
from autotimm.repro.streams import generator
from autotimm.runs.explain_difference.partial_replay import switched
from autotimm.runs.replaying import play
from autotimm.runs.restore import Rebuilt, read_manifest, rebuild
from autotimm.runs.stretches.choice import Stretch
from autotimm.train.callbacks.recorder import EnoughError, Recorder
from autotimm.train.machine_limits import machine_problem
from autotimm.types import Batch

__all__ = ["AS_RECORDED", "OTHER_PIXELS", "Played", "Variant", "play_stretch", "rebuild_here", "state_of", "variants"]

State = dict[str, Tensor]
OnStart = Callable[[pl.Trainer, pl.LightningModule], None]


@dataclass(frozen=True)
class Variant:
    """A way to replay the same steps that differs in rounding alone.

    Attributes:
        name: What differs, in words; empty for the steps as they were recorded.
        threads: The number of CPU threads; ``None`` for the recorded one.
        onednn: Whether oneDNN computes convolutions, as it does by default.
        permuted: Whether the images of each batch come in another order, so that sums over the batch do too.
        rounding: Not 0: weights are rounded otherwise in each step, at random with this seed.
        pixels: Not 0: pixels are rounded otherwise, at random with this seed: a quarter up by one, a quarter down.
    """

    name: str = ""
    threads: int | None = None
    onednn: bool = True
    permuted: bool = False
    rounding: int = 0
    pixels: int = 0


AS_RECORDED = Variant()
OTHER_PIXELS = tuple(Variant(f"pixels rounded at random ({seed})", pixels=seed) for seed in (1, 2))
"""What shows how far other code for reading and resizing images leads, where it gives other pixels."""


def variants(threads: int, device: str) -> list[Variant]:
    """The variants that a process can set itself, for a run with a number of threads on a kind of device."""
    others = [Variant("images in another order", permuted=True)]
    others += [Variant(f"weights rounded at random ({seed})", rounding=seed) for seed in (1, 2)]
    if device == "cpu":
        other = 2 if threads == 1 else 1
        others += [Variant(f"{other} thread{'s' * (other > 1)}", threads=other), Variant("oneDNN off", onednn=False)]
    return others


@dataclass
class Played:
    """What a replay of a stretch has left.

    Attributes:
        lines: The lines of its steps.
        initial: The digest of the weights that it began with.
        state: Weights, buffers and the state of the optimizer after its last step; only if it reaches a checkpoint.
        began: The weights that it began with, likewise.
        left_out: Whether there was no replay, since the variant would differ in more than rounding.
    """

    lines: list[Line] = field(default_factory=list)
    initial: str = ""
    state: State | None = None
    began: State | None = None
    left_out: bool = False


def rebuild_here(
    folder: Path, place: RunFolder, *, data: str | Path | None, workers: int | None, weights_needed: bool
) -> Rebuilt:
    """Rebuild a run with as many threads as this machine allows, and on its device if the recorded one is missing.

    A run with shards has the same bits on any number of processes: it is rebuilt for one.
    """
    settings = read_manifest(folder).inputs.get("config", {}).get("trainer", {})
    changes: dict[str, Any] = {}
    if machine_problem(settings.get("threads"), None, None):
        changes["threads"] = None
    devices = None if settings.get("shards") is None else 1
    given: dict[str, Any] = {"data": data, "workers": workers, "weights_needed": weights_needed, "devices": devices}
    try:
        return rebuild(folder, place, changes=changes, **given)
    except UsageError:
        if settings.get("accelerator", "auto") in ("auto", "cpu"):
            raise
        return rebuild(folder, place, changes={**changes, "accelerator": "auto"}, **given)


def play_stretch(
    folder: Path, stretch: Stretch, variant: Variant, scratch: Path, *, data: str | Path | None = None,
    workers: int | None = None, on_start: OnStart | None = None, images: Path | None = None, saves: bool = False,
) -> Played:  # fmt: skip
    """Replay a stretch in a temporary folder.

    Args:
        folder: The run's folder.
        stretch: The stretch.
        variant: How it is replayed.
        scratch: An empty folder to write to.
        data: The folder of the data, if it was moved.
        workers: Loading processes instead of the recorded number.
        on_start: Called with the trainer and the task before the first step.
        images: A folder with the images of each step, made by another process, in place of this process's own.
        saves: Whether to write the images of each step into that folder instead.

    Raises:
        AutotimmError: If the run cannot be built here, or fails.
    """
    place = RunFolder(scratch / "replay", scratch)
    rebuilt = rebuild_here(folder, place, data=data, workers=workers, weights_needed=not stretch.start)
    if variant.threads is not None:
        rebuilt.trainer.threads = variant.threads
    played = Played()

    def listen(line: Line) -> None:
        if line["kind"] == "start":
            played.initial = line["weights"]
        elif line["kind"] == "step":
            played.lines.append(line)

    gauge = _Gauge(stretch, variant, played, rounding_unit(read_manifest(folder)), on_start)
    gauge.images, gauge.saves = images, saves
    rebuilt.trainer.callbacks.append(gauge)  # type: ignore[attr-defined]  # set at run time
    checkpoint = folder / "checkpoints" / stretch.start if stretch.start else None
    with switched({} if variant.onednn else {"backends.mkldnn.enabled": False}):
        play(rebuilt, listen, checkpoint)
    if not gauge.over:
        raise ModelError(
            f"The replay of {stretch} must have {stretch.steps} steps. It ended earlier: the settings and the ledger "
            "of the run contradict each other."
        )
    return played


def rounding_unit(manifest: Manifest) -> float:
    """The unit roundoff of the arithmetic of a run, relative to a number."""
    around = manifest.environment
    precision = str(around.get("precision", ""))
    if "bf16" in precision:
        return 2.0**-9
    if "16" in precision:
        return 2.0**-12
    if precision.startswith("64"):
        return 2.0**-53
    switches = around.get("switches", {})
    names = ("backends.cuda.matmul.fp32_precision", "backends.cudnn.conv.fp32_precision")
    reduced = around.get("device") == "cuda" and any(switches.get(name) == "tf32" for name in names)
    return 2.0**-12 if reduced else 2.0**-24


class _Gauge(Callback):
    """Applies a variant to each step, and ends the replay after the last with a copy of the state."""

    def __init__(
        self, stretch: Stretch, variant: Variant, played: Played, unit: float, on_start: OnStart | None
    ) -> None:
        self.stretch, self.variant, self.played, self.unit = stretch, variant, played, unit
        self.on_start, self.over = on_start, False
        self.images: Path | None = None
        self.saves = False
        self._kept: list[tuple[Tensor, Tensor]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Behind the others, also those that the task has just brought: averaging weights is a part of a step.
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
        trainer.callbacks = [*(each for each in callbacks if each is not self), self]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.stretch.reaches_end:
            self.played.began = state_of(trainer, pl_module)
        if self.on_start is not None:
            self.on_start(trainer, pl_module)
        sharded = getattr(trainer, "shards", None) is not None
        if self.variant.permuted and (sharded or draws_by_position(pl_module)):
            self.played.left_out = self.over = True  # another order would be more than another rounding
            raise EnoughError

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, Batch):
            if self.images is not None:
                self._exchange(batch, self.images / f"{trainer.current_epoch}-{batch_idx}.safetensors")
            if self.variant.pixels:
                _round_pixels(batch, generator(self.variant.pixels, "pixels", trainer.current_epoch, batch_idx))
            if self.variant.permuted:
                _reverse(batch)
        if self.variant.rounding:
            source = generator(self.variant.rounding, "rounding", trainer.current_epoch, batch_idx)
            self._round(pl_module, source)

    def _exchange(self, batch: Batch, file: Path) -> None:
        """Write the images of a batch to a file, or take those of the file."""
        if self.saves:
            save_file({"images": batch.images.cpu().contiguous()}, file)
        else:
            batch.images.copy_(load_file(file)["images"])

    def _round(self, module: pl.LightningModule, source: torch.Generator) -> None:
        """Round all weights at random for one forward and backward pass."""
        for weight in module.parameters():
            if weight.is_floating_point():
                self._kept.append((weight, weight.detach().clone()))
                noise = torch.rand(weight.shape, generator=source, dtype=torch.float64).mul_(4).sub_(2)
                changed = weight.detach().double().mul_(noise.to(weight.device).mul_(self.unit).add_(1))
                weight.data.copy_(changed)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for weight, kept in self._kept:
            weight.data.copy_(kept)
        self._kept.clear()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step < self.stretch.first + self.stretch.steps:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
        for callback in callbacks:
            if isinstance(callback, Recorder):
                callback.look()  # it waits for 32 steps otherwise
        if self.stretch.reaches_end:
            self.played.state = state_of(trainer, pl_module)
        self.over = True
        raise EnoughError


def draws_by_position(module: pl.LightningModule) -> bool:
    """Whether random numbers of a step belong to places in the batch: dropped parts, mixed images."""
    drops = (part for part in module.modules() if "drop" in type(part).__name__.lower())
    # torch's classes call the chance `p`, timm's `drop_prob`; a class of another package may call it anything.
    if any(getattr(part, "p", getattr(part, "drop_prob", 1.0)) for part in drops):
        return True
    return any(module.hparams.get(name) for name in ("mixup_alpha", "cutmix_alpha"))


def _reverse(batch: Batch) -> None:
    """Turn the order of the images of a batch around, in place: the ids and their digests stay as they were drawn."""
    for part in (batch.images, batch.targets, batch.placements):
        if isinstance(part, Tensor):
            part.copy_(part.flip(0))
        elif isinstance(part, list):
            part.reverse()


def _round_pixels(batch: Batch, source: torch.Generator) -> None:
    """Move a quarter of the values of the images up by one of 255 levels and a quarter down, in place."""
    level = 1.0 if batch.images.dtype == torch.uint8 else 1 / 255
    moves = torch.randint(0, 4, batch.images.shape, generator=source)
    change = ((moves == 1).float() - (moves == 2).float()).mul_(level).to(batch.images.device)
    batch.images.copy_(batch.images.float().add_(change).clamp_(0, 255 * level))


def state_of(trainer: pl.Trainer, module: pl.LightningModule) -> State:
    """A copy of everything that a step changes: weights, buffers, averages and the state of the optimizer."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
    averaging = next((each for each in callbacks if isinstance(each, pl.callbacks.WeightAveraging)), None)
    average = getattr(averaging, "_average_model", None)  # private to Lightning: where the average is
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in named_state(
            module.state_dict(), [each.state_dict() for each in trainer.optimizers],
            None if average is None else average.module.state_dict(),
        )
    }  # fmt: skip


def named_state(
    weights: Mapping[str, Any], optimizers: list[Any], average: Mapping[str, Any] | None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state by name."""
    yield from ((name, tensor) for name, tensor in weights.items() if isinstance(tensor, Tensor))
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.get("state", {}).items():
            for name, value in values.items() if isinstance(values, Mapping) else ():
                if isinstance(value, Tensor):
                    yield f"optimizer {number}.{index}.{name}", value
    for name, tensor in (average or {}).items():
        if isinstance(tensor, Tensor):
            yield f"average.{name}", tensor
