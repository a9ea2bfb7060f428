"""Find an optimizer by its name in timm or torch, by its import path, or as it is."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import get_optimizer_class, get_optimizer_info  # type: ignore[attr-defined]  # no `__all__`
from timm.optim import list_optimizers as _list_optimizers  # type: ignore[attr-defined]  # the same
from torch.optim import Optimizer

from autotimm.errors import UsageError, nearest
from autotimm.serialization import import_object

__all__ = ["find_optimizer"]

LOOKAHEAD = "lookahead_"


def list_optimizers() -> list[str]:
    """List the optimizers of timm's registry."""
    return [str(name) for name in _list_optimizers()]


def find_optimizer(optimizer: str | type[Optimizer]) -> type[Optimizer]:
    """Find the class of an optimizer.

    Args:
        optimizer: A name in timm's registry (``"adamw"``, also ``"lookahead_adamw"``), then in ``torch.optim``, in
            either case; an import path (``"package.module.Class"``); or a class.

    Raises:
        UsageError: If there is none; the nearest names are given.

    Example:
        >>> find_optimizer("AdamW").__name__, find_optimizer("rprop").__name__
        ('AdamW', 'Rprop')
    """
    if not isinstance(optimizer, str):
        return _checked(optimizer, optimizer)
    name = optimizer.lower().removeprefix(LOOKAHEAD)
    if name in list_optimizers():
        return _of_timm(optimizer, name)
    if name in (known := _of_torch()):
        return known[name]
    if "." not in optimizer:
        cure = nearest(optimizer, [*list_optimizers(), *known]) or "Give an import path for one of your own."
        raise UsageError(f"The `optimizer` must be one of timm or torch. There is no {optimizer!r}. {cure}")
    try:
        return _checked(import_object(optimizer), optimizer)
    except ImportError as error:
        raise UsageError(
            f"The `optimizer` {optimizer!r} must be importable. It is not ({error}). Check the path."
        ) from None


def in_timm(optimizer: str | type[Optimizer]) -> bool:
    """Whether timm's registry makes this optimizer, with the defaults that it has there."""
    return isinstance(optimizer, str) and optimizer.lower().removeprefix(LOOKAHEAD) in list_optimizers()


def _of_torch() -> dict[str, type[Optimizer]]:
    found = {name.lower(): value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    return {name: value for name, value in found.items() if issubclass(value, Optimizer) and value is not Optimizer}


def _of_timm(optimizer: str, name: str) -> type[Optimizer]:
    try:
        found: Any = get_optimizer_class(name, bind_defaults=False)
    except (ImportError, AssertionError) as error:  # apex and bitsandbytes are listed whether or not they are there
        raise UsageError(
            f"The `optimizer` {optimizer!r} must be installed. It is not ({error}). Try 'adamw'."
        ) from None
    if get_optimizer_info(name).second_order:
        raise UsageError(
            f"The `optimizer` {optimizer!r} must do with first derivatives. It needs second ones, for which no step "
            "keeps the graph. Try 'adamw'."
        )
    return _checked(found, optimizer)


def _checked(found: Any, optimizer: object) -> type[Optimizer]:
    if isinstance(found, type) and issubclass(found, Optimizer):
        return found
    raise UsageError(f"The `optimizer` must be a class of torch optimizers. Got {optimizer!r} instead. Try 'adamw'.")
