"""Outputs of a network, cut and joined along the images of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autotimm.errors import UsageError

__all__ = ["first_of", "is_list_of_tensors", "join"]


def is_list_of_tensors(output: Any) -> bool:
    """Whether an output is a list of tensors, and of at least one."""
    return isinstance(output, list) and bool(output) and all(isinstance(part, Tensor) for part in output)


def first_of(output: Any, number: int, of: int) -> Any:
    """Return the part of an output that belongs to the first images.

    An output is a tensor whose first dimension are the images; a mapping, a tuple or a list of such outputs; or a list
    of anything else with one entry per image, as torchvision's detectors return. A list of tensors is of the first
    kind.

    Args:
        output: The output of the network.
        number: How many images to keep.
        of: How many there were.

    Raises:
        UsageError: If it is none of these.

    Example:
        >>> first_of({"scores": torch.zeros(4, 2), "boxes": [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}]}, 2, of=4)
        {'scores': tensor([[0., 0.], [0., 0.]]), 'boxes': [{'n': 0}, {'n': 1}]}
    """
    if isinstance(output, Tensor) and output.shape[:1] == (of,):
        return output[:number]
    if isinstance(output, Mapping):
        return {name: first_of(part, number, of) for name, part in output.items()}
    if isinstance(output, tuple) or is_list_of_tensors(output):
        return _like(output, [first_of(part, number, of) for part in output])
    if isinstance(output, list) and len(output) == of:
        return output[:number]
    got = f"a {type(output).__name__}"
    got += f" of shape {tuple(output.shape)}" if isinstance(output, Tensor) else ""
    got += f" of {len(output)}" if isinstance(output, list) else ""
    raise UsageError(
        f"The output of the network must have one entry for each of {of} images: tensors whose first dimension they "
        f"are, a mapping or tuple of such, or a list. Got {got} instead. Return one of these."
    )


def join(outputs: Sequence[Any]) -> Any:
    """Concatenate outputs for some images each, as :func:`first_of` describes them, to one for all.

    Example:
        >>> join([(torch.zeros(2),), (torch.ones(1),)])
        (tensor([0., 0., 1.]),)
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, Mapping):
        return {name: join([output[name] for output in outputs]) for name in first}
    if isinstance(first, tuple) or is_list_of_tensors(first):
        return _like(first, [join(parts) for parts in zip(*outputs, strict=True)])
    return [entry for output in outputs for entry in output]


def _like(output: Any, parts: list[Any]) -> Any:
    """The parts as a list, a tuple, or the named tuple that the network returned."""
    return parts if isinstance(output, list) else getattr(type(output), "_make", tuple)(parts)
