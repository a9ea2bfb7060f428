"""A value of the wrong type is refused when it is given, in the one sentence, and not taken for something else."""

import pytest

from autotimm import AutoTrainer, ImageClassifier, ImageDataModule, ObjectDetector, TunerConfig
from autotimm.errors import UsageError


@pytest.mark.parametrize(
    "options",
    [
        {"head_dropout": "0.1"},
        {"drop_path_rate": "0.1"},
        {"mixup_alpha": "0.2"},
        {"cutmix_alpha": float("nan")},
        {"ema_decay": "0.99"},
        {"threshold": "0.5"},
        {"eval_batch_size": 2.5},
        {"image_size": 32.0},
        {"freeze_backbone": "no"},
        {"compile_model": "false"},
        {"multi_label": "no"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_classifier(options):
    (name,) = options
    with pytest.raises(UsageError, match=rf"The `{name}` of .* must be .*\. Got "):
        ImageClassifier("test_resnet", 3, pretrained=False, **options)


def test_a_detector():
    with pytest.raises(UsageError, match=r"The `threshold` of ObjectDetector must be in \(0, 1\). Got '0.5' instead"):
        ObjectDetector("test_resnet", 3, pretrained=False, threshold="0.5")


@pytest.mark.parametrize(
    "options",
    [
        {"strict": "x"},
        {"balanced_sampling": "yes"},
        {"drop_last": "no"},
        {"crop_pct": "0.9"},
        {"val_split": "0.1"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_data_module(options, tmp_path):
    (name,) = options
    with pytest.raises(UsageError, match=rf"The `{name}` of ImageDataModule must be .*\. Got "):
        ImageDataModule(tmp_path, **options)


@pytest.mark.parametrize(
    "options",
    [{"threads": "2"}, {"threads": 2.5}, {"max_epochs": 2.5}, {"use_autotimm_seeding": "yes"}, {"tuner": True}],
    ids=str,
)
def test_a_trainer(options):
    (name,) = options
    with pytest.raises(UsageError, match=rf"The `{name}` of AutoTrainer must be .*\. Got "):
        AutoTrainer(**options)


@pytest.mark.parametrize(
    "options",
    [{"lr": "yes"}, {"steps": 0}, {"steps": -3}, {"min_lr": 0}, {"max_lr": 1e-9}, {"max_batch_size": 0}],
    ids=lambda options: next(iter(options)),
)
def test_a_finder(options):
    (name,) = options
    with pytest.raises(UsageError, match=rf"The `{name}` of TunerConfig must be .*\. Got "):
        TunerConfig(**options)
