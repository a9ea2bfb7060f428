"""Instances as one picture per object, bright where the object is."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from autotimm.data.annotations.outlines import MaskFile
from autotimm.data.file_facts import Problem, image_sizes, object_bounds
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, by_split, listed, read_lists
from autotimm.data.formats.instance_ids import InstanceIds
from autotimm.data.formats.label_images import LabelImages
from autotimm.data.formats.listing import ListedFile, Listing, in_byte_order, relative, split_of
from autotimm.data.formats.mask_pairs import is_image_folder, is_mask_folder, without_suffix
from autotimm.data.formats.object_records import ImageRecord, ObjectRecord, object_tables
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["InstanceMasks", "read_instance_masks"]

_IMAGE_FOLDERS = ("images", "image", "imgs", "img")
_MASK_FOLDERS = ("masks", "mask", "instances", "objects")
_NAMELESS = ("", "mask", "object", "obj", "instance", "inst", "seg", "label", "id", "m")
_CLASS = re.compile(r"([^\W\d_]+(?:[ _-][^\W\d_]+)*)?[ _-]*\d*")

Place = tuple[str, ...]  # the folders of a file without the one called images or masks


class InstanceMasks(Format):
    """Images with several masks each.

    Either ``images/X.jpg`` with ``masks/X/*.png`` (or ``masks/X_1.png``, ``masks/X_2.png``), or a folder for each image
    as in the Data Science Bowl of 2018: ``X/images/X.png`` with ``X/masks/*.png``; also ``X/image.png`` with
    ``X/masks/``, and ``X.jpg`` with ``X_masks/``. Folders may be called labels, annotations or PedMasks as well.

    Boxes are computed from the masks. Where all masks are named after words, as ``cat_1.png`` and ``dog.png``, these
    are the classes; otherwise there is one class, ``object``. The split comes from ``train.txt`` and ``val.txt``, or
    from names of folders. An image without masks has no objects.
    """

    name = "masks"
    tasks = ("instance", "detection")
    covers = (InstanceIds, LabelImages)

    def see(self, listing: Listing) -> Sighting | None:
        """Images of which at least one has several masks."""
        instances = None if listing.file is not None else _find_instances(listing)
        if instances is None:
            return None
        return Sighting(f"{sum(map(len, instances.masks.values()))} masks of one object each", self.tasks)

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, Table]:
        """Read the masks; see the base class."""
        root, report = listing.root, Report(options.strict)
        instances = _find_instances(listing)
        if instances is None:
            raise DataError(
                f"There is no folder with a mask per object in {listing.path}. Write masks/X/1.png for images/X.jpg."
            )
        for path in instances.alone:
            report.add("masks without an image", "left out", relative(path, root))
        labels = _labels(instances)
        bounds = object_bounds([mask for masks in instances.masks.values() for mask in masks])
        sizes = image_sizes(list(instances.masks))
        records = {}
        for image, masks in instances.masks.items():
            objects = []
            for mask in masks:
                outline = _outline(mask, relative(mask, root), bounds[mask], sizes.get(image), report)
                if outline is not None:
                    objects.append(ObjectRecord(labels[mask], None, outline=outline))
            id = relative(image, root)
            records[id] = ImageRecord(image, id, objects)
        class_names = in_byte_order(set(labels.values()))
        notices.append(f"Classes by the names of the masks: {join_names(class_names)}.")
        lists = read_lists(root)
        splits = (
            listed(records, lists, notices, report)
            if lists
            else by_split((os.path.dirname(id), record) for id, record in records.items())
        )
        return object_tables(splits, class_names, notices, masks=options.masks, report=report)


def read_instance_masks(
    folder: Path, notices: list[str], *, masks: bool = True, strict: bool = False
) -> dict[str, Table]:
    """Read one picture per object, see :class:`InstanceMasks`.

    Args:
        folder: The folder.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Whether samples have masks; boxes alone otherwise.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table per split.

    Raises:
        DataError: If the data cannot be used.
    """
    return InstanceMasks().read(Listing(folder), notices, ReadOptions(masks, strict))


class _Instances(NamedTuple):
    """The masks of each image, in byte order of both, and the masks without an image."""

    masks: dict[Path, list[Path]]
    alone: list[Path]


def _find_instances(listing: Listing) -> _Instances | None:
    """Match masks with images; ``None`` if no image has two masks or a folder of masks: they may be of classes."""
    masks: list[tuple[Place, str, ListedFile]] = []
    images: dict[Place, Path] = {}
    images_in: dict[Place, list[Path]] = {}
    for file in listing.images_below():
        folder, _, name = file.name.rpartition("/")
        if (found := _mask_place(folder)) is not None:
            masks.append((*found, file))
        else:
            place = _place(folder)
            images[(*place, os.path.splitext(name)[0])] = file.path
            images_in.setdefault(place, []).append(file.path)
    stems = [(place, mask.path.stem) for place, _, mask in masks]
    alike = sum((*place, stem) in images or (*place, without_suffix(stem)) in images for place, stem in stems)
    if not masks or 2 * alike >= len(images):
        return None  # masks have the names of their images: 1.png, 1_2.png are not objects of 1.png
    masks_of: dict[Path, list[Path]] = {image: [] for image in images.values()}
    alone, by_folder = [], 0
    for place, beside, mask in masks:
        owner = _owner(place, beside, mask.path.stem, images, images_in)
        if owner is None:
            alone.append(mask.path)
        else:
            masks_of[owner.image].append(mask.path)
            by_folder += owner.by_folder
    several = any(len(owned) > 1 for owned in masks_of.values())
    if not (several or by_folder == len(masks)) or len(alone) > len(masks) - len(alone):
        return None
    return _Instances(masks_of, alone)


@functools.lru_cache(maxsize=1024)
def _place(folder: str) -> Place:
    """The parts of a folder without the last one that is named after images."""
    parts = tuple(folder.split("/")) if folder else ()
    at = next((index for index in reversed(range(len(parts))) if parts[index].lower() in _IMAGE_FOLDERS), None)
    if at is None:
        at = next((index for index in reversed(range(len(parts))) if is_image_folder(parts[index])), None)
    return parts if at is None else parts[:at] + parts[at + 1 :]


@functools.lru_cache(maxsize=1024)
def _mask_place(folder: str) -> tuple[Place, str] | None:
    """The parts of a folder without that of masks, and what this is named after besides; ``None`` without one."""
    parts = tuple(folder.split("/"))
    for index in reversed(range(len(parts))):
        if parts[index].lower() in _MASK_FOLDERS or is_mask_folder(parts[index]):
            beside = without_suffix(parts[index])
            return parts[:index] + parts[index + 1 :], "" if beside == parts[index] else beside
    return None


class _Owner(NamedTuple):
    """The image of a mask, and whether a folder of the mask tells it."""

    image: Path
    by_folder: bool


def _owner(
    place: Place, beside: str, stem: str, images: Mapping[Place, Path], images_in: Mapping[Place, Sequence[Path]]
) -> _Owner | None:
    if place in images:  # masks/X/1.png
        return _Owner(images[place], True)
    if beside and (*place, beside) in images:  # X_masks/1.png beside X.jpg
        return _Owner(images[(*place, beside)], True)
    if place and (*place[:-1], without_suffix(place[-1])) in images:  # masks/X_mask/1.png
        return _Owner(images[(*place[:-1], without_suffix(place[-1]))], True)
    if place and len(images_in.get(place, ())) == 1:  # X/masks/1.png with one image in X/images/ or X/
        return _Owner(images_in[place][0], split_of(place[-1]) is None)
    # masks/X_1.png: the longest prefix that is an image's name
    ends = [match.start() for match in re.finditer(r"[-_ .]", stem)]
    image = next((images[(*place, stem[:end])] for end in reversed(ends) if (*place, stem[:end]) in images), None)
    return None if image is None else _Owner(image, False)


def _labels(instances: _Instances) -> dict[Path, str]:
    """The class of each mask by its name, if all names are words and numbers."""
    labels: dict[Path, str] = {}
    for image, masks in instances.masks.items():
        for mask in masks:
            match = re.fullmatch(_CLASS, mask.stem.removeprefix(image.stem).lstrip("-_ ."))
            if match is None:
                return {mask: "object" for masks in instances.masks.values() for mask in masks}
            word = match[1] or ""
            labels[mask] = "object" if word.lower() in _NAMELESS else word
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
        report.add("empty masks", "left out", name)
        return None
    return MaskFile(str(path), (x1, y1, x2, y2))
