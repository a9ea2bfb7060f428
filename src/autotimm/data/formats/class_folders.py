"""Class folders, with or without ``train/``, ``val/`` and ``test/`` above them."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from autotimm.data.formats.data_format import Format, ReadOptions, Sighting
from autotimm.data.formats.listing import Listing, split_of, text
from autotimm.data.formats.mask_pairs import is_image_folder, is_mask_folder
from autotimm.data.image_io import is_image_name
from autotimm.data.table import ImageTable
from autotimm.errors import DataError, join_names

__all__ = ["ClassFolders", "read_folder"]

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LAYOUT = "Make one folder per class with its images in it: photos/cat/1.jpg, photos/dog/2.jpg."
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")  # where images are put, whatever they show

_Classes = dict[str, list[tuple[Path, str]]]  # the images of each class: path and id


class ClassFolders(Format):
    """A folder of class folders, or one with ``train/``, ``val/`` (``valid/``, ``validation/``) and ``test/``.

    Classes are the class folders in byte order of their names. Hidden files are ignored, the case of extensions does
    not matter, class folders may have folders inside. A folder that holds a single folder is descended into; ids are
    relative to where that leads, so they do not depend on how far up the path given begins.
    """

    name = "folder"
    tasks = ("classification",)

    def see(self, listing: Listing) -> Sighting | None:
        """Images in folders that are named neither after splits nor after images; a guess, since any folder may be."""
        images = [] if listing.file is not None else listing.images_below()
        folders = {image.name.rpartition("/")[0] for image in images}
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
        splits = _split_folders(listing, root, notices)
        if not splits:
            classes = _read_train(listing, root, "", notices)
            return {"train": _table(classes, list(classes))}
        classes = _read_train(listing, splits["train"], f"{text(splits['train'].name)}/", notices)
        class_names = list(classes)
        tables = {"train": _table(classes, class_names)}
        for split in ("val", "test"):
            if split in splits:
                prefix = f"{text(splits[split].name)}/"
                held_out = _read_held_out(listing, splits[split], prefix, class_names, notices)
                if held_out:
                    tables[split] = _table(held_out, class_names)
        return tables


def read_folder(root: str | Path | Listing, notices: list[str]) -> dict[str, ImageTable]:
    """Read class folders, see :class:`ClassFolders`.

    Args:
        root: The folder, or its listing.
        notices: Receives one line for each thing that was left out or looks strange.

    Returns:
        A table for ``train``, and for ``val`` and ``test`` if there are such folders with images in them.

    Raises:
        DataError: If there are no images to train on, or classes disagree.
    """
    return ClassFolders().read(root if isinstance(root, Listing) else Listing(root), notices, ReadOptions())


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


def _split_folders(listing: Listing, root: Path, notices: list[str]) -> dict[str, Path]:
    """Find ``train/``, ``val/`` and ``test/``; nothing if these are class folders (a class may be called "train")."""
    folders = listing.folders(root)
    named = [folder for folder in folders if folder.name.lower() in _SPLITS]
    others = [text(folder.name) for folder in folders if folder not in named]
    splits: dict[str, Path] = {}
    for folder in named:
        split = _SPLITS[folder.name.lower()]
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
    notices.append(f"{text(root.name)}/: folders beside train/ are not read: {join_names(others)}.")
    return splits


def _read_classes(listing: Listing, folder: Path, prefix: str, notices: list[str]) -> _Classes:
    masks = [path for path in listing.folders(folder) if is_mask_folder(path.name)]
    folders = [path for path in listing.folders(folder) if path not in masks]
    if masks and all(is_image_folder(path.name) for path in folders):
        names = join_names([f"{path.name}/" for path in [*folders, *masks]])
        raise DataError(
            f"{folder} holds {names}: images and masks or annotations of them, which are no classes. Give another task."
        )
    if masks:
        names = join_names([f"{path.name}/" for path in masks])
        notices.append(f"{text(folder.name)}/: left out {names}, since folders of masks or annotations are no classes.")
    search = listing.search_images(folders, inside=folder)
    classes = {
        class_folder.name: [(image.path, f"{prefix}{text(class_folder.name)}/{image.name}") for image in images]
        for class_folder, images in zip(folders, search.images, strict=True)
    }
    if classes and (loose := _images_in(listing, folder)):
        notices.append(
            f"{text(folder.name)}/: left out {len(loose)} images outside of class folders: {join_names(loose)}."
        )
    notices.extend(search.notices(f"{text(folder.name)}/"))
    return classes


def _read_train(listing: Listing, folder: Path, prefix: str, notices: list[str]) -> _Classes:
    classes = _read_classes(listing, folder, prefix, notices)
    if not classes:
        loose = _images_in(listing, folder)
        what = f"{len(loose)} images but no class folders" if loose else "no images"
        raise DataError(f"{folder} holds {what}. {_LAYOUT} For labels in a table give `train_csv`.")
    if not any(classes.values()):
        raise DataError(f"{folder} holds no images in any of its {len(classes)} folders. {_LAYOUT}")
    if empty := [f"{text(name)}/" for name, images in classes.items() if not images]:
        raise DataError(
            f"Class folders without any image in {folder}: {join_names(empty)}. Add images, or remove these folders."
        )
    return classes


def _read_held_out(listing: Listing, folder: Path, prefix: str, class_names: list[str], notices: list[str]) -> _Classes:
    """Validation or test: no class that training does not have; classes may be missing."""
    classes = _read_classes(listing, folder, prefix, notices)
    where = f"{text(folder.name)}/"
    if not classes:
        notices.append(f"{where}: not used, since it has no class folders.")
        return {}
    if extra := [text(name) for name in classes if name not in class_names]:
        raise DataError(
            f"{folder} has classes that train/ does not have: {join_names(extra)}. "
            "Rename these folders, remove them, or add them to train/."
        )
    missing = [text(name) for name in class_names if not classes.get(name)]
    if len(missing) == len(class_names):
        notices.append(f"{where}: not used, since it has no images.")
        return {}
    if missing:
        counts = f"{len(missing)} of the {len(class_names)} classes"
        notices.append(f"{where}: no images of {counts}: {join_names(missing)}.")
    return classes


def _table(classes: _Classes, class_names: list[str]) -> ImageTable:
    number = {name: index for index, name in enumerate(class_names)}
    images = [(path, id, number[name]) for name, members in classes.items() for path, id in members]
    return ImageTable(
        [path for path, _, _ in images],
        [id for _, id, _ in images],
        torch.tensor([target for _, _, target in images], dtype=torch.int64),
        [text(name) for name in class_names],
    )
