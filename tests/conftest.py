"""What tests in several folders start from."""

from pathlib import Path

import pytest

from autotimm.data.toy import write_toy_folder


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 32 pixels in three class folders; only to be read."""
    return write_toy_folder(tmp_path_factory.mktemp("toy") / "shapes", n=24, num_classes=3, seed=7)
