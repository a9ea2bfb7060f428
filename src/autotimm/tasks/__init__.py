"""Floor 2: tasks. Each says what is learned; the base they share says how."""

from autotimm.tasks.base import Task
from autotimm.tasks.classification import ImageClassifier
from autotimm.tasks.detection import InstanceSegmentor, ObjectDetector
from autotimm.tasks.segmentation import SemanticSegmentor

__all__ = ["ImageClassifier", "InstanceSegmentor", "ObjectDetector", "SemanticSegmentor", "Task"]
