"""Checks of boxes and masks: objects annotated twice, sizes far apart, images without objects, unknown pixels.

What readers of formats find wrong themselves, such as boxes outside of their image or values of masks that stand for no
class, is in the notices of the data module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotimm.data.table import Objects, Table
from autotimm.inspection.data_finding import Case, Finding, finding_of

__all__ = ["check_boxes", "check_pixels", "overlapping"]

_SAME = 0.9  # intersection over union of boxes that mark one object
_FAR = 10.0  # times the usual side of a class
_FEWEST = 20  # objects of a class, for a usual side
_MOST_COMPARED = 2000  # objects of an image: pairs grow with their square
_UNKNOWN = 0.5


def check_boxes(tables: Mapping[str, Table]) -> list[Finding]:
    """Find objects that are annotated twice or are far from the usual size of their class, and images without any."""
    twice, far, empty, total = [], [], [], sum(map(len, tables.values()))
    number_twice = number_far = 0
    usual = _usual_sides(tables)
    names = tables["train"].class_names
    for split, id, objects in _all_objects(tables):
        labels, sides = objects.labels, _sides(objects)
        if not len(labels):
            empty.append(Case(id, split))
        if pairs := overlapping(objects):
            number_twice += len(pairs)
            a, b = pairs[0]
            same = labels[a] == labels[b]
            note = f"2 × {names[labels[a]]}" if same else f"{names[labels[a]]} and {names[labels[b]]}"
            rows = tuple(sorted({row for pair in pairs for row in pair}))
            twice.append(Case(id, split, note if len(pairs) == 1 else f"{note}, {len(pairs)} pairs", rows))
        with np.errstate(divide="ignore"):
            ratio = sides / usual[labels]
        odd = np.flatnonzero(((ratio > _FAR) | (ratio < 1 / _FAR)) & ~objects.crowd)
        if len(odd):
            number_far += len(odd)
            at = int(odd[0])
            note = f"{names[labels[at]]}: {sides[at]:.0f} px, usual {usual[labels[at]]:.0f}"
            far.append(Case(id, split, note, tuple(odd.tolist())))
    sentence = f"{number_twice} {_pairs(number_twice)} of boxes overlap by 90 % or more, in {_images(twice)}."
    cure = "Remove one of each: an object that is annotated twice is learned and counted twice."
    found = finding_of("duplicate_boxes", "warning", sentence, cure, twice, number_twice)
    objects_are = "object is" if number_far == 1 else "objects are"
    sentence = f"{number_far} {objects_are} more than 10 times as long as the median of the class, or as short, in "
    sentence += f"{_images(far)}."
    cure = "Look for boxes around a whole group, and for slips of the mouse."
    found += finding_of("far_sizes", "note", sentence, cure, far, number_far)
    sentence = f"{len(empty)} of {total:,} images have no object."
    cure = "They teach what is no object: make sure that nothing was forgotten in them."
    return found + finding_of("no_objects", "note", sentence, cure, empty)


def overlapping(objects: Objects, least: float = _SAME) -> list[tuple[int, int]]:
    """The pairs of objects of an image whose boxes have at least such an intersection over union; without crowds."""
    kept = np.flatnonzero(~objects.crowd)[:_MOST_COMPARED]
    boxes = objects.boxes[kept].astype(np.float64)
    if len(boxes) < 2:
        return []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    pairs = []
    for at in range(len(boxes) - 1):  # a row at a time: bounds the memory
        others = boxes[at + 1 :]
        low, high = np.maximum(boxes[at, :2], others[:, :2]), np.minimum(boxes[at, 2:], others[:, 2:])
        shared = np.clip(high - low, 0, None).prod(1)
        union = area[at] + area[at + 1 :] - shared
        same = np.flatnonzero(shared >= least * np.maximum(union, 1e-9))
        pairs += [(int(kept[at]), int(kept[at + 1 + other])) for other in same]
    return pairs


def _all_objects(tables: Mapping[str, Table]) -> Iterator[tuple[str, str, Objects]]:
    for split, table in tables.items():
        for index, id in enumerate(table.ids):
            if (objects := table.objects(index)) is not None:
                yield split, id, objects


def _sides(objects: Objects) -> NDArray[np.float64]:
    """The side of a square as large as each box, in pixels."""
    sides: NDArray[np.float64] = np.sqrt((objects.boxes[:, 2:] - objects.boxes[:, :2]).astype(np.float64).prod(1))
    return sides


def _usual_sides(tables: Mapping[str, Table]) -> NDArray[np.float64]:
    """The median side of the objects of each class; NaN for a class of few, whose ratios are then no finding."""
    by_class: list[list[NDArray[Any]]] = [[] for _ in tables["train"].class_names]
    for _, _, objects in _all_objects(tables):
        sides = _sides(objects)
        for label in np.unique(objects.labels):
            by_class[label].append(sides[(objects.labels == label) & ~objects.crowd])
    joined = [np.concatenate(parts) if parts else np.zeros(0) for parts in by_class]
    return np.array([np.median(sides) if len(sides) >= _FEWEST else np.nan for sides in joined])


def check_pixels(tables: Mapping[str, Table], looks: Mapping[str, NDArray[Any]]) -> list[Finding]:
    """Note masks of which most pixels are of no class, and those of one class where most have several."""
    unknown, plain, total = [], [], sum(map(len, tables.values()))
    for split, table in tables.items():
        for index, id in enumerate(table.ids):
            amounts = table.amounts(index)
            pixels = int(looks[split][index]["width"]) * int(looks[split][index]["height"])
            share = 1 - sum(amounts.values()) / pixels if pixels else 0.0
            if share > _UNKNOWN:
                unknown.append(Case(id, split, f"{share:.0%} unknown"))
            if len(amounts) == 1:
                plain.append(Case(id, split, f"only {next(iter(amounts))}"))
    sentence = f"{len(unknown)} of {total:,} masks leave more than half of their pixels without a class."
    cure = "Nothing is learned there: annotate them, or remove the images."
    found = finding_of("unknown_pixels", "note", sentence, cure, unknown)
    if 2 * len(plain) > total:
        return found
    sentence = f"{len(plain)} of {total:,} masks have one class only."
    cure = "Make sure that nothing was forgotten in them."
    return found + finding_of("one_class_masks", "note", sentence, cure, plain)


def _pairs(count: int) -> str:
    return "pair" if count == 1 else "pairs"


def _images(cases: list[Case]) -> str:
    return f"{len(cases)} image{'' if len(cases) == 1 else 's'}"
