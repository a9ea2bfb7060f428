"""Checks of single images: dark, bright, blurred, empty, of an odd shape or size, turned by an EXIF tag."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotimm.data.table import Table
from autotimm.image_size import ImageSize, height_and_width, written_size
from autotimm.inspection.data_finding import Case, Finding, SizeRange, counted, finding_of, form

__all__ = ["check_exif", "check_looks", "check_sizes", "size_range"]

# Where they are known from elsewhere, limits are those of cleanvision. That of sharpness was set on photographs: sharp
# ones have 0.4 to 2, those blurred until it is seen at 256 pixels (a Gaussian of 2 pixels) below 0.12.
_EMPTY, _DARK, _BRIGHT, _BLURRED = 0.06, 0.32, 0.95, 0.12
_NARROW = 0.35  # shorter side over longer side
_FAR = 5.0  # times the side of the median image
_USUAL = 0.2  # a look that more images have than that is what the data set is like


class _Look(NamedTuple):
    """A check of what an image looks like: its name, what such images are, how many percent show it, what to do."""

    check: str
    what: str
    test: Callable[[NDArray[Any]], NDArray[np.bool_]]
    note: Callable[[NDArray[Any]], str]
    cure: str


_LOOKS = (
    _Look(
        "dark", "dark",
        lambda looks: looks["high"] < _DARK,
        lambda look: f"brightness up to {look['high']:.0%}",
        "Remove those in which people cannot see what the label says.",
    ),
    _Look(
        "bright", "nearly white",
        lambda looks: looks["low"] > _BRIGHT,
        lambda look: f"brightness from {look['low']:.0%}",
        "Remove those in which people cannot see what the label says.",
    ),
    _Look(
        "low_information", "nearly of one color",
        lambda looks: looks["contrast"] < _EMPTY,
        lambda look: f"contrast {look['contrast']:.0%}",
        "Remove those that show nothing.",
    ),
    _Look(
        "blurry", "blurred",
        lambda looks: looks["sharpness"] < _BLURRED,
        lambda look: f"sharpness {look['sharpness']:.2f}",
        "Remove those in which people cannot see what the label says.",
    ),
)  # fmt: skip


def check_looks(tables: Mapping[str, Table], looks: Mapping[str, NDArray[Any]]) -> list[Finding]:
    """Find images that are empty, dark, bright or blurred; one that is several of these counts as the first.

    A look that more than a fifth of all images have is a note: it is what the data are like.
    """
    total, findings = sum(map(len, looks.values())), []
    left = {split: _known(rows) for split, rows in looks.items()}
    for look in _LOOKS:
        cases = []
        for split, rows in looks.items():
            has = left[split] & look.test(rows)
            left[split] &= ~has
            cases += [Case(tables[split].ids[at], split, look.note(rows[at])) for at in np.flatnonzero(has).tolist()]
        many = len(cases) > max(_USUAL * total, 1)
        sentence = (
            f"{len(cases)} of {total:,} {form(total, 'image', 'images')} {form(len(cases), 'is', 'are')} {look.what}."
        )
        cure = "So many are probably as they should be: look at a few." if many else look.cure
        findings += finding_of(look.check, "note" if many else "warning", sentence, cure, cases)
    return findings


def check_sizes(
    tables: Mapping[str, Table], looks: Mapping[str, NDArray[Any]], image_size: ImageSize, kind: str, tiled: bool
) -> list[Finding]:
    """Find images that are much longer than wide, far from the usual size, or small for the network's input."""
    narrow: list[Case] = []
    odd: list[Case] = []
    sides = {split: np.sqrt(rows["width"] * rows["height"].astype(np.float64)) for split, rows in looks.items()}
    known = np.concatenate([sides[split][_known(rows)] for split, rows in looks.items()])
    if not len(known):
        return []
    median = float(np.median(known))
    for split, rows in looks.items():
        shorter, longer = np.minimum(rows["width"], rows["height"]), np.maximum(rows["width"], rows["height"])
        far = (sides[split] < median / _FAR) | (sides[split] > median * _FAR)
        thin = shorter < _NARROW * longer
        for cases, has in ((narrow, thin), (odd, far & ~thin)):
            cases += [_sized(tables[split], split, rows, at) for at in np.flatnonzero(has & _known(rows)).tolist()]
    many = len(narrow) > max(_USUAL * len(known), 1)
    are = form(len(narrow), "is", "are")
    sentence = f"{counted(len(narrow), 'image')} {are} at least {1 / _NARROW:.1f} times as long as wide."
    lost = (
        "A central crop loses most of such an image" if kind == "classes" else "The network sees them as a thin strip"
    )
    cure = f"{lost}: cut them, or give --image-size HEIGHTxWIDTH in their shape."
    findings = finding_of("odd_aspect_ratio", "note" if many else "warning", sentence, cure, narrow)
    sentence = (
        f"{counted(len(odd), 'image')} {form(len(odd), 'has', 'have')} more than {_FAR:g} times the side of the median "
        "image, or less than a fifth of it."
    )
    cure = "Look for thumbnails, and for scans among photographs."
    findings += finding_of("odd_size", "warning", sentence, cure, odd)
    return findings + ([] if tiled else _small(tables, looks, image_size))


def _small(tables: Mapping[str, Table], looks: Mapping[str, NDArray[Any]], image_size: ImageSize) -> list[Finding]:
    """A note if most images have less than half of the pixels along a side that the network sees."""
    height, width = height_and_width(image_size)
    cases, total = [], 0
    for split, rows in looks.items():
        total += len(rows)
        enlarged = (2 * rows["width"] < width) & (2 * rows["height"] < height) & _known(rows)
        cases += [_sized(tables[split], split, rows, at) for at in np.flatnonzero(enlarged).tolist()]
    if 2 * len(cases) <= total:
        return []
    longest = max(int(max(rows["width"].max(), rows["height"].max())) for rows in looks.values() if len(rows))
    better = 32 * max(1, -(-longest // 32)) if longest < max(height, width) else max(height, width) // 2
    sentence = f"{len(cases):,} of {total:,} images have less than half of the {written_size(image_size)} pixels that "
    sentence += "the network sees along a side: they are enlarged."
    cure = f"Try --image-size {better}, which trains faster."
    return finding_of("small_images", "note", sentence, cure, cases)


def check_exif(
    tables: Mapping[str, Table], looks: Mapping[str, NDArray[Any]], kind: str, ignored: bool
) -> list[Finding]:
    """Note the images that an EXIF tag turns."""
    cases = []
    for split, rows in looks.items():
        turned = _known(rows) & (rows["orientation"] > 1)
        cases += [
            Case(tables[split].ids[at], split, f"orientation {rows[at]['orientation']}")
            for at in np.flatnonzero(turned).tolist()
        ]
    sentence = f"{counted(len(cases), 'image')} {form(len(cases), 'is', 'are')} turned by an EXIF tag"
    sentence += ", which --ignore-exif ignores." if ignored else ", and read upright, as viewers show them."
    if kind == "classes":
        cure = "Whatever uses the model later must turn them too; `autotimm predict` does."
    elif ignored:
        cure = "Check with --preview that the annotations lie on what they mark."
    else:
        cure = "Check with --preview that annotations lie on what they mark. If they lie beside it, give --ignore-exif."
    return finding_of("exif", "note", sentence, cure, cases)


def size_range(looks: Mapping[str, NDArray[Any]]) -> SizeRange | None:
    """The smallest, the median and the largest size; ``None`` without images."""
    rows = [rows[_known(rows)] for rows in looks.values()]
    width, height = (np.concatenate([part[side] for part in rows]).astype(np.int64) for side in ("width", "height"))
    if not len(width):
        return None
    order = np.argsort(width * height, kind="stable")
    smallest, median, largest = ((int(width[at]), int(height[at])) for at in order[[0, len(order) // 2, -1]])
    return SizeRange(smallest, median, largest)


def _known(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Which images could be read: the others have a size of 0."""
    known: NDArray[np.bool_] = rows["width"] > 0
    return known


def _sized(table: Table, split: str, rows: NDArray[Any], at: int) -> Case:
    return Case(table.ids[at], split, f"{rows[at]['width']} × {rows[at]['height']}")
