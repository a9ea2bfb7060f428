"""What a training must not mind: other people who draw from the global generators, or seed them.

The self-check and the contract suite train with these, and compare with a training that nobody disturbed.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback

__all__ = ["DrawsEverywhere", "pollute_generators"]


def pollute_generators() -> None:
    """Move every global generator somewhere else."""
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    torch.rand(7)


class DrawsEverywhere(Callback):
    """Draws from every global generator wherever it is called."""

    def _draw(self) -> None:
        torch.rand(3), np.random.rand(3), random.random()

    def on_train_start(self, *args: Any) -> None:
        """Draw."""
        self._draw()

    def on_train_epoch_start(self, *args: Any) -> None:
        """Draw."""
        self._draw()

    def on_train_batch_start(self, *args: Any) -> None:
        """Draw."""
        self._draw()

    def on_train_batch_end(self, *args: Any) -> None:
        """Draw."""
        self._draw()

    def on_validation_batch_start(self, *args: Any) -> None:
        """Draw."""
        self._draw()
