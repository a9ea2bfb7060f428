"""Images that occur more than once: the same bytes, or nearly the same picture.

Near duplicates are found by a difference hash of 64 bits (Krawetz, "Kind of like that", 2013) and confirmed by a
thumbnail. Two hashes that differ in at most four bits agree in one of five parts. So each part is sorted once, and only
neighbors with an equal part are compared: no comparison of all with all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotimm.data.table import Table
from autotimm.inspection.data_finding import MOST_CASES, Case, Finding, Severity, counted, finding_of, form

__all__ = ["check_duplicates", "near_pairs"]

_MOST_BITS = 4  # in which hashes of near duplicates may differ
_PARTS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))  # shift and width in bits
_WINDOW = 256  # neighbors that are compared: a hash that many plain pictures share is no evidence
# Of thumbnails with mean 0 and standard deviation 1, so that a change of brightness or contrast does not count.
_MEAN_GAP = 0.15
_LARGEST_GAP = 1.2  # of a pixel: an object that is there in one only
_COLOR = 0.03  # difference of the share of a channel in the mean color
_PLAIN = 0.1  # contrast below which a hash says nothing

_Place = tuple[str, int]
"""The split of a sample, and its index there."""


def check_duplicates(tables: Mapping[str, Table], looks: Mapping[str, NDArray[Any]]) -> list[Finding]:
    """Find images that repeat another: in another split, with other classes, or beside it in one split."""
    places = [(split, at) for split in tables for at in range(len(tables[split]))]
    rows = np.concatenate([looks[split] for split in tables])
    exact = _groups_of(_equal(rows["digest"]), len(rows))
    first = np.arange(len(rows))
    for group in exact:
        first[group] = group[0]  # one image stands for all with its bytes
    pairs = ((int(first[a]), int(first[b])) for a, b in near_pairs(rows))
    near = _groups_of([pair for pair in pairs if pair[0] != pair[1]], len(rows))
    return _findings("exact", exact, places, tables) + _findings("near", near, places, tables)


def _equal(digests: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Pairs of neighbors among equal digests; an empty one is equal to none."""
    order = np.argsort(digests, kind="stable")
    values = digests[order]
    for at in np.flatnonzero((values[1:] == values[:-1]) & (values[1:] != b"")):
        yield int(order[at]), int(order[at + 1])


def near_pairs(rows: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """The pairs of records of :data:`autotimm.inspection.looks.LOOK` that nearly show the same picture.

    Args:
        rows: The records (N,). Those of plain pictures are left out: they look alike whatever they show.
    """
    usable = np.flatnonzero((rows["contrast"] >= _PLAIN) & (rows["width"] > 0))
    hashes = rows["hash"][usable]
    for shift, width in _PARTS:
        part = (hashes >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        order = np.argsort(part, kind="stable")
        parts, sorted_hashes, numbers = part[order], hashes[order], usable[order]
        for step in range(1, min(_WINDOW, len(order))):
            same = parts[step:] == parts[:-step]
            if not same.any():  # equal parts lie side by side: none are so far apart, nor farther
                break
            near = same & (np.bitwise_count(sorted_hashes[step:] ^ sorted_hashes[:-step]) <= _MOST_BITS)
            yield from _confirmed(rows, numbers[:-step][near], numbers[step:][near])


def _confirmed(rows: NDArray[Any], a: NDArray[np.int64], b: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The pairs whose thumbnails and mean colors agree too."""
    for first in range(0, len(a), 4096):  # bounds the memory
        some, other = a[first : first + 4096], b[first : first + 4096]
        gap = np.abs(_standardized(rows["thumbnail"][some]) - _standardized(rows["thumbnail"][other]))
        color = np.abs(_shares(rows["color"][some]) - _shares(rows["color"][other])).max(1)
        same = (gap.mean(1) <= _MEAN_GAP) & (gap.max(1) <= _LARGEST_GAP) & (color <= _COLOR)
        yield from zip(some[same].tolist(), other[same].tolist(), strict=True)


def _standardized(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Thumbnails (N, P) with mean 0 and standard deviation 1 each."""
    values = thumbnails.astype(np.float32)
    values -= values.mean(1, keepdims=True)
    standardized: NDArray[np.float32] = values / np.maximum(values.std(1, keepdims=True), 1.0)
    return standardized


def _shares(colors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The share of each channel in colors (N, 3)."""
    shares: NDArray[np.float32] = colors / np.maximum(colors.sum(1, keepdims=True, dtype=np.float32), 1.0)
    return shares


def _groups_of(pairs: Iterator[tuple[int, int]] | Sequence[tuple[int, int]], size: int) -> list[list[int]]:
    """The connected groups of pairs, each sorted, in the order of their first members."""
    parent = np.arange(size)

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]  # shortens the way for the next who asks
            at = int(parent[at])
        return at

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for at in np.flatnonzero(parent != np.arange(size)).tolist():
        groups.setdefault(root(at), []).append(at)
    return [sorted([head, *members]) for head, members in sorted(groups.items())]


def _findings(
    kind: str, groups: Sequence[Sequence[int]], places: Sequence[_Place], tables: Mapping[str, Table]
) -> list[Finding]:
    """What the groups of one kind mean: they cross splits, have several labels, or are merely repeated."""
    across, torn, beside = [], [], []
    for group in groups:
        members = [places[at] for at in group]
        splits = {split for split, _ in members}
        labels = {tables[split].labels(at) for split, at in members if tables[split].kind == "classes"}
        if len(splits) > 1:
            across.append(members)
        if len(labels) > 1:
            torn.append(members)
        elif len(splits) == 1:
            beside.append(members)
    what = "the same bytes" if kind == "exact" else "nearly the same picture"

    def subject(groups: Sequence[Any], one: str, several: str) -> str:
        return f"{counted(len(groups), 'group')} of images with {what} {form(len(groups), one, several)}"

    measured = sum(split != "train" for group in across for split, _ in group)
    text = (
        f"{subject(across, 'reaches', 'reach')} across splits: {counted(measured, 'image')} "
        f"{form(measured, 'is', 'are')} in val or test, so that metrics will be optimistic."
    )
    cure = "Keep the images of a group in one split, or remove the copies."
    found = finding_of(f"{kind}_duplicates_across_splits", "warning", text, cure, *_cases(across, tables))
    text = f"{subject(torn, 'has', 'have')} different classes."
    cure = "Correct the classes, or remove the copies." if kind == "exact" else "Look which class is right."
    severity: Severity = "warning" if kind == "exact" else "note"
    found += finding_of(f"{kind}_duplicates_of_different_classes", severity, text, cure, *_cases(torn, tables))
    text = f"{subject(beside, 'lies', 'lie')} within one split."
    cure = "Keep one of each, unless it should count more."
    return found + finding_of(f"{kind}_duplicates", "note", text, cure, *_cases(beside, tables))


def _cases(groups: Sequence[Sequence[_Place]], tables: Mapping[str, Table]) -> tuple[list[Case], int]:
    """The first groups as cases, and the number of all groups."""
    cases: list[Case] = []
    for number, group in enumerate(groups, 1):
        if len(cases) >= MOST_CASES:
            break
        # One of each split first: that is what the finding is about, where it is about splits.
        heads = [*{split: (split, at) for split, at in reversed(group)}.values()][::-1]
        for split, at in [*heads, *(place for place in group if place not in heads)][:MOST_CASES]:
            label = ", ".join(tables[split].labels(at)) if tables[split].kind == "classes" else ""
            cases.append(Case(tables[split].ids[at], split, f"group {number}{': ' if label else ''}{label}"))
    return cases, len(groups)
