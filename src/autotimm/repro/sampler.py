"""The sampler: the order of the samples as a pure function of (seed, epoch), computed as it is needed.

The sampler sends the epoch and the position along with the index of each sample, so that a worker knows where in the
``augment`` stream the sample belongs, however many workers there are and however long they live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from autotimm.errors import UsageError, require
from autotimm.repro.permutation import KeyedPermutation
from autotimm.repro.shards import shard_range
from autotimm.repro.streams import generator

__all__ = ["Draw", "KeyedBatchSampler"]

# A permutation takes nearly as long for 32 samples as for 1,000.
_SAMPLES_AT_ONCE = 1024

# Possible with weights only, which draw with replacement.
_ONLY_DROPPED = (
    "The samples that are drawn in an epoch must not all be dropped. They are. Leave `balanced_sampling` out, or "
    "replace the files in another run."
)

_Order = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Gives the indices of the samples at some positions."""


class Draw(NamedTuple):
    """A request for one sample. It carries the epoch, so that persistent workers need not be told of a new one.

    Attributes:
        epoch: Epoch that the sample is drawn in, from 0.
        position: Position in the epoch's global order, from 0. A sample that is drawn twice has two positions.
        index: Index of the sample in the data set, from 0.
    """

    epoch: int
    position: int
    index: int  # type: ignore[assignment]  # hides the method tuple.index


class KeyedBatchSampler(Sampler[list[Draw]]):
    """Batch sampler whose order depends on the root seed and the epoch alone. It yields lists of :class:`Draw`.

    Nothing is stored: the order of any epoch, and the rest of an interrupted one, can be computed again from the seed.
    A shuffled order is a :class:`~autotimm.repro.permutation.KeyedPermutation`, whose memory and start do not depend on
    the size. Only draws with ``weights`` are a list, as the weights are.

    With several processes, each global batch of ``batch_size * world_size`` samples is divided among the processes, so
    the global order does not depend on their number.

    A last training batch that would leave a process with a single sample is dropped unless it is the only batch, since
    batch normalization cannot be trained on one value. Only this last batch depends on the number of processes.

    In evaluation every process has as many batches as the others, since they wait for each other. Samples that are too
    few for one more batch each are added to the last one, of which a process then has one sample more. Only of fewer
    samples than processes some have none.

    With ``shards`` the batch size is that of the whole: a training batch is cut into so many shards, see
    :mod:`autotimm.repro.shards`, of which each process has equally many, and evaluation gives whole batches to the
    processes in turn. Then not even the last batch depends on the number of processes. A process without a share of a
    batch gets one sample in its place, see :meth:`is_empty`.

    A sample that is ``dropped`` changes neither length nor order: at each of its positions stands the sample of the
    next position of the same epoch that is not dropped, and after the last position comes the first. That sample is
    then drawn twice, with random numbers of its own each time.

    Pass it to a ``DataLoader`` as ``batch_sampler``; the data set then receives a :class:`Draw` in place of an index.

    Args:
        size: Number of samples in the data set.
        batch_size: Samples per batch and process.
        seed: Root seed of the ``order`` stream.
        shuffle: Whether to draw a new order in each epoch. Otherwise samples keep the order of the data set.
        weights: Relative probability of each sample, length ``size``. If given, an epoch draws ``size`` samples with
            replacement, and ``shuffle`` has no effect.
        drop_last: Whether to drop an incomplete last global batch. It is kept if it is the only batch.
        rank: Index of this process, from 0.
        world_size: Number of processes.
        shards: Number of shards that a training batch is cut into, a multiple of ``world_size``; ``None`` for none.
        least: Samples that each shard of an incomplete last batch must have, or it is dropped unless it is the only
            one; with 1, shards may be empty.
        dropped: Indices of samples that others take the place of.

    Attributes:
        epoch: The epoch that the next iteration draws, from 0; see :meth:`set_epoch`.
        start: Number of batches to skip at the beginning of that epoch, for a resume in the middle of an epoch.

    Raises:
        UsageError: If an argument is out of range, a training set has fewer samples than there are processes, or no
            sample is left.

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
        shards: int | None = None,
        least: int = 1,
        dropped: Sequence[int] = (),
    ) -> None:
        owner = type(self).__name__
        require(size > 0, "size", owner, "at least 1", size, "Give a data set with samples.")
        require(batch_size > 0, "batch_size", owner, "at least 1", batch_size, "Give for example 32.")
        require(0 <= rank < world_size, "rank", owner, f"in [0, {world_size})", rank, "Ranks count from 0.")
        training = shuffle or weights is not None
        enough = size >= world_size or not training or shards is not None
        must = f"at least the number of processes, {world_size}"
        require(enough, "size", owner, must, size, "Train with fewer processes.")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.weights = None if weights is None else _checked_weights(weights, size, owner)
        self.rank, self.world_size = rank, world_size
        self.shards, self.least = shards, least
        self.dropped = np.unique(np.asarray(dropped, np.int64))
        left = size - len(self.dropped)
        require(left > 0, "dropped", owner, "less than all samples", len(self.dropped), "Keep some.")
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws.

        A change of epoch sets ``start`` to 0. An iteration that is under way keeps its epoch.

        Args:
            epoch: The epoch, from 0.
        """
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def order(self, epoch: int) -> list[int]:
        """Return the indices of all samples in the order of an epoch, for a look at it; iterating needs no list.

        Args:
            epoch: The epoch, from 0.

        Returns:
            ``size`` indices: a permutation, or a draw with replacement if ``weights`` were given.
        """
        indices: list[int] = self._order(epoch)(np.arange(self.size)).tolist()
        return indices

    def replaced(self, epoch: int, number: int) -> list[tuple[int, int]]:
        """Return the dropped samples of a batch of all processes together, each with that in its place.

        Args:
            epoch: The epoch, from 0.
            number: Number of the batch in the epoch, from 0.

        Returns:
            Pairs of indices, in the order of their positions.
        """
        if not len(self.dropped):
            return []
        positions = np.asarray(self.whole(number), np.int64)
        drawn, given = self._drawn(epoch)(positions), self._order(epoch)(positions)
        return [pair for pair in zip(drawn.tolist(), given.tolist(), strict=True) if pair[0] != pair[1]]

    def _order(self, epoch: int) -> _Order:
        """The order of an epoch, without the dropped samples."""
        drawn = self._drawn(epoch)
        if not len(self.dropped):
            return drawn

        def at(positions: NDArray[np.int64]) -> NDArray[np.int64]:
            positions = positions.copy()
            indices = drawn(positions)
            for _ in range(self.size):
                if not (gone := np.isin(indices, self.dropped)).any():
                    return indices
                positions[gone] = (positions[gone] + 1) % self.size
                indices[gone] = drawn(positions[gone])
            raise UsageError(_ONLY_DROPPED)

        return at

    def _drawn(self, epoch: int) -> _Order:
        """The order of an epoch, as if no sample were dropped."""
        if self.weights is not None:
            stream = generator(self.seed, "order", epoch)
            drawn = torch.multinomial(self.weights, self.size, replacement=True, generator=stream).numpy()
            return lambda positions: drawn[positions]
        if self.shuffle:
            return KeyedPermutation(self.size, self.seed, "order", epoch).at
        return lambda positions: positions.copy()

    @property
    def _training(self) -> bool:
        return self.shuffle or self.weights is not None

    @property
    def _global_batch(self) -> int:
        """Samples per batch of all processes together."""
        return self.batch_size if self.shards is not None else self.batch_size * self.world_size

    def _epoch_length(self) -> int:
        """Return how many positions of an epoch are used: all, or all but those of an incomplete last batch."""
        remainder = self.size % self._global_batch
        # Every process must take part in every training step, or the others wait for it forever.
        fewest = self.world_size * min(2, self.batch_size)
        if self.shards is not None:
            fewest = self.shards * self.least if self.least > 1 else 0
        too_small = self._training and 0 < remainder < fewest
        dropped = self.size > self._global_batch and (too_small or self.drop_last)
        return self.size - remainder if dropped else self.size

    def whole(self, number: int) -> range:
        """Return the positions of a batch of all processes together.

        Args:
            number: Number of the batch in the epoch, from 0.
        """
        first = number * self._global_batch
        is_last = number + 1 == self._global_batches()
        return range(first, self._epoch_length() if is_last else first + self._global_batch)

    def _share(self, number: int) -> range:
        """Return this process's positions in a global batch, counted from 0."""
        if self.shards is not None and not self._training:
            number = number * self.world_size + self.rank  # whole batches in turn
            return self.whole(number) if number < self._global_batches() else range(0)
        whole = self.whole(number)
        # Integer division spreads a remainder: the shares differ by one sample at most. It gives what the shards of
        # this process have together, too.
        own = shard_range(len(whole), self.rank, self.world_size)
        return range(whole.start + own.start, whole.start + own.stop)

    def is_empty(self, number: int) -> bool:
        """Whether this process has no share of a batch of the epoch, and gets one sample in its place."""
        return self.shards is not None and not self._share(number)

    def _global_batches(self) -> int:
        """Return the number of global batches of a whole epoch."""
        full, remainder = divmod(self._epoch_length(), self._global_batch)
        return full + (remainder >= (1 if self.shards is not None else self.world_size) or full == 0)

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch for this process, whatever ``start`` is."""
        number = self._global_batches()
        if self.shards is not None:
            return number if self._training else -(-number // self.world_size)
        return number if self._share(number - 1) else number - 1

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield the batches of ``epoch`` from ``start`` on."""
        # Read once: a loader prefetches, and the next epoch may be set before the last batch is delivered.
        epoch = self.epoch
        order = self._order(epoch)
        at_once = max(_SAMPLES_AT_ONCE // self.batch_size, 1)
        for first in range(self.start, len(self), at_once):
            numbers = range(first, min(first + at_once, len(self)))
            shares = [range(1) if self.is_empty(number) else self._share(number) for number in numbers]
            indices = iter(order(np.fromiter(chain.from_iterable(shares), np.int64)).tolist())
            for share in shares:
                yield [Draw(epoch, position, next(indices)) for position in share]


def _checked_weights(weights: Sequence[float], size: int, owner: str) -> Tensor:
    relative = torch.as_tensor(weights, dtype=torch.float64)
    one_per_sample = relative.shape == (size,)
    require(one_per_sample, "weights", owner, f"of length {size}", tuple(relative.shape), "Give one per sample.")
    offending = relative[~relative.isfinite() | (relative < 0)].tolist()
    usable = not offending and bool(relative.sum() > 0)
    must, do = "finite, not negative and not all 0", "Give the relative probability of each sample."
    require(usable, "weights", owner, must, offending[:5] or "only zeros", do)
    return relative
