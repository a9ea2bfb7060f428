"""Where a loader stands in its epochs, and what Lightning needs to see of it."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler, SequentialSampler

from autotimm.repro.sampler import KeyedBatchSampler

__all__ = ["InOrder", "Position", "Shuffled"]


class Position:
    """Where a loader stands: the running epoch, the batches handed out in it, and where the next iteration begins."""

    def __init__(self) -> None:
        self.epoch, self.batch = 0, 0
        self.running = False
        self.following: tuple[int, int] | None = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with this epoch, at its first batch unless a state of this epoch was loaded."""
        # Lightning sets the epoch after a state was loaded: the same epoch must not wipe out the place in it.
        if self.following is None or self.following[0] != epoch:
            self.following = (epoch, 0)

    def begin(self) -> tuple[int, int]:
        """Start an iteration: the epoch, and the batches of it to skip."""
        self.epoch, self.batch = self.following or (self.epoch + 1, 0)
        self.following, self.running = None, True
        return self.epoch, self.batch

    def state(self) -> dict[str, int]:
        """Plain data for a checkpoint."""
        pending = self.following is not None and not self.running
        epoch, batch = self.following if pending and self.following else (self.epoch, self.batch)
        return {"epoch": epoch, "batch": batch}


class Shuffled(Sampler[int]):
    """What Lightning finds as ``loader.sampler``: its ``set_epoch`` reaches the loader's position."""

    def __init__(self, position: Position, batches: KeyedBatchSampler) -> None:
        self._position, self._batches = position, batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self._position.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        return (draw.index for batch in self._batches for draw in batch)

    def __len__(self) -> int:
        return self._batches.size


class InOrder(SequentialSampler):
    """The same for a loader that does not shuffle. Lightning asks for this very type when it overfits on purpose."""

    def __init__(self, position: Position, batches: KeyedBatchSampler) -> None:
        super().__init__(range(batches.size))
        self._position = position

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self._position.set_epoch(epoch)
