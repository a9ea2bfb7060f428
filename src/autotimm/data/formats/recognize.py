"""What a folder holds: told from the files in it, and said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from autotimm.constants import TASKS
from autotimm.data.formats.box_csv import box_tables, is_box_table, is_label_table
from autotimm.data.formats.cityscapes import is_cityscapes
from autotimm.data.formats.coco import has_outlines, is_coco
from autotimm.data.formats.instance_masks import find_instances
from autotimm.data.formats.listing import Found, text
from autotimm.data.formats.mask_pairs import find_pairs
from autotimm.data.formats.split_layout import descend, files_below, images_below, relative, split_of
from autotimm.data.formats.voc import voc_files
from autotimm.data.formats.yolo import has_polygons, yaml_lacking, yolo_files
from autotimm.errors import DataError, join_names, require_choice

__all__ = ["Recognized", "recognize"]

"""What data can be for."""

_WORDS = {
    "classification": "classification",
    "detection": "object detection",
    "instance": "instance segmentation",
    "segmentation": "semantic segmentation",
}
_SHEETS = (".csv", ".tsv")
_PLACES = ("images", "image", "imgs", "img", "jpegimages")  # where images are put, whatever they show


class Recognized(NamedTuple):
    """What data are for and how they are written.

    Attributes:
        task: ``classification``, ``detection``, ``instance`` or ``segmentation``.
        format: ``folder``, ``csv``, ``coco``, ``voc``, ``yolo``, ``masks`` or ``cityscapes``.
        sentence: What was seen, and what else could be asked for, for people.
    """

    task: str
    format: str
    sentence: str


class _Offer(NamedTuple):
    """A format that a folder can be read in.

    Attributes:
        format: The format.
        tasks: What for, the most that it says first.
        what: What was seen.
    """

    format: str
    tasks: tuple[str, ...]
    what: str


def recognize(path: str | Path, task: str | None = None) -> Recognized:
    """Tell the task and the format of data from what lies there.

    COCO and YOLO with outlines are for instance segmentation, with boxes alone for detection, like VOC and tables of
    boxes; images with a mask each for semantic segmentation, with a mask per object for instance segmentation. Folders
    of images and nothing else are classes. VOC files go before a table of boxes, which is usually made from them.

    Args:
        path: A folder, a JSON, YAML or CSV file.
        task: What the data shall be for, where several tasks are possible.

    Raises:
        DataError: If nothing is recognized, or several things are; it says what to give.
        UsageError: If there is no such task.
    """
    if task is not None:
        require_choice("task", "recognize", task, TASKS)
    path = Path(path)
    if path.is_file():
        return _chosen(path, [_file(path)], task, "")
    root = descend(path)
    images = images_below(root)
    offers = _offers(root, images) if task != "classification" else []
    tables = [one for one in files_below(root, _SHEETS, depth=1) if is_label_table(one)]
    tables.sort(key=lambda one: split_of(one.name) != "train")
    hint = f" For classification give a table of labels, such as {relative(tables[0], root)}." if tables else ""
    if not offers and task != "classification" and (lacking := yaml_lacking(root, images)):
        raise DataError(f"{path} is not recognized. {lacking} For class folders give task='classification'.")
    if task == "classification" or (not offers and task is None):
        return Recognized("classification", "folder", _class_folders(path, images, hint))
    return _chosen(path, offers, task, hint)


def _file(path: Path) -> _Offer:
    ending = path.suffix.lower()
    if ending in _SHEETS:
        boxes = is_box_table(path)
        return _Offer(
            "csv", ("detection",) if boxes else ("classification",), f"a table of {'boxes' if boxes else 'labels'}"
        )
    if ending == ".json" and is_coco(path):
        return _coco([path])
    if ending in (".yaml", ".yml"):
        return _yolo([path])
    raise DataError(
        f"{path} is no data that is known. Give a folder, a COCO file (.json), a YOLO file (.yaml) or a table (.csv)."
    )


def _coco(files: Sequence[Path]) -> _Offer:
    count = f"{len(files)} COCO file{'s' if len(files) > 1 else ''}"
    if any(map(has_outlines, files)):
        return _Offer("coco", ("instance", "detection"), f"{count} with outlines")
    return _Offer("coco", ("detection",), f"{count} with boxes")


def _yolo(files: Sequence[Path]) -> _Offer:
    if has_polygons(files[0]):
        return _Offer("yolo", ("instance", "detection"), f"YOLO labels with polygons ({files[0].name})")
    return _Offer("yolo", ("detection",), f"YOLO labels with boxes ({files[0].name})")


def _offers(root: Path, images: Sequence[Found]) -> list[_Offer]:
    """Everything that a folder can be read as, except classes."""
    offers = []
    if coco := [path for path in files_below(root, (".json",)) if is_coco(path)]:
        offers.append(_coco(coco))
    if yolo := yolo_files(root):
        offers.append(_yolo(yolo))
    if voc := voc_files(root):
        offers.append(_Offer("voc", ("detection",), f"{len(voc)} VOC files with boxes"))
    if (boxes := box_tables(root)) and not voc:
        offers.append(_Offer("csv", ("detection",), f"{len(boxes)} tables of boxes"))
    if is_cityscapes(root):
        return [*offers, _Offer("cityscapes", ("segmentation",), "the folders of Cityscapes")]
    if instances := find_instances(root, images):
        count = sum(map(len, instances.masks.values()))
        offers.append(_Offer("masks", ("instance", "detection"), f"{count} masks of one object each"))
    elif pairs := find_pairs(root, images):
        offers.append(_Offer("masks", ("segmentation",), f"{len(pairs.pairs)} {pairs.layout}"))
    return offers


def _chosen(path: Path, offers: Sequence[_Offer], task: str | None, hint: str) -> Recognized:
    fitting = [one for one in offers if task is None or task in one.tasks]
    if not fitting:
        seen = join_names([one.what for one in offers]) or "nothing that says where objects are"
        raise DataError(f"{path} has no data for {_WORDS[str(task)]}, but {seen}.{hint} Give another path or task.")
    # Of a task that a format is made for before one that it can be used for.
    first = [one for one in fitting if task is None or one.tasks[0] == task] or fitting
    if len(first) > 1:
        by_task = len({one.tasks[0] for one in first}) == len(first) and task is None
        options = [repr(one.tasks[0] if by_task else one.format) for one in first]
        what = "task" if by_task else "format"
        raise DataError(f"{path} can be read in several ways: {join_names([one.what for one in first])}. "
                        f"Say which with {what}={' or '.join(options)}.")  # fmt: skip
    best = first[0]
    task = task or best.tasks[0]
    others = dict.fromkeys(other for one in offers for other in one.tasks if other != task)
    also = f" Also possible: {join_names([f'--task {other}' for other in others])}." if others else ""
    return Recognized(task, best.format, f"{_name(path)} has {best.what}: {_WORDS[task]}.{also}{hint}")


def _class_folders(path: Path, images: Sequence[Found], hint: str) -> str:
    """A sentence on class folders.

    Raises:
        DataError: If there are none.
    """
    folders = {one.name.rpartition("/")[0] for one in images}
    said = [
        [part for part in folder.split("/") if part and split_of(part) is None and part.lower() not in _PLACES]
        for folder in folders
    ]
    classes = {tuple(parts) for parts in said if parts}
    if not classes:
        seen = "There are no images" if not images else "There are images, but nothing says what they show"
        raise DataError(
            f"{path} is not recognized. {seen}.{hint} Make a folder per class, or put annotations there: COCO, VOC, "
            "YOLO, a table of boxes, or masks."
        )
    return f"{_name(path)} has images in {len(classes)} folders and no annotations: classification.{hint}"


def _name(path: Path) -> str:
    return text(path.resolve().name)
