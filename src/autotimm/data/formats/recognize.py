"""The data formats, which of them a folder holds, and reading it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.constants import TASKS
from autotimm.data.formats.box_csv import BoxCsv
from autotimm.data.formats.cityscapes import Cityscapes
from autotimm.data.formats.class_csv import ClassCsv
from autotimm.data.formats.class_folders import ClassFolders, read_folder
from autotimm.data.formats.coco import Coco
from autotimm.data.formats.cvat import Cvat
from autotimm.data.formats.data_format import Format, ReadOptions, Sighting
from autotimm.data.formats.instance_ids import InstanceIds
from autotimm.data.formats.instance_masks import InstanceMasks
from autotimm.data.formats.label_images import LabelImages
from autotimm.data.formats.labelme import LabelMe
from autotimm.data.formats.listing import Listing, extensions, text
from autotimm.data.formats.mask_pairs import is_mask_folder
from autotimm.data.formats.metadata_jsonl import MetadataLabels, MetadataObjects
from autotimm.data.formats.other_formats import name_other_format
from autotimm.data.formats.packed_sets import PACKED, packed_format
from autotimm.data.formats.voc import Voc
from autotimm.data.formats.yolo import Yolo
from autotimm.data.table import ImageTable, Table
from autotimm.errors import DataError, join_names, require_choice
from autotimm.records.imports import Kind, import_named

__all__ = ["FORMATS", "Recognized", "format_names", "read_classes", "read_spatial", "recognize", "recognize_listing"]

FORMATS: tuple[Format, ...] = (
    Coco(),
    Voc(),
    Yolo(),
    BoxCsv(),
    LabelMe(),
    Cvat(),
    MetadataObjects(),
    InstanceMasks(),
    InstanceIds(),
    LabelImages(),
    Cityscapes(),
    ClassFolders(),
    MetadataLabels(),
    ClassCsv(),
    *PACKED,
)
"""Every format that is recognized, and that ``--format`` can name."""

READER = Kind("`format`", "a function that reads a folder", None, function=lambda function: True)
_TASK_OF_KIND = {"boxes": "detection", "instances": "instance", "pixels": "segmentation"}
_TASK_WORDS = {
    "classification": "classification",
    "detection": "object detection",
    "instance": "instance segmentation",
    "segmentation": "semantic segmentation",
}


class Recognized(NamedTuple):
    """The task and the format of data.

    Attributes:
        task: ``classification``, ``detection``, ``instance`` or ``segmentation``.
        format: The name of one of :data:`FORMATS`.
        sentence: What was seen, and what else could be asked for, for people.
        listing: The listing that shows it, for reading the data without listing the folder again.
    """

    task: str
    format: str
    sentence: str
    listing: Listing


class _Offer(NamedTuple):
    """A format with what it sees."""

    format: Format
    sighting: Sighting


def format_names(task: str) -> tuple[str, ...]:
    """The names that ``--format`` accepts for a task.

    Example:
        >>> format_names("instance")
        ('coco', 'yolo', 'labelme', 'cvat', 'masks', 'ids', 'lance', 'litdata')
    """
    return tuple(format.name for format in FORMATS if task in format.tasks)


def recognize(path: str | Path, task: str | None = None) -> Recognized:
    """Detect the task and the format of data from the contents of a folder.

    COCO, YOLO, labelme and CVAT with outlines are for instance segmentation, with boxes alone for detection, like VOC
    and tables of boxes; images with a mask each for semantic segmentation, with a mask per object or one whose values
    behave like ids of objects for instance segmentation. Folders of images without annotations are classes, but never
    those called masks, labels or annotations. Where VOC files and a table of boxes are found, VOC is read, since the
    table is usually made from them.

    Args:
        path: A folder, a JSON, XML, YAML, CSV, JSONL or parquet file.
        task: What the data shall be used for, where several tasks are possible.

    Raises:
        DataError: If nothing is recognized, or several formats are; it says what to give.
        UsageError: If there is no such task.
    """
    return recognize_listing(Listing(path), task)


def recognize_listing(listing: Listing, task: str | None = None) -> Recognized:
    """As :func:`recognize`, from a listing."""
    if task is not None:
        require_choice("task", "recognize", task, TASKS)
    if listing.file is not None:
        return _recognize_file(listing, task)
    if packed := packed_format(listing, task):
        return _choose(listing, _offers(listing, [packed], task), task, "")
    return _recognize_folder(listing, task)


def _recognize_file(listing: Listing, task: str | None) -> Recognized:
    offers = _offers(listing, FORMATS, task)
    # Any table has labels, so that files of annotation tools are named before one is read as labels alone.
    only_labels = all("classification" in offer.sighting.tasks for offer in offers)
    if only_labels and (other := name_other_format(listing)):
        raise DataError(other)
    if not offers:
        raise DataError(
            f"{listing.path} is not data of a known format. Give a folder, a COCO file (.json), a CVAT file "
            "(.xml), a YOLO file (.yaml), a table (.csv) or a parquet file."
        )
    if missing := _first_missing(offers):
        raise DataError(f"{listing.path} cannot be read. {missing}")
    return _choose(listing, offers, task, "")


def _recognize_folder(listing: Listing, task: str | None) -> Recognized:
    listing.images_below()  # an error of listing comes before what formats say
    offers = _offers(listing, [format for format in FORMATS if _may_be_for(format, task)], task)
    hints = [format.hint(listing) for format in FORMATS]
    hints += [offer.sighting.hint for offer in offers if task is None]
    hint = "".join(f" {sentence}" for sentence in hints if sentence)
    complete = [offer for offer in offers if not offer.sighting.missing]
    certain = [offer for offer in complete if offer.sighting.certain]
    if not certain:
        missing = _first_missing(offers)
        if task != "classification":
            missing = missing or name_other_format(listing)
        if missing:
            cure = "For class folders give task='classification'."
            raise DataError(f"{listing.path} is not recognized. {missing} {cure}")
    if not complete and task in (None, "classification"):
        raise DataError(
            f"{listing.path} is not recognized. {_images_seen(listing)}.{hint} Make a folder per class, or add "
            "annotations: COCO, VOC, YOLO, labelme, CVAT, a table of boxes, or masks."
        )
    certain_for_task = [offer for offer in certain if task is None or task in offer.sighting.tasks]
    guessed_for_task = [offer for offer in complete if task is not None and task in offer.sighting.tasks]
    # What does not fit the task is handed on only where nothing fits: the error names what there is.
    return _choose(listing, certain_for_task or guessed_for_task or certain or complete, task, hint)


def _first_missing(offers: Sequence[_Offer]) -> str:
    """What has to be added before data can be read, as the first format says that lacks anything; else empty."""
    return next((offer.sighting.missing for offer in offers if offer.sighting.missing), "")


def _may_be_for(format: Format, task: str | None) -> bool:
    """Whether a format is asked: for another task than classification also the others, to say what there is."""
    return task is None or task in format.tasks or (task != "classification" and "classification" not in format.tasks)


def _offers(listing: Listing, formats: Sequence[Format], task: str | None) -> list[_Offer]:
    """What the formats see, in their order; those that another one covers are not asked.

    A guess covers nothing, nor does what the task rules out.
    """
    sightings: dict[Format, Sighting] = {}
    covered: set[type[Format]] = set()
    for format in sorted(formats, key=lambda format: not format.covers):  # first those that may cover others
        if type(format) not in covered and (sighting := format.see(listing)) is not None:
            sightings[format] = sighting
            if sighting.certain and (task is None or task in sighting.tasks):
                covered.update(format.covers)
    return [
        _Offer(format, sightings[format]) for format in formats if format in sightings and type(format) not in covered
    ]


def _images_seen(listing: Listing) -> str:
    """What there is in a folder without annotations, to say why it is not recognized."""
    images = listing.images_below()
    parts = {part for image in images for part in image.name.split("/")[:-1]}
    if masks := sorted(filter(is_mask_folder, parts)):
        folders = join_names([f"{name}/" for name in masks])
        return (
            f"There are images, and masks in {folders}, but no mask has the name of an image, as images/1.jpg and "
            "masks/1.png do"
        )
    if images:
        return "There are images, but no class folders or annotations"
    return f"There are no images.{extensions(listing.search_images([listing.base]).others)}".removesuffix(".")


def _choose(listing: Listing, offers: Sequence[_Offer], task: str | None, hint: str) -> Recognized:
    """The format to read, out of those that see something; refuses data without one for the task, or with several."""
    sightings = [offer.sighting for offer in offers]
    fitting = [offer for offer in offers if task is None or task in offer.sighting.tasks]
    if not fitting:
        seen = join_names([sighting.what for sighting in sightings]) or "no annotations"
        raise DataError(
            f"{listing.path} has no data for {_TASK_WORDS[str(task)]}; it has {seen}.{hint} Give another path or task."
        )
    # A format that is made for the task goes before one that can be used for it.
    best = [offer for offer in fitting if task is None or offer.sighting.tasks[0] == task] or fitting
    if len(best) > 1:
        raise _ambiguous(listing, best, task)
    format, sighting = best[0]
    task = task or sighting.tasks[0]
    others = dict.fromkeys(other for sighting in sightings for other in sighting.tasks if other != task)
    also = f" Also possible: {join_names([f'--task {other}' for other in others])}." if others else ""
    name = text(listing.path.resolve().name)
    return Recognized(task, format.name, f"{name} has {sighting.what}: {_TASK_WORDS[task]}.{also}{hint}", listing)


def _ambiguous(listing: Listing, offers: Sequence[_Offer], task: str | None) -> DataError:
    """The error of data that several formats can read: the task chooses one if each is for another task."""
    option, values = "format", [offer.format.name for offer in offers]
    first_tasks = [offer.sighting.tasks[0] for offer in offers]
    if task is None and len(set(first_tasks)) == len(offers):
        option, values = "task", first_tasks
    seen = join_names([offer.sighting.what for offer in offers])
    return DataError(
        f"{listing.path} can be read in several ways: {seen}. Choose one with {option}="
        f"{' or '.join(map(repr, values))}."
    )


def read_classes(
    listing: Listing, notices: list[str], *, strict: bool = False, class_levels: int | None = None
) -> Mapping[str, ImageTable]:
    """Read images with classes: from a file of labels in a folder if there is one, else from class folders.

    Args:
        listing: The folder.
        notices: Receives one line for each thing that was left out or looks strange.
        strict: Refuse what is wrong instead of leaving it out.
        class_levels: See :func:`autotimm.data.formats.class_folders.read_folder`.

    Returns:
        A table per split.

    Raises:
        DataError: If the data cannot be used.
    """
    if packed := packed_format(listing, "classification"):
        tables: Mapping[str, Any] = packed.read(listing, notices, ReadOptions(strict=strict))
        return tables
    labels = MetadataLabels()
    if os.path.exists(listing.path) and labels.see(listing) is not None:
        return labels.read(listing, notices, ReadOptions(strict=strict))
    return read_folder(listing, notices, class_levels)


def read_spatial(
    path: str | Path, format: str, kind: str, notices: list[str], *, strict: bool = False,
    recognized: Recognized | None = None, colors: Mapping[str, Any] | str | Path | None = None,
    group: str | None = None,
) -> Mapping[str, Table]:  # fmt: skip
    """Read data with boxes, outlines or a class per pixel.

    Args:
        path: A folder, or a file that names the rest.
        format: One of :func:`format_names`; ``auto`` recognizes it, and says so in the notices; or the import path of a
            reader of your own, called with the path and the list of notices.
        kind: ``boxes``, ``instances`` or ``pixels``.
        notices: Receives one line for each thing that was left out or looks strange.
        strict: Refuse what is wrong instead of leaving it out.
        recognized: What ``path`` was recognized as before: the folder is not looked at again.
        colors: See :func:`autotimm.data.formats.label_images.read_label_images`.
        group: The column that names groups, of a format with columns; anything else is no matter here.

    Returns:
        A table per split; ``train`` is among them.

    Raises:
        DataError: If the data cannot be used.
        UsageError: If there is no such format.
    """
    path, task = Path(path).expanduser(), _TASK_OF_KIND[kind]
    if not os.path.exists(path):
        raise DataError(f"{path} must be a folder of data. It does not exist. Check the path.")
    if "." in format:
        tables: dict[str, Table] = import_named(format, READER)(path, notices)
        return tables
    listing = Listing(path) if recognized is None else recognized.listing
    if format != "auto" and (packed := packed_format(listing, task)):
        format = packed.name  # whatever the folder was that a run was trained on
    if format == "auto":
        if recognized is None or recognized.task != task:
            recognized = recognize_listing(listing, task)
        notices.append(recognized.sentence)
        format = recognized.format
    require_choice("format", f"data with {kind}", format, format_names(task))
    reader = next(known for known in FORMATS if known.name == format and task in known.tasks)
    return reader.read(
        listing, notices, ReadOptions(masks=kind == "instances", strict=strict, colors=colors, group=group)
    )
