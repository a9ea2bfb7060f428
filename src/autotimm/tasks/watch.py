"""Watching for a loss that is not a number, without making a GPU wait in every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autotimm.errors import RunError

__all__ = ["LossWatch"]

LOOK_EVERY = 32


class LossWatch:
    """Collects losses where they are, on the device, and looks at them in groups.

    Args:
        owner: Who has the losses, for the error.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._seen: list[tuple[Tensor, int, int]] = []

    def add(self, loss: Tensor, epoch: int, batch: int) -> None:
        """Remember the loss of a step, a scalar."""
        self._seen.append((loss, epoch, batch))
        if len(self._seen) >= LOOK_EVERY:
            self.look()

    def look(self) -> None:
        """Look at what was collected; called before anything is saved.

        Raises:
            RunError: If one of them is infinite or not a number; it names the first such step.
        """
        seen, self._seen = self._seen, []
        values = torch.stack([loss for loss, _, _ in seen]).tolist() if seen else []
        for value, (_, epoch, batch) in zip(values, seen, strict=True):
            if not math.isfinite(value):
                raise RunError(
                    f"The loss of {self.owner} must be a finite number. Got {value} at epoch {epoch}, batch {batch} "
                    "instead. Lower `lr`, or use precision 32 if it is lower."
                )
