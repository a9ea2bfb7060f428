"""PASCAL VOC: an XML file with the boxes of each image."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from autotimm.data.formats.box_csv import BoxCsv
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, by_split, listed, read_lists
from autotimm.data.formats.image_finder import is_of_images
from autotimm.data.formats.listing import Listing, near_name, relative, split_of
from autotimm.data.formats.object_records import ImageRecord, ObjectRecord, object_tables
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["Voc", "read_voc"]

_ROOT = re.compile(rb"<annotation[\s>]")  # CVAT's files begin with <annotations>
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_MASK_FOLDERS = ("segmentationclass", "segmentationobject")


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
        # The masks of VOC's other tasks have the names of their images.
        images = [image for image in listing.images_below() if not any(map(_is_of_masks, Path(image.name).parts[:-1]))]
        annotations = [_parsed(path, relative(path, root), report) for path in files]
        found, seen = _ImageFinder([image.path for image in images], root, report).find_all(annotations)
        records = [
            ImageRecord(found[one.path], relative(found[one.path], root), one.objects, one.size)
            for one in annotations
            if one.objects is not None and one.path in found
        ]
        for image in images:
            if image.path not in seen:
                report.add("images without an XML file", "left out", image.name)
        names = sorted({record.label for image in records for record in image.objects}, key=str.encode)
        lists = read_lists(root / "ImageSets" / "Main")
        if lists:
            splits = listed({record.id: record for record in records}, lists, notices, report)
        else:
            splits = by_split((str(PurePosixPath(record.id).parent), record) for record in records)
        return object_tables(splits, names, notices, report=report, corners=True)


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


def _is_of_masks(folder: str) -> bool:
    return folder.lower().startswith(_MASK_FOLDERS)


class _Annotation(NamedTuple):
    """What an XML file says.

    Attributes:
        path: The file.
        objects: The objects; ``None`` if it cannot be read.
        size: Width and height of the image, if it states them.
        filename: The name of the image, as on the computer where it was annotated; may be empty.
        folder: The folder of the image; may be empty.
    """

    path: Path
    objects: Sequence[ObjectRecord] | None
    size: tuple[int, int] | None = None
    filename: str = ""
    folder: str = ""


class _ImageFinder:
    """Finds the images of XML files by their stems: the nearest if several folders have one, none of another split.

    Args:
        images: The images.
        root: The folder of the data.
        report: Receives XML files without an image, with several, or with one of nearly the same name.
    """

    def __init__(self, images: Sequence[Path], root: Path, report: Report) -> None:
        self._root, self._report = root, report
        self._by_name: dict[str, list[Path]] = {}
        for path in images:
            self._by_name.setdefault(near_name(path.stem), []).append(path)

    def find_all(self, annotations: Sequence[_Annotation]) -> tuple[dict[Path, Path], set[Path]]:
        """Find the image of each XML file, and give no image to two of them.

        Returns:
            The images by XML file, and all images that an XML file may mean.
        """
        candidates = {annotation.path: self._find(annotation) for annotation in annotations}
        owners: dict[Path, dict[Path, int]] = {}
        for annotation in annotations:
            for image in candidates[annotation.path] if len(candidates[annotation.path]) == 1 else ():
                owners.setdefault(image, {})[annotation.path] = _likeness(annotation, image)
        found: dict[Path, Path] = {}
        for image, paths in owners.items():
            best = max(paths.values())
            nearest = self._nearest([path for path, likeness in paths.items() if likeness == best], image)
            for path in paths:
                if nearest == [path]:
                    found[path] = image
                elif path in nearest:
                    self._add("XML files that share an image", path, "ambiguous and left out")
                else:  # a/1.xml is not for b/1.jpg, which has b/1.xml
                    candidates[path] = []
        for annotation in annotations:
            images = candidates[annotation.path]
            if not images and annotation.objects is not None:
                self._add("XML files without an image", annotation.path)
            elif len(images) > 1:
                problem, places = "XML files of several images", self._places(images)
                self._add(problem, annotation.path, "ambiguous and left out", places)
            elif annotation.path in found and not _likeness(annotation, images[0]):
                problem, places = "XML files that their images write differently", self._places(images)
                self._add(problem, annotation.path, "used all the same", places)
        return found, {image for images in candidates.values() for image in images}

    def _places(self, images: Sequence[Path]) -> str:
        return join_names([relative(image, self._root) for image in images])

    def _add(self, problem: str, path: Path, consequence: str = "left out", places: str = "") -> None:
        name = relative(path, self._root)
        self._report.add(problem, consequence, f"{name} ({places})" if places else name)

    def _find(self, annotation: _Annotation) -> list[Path]:
        """The image; several if nothing says which of them, none if there is none."""
        stems = _stems(annotation)
        exactly = (self._candidates(stem, annotation.path, exactly=True) for stem in stems)
        nearly = (self._candidates(stem, annotation.path, exactly=False) for stem in stems)
        images = next(filter(None, [*exactly, *nearly]), [])
        images = self._nearest(images, annotation.path)
        named = [image for image in images if image.name == annotation.filename] or images
        inside = [image for image in named if image.parent.name == annotation.folder] or named
        return [image for image in inside if is_of_images(image.parent)] or inside

    def _candidates(self, stem: str, annotation: Path, *, exactly: bool) -> list[Path]:
        """Images of a stem without those of another split: numbered frames have the same names in each."""
        split = self._split(annotation)
        images = [image for image in self._by_name.get(near_name(stem), []) if image.stem == stem or not exactly]
        return [image for image in images if not split or self._split(image) in (None, split)]

    def _split(self, path: Path) -> str | None:
        return split_of(relative(path.parent, self._root))

    def _nearest(self, paths: Sequence[Path], other: Path) -> list[Path]:
        """The paths that are nearest to another one; several if nothing says which."""
        nearness = {path: self._nearness(path, other) for path in paths}
        return [path for path in paths if nearness[path] == max(nearness.values())]

    def _nearness(self, first: Path, second: Path) -> tuple[bool, bool, int]:
        common = os.path.commonpath([first.parent, second.parent])
        return first.parent == second.parent, self._split(first) == self._split(second), len(common)


def _stems(annotation: _Annotation) -> tuple[str, str]:
    return annotation.path.stem, PurePosixPath(annotation.filename).stem


def _likeness(annotation: _Annotation, image: Path) -> int:
    """2 if the XML file has the name of the image, 1 if it states that name, otherwise 0."""
    own, stated = _stems(annotation)
    return 2 if image.stem == own else int(image.stem == stated)


def _parsed(path: Path, name: str, report: Report) -> _Annotation:
    """Read an XML file; what cannot be used of it is reported."""
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        report.add("XML files that cannot be read", "left out with their images", f"{name} ({error})")
        return _Annotation(path, None)
    objects = []
    for element in tree.iter("object"):
        try:
            objects.append(_object(element))
        except ValueError as error:
            report.add("objects that cannot be used", "left out", f"{name} ({error})")
    filename = PurePosixPath((tree.findtext("filename") or "").strip().replace("\\", "/")).name
    return _Annotation(path, objects, _size(tree), filename, (tree.findtext("folder") or "").strip())


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
    return ObjectRecord(label, box, crowd=(element.findtext("difficult") or "0").strip() not in ("0", ""))


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
