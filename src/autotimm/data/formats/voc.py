"""PASCAL VOC: an XML file with the boxes of each image."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from autotimm.data.formats.box_csv import BoxCsv
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, by_split, listed, read_lists
from autotimm.data.formats.listing import Listing, relative, split_of
from autotimm.data.formats.object_records import ImageRecord, ObjectRecord, object_tables
from autotimm.data.table import Table
from autotimm.errors import DataError

__all__ = ["Voc", "read_voc"]

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_MASK_FOLDERS = ("segmentationclass", "segmentationobject")

_DOUBT = "were they drawn on images of another size?"


class Voc(Format):
    """One XML file per image, in ``Annotations/`` or beside the images.

    The split comes from ``ImageSets/Main/*.txt``, or from folders named train, val (valid) and test. An image is found
    by the stem of its XML file; ``<filename>``, ``<folder>`` and ``<path>`` often belong to another computer, and are
    used only where the stem fails. Classes are sorted by name.

    VOC counts pixels from 1 and includes the last one; our boxes count from 0 and end outside: (x1 - 1, y1 - 1, x2,
    y2). A box whose ends are equal is an annotation error and left out. ``difficult`` objects become crowds.

    See:
        Everingham et al., "The PASCAL Visual Object Classes Challenge 2012 development kit", section 8.
    """

    name = "voc"
    tasks = ("detection",)
    covers = (BoxCsv,)  # a table of boxes beside XML files is usually made from them

    def see(self, listing: Listing) -> Sighting | None:
        """XML files that annotate an image."""
        files = _voc_files(listing) if listing.file is None else []
        return Sighting(f"{len(files)} VOC files with boxes", self.tasks) if files else None

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, Table]:
        """Read the files; see the base class."""
        if options.masks:
            raise DataError(
                f"{listing.path} has VOC annotations, which are boxes without outlines. Use task='detection'."
            )
        root, report = listing.root, Report(options.strict)
        files = _voc_files(listing)
        if not files:
            raise DataError(f"There is no VOC annotation in {listing.path}. Give a folder with an XML file per image.")
        # The masks of VOC's other tasks have the names of their images.
        images = [image for image in listing.images_below() if not any(map(_is_of_masks, Path(image.name).parts[:-1]))]
        finder = _ImageFinder([image.path for image in images], root)
        records = [record for path in files if (record := _record(path, root, finder, report)) is not None]
        for image in images:
            if image.path not in finder.used:
                report.add("images without an XML file", "left out", image.name)
        names = sorted({record.label for image in records for record in image.objects}, key=str.encode)
        lists = read_lists(root / "ImageSets" / "Main")
        if lists:
            splits = listed({record.id: record for record in records}, lists, notices, report)
        else:
            splits = by_split((str(PurePosixPath(record.id).parent), record) for record in records)
        return object_tables(splits, names, notices, report=report, doubt=_DOUBT)


def read_voc(folder: Path, notices: list[str], *, masks: bool = False, strict: bool = False) -> dict[str, Table]:
    """Read VOC annotations, see :class:`Voc`.

    Args:
        folder: The folder.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Refused: VOC's boxes come without outlines.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table per split.

    Raises:
        DataError: If the data cannot be used.
    """
    return Voc().read(Listing(folder), notices, ReadOptions(masks, strict))


def _voc_files(listing: Listing) -> list[Path]:
    return [path for path in listing.files_below((".xml",)) if b"<annotation" in _head(path)]


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(2048)
    except OSError:
        return b""


def _is_of_masks(folder: str) -> bool:
    return folder.lower().startswith(_MASK_FOLDERS)


class _ImageFinder:
    """Finds the image of an XML file by its stem: the nearest if several folders have one, none of another split.

    Attributes:
        used: The images that were found.
    """

    def __init__(self, images: Sequence[Path], root: Path) -> None:
        self.root = root
        self.used: set[Path] = set()
        self._by_stem: dict[str, list[Path]] = {}
        for path in images:
            self._by_stem.setdefault(path.stem, []).append(path)

    def find(self, annotation: Path, filename: str) -> Path | None:
        """The image, or ``None``."""
        stem = PurePosixPath(filename.replace("\\", "/")).stem
        images = self._candidates(annotation.stem, annotation) or self._candidates(stem, annotation)
        image = max(images, key=lambda path: self._nearness(path, annotation), default=None)
        self.used |= {image} if image else set()
        return image

    def _candidates(self, stem: str, annotation: Path) -> list[Path]:
        """Images of a stem without those of another split: numbered frames have the same names in each."""
        split = self._split(annotation)
        return [image for image in self._by_stem.get(stem, []) if not split or self._split(image) in (None, split)]

    def _split(self, path: Path) -> str | None:
        return split_of(relative(path.parent, self.root))

    def _nearness(self, image: Path, annotation: Path) -> tuple[bool, bool, int]:
        common = os.path.commonpath([image.parent, annotation.parent])
        return image.parent == annotation.parent, self._split(image) == self._split(annotation), len(common)


def _record(path: Path, root: Path, finder: _ImageFinder, report: Report) -> ImageRecord | None:
    name = relative(path, root)
    try:
        tree = ElementTree.parse(path).getroot()
        objects = [_object(element) for element in tree.iter("object")]
        width, height = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        report.add("XML files that cannot be read", "left out with their images", f"{name} ({error})")
        finder.find(path, "")  # so that its image is not reported as one without an XML file
        return None
    image = finder.find(path, tree.findtext("filename") or "")
    if image is None:
        report.add("XML files without an image", "left out", name)
        return None
    size = (width, height) if width > 0 and height > 0 else None  # some tools write zeros
    return ImageRecord(image, relative(image, root), objects, size)


def _object(element: ElementTree.Element) -> ObjectRecord:
    # Only the box of the object itself: people in VOC have heads and hands with boxes of their own.
    x1, y1, x2, y2 = (float(element.findtext(f"bndbox/{side}") or "nothing") for side in _SIDES)
    label = (element.findtext("name") or "").strip()
    if not label:
        raise ValueError("an object without a name")
    box = (x1 - 1, y1 - 1, x2, y2) if x2 > x1 and y2 > y1 else (x1, y1, x1, y1)
    return ObjectRecord(label, box, crowd=(element.findtext("difficult") or "0").strip() not in ("0", ""))
