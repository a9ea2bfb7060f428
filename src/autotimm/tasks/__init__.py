"""Tasks: what is learned. Their base, :class:`Task`, does what they share."""

from autotimm.tasks.base import Task, TaskOptions
from autotimm.tasks.classification import ImageClassifier
from autotimm.tasks.detection import InstanceSegmentor, ObjectDetector
from autotimm.tasks.segmentation import SemanticSegmentor

__all__ = ["ImageClassifier", "InstanceSegmentor", "ObjectDetector", "SemanticSegmentor", "Task", "TaskOptions"]
