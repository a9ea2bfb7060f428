"""Virtual shards of a batch: how many images each has, and one order in which sums over them are taken.

Sums of floats depend on their order. Over shards they are taken in one binary tree, whatever the number of processes
that hold the shards: each process adds up the parts of the tree that lie within its own shards, and the rest follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from typing_extensions import Self

__all__ = ["nodes_within", "shard_range", "sum_in_tree"]


class _Summand(Protocol):
    def add_(self, other: Self, /) -> Self: ...


_Sum = TypeVar("_Sum", bound=_Summand)


def shard_range(length: int, shard: int, shards: int) -> range:
    """The positions of a shard in a batch; shards differ by one position at most, and may be empty.

    Args:
        length: Positions in the batch.
        shard: Number of the shard, from 0.
        shards: Number of shards.

    Example:
        >>> [len(shard_range(10, shard, 4)) for shard in range(4)]
        [2, 3, 2, 3]
    """
    return range(length * shard // shards, length * (shard + 1) // shards)


def nodes_within(first: int, end: int, shards: int) -> list[tuple[int, int]]:
    """The largest nodes of the tree over all shards that lie within some consecutive shards, in order.

    Args:
        first: The first of the consecutive shards.
        end: The shard after the last of them.
        shards: Number of all shards.

    Returns:
        The first and the end of each node.

    Example:
        >>> nodes_within(2, 4, 4), nodes_within(0, 2, 6)
        ([(2, 4)], [(0, 1), (1, 2)])
    """
    return list(_within(0, shards, first, end))


def _within(low: int, high: int, first: int, end: int) -> Iterator[tuple[int, int]]:
    if first <= low and high <= end:
        yield low, high
    elif low < end and first < high:
        middle = (low + high) // 2
        yield from _within(low, middle, first, end)
        yield from _within(middle, high, first, end)


def sum_in_tree(first: int, end: int, known: Callable[[int, int], _Sum | None]) -> _Sum:
    """Add up a node of the tree; tensors, or what has their ``add_``.

    Args:
        first: The first shard of the node.
        end: The shard after the last of it.
        known: The sum of a node, which may be overwritten; ``None`` if that is the sum of its two halves. It is asked
            in the order of the shards.

    Example:
        >>> import torch
        >>> sum_in_tree(0, 4, lambda first, end: torch.tensor(first) if end - first == 1 else None)
        tensor(6)
    """
    found = known(first, end)
    if found is not None:
        return found
    middle = (first + end) // 2
    left = sum_in_tree(first, middle, known)
    return left.add_(sum_in_tree(middle, end, known))
