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
from autotimm.inspection.data_finding import Case, Finding, counted, finding_of, form

__all__ = ["check_boxes", "check_pixels", "overlapping"]

_SAME = 0.9  # intersection over union of boxes that mark one object
_FAR = 10.0  # times the usual side of a class
_FEWEST = 20  # objects of a class, for a usual side
_MOST_COMPARED = 2000  # objects of an image: pairs grow with their square
_UNKNOWN = 0.5


def check_boxes(tables: Mapping[str, Table]) -> list[Finding]:
    """Find objects that are annotated twice or are far from the usual size of their class, and images without any."""
    return _objects_twice(tables) + _far_sizes(tables) + _without_objects(tables)


def _objects_twice(tables: Mapping[str, Table]) -> list[Finding]:
    """Pairs of boxes that mark one object."""
    names, cases, total = tables["train"].class_names, [], 0
    for split, id, objects in _all_objects(tables):
        if not (pairs := overlapping(objects)):
            continue
        total += len(pairs)
        first, second = (names[objects.labels[row]] for row in pairs[0])
        note = f"2 × {first}" if first == second else f"{first} and {second}"
        if len(pairs) > 1:
            note = f"{note}, {len(pairs)} pairs"
        cases.append(Case(id, split, note, tuple(sorted({row for pair in pairs for row in pair}))))
    sentence = f"{counted(total, 'pair')} of boxes overlap by 90 % or more, in {counted(len(cases), 'image')}."
    cure = "Remove one of each: an object that is annotated twice is learned and counted twice."
    return finding_of("duplicate_boxes", "warning", sentence, cure, cases, total)


def _far_sizes(tables: Mapping[str, Table]) -> list[Finding]:
    """Objects that are many times as long as the median of their class, or as short."""
    names, usual = tables["train"].class_names, _usual_sides(tables)
    cases, total = [], 0
    for split, id, objects in _all_objects(tables):
        labels, sides = objects.labels, _sides(objects)
        with np.errstate(divide="ignore"):
            ratio = sides / usual[labels]
        far = np.flatnonzero(((ratio > _FAR) | (ratio < 1 / _FAR)) & ~objects.crowd).tolist()
        if not far:
            continue
        total += len(far)
        label, side = labels[far[0]], sides[far[0]]
        cases.append(Case(id, split, f"{names[label]}: {side:.0f} px, usual {usual[label]:.0f}", tuple(far)))
    sentence = (
        f"{counted(total, 'object')} {form(total, 'is', 'are')} more than 10 times as long as the median of the class, "
        f"or as short, in {counted(len(cases), 'image')}."
    )
    cure = "Look for boxes around a whole group, and for slips of the mouse."
    return finding_of("far_sizes", "note", sentence, cure, cases, total)


def _without_objects(tables: Mapping[str, Table]) -> list[Finding]:
    cases = [Case(id, split) for split, id, objects in _all_objects(tables) if not len(objects.labels)]
    sentence = f"{len(cases)} of {sum(map(len, tables.values())):,} images have no object."
    cure = "They teach what is no object: make sure that nothing was forgotten in them."
    return finding_of("no_objects", "note", sentence, cure, cases)


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
