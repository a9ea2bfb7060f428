"""Images with other channels than RGB, and images that are read as they are stored."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from autotimm import ImageClassifier, ImageDataModule
from autotimm.data.file_facts import Oddity, image_sizes
from autotimm.data.image_channels import read_as, read_picture
from autotimm.data.image_facts import scan
from autotimm.data.image_io import is_image_name, read_image
from autotimm.data.image_reading import ImageReading, reading_as
from autotimm.data.transforms.image_transforms import AUGMENTATIONS, train_transform, without_colors
from autotimm.data.transforms.spatial_transforms import SPATIAL_AUGMENTATIONS, spatial_augmentation
from autotimm.errors import DataError, UsageError
from autotimm.models.backbone.pooled import build_backbone, build_normalize

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLORS = np.stack([GRAY, 255 - GRAY, GRAY // 2], axis=-1)


def write(folder: Path, kind: str) -> Path:
    """Write an image of 4 x 3 pixels of a kind: ``L``, ``RGB`` and so on, pages or an array."""
    path = folder / f"{kind.replace(' ', '-')}{'.npy' if 'array' in kind else '.tif' if 'page' in kind else '.png'}"
    images = {
        "L": lambda: Image.fromarray(GRAY), "RGB": lambda: Image.fromarray(COLORS),
        "gray RGB": lambda: Image.fromarray(GRAY).convert("RGB"), "LA": lambda: Image.fromarray(COLORS[..., :2], "LA"),
        "RGBA": lambda: Image.fromarray(np.concatenate([COLORS, GRAY[..., None]], -1)),
        "16 bit": lambda: Image.fromarray(GRAY.astype(np.uint16) * 257), "1": lambda: Image.fromarray(GRAY > 100),
        "P": lambda: Image.fromarray(GRAY).convert("P"),
    }  # fmt: skip
    arrays = {
        "array HWC": lambda: np.stack([GRAY + page for page in range(6)], -1), "array HW": lambda: GRAY,
        "array CHW": lambda: np.stack([GRAY + page for page in range(6)]),
        "array 16 bit": lambda: np.stack([(GRAY + page).astype(">u2") * 257 for page in range(6)]),
        "array floats": lambda: np.stack([(GRAY + page) / np.float32(255) for page in range(6)]),
        "array of objects": lambda: np.array([{"a": 1}] * 6, dtype=object),
        "array of text": lambda: np.array(["a"] * 6), "array of int8": lambda: GRAY.view(np.int8)[None].repeat(6, 0),
        "array without pixels": lambda: GRAY[:0, :, None],
    }  # fmt: skip
    if kind in images:
        images[kind]().save(path)
    elif kind in arrays:
        np.save(path, arrays[kind](), allow_pickle=True)
    else:
        count, _, form = kind.partition(" pages")
        pages = [Image.fromarray((GRAY + page).astype(np.uint16 if form else np.uint8)) for page in range(int(count))]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


@pytest.mark.parametrize("kind", ["L", "gray RGB", "16 bit", "P", "array HW"])
def test_one_channel(tmp_path: Path, kind: str) -> None:
    assert read_as(write(tmp_path, kind), ImageReading(1))[0].tolist() == GRAY.tolist()


def test_black_and_white_has_one_channel(tmp_path: Path) -> None:
    assert read_as(write(tmp_path, "1"), ImageReading(1))[0].tolist() == ((GRAY > 100) * 255).tolist()


@pytest.mark.parametrize(("kind", "channels"), [("LA", 2), ("RGBA", 4)])
def test_transparency_is_a_channel(tmp_path: Path, kind: str, channels: int) -> None:
    image = read_as(write(tmp_path, kind), ImageReading(channels))
    assert image.shape == (channels, 3, 4)
    assert image[0].tolist() == GRAY.tolist()
    assert image[-1].tolist() == (GRAY if kind == "RGBA" else 255 - GRAY).tolist()


@pytest.mark.parametrize("kind", ["6 pages", "array HWC", "array CHW", "array 16 bit", "array floats"])
def test_pages_and_arrays_have_any_number_of_channels(tmp_path: Path, kind: str) -> None:
    image = read_as(write(tmp_path, kind), ImageReading(6))
    assert image.tolist() == [(GRAY + page).tolist() for page in range(6)]
    assert read_picture(write(tmp_path, kind), ImageReading(6)).tolist() == image[:3].tolist()


@pytest.mark.parametrize(
    ("kind", "channels", "reason"),
    [
        ("L", 4, "it has 1 channel (grayscale), and in_chans is 4"),
        ("RGB", 1, "it has 3 channels (RGB), and in_chans is 1"),
        ("RGB", 4, "it has 3 channels (RGB), and in_chans is 4"),
        ("LA", 4, "it has 2 channels (grayscale with transparency), and in_chans is 4"),
        ("RGBA", 5, "it has 4 channels (RGB with transparency), and in_chans is 5"),
        ("6 pages", 4, "it has 6 pages, and in_chans is 4"),
        ("6 pages", 1, "it has 6 pages, and in_chans is 1"),
        ("array HWC", 4, "it has the shape (3, 4, 6), and in_chans is 4"),
        ("array of objects", 6, "Array can't be memory-mapped: Python objects in dtype"),
        ("array of text", 6, "its values have the type <U1, and must be numbers"),
        ("array of int8", 6, "its values have the type int8, and must be numbers"),
        ("array without pixels", 1, "it has no pixels"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_the_reason(
    tmp_path: Path, kind: str, channels: int, reason: str
) -> None:
    path = write(tmp_path, kind)
    with pytest.raises(DataError) as caught:
        read_as(path, ImageReading(channels))
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    with reading_as(ImageReading(channels)):
        assert [problem.reason for problem in scan([path])] == [reason] or reason in scan([path])[0].reason


def test_arrays_are_never_unpickled(tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.npy", tmp_path / "proof"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path, ...]]:
            return Path.touch, (proof,)

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match=r"evil\.npy cannot be read"):
        read_as(path, ImageReading(1))
    np.save(path, np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"evil\.npy cannot be read"):
        read_as(path, ImageReading(1))
    assert not proof.exists()


def test_arrays_are_images_only_with_other_channels(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "array HWC")
    with pytest.raises(DataError, match=r"Ignored are 12 \.npy: NumPy arrays are images with other than 3 channels"):
        ImageDataModule(folder).setup()
    (problem,) = scan([folder / "cat" / "0.npy"])
    assert problem.reason == "a NumPy array, which is read with another in_chans than 3"
    assert not is_image_name("a.npy")
    with reading_as(ImageReading(5)):
        assert is_image_name("a.npy")
        assert is_image_name("a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "lzw.tif"])
def test_orientation_is_applied_or_ignored(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = Image.new("L", (32, 16))
    stored.paste(255, (0, 0, 8, 8))  # the upper left corner, as stored
    exif, path = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[0x0112] = orientation
    stored.save(path, exif=exif, **({"compression": "tiff_lzw"} if "lzw" in suffix else {}))
    assert read_image(path, upright=False).shape == (3, 16, 32)
    assert read_image(path, upright=False)[0, 2, 2] > 200
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    upright = read_image(path)[0]
    height, width = (32, 16) if orientation > 4 else (16, 32)
    assert upright.shape == (height, width)
    assert upright[[2, height - 3][corner[0]], [2, width - 3][corner[1]]] > 200
    assert image_sizes([path]) == {path: (width, height)}
    with reading_as(ImageReading(upright=False)):
        assert image_sizes([path]) == {path: (32, 16)}
    channel = read_as(path, ImageReading(1, upright=False))
    assert channel[0].tolist() == read_image(path, upright=False)[0].tolist()


@pytest.mark.parametrize("highest", [200, 1023, 4095])
def test_twelve_bits_in_a_file_of_sixteen_are_named(tmp_path: Path, highest: int) -> None:
    dark, bright = tmp_path / "dark.png", tmp_path / "bright.png"
    Image.fromarray(np.full((2, 2), highest, np.uint16)).save(dark)
    Image.fromarray(np.full((2, 2), 4096, np.uint16)).save(bright)
    odd: dict[Path, Oddity] = {}
    assert scan([dark, bright], oddities=odd) == []
    bits = {200: 8, 1023: 10, 4095: 12}[highest]
    assert odd == {dark: Oddity(f"{highest} to {highest}, which is {bits} of 16 bits", "")}
    with reading_as(ImageReading(1)):
        scan([dark, bright], oddities=odd)
    assert list(odd) == [dark]


def folder_of(tmp_path: Path, kind: str, count: int = 6) -> Path:
    """Class folders with images of a kind."""
    for name in ("cat", "dog"):
        for index in range(count):
            path = tmp_path / "data" / name
            path.mkdir(parents=True, exist_ok=True)
            file = write(path, kind)
            file.rename(path / f"{index}{file.suffix}")
    return tmp_path / "data"


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_augmentations_take_any_number_of_channels(augmentation: str, channels: int) -> None:
    image = torch.randint(0, 256, (channels, 20, 30), dtype=torch.uint8)
    transform = train_transform(augmentation, 16, channels=channels)
    for _ in range(5):
        assert transform(image).shape == (channels, 16, 16)
    assert bool(without_colors(augmentation, channels)) == (channels > 1 and augmentation != "none")


@pytest.mark.parametrize("augmentation", SPATIAL_AUGMENTATIONS[1:])
def test_spatial_augmentations_take_any_number_of_channels(augmentation: str) -> None:
    for channels in (1, 5):
        transform = spatial_augmentation(augmentation, 16, "a test", channels=channels)
        assert transform is not None
        image, _ = transform(v2.functional.to_image(torch.zeros(channels, 20, 30, dtype=torch.uint8)), {})
        assert image.shape == (channels, 16, 16)


def test_data_with_five_channels_says_what_is_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "6 pages")
    write(folder / "cat", "RGBA")
    data = ImageDataModule(folder, image_size=8, batch_size=2, num_workers=0, in_chans=6)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (2, 6, 8, 8)
    assert data.spec.in_chans == 6
    assert any("changes no colors" in notice for notice in data.notices)
    assert any(
        "cat/RGBA.png (it has 4 channels (RGB with transparency), and in_chans is 6)" in notice
        for notice in data.notices
    )
    with pytest.raises(UsageError, match="`in_chans` of ImageClassifier must be 6, as the data has"):
        ImageClassifier("test_resnet", num_classes=2, pretrained=False).check_data(data.spec)


def test_pretrained_stems_are_adapted_as_timm_does(tmp_path: Path) -> None:
    from autotimm.models.backbone.weights import resolve_weights

    rgb = build_backbone("test_resnet", seed=1)
    torch.save(rgb.state_dict(), tmp_path / "rgb.pth")
    weights = resolve_weights("test_resnet", str(tmp_path / "rgb.pth"))
    stem = dict(rgb.named_parameters())["conv1.0.weight" if "conv1.0.weight" in rgb.state_dict() else "conv1.weight"]
    for channels in (1, 4):
        other = build_backbone("test_resnet", weights=weights, in_chans=channels)
        name, adapted = next(iter(other.named_parameters()))
        assert adapted.shape[1] == channels
        expected = stem.sum(1, keepdim=True) if channels == 1 else stem[:, [0, 1, 2, 0]] * 3 / 4
        assert torch.equal(adapted, expected), name
        others = [key for key in rgb.state_dict() if key != name]
        assert all(torch.equal(rgb.state_dict()[key], other.state_dict()[key]) for key in others)
    mean = build_normalize(rgb).mean.flatten()
    assert build_normalize(rgb, 1).mean.item() == pytest.approx(mean.mean().item())
    assert build_normalize(rgb, 5).mean.flatten().tolist() == mean[[0, 1, 2, 0, 1]].tolist()
