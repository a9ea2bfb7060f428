"""Find the class of an optimizer by its name in timm or torch, or by its import path."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import get_optimizer_class, get_optimizer_info  # type: ignore[attr-defined]  # no `__all__`
from timm.optim import list_optimizers as _list_optimizers  # type: ignore[attr-defined]  # the same
from torch.optim import Optimizer

from autotimm.errors import UsageError, nearest
from autotimm.records.imports import Kind, import_named, require_admitted

__all__ = ["admit_optimizer", "find_optimizer"]

LOOKAHEAD = "lookahead_"
OPTIMIZER = Kind(
    "`optimizer`", "a subclass of torch.optim.Optimizer", base=Optimizer, libraries=("torch.optim", "timm.optim")
)


def list_optimizers() -> list[str]:
    """Return the names of the optimizers in timm's registry."""
    return [str(name) for name in _list_optimizers()]


def find_optimizer(optimizer: str | type[Optimizer]) -> type[Optimizer]:
    """Find the class of an optimizer.

    Args:
        optimizer: A name in timm's registry (``"adamw"``, also ``"lookahead_adamw"``) or, if it is not there, in
            ``torch.optim``, ignoring case; an import path (``"package.module.Class"``); or a class, which is returned.

    Raises:
        UsageError: If there is no such optimizer, with suggestions; if its package is not installed; or if it needs
            second-order gradients.

    Example:
        >>> find_optimizer("AdamW").__name__, find_optimizer("rprop").__name__
        ('AdamW', 'Rprop')
    """
    if not isinstance(optimizer, str):
        return _checked(optimizer, optimizer)
    name = optimizer.lower().removeprefix(LOOKAHEAD)
    if name in list_optimizers():
        return _timm_optimizer(optimizer, name)
    if name in (in_torch := _torch_optimizers()):
        return in_torch[name]
    if "." not in optimizer:
        suggestion = nearest(optimizer, [*list_optimizers(), *in_torch]) or "Give an import path for one of your own."
        raise UsageError(f"Neither timm nor torch has an `optimizer` {optimizer!r}. {suggestion}")
    return _checked(import_named(optimizer, OPTIMIZER), optimizer)


def admit_optimizer(optimizer: str | type[Optimizer] | None) -> None:
    """Refuse the import path of a record that is not trusted, before the optimizer is built.

    Raises:
        ModelError: If it is one.
    """
    if isinstance(optimizer, str) and "." in optimizer:
        require_admitted(optimizer, OPTIMIZER)


def in_timm(optimizer: str | type[Optimizer]) -> bool:
    """Whether the optimizer is a name in timm's registry, which has default arguments of its own."""
    return isinstance(optimizer, str) and optimizer.lower().removeprefix(LOOKAHEAD) in list_optimizers()


def _torch_optimizers() -> dict[str, type[Optimizer]]:
    classes = {name.lower(): value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    return {name: value for name, value in classes.items() if issubclass(value, Optimizer) and value is not Optimizer}


def _timm_optimizer(optimizer: str, name: str) -> type[Optimizer]:
    try:
        optimizer_class: Any = get_optimizer_class(name, bind_defaults=False)
    except (ImportError, AssertionError) as error:  # timm lists apex and bitsandbytes even if they are not installed
        raise UsageError(f"The `optimizer` {optimizer!r} is not installed: {error}. Try 'adamw'.") from None
    if get_optimizer_info(name).second_order:
        raise UsageError(
            f"The `optimizer` {optimizer!r} needs second-order gradients, which training steps do not compute. Try "
            "'adamw'."
        )
    return _checked(optimizer_class, optimizer)


def _checked(candidate: Any, optimizer: object) -> type[Optimizer]:
    if isinstance(candidate, type) and issubclass(candidate, Optimizer):
        return candidate
    raise UsageError(
        f"The `optimizer` must be a subclass of torch.optim.Optimizer. Got {optimizer!r} instead. Try 'adamw'."
    )
