"""Class folders, with or without ``train/``, ``val/`` and ``test/`` above them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from autotimm.data.formats.data_format import Format, ReadOptions, Sighting
from autotimm.data.formats.listing import ListedFiles, Listing, extensions, split_of, text, texts
from autotimm.data.formats.mask_pairs import is_image_folder, is_mask_folder
from autotimm.data.image_io import is_image_name
from autotimm.data.table import ImageTable
from autotimm.data.texts import Texts
from autotimm.errors import DataError, join_names

__all__ = ["ClassFolders", "read_folder", "split_folder"]

_LAYOUT = "Make one folder per class with its images in it: photos/cat/1.jpg, photos/dog/2.jpg."
_SPLIT_NAMES = "name splits train/, val/ and test/, and put the class folders into each of them."
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")  # where images are put, whatever they show
_PREVIEWS = ("thumbs", "thumbnails", "previews")  # copies that programs make, in no class of their own
_SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT_WORDS |= {"training": "train", "testing": "test"}
_AROUND = "(?:data|dataset|set|split|folder|images?|imgs?|photos?|pictures?|seg|cls)*"  # seg_train, training_set
_SPLIT = re.compile(f"{_AROUND}({'|'.join(sorted(_SPLIT_WORDS, reverse=True))}){_AROUND}")


class _Members:
    """The images of a class, from one folder or several."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, ListedFiles]] = []

    def add(self, prefix: str, images: ListedFiles) -> None:
        """Add images, whose ids begin with a prefix."""
        self._parts.append((prefix, images))

    def __len__(self) -> int:
        return sum(len(images) for _, images in self._parts)

    @property
    def paths(self) -> Iterator[tuple[str, Sequence[str]]]:
        """The paths of the files, by directory."""
        return ((folder, names) for _, images in self._parts for folder, _, names in images.groups)

    @property
    def ids(self) -> Iterator[tuple[str, Sequence[str]]]:
        """The ids, by directory."""
        return ((start + prefix, texts(names)) for start, images in self._parts for _, prefix, names in images.groups)


_Classes = dict[str, _Members]


def split_named(folder: str) -> str | None:
    """The split that a folder of classes is called after, and nothing else: ``test_drive`` is a class.

    Example:
        >>> [split_named(name) for name in ("Training", "seg_test", "validation_set", "train station", "trains")]
        ['train', 'test', 'val', None, None]
    """
    match = _SPLIT.fullmatch(re.sub(r"[\W\d_]+", "", folder).lower())
    return _SPLIT_WORDS[match[1]] if match else None


class ClassFolders(Format):
    """A folder of class folders, or one with ``train/``, ``val/`` (``valid/``, ``validation/``) and ``test/``.

    ``Training/``, ``seg_train/``, ``training_set/`` and the like are splits as well. Classes are the class folders in
    byte order of their names, which are composed (NFC). Hidden files are ignored, the case of extensions does not
    matter. Where class folders hold folders themselves, and no image beside them, ``class_levels`` says whether these
    are classes. A folder that holds a single folder is descended into; ids are relative to where that leads, so they do
    not depend on how far up the path given begins.
    """

    name = "folder"
    tasks = ("classification",)

    def see(self, listing: Listing) -> Sighting | None:
        """Images in folders that are named neither after splits nor after images; a guess, since any folder may be."""
        folders = set[str]() if listing.file is not None else listing.images_below().folders
        parts = {part for folder in folders for part in folder.split("/")}
        masks = set(filter(is_mask_folder, parts))
        aside = masks | (set(filter(is_image_folder, parts)) if masks else set())  # PNGImages/ beside PedMasks/
        named = [
            [
                part
                for part in folder.split("/")
                if part and not split_of(part) and part not in aside and part.lower() not in _IMAGE_FOLDERS
            ]
            for folder in folders
            if not masks.intersection(folder.split("/"))
        ]
        classes = {tuple(parts) for parts in named if parts}
        what = f"images in {len(classes)} folders and no annotations"
        return Sighting(what, self.tasks, certain=False) if classes else None

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, ImageTable]:
        """Read the folders; see the base class."""
        root = listing.path
        if not os.path.isdir(root):
            what = "It is a file" if os.path.exists(root) else f"There is none; relative paths start at {Path.cwd()}"
            raise DataError(f"{root} must be a folder of images. {what}. Check the path.")
        root = _descend(listing, notices)
        levels = options.class_levels
        splits = _split_folders(listing, root, notices)
        if not splits:
            classes = _read_train(listing, root, "", levels, notices)
            return {"train": _table(classes, list(classes))}
        prefixes = {split: f"{text(folder.name)}/" for split, folder in splits.items()}
        folders = {split: _innermost(listing, folder) for split, folder in splits.items()}
        classes = _read_train(listing, folders["train"], prefixes["train"], levels, notices)
        class_names = list(classes)
        tables = {"train": _table(classes, class_names)}
        for split in ("val", "test"):
            if split in splits:
                held_out = _read_classes(listing, folders[split], prefixes[split], levels, notices)
                if _is_held_out(held_out, prefixes[split], root, prefixes["train"], class_names, notices):
                    tables[split] = _table(held_out, class_names)
        return tables


def read_folder(
    root: str | Path | Listing, notices: list[str], class_levels: int | None = None
) -> dict[str, ImageTable]:
    """Read class folders, see :class:`ClassFolders`.

    Args:
        root: The folder, or its listing.
        notices: Receives one line for each thing that was left out or looks strange.
        class_levels: Levels of folders that make a class: 1 takes ``flower/`` with all below as one class, 2 makes
            ``flower/daisy`` and ``flower/rose`` classes. ``None`` is 1, and refuses folders where that is doubtful.

    Returns:
        A table for ``train``, and for ``val`` and ``test`` if there are such folders with images in them.

    Raises:
        DataError: If there are no images to train on, or classes disagree.
    """
    listing = root if isinstance(root, Listing) else Listing(root)
    return ClassFolders().read(listing, notices, ReadOptions(class_levels=class_levels))


def split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split directly in a folder of labelled images; ``None`` if there is none."""
    folders = Listing(root).folders(root) if os.path.isdir(root) else []
    return next((folder for folder in folders if split_named(folder.name) == split), None)


def _images_in(listing: Listing, folder: Path) -> list[str]:
    return [text(path.name) for path in listing.files(folder) if is_image_name(path.name)]


def _descend(listing: Listing, notices: list[str]) -> Path:
    """Go down while a folder holds a single folder that has folders itself, and no image."""
    root, entered = listing.path, set[str]()
    while (real := os.path.realpath(root)) not in entered:
        entered.add(real)
        folders = listing.folders(root)
        if len(folders) != 1 or _images_in(listing, root) or not listing.folders(folders[0]):
            break
        notices.append(
            f"The folder {text(root.name)}/ holds only {text(folders[0].name)}/: the images are read from there."
        )
        root = folders[0]
    return root


def _innermost(listing: Listing, folder: Path) -> Path:
    """The folder of a split, or the one with the class folders that is all it holds.

    That is one of the same name, as seg_train/seg_train/ is unpacked, or one called images/.
    """
    folders = listing.folders(folder)
    if len(folders) != 1 or _images_in(listing, folder) or not listing.folders(folders[0]):
        return folder
    repeated = split_named(folders[0].name) == split_named(folder.name)
    return folders[0] if repeated or folders[0].name.lower() in _IMAGE_FOLDERS else folder


def _split_folders(listing: Listing, root: Path, notices: list[str]) -> dict[str, Path]:
    """Find ``train/``, ``val/`` and ``test/``; nothing if these are class folders (a class may be called "train")."""
    folders = listing.folders(root)
    named = [folder for folder in folders if split_named(folder.name)]
    others = [text(folder.name) for folder in folders if folder not in named]
    splits: dict[str, Path] = {}
    for folder in named:
        split = str(split_named(folder.name))
        if split in splits and not others:
            raise DataError(f"{root} has both {splits[split].name}/ and {folder.name}/. Keep one of them.")
        splits[split] = folder
    if "train" not in splits:
        if named and not others and len(named) == len(splits):
            raise DataError(
                f"{root} has {join_names([f'{folder.name}/' for folder in named])} but no train/. Add train/."
            )
        return {}
    if not others:
        return splits
    if not listing.folders(splits["train"]):
        return {}
    beside = text(splits["train"].name)
    notices.append(f"{text(root.name)}/: folders beside {beside}/ are not read: {join_names(others)}.")
    return splits


class _ClassFolder(NamedTuple):
    """A folder with images of one class, and the path that is its name."""

    path: Path
    name: str


def _class_folders(listing: Listing, folder: Path, levels: int, notices: list[str]) -> list[_ClassFolder]:
    """The folders that make classes, a number of levels below a folder."""
    masks = [path for path in listing.folders(folder) if is_mask_folder(path.name)]
    previews = [path for path in listing.folders(folder) if path.name.lower() in _PREVIEWS]
    folders = [path for path in listing.folders(folder) if path not in masks and path not in previews]
    if masks and all(is_image_folder(path.name) for path in folders):
        names = join_names([f"{path.name}/" for path in [*folders, *masks]])
        raise DataError(
            f"{folder} holds {names}: images and masks or annotations of them, which are no classes. Give another task."
        )
    for left_out, what in ((masks, "masks or annotations"), (previews, "previews")):
        if left_out:
            names = join_names([f"{path.name}/" for path in left_out])
            notices.append(f"{text(folder.name)}/: left out {names}, since folders of {what} are no classes.")
    if levels == 1:
        return [_ClassFolder(path, path.name) for path in folders]
    below = [(path, _class_folders(listing, path, levels - 1, notices)) for path in folders]
    return [_ClassFolder(inner.path, f"{path.name}/{inner.name}") for path, found in below for inner in found]


def _read_classes(listing: Listing, folder: Path, prefix: str, levels: int | None, notices: list[str]) -> _Classes:
    folders = _class_folders(listing, folder, levels or 1, notices)
    search = listing.search_images([inner.path for inner in folders], inside=folder)
    if levels is None:
        _check_levels(folder, [_Contained(*pair) for pair in zip(folders, search.images, strict=True)], notices)
    classes: _Classes = {}
    same: list[str] = []
    for inner, images in zip(folders, search.images, strict=True):
        name = unicodedata.normalize("NFC", inner.name)  # as another system writes the same name
        same += [text(name)] if name in classes else []
        classes.setdefault(name, _Members()).add(f"{prefix}{text(inner.name)}/", images)
    if same:
        notices.append(f"{text(folder.name)}/: folders of one name in two encodings are one class: {join_names(same)}.")
    if classes and (loose := _loose_images(listing, folder, levels or 1)):
        notices.append(
            f"{text(folder.name)}/: left out {len(loose)} images outside of class folders: {join_names(loose)}."
        )
    notices.extend(search.notices(f"{text(folder.name)}/"))
    return {name: classes[name] for name in sorted(classes, key=os.fsencode)}


def _loose_images(listing: Listing, folder: Path, levels: int) -> list[str]:
    """The images above the class folders."""
    images = _images_in(listing, folder)
    if levels > 1:
        for inner in listing.folders(folder):
            images += [f"{text(inner.name)}/{name}" for name in _loose_images(listing, inner, levels - 1)]
    return images


class _Contained(NamedTuple):
    """A class folder, and the images in it and below."""

    folder: _ClassFolder
    images: ListedFiles

    @property
    def below(self) -> list[str]:
        """The folders in it that hold images, in order."""
        firsts = {folder.partition("/")[0] for folder in self.images.folders if folder}
        return sorted(firsts, key=lambda name: f"{name}/".encode())

    @property
    def has_own(self) -> bool:
        """Whether some images are directly in it."""
        return "" in self.images.folders


def _check_levels(folder: Path, classes: Sequence[_Contained], notices: list[str]) -> None:
    """Refuse class folders of which nobody can say whether the folders in them are the classes.

    A single folder in each, such as cat/images/, changes nothing.
    """
    nested = [contained for contained in classes if not contained.has_own and len(contained.below) > 1]
    if nested:
        first, times = nested[0], Counter(name for contained in nested for name in contained.below)
        inner = join_names([f"{text(first.folder.name)}/{name}" for name in first.below], 3)
        choice = f"Give class_levels=1 if {text(first.folder.name)} is a class, 2 if each of {inner} is one."
        if not (repeated := [name for name, number in times.items() if number > 1]):
            raise DataError(f"{folder}: class folders hold folders and no image beside them, such as {inner}. {choice}")
        alike = [text(contained.folder.name) for contained in nested if set(repeated) & set(contained.below)]
        inside_out = all(map(split_named, repeated))
        cure = f"put splits above classes, as in {repeated[0]}/{alike[0]}/." if inside_out else _SPLIT_NAMES
        raise DataError(
            f"{folder}: {join_names(alike)} hold the same folders, {join_names(repeated)}. If they are splits and "
            f"classes: {cure} {choice}"
        )
    for contained in classes:
        if contained.has_own and contained.below:
            name, below = text(contained.folder.name), join_names(contained.below)
            notices.append(f"{name}/: images of the folders in it are of the class {name} too: {below}.")


def _read_train(listing: Listing, folder: Path, prefix: str, levels: int | None, notices: list[str]) -> _Classes:
    classes = _read_classes(listing, folder, prefix, levels, notices)
    if not any(classes.values()):
        loose = _loose_images(listing, folder, levels or 1)
        where = (
            "class folders"
            if levels in (None, 1)
            else f"folders in folders, which class_levels={levels} takes for classes"
        )
        none = f"{len(loose)} images but no {where}" if loose else "no images"
        what = f"no images in any of its {len(classes)} folders" if classes else none
        ignored = extensions(listing.search_images([folder]).others)
        raise DataError(f"{folder} holds {what}.{ignored} {_LAYOUT} For labels in a table give `train_csv`.")
    if empty := [name for name, images in classes.items() if not images]:
        names = [f"{text(name)}/" for name in empty]
        others = (unicodedata.normalize("NFC", other) for other in listing.search_images([folder]).others)
        ignored = extensions([other for other in others if other.startswith(tuple(names))])
        raise DataError(
            f"Class folders without any image in {folder}: {join_names(names)}."
            f"{ignored} Add images, or remove these folders."
        )
    return classes


def _is_held_out(
    classes: _Classes, where: str, root: Path, train: str, class_names: list[str], notices: list[str]
) -> bool:
    """Whether there are images for validation or test: no class that training does not have; classes may be missing."""
    if not classes:
        notices.append(f"{where}: not used, since it has no class folders.")
        return False
    if extra := [text(name) for name in classes if name not in class_names]:
        raise DataError(
            f"{root / where} has classes that {train} does not have: {join_names(extra)}. "
            f"Rename these folders, remove them, or add them to {train}."
        )
    missing = [text(name) for name in class_names if not classes.get(name)]
    if len(missing) == len(class_names):
        notices.append(f"{where}: not used, since it has no images.")
        return False
    if missing:
        counts = f"{len(missing)} of the {len(class_names)} classes"
        notices.append(f"{where}: no images of {counts}: {join_names(missing)}.")
    return True


def _table(classes: _Classes, class_names: list[str]) -> ImageTable:
    number = {name: index for index, name in enumerate(class_names)}
    return ImageTable(
        Texts.of_folders(group for members in classes.values() for group in members.paths),
        Texts.of_folders(group for members in classes.values() for group in members.ids),
        torch.tensor([number[name] for name in classes]).repeat_interleave(torch.tensor([*map(len, classes.values())])),
        [text(name) for name in class_names],
    )
