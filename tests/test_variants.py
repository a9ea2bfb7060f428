"""Every variant of `autotimm fit`, each through processes of its own: train and train again; test and predict."""

import os
import subprocess
import sys

import pytest

from autotimm.data.toy import write_toy_folder
from autotimm.data.transforms import AUGMENTATIONS
from autotimm.losses import LOSSES
from autotimm.optim import SCHEDULES
from autotimm.records.digest import file_digest

pytestmark = pytest.mark.slow

BACKBONES = {
    "resnet": "test_resnet",
    "vit": "test_vit",
    "convnext": "test_convnext",
    "efficientnet": "test_efficientnet",
    "mobilenet": "mobilenetv3_small_050",
    "swin": "swin_tiny_patch4_window7_224",
    "maxvit": "coatnet_pico_rw_224",
    "hybrid": "edgenext_xx_small",
}
VARIANTS = {
    **{f"backbone {family}": ["--backbone", name] for family, name in BACKBONES.items()},
    **{f"augmentation {name}": ["--augmentation", name] for name in AUGMENTATIONS},
    **{f"schedule {name}": ["--schedule", name] for name in SCHEDULES},
    **{f"loss {name}": ["--loss", name] for name in LOSSES},
    **{f"optimizer {name}": ["--optimizer", name] for name in ("sgd", "adamw", "lion", "lamb", "torch.optim.RMSprop")},
    "mixup": ["--mixup-alpha", "0.2"],
    "cutmix": ["--cutmix-alpha", "1"],
    "mixup and cutmix": ["--mixup-alpha", "0.2", "--cutmix-alpha", "1"],
    "moving average": ["--ema-decay", "0.9"],
    "frozen backbone": ["--freeze-backbone", "true"],
    "dropout": ["--head-dropout", "0.3", "--drop-path-rate", "0.1"],
    "label smoothing": ["--label-smoothing", "0.1"],
    "class weights": ["--class-weights", "balanced"],
    "balanced sampling": ["--balanced-sampling", "true"],
    "accumulated": ["--accumulate", "2"],
    "bfloat16": ["--precision", "bf16-mixed"],
    "three workers": ["--num-workers", "3"],
    "no workers": ["--num-workers", "0"],
    "early stopping": ["--patience", "1"],
    "tensorboard": ["--loggers", "tensorboard"],
    "learning-rate finder": ["--lr-find", "true"],
    "fast kernels": ["--deterministic", "false"],
    "own metrics": ["--metrics", "Accuracy,CohenKappa"],
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_toy_folder(tmp_path_factory.mktemp("variants") / "photos", n=40, num_classes=4, image_size=32, seed=3)


def autotimm(*words, cwd):
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "autotimm", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_variant(words, photos, tmp_path):
    common = ["--image-size", 32, "--epochs", 2, "--batch-size", 8, "--test-split", 0.2, "--threads", 1]
    common += ["--pretrained", "false"] + ([] if "--backbone" in words else ["--backbone", "test_resnet"])
    for name in ("first", "again"):
        done = autotimm("fit", photos, *common, *words, "--name", name, cwd=tmp_path)
        assert done.stdout.splitlines()[-1] == f"run: runs/{name}"
        assert "Warning" not in done.stderr
    runs = tmp_path / "runs"
    for file in ("model.safetensors", "metrics.csv", "splits.csv", "results.json"):
        assert file_digest(runs / "first" / file) == file_digest(runs / "again" / file), f"{file} differs"
    if "--backbone" not in words:
        return
    assert "test/loss" in autotimm("test", "runs/first", cwd=tmp_path).stdout
    predicted = autotimm("predict", "runs/first", photos, cwd=tmp_path).stdout
    assert len(predicted.splitlines()) == 41
