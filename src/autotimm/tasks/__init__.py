"""Floor 2: tasks. Each says what is learned; the base they share says how."""

from autotimm.tasks.base import Task
from autotimm.tasks.classification import ImageClassifier

__all__ = ["ImageClassifier", "Task"]
