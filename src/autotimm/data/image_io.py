"""Reading image files as RGB.

Images that are not plain 8-bit RGB are converted:

- the EXIF orientation is applied, as every viewer does; boxes and masks are drawn on the rotated image. Where they are
  drawn on the stored one, it can be ignored;
- grayscale is repeated three times, palettes are looked up, CMYK and YCbCr are converted;
- transparency is composited on white, the background that most viewers show;
- 16-bit grayscale is scaled by 1/257, so that 65535 becomes 255 (Pillow's own conversion clips at 255);
- 32-bit integers are treated as 16-bit values, since files of that mode hold these; floats as [0, 1] if no value is
  above 1, as [0, 255] otherwise;
- of an animation or a multi-page file the first frame is read; color profiles are ignored.

A file may come from a stranger, and 300 KB of PNG can hold 150 million pixels. So images beyond Pillow's limit, by
default 89 million pixels, are refused, and so are those whose decoder needs more than 700 MB before that limit: WebP
from 44 million pixels on, JPEG 2000 from 37, progressive JPEGs of CMYK from 58. Conversions work on strips of rows, and
threads that decode at once share a budget of memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torchvision import tv_tensors

from autotimm.data.image_reading import ARRAY_SUFFIX, current_reading
from autotimm.errors import DataError

__all__ = [
    "BROKEN",
    "HEIF_SUFFIXES",
    "IMAGE_SUFFIXES",
    "UNTURNED",
    "as_bytes",
    "byte_factor",
    "coefficient_bytes",
    "decoded",
    "has_alpha",
    "is_image_name",
    "is_turned",
    "memory_for",
    "most_memory",
    "needs_conversion",
    "open_image",
    "orientation_of",
    "range_of",
    "read_image",
    "read_rgb",
    "reason",
    "require_few_pixels",
    "require_file",
    "row_strips",
    "shows_only_alpha",
    "size_of",
    "stored_orientation",
    "strange_range",
    "to_rgb",
    "to_tensor",
    "turned",
]

_EXTENSIONS = (
    "avif", "bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp",
)  # fmt: skip
_HEIF = find_spec("pillow_heif") is not None  # the extra `heif`
HEIF_SUFFIXES = frozenset({".heic", ".heif"})
"""Extensions of the photographs of iPhones, which Pillow does not read without the extra ``heif``."""

IMAGE_SUFFIXES = frozenset(f".{extension}" for extension in _EXTENSIONS) | (HEIF_SUFFIXES if _HEIF else frozenset())
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
    Image.DecompressionBombWarning,  # raised where a caller turns warnings into errors
)
"""All exceptions that Pillow's decoders are known to raise on damaged files."""

# From one to two times its limit Pillow only warns, for each file anew. Here such images are refused.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_ORIENTATION = 0x0112
_SWAPPED = (5, 6, 7, 8)  # orientations that swap width and height
# What undoes the turn that each orientation asks for; Pillow has the others in `ImageOps.exif_transpose`.
_UNDONE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
UNTURNED = "left out; give --ignore-exif if the annotations were made on the stored images"
"""What is done with an image that is annotated as it is stored."""

_FEW_BITS = 12  # of 16: what many cameras and scanners have
_STRIP = 1 << 18  # pixels that are converted at once
_MEMORY = 512 * 2**20  # bytes that all decoding threads share; an image that needs more is decoded alone
_LARGE = 128 * 2**20
_MOST_PER_PIXEL = 7.8  # bytes for each pixel of Pillow's limit, so that raising it allows more memory too: 698 MB
# Each thread of glibc keeps what it has freed: 16 of them kept 4 GB.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # in Pillow; others have 4
_DECODER = {"AVIF": 5, "JPEG2000": 15, "TIFF": 4, "WEBP": 12}  # measured: bytes per pixel while a file is decoded


def is_image_name(name: str) -> bool:
    """Whether a file name has an image extension and is not hidden.

    NumPy arrays are images where :func:`autotimm.data.image_reading.reading_as` says that these have other channels.

    Example:
        >>> is_image_name("IMG_1.JPG"), is_image_name("._IMG_1.JPG"), is_image_name("notes.txt")
        (True, False, False)
    """
    suffix = os.path.splitext(name)[1].lower()
    is_array = suffix == ARRAY_SUFFIX and not current_reading().is_rgb
    return not name.startswith(".") and (suffix in IMAGE_SUFFIXES or is_array)


def has_alpha(image: Image.Image) -> bool:
    """Whether an image has transparency: a channel of it, or a transparent color."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def shows_only_alpha(image: Image.Image) -> bool:
    """Whether all colors of an image are equal, and only its transparency differs."""
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa"):
        return False
    *colors, (lowest, highest) = (band.getextrema() for band in image.split())
    return lowest != highest and all(color[0] == color[1] for color in colors)


def row_strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Cut an image into strips of whole rows, to convert it without a second copy of all its pixels.

    Yields:
        The first row of a strip, and the strip. A small image is one strip.
    """
    rows = max(1, _STRIP // max(image.width, 1))
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _from_wide_gray(image: Image.Image) -> Image.Image:
    """Convert the grayscale modes of more than 8 bits."""
    factor = byte_factor(np.asarray(strip) for _, strip in row_strips(image)) if image.mode == "F" else 1.0
    rgb, transparent = Image.new("RGB", image.size), image.info.get("transparency")
    for top, strip in row_strips(image):
        gray = Image.fromarray(as_bytes(np.asarray(strip), factor))
        if isinstance(transparent, int):  # a PNG of 16 bits names one value; Pillow would drop it with the mode
            gray.paste(255, mask=Image.fromarray(np.asarray(strip) == transparent))
        rgb.paste(gray.convert("RGB"), (0, top))
    return rgb


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    """Floats; what is not a number becomes 0."""
    return np.nan_to_num(values.astype(np.float64), nan=0.0)


def byte_factor(parts: Iterable[NDArray[Any]]) -> float:
    """What floats are multiplied by to become bytes: 255 where none is above 1, otherwise 1; 1 for other types."""
    highest = [_finite(part).max(initial=0.0) for part in parts if part.dtype.kind == "f"]
    return 255.0 if highest and max(highest) <= 1 else 1.0


def as_bytes(values: NDArray[Any], factor: float = 1.0) -> NDArray[np.uint8]:
    """Numbers as bytes: those of 8 bits as they are, other integers as of 16 bits.

    Args:
        values: The numbers; truth values become 0 and 255.
        factor: What floats are multiplied by, see :func:`byte_factor`.

    Example:
        >>> as_bytes(np.array([0, 257, 65535])).tolist(), as_bytes(np.array([0.5]), 255).tolist()
        ([0, 1, 255], [128])
    """
    if values.dtype == np.uint8:
        return values.astype(np.uint8)
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "f":
        scaled = _finite(values) * factor
    else:
        scaled = np.clip(values.astype(np.float64), 0, 65535) / 257
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    """Composite an image with transparency on white."""
    opaque, transparent = Image.new("RGB", image.size), image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        # Pillow reads the upper halves of 16-bit colors, and the whole of the transparent one.
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    for top, strip in row_strips(image):
        layer = strip.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        opaque.paste(Image.alpha_composite(white, layer).convert("RGB"), (0, top))
    return opaque


def needs_conversion(image: Image.Image) -> bool:
    """Whether an image is anything but RGB without transparency."""
    return image.mode != "RGB" or "transparency" in image.info


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB; the module docstring says how.

    Example:
        >>> to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    if not needs_conversion(image):
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_wide_gray(image)
    return _on_white(image) if has_alpha(image) else image.convert("RGB")


def to_tensor(image: Image.Image) -> tv_tensors.Image:
    """Copy an RGB image into a ``uint8`` tensor of shape (3, H, W).

    The memory keeps the layout of the decoder, channels last: this saves a copy, and torch resizes it faster.
    """
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, strip in row_strips(image):
        pixels[top : top + strip.height] = np.asarray(strip)
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


class _Budget:
    """Bytes that the threads of a process share; one that asks for more than all of them gets all of them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._reset()
        # A loading process may be forked while a thread holds the lock, which nobody there would release.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self.free, self._changed = self.total, threading.Condition()

    @contextlib.contextmanager
    def borrowed(self, size: int) -> Iterator[None]:
        """Wait until so many bytes are free, and hold them in a block."""
        size = min(size, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self.free >= size)
            self.free -= size
        try:
            yield
        finally:
            with self._changed:
                self.free += size
                self._changed.notify_all()


_BUDGET = _Budget(_MEMORY)


def memory_for(size: int) -> contextlib.AbstractContextManager[None]:
    """Wait until the threads of this process, which decode at once, leave so many bytes, and hold them in a block."""
    return _BUDGET.borrowed(size)


def _bytes_needed(image: Image.Image) -> int:
    """How many bytes decoding an image and converting it take at most, from its header."""
    held = _BYTES_PER_PIXEL.get(image.mode, 4)
    coefficients = _coefficients(image) if image.info.get("progressive") else 0
    turned = "exif" in image.info
    if turned and image.format in ("JPEG", "MPO"):
        with contextlib.suppress(*BROKEN):
            turned = image.getexif().get(_ORIENTATION, 1) != 1
    converted = 4 if turned or needs_conversion(image) else 0
    decoder = max(coefficients, _DECODER.get(image.format or "", 0))
    return round(image.width * image.height * (held + max(decoder, converted)))


def _coefficients(image: Image.Image) -> float:
    """Bytes per pixel that libjpeg keeps of an image; 0 for all but progressive JPEGs."""
    if not isinstance(image, JpegImageFile):
        return 0
    return coefficient_bytes([horizontal * vertical for _, horizontal, vertical, _ in image.layer])


def coefficient_bytes(areas: Sequence[int]) -> float:
    """Bytes per pixel for the coefficients of a progressive JPEG, by the samples of each component: 2 for each."""
    return 2 * sum(areas) / max([*areas, 1])


# By content, whatever the extension; those that most files have come first, the one without a signature last. Not all
# that Pillow knows: for EPS it starts Ghostscript, and a file that somebody else made may be a program for that.
_FORMATS = (
    "JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "MPO", "DIB", "ICO", "PCX", "PSD", "QOI",
    "SGI", "HEIF", "TGA",
)  # fmt: skip


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that are read, as far as this build of Pillow has them."""
    Image.init()
    if _HEIF:
        from pillow_heif import register_heif_opener  # an optional extra

        register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def require_file(path: str | Path) -> None:
    """Raise an ``OSError`` for what is no file: opening a pipe that nobody writes to would never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is a folder, a pipe or a device, and no file")


@contextlib.contextmanager
def open_image(path: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Read the header of an image file.

    Args:
        path: The file, or its content in memory.

    Raises:
        OSError: Or another of :data:`BROKEN`, if the file is not an image, has more pixels than Pillow's limit, or
            takes too much memory.
    """
    if isinstance(path, (str, Path)):
        require_file(path)
    with Image.open(path, formats=_formats()) as image:
        require_few_pixels(*image.size)
        _require_memory(image)
        if image.format == "TIFF":
            # Pillow 13 maps plain files into memory, and mixes up the rows of one that its tag turns.
            image.filename = ""
        yield image


def require_few_pixels(width: int, height: int) -> None:
    """Refuse an image of more pixels than Pillow's limit.

    Raises:
        PIL.Image.DecompressionBombError: If it has more.
    """
    pixels, limit = width * height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {limit} pixels")


def most_memory() -> float:
    """How many bytes decoding one image may take: it grows with Pillow's limit of pixels."""
    limit = Image.MAX_IMAGE_PIXELS
    return math.inf if limit is None else _MOST_PER_PIXEL * limit


def _require_memory(image: Image.Image) -> None:
    if (needed := _bytes_needed(image)) > (most := most_memory()):
        raise MemoryError(
            f"decoding its {image.width} x {image.height} pixels takes {needed / 1e6:,.0f} MB of memory, and the limit "
            f"is {most / 1e6:,.0f} MB"
        )


def stored_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image that has not been decoded, 1 to 8; 1 is upright, and so is any other number."""
    # Pillow decodes a whole PNG to look for a tag behind its pixels, where none is written.
    if image.format != "PNG" or "exif" in image.info:
        with contextlib.suppress(*BROKEN):  # a broken tag gives no orientation
            orientation = int(image.getexif().get(_ORIENTATION, 1))
            return orientation if orientation in _UNDONE else 1  # phones and scanners write 0 for "unknown"
    return 1


def size_of(image: Image.Image, upright: bool = True) -> tuple[int, int]:
    """Width and height of an image that has not been decoded.

    Args:
        image: The image.
        upright: Whether as its EXIF orientation turns it, or as it is stored.
    """
    is_upright = image.format == "TIFF"  # those Pillow turns by itself
    swapped = upright != is_upright and stored_orientation(image) in _SWAPPED
    return (image.height, image.width) if swapped else image.size


def is_turned(path: str | Path) -> bool:
    """Whether an EXIF tag swaps width and height of an image; ``False`` if it cannot be read."""
    return orientation_of(path) in _SWAPPED


def orientation_of(path: str | Path) -> int:
    """The EXIF orientation of an image file, 1 to 8; 1 is upright, and that of a file that cannot be read."""
    try:
        with open_image(path) as image:
            return stored_orientation(image)
    except BROKEN:
        return 1


def turned(image: Image.Image, upright: bool = True) -> Image.Image:
    """Decode an image, upright or as it is stored; it may be another object then."""
    undo = None if upright or image.format != "TIFF" else _UNDONE.get(stored_orientation(image))
    image.load()
    if upright:
        # A broken tag in an intact image gives no orientation. In place, since the copy that Pillow would make of every
        # upright photograph costs a quarter of its decoding.
        with contextlib.suppress(*BROKEN):
            ImageOps.exif_transpose(image, in_place=True)
    return image if undo is None else image.transpose(undo)


@contextlib.contextmanager
def _loaded(
    path: str | Path | BinaryIO, upright: bool = True, least: tuple[int, int] | None = None
) -> Iterator[Image.Image]:
    with open_image(path) as image, memory_for(_bytes_needed(image)):
        if least is not None and isinstance(image, JpegImageFile):
            _reduce(image, least, upright)
        yield turned(image, upright)


def _reduce(image: JpegImageFile, least: tuple[int, int], upright: bool) -> None:
    """Let libjpeg decode an image at the smallest scale at which it has a height and width: 1, 1/2, 1/4 or 1/8."""
    swapped = upright and stored_orientation(image) in _SWAPPED
    height, width = reversed(least) if swapped else least
    image.draft(None, (width, height))


@contextlib.contextmanager
def decoded(path: str | Path | BinaryIO, upright: bool = True) -> Iterator[Image.Image]:
    """Decode an image file completely, when there is memory for it beside those of other threads.

    The pixels are released at the end of the block.

    Args:
        path: The file, or its content in memory.
        upright: Whether to apply the EXIF orientation.

    Raises:
        OSError: Or another of :data:`BROKEN`, if the file is not an image, is damaged, or has more pixels than Pillow's
            limit.
    """
    with _loaded(path, upright) as image:
        large = _bytes_needed(image) > _LARGE
        try:
            yield image
        finally:
            image.close()
            if large and _TRIM is not None:
                _TRIM(0)


def strange_range(image: Image.Image) -> str:
    """The range of an image's numbers where they do not fill the range that they are read as; empty if they do."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return ""
    low, high = image.getextrema() if image.mode in ("F", "I") else _extrema(np.asarray(image))
    return range_of("f" if image.mode == "F" else "i", float(low), float(high))  # type: ignore[arg-type]  # one band


def _extrema(values: NDArray[Any]) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def range_of(kind: str, low: float, high: float) -> str:
    """The range of numbers that are neither in [0, 1] nor in [0, 255] nor of 16 bits; empty for others.

    A camera of 12 bits in a file of 16 leaves everything nearly black, as do floats up to 16 that are read as [0, 255].

    Args:
        kind: ``f`` for floats, ``i`` or ``u`` for integers of more than 8 bits, as NumPy calls them.
        low: The lowest number.
        high: The highest number.

    Example:
        >>> range_of("f", 0, 1.2), range_of("u", 0, 4000), range_of("u", 0, 65535)
        ('0 to 1.2', '0 to 4000, which is 12 of 16 bits', '')
    """
    if kind == "f":
        fits = low >= 0 and (high <= 1 or 16 < high <= 255)
        return "" if fits else f"{low:g} to {high:g}"
    if low >= 0 and 0 < high < 1 << _FEW_BITS:
        return f"{low:g} to {high:g}, which is {max(8, int(high).bit_length())} of 16 bits"
    return "" if low >= 0 and high <= 65535 else f"{low:g} to {high:g}"


def read_rgb(path: str | Path | BinaryIO, upright: bool = True, least: tuple[int, int] | None = None) -> Image.Image:
    """Decode a file to an RGB image.

    Args:
        path: The file, or its content in memory.
        upright: Whether to apply the EXIF orientation.
        least: Height and width that the image must have; a JPEG is decoded at the smallest scale at which it has them,
            of 1, 1/2, 1/4 and 1/8. ``None`` decodes all of it.

    Raises:
        OSError: Or another of :data:`BROKEN`, if the file is not an image, is damaged, or has more pixels than Pillow's
            limit.
    """
    with _loaded(path, upright, least) as image:
        return to_rgb(image)


def reason(path: str | Path, error: BaseException) -> str:
    """Say in a few words why a file could not be read."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        pixels = re.search(r"\d+", str(error))  # Pillow's own message, or ours above
        has = f"it has {int(pixels[0]):,} pixels" if pixels else "it has too many pixels"
        return f"{has}, and Pillow's decompression bomb limit (Image.MAX_IMAGE_PIXELS) is {Image.MAX_IMAGE_PIXELS:,}"
    if isinstance(error, UnidentifiedImageError) and Path(path).suffix.lower() == ARRAY_SUFFIX:
        return "a NumPy array, which is read with another in_chans than 3"
    if isinstance(error, UnidentifiedImageError):
        try:
            return "not an image" if os.path.getsize(path) else "the file is empty"
        except OSError:
            return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def read_image(path: str | Path, upright: bool = True, least: tuple[int, int] | None = None) -> tv_tensors.Image:
    """Read a file as RGB.

    Args:
        path: An image file of any format that Pillow reads.
        upright: Whether to apply the EXIF orientation.
        least: See :func:`read_rgb`.

    Returns:
        ``uint8`` of shape (3, H, W).

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return to_tensor(read_rgb(path, upright, least))
    except BROKEN as error:
        raise DataError(
            f"{path} cannot be read as an image: {reason(path, error)}. Replace it or remove it from the data."
        ) from error
