"""What decoders complain of is said with the name of the file, once, and not where the file is read again."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autotimm import ImageDataModule
from autotimm.data.file_facts import Oddity
from autotimm.data.formats.image_paths import read_paths
from autotimm.data.image_facts import scan
from autotimm.data.image_io import read_image

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)


def broken_tag(path: Path) -> Path:
    """A photograph whose EXIF block is cut; its pixels are intact."""
    exif = Image.Exif()
    exif[0x010E] = "x" * 50
    Image.fromarray(NOISE).save(path, exif=exif)
    content = bytearray(path.read_bytes())
    start = content.find(b"Exif") + 14
    content[start : start + 2] = b"\xff\xff"
    path.write_bytes(content)
    return path


def broken_fax(path: Path) -> Path:
    """A page of a fax in which libtiff meets codes that are none, and goes on."""
    Image.fromarray(NOISE > 100).save(path, compression="group4")
    content = bytearray(path.read_bytes())
    content[100:140] = b"\xff" * 40
    path.write_bytes(content)
    return path


def test_warnings_of_pillow_name_the_file(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    bad, good = broken_tag(tmp_path / "bad.jpg"), tmp_path / "good.png"
    Image.fromarray(NOISE).save(good)
    odd: dict[Path, Oddity] = {}
    assert scan([bad, good], oddities=odd) == []
    assert [*odd] == [bad]
    assert odd[bad].message.startswith("Corrupt EXIF data. Expecting to read")
    read_image(bad)
    notices: list[str] = []
    read_paths(tmp_path, notices)
    assert len(notices) == 1
    assert notices[0].startswith("1 of 2 images may be damaged, as what reads them says: bad.jpg (Corrupt EXIF data.")


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="libtiff is found in Linux's list of libraries")
def test_messages_of_libtiff_name_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.fromarray(NOISE).save(tmp_path / name / f"{index}.png")
    broken_fax(tmp_path / "cat" / "fax.tif")
    data = ImageDataModule(tmp_path, image_size=32, batch_size=2, num_workers=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len([*data.train_dataloader()]) > 0
    (notice,) = (notice for notice in data.notices if "damaged" in notice)
    assert notice.startswith(
        "1 of 7 images may be damaged, as what reads them says: cat/fax.tif (Bad code word at line"
    )
    assert capfd.readouterr().err == ""
