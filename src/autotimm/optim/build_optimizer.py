"""Make an optimizer from a recipe: timm's parameter groups, timm's or torch's optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from timm.optim import (  # type: ignore[attr-defined]  # timm re-exports these without an `__all__`
    create_optimizer_v2,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import nn
from torch.optim import Optimizer

from autotimm.errors import UsageError
from autotimm.optim.optimizers import find_optimizer, in_timm
from autotimm.optim.recipe import Recipe

__all__ = ["Layered", "build_optimizer", "find_optimizer", "parameter_groups"]


@runtime_checkable
class Layered(Protocol):
    """A network whose layers are numbered, so that they can have learning rates of their own; see timm's models."""

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Return a function that numbers a parameter's layer from its name; the head has the largest number."""

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that must not decay, whatever their shape."""


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Sort the parameters that require gradients into groups of one learning rate and one weight decay.

    Each group has ``params``, ``lr``, ``weight_decay`` and a ``name`` for logging: ``decay``, ``no_decay``, or with
    layer decay ``layer0/decay`` ... counted from the input. If the backbone has a rate of its own, ``backbone/`` or
    ``head/`` stands before that.

    Args:
        network: The network. Frozen parameters are left out.
        recipe: Says rates and decays.

    Raises:
        UsageError: If nothing requires gradients, layer decay is asked of a network without numbered layers, or a rate
            for the backbone of a network without one.
    """
    numbered: Layered | None = network if isinstance(network, Layered) else None
    spared: set[str] = numbered.no_weight_decay() if numbered else set()
    if recipe.layer_decay == 1:
        groups = param_groups_weight_decay(network, recipe.weight_decay, no_weight_decay_list=spared)
    elif numbered:
        groups = param_groups_layer_decay(
            network, recipe.weight_decay, no_weight_decay_list=spared, layer_decay=recipe.layer_decay
        )
    else:
        raise UsageError(
            f"The `layer_decay` must be 1 for {type(network).__name__}, whose layers have no numbers. Got "
            f"{recipe.layer_decay} instead. Give it a `group_matcher`, or use 1."
        )
    if not groups:
        raise UsageError(
            f"The network {type(network).__name__} must have parameters to train. All are frozen. Unfreeze some."
        )
    scales = sorted({group.get("lr_scale", 1.0) for group in groups})
    for group in groups:
        # Baked into the rate: torch's schedules, unlike timm's, do not know about scales.
        scale = group.pop("lr_scale", 1.0)
        layer = f"layer{scales.index(scale)}/" if recipe.layer_decay != 1 else ""
        group["name"] = layer + ("decay" if group["weight_decay"] else "no_decay")
        group["lr"] = recipe.lr * scale
    return _merged(groups if recipe.backbone_scale == 1 else _split(groups, network, recipe.backbone_scale))


def _split(groups: list[dict[str, Any]], network: nn.Module, scale: float) -> list[dict[str, Any]]:
    """Groups of the backbone, at a rate of their own, and then groups of the head, whose rate tables show."""
    backbone = getattr(network, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise UsageError(
            f"The `backbone_scale` must be 1 for {type(network).__name__}, which has no `backbone`. Got {scale} "
            "instead. Name that part of the network `backbone`, or use 1."
        )
    inside = {id(parameter) for parameter in backbone.parameters()}
    found = []
    for part, factor in (("backbone", scale), ("head", 1.0)):
        for group in groups:
            of_part = [one for one in group["params"] if (id(one) in inside) == (part == "backbone")]
            if of_part:
                name = f"{part}/{group['name']}"
                found.append({**group, "params": of_part, "name": name, "lr": group["lr"] * factor})
    return found


def _merged(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join groups that ended up with one name, since loggers tell groups by their names."""
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        found.setdefault(group["name"], {**group, "params": []})["params"].extend(group["params"])
    return list(found.values())


def build_optimizer(network: nn.Module, recipe: Recipe, **arguments: Any) -> Optimizer:
    """Make the optimizer of a recipe for a network.

    Args:
        network: The network, see :func:`parameter_groups`.
        recipe: What :func:`autotimm.optim.choose_recipe` returned.
        arguments: Further arguments of the optimizer, such as ``betas``.

    Raises:
        UsageError: If the optimizer does not take the arguments or the groups, or there is nothing to train.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> optimizer = build_optimizer(network, Recipe("sgd", lr=0.1, weight_decay=1e-4))
        >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
        [('no_decay', 0.0), ('decay', 0.0001)]
    """
    groups = parameter_groups(network, recipe)
    try:
        return _make(recipe, groups, arguments)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"The `optimizer` {recipe.optimizer!r} must accept its arguments. It does not ({reason}). Choose another "
            "optimizer, or other arguments."
        ) from None


def _make(recipe: Recipe, groups: list[dict[str, Any]], arguments: Mapping[str, Any]) -> Optimizer:
    if in_timm(recipe.optimizer):
        made: Optimizer = create_optimizer_v2(groups, opt=str(recipe.optimizer), lr=recipe.lr, **arguments)
        return made
    make: Callable[..., Optimizer] = find_optimizer(recipe.optimizer)
    return make(groups, lr=recipe.lr, **arguments)
