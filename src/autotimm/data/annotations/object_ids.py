"""Label images whose values are ids of objects: the outline of each object, and whether values behave like ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotimm.data.annotations.masks import IGNORED, VOC_BORDER, MaskFacts, Pixels, read_pixels
from autotimm.data.annotations.outlines import RunLengths

__all__ = ["ObjectIds", "Verdict", "judge_ids", "object_ids"]

_MOST_IDS = 1 << 15  # a file with more is a photograph
_NEARLY_ALL = 0.9  # of the masks
_WHOLE = 0.7  # of the objects: others are covered in part, or thin
_SOLID = 0.25  # squares of 2x2 pixels per pixel
_MOST_CLASSES = 255  # more values are no classes
_FEW = 4  # objects at most: classes may look like that too
_ENOUGH = 6  # images: that many coins rarely all fall on the same side
_ALL_IN_ONE = 20  # as many classes are not all in one image, each once


class ObjectIds(NamedTuple):
    """The objects of a label image.

    Attributes:
        width: Width in pixels.
        height: Height.
        ids: The value or color of each object, in ascending order.
        runs: The run lengths of each, compressed as in a COCO file.
    """

    width: int
    height: int
    ids: tuple[int, ...]
    runs: tuple[str, ...]

    def outline(self, number: int) -> RunLengths:
        """The outline of an object."""
        return RunLengths(self.height, self.width, self.runs[number].encode("ascii"))


def object_ids(path: str | Path) -> ObjectIds:
    """Read a label image of ids. 0, black, negative values and VOC's borders belong to no object.

    Raises:
        OSError: Or another of :data:`autotimm.data.image_io.BROKEN`; ``ValueError`` for more than 32768 values.
    """
    pixels = read_pixels(path)
    height, width = pixels.values.shape
    flat = pixels.values.T.ravel()  # run lengths go down the columns
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends, values = np.append(starts[1:], len(flat)), flat[starts]
    order = np.argsort(values, kind="stable")
    ids, firsts = np.unique(values[order], return_index=True)
    if len(ids) > _MOST_IDS:
        raise ValueError(f"it has more than {_MOST_IDS} values, as a photograph")
    runs: dict[int, str] = {}
    for id, of_id in zip(ids.tolist(), np.split(order, firsts[1:]), strict=True):
        if not _is_void(id, pixels):
            bounds = np.column_stack([starts[of_id], ends[of_id]]).ravel()
            counts = np.diff(bounds, prepend=0, append=len(flat)).tolist()
            outline = RunLengths.of_counts(height, width, counts[:-1] if not counts[-1] else counts)
            runs[id] = outline.counts.decode("ascii")
    return ObjectIds(width, height, tuple(runs), tuple(runs.values()))


def _is_void(value: int, pixels: Pixels) -> bool:
    if pixels.colors:
        return value in (0, VOC_BORDER)
    border = value == IGNORED and pixels.palette is not None and int(pixels.palette[value]) == VOC_BORDER
    return value <= 0 or border


class Verdict(NamedTuple):
    """Whether the values of label images are ids of objects.

    Attributes:
        ids: Whether they are.
        possible: Whether they could be.
        likely: Whether they could be, and an image has two.
    """

    ids: bool
    possible: bool
    likely: bool = False


def judge_ids(facts: Sequence[MaskFacts]) -> Verdict:
    """Judge by the behavior of the values over images.

    The values of objects start anew at 1 in every image, which has as many as it has objects, or go on from one image
    to the next; each makes one piece. A class is missing here and there, and has several pieces where it has several
    objects.
    """
    images = [values for fact in facts if (values := _objects(fact))]
    whole = [is_whole for values in images for is_whole in values.values()]
    numbers = [len(values) for values in images]
    if not whole or sum(whole) < _WHOLE * len(whole):
        return Verdict(False, False)
    distinct = {value for values in images for value in values}
    counted = sum(set(values) == set(range(1, len(values) + 1)) for values in images) >= _NEARLY_ALL * len(images)
    continued = len(distinct) == len(whole) and len(images) > 2  # no value is in two images
    varies = len(set(numbers)) > 1
    few = max(numbers) <= _FEW and (max(numbers) <= 2 or _have_an_order(facts))
    ids = (
        (counted and ((varies and not few) or max(numbers) >= _ALL_IN_ONE))
        or (continued and len(distinct) > 2 * len(images))
        or len(distinct) > _MOST_CLASSES
    )
    possible = ids or counted or continued
    return Verdict(ids, possible, possible and max(numbers) > 1)


def _have_an_order(facts: Sequence[MaskFacts]) -> bool:
    """Whether 1 is larger than 2 in all images, or smaller in all: a tumor is in a liver, a lane on a road."""
    areas = [dict(zip(fact.values or (), fact.counts, strict=False)) for fact in facts]
    larger = [area[1] > area[2] for area in areas if 1 in area and 2 in area]
    return len(larger) >= _ENOUGH and (all(larger) or not any(larger))


def _objects(fact: MaskFacts) -> dict[int, bool]:
    """The values of a mask that may be objects, and whether each is an area in one piece."""
    keys: NDArray[np.int64] = np.array(fact.colors if fact.values is None else fact.values, np.int64)
    void = keys <= 0
    if fact.values is None or fact.palette:
        void |= np.array(fact.colors, np.int64) == VOC_BORDER
    solid = np.array(fact.solid) >= _SOLID * np.array(fact.counts)  # pixels of edges and of photographs are none
    whole = solid & (np.array(fact.pieces) <= 1)
    return {int(key): bool(is_whole) for key, is_whole, gone in zip(keys, whole, void, strict=True) if not gone}
