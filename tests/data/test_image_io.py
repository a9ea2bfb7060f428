"""Every mode that a file can have comes out as the right RGB."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from autotimm import ImageDataModule
from autotimm.data.formats.image_paths import read_paths
from autotimm.data.image_io import decoded, is_image_name, read_image, strange_range, to_rgb
from autotimm.errors import DataError


def pixel(image: torch.Tensor, x: int = 0, y: int = 0) -> list[int]:
    return image[:, y, x].tolist()


def test_rgb_is_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert isinstance(image, tv_tensors.Image)
    assert image.dtype == torch.uint8
    assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(pixels))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, [255, 255, 255]),
        ("L", 77, [77, 77, 77]),
        ("RGBA", (200, 0, 0, 255), [200, 0, 0]),
        ("RGBA", (0, 0, 0, 0), [255, 255, 255]),
        ("LA", (0, 128), [127, 127, 127]),
        ("LA", (50, 255), [50, 50, 50]),
    ],
)
def test_modes_of_png(tmp_path: Path, mode: str, value: object, expected: list[int]) -> None:
    Image.new(mode, (3, 2), value).save(tmp_path / "a.png")  # type: ignore[arg-type]
    assert pixel(read_image(tmp_path / "a.png")) == expected


def test_palette_and_its_transparent_color(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    plain, clear = read_image(tmp_path / "plain.png"), read_image(tmp_path / "clear.png")
    assert (pixel(plain), pixel(plain, x=1)) == ([10, 20, 30], [40, 50, 60])
    assert (pixel(clear), pixel(clear, x=1)) == ([10, 20, 30], [255, 255, 255])


def test_rgb_with_a_transparent_color(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    image.save(tmp_path / "a.png", transparency=(1, 2, 3))
    image = read_image(tmp_path / "a.png")
    assert (pixel(image), pixel(image, x=1)) == ([255, 255, 255], [9, 9, 9])


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    red, green, blue = pixel(read_image(tmp_path / "red.jpg"), 8, 8)
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}")[0, 0].tolist() == [0, 1, 128, 255]


def test_floats_and_wide_integers() -> None:
    share = to_rgb(Image.fromarray(np.array([[0, 0.5, 1, np.nan]], dtype=np.float32)))
    assert np.asarray(share)[0, :, 0].tolist() == [0, 128, 255, 0]
    bytes_ = to_rgb(Image.fromarray(np.array([[0, 99.6, 300, -5]], dtype=np.float32)))
    assert np.asarray(bytes_)[0, :, 0].tolist() == [0, 100, 255, 0]
    wide = to_rgb(Image.fromarray(np.array([[-1, 257, 70000]], dtype=np.int32)))
    assert np.asarray(wide)[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), (0, 0, 0))
    upright.paste((255, 0, 0), (0, 0, 8, 8))  # the upper left corner is red
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Transpose that leads from upright to stored
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", quality=100, exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (3, 16, 32)
    assert pixel(image, 2, 2)[0] > 200
    assert pixel(image, 29, 13)[0] < 50


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(read_image(tmp_path / "a.gif")) == [250, 0, 0]


def test_names() -> None:
    assert is_image_name("A.JPEG")
    assert not is_image_name(".hidden.png")
    assert not is_image_name("png")


def test_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png cannot be read as an image: there is no such file\. Replace"):
        read_image(tmp_path / "gone.png")


def png16(path: Path, color: int, pixels: list[tuple[int, ...]], transparent: tuple[int, ...]) -> Path:
    """Write a row of pixels with 16 bits per channel and a transparent color, which Pillow cannot."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = b"".join(struct.pack(f">{len(pixel)}H", *pixel) for pixel in pixels)
    header = struct.pack(">IIBBBBB", len(pixels), 1, 16, color, 0, 0, 0)
    key = struct.pack(f">{len(transparent)}H", *transparent)
    parts = [
        chunk(b"IHDR", header),
        chunk(b"tRNS", key),
        chunk(b"IDAT", zlib.compress(b"\0" + row)),
        chunk(b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize(("color", "channels"), [(0, 1), (2, 3)], ids=["gray", "RGB"])
@pytest.mark.parametrize("key", [0, 1000, 40000])
def test_sixteen_bits_with_a_transparent_value_are_laid_on_white(tmp_path, color, channels, key) -> None:
    values = [0, 1000, 40000, 65535, 257]
    path = png16(tmp_path / "a.png", color, [(value,) * channels for value in values], (key,) * channels)
    image = read_image(path)
    for x, value in enumerate(values):
        shown = 255 if value == key else round(value / 257) if color == 0 else value >> 8
        assert pixel(image, x) == [shown] * 3


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, ""), (0, 255, ""), (0, 1.2, "0 to 1.2"), (-3, 1, "-3 to 1"), (0, 9000, "0 to 9000"), (0, 16.5, "")],
)
def test_numbers_that_are_no_images_are_reported(tmp_path, low, high, expected) -> None:
    Image.fromarray(np.array([[low, high]], np.float32)).save(tmp_path / "a.tif")
    with decoded(tmp_path / "a.tif") as image:
        assert strange_range(image) == expected


def test_the_data_names_them(tmp_path) -> None:
    for number, high in enumerate((1.0, 1.0, 1.2, 70.0)):
        folder = tmp_path / "photos" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([[0, high]], np.float32)).save(folder / f"{number}.tif")
    data = ImageDataModule(tmp_path / "photos", image_size=32)
    data.setup()
    (line,) = [notice for notice in data.notices if "neither" in notice]
    assert line.startswith("1 of 4 images have values that fit neither [0, 1] nor [0, 255]")
    assert "cat/2.tif (0 to 1.2)" in line
    notices: list[str] = []
    read_paths(tmp_path / "photos", notices)
    assert notices == [line]


def test_formats_for_which_pillow_starts_another_program_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (4, 4)).save(path, format="EPS")
    with pytest.raises(DataError, match="not an image"):
        read_image(path)


def test_photographs_of_iphones_are_read_where_the_extra_is_installed(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra `heif`")
    assert is_image_name("IMG_1.HEIC")
    path = tmp_path / "IMG_1.HEIC"
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30))).save(path, quality=95)
    image = read_image(path)
    assert image.shape == (3, 48, 64)
    assert abs(image[:, 20, 20].to(int) - torch.tensor([200, 30, 30])).max() <= 3


@pytest.mark.parametrize("name", ["JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "PCX", "TGA", "ICO"])
def test_other_formats_are_read_by_their_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (16, 16), (255, 0, 0)).save(path, format=name)
    assert abs(read_image(path)[:, 8, 8].to(int) - torch.tensor([255, 0, 0])).max() <= 2
