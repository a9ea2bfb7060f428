"""Outlines of objects: polygons, run lengths, or the path of a mask; as compact as the files that they come from.

They are decoded to masks of pixels only when a sample is loaded: those of COCO alone would fill a hundred gigabytes.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from autotimm.data.image_io import BROKEN, decoded, reason, row_strips, shows_only_alpha
from autotimm.errors import DataError

__all__ = ["Box", "MaskFile", "Outline", "Outlines", "Polygons", "RunLengths", "object_pixels", "read_outline"]


Box = tuple[float, float, float, float]

_ELLIPSE_CORNERS = 64


class Polygons(NamedTuple):
    """Polygons that together make one object.

    Attributes:
        parts: ``float64`` of shape (P, 2) each: x and y of the corners in pixels.
    """

    parts: tuple[NDArray[np.float64], ...]

    @classmethod
    def ellipse(cls, x: float, y: float, x_radius: float, y_radius: float) -> Polygons:
        """An ellipse around a point, with 64 corners."""
        angles = np.arange(_ELLIPSE_CORNERS) * (2 * np.pi / _ELLIPSE_CORNERS)
        return cls((np.stack([x + x_radius * np.cos(angles), y + y_radius * np.sin(angles)], axis=1),))

    def turned(self, x: float, y: float, degrees: float) -> Polygons:
        """Turned clockwise around a point, as seen in an image, whose y points down.

        Example:
            >>> Polygons((np.array([(2, 0), (3, 0)]),)).turned(2, 0, 90).box()
            (2.0, 0.0, 2.0, 1.0)
        """
        sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
        turn = np.array([[cosine, sine], [-sine, cosine]])
        return Polygons(tuple((part - (x, y)) @ turn + (x, y) for part in self.parts))

    def box(self) -> Box:
        """The smallest box around all corners: x1, y1, x2, y2."""
        points = np.concatenate(self.parts)
        return (*points.min(0).tolist(), *points.max(0).tolist())

    def scaled(self, width: float, height: float) -> Polygons:
        """In pixels, for corners that are fractions of width and height."""
        return Polygons(tuple(part * (width, height) for part in self.parts))

    def mask(self, height: int, width: int) -> NDArray[np.uint8]:
        """The pixels inside, zeros and ones (height, width); parts outside of the image are clipped."""
        clipped = [_clipped(part, width, height) for part in self.parts]
        lists = [part.ravel().tolist() for part in clipped if len(part) >= 3]
        if not lists:
            return np.zeros((height, width), np.uint8)
        return _decoded(coco_mask.merge(coco_mask.frPyObjects(lists, height, width)))


class RunLengths(NamedTuple):
    """COCO's run lengths, column by column, compressed.

    Attributes:
        height: Rows of the mask.
        width: Columns.
        counts: The runs.
    """

    height: int
    width: int
    counts: bytes

    @classmethod
    def of_counts(cls, height: int, width: int, counts: Sequence[int]) -> RunLengths:
        """Compress runs given as numbers."""
        size = [height, width]
        return cls(
            height, width, coco_mask.frPyObjects({"size": size, "counts": list(counts)}, height, width)["counts"]
        )

    @classmethod
    def of_mask(cls, mask: NDArray[np.uint8]) -> RunLengths:
        """Compress a mask of zeros and ones (H, W)."""
        height, width = mask.shape
        return cls(height, width, coco_mask.encode(np.asfortranarray(mask))["counts"])

    @classmethod
    def of_crop(cls, crop: NDArray[np.bool_], left: int, top: int, height: int, width: int) -> RunLengths:
        """Compress a part of a mask, without making the rest of it.

        Args:
            crop: Where the object is (h, w).
            left: Column of the mask where it begins.
            top: Row of the mask where it begins.
            height: Rows of the mask.
            width: Columns.

        Raises:
            ValueError: If it reaches beyond the mask, or the mask is too large.
        """
        rows, columns = crop.shape
        if min(left, top) < 0 or left + columns > width or top + rows > height or height * width >= 1 << 32:
            raise ValueError("a mask that reaches beyond its image")
        edges = np.diff(np.pad(crop.astype(np.int8), ((1, 1), (0, 0))), axis=0)
        column, row = np.nonzero(edges.T)
        starts, uses = np.unique((left + column) * height + top + row, return_counts=True)
        # A run that goes on in the next column ends and begins at one place; nothing begins behind the last pixel.
        starts = starts[(uses == 1) & (starts < height * width)]
        return cls.of_counts(height, width, np.diff([0, *starts.tolist(), height * width]).tolist())

    def as_pair(self) -> tuple[tuple[int, int], bytes]:
        """As torchmetrics keeps it: height and width, and the compressed counts."""
        return (self.height, self.width), self.counts

    def as_coco(self) -> dict[str, Any]:
        """As in a COCO file: size and compressed counts."""
        return {"size": [self.height, self.width], "counts": self.counts.decode("ascii")}

    def _coco(self) -> dict[str, Any]:
        return {"size": [self.height, self.width], "counts": self.counts}

    def box(self) -> Box:
        """The smallest box around the mask: x1, y1, x2, y2; without area if the mask is empty."""
        x, y, width, height = coco_mask.toBbox(self._coco()).tolist()
        return x, y, x + width, y + height

    def mask(self, height: int, width: int) -> NDArray[np.uint8]:
        """The pixels, zeros and ones (height, width).

        Raises:
            DataError: If the mask has another size.
        """
        if (self.height, self.width) != (height, width):
            raise DataError(_size_error("A mask of run lengths", (self.width, self.height), (width, height)))
        return _decoded(self._coco())


class MaskFile(NamedTuple):
    """A picture that shows one object: bright where it is, black elsewhere.

    Attributes:
        path: The file; in a packed data set its first and last byte among the masks of the row, as ``0:812``.
        bounds: The smallest box around the object: x1, y1, x2, y2.
    """

    path: str
    bounds: tuple[int, int, int, int]

    def box(self) -> Box:
        """The smallest box around the object."""
        return self.bounds

    def mask(self, height: int, width: int, content: BinaryIO | None = None) -> NDArray[np.uint8]:
        """The pixels, zeros and ones (height, width).

        Args:
            height: Rows.
            width: Columns.
            content: The content of the file, where it is in no folder.

        Raises:
            DataError: If the file cannot be read or has another size.
        """
        try:
            pixels = object_pixels(self.path if content is None else content)
        except BROKEN as error:
            raise DataError(f"{self.path} cannot be read as a mask: {reason(self.path, error)}.") from error
        if pixels.shape != (height, width):
            raise DataError(_size_error(self.path, (pixels.shape[1], pixels.shape[0]), (width, height)))
        return pixels


Outline = Polygons | RunLengths | MaskFile


def _size_error(what: str, mask: tuple[int, int], image: tuple[int, int]) -> str:
    return (
        f"{what} is {mask[0]}x{mask[1]} pixels, its image {image[0]}x{image[1]}. Make them equal, or remove it "
        "from the data."
    )


def _decoded(runs: Any) -> NDArray[np.uint8]:
    return np.ascontiguousarray(coco_mask.decode(runs))


def object_pixels(path: str | Path | BinaryIO) -> NDArray[np.uint8]:
    """Read a picture of one object as zeros and ones (H, W): above half of the brightest value counts as the object.

    Soft edges are cut in the middle, and both 1 and 255 may stand for the object.

    Raises:
        OSError: Or another of :data:`autotimm.data.image_io.BROKEN`, also for a picture of transparency alone.
    """
    with decoded(path, upright=False) as image:
        if shows_only_alpha(image):
            raise ValueError("it is drawn in the transparency, and all its colors are equal")
        brightest = np.max([_brightness(strip).max() for _, strip in row_strips(image)])
        above = np.empty((image.height, image.width), np.uint8)
        for top, strip in row_strips(image):
            above[top : top + strip.height] = _brightness(strip) > brightest / 2
    return above


def _brightness(image: Image.Image) -> NDArray[np.float64]:
    """The highest channel of each pixel (H, W); transparency is no channel."""
    mode = image.mode
    values = np.asarray(image.convert("RGB") if mode in ("RGBA", "CMYK", "YCbCr") else image).astype(np.float64)
    return values[..., 0] if mode == "LA" else values.max(-1) if values.ndim == 3 else values


def _clipped(corners: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    """Clip a polygon to three times the image's size, which moves its edges by less than a pixel, if at all.

    pycocotools clips at the image's border, but walks along every edge pixel by pixel: a corner at 1e9 takes an hour,
    and one at 1e12 crashes. Sutherland and Hodgman, "Reentrant polygon clipping", CACM 1974.
    """
    for axis, size in ((0, width), (1, height)):
        for sign, limit in ((1.0, 2.0 * size), (-1.0, 1.0 * size)):  # sign * coordinate <= limit
            room = limit - sign * corners[:, axis]
            if (room >= 0).all():
                continue
            corners = np.array(list(_clipped_at_edge(corners, room)), np.float64).reshape(-1, 2)
    return corners


def _clipped_at_edge(corners: NDArray[np.float64], room: NDArray[np.float64]) -> Iterable[NDArray[np.float64]]:
    for index in range(len(corners)):
        before, here = corners[index - 1], corners[index]
        room_before, room_here = room[index - 1], room[index]
        if (room_before < 0) != (room_here < 0):
            yield before + (here - before) * (room_before / (room_before - room_here))
        if room_here >= 0:
            yield here


def read_outline(segmentation: Any) -> Outline | None:
    """Read COCO's ``segmentation``, and check what pycocotools does not.

    Args:
        segmentation: A list of polygons; one polygon; run lengths, compressed or not.

    Returns:
        ``None`` if there is no list, or no polygon of three corners.

    Raises:
        ValueError: If it is invalid, with the reason.
    """
    if isinstance(segmentation, dict):
        return _read_runs(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    lists = [segmentation] if isinstance(segmentation[0], (int, float)) else segmentation
    parts = []
    for numbers in lists:
        try:
            part = np.array(numbers, np.float64)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("a polygon that is not a list of numbers") from None
        if part.ndim != 1 or part.size % 2 or not np.isfinite(part).all():
            raise ValueError("a polygon that is not a list of x and y")
        if part.size >= 6:  # pycocotools would take four numbers for a box
            parts.append(part.reshape(-1, 2))
    return Polygons(tuple(parts)) if parts else None


def _read_runs(segmentation: dict[str, Any]) -> RunLengths:
    counts = segmentation.get("counts")
    try:
        height, width = (int(side) for side in segmentation["size"])
        runs = _uncompressed(counts) if isinstance(counts, str) else [int(run) for run in counts or ()]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError("run lengths that cannot be read") from None
    # pycocotools writes past the end of its memory, or leaves garbage, where the runs do not fill the mask.
    if min(runs, default=0) < 0 or sum(runs) != height * width or height * width >= 1 << 32:
        raise ValueError("run lengths that do not fill their mask")
    if isinstance(counts, str):
        return RunLengths(height, width, counts.encode("ascii"))
    return RunLengths.of_counts(height, width, runs)


def _uncompressed(text: str) -> list[int]:
    """Decompress runs: five bits and a continuation bit per character, lowest first; later runs are differences."""
    runs: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        bits = code - 48
        if not 0 <= bits < 64:
            raise ValueError
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError
    return runs


_MASK_FILE = b"F"  # how the bytes of a packed mask file begin


class Outlines(Sequence["Outline | None"]):
    """Many outlines in one block of memory, which worker processes share at no cost."""

    def __init__(self, outlines: Iterable[Outline | None]) -> None:
        packed = [_packed(outline) for outline in outlines]
        self._starts = np.array([0, *itertools.accumulate(map(len, packed))], np.int64)
        self._bytes = b"".join(packed)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: Any) -> Any:
        return _unpacked(self.packed(index))

    def packed(self, index: int) -> bytes:
        """One outline as bytes."""
        return self._bytes[self._starts[index] : self._starts[index + 1]]

    def files(self, start: int, stop: int) -> Iterator[Path]:
        """The mask files among the outlines from one number up to another; the others are not unpacked."""
        for number in range(start, stop):
            if self.packed(number)[:1] == _MASK_FILE:
                yield Path(self[number].path)


def _packed(outline: Outline | None) -> bytes:
    if outline is None:
        return b""
    if isinstance(outline, Polygons):
        lengths = [len(part) for part in outline.parts]
        corners = b"".join(part.tobytes() for part in outline.parts)
        return b"P" + struct.pack(f"<{len(lengths) + 1}I", len(lengths), *lengths) + corners
    if isinstance(outline, RunLengths):
        return b"R" + struct.pack("<2I", outline.height, outline.width) + outline.counts
    return _MASK_FILE + struct.pack("<4I", *outline.bounds) + os.fsencode(outline.path)


def _unpacked(packed: bytes) -> Outline | None:
    kind, body = packed[:1], packed[1:]
    if kind == b"P":
        (count,) = struct.unpack_from("<I", body)
        lengths = struct.unpack_from(f"<{count}I", body, 4)
        points = np.frombuffer(body, np.float64, offset=4 + 4 * count).reshape(-1, 2)
        return Polygons(tuple(np.split(points, list(itertools.accumulate(lengths))[:-1])))
    if kind == b"R":
        height, width = struct.unpack_from("<2I", body)
        return RunLengths(height, width, body[8:])
    if kind == _MASK_FILE:
        a, b, c, d = struct.unpack_from("<4I", body)
        return MaskFile(os.fsdecode(body[16:]), (a, b, c, d))
    return None
