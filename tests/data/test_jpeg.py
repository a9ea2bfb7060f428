"""JPEGs decoded without Pillow have Pillow's pixels, and whatever is unusual or wrong is left to Pillow."""

import io
import itertools
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from autotimm.data import jpeg
from autotimm.data.image_channels import read_as
from autotimm.data.image_io import read_image, size_of
from autotimm.data.image_reading import ImageReading
from autotimm.data.jpeg import checked_jpeg, quick_jpeg, reduction
from autotimm.errors import DataError
from shared_data import SHARED

pytestmark = pytest.mark.skipif(jpeg.simplejpeg is None, reason="needs simplejpeg")

SIZES = [(67, 101), (64, 64), (333, 200)]


def encoded(height=67, width=101, mode="RGB", orientation=None, **options) -> bytes:
    noise = np.random.default_rng(height).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    tags = Image.Exif()
    if orientation is not None:
        tags[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", exif=tags, **options)
    return file.getvalue()


def same_pixels(path, upright=True, least=None) -> bool:
    quick, slow = quick_jpeg(path, upright, least), read_image(path, upright, least)
    return quick is not None and torch.equal(quick, slow) and quick.stride() == slow.stride()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_pixels_are_those_of_pillow(tmp_path, size, mode):
    path = tmp_path / "a.jpg"
    for subsampling, progressive, least in itertools.product(range(3), (False, True), (None, (30, 20))):
        path.write_bytes(encoded(*size, mode, quality=80, subsampling=subsampling, progressive=progressive))
        assert same_pixels(path, least=least), (subsampling, progressive, least)
    for options in ({"quality": 5}, {"quality": 100}, {"restart_marker_rows": 1}, {"optimize": True}):
        path.write_bytes(encoded(*size, mode, **options))
        assert same_pixels(path), options


@pytest.mark.parametrize("orientation", [0, *range(1, 10), 65535])  # 0 is what many phones write; it turns nothing
def test_photographs_are_turned_alike(tmp_path, orientation):
    path = tmp_path / "a.jpg"
    for size in [(67, 101), (1, 9)]:
        path.write_bytes(encoded(*size, orientation=orientation))
        for upright, least in itertools.product((True, False), (None, (16, 40), (40, 16))):
            assert same_pixels(path, upright, least), (size, upright, least)
            sides = size_of(Image.open(path), upright)
            assert checked_jpeg(path.read_bytes(), upright, full=False) == sides
            assert (sides != size[::-1]) == (upright and orientation in (5, 6, 7, 8))


def test_a_turn_named_by_xmp_alone_counts(tmp_path):
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    (tmp_path / "a.jpg").write_bytes(encoded(xmp=packet))
    assert tuple(quick_jpeg(tmp_path / "a.jpg", True, None).shape) == (3, 101, 67)
    assert same_pixels(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("height", "width", "least"),
    list(itertools.product([1, 7, 99, 100, 101, 403], [1, 8, 200, 333], [(1, 1), (12, 25), (50, 50), (101, 9)])),
)
def test_the_scale_is_that_of_pillow(height, width, least):
    image = Image.open(io.BytesIO(encoded(height, width)))
    image.draft(None, least[::-1])
    factor = reduction(height, width, least)
    assert image.size == (-(-width // factor), -(-height // factor))


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


UNUSUAL = {
    "CMYK": encoded(mode="CMYK"),
    "a PNG": b"\x89PNG\r\n\x1a\n",
    "empty": b"",
    "the start alone": b"\xff\xd8\xff",
    "no frame": b"\xff\xd8" + segment(0xDA, b"\1\1\0\0\x3f\0"),
    "12 bits": b"\xff\xd8" + segment(0xC1, struct.pack(">BHHB3s", 12, 8, 8, 1, b"\1\x11\0")) + segment(0xDA, b""),
    "lossless": b"\xff\xd8" + segment(0xC3, struct.pack(">BHHB3s", 8, 8, 8, 1, b"\1\x11\0")) + segment(0xDA, b""),
    "a short frame": b"\xff\xd8" + segment(0xC0, b"\x08\0") + segment(0xDA, b""),
    "no height": b"\xff\xd8" + segment(0xC0, struct.pack(">BHHB3s", 8, 0, 8, 1, b"\1\x11\0")) + segment(0xDA, b""),
    "no sampling": b"\xff\xd8" + segment(0xC2, struct.pack(">BHHB3s", 8, 8, 8, 1, b"\1\0\0")) + segment(0xDA, b""),
    "too many pixels": encoded().replace(struct.pack(">HH", 67, 101), struct.pack(">HH", 65500, 65500)),
    "cut": encoded()[:-200],
}  # fmt: skip


@pytest.mark.parametrize("content", UNUSUAL.values(), ids=UNUSUAL)
def test_the_unusual_is_left_to_pillow(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    assert quick_jpeg(tmp_path / "a.jpg", True, None) is None


def test_what_is_no_file_is_left_to_pillow(tmp_path):
    assert quick_jpeg(tmp_path, True, None) is None
    assert quick_jpeg(tmp_path / "missing.jpg", True, None) is None
    assert quick_jpeg("a\0.jpg", True, None) is None


def test_a_file_beyond_the_limits_keeps_its_error(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(encoded())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="decompression bomb limit"):
        read_as(tmp_path / "a.jpg", ImageReading())


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of read_image
def test_damage_is_judged_by_pillow_alone(tmp_path):
    """Bytes changed and cut at random: never other pixels than Pillow's, and none where Pillow gives none."""
    numbers, path, quick_ones = np.random.default_rng(0), tmp_path / "a.jpg", 0
    whole = [encoded(orientation=6), encoded(quality=95, progressive=True), encoded(mode="L")]
    for turn in range(300):
        content = bytearray(whole[turn % 3])
        for _ in range(2):
            content[numbers.integers(2, len(content))] = numbers.integers(256)
        path.write_bytes(content[: numbers.integers(2, len(content))] if turn % 5 == 0 else content)
        if (quick := quick_jpeg(path, True, (16, 16))) is not None:
            quick_ones += 1
            assert torch.equal(quick, read_image(path, True, (16, 16)))
    assert 20 < quick_ones < 280


def test_real_photographs():
    files = sorted(path for path in SHARED.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[::40]
    if not files:
        pytest.skip("needs ../shared/data")
    for path, least in itertools.product(files, (None, (100, 100), (40, 40))):
        assert same_pixels(path, least=least), (path, least)


def test_without_the_package_pillow_reads_the_same(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(encoded())
    quick = read_as(tmp_path / "a.jpg", ImageReading())
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert torch.equal(read_as(tmp_path / "a.jpg", ImageReading()), quick)
