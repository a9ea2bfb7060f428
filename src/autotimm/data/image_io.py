"""Reading image files as RGB.

Images that are not plain 8-bit RGB are converted:

- the EXIF orientation is applied, as every viewer does; boxes and masks are drawn on the rotated image;
- grayscale is repeated three times, palettes are looked up, CMYK and YCbCr are converted;
- transparency is composited on white, the background that most viewers show;
- 16-bit grayscale is scaled by 1/257, so that 65535 becomes 255 (Pillow's own conversion clips at 255);
- 32-bit integers are treated as 16-bit values, since files of that mode hold these; floats as [0, 1] if no value is
  above 1, as [0, 255] otherwise;
- of an animation or a multi-page file the first frame is read; color profiles are ignored.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision import tv_tensors

from autotimm.errors import DataError

__all__ = ["BROKEN", "IMAGE_SUFFIXES", "is_image_name", "read_image", "read_rgb", "reason", "to_rgb", "to_tensor"]

_EXTENSIONS = (
    "avif", "bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp",
)  # fmt: skip
IMAGE_SUFFIXES = frozenset(f".{extension}" for extension in _EXTENSIONS)
"""Extensions of image files, in lower case; upper case is recognized too."""

BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""All exceptions that Pillow's decoders are known to raise on damaged files."""


def is_image_name(name: str) -> bool:
    """Whether a file name has an image extension and is not hidden.

    Example:
        >>> is_image_name("IMG_1.JPG"), is_image_name("._IMG_1.JPG"), is_image_name("notes.txt")
        (True, False, False)
    """
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale the grayscale modes of more than 8 bits to 8."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0)
        scaled = values * 255 if values.size and values.max() <= 1 else values
    else:
        scaled = np.clip(values, 0, 65535) / 257
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB; the module docstring says how.

    Example:
        >>> to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        gray, transparent = _to_eight_bits(image), image.info.get("transparency")
        if isinstance(transparent, int):  # a PNG of 16 bits names one value; Pillow would drop it with the mode
            gray.paste(255, mask=Image.fromarray(np.asarray(image) == transparent))
        return gray.convert("RGB")
    if _has_alpha(image):
        transparent = image.info.get("transparency")
        if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
            # Pillow reads the upper halves of 16-bit colors, and the whole of the transparent one.
            image = image.copy()
            image.info["transparency"] = tuple(value >> 8 for value in transparent)
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> tv_tensors.Image:
    """Copy an RGB image into a ``uint8`` tensor of shape (3, H, W).

    The memory keeps the layout of the decoder, channels last: this saves a copy, and torch resizes it faster.
    """
    return tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def _strange_range(image: Image.Image) -> str:
    """The range of an image's numbers if it is neither [0, 1] nor [0, 255] nor that of 16 bits; empty if it is."""
    if image.mode not in ("F", "I"):
        return ""
    low, high = map(float, image.getextrema())  # type: ignore[arg-type]  # one band
    # A float above 1 means [0, 255], in which all of an image up to 16 is nearly black.
    fits = low >= 0 and (high <= 65535 if image.mode == "I" else high <= 1 or 16 < high <= 255)
    return "" if fits else f"{low:g} to {high:g}"


def read_rgb(path: str | Path, ranges: list[str] | None = None) -> Image.Image:
    """Decode a file completely to an upright RGB image.

    Args:
        path: The file.
        ranges: Receives the range of the file's numbers if they are neither in [0, 1] nor in [0, 255], nor of 16 bits:
            such an image becomes nearly black, or is clipped.

    Raises:
        OSError: Or another of :data:`BROKEN`, if the file is not an image, is damaged, or is beyond Pillow's
            decompression bomb limit.
    """
    with Image.open(path) as image:
        image.load()
        if ranges is not None and (strange := _strange_range(image)):
            ranges.append(strange)
        # A broken tag in an intact image gives no orientation. In place, since the copy that Pillow would make of every
        # upright photograph costs a quarter of its decoding.
        with contextlib.suppress(*BROKEN):
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def reason(path: str | Path, error: BaseException) -> str:
    """Say in a few words why a file could not be read."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than Pillow's decompression bomb limit (Image.MAX_IMAGE_PIXELS) allows"
    if isinstance(error, UnidentifiedImageError):
        try:
            return "not an image" if os.path.getsize(path) else "the file is empty"
        except OSError:
            return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def read_image(path: str | Path) -> tv_tensors.Image:
    """Read a file as RGB.

    Args:
        path: An image file of any format that Pillow reads.

    Returns:
        ``uint8`` of shape (3, H, W).

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return to_tensor(read_rgb(path))
    except BROKEN as error:
        raise DataError(
            f"{path} cannot be read as an image: {reason(path, error)}. Replace it or remove it from the data."
        ) from error
