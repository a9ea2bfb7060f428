"""Reading image files with another number of channels than three.

- one channel: grayscale, also where it is stored as RGB or has a palette of grays; transparency is composited on white;
- two channels: grayscale with transparency, as they are; four: RGB with transparency or with another fourth band;
- any number: a TIFF file with a page of grayscale per channel, or a NumPy array (``.npy``) of shape (H, W, C) or
  (C, H, W), or (H, W) for one.

Values become bytes as in :mod:`autotimm.data.image_io`: integers of more than 8 bits count as 16 bits; floats as
[0, 1] if none is above 1 in the whole file, and as [0, 255] otherwise. A file with another number of channels is
refused: which of them to leave out or to repeat is not ours to guess.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from autotimm.data.decoder_messages import silent
from autotimm.data.image_io import (
    BROKEN,
    as_bytes,
    byte_factor,
    decoded,
    has_alpha,
    open_image,
    range_of,
    read_image,
    read_rgb,
    reason,
    require_few_pixels,
    require_file,
    to_rgb,
    to_tensor,
    turned,
)  # fmt: skip
from autotimm.data.image_reading import ARRAY_SUFFIX, ImageReading
from autotimm.data.jpeg import quick_jpeg
from autotimm.errors import DataError

__all__ = [
    "array_size",
    "bands_of",
    "channel_range",
    "is_array",
    "read_as",
    "read_bytes_as",
    "read_picture",
    "to_channels",
]

_GRAYS = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_NAMES = {1: "grayscale", 2: "grayscale with transparency", 3: "RGB", 4: "RGB with transparency"}
_Band = NDArray[Any]


def read_as(path: str | Path, reading: ImageReading) -> tv_tensors.Image:
    """Read a file: ``uint8`` of shape (C, H, W).

    Args:
        path: An image file of any format that Pillow reads, or a NumPy array.
        reading: The number of channels C, whether an EXIF tag turns it, and how much of a JPEG is decoded.

    Raises:
        DataError: If it cannot be read, or has another number of channels.
    """
    return _read(path, str(path), reading, "Replace it or remove it from the data.")


def read_bytes_as(data: bytes, name: str, reading: ImageReading) -> tv_tensors.Image:
    """Read the content of a file: the pixels of :func:`read_as`.

    Args:
        data: The content.
        name: What errors call it.
        reading: See :func:`read_as`.

    Raises:
        DataError: If it cannot be read, or has another number of channels.
    """
    return _read(data, name, reading, "Replace it or remove it, and pack the data again.")


def _read(path: str | Path | bytes, name: str, reading: ImageReading, cure: str) -> tv_tensors.Image:
    try:
        if reading.is_rgb and (image := quick_jpeg(path, reading.upright, reading.least)) is not None:
            return image
        with silent():  # its messages were reported with its name when the data were checked
            if not reading.is_rgb:
                return _stacked(_bands(path, reading))
            if isinstance(path, bytes):
                return to_tensor(read_rgb(io.BytesIO(path), reading.upright, reading.least))
            return read_image(path, reading.upright, reading.least)
    except BROKEN as error:
        raise DataError(f"{name} cannot be read as an image: {reason(name, error)}. {cure}") from error


def read_picture(path: str | Path, reading: ImageReading) -> tv_tensors.Image:
    """Read a file to look at it: RGB ``uint8`` (3, H, W), of one channel or of the first three."""
    image = read_as(path, reading)
    return tv_tensors.Image(image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1))


def channel_range(path: str | Path | bytes, reading: ImageReading) -> str:
    """Read a file completely, and return the range of its numbers if they are not those of an image.

    Raises:
        OSError: Or another of ``BROKEN``, if it cannot be read, or has another number of channels.
    """
    bands = _bands(path, reading)
    if bands[0].dtype.itemsize == 1:
        return ""
    return range_of(bands[0].dtype.kind, min(map(np.min, bands)), max(map(np.max, bands)))


def array_size(path: str | Path | bytes, reading: ImageReading) -> tuple[int, int]:
    """Width and height of a NumPy array, from its header.

    Raises:
        ValueError: Or another of ``BROKEN``, if it is not an array of an image, or has another number of channels.
    """
    height, width = _array(path, reading.channels).shape[1:]
    return width, height


def to_channels(image: Image.Image, channels: int) -> tv_tensors.Image:
    """Convert a decoded image: ``uint8`` of shape (C, H, W).

    Raises:
        ValueError: If it has another number of channels.
    """
    return _stacked(bands_of(image, channels))


def bands_of(image: Image.Image, channels: int) -> list[_Band]:
    """The bands (H, W) of a decoded image, with the numbers that it has.

    Raises:
        ValueError: If it has another number of channels.

    Example:
        >>> [band.tolist() for band in bands_of(Image.new("LA", (1, 1), (3, 4)), 2)]
        [[[3]], [[4]]]
    """
    if channels == 1 and image.mode in _GRAYS and "transparency" not in image.info:
        return [np.array(image)]
    if channels == 1:
        red, green, blue = (np.asarray(band) for band in to_rgb(image).split())
        if (red == green).all() and (red == blue).all():
            return [red]
    if channels == 2 and image.mode == "LA":
        return [np.asarray(band) for band in image.split()]
    if channels == 4 and (image.mode == "RGBX" or (has_alpha(image) and image.mode not in ("LA", "La"))):
        opaque = image if image.mode == "RGBX" else image.convert("RGBA")
        return [np.asarray(band) for band in opaque.split()]
    raise _unfit(_number_of_bands(image), channels)


def _number_of_bands(image: Image.Image) -> int:
    return 3 + has_alpha(image) if image.mode in ("P", "PA") else len(image.getbands())


def _unfit(number: int, channels: int) -> ValueError:
    name = f" ({_NAMES[number]})" if number in _NAMES else ""
    return ValueError(f"it has {number} channel{'s' if number > 1 else ''}{name}, and in_chans is {channels}")


def _bands(path: str | Path | bytes, reading: ImageReading) -> list[_Band]:
    """The bands (H, W) of a file, with the numbers that are stored."""
    if not isinstance(path, bytes):
        require_file(path)
    if is_array(path):
        return [*_array(path, reading.channels)]
    source = io.BytesIO(path) if isinstance(path, bytes) else path
    with open_image(source) as image:
        pages = int(getattr(image, "n_frames", 1)) if image.format == "TIFF" and image.mode in _GRAYS else 1
        if pages > 1 and pages != reading.channels:
            raise ValueError(f"it has {pages} pages, and in_chans is {reading.channels}")
        if pages > 1:
            return _pages(image, reading)
    with decoded(source, reading.upright) as image:
        return bands_of(image, reading.channels)


def _pages(image: Image.Image, reading: ImageReading) -> list[_Band]:
    bands: list[_Band] = []
    for page in range(reading.channels):
        image.seek(page)
        require_few_pixels(*image.size)
        bands.append(np.array(turned(image, reading.upright)))
        if bands[-1].shape != bands[0].shape or bands[-1].dtype != bands[0].dtype:
            raise ValueError("its pages differ in size or in the type of their numbers")
    return bands


def is_array(path: str | Path | bytes) -> bool:
    """Whether a file is a NumPy array: by its name, or by its content in memory."""
    if isinstance(path, bytes):
        return path.startswith(np.lib.format.MAGIC_PREFIX)
    return Path(path).suffix.lower() == ARRAY_SUFFIX


def _array(path: str | Path | bytes, channels: int) -> _Band:
    """An array as (C, H, W), of which nothing but the header of a file is read yet; never a pickle."""
    # Both refuse arrays of objects, which only a pickle can hold.
    if isinstance(path, bytes):
        stored: _Band = np.lib.format.read_array(io.BytesIO(path), allow_pickle=False)
    else:
        stored = np.lib.format.open_memmap(path, mode="r")
    if stored.dtype.kind not in "buif" or stored.dtype == np.int8:
        raise ValueError(f"its values have the type {stored.dtype}, and must be numbers")
    if not stored.size:
        raise ValueError("it has no pixels")
    if stored.ndim == 2 and channels == 1:
        bands = stored[None]
    elif stored.ndim == 3 and stored.shape[2] == channels:
        bands = np.moveaxis(stored, 2, 0)
    elif stored.ndim == 3 and stored.shape[0] == channels:
        bands = stored
    else:
        raise ValueError(f"it has the shape {stored.shape}, and in_chans is {channels}")
    require_few_pixels(*bands.shape[1:])
    return bands


def _stacked(bands: list[_Band]) -> tv_tensors.Image:
    """Bands as bytes (C, H, W), channels last in memory as the images of :mod:`autotimm.data.image_io`."""
    factor = byte_factor(bands)
    pixels = np.stack([as_bytes(band, factor) for band in bands], axis=-1)
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
