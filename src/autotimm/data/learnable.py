"""Whether a network can learn from data at all: classes that have images, and objects that have pixels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.data_facts import original_sizes
from autotimm.data.doubt import Doubt
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names
from autotimm.image_size import ImageSize, height_and_width, written_size

__all__ = ["check_classes", "check_object_sizes"]


def check_classes(train: Table, notices: list[str]) -> None:
    """Refuse data that no model can learn from, and report classes with hardly any image.

    Raises:
        DataError: If there is no image, one class only, or (with one label per image) a class without images.
    """
    counts = dict(zip(train.class_names, train.counts(), strict=True))
    several = train.multi_label or train.kind != "classes"
    if not len(train):
        raise DataError("There is no image to train on. Add readable images.")
    if not several and len(counts) == 1:
        only = next(iter(counts))
        raise DataError(f"There is only one class, {only!r}, and classification needs two. Add a second class.")
    if empty := [name for name, count in counts.items() if not count]:
        if not several:
            raise DataError(
                f"Classes without a readable training image: {join_names(empty)}. Add images or remove the class."
            )
        notices.append(f"Classes that no training image has: {join_names(empty)}.")
    if rare := [name for name, count in counts.items() if count == 1]:
        where = "may be on either side of a split" if several else "stays in training"
        notices.append(f"Classes with a single image, which {where}: {join_names(rare)}.")
    if alike := _alike(train.class_names):
        pairs = [" and ".join(map(repr, names)) for names in alike]
        text = f"Classes whose names differ in case, spaces, dashes or underscores alone: {join_names(pairs)}."
        cure = "Give them one name if they are the same class."
        notices.append(Doubt(text, pairs, check="alike_classes", cure=cure))


def _alike(names: Sequence[str]) -> list[list[str]]:
    """Names that people take for one; single characters may be classes of an alphabet.

    Example:
        >>> _alike(["T-shirt", "hat", "tshirt", "hat ", "A", "a"])
        [['T-shirt', 'tshirt'], ['hat', 'hat ']]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        if len(key := re.sub(r"[\s_-]", "", name).casefold()) > 1:
            groups.setdefault(key, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def check_object_sizes(
    tables: Mapping[str, Table], image_size: ImageSize, notices: list[str], tiled: bool = False
) -> None:
    """Report objects that are too small for the network's input, which no training can find.

    Args:
        tables: Tables by split; those without boxes are skipped.
        image_size: Size in pixels of the network's input, into which each image is fitted.
        notices: Receives the report, one line.
        tiled: Whether images are cut into tiles of that size instead.

    Raises:
        DataError: If no object of the training images is as large as a pixel.
    """
    if tiled:
        place = "in the images themselves: are their boxes in pixels?"
    else:
        place = f"at image_size {written_size(image_size)}: give a larger --image-size, or --tile."
    sides = {
        split: _shorter_sides(table, None if tiled else image_size)
        for split, table in tables.items()
        if isinstance(table, ObjectTable)
    }
    train = sides.get("train", np.zeros(0))
    if len(train) and (train < 1).all():
        raise DataError(f"All {len(train)} objects of the training images are under 1 px {place}")
    total = sum(map(len, sides.values()))
    under_1, under_2 = (sum(int((part < pixels).sum()) for part in sides.values()) for pixels in (1, 2))
    if under_1:
        lost = "They are counted in evaluation, and not learned in training."
        text = f"{under_1} of {total} objects are under 1 px ({under_2} under 2 px) {place} {lost}"
        cure = "Give the network more pixels, or remove boxes that are mistakes."
        notices.append(Doubt(text, check="tiny_boxes", total=under_1, cure=cure))
    elif under_2:
        notices.append(f"{under_2} of {total} objects are under 2 px {place}")


def _shorter_sides(table: ObjectTable, image_size: ImageSize | None) -> NDArray[np.float64]:
    """The shorter side of each object in pixels of the network's input; NaN where its image cannot be read.

    Without a size, the network sees the pixels of the images.
    """
    if image_size is None:
        return table.shorter_sides(np.ones(len(table)))
    height, width = height_and_width(image_size)
    # A letterbox fits an image by the side that must shrink more.
    shrunk = [np.nan if size is None else max(size[0] / height, size[1] / width) for size in original_sizes(table)]
    return table.shorter_sides(np.array(shrunk, np.float64))
