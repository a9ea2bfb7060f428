"""RNG disturbances that must not affect a training: code that seeds the global generators, or draws from them.

The self-check and the contract suite compare a training with these to one without.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback

__all__ = ["DrawsEverywhere", "pollute_generators"]


def pollute_generators() -> None:
    """Put every global generator into another state."""
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    torch.rand(7)


class DrawsEverywhere(Callback):
    """Draws from every global generator in every hook."""

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
