"""autotimm: train vision models on timm backbones with PyTorch Lightning, and be able to show that a run repeats.

Every public name is loaded on first use, so that ``import autotimm`` costs milliseconds and the command line can
answer ``--help`` without loading torch.

Example:
    >>> import autotimm
    >>> autotimm.seed_everything(42)
    42
"""

from importlib import import_module
from typing import TYPE_CHECKING

from autotimm.errors import nearest

if TYPE_CHECKING:
    from autotimm.config import FitConfig
    from autotimm.data.dense import DetectionDataModule, InstanceSegmentationDataModule, SegmentationDataModule
    from autotimm.data.image import ImageDataModule
    from autotimm.data.module import DataModule
    from autotimm.errors import (
        AutotimmError,
        DataError,
        DifferentError,
        ModelError,
        RunError,
        UsageError,
        WeightsError,
    )
    from autotimm.metrics import MetricConfig
    from autotimm.models.backbone.pooled import list_backbones
    from autotimm.repro.seed import seed_everything
    from autotimm.runs.run import Run, diff, fit
    from autotimm.studies import Study, study
    from autotimm.tasks.base import Task
    from autotimm.tasks.classification import ImageClassifier
    from autotimm.tasks.detection import InstanceSegmentor, ObjectDetector
    from autotimm.tasks.segmentation import SemanticSegmentor
    from autotimm.train import AutoTrainer
    from autotimm.train.tuner import TunerConfig
    from autotimm.types import (
        Batch,
        DataSpec,
        ObjectPrediction,
        PixelPrediction,
        Prediction,
        Sample,
        Stage,
        Step,
    )

__version__ = "0.1.0"

# Where each public name lives. The block above repeats it for type checkers, which cannot follow `__getattr__`;
# tests/test_house.py compares the two.
_HOME = {
    "AutoTrainer": "autotimm.train",
    "AutotimmError": "autotimm.errors",
    "Batch": "autotimm.types",
    "DataError": "autotimm.errors",
    "DataModule": "autotimm.data.module",
    "DataSpec": "autotimm.types",
    "DetectionDataModule": "autotimm.data.dense",
    "DifferentError": "autotimm.errors",
    "FitConfig": "autotimm.config",
    "ImageClassifier": "autotimm.tasks.classification",
    "ImageDataModule": "autotimm.data.image",
    "InstanceSegmentationDataModule": "autotimm.data.dense",
    "InstanceSegmentor": "autotimm.tasks.detection",
    "MetricConfig": "autotimm.metrics",
    "ModelError": "autotimm.errors",
    "ObjectDetector": "autotimm.tasks.detection",
    "ObjectPrediction": "autotimm.types",
    "PixelPrediction": "autotimm.types",
    "Prediction": "autotimm.types",
    "Run": "autotimm.runs.run",
    "RunError": "autotimm.errors",
    "Sample": "autotimm.types",
    "SegmentationDataModule": "autotimm.data.dense",
    "SemanticSegmentor": "autotimm.tasks.segmentation",
    "Stage": "autotimm.types",
    "Step": "autotimm.types",
    "Study": "autotimm.studies",
    "Task": "autotimm.tasks.base",
    "TunerConfig": "autotimm.train.tuner",
    "UsageError": "autotimm.errors",
    "WeightsError": "autotimm.errors",
    "diff": "autotimm.runs.run",
    "fit": "autotimm.runs.run",
    "list_backbones": "autotimm.models.backbone.pooled",
    "seed_everything": "autotimm.repro.seed",
    "study": "autotimm.studies",
}
# Parts that people reach as `autotimm.testing.check_task` after a plain `import autotimm`.
_PARTS = ("config", "data", "errors", "losses", "metrics", "models", "optim", "repro", "tasks", "testing", "types")

__all__ = [
    "AutoTrainer",
    "AutotimmError",
    "Batch",
    "DataError",
    "DataModule",
    "DataSpec",
    "DetectionDataModule",
    "DifferentError",
    "FitConfig",
    "ImageClassifier",
    "ImageDataModule",
    "InstanceSegmentationDataModule",
    "InstanceSegmentor",
    "MetricConfig",
    "ModelError",
    "ObjectDetector",
    "ObjectPrediction",
    "PixelPrediction",
    "Prediction",
    "Run",
    "RunError",
    "Sample",
    "SegmentationDataModule",
    "SemanticSegmentor",
    "Stage",
    "Step",
    "Study",
    "Task",
    "TunerConfig",
    "UsageError",
    "WeightsError",
    "diff",
    "fit",
    "list_backbones",
    "seed_everything",
    "study",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _PARTS:
        value = import_module(f"autotimm.{name}")
    else:
        raise AttributeError(f"autotimm has no `{name}`. {nearest(name, __dir__())}".rstrip(), name=name, obj=None)
    globals()[name] = value  # found once, an ordinary attribute from now on
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_PARTS, "__version__"})
