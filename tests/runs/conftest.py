"""What tests of whole runs start from: toy photographs, and a finished run of two epochs on them."""

import pytest

from autotimm.data.toy import write_toy_folder
from training import small_fit


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_toy_folder(tmp_path_factory.mktemp("toy") / "photos", n=24, num_classes=3, image_size=32, seed=7)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    return small_fit(photos, tmp_path_factory.mktemp("runs"), name="one", epochs=2)
