"""Training: Lightning's trainer with named streams, fixed switches and threads, and a run folder."""

from autotimm.train.trainer import AutoTrainer, TrainerOptions
from autotimm.train.tuner import TunerConfig

__all__ = ["AutoTrainer", "TrainerOptions", "TunerConfig"]
