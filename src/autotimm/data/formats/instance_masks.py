"""Instances as one picture per object, bright where it is."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from autotimm.data.annotations.outlines import MaskFile
from autotimm.data.file_facts import Problem, image_sizes, object_bounds
from autotimm.data.formats.listing import Found
from autotimm.data.formats.object_records import Record, Report, Thing, object_tables
from autotimm.data.formats.split_layout import by_split, descend, images_below, listed, read_lists, relative
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["InstanceFolders", "find_instances", "read_instance_masks"]

_IMAGE_FOLDERS = ("images", "image", "imgs", "img")
_MASK_FOLDERS = ("masks", "mask", "instances", "objects")
_NAMELESS = ("", "mask", "object", "obj", "instance", "inst", "seg", "label", "id", "m")
_CLASS = re.compile(r"([^\W\d_]+(?:[ _-][^\W\d_]+)*)?[ _-]*\d*")

Place = tuple[str, ...]


class InstanceFolders(NamedTuple):
    """What was found.

    Attributes:
        masks: The masks of each image, in byte order of both.
        alone: Masks without an image.
    """

    masks: dict[Path, list[Path]]
    alone: list[Path]


def find_instances(root: Path, files: Sequence[Found] | None = None) -> InstanceFolders | None:
    """Find images with several masks each.

    Either ``images/X.jpg`` with ``masks/X/*.png`` (or ``masks/X_1.png``, ``masks/X_2.png``), or a folder for each image
    as in the Data Science Bowl of 2018: ``X/images/X.png`` with ``X/masks/*.png``.

    Args:
        root: The folder.
        files: The images below it, if they were listed already.

    Returns:
        ``None`` if it is otherwise; also if no image has two masks, for then they may be of classes.
    """
    masks: list[tuple[Place, Found]] = []
    images: dict[Place, Path] = {}
    inside: dict[Place, list[Path]] = {}
    for one in images_below(root) if files is None else files:
        folder, _, name = one.name.rpartition("/")
        if (place := _place(folder, _MASK_FOLDERS)) is not None:
            masks.append((place, one))
        elif (place := _place(folder, _IMAGE_FOLDERS)) is not None:
            images[(*place, os.path.splitext(name)[0])] = one.path
            inside.setdefault(place, []).append(one.path)
    if 2 * sum((*place, mask.path.stem) in images for place, mask in masks) >= len(images):
        return None  # masks are called like their images: 1.png, 1_2.png are no objects of 1.png
    found: dict[Path, list[Path]] = {image: [] for image in images.values()}
    alone = []
    for place, mask in masks:
        image = _owner(place, mask.path.stem, images, inside)
        if image is None:
            alone.append(mask.path)
        else:
            found[image].append(mask.path)
    if not any(len(owned) > 1 for owned in found.values()) or len(alone) > len(masks) - len(alone):
        return None
    return InstanceFolders(found, alone)


@functools.lru_cache(maxsize=1024)
def _place(folder: str, names: Sequence[str]) -> Place | None:
    """The parts of a folder without the last one that has such a name; ``None`` if none has."""
    parts = tuple(folder.split("/"))
    at = next((index for index in reversed(range(len(parts))) if parts[index].lower() in names), None)
    return None if at is None else parts[:at] + parts[at + 1 :]


def _owner(
    place: Place, stem: str, images: Mapping[Place, Path], inside: Mapping[Place, Sequence[Path]]
) -> Path | None:
    if place in images:  # masks/X/1.png
        return images[place]
    if place and len(inside.get(place, ())) == 1:  # X/masks/1.png with one image in X/images/
        return inside[place][0]
    # masks/X_1.png: the longest beginning that is an image's name
    ends = [match.start() for match in re.finditer(r"[-_ .]", stem)]
    return next((images[(*place, stem[:end])] for end in reversed(ends) if (*place, stem[:end]) in images), None)


def read_instance_masks(
    folder: Path, notices: list[str], *, masks: bool = True, strict: bool = False
) -> dict[str, Table]:
    """Read one picture per object: see :func:`find_instances`.

    Boxes are read off the masks. Where all masks are named after words, as ``cat_1.png`` and ``dog.png``, these are the
    classes; otherwise there is one class, ``object``. The split comes from ``train.txt`` and ``val.txt``, or from names
    of folders. An image without masks has no objects.

    Args:
        folder: The folder.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Whether samples have masks; boxes alone otherwise.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table for each split that there is.

    Raises:
        DataError: If the data cannot be used.
    """
    root, report = descend(folder), Report(strict)
    found = find_instances(root)
    if found is None:
        raise DataError(f"There is no folder with a mask per object in {folder}. Write masks/X/1.png for images/X.jpg.")
    for path in found.alone:
        report.add("masks without an image", "left out", relative(path, root))
    labels = _labels(found)
    bounds = object_bounds([mask for owned in found.masks.values() for mask in owned])
    sizes = image_sizes(list(found.masks))
    records = {}
    for image, owned in found.masks.items():
        things = []
        for mask in owned:
            outline = _outline(mask, relative(mask, root), bounds[mask], sizes.get(image), report)
            if outline is not None:
                things.append(Thing(labels[mask], None, outline=outline))
        records[relative(image, root)] = Record(image, relative(image, root), things)
    names = sorted(set(labels.values()), key=str.encode)
    notices.append(f"Classes by the names of the masks: {join_names(names)}.")
    lists = read_lists(root)
    splits = (
        listed(records, lists, notices, report)
        if lists
        else by_split((os.path.dirname(key), one) for key, one in records.items())
    )
    return object_tables(splits, names, notices, masks=masks, report=report)


def _labels(found: InstanceFolders) -> dict[Path, str]:
    """The class of each mask by its name, if all names are words and numbers."""
    labels: dict[Path, str] = {}
    for image, owned in found.masks.items():
        for mask in owned:
            name = re.fullmatch(_CLASS, mask.stem.removeprefix(image.stem).lstrip("-_ ."))
            if name is None:
                return {mask: "object" for owned in found.masks.values() for mask in owned}
            said = name[1] or ""
            labels[mask] = "object" if said.lower() in _NAMELESS else said
    return labels


def _outline(
    path: Path, name: str, bounds: tuple[int, ...] | Problem, size: tuple[int, int] | None, report: Report
) -> MaskFile | None:
    if isinstance(bounds, Problem):
        report.add("masks that cannot be read", "left out", f"{name} ({bounds.reason})")
        return None
    width, height, x1, y1, x2, y2 = bounds
    if size is not None and size != (width, height):
        report.add("masks of another size than their image", "left out", f"{name} ({width}x{height})")
        return None
    if not x2 > x1:
        report.add("masks that show nothing", "left out", name)
        return None
    return MaskFile(str(path), (x1, y1, x2, y2))
