"""Finds the images that an annotation file names: by path, by name alone, or by nearly the same name."""

from __future__ import annotations

import functools
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from autotimm.data.formats.data_format import Report
from autotimm.data.formats.listing import Listing, near_name, relative, split_of, text
from autotimm.data.formats.mask_pairs import is_mask_folder
from autotimm.data.image_io import is_image_name
from autotimm.errors import join_names

__all__ = ["ImageFinder", "Place", "find_by_split", "is_of_images", "note_unlisted"]

_MANY_FOLDERS = 50  # siblings beyond that are classes or cities, not folders of a whole split
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "pngimages", "photos", "pictures", "frames", "rgb")


class ImageFinder:
    """Finds the images that an annotation file names, and never takes one of another split for them.

    Numbered frames have the same names in every split: an image that was deleted from ``train/`` must be missing, not
    be replaced by its namesake in ``val/``. A name without folders that several folders have is ambiguous: whichever
    was taken, it could get the objects of the other. A name without an extension, such as an id of OpenImages, is that
    of an image without its own.

    Args:
        listing: The data; no file outside of its folder is read.
        annotations: The file that names the images. If its path names a split, its images are of that split.
        split: What the file is used for; of folders that match equally well, that of this split is taken.
        names: The file names in it, one per image.
        report: Receives the names that are ambiguous, or are not written like their file.

    Attributes:
        seen: The images that are named, and those that an ambiguous name may mean.
    """

    def __init__(self, listing: Listing, annotations: Path, split: str, names: Sequence[str], report: Report) -> None:
        self._listing, self._root, self._report = listing, listing.base, report
        self._own_split = split_of(relative(annotations, self._root))
        self._folder_splits: dict[Path, set[str]] = {}
        self._extended = self._extend([name for name in names if not is_image_name(name)])
        # How often the file has each path, each last part of a path, and each last part but for its spelling. By its
        # last part alone a path is looked up only where no other path ends alike: cat/1.jpg is not dog/1.jpg.
        self._path_counts = Counter(_safe_path(path) for name in names for path in self._extended.get(name, [name]))
        last_parts = [PurePosixPath(path).name for path in self._path_counts]
        self._last_counts, self._near_counts = Counter(last_parts), Counter(map(near_name, last_parts))
        self._base = self._choose_base(annotations.parent, split)
        self._base_is_beside = self._base == annotations.parent
        self.seen: set[Path] = set()

    def _extend(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Names without an extension with those that images of their name have; several are ambiguous."""
        images: dict[str, list[Path]] = {}
        for image in self._listing.images_below(self._root) if names else ():
            if self._may_hold(image.path.parent, self._own_split):
                images.setdefault(near_name(image.path.stem), []).append(image.path)
        extended = {}
        for name in names:
            last = PurePosixPath(_safe_path(name)).name
            alike = images.get(near_name(last), [])
            # Each wish counts only if an image fulfils it: an exact spelling, then no folder of masks.
            alike = [image for image in alike if image.stem == last] or alike
            alike = [image for image in alike if not self._is_mask(image)] or alike
            if suffixes := dict.fromkeys(image.suffix for image in alike):
                extended[name] = [name + suffix for suffix in suffixes]
        return extended

    def _is_mask(self, image: Path) -> bool:
        return any(map(is_mask_folder, PurePosixPath(relative(image.parent, self._root)).parts))

    def _choose_base(self, beside: Path, split: str) -> Path:
        """The folder that paths are relative to: the one that has most of the first of them."""
        folders = dict.fromkeys([beside, self._root, *_folders_below(self._listing, depth=3)])
        wanted, paths = self._own_split or split, list(itertools.islice(self._path_counts, 20))

        def fitness(folder: Path) -> tuple[bool, int]:
            hits = sum(os.path.isfile(folder / path) for path in paths)
            return hits > 0 and wanted in self._splits_in(folder), hits

        candidates = [folder for folder in folders if self._may_hold(folder, self._own_split)]
        return max(candidates or [self._root], key=fitness)  # of equals the first: beside the file

    def find(self, name: str) -> Path | None:
        """The file of that name; where it should be if there is none; ``None`` if it may be one of several."""
        names = self._extended.get(name, [name])
        if len(names) > 1:
            self._add_ambiguous(name, names)
            return None
        name = names[0]
        path = PurePosixPath(_safe_path(name))
        images = self._images_meant_by(name, path)
        self.seen.update(images)
        if len(images) > 1:
            self._add_ambiguous(name, [relative(image, self._root) for image in images])
            return None
        return images[0] if images else self._base / path

    def _images_meant_by(self, name: str, path: PurePosixPath) -> list[Path]:
        """The image that a name means: none if there is no such image, several if it may be any of them."""
        if rivals := self._rivals_of(path):
            return rivals
        if os.path.isfile(self._base / path):
            return [self._base / path]
        if self._last_counts[path.name] == 1 and (images := self._named(path.name, self._split_of(path))):
            return images
        images = self._nearly(path)
        if len(images) == 1:
            spelling = f"{text(name)} ({relative(images[0], self._root)})"
            self._report.add("file names that their images write differently", "used all the same", spelling)
        return images

    def _add_ambiguous(self, name: str, places: Sequence[str]) -> None:
        named = f"{text(name)} ({join_names(places)})"
        self._report.add("file names that several images have", "ambiguous and left out", named)

    def note(self, name: str) -> None:
        """Note that an image is named, whether it is looked for or not."""
        self.seen.update(self._base / _safe_path(path) for path in self._extended.get(name, [name]))

    def _rivals_of(self, path: PurePosixPath) -> list[Path]:
        """The images that a name without folders may mean, if nothing says which of them; otherwise none."""
        if len(path.parts) > 1 or len(self._images_by_name.get(near_name(path.name), ())) < 2:
            return []
        is_annotated_twice = self._path_counts[str(path)] > 1  # then two images of this name are meant, in any folder
        images = self._named(path.name, self._own_split if is_annotated_twice else self._split)
        if len(images) < 2:
            return []
        return images if is_annotated_twice or any(image.parent in self._rivals for image in images) else []

    @functools.cached_property
    def _rivals(self) -> set[Path]:
        """The folders that the images may be from as well as from the base: nothing says that they are not."""
        held: dict[Path, set[str]] = {}
        for path in self._path_counts:
            if "/" not in path:  # folders in a path say which image is meant
                for image in self._named(path, self._split):
                    held.setdefault(image.parent, set()).add(path)
        in_base = held.pop(self._base, set())
        rivals = set()
        for folder, names in held.items():
            has_others = not names <= in_base
            is_like_base = names == in_base and not self._is_base_meant_before(folder)
            # A folder that only repeats some images of the base, such as thumbnails/, is no rival.
            if has_others or is_like_base:
                rivals.add(folder)
        return rivals

    def _is_base_meant_before(self, folder: Path) -> bool:
        """Whether the base is meant rather than a folder with the same names, by where it is or what it is called."""
        return self._base_is_beside or (is_of_images(self._base) and not is_of_images(folder))

    def _nearly(self, path: PurePosixPath) -> list[Path]:
        """The images with nearly the same path, or the same last part where no other path ends alike."""
        split, near_last = self._split_of(path), near_name(path.name)
        images = [image for image in self._images_by_name.get(near_last, []) if self._may_hold(image.parent, split)]
        parts = near_name(str(path)).split("/")
        whole = [image for image in images if near_name(relative(image, self._root)).split("/")[-len(parts) :] == parts]
        if self._near_counts[near_last] == 1:
            return images if len(images) == 1 else whole
        return whole if len(parts) > 1 and len(whole) == 1 else []

    def _named(self, name: str, split: str | None) -> list[Path]:
        """The images of exactly that name that may be of a split."""
        images = self._images_by_name.get(near_name(name), [])
        return [image for image in images if image.name == name and self._may_hold(image.parent, split)]

    def _split_of(self, path: PurePosixPath) -> str | None:
        """The split that a path of the file is of: its own folders know it best."""
        return split_of(str(path.parent)) or self._split

    def _splits_in(self, folder: Path) -> set[str]:
        """All splits that the path of a folder names: val/train/ may hold images of trains for validation."""
        if folder not in self._folder_splits:
            parts = PurePosixPath(relative(folder, self._root)).parts
            self._folder_splits[folder] = {split for part in parts if (split := split_of(part))}
        return self._folder_splits[folder]

    def _may_hold(self, folder: Path, split: str | None) -> bool:
        """Whether a folder may have images of a split: its path names that one, or none."""
        if split is None:
            return True
        splits = self._splits_in(folder)
        return not splits or split in splits

    @functools.cached_property
    def _images_by_name(self) -> dict[str, list[Path]]:
        """The images whose names the file has, by what nearly equal names have in common."""
        images: dict[str, list[Path]] = {}
        for image in self._listing.images_below(self._root):
            if (key := near_name(image.path.name)) in self._near_counts:
                images.setdefault(key, []).append(image.path)
        return images

    @functools.cached_property
    def _split(self) -> str | None:
        """The split that images are of where their names do not say it: that of the file, or of the base.

        One file for all splits may name images of all; but where two splits have a name, only the folder tells them.
        """
        if self._own_split is not None:
            return self._own_split
        for name in self._last_counts:
            images = self._named(name, None)
            if len(images) < 2:
                continue
            splits = {split_of(relative(image.parent, self._root)) for image in images} - {None}
            if len(splits) > 1:
                return split_of(relative(self._base, self._root))
        return None


class Place(NamedTuple):
    """Where an image is that an annotation file of several splits names.

    Attributes:
        path: The file, or where it should be; ``None`` if it may be one of several.
        split: ``train``, ``val`` or ``test``.
    """

    path: Path | None
    split: str


def find_by_split(
    listing: Listing, annotations: Path, stated: Sequence[tuple[str, str]], report: Report
) -> tuple[list[Place], list[ImageFinder]]:
    """Find the images of a file that may be for several splits.

    Args:
        listing: The data.
        annotations: The file.
        stated: Each name with what the file says of its split; where that says none, the path of the name, then that
            of the file, then that of the image name it.
        report: See :class:`ImageFinder`.

    Returns:
        The place of each, and how they were found.
    """
    own = split_of(relative(annotations, listing.base))
    splits = [split_of(word) or split_of(str(PurePosixPath(_safe_path(name)).parent)) or own for name, word in stated]
    finders = {}
    for split in dict.fromkeys(splits):
        # Two splits may have a name: a finder of its own looks in the folder of each.
        names = [name for (name, _), its_split in zip(stated, splits, strict=True) if its_split == split]
        finders[split] = ImageFinder(listing, annotations, split or "train", names, report)
        for name in names:
            finders[split].note(name)
    places = []
    for (name, _), split in zip(stated, splits, strict=True):
        path = finders[split].find(name)
        found = None if path is None else split_of(relative(path.parent, listing.base))
        places.append(Place(path, split or found or "train"))
    return places, list(finders.values())


def note_unlisted(listing: Listing, finders: Sequence[ImageFinder], notices: list[str]) -> None:
    """Say how many images lie beside annotated ones, and are named by no annotation file."""
    seen = set[Path]().union(*(finder.seen for finder in finders))
    folders = sorted({path.parent for path in seen if os.path.isfile(path)}, key=os.fsencode)
    files = [path for folder in folders for path in listing.files(folder) if is_image_name(path.name)]
    if others := [relative(path, listing.base) for path in files if path not in seen]:
        notices.append(f"{len(others)} images are in no annotation file and left out: {join_names(others)}.")


def is_of_images(folder: Path) -> bool:
    """Whether a folder is called as folders of images are, and not of masks, previews or thumbnails."""
    return folder.name.lower() in _IMAGE_FOLDERS


def _safe_path(name: str) -> str:
    """The path as far as it can be trusted: no drive, no root and no way up."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts:
        return ""
    has_drive = ":" in path.parts[0]
    return path.name if path.is_absolute() or ".." in path.parts or has_drive else str(path)


def _folders_below(listing: Listing, depth: int) -> Iterator[Path]:
    level = [listing.base]
    for _ in range(depth):
        children = [listing.folders(folder) for folder in level]
        level = list(itertools.chain.from_iterable(group for group in children if len(group) <= _MANY_FOLDERS))
        yield from level
