"""The trainer that measures and predicts with a run that is there already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotimm.errors import UsageError
from autotimm.train.progress import say
from autotimm.train.trainer import AutoTrainer

__all__ = ["measuring_trainer"]

_KEPT = ("seed", "deterministic", "threads", "accelerator", "precision")


def measuring_trainer(recorded: Mapping[str, Any]) -> AutoTrainer:
    """A trainer that leaves nothing, with the seed, switches, threads and device of a run.

    Args:
        recorded: What the run's own trainer was given. A device that this machine lacks is replaced by what it has,
            and a line says so.
    """
    # One device: several would each see all images, as the loaders of evaluation are not shared out.
    settings: dict[str, Any] = {"run_dir": False, "enable_checkpointing": False, "devices": 1}
    settings |= {name: recorded[name] for name in _KEPT if name in recorded}
    asked = settings.get("accelerator", "auto")
    try:
        return AutoTrainer(**settings)
    except UsageError:
        if asked in ("auto", "cpu"):
            raise
    trainer = AutoTrainer(**settings | {"accelerator": "auto"})
    device = trainer.strategy.root_device.type
    say(f"the run asks for accelerator {asked}, which this machine lacks: going on with {device}")
    return trainer
