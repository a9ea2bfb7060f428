"""A classifier that several tests of a module export."""

import pytest

from autotimm import Run
from autotimm.data.toy import write_toy_folder
from training import small_fit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("export")
    photos = write_toy_folder(folder / "photos", n=80, num_classes=3, image_size=48, seed=7)
    return small_fit(photos, folder / "runs", name="one", val_split=0.5)
