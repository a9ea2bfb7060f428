"""Which parameters can learn, told before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import Tensor, nn
from torch.autograd.graph import Node

__all__ = ["freeze", "idle_parameters"]


def idle_parameters(model: nn.Module, outputs: Iterable[Tensor]) -> frozenset[str]:
    """Name the parameters that outputs do not depend on, and that no loss of them gives a gradient.

    Nothing is computed: autograd's graph is followed from the outputs back to the parameters, as
    ``DistributedDataParallel`` does for ``find_unused_parameters``.

    Args:
        model: A module in training mode. In evaluation timm's EfficientFormer and TinyViT read their attention biases
            from a cache that knows no gradient.
        outputs: What it gave while gradients were on, of any shape and on any device, the meta device included.

    Example:
        >>> import torch
        >>> pair = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2, bias=False)})
        >>> sorted(idle_parameters(pair, [pair["used"](torch.zeros(1, 2))]))
        ['idle.weight']
    """
    waiting: list[Node | None] = [one.grad_fn for one in outputs]
    seen: set[Node] = set()
    reached: set[int] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(id(getattr(node, "variable", None)))  # the leaves of the graph, and they alone, have it
        waiting += [before for before, _ in node.next_functions]
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) not in reached)


def freeze(model: nn.Module, names: Collection[str]) -> None:
    """Let parameters be as they are; names that the model does not have are passed over."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
