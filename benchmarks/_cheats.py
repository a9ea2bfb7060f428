"""Kinds of cheating and mistakes, each planted in some steps of a training whose record claims that there were none.

Most are callbacks that come after the one that writes the ledger: samples, digests of inputs and learning rates are
recorded as they should be, and the checkpoints have the settings that the options give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor


@dataclass
class Cheat(Callback):
    """Changes something in a range of optimizer steps, counted from 0, and hides it afterwards."""

    first: int
    last: int
    groups: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    change_batch: Callable[[Any], None] | None = None
    change_module: Callable[[Any], Callable[[], None]] | None = None
    change_weights: Callable[[Any], None] | None = None
    skips: bool = False
    resets: bool = False
    clears: bool = False

    def active(self, trainer: Any) -> bool:
        return self.first <= self._step < self.last

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._step = trainer.global_step
        self._undo: list[Callable[[], None]] = []
        if not self.active(trainer):
            return
        optimizer = trainer.optimizers[0]
        for group in optimizer.param_groups:
            for name, change in self.groups.items():
                if name != "lr":  # which the schedule has set again by then
                    self._undo.append(lambda group=group, name=name, value=group[name]: group.__setitem__(name, value))
                group[name] = change(group[name])
        if self.change_batch is not None:
            self.change_batch(batch)
        if self.change_module is not None:
            self._undo.append(self.change_module(pl_module))
        if self.resets:
            for state in optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor) and value.dim():
                        value.zero_()
        if self.skips:
            kept = [parameter.detach().clone() for parameter in pl_module.parameters()]

            def put_back() -> None:
                for parameter, before in zip(pl_module.parameters(), kept, strict=True):
                    parameter.data.copy_(before)

            self._undo.append(put_back)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.clears and self.active(trainer):
            largest = max(pl_module.parameters(), key=lambda p: 0 if p.grad is None else p.numel())
            largest.grad.zero_()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for undo in reversed(self._undo):
            undo()
        if self.change_weights is not None and self.active(trainer):
            self.change_weights(pl_module)


def times(factor: float) -> Callable[[Any], Any]:
    return lambda value: value * factor


def first_moment(groups: float) -> Callable[[Any], Any]:
    return lambda betas: (groups, betas[1])


def _swap_image(batch: Any) -> None:
    batch.images[0].copy_(batch.images[1])


def _mirror(batch: Any) -> None:
    batch.images[0].copy_(batch.images[0].flip(-1))


def _brighten(batch: Any) -> None:
    images = batch.images
    images.copy_((images.float() * 1.05).clamp(0, 255).to(images.dtype))


def _zoom(batch: Any) -> None:
    """Augmentation of another strength: each image is cropped by a pixel more on each side."""
    images = batch.images
    inner = images.float()[..., 1:-1, 1:-1]
    larger = torch.nn.functional.interpolate(inner, images.shape[-2:], mode="bilinear", antialias=True)
    images.copy_(larger.round() if images.dtype == torch.uint8 else larger)


def _move(batch: Any) -> None:
    """A transform of one image is left out: its pixels are moved by one."""
    batch.images[0].copy_(batch.images[0].roll(1, -1))


def _patch(batch: Any) -> None:
    batch.images[0, :, :4, :4] = 0


def _swap_label(batch: Any) -> None:
    targets = batch.targets
    if isinstance(targets, Tensor):
        if targets.dim() == 1:
            targets[0] = (targets[0] + 1) % 3
        elif targets.is_floating_point():
            targets[0] = 1 - targets[0]
        else:
            targets[0, :8] = (targets[0, :8].clamp(0, 1) + 1) % 2
    else:
        targets[0]["labels"] = (targets[0]["labels"] + 1) % 2 + (targets[0]["labels"].min() > 0).long()


def _turned(batch: Any) -> None:
    """The images belong to other targets: half a batch is exchanged."""
    batch.images.copy_(batch.images.roll(1, 0))


def _nudge(module: Any) -> None:
    source = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data.mul_(1 + 1e-4 * torch.randn(parameter.shape, generator=source))


def _dropout(module: Any) -> Callable[[], None]:
    """Dropout of 5 % behind the last layer before the head's."""
    layers = [part for part in module.network.modules() if isinstance(part, (torch.nn.Linear, torch.nn.Conv2d))]
    source = torch.Generator().manual_seed(4)

    def drop(_: Any, given: Any) -> Any:
        kept = (torch.rand(given[0].shape, generator=source) > 0.05).to(given[0].dtype)
        return (given[0] * kept / 0.95, *given[1:])

    return layers[-1].register_forward_pre_hook(drop).remove


def _half(module: Any) -> Callable[[], None]:
    context = torch.autocast("cpu", torch.bfloat16)
    context.__enter__()
    return lambda: context.__exit__(None, None, None)


def _scaled_normalization(module: Any) -> Callable[[], None]:
    """The first normalization is scaled by 1 %; without one, the first tensor of weights is."""
    kinds = (torch.nn.BatchNorm2d, torch.nn.LayerNorm)
    part = next((part for part in module.network.modules() if isinstance(part, kinds)), None)
    scaled = part.weight if part is not None else next(module.network.parameters())
    before = scaled.detach().clone()
    scaled.data.mul_(1.01)
    return lambda: scaled.data.copy_(before)


def _kinds() -> dict[str, dict[str, Any]]:
    return {
        "learning rate 1 % higher": {"groups": {"lr": times(1.01)}},
        "learning rate 1 % lower": {"groups": {"lr": times(0.99)}},
        "weight decay doubled": {"groups": {"weight_decay": times(2)}},
        "momentum 0.89 instead of 0.9": {"groups": {"betas": first_moment(0.89)}},
        "one image swapped": {"change_batch": _swap_image, "once": True},
        "one image mirrored": {"change_batch": _mirror, "once": True},
        "one image moved by a pixel": {"change_batch": _move, "once": True},
        "a patch of 4 x 4 pixels erased": {"change_batch": _patch, "once": True},
        "one label swapped": {"change_batch": _swap_label, "once": True},
        "images and targets out of step": {"change_batch": _turned, "once": True},
        "brightness 5 % higher": {"change_batch": _brighten},
        "augmentation crops a pixel more": {"change_batch": _zoom},
        "a skipped step": {"skips": True, "once": True},
        "weights nudged by 1e-4": {"change_weights": _nudge, "once": True},
        "state of the optimizer reset": {"resets": True, "once": True},
        "largest tensor not trained": {"clears": True, "once": True},
        "dropout of 5 %": {"change_module": _dropout},
        "bfloat16": {"change_module": _half},
        "a normalization scaled by 1 %": {"change_module": _scaled_normalization},
    }


KINDS: dict[str, dict[str, Any]] = _kinds()
"""The kinds that a callback plants; ``once`` ones in a single step, the others in all steps of the stretch."""


def planted(kind: str, steps: Iterable[int], at: int) -> Cheat:
    """A callback that cheats in some steps.

    Args:
        kind: One of :data:`KINDS`.
        steps: The optimizer steps, counted from 0.
        at: Which of them, for kinds that happen once.
    """
    options = dict(KINDS[kind])
    chosen = [*steps]
    if options.pop("once", False):
        chosen = [chosen[at % len(chosen)]]
    return Cheat(chosen[0], chosen[-1] + 1, **options)
