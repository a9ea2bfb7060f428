"""Fixtures of the data tests: toy folders, and a cache of their own."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autotimm.data.toy import write_toy_folder

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by `mktemp`: each further folder of pytest would look through all of them for its number.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "caches" / str(next(_numbers))))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """24 images of 32 pixels in 3 classes."""
    return write_toy_folder(tmp_path / "toy", n=24, num_classes=3)


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Write a noisy picture to a path, making folders."""

    def write(path: Path, size: tuple[int, int] = (20, 16), seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write
