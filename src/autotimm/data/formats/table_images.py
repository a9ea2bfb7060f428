"""The images that a table of labels names: where it says, or found by name below the folder of the images."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from autotimm.data.formats.data_format import Report
from autotimm.data.formats.image_finder import ImageFinder
from autotimm.data.formats.listing import Listing, near_name, relative, split_of
from autotimm.data.image_io import is_image_name

__all__ = ["TableImages"]

_SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class TableImages:
    """Finds images by the cells of a table.

    A cell is a path relative to the folder, or to its ``train/``, ``val/`` or ``test/`` if the files are there. Where
    there is no such file, the cell may be an id without an extension, have backslashes, or be a path of another
    computer: the longest end of it that exists is taken, then the image of that name, if there is only one.

    Args:
        table: The name of the table; one that names a split is of images of that split.
        folder: The folder of the images. Nothing outside of it is found.
        split: The split of the rows.
        names: Their cells.
        report: Receives names that are ambiguous.

    Attributes:
        elsewhere: The cells whose images are not where they say.
    """

    def __init__(self, table: str, folder: Path, split: str, names: Sequence[str], report: Report) -> None:
        self._table, self._folder, self._split, self._names, self._report = table, folder, split, names, report
        folders = [folder, *(folder / name for name in _SPLIT_FOLDERS[split])]
        first = names[0].strip()
        self._base = next((folder for folder in folders if _is_there(folder / first)), folder)
        self._complete: dict[Path, bool] = {}
        self.elsewhere: list[str] = []

    def find(self, name: str) -> Path | None:
        """The image of a cell; where it should be if there is none; ``None`` if it may be one of several."""
        for cell in (name, name.strip()):  # a file name may begin with a space, but rarely does
            path = Path(os.path.abspath(self._base / cell))
            if _is_there(path) or _is_there(self._base / cell):  # a link may make them differ
                return path
        name = name.strip()
        full_name = self._named.get(name, name)
        if full_name is None:
            return None
        found = self._end_of(full_name) or self._finder.find(full_name)
        if found is not None and not re.search(r"[/\\]", full_name) and self._is_ambiguous(found):
            self._report.add("file names that several images have", "ambiguous and left out", name)
            return None
        if found is not None and os.path.isfile(found):
            self.elsewhere.append(name)
        return None if found is None else Path(os.path.abspath(found))

    def _end_of(self, name: str) -> Path | None:
        """The file at the longest end of a path that exists; a name alone is left to the finder."""
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts:
            return None
        ends = ("/".join(parts[start:]) for start in range(len(parts) - 1))
        return next((self._base / end for end in ends if end[0] != "/" and os.path.isfile(self._base / end)), None)

    def _is_ambiguous(self, found: Path) -> bool:
        """Whether another image of its split has its name, and it is not in a folder that has all images of the table.

        The finder takes a folder with most of them for that folder. Among folders of classes, it is one class.
        """
        own = split_of(relative(found, self._folder))
        named = self._images.get(near_name(found.name), ())
        others = [image for image in named if image != found and split_of(relative(image, self._folder)) == own]
        if not others:
            return False
        if found.parent not in self._complete:
            cells = ((self._named.get(cell.strip()) or cell.strip()).replace("\\", "/") for cell in self._names)
            self._complete[found.parent] = all(
                os.path.isfile(found.parent / PurePosixPath(cell).name) for cell in cells
            )
        return not self._complete[found.parent]

    @functools.cached_property
    def _images(self) -> dict[str, list[Path]]:
        """The images by what nearly equal names have in common."""
        images: dict[str, list[Path]] = {}
        for image in self._listing.images_below():
            images.setdefault(near_name(image.path.name), []).append(image.path)
        return images

    @functools.cached_property
    def _listing(self) -> Listing:
        return Listing(self._folder)

    @functools.cached_property
    def _named(self) -> dict[str, str | None]:
        """The cells without an extension, with that of the images of their names; ``None`` if these have several."""
        bare = {name: name.strip() for name in self._names if not is_image_name(name.strip())}
        wanted = {near_name(PurePosixPath(cell.replace("\\", "/")).name) for cell in bare.values()} if bare else set()
        endings: dict[str, set[str]] = {}
        for image in self._listing.images_below() if bare else ():
            stem, suffix = os.path.splitext(image.path.name)
            if (key := near_name(stem)) in wanted:
                endings.setdefault(key, set()).add(suffix)
        named: dict[str, str | None] = {}
        for cell in bare.values():
            found = endings.get(near_name(PurePosixPath(cell.replace("\\", "/")).name), set())
            if found:
                named[cell] = cell + next(iter(found)) if len(found) == 1 else None
            if len(found) > 1:
                self._report.add("ids that several images have", "ambiguous and left out", cell)
        return named

    @functools.cached_property
    def _finder(self) -> ImageFinder:
        names = [self._named.get(name.strip()) or name.strip() for name in self._names]
        table = self._listing.base / self._table  # as if it were there: the images beside it may be others
        return ImageFinder(self._listing, table, self._split, list(dict.fromkeys(names)), self._report)


def _is_there(path: Path) -> bool:
    """Whether there is a file, or a link to none, which is reported when it is read; a folder is no image."""
    return os.path.lexists(path) and not os.path.isdir(path)
