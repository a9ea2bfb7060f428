"""Formats with an annotation file per image: which image belongs to which file, and the tables of all of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from autotimm.data.formats.data_format import Report, by_split, listed
from autotimm.data.formats.image_finder import is_of_images
from autotimm.data.formats.listing import Listing, in_byte_order, near_name, relative, split_of
from autotimm.data.formats.object_records import ImageRecord, ObjectRecord, object_tables
from autotimm.data.table import Table
from autotimm.errors import join_names

__all__ = ["ImageFile", "tables_of_files"]

_FEW = 8  # images of one stem that are compared one by one
_MASK_FOLDERS = ("segmentationclass", "segmentationobject")  # VOC's masks have the names of their images


class ImageFile(NamedTuple):
    """What the annotation file of one image says.

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


def tables_of_files(
    files: Sequence[ImageFile],
    listing: Listing,
    notices: list[str],
    report: Report,
    *,
    kind: str,
    lists: Mapping[str, Sequence[str]],
    masks: bool = False,
) -> dict[str, Table]:
    """Find the images of annotation files and make tables of them; classes are sorted by name.

    Args:
        files: What the files say.
        listing: The data.
        notices: Receives one line for each thing that was left out or looks strange.
        report: What was wrong with the files.
        kind: What a file is called, such as ``XML``.
        lists: Names of images by split; without any, folders named train, val and test say it.
        masks: Whether samples have masks.

    Raises:
        DataError: If the data cannot be used.
    """
    root = listing.base
    images = [image for image in listing.images_below() if not any(map(_is_of_masks, Path(image.name).parts[:-1]))]
    found, seen = _StemFinder([image.path for image in images], root, report, kind).find_all(files)
    records = {
        file.path: ImageRecord(found[file.path], relative(found[file.path], root), file.objects, file.size)
        for file in files
        if file.objects is not None and file.path in found
    }
    for image in images:
        if image.path not in seen:
            report.add(f"images without {'an' if kind == 'XML' else 'a'} {kind} file", "left out", image.name)
    names = in_byte_order({record.label for image in records.values() for record in image.objects})
    if lists:
        splits = listed({record.id: record for record in records.values()}, lists, notices, report)
    else:  # Annotations/val/1.xml may be for JPEGImages/1.jpg: what the image does not say, its file may
        splits = by_split(
            (f"{relative(path.parent, root)}/{PurePosixPath(record.id).parent}", record)
            for path, record in records.items()
        )
    return object_tables(splits, names, notices, masks=masks, report=report, corners=True)


def _is_of_masks(folder: str) -> bool:
    return folder.lower().startswith(_MASK_FOLDERS)


class _StemFinder:
    """Finds the images of files by their stems: the nearest if several folders have one, none of another split.

    Args:
        images: The images.
        root: The folder of the data.
        report: Receives files without an image, with several, or with one of nearly the same name.
        kind: What a file is called.
    """

    def __init__(self, images: Sequence[Path], root: Path, report: Report, kind: str) -> None:
        self._root, self._report, self._kind = root, report, kind
        self._splits: dict[Path, str | None] = {}
        self._by_folder: dict[str, dict[Path, list[Path]]] = {}
        self._by_name: dict[str, list[Path]] = {}
        for path in images:
            self._by_name.setdefault(near_name(path.stem), []).append(path)

    def find_all(self, annotations: Sequence[ImageFile]) -> tuple[dict[Path, Path], set[Path]]:
        """Find the image of each file, and give no image to two of them.

        Returns:
            The images by annotation file, and all images that one may mean.
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
                    self._add(f"{self._kind} files that share an image", path, "ambiguous and left out")
                else:  # a/1.xml is not for b/1.jpg, which has b/1.xml
                    candidates[path] = []
        for annotation in annotations:
            images = candidates[annotation.path]
            if not images and annotation.objects is not None:
                self._add(f"{self._kind} files without an image", annotation.path)
            elif len(images) > 1:
                problem, places = f"{self._kind} files of several images", self._places(images)
                self._add(problem, annotation.path, "ambiguous and left out", places)
            elif annotation.path in found and not _likeness(annotation, images[0]):
                problem, places = f"{self._kind} files that their images write differently", self._places(images)
                self._add(problem, annotation.path, "used all the same", places)
        return found, {image for images in candidates.values() for image in images}

    def _places(self, images: Sequence[Path]) -> str:
        return join_names([relative(image, self._root) for image in images])

    def _add(self, problem: str, path: Path, consequence: str = "left out", places: str = "") -> None:
        name = relative(path, self._root)
        self._report.add(problem, consequence, f"{name} ({places})" if places else name)

    def _find(self, annotation: ImageFile) -> list[Path]:
        """The image; several if nothing says which of them, none if there is none."""
        ways = itertools.product((True, False), _stems(annotation))
        groups = (self._nearest_of(stem, annotation.path, exactly=exactly) for exactly, stem in ways)
        images = next(filter(None, groups), [])
        named = [image for image in images if image.name == annotation.filename] or images
        inside = [image for image in named if image.parent.name == annotation.folder] or named
        return [image for image in inside if is_of_images(image.parent)] or inside

    def _nearest_of(self, stem: str, annotation: Path, *, exactly: bool) -> list[Path]:
        """The nearest images of a stem, without those of another split: numbered frames have the same names in each."""
        split, name = self._split(annotation), near_name(stem)

        def fits(image: Path) -> bool:
            return (image.stem == stem or not exactly) and (not split or self._split(image) in (None, split))

        if len(self._by_name.get(name, ())) <= _FEW:
            return self._nearest(list(filter(fits, self._by_name.get(name, ()))), annotation)
        # A folder for each image, as scene_7/frame.png: comparing all with all would take hours.
        others: list[Path] = []
        for folder in annotation.parents:
            images = list(filter(fits, self._below(name).get(folder, ())))
            beside = [image for image in images if image.parent == annotation.parent]
            if nearest := beside or [image for image in images if self._split(image) == split]:
                return nearest
            others = others or images
        return others

    def _below(self, name: str) -> Mapping[Path, Sequence[Path]]:
        """The images of a name below each folder."""
        if name not in self._by_folder:
            folders = self._by_folder.setdefault(name, {})
            for image in self._by_name[name]:
                for folder in image.parents:
                    folders.setdefault(folder, []).append(image)
        return self._by_folder[name]

    def _split(self, path: Path) -> str | None:
        if path.parent not in self._splits:
            self._splits[path.parent] = split_of(relative(path.parent, self._root))
        return self._splits[path.parent]

    def _nearest(self, paths: Sequence[Path], other: Path) -> list[Path]:
        """The paths that are nearest to another one; several if nothing says which."""
        nearness = {path: self._nearness(path, other) for path in paths}
        best = max(nearness.values(), default=None)
        return [path for path in paths if nearness[path] == best]

    def _nearness(self, first: Path, second: Path) -> tuple[bool, bool, int]:
        common = os.path.commonpath([first.parent, second.parent])
        return first.parent == second.parent, self._split(first) == self._split(second), len(common)


def _stems(annotation: ImageFile) -> tuple[str, str]:
    return annotation.path.stem, PurePosixPath(annotation.filename).stem


def _likeness(annotation: ImageFile, image: Path) -> int:
    """2 if the annotation file has the name of the image, 1 if it states that name, otherwise 0."""
    own, stated = _stems(annotation)
    return 2 if image.stem == own else int(image.stem == stated)
