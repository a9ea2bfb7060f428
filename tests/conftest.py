"""What tests in several folders start from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autotimm.data.toy import write_toy_folder


@pytest.fixture(scope="session", autouse=True)
def _no_cache_in_the_home_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Which images were read whole is remembered in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 32 pixels in three class folders; only to be read."""
    return write_toy_folder(tmp_path_factory.mktemp("toy") / "shapes", n=24, num_classes=3, seed=7)
