"""Floor 3: training. Lightning's trainer with named streams, fixed switches and threads, and a run folder."""

from autotimm.train.trainer import AutoTrainer
from autotimm.train.tuner import TunerConfig

__all__ = ["AutoTrainer", "TunerConfig"]
