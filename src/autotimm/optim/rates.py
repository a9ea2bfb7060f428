"""The numbers of the recipes: rates by what is learned, by family and by optimizer; sources are in ``recipe.py``."""

from __future__ import annotations

import inspect
from typing import NamedTuple

from torch.optim import Optimizer

from autotimm.errors import UsageError, sentence
from autotimm.optim.find import find_optimizer

__all__ = ["Rate", "Start", "rate_of", "starting_point"]

_ADAM_LIKE = (
    "adam", "adamw", "adamwlegacy", "adamc", "adamp", "adabelief", "adopt", "adoptc", "adoptw", "cadamc", "cadamp",
    "cadamw", "cadopt", "cadoptc", "cadoptw", "claprop", "cnadamc", "cnadamw", "laprop", "lapropc", "nadam", "nadamc",
    "nadamlegacy", "nadamw", "radam", "radamlegacy", "radamw", "bnbadam", "bnbadam8bit", "bnbadamw", "bnbadamw8bit",
    "fusedadam", "fusedadamw",
)  # fmt: skip
_LION_LIKE = ("lion", "lionc", "clion", "clionc", "bnblion", "bnblion8bit")
_LAMB_LIKE = ("lamb", "lambc", "lambcd", "lambcw", "lambw", "clamb", "clambw", "fusedlamb")
_SGD_LIKE = (
    "sgd", "sgdc", "sgdp", "sgdw", "csgdc", "csgdp", "csgdw", "momentum", "nesterov", "nesterovw", "bnbsgd",
    "bnbsgd8bit", "fusedsgd",
)  # fmt: skip


class Start(NamedTuple):
    """What a training starts from.

    Attributes:
        lr: Learning rate of the head with AdamW.
        batch_size: The batch size that it is for.
        sgd: SGD's rate per image of the batch.
        layer_decay: Factor per layer.
        backbone_scale: Factor on the backbone's rate.
    """

    lr: float
    batch_size: int
    sgd: float
    layer_decay: float = 1.0
    backbone_scale: float = 1.0


_SGD_SCRATCH, _SGD_CLASSES, _SGD_DENSE = 0.1 / 256, 0.01 / 256, 0.01 / 16
_SCRATCH = {
    "vit": Start(1e-4, 64, _SGD_SCRATCH),
    "convnext": Start(1e-4, 64, _SGD_SCRATCH),
    "cnn": Start(1e-3, 32, _SGD_SCRATCH),
}
_CLASSES = {
    "vit": Start(1e-4, 64, _SGD_CLASSES, 0.7),
    "convnext": Start(1e-4, 64, _SGD_CLASSES, 0.8),
    "cnn": Start(5e-4, 32, _SGD_CLASSES),
}
_OBJECTS = {
    "vit": Start(1e-4, 64, _SGD_DENSE, 0.7),
    "convnext": Start(1e-4, 16, _SGD_DENSE),
    "cnn": Start(1e-4, 16, _SGD_DENSE, backbone_scale=0.1),
}
_PIXELS = dict.fromkeys(_SCRATCH, Start(1e-3, 16, _SGD_DENSE, backbone_scale=0.1))
_TUNING = {"classes": _CLASSES, "boxes": _OBJECTS, "instances": _OBJECTS, "pixels": _PIXELS}


def starting_point(family: str, kind: str, pretrained: bool) -> Start:
    """Where a recipe starts, by family of the backbone and by what is learned."""
    return (_TUNING[kind] if pretrained else _SCRATCH)[family]


class Rate(NamedTuple):
    """Learning rate and weight decay of an optimizer.

    Attributes:
        lr: For the batch size that was asked for.
        weight_decay: For parameters of two dimensions and more.
        splits: Whether the backbone's rate differs from the head's where AdamW's does.
        remark: On the rule, where it is not the usual one.
    """

    lr: float
    weight_decay: float
    splits: bool = False
    remark: str = ""


def rate_of(name: str, optimizer: str | type[Optimizer], start: Start, batch_size: int, given: float | None) -> Rate:
    """Turn AdamW's start into the rate of an optimizer at a batch size; a rate that was given wins.

    Args:
        name: Name or import path of the optimizer.
        optimizer: The optimizer.
        start: From :func:`starting_point`.
        batch_size: Images per optimizer step.
        given: The user's rate.

    Raises:
        UsageError: If the optimizer has no rate of its own, no recipe knows one, and none was given.
    """
    short = name.rpartition(".")[2].lower().rpartition("_")[2]
    adamw = start.lr * (batch_size / start.batch_size) ** 0.5
    if short in _SGD_LIKE:
        rate = Rate(start.sgd * batch_size, 1e-4)
    elif short in _LION_LIKE:
        rate = Rate(adamw / 5, 0.25, splits=True)
    elif short in _LAMB_LIKE:
        rate = Rate(5e-3 * (batch_size / 2048) ** 0.5, 0.02)
    elif short in _ADAM_LIKE:
        rate = Rate(adamw, 0.05, splits=True)
    else:
        rate = Rate(given or _own_rate(name, optimizer), 0.0, remark=" (the optimizer's own default)")
    return rate._replace(lr=given or rate.lr)


def _own_rate(name: str, optimizer: str | type[Optimizer]) -> float:
    parameter = inspect.signature(find_optimizer(optimizer)).parameters.get("lr")
    default = parameter.default if parameter else None
    if not isinstance(default, (int, float)):
        raise UsageError(sentence("lr", name, "given", None, "No recipe knows a learning rate for this optimizer."))
    return float(default)
