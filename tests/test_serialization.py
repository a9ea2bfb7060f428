"""Import paths in records outlive moves: each recorded path leads to its class, and the class to that path again."""

import pytest

from autotimm.serialization import first_path, import_name, import_object

# What records of version 1 can name and has moved since, or shares a module with what has.
RECORDED = [
    "autotimm.data.detection.DetectionDataModule",
    "autotimm.data.image.ImageDataModule",
    "autotimm.data.instance.InstanceSegmentationDataModule",
    "autotimm.data.jitter.ScaleJitter",
    "autotimm.data.jitter.resize_masks",
    "autotimm.data.segmentation.SegmentationDataModule",
    "autotimm.data.spatial.SpatialTransform",
    "autotimm.data.spatial_module.SpatialDataModule",
    "autotimm.data.transforms.ImageTransform",
    "autotimm.data.transforms.SampleTransform",
    "autotimm.data.transforms.eval_transform",
    "autotimm.data.transforms.train_transform",
    "autotimm.losses.FocalLoss",
    "autotimm.losses.FunctionLoss",
    "autotimm.losses.dense.PixelCrossEntropy",
    "autotimm.losses.dense.PixelFocalLoss",
    "autotimm.metrics.config.MetricConfig",
    "autotimm.models.preprocess.Normalize",
    "autotimm.tasks.classification.ImageClassifier",
    "autotimm.tasks.detection.ObjectDetector",
    "autotimm.tasks.instance.InstanceSegmentor",
    "autotimm.tasks.objects.ObjectTask",
    "autotimm.tasks.segmentation.SemanticSegmentor",
    "autotimm.train.checkpoints.RunCheckpoint",
    "autotimm.train.disturb.DrawsEverywhere",
    "autotimm.train.epochs.EpochMetrics",
    "autotimm.train.epochs.MetricsTable",
    "autotimm.train.keyed.KeyedSteps",
    "autotimm.train.recorder.Recorder",
    "autotimm.train.watched.Watched",
]


@pytest.mark.parametrize("path", RECORDED)
def test_first_path_inverts_import(path: str) -> None:
    assert first_path(import_name(import_object(path))) == path
