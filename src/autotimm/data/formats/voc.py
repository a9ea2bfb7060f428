"""PASCAL VOC: an XML file with the boxes of each image."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path, PurePosixPath

from autotimm.data.formats.box_csv import BoxCsv
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, read_lists
from autotimm.data.formats.image_per_file import ImageFile, tables_of_files
from autotimm.data.formats.listing import Listing, relative
from autotimm.data.formats.object_records import ObjectRecord, is_set
from autotimm.data.table import Table
from autotimm.errors import DataError

__all__ = ["Voc", "read_voc"]

_ROOT = re.compile(rb"<annotation[\s>]")  # CVAT's files begin with <annotations>
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class Voc(Format):
    """One XML file per image, in ``Annotations/`` or beside the images.

    The split comes from ``ImageSets/Main/*.txt``, or from folders named train, val (valid) and test. An image is found
    by the stem of its XML file; ``<filename>`` and ``<folder>`` often belong to another computer, and are used only
    where the stem fails or several images have it. Classes are sorted by name.

    VOC counts pixels from 1 and includes the last one; our boxes count from 0 and end outside: (x1 - 1, y1 - 1, x2,
    y2). A box whose ends are equal is an annotation error and left out; ends in another order are sorted. ``difficult``
    objects become crowds.

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
        annotations = [_parsed(path, relative(path, root), report) for path in files]
        lists = read_lists(root / "ImageSets" / "Main")
        return tables_of_files(annotations, listing, notices, report, kind="XML", lists=lists)


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
    return [path for path in listing.files_below((".xml",)) if _ROOT.search(_head(path))]


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(2048)
    except OSError:
        return b""


def _parsed(path: Path, name: str, report: Report) -> ImageFile:
    """Read an XML file; what cannot be used of it is reported."""
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        report.add("XML files that cannot be read", "left out with their images", f"{name} ({error})")
        return ImageFile(path, None)
    objects = []
    for element in tree.iter("object"):
        try:
            objects.append(_object(element))
        except ValueError as error:
            report.add("objects that cannot be used", "left out", f"{name} ({error})")
    filename = PurePosixPath((tree.findtext("filename") or "").strip().replace("\\", "/")).name
    return ImageFile(path, objects, _size(tree), filename, (tree.findtext("folder") or "").strip())


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None  # some tools write zeros


def _object(element: ElementTree.Element) -> ObjectRecord:
    """The object of an element.

    Raises:
        ValueError: If it has no name, or a side of its box is missing or no number, with the reason.
    """
    label = (element.findtext("name") or "").strip()
    if not label:
        raise ValueError("an object without a name")
    # Only the box of the object itself: people in VOC have heads and hands with boxes of their own.
    x1, y1, x2, y2 = (_coordinate(element, side) for side in _SIDES)
    (left, right), (top, bottom) = _ends(x1, x2), _ends(y1, y2)
    box = (left, top, right, bottom)
    return ObjectRecord(label, box, crowd=is_set(element.findtext("difficult")))


def _ends(first: float, last: float) -> tuple[float, float]:
    """Where a side begins and ends, from the numbers of its first and last pixel, which count from 1."""
    if first == last:
        return first, first
    return (first - 1, last) if first < last else (first, last - 1)


def _coordinate(element: ElementTree.Element, side: str) -> float:
    written = (element.findtext(f"bndbox/{side}") or "").strip()
    if not written:
        raise ValueError(f"a box without {side}")
    try:
        return float(written)
    except ValueError:
        raise ValueError(f"{side} is {written!r}, and no number") from None
