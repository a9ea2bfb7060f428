"""Create an optimizer from a recipe, with parameter groups by weight decay, layer and backbone."""

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

__all__ = ["HasNumberedLayers", "build_optimizer", "parameter_groups"]


@runtime_checkable
class HasNumberedLayers(Protocol):
    """A network with numbered layers, as timm's models have, for layer-wise learning rates."""

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Return a function from the name of a parameter to the number of its layer. The head has the largest."""

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, regardless of their shape."""


def build_optimizer(network: nn.Module, recipe: Recipe, **arguments: Any) -> Optimizer:
    """Create the optimizer of a recipe for a network.

    Parameters with fewer than two dimensions, and those that the network names in ``no_weight_decay()``, have no weight
    decay. Frozen parameters are left out.

    Args:
        network: The network.
        recipe: The result of :func:`autotimm.optim.choose_recipe`.
        arguments: Further arguments of the optimizer, such as ``betas``.

    Returns:
        The optimizer. Its parameter groups have names for logging, such as ``decay``, ``layer3/no_decay`` or
        ``backbone/decay``.

    Raises:
        UsageError: If the optimizer does not accept the arguments or several groups, if all parameters are frozen, or
            if the recipe has a ``layer_decay`` or a ``backbone_scale`` that the network does not support.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> optimizer = build_optimizer(network, Recipe("sgd", lr=0.1, weight_decay=1e-4))
        >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
        [('no_decay', 0.0), ('decay', 0.0001)]
    """
    groups = parameter_groups(network, recipe)
    try:
        return _create(recipe, groups, arguments)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"The `optimizer` {recipe.optimizer!r} does not accept its arguments: {reason}. Choose other arguments, or "
            "another optimizer."
        ) from None


def _create(recipe: Recipe, groups: list[dict[str, Any]], arguments: Mapping[str, Any]) -> Optimizer:
    if in_timm(recipe.optimizer):
        optimizer: Optimizer = create_optimizer_v2(groups, opt=str(recipe.optimizer), lr=recipe.lr, **arguments)
        return optimizer
    optimizer_class: Callable[..., Optimizer] = find_optimizer(recipe.optimizer)
    return optimizer_class(groups, lr=recipe.lr, **arguments)


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Divide the parameters that require gradients into groups of equal learning rate and weight decay.

    Each group has ``params``, ``lr``, ``weight_decay`` and a ``name`` for logging: ``decay`` or ``no_decay``; with
    layer decay ``layer0/decay`` and so on, counted from the input; if the backbone has a learning rate of its own, with
    the prefix ``backbone/`` or ``head/``.

    Args:
        network: The network. Frozen parameters are left out.
        recipe: The recipe, for learning rates and weight decay.

    Raises:
        UsageError: If all parameters are frozen, or the recipe has a ``layer_decay`` for a network without numbered
            layers or a ``backbone_scale`` for one without ``backbone``.
    """
    numbered: HasNumberedLayers | None = network if isinstance(network, HasNumberedLayers) else None
    no_decay: set[str] = numbered.no_weight_decay() if numbered else set()
    if recipe.layer_decay == 1:
        groups = param_groups_weight_decay(network, recipe.weight_decay, no_weight_decay_list=no_decay)
    elif numbered:
        groups = param_groups_layer_decay(
            network, recipe.weight_decay, no_weight_decay_list=no_decay, layer_decay=recipe.layer_decay
        )
    else:
        raise UsageError(
            f"The `layer_decay` must be 1 for {type(network).__name__}, whose layers have no numbers. Got "
            f"{recipe.layer_decay} instead. Add a method `group_matcher` to the network, or use 1."
        )
    if not groups:
        raise UsageError(f"All parameters of the network {type(network).__name__} are frozen. Unfreeze some to train.")
    scales = sorted({group.get("lr_scale", 1.0) for group in groups})
    for group in groups:
        # timm's `lr_scale` goes into the rate, since torch's schedules do not read it.
        scale = group.pop("lr_scale", 1.0)
        layer = f"layer{scales.index(scale)}/" if recipe.layer_decay != 1 else ""
        group["name"] = layer + ("decay" if group["weight_decay"] else "no_decay")
        group["lr"] = recipe.lr * scale
    if recipe.backbone_scale != 1:
        groups = _split_backbone(groups, network, recipe.backbone_scale)
    return _merge_by_name(groups)


def _split_backbone(groups: list[dict[str, Any]], network: nn.Module, scale: float) -> list[dict[str, Any]]:
    """Split each group into backbone and head. The head comes last: tables show the rate of the last group."""
    backbone = getattr(network, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise UsageError(
            f"The `backbone_scale` must be 1 for {type(network).__name__}, which has no `backbone`. Got {scale} "
            "instead. Name that part of the network `backbone`, or use 1."
        )
    in_backbone = {id(parameter) for parameter in backbone.parameters()}
    split_groups = []
    for part, factor in (("backbone", scale), ("head", 1.0)):
        for group in groups:
            params = [
                parameter for parameter in group["params"] if (id(parameter) in in_backbone) == (part == "backbone")
            ]
            if params:
                name = f"{part}/{group['name']}"
                split_groups.append({**group, "params": params, "name": name, "lr": group["lr"] * factor})
    return split_groups


def _merge_by_name(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge groups of equal name, since loggers identify groups by their names."""
    merged: dict[str, dict[str, Any]] = {}
    for group in groups:
        merged.setdefault(group["name"], {**group, "params": []})["params"].extend(group["params"])
    return list(merged.values())
