"""The order of samples: a pure function of (seed, epoch), with the position sent along to whoever augments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from autotimm.errors import require
from autotimm.repro.streams import generator

__all__ = ["Draw", "KeyedBatchSampler"]


class Draw(NamedTuple):
    """A request for one sample. It carries the epoch to the worker, so that workers may outlive an epoch.

    Attributes:
        epoch: The epoch that it is drawn in, from 0.
        position: Its place in the epoch's global order, from 0. A sample that is drawn twice has two positions.
        index: Which sample of the data set.
    """

    epoch: int
    position: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class KeyedBatchSampler(Sampler[list[Draw]]):
    """Batches of :class:`Draw` whose order depends on the seed and the epoch alone.

    With several processes each global batch of ``batch_size * world_size`` samples is cut into one piece per process,
    so the global order does not depend on how many processes share it.

    Args:
        size: Number of samples in the data set.
        batch_size: Samples per batch and process.
        seed: Root seed of the ``order`` stream.
        shuffle: Draw a new order in each epoch; otherwise samples come in the order of the data set.
        weights: Relative chance of each sample. Given, an epoch draws ``size`` samples with replacement.
        drop_last: Leave out a last global batch that is not full, if it is not the only one.
        rank: Which process this is, from 0.
        world_size: How many processes there are.

    A last training batch that would leave a process with one single sample is left out where there are others: batch
    normalization cannot be trained on one value. That tail is the one thing that depends on the number of processes.

    Raises:
        UsageError: If a number is out of range.

    Example:
        >>> sampler = KeyedBatchSampler(size=4, batch_size=2, seed=42)
        >>> epoch0 = list(sampler)
        >>> sampler.set_epoch(1)
        >>> [draw.epoch for draw in list(sampler)[0]]
        [1, 1]
        >>> sampler.set_epoch(0)
        >>> list(sampler) == epoch0
        True
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        weights: Sequence[float] | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        owner = type(self).__name__
        require(size > 0, "size", owner, "at least 1", size, "Give a data set with samples.")
        require(batch_size > 0, "batch_size", owner, "at least 1", batch_size, "Give for example 32.")
        require(0 <= rank < world_size, "rank", owner, f"in [0, {world_size})", rank, "Count processes from 0.")
        training = shuffle or weights is not None
        require(
            size >= world_size or not training, "size", owner, f"at least the number of processes, {world_size}", size,
            "Train with fewer processes.",
        )  # fmt: skip
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.weights = None if weights is None else _chances(weights, size, owner)
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0  # batches of the epoch that were already taken, for an exact resume

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws. Another epoch than before starts at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def order(self, epoch: int) -> list[int]:
        """The indices of the samples in the order of an epoch."""
        if self.weights is not None:
            stream = generator(self.seed, "order", epoch)
            return torch.multinomial(self.weights, self.size, replacement=True, generator=stream).tolist()
        if self.shuffle:
            return torch.randperm(self.size, generator=generator(self.seed, "order", epoch)).tolist()
        return list(range(self.size))

    def _usable(self) -> int:
        """How many positions of an epoch are used."""
        step = self.batch_size * self.world_size
        rest = self.size % step
        training = self.shuffle or self.weights is not None
        # Every process must take part in every training step, with more than one sample where it can.
        too_small = training and 0 < rest < self.world_size * min(2, self.batch_size)
        return self.size - rest if self.size > step and (too_small or self.drop_last) else self.size

    def _share(self, first: int) -> range:
        """The positions that this process takes of the global batch that begins at ``first``."""
        length = min(self.batch_size * self.world_size, self._usable() - first)
        return range(first + length * self.rank // self.world_size, first + length * (self.rank + 1) // self.world_size)

    def __len__(self) -> int:
        step = self.batch_size * self.world_size
        full, rest = divmod(self._usable(), step)
        # In evaluation a process may find nothing left for it in the last global batch.
        return full + bool(rest and self._share(full * step))

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, step = self.epoch, self.batch_size * self.world_size
        order = self.order(epoch)
        for first in range(self.start * step, self._usable(), step):
            if mine := self._share(first):
                yield [Draw(epoch, position, order[position]) for position in mine]


def _chances(weights: Sequence[float], size: int, owner: str) -> Tensor:
    chances = torch.as_tensor(weights, dtype=torch.float64)
    require(
        chances.shape == (size,), "weights", owner, f"of length {size}", tuple(chances.shape), "Give one per sample."
    )
    usable = bool(chances.isfinite().all() and (chances >= 0).all() and chances.sum() > 0)
    require(usable, "weights", owner, "finite, not negative and not all 0", "others", "Give relative chances.")
    return chances
