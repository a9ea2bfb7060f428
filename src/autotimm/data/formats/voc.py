"""PASCAL VOC: an XML file of boxes per image."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from autotimm.data.formats.object_records import Record, Report, Thing, object_tables
from autotimm.data.formats.split_layout import (
    by_split,
    descend,
    files_below,
    images_below,
    listed,
    read_lists,
    relative,
    split_of,
)
from autotimm.data.table import Table
from autotimm.errors import DataError

__all__ = ["read_voc", "voc_files"]

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def voc_files(root: Path) -> list[Path]:
    """The XML files below a folder that annotate an image."""
    return [path for path in files_below(root, (".xml",)) if b"<annotation" in _head(path)]


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(2048)
    except OSError:
        return b""


def read_voc(folder: Path, notices: list[str], *, masks: bool = False, strict: bool = False) -> dict[str, Table]:
    """Read VOC annotations: one XML file per image, in ``Annotations/`` or beside the images.

    The split comes from ``ImageSets/Main/*.txt``, or from folders named train, val (valid) and test. An image is found
    by the stem of its XML file; what ``<filename>``, ``<folder>`` and ``<path>`` say is often another computer's, and
    is asked only where that fails. Classes are sorted by name.

    VOC counts pixels from 1 and includes the last one; our boxes count from 0 and end outside: (x1 - 1, y1 - 1, x2,
    y2). A box whose ends are equal is a slip of the mouse and left out. ``difficult`` objects become crowds.

    Args:
        folder: The folder.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Refused: VOC's boxes come without outlines.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table for each split that there is.

    Raises:
        DataError: If the data cannot be used.

    See:
        Everingham et al., "The PASCAL Visual Object Classes Challenge 2012 development kit", section 8.
    """
    if masks:
        raise DataError(f"{folder} has VOC annotations, which are boxes without outlines. Use task='detection'.")
    root, report = descend(folder), Report(strict)
    files = voc_files(root)
    if not files:
        raise DataError(f"There is no VOC annotation in {folder}. Give a folder with an XML file per image.")
    # The masks of VOC's other tasks have the names of their images.
    images = [one for one in images_below(root) if not any(map(_is_of_masks, Path(one.name).parts[:-1]))]
    finder = _Finder([one.path for one in images], root)
    records = [one for path in files if (one := _record(path, root, finder, report)) is not None]
    for image in images:
        if image.path not in finder.given:
            report.add("images without an XML file", "left out", image.name)
    names = sorted({thing.label for one in records for thing in one.things}, key=str.encode)
    lists = read_lists(root / "ImageSets" / "Main")
    if lists:
        splits = listed({one.id: one for one in records}, lists, notices, report)
    else:
        splits = by_split((str(PurePosixPath(one.id).parent), one) for one in records)
    return object_tables(splits, names, notices, report=report)


def _is_of_masks(folder: str) -> bool:
    return folder.lower().startswith(("segmentationclass", "segmentationobject"))


class _Finder:
    """Finds the image of an XML file by its stem, the nearest if several folders have one; none of another split.

    Attributes:
        given: The images that were found.
    """

    def __init__(self, images: Sequence[Path], root: Path) -> None:
        self.root = root
        self.given: set[Path] = set()
        self._by_stem: dict[str, list[Path]] = {}
        for path in images:
            self._by_stem.setdefault(path.stem, []).append(path)

    def find(self, annotation: Path, filename: str) -> Path | None:
        """The image, or ``None``."""
        stem = PurePosixPath(filename.replace("\\", "/")).stem
        found = self._allowed(annotation.stem, annotation) or self._allowed(stem, annotation)
        image = max(found, key=lambda path: self._nearness(path, annotation), default=None)
        self.given |= {image} if image else set()
        return image

    def _allowed(self, stem: str, annotation: Path) -> list[Path]:
        """Images of a stem but for those of another split: numbered frames are called alike in each."""
        split = self._split(annotation)
        return [one for one in self._by_stem.get(stem, []) if not split or self._split(one) in (None, split)]

    def _split(self, path: Path) -> str | None:
        return split_of(relative(path.parent, self.root))

    def _nearness(self, image: Path, annotation: Path) -> tuple[bool, bool, int]:
        common = os.path.commonpath([image.parent, annotation.parent])
        return image.parent == annotation.parent, self._split(image) == self._split(annotation), len(common)


def _record(path: Path, root: Path, finder: _Finder, report: Report) -> Record | None:
    name = relative(path, root)
    try:
        tree = ElementTree.parse(path).getroot()
        things = [_thing(one) for one in tree.iter("object")]
        width, height = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        report.add("XML files that cannot be read", "left out with their images", f"{name} ({error})")
        finder.find(path, "")  # which is not without an XML file
        return None
    image = finder.find(path, tree.findtext("filename") or "")
    if image is None:
        report.add("XML files without an image", "left out", name)
        return None
    size = (width, height) if width > 0 and height > 0 else None  # some tools write zeros
    return Record(image, relative(image, root), things, size)


def _thing(one: ElementTree.Element) -> Thing:
    # Only the box of the object itself: people in VOC have heads and hands with boxes of their own.
    x1, y1, x2, y2 = (float(one.findtext(f"bndbox/{side}") or "nothing") for side in _SIDES)
    label = (one.findtext("name") or "").strip()
    if not label:
        raise ValueError("an object without a name")
    box = (x1 - 1, y1 - 1, x2, y2) if x2 > x1 and y2 > y1 else (x1, y1, x1, y1)
    return Thing(label, box, crowd=(one.findtext("difficult") or "0").strip() not in ("0", ""))
