"""A classifier that several tests of a module export."""

from pathlib import Path

import pytest

from autotimm import Run
from autotimm.data.toy import write_toy_folder
from training import classifier, small_fit, toy_data, trainer


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_folder(tmp_path_factory.mktemp("export") / "photos", n=80, num_classes=3, image_size=48, seed=7)


@pytest.fixture(scope="module")
def run(photos: Path) -> Run:
    return small_fit(photos, photos.parent / "runs", name="one", val_split=0.5)


@pytest.fixture(scope="module")
def nearest(photos: Path) -> Run:
    """A run whose images are resized by picking pixels: half of its graph, and of the time of an export, is left."""
    folder = photos.parent / "nearest"
    trainer(run_dir=folder).fit(classifier(), datamodule=toy_data(photos, val_split=0.5, interpolation="nearest"))
    return Run(folder)
