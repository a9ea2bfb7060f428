"""Decoding JPEGs by libjpeg-turbo without Pillow around it, to the same pixels in three quarters of the time.

Pillow decodes with the same library, but into four bytes per pixel, in pieces of a file, and then copies the result. So
the pixels are equal, at full and at reduced scale: the tests compare them. What could differ is left to Pillow, and so
is everything that is wrong with a file: this module returns ``None`` then, and raises nothing.

It needs the package simplejpeg. Without it Pillow decodes all files.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from autotimm.data.decoder_messages import silent
from autotimm.data.image_io import (
    BROKEN,
    coefficient_bytes,
    memory_for,
    most_memory,
    require_few_pixels,
    stored_orientation,
)

if find_spec("simplejpeg") is not None:
    import simplejpeg
else:
    simplejpeg = None

__all__ = ["checked_jpeg", "plain_size", "quick_jpeg", "reduction"]

_START, _LAST, _APP1, _END, _SCAN = b"\xff\xd8\xff", b"\xff\xd9", 0xE1, 0xD9, 0xDA
_FRAMES = {0xC0: False, 0xC1: False, 0xC2: True}  # baseline, extended, progressive; others are rare
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}  # lossless, hierarchical, arithmetic coding
_LARGEST = 1 << 26  # bytes of a file that is read as a whole
_BYTES = 3  # per pixel, as decoded

# What each EXIF orientation asks for, as steps of an array (H, W, 3).
_TURNS = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}


class _Header(NamedTuple):
    """What the segments before the first scan of a JPEG say.

    Attributes:
        height: In pixels, as stored.
        width: In pixels, as stored.
        coefficients: Bytes per pixel that the decoder keeps of a progressive image; 0 for others.
        has_tags: Whether there may be an EXIF or XMP tag that turns the image.
        scan: Where the first scan begins, in bytes.
        frame: Where the segment with the size begins.
    """

    height: int
    width: int
    coefficients: float
    has_tags: bool = False
    scan: int = 0
    frame: int = 0


def reduction(height: int, width: int, least: tuple[int, int] | None) -> int:
    """The largest of 1, 2, 4 and 8 by which an image can be divided and still have a height and width.

    It is the rule of Pillow's ``draft``.

    Example:
        >>> reduction(3000, 4000, (366, 366)), reduction(500, 300, (366, 366)), reduction(3000, 4000, None)
        (8, 1, 1)
    """
    if least is None:
        return 1
    most = min(height // least[0], width // least[1])
    return next((factor for factor in (8, 4, 2) if most >= factor), 1)


class _Layout(NamedTuple):
    """The header of a JPEG but for its size, in which files that one program has written are often equal.

    Attributes:
        before: What stands before the height and width.
        size: Where these begin, in bytes.
        after: What comes behind them, with the marker of the first scan.
        scan: Where that begins.
    """

    before: bytes
    size: int
    after: bytes
    scan: int


_SIZE = struct.Struct(">HH")
_layout = _Layout(b"", 0, b"", 0)


def plain_size(data: bytes) -> tuple[int, int] | None:
    """What :func:`checked_jpeg` returns for a header alone, of a JPEG that has no EXIF or XMP tag; else ``None``.

    It takes a tenth of the time if the header is that of the last file, but for its size.
    """
    global _layout
    before, place, after, scan = _layout
    try:
        if not (scan and len(data) >= scan + 4 and data.startswith(before) and data.startswith(after, place + 4)):
            header = _header_of(data) if data.startswith(_START) else None
            if header is None or header.has_tags:
                return None
            place, scan = header.frame + 5, header.scan
            # In one step, since several threads read.
            _layout = _Layout(data[:place], place, data[place + 4 : scan + 2], scan)
        if not data.endswith(_LAST) and data.find(_LAST, scan) < 0:
            return None
        height, width = _SIZE.unpack_from(data, place)
        require_few_pixels(width, height)
    except BROKEN:
        return None
    return (width, height) if width and height else None


def quick_jpeg(path: str | Path | bytes, upright: bool, least: tuple[int, int] | None) -> tv_tensors.Image | None:
    """Read a file, if it is an intact JPEG of 8 bits in gray or RGB.

    Args:
        path: The file, or its content in memory.
        upright: Whether to apply the EXIF orientation.
        least: See :func:`autotimm.data.image_io.read_rgb`.

    Returns:
        ``uint8`` of shape (3, H, W), channels last in memory, with the pixels of
        :func:`autotimm.data.image_io.read_image`; ``None`` for every other file.
    """
    if simplejpeg is None or (data := _bytes_of(path)) is None:
        return None
    try:
        header = _header_of(data)
        if header is None:
            return None
        turn = _orientation_of(data) if upright and header.has_tags else 1
        # A file that libjpeg warns about is left to Pillow, which decides what is an error.
        pixels = _decoded(data, header, least if least is None or turn < 5 else least[::-1])
    except BROKEN:
        return None
    if pixels is None:
        return None
    if turn != 1:
        pixels = _TURNS[turn](pixels).copy()
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def checked_jpeg(data: bytes, upright: bool, *, full: bool) -> tuple[int, int] | None:
    """Width and height of an intact JPEG of 8 bits in gray or RGB; ``None`` for everything that Pillow has to look at.

    Args:
        data: The content of the file.
        upright: Whether to apply the EXIF orientation.
        full: Whether to decode it, at an eighth of its size, for which all of its data are read all the same. If not, a
            file that was cut off is still found, since it has no end.
    """
    try:
        if not data.startswith(_START) or (header := _header_of(data)) is None:
            return None
        # No data of a scan have the two bytes of the end; a thumbnail before them has an end of its own.
        if not data.endswith(_LAST) and data.find(_LAST, header.scan) < 0:
            return None
        require_few_pixels(header.width, header.height)
        if full and (simplejpeg is None or _decoded(data, header, (1, 1)) is None):
            return None
        turn = 1
        if header.has_tags and upright:
            with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
                turn = stored_orientation(image)
    except BROKEN:
        return None
    return (header.height, header.width) if turn >= 5 else (header.width, header.height)


def _bytes_of(path: str | Path | bytes) -> bytes | None:
    """The content of a JPEG that is not too large."""
    if isinstance(path, bytes):
        return path if path.startswith(_START) and len(path) <= _LARGEST else None
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            return None
        with open(path, "rb", buffering=0) as file:  # read once, and not copied
            if file.read(len(_START)) != _START:
                return None
            file.seek(0)
            return file.read(status.st_size)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None


def _header_of(data: bytes) -> _Header | None:
    """The header of a JPEG; ``None`` if it has none, or is of a kind that is left to Pillow."""
    place, frame, has_tags = 2, None, False
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], struct.unpack_from(">H", data, place + 2)[0]
        if marker == _SCAN:
            return None if frame is None else frame._replace(has_tags=has_tags, scan=place)
        if marker in _OTHER_FRAMES or marker == _END or (marker in _FRAMES and frame is not None):
            return None
        has_tags |= marker == _APP1
        if marker in _FRAMES:
            frame = _frame(data[place + 4 : place + 2 + length], _FRAMES[marker])
            if frame is None:
                return None
            frame = frame._replace(frame=place)
        place += 2 + length
    return None


def _frame(content: bytes, progressive: bool) -> _Header | None:
    precision, height, width, components = struct.unpack_from(">BHHB", content)
    if precision != 8 or components not in (1, 3) or not height or not width or len(content) < 6 + 3 * components:
        return None
    areas = [(content[7 + 3 * part] >> 4) * (content[7 + 3 * part] & 15) for part in range(components)]
    return _Header(height, width, coefficient_bytes(areas) if progressive else 0)


def _orientation_of(data: bytes) -> int:
    """The EXIF orientation of a JPEG in memory, as Pillow finds it."""
    # What it says about damaged tags was reported with the file's name when the data were checked.
    with silent(), Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
        return stored_orientation(image)


def _decoded(data: bytes, header: _Header, least: tuple[int, int] | None) -> NDArray[np.uint8] | None:
    """Pixels (H, W, 3), not turned."""
    height, width, coefficients = header[:3]
    require_few_pixels(width, height)
    if (needed := round(height * width * (_BYTES + coefficients))) > most_memory():
        return None
    factor = reduction(height, width, least)
    shape = (-(-height // factor), -(-width // factor))
    smallest = {"min_height": shape[0], "min_width": shape[1]} if factor > 1 else {}
    with memory_for(needed):
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", **smallest)
    return pixels if pixels.shape == (*shape, 3) else None
