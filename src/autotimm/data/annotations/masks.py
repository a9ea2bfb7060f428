"""Masks of semantic segmentation: reading their pixels, decoding them to class indices, and tables of them."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from autotimm.data.image_io import BROKEN, decoded, reason, row_strips, shows_only_alpha
from autotimm.data.image_reading import current_reading
from autotimm.data.table import Packed, Table, packed_at, rarest_labels
from autotimm.errors import DataError
from autotimm.records.digest import file_digest
from autotimm.types import Sample

__all__ = [
    "IGNORED",
    "VOC_BORDER",
    "MaskCode",
    "MaskFacts",
    "MaskTable",
    "Pixels",
    "color_key",
    "color_name",
    "read_pixels",
]


IGNORED = 255
"""The value of pixels in a target whose class is unknown; metrics and losses leave them out."""

VOC_BORDER = 0xE0E0C0
"""The color of the void of PASCAL VOC, whose devkit paints borders between objects with it."""

_GRAY = 0x010101
_STRIP = 1 << 20  # pixels that are counted at once
_MANY = 1024  # a mask with more values than that is a photograph, or has soft edges between colors
_COUNTED = 1 << 16  # values whose pixels are counted, of which the most frequent are listed


def color_key(red: int, green: int, blue: int) -> int:
    """A color as one number.

    Example:
        >>> hex(color_key(128, 64, 0))
        '0x804000'
    """
    return red << 16 | green << 8 | blue


def color_name(key: int) -> str:
    """A color as text for people.

    Example:
        >>> color_name(0x804000)
        '#804000'
    """
    return f"#{key:06x}"


class Pixels(NamedTuple):
    """A mask as it is stored.

    Attributes:
        values: Whole numbers (H, W): gray values, indices into the palette, or colors as :func:`color_key`.
        colors: Whether ``values`` are colors.
        palette: The colors of a palette, as :func:`color_key`; ``None`` without one.
    """

    values: NDArray[Any]
    colors: bool = False
    palette: NDArray[np.int32] | None = None


class MaskFacts(NamedTuple):
    """What is known of a mask file after one look at every pixel.

    Attributes:
        width: Width in pixels.
        height: Height.
        values: The gray values or indices that occur; ``None`` where pixels are colors that are not all gray.
        colors: The colors that occur. With ``values``, in their order.
        many: Whether there are more than a thousand of them, of which the most frequent are listed.
        counts: How many pixels have each of the colors that are listed.
        solid: How many squares of 2x2 pixels have it. An area consists of them, the pixels of a soft edge do not.
        pieces: Its connected pieces minus its holes.
        palette: Whether ``values`` are indices into a palette.
    """

    width: int
    height: int
    values: tuple[int, ...] | None
    colors: tuple[int, ...]
    many: bool = False
    counts: tuple[int, ...] = ()
    solid: tuple[int, ...] = ()
    pieces: tuple[int, ...] = ()
    palette: bool = False


def read_pixels(path: str | Path | BinaryIO) -> Pixels:
    """Read a mask without changing a value; rotated by its EXIF tag, like its image.

    Raises:
        OSError: Or another of :data:`autotimm.data.image_io.BROKEN`, if it cannot be read, or holds fractions.
    """
    with decoded(path) as image:
        return _pixels(image)


def _pixels(image: Image.Image) -> Pixels:
    if shows_only_alpha(image):
        raise ValueError("it is drawn in the transparency, and all its colors are equal")
    if image.mode == "P":
        flat = np.array(image.getpalette("RGB"), np.int32).reshape(-1, 3)
        palette = np.zeros(256, np.int32)
        palette[: len(flat)] = flat @ np.array([1 << 16, 1 << 8, 1], np.int32)
        return Pixels(np.array(image), palette=palette)
    if image.mode in ("L", "I") or image.mode.startswith("I;"):
        return Pixels(np.array(image))
    if image.mode == "1":
        return Pixels(np.array(image.convert("L")))
    if image.mode in ("LA", "La"):
        return Pixels(np.array(image)[..., 0])
    if image.mode == "F":
        raise ValueError("its pixels are fractions, not whole numbers")
    keys = np.empty((image.height, image.width), np.int32)
    for top, strip in row_strips(image):
        channels = np.array(strip.convert("RGB"), np.int32)
        keys[top : top + strip.height] = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    return Pixels(keys, colors=True)


def facts_of(path: str | Path) -> MaskFacts:
    """Look at every pixel of a mask.

    Raises:
        OSError: Or another of :data:`autotimm.data.image_io.BROKEN`.
    """
    with decoded(path) as image:  # the block counts the memory of what is done with the pixels
        return _facts(_pixels(image))


def _facts(pixels: Pixels) -> MaskFacts:
    height, width = pixels.values.shape
    values, many = _most_frequent(pixels.values)
    counts, solid, pieces = (tuple(numbers.tolist()) for numbers in _shapes(pixels.values, values))
    if pixels.palette is not None:
        colors = tuple(pixels.palette[values].tolist())
        return MaskFacts(width, height, tuple(values.tolist()), colors, many, counts, solid, pieces, palette=True)
    if not pixels.colors:
        grays = np.clip(values, 0, 255).astype(np.int64) * _GRAY
        return MaskFacts(width, height, tuple(values.tolist()), tuple(grays.tolist()), many, counts, solid, pieces)
    all_gray = bool((values == (values & 255) * _GRAY).all())
    gray_values = tuple((values & 255).tolist()) if all_gray else None
    return MaskFacts(width, height, gray_values, tuple(values.tolist()), many, counts, solid, pieces)


def _most_frequent(values: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """The values that occur, in ascending order, and whether there are more than are listed."""
    rows = max(1, _STRIP // max(values.shape[1], 1))
    strips = (values[top : top + rows] for top in range(0, len(values), rows))
    if values.dtype == np.uint8:  # counting is ten times as fast as sorting
        bins = sum((np.bincount(strip.ravel(), minlength=256) for strip in strips), np.zeros(256, np.int64))
        return np.flatnonzero(bins), False
    known, counts = values.ravel()[:0], np.zeros(0, np.int64)
    for strip in strips:
        new, new_counts = np.unique(strip, return_counts=True)
        known, places = np.unique(np.concatenate([known, new]), return_inverse=True)
        totals = np.bincount(places, np.concatenate([counts, new_counts]), len(known)).astype(np.int64)
        known, counts = known[:_COUNTED], totals[:_COUNTED]  # what comes after these never comes before them
    listed = np.sort(np.argsort(-counts, kind="stable")[:_MANY])
    return known[listed], len(known) > _MANY


def _shapes(
    pixels: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each value the number of pixels, of squares of 2x2 pixels, and of pieces minus holes.

    The last is Euler's characteristic with pixels as corners, pairs of neighbors as edges and squares as faces.
    """
    number, others = len(values), len(values)
    counts, pairs, squares = (np.zeros(number + 1, np.int64) for _ in range(3))
    rows = max(1, _STRIP // max(pixels.shape[1], 1))
    for top in range(0, len(pixels), rows):
        strip = pixels[top : top + rows + 1]  # the last row belongs to the next strip
        if pixels.dtype == np.uint8:
            at = np.full(256, others)
            at[values] = np.arange(number)
            places = at[strip]
        else:
            places = np.searchsorted(values, strip).clip(max=number - 1)
            places[values[places] != strip] = others
        own = places[:rows]
        beside = own[:, :-1] == own[:, 1:]
        below = places[:-1] == places[1:]
        square = below[:, :-1] & below[:, 1:] & beside[: len(below)]
        counts += np.bincount(own.ravel(), minlength=number + 1)
        pairs += np.bincount(own[:, :-1][beside], minlength=number + 1)
        pairs += np.bincount(places[:-1][below], minlength=number + 1)
        squares += np.bincount(places[:-1, :-1][square], minlength=number + 1)
    return counts[:number], squares[:number], (counts - pairs + squares)[:number]


@dataclass(frozen=True)
class MaskCode:
    """Which class a pixel belongs to. Target digests cover its ``repr``, so names of class and fields must stay.

    Attributes:
        by_color: Whether ``keys`` are colors, as :func:`color_key`; gray values or indices otherwise.
        keys: The values that stand for a class.
        classes: The class index of each, or :data:`IGNORED`.
        nearest: Whether other values stand for the class of the nearest key, as between soft edges, instead of none.
    """

    by_color: bool
    keys: tuple[int, ...]
    classes: tuple[int, ...]
    nearest: bool = False

    def __repr__(self) -> str:
        # Digests of masks with hard edges are those of the time before there was anything else.
        nearest = ", nearest=True" if self.nearest else ""
        return f"MaskCode(by_color={self.by_color!r}, keys={self.keys!r}, classes={self.classes!r}{nearest})"

    def classes_in(self, facts: MaskFacts) -> tuple[dict[int, int], list[int]]:
        """The class indices in a mask with their numbers of pixels, and its values that stand for no class."""
        known = {IGNORED: IGNORED} if not self.by_color else {VOC_BORDER: IGNORED}
        known |= zip(self.keys, self.classes, strict=True)
        if not self.by_color and facts.values is None:
            return {}, list(facts.colors)  # colors stand for nothing where values are expected
        keys = facts.values if not self.by_color and facts.values is not None else facts.colors
        if self.nearest:
            table = _table(self)
            known = {key: int(table[key]) for key in keys if 0 <= key < len(table)} | _beyond(self, len(table))
        pixels: dict[int, int] = {}
        for key, count in zip(keys, facts.counts, strict=True):
            if known.get(key, IGNORED) != IGNORED:
                pixels[known[key]] = pixels.get(known[key], 0) + count
        # Negative numbers are what programs write where nothing is known.
        return dict(sorted(pixels.items())), [key for key in keys if key not in known and key >= 0]

    def decode(self, pixels: Pixels) -> NDArray[np.uint8]:
        """Class indices (H, W), :data:`IGNORED` where the class is unknown."""
        table, values = _table(self), pixels.values
        if self.by_color and pixels.palette is not None:
            table = table[pixels.palette]
        elif self.by_color and not pixels.colors:
            table, values = table[np.arange(256) * _GRAY], np.clip(values, 0, 255)
        elif not self.by_color and pixels.colors:
            values = np.where(values == (values & 255) * _GRAY, values & 255, -1)
        if values.dtype != np.uint8 and not self.by_color:
            unknown = (values < 0) | (values >= len(table))
            values, table = np.where(unknown, len(table), values), np.append(table, np.uint8(IGNORED))
        classes: NDArray[np.uint8] = table[values]
        for key, index in _beyond(self, len(_table(self))).items() if not pixels.colors else ():
            classes[pixels.values == key] = index
        return classes


def _beyond(code: MaskCode, length: int) -> dict[int, int]:
    """The classes of values that a table of this length does not reach: 32 bits hold more than it could."""
    return {key: index for key, index in zip(code.keys, code.classes, strict=True) if key >= length}


@functools.lru_cache(maxsize=4)
def _table(code: MaskCode) -> NDArray[np.uint8]:
    """The class of every value: 16 MiB for colors, built once per process and never sent to another."""
    table = np.full(1 << 24 if code.by_color else 1 << 16, IGNORED, np.uint8)
    if code.nearest:
        _fill_with_nearest(table, code)
    for key, index in zip(code.keys, code.classes, strict=True):
        if 0 <= key < len(table):
            table[key] = index
    return table


def _fill_with_nearest(table: NDArray[np.uint8], code: MaskCode) -> None:
    """Give every value the class of the nearest key; of two that are equally near that of the first."""
    keys, classes = np.array(code.keys, np.int32), np.array(code.classes, np.uint8)
    if not code.by_color:
        for first in range(0, len(table), 4096):
            values = np.arange(first, first + 4096)
            table[values] = classes[np.abs(values[:, None] - keys).argmin(1)]
        return
    steps = np.arange(256)
    red, green, blue = ((steps[:, None] - (keys >> shift & 255)) ** 2 for shift in (16, 8, 0))  # (256, keys)
    for value in steps:  # a slice of equal red at a time: all colors at once would fill gigabytes
        best, nearest = None, np.zeros((256, 256), np.uint8)
        for at in range(len(keys)):
            distance = red[value, at] + green[:, at][:, None] + blue[:, at]
            closer = np.ones_like(nearest, bool) if best is None else distance < best
            best = distance if best is None else np.minimum(best, distance)
            nearest[closer] = classes[at]
        table[value << 16 : (value + 1) << 16] = nearest.ravel()


class MaskTable(Table):
    """Image files and their masks.

    Args:
        paths: One image per sample.
        masks: Its mask.
        ids: One id per sample.
        class_names: Names of the classes.
        code: Which class a pixel value stands for.
        present: The class indices in each mask with their numbers of pixels, for stratified splits and counts.
    """

    draws_random = False
    kind = "pixels"

    def __init__(
        self,
        paths: Sequence[str | Path],
        masks: Sequence[str | Path],
        ids: Sequence[str],
        class_names: Sequence[str],
        code: MaskCode,
        present: Sequence[Mapping[int, int]],
    ) -> None:
        self.paths, self.mask_paths = tuple(map(str, paths)), tuple(map(str, masks))
        self.ids, self.class_names, self.code = tuple(ids), tuple(class_names), code
        self.reading = current_reading()
        self._present = tuple(map(dict, present))
        bits = torch.zeros(len(self.ids), len(self.class_names), dtype=torch.uint8)
        for row, classes in enumerate(self._present):
            bits[row, list(classes)] = 1
        self.strata = rarest_labels(bits)

    def load(self, index: int) -> Sample:
        """Decode one image and its mask: a ``tv_tensors.Mask`` ``uint8`` (H, W) of class indices, 255 where unknown.

        Raises:
            DataError: If one of them cannot be read, or they differ in size.
        """
        image, path = self.picture(self.paths[index]), self.mask_paths[index]
        try:
            pixels = read_pixels(path if self.packed_rows is None else io.BytesIO(self.mask_content(index)))
        except BROKEN as error:
            raise DataError(f"{path} cannot be read as a mask: {reason(path, error)}. Replace it.") from error
        classes = torch.from_numpy(self.code.decode(pixels))
        if classes.shape != image.shape[-2:]:
            sizes = [f"{width}x{height}" for height, width in (classes.shape, image.shape[-2:])]
            raise DataError(f"{path} is {sizes[0]} pixels, its image {sizes[1]}. Make them equal.")
        return Sample(image, tv_tensors.Mask(classes), self.ids[index])

    def files(self) -> tuple[Path, ...]:
        """The image files."""
        return tuple(Path(path) for path in self.paths) if self.packed_rows is None else ()

    def packed(self) -> Packed | None:
        """The rows that hold the images and masks of a packed data set."""
        return packed_at(self)

    def mask_content(self, index: int) -> bytes:
        """The content of a mask file, from its folder or from its row in a packed data set."""
        if self.packed_rows is None:
            return Path(self.mask_paths[index]).read_bytes()
        return self.packed_rows.row(int(self.paths[index])).masks

    def present(self, index: int) -> dict[int, int]:
        """The class indices in a mask with their numbers of pixels."""
        return self._present[index]

    def labels(self, index: int) -> tuple[str, ...]:
        """Names of the classes in a mask, in class order."""
        return tuple(self.class_names[label] for label in self._present[index])

    def amounts(self, index: int) -> dict[str, int]:
        """The number of pixels of each class in a mask."""
        return {self.class_names[label]: pixels for label, pixels in self._present[index].items()}

    def target_digest(self, index: int) -> str:
        """SHA-256 of a mask file and of what its values stand for."""
        meaning = repr((self.code, self.class_names)).encode("utf-8", "surrogatepass")
        if self.packed_rows is None:
            digest = file_digest(self.mask_paths[index])
        else:
            digest = hashlib.sha256(self.mask_content(index)).hexdigest()
        return hashlib.sha256(digest.encode() + meaning).hexdigest()

    def target_files(self, index: int) -> tuple[Path, ...]:
        """The mask file."""
        return () if self.packed_rows is not None else (Path(self.mask_paths[index]),)
