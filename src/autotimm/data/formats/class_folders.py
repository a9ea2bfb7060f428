"""Folders of class folders, with or without ``train/``, ``val/`` and ``test/`` above them."""

from __future__ import annotations

from pathlib import Path

import torch

from autotimm.data.formats.listing import Walker, list_folder, text
from autotimm.data.image_io import is_image_name
from autotimm.data.table import ImageTable
from autotimm.errors import DataError, join_names

__all__ = ["read_folder"]

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LAYOUT = "Make one folder per class with its images in it: photos/cat/1.jpg, photos/dog/2.jpg."


def _images_in(folder: Path) -> list[str]:
    return [text(entry.name) for entry in list_folder(folder)[1] if is_image_name(entry.name)]


def _descend(root: Path, notices: list[str]) -> Path:
    """Go down while a folder holds one single folder that has folders itself."""
    walker = Walker()
    while walker.enter(root):
        folders, _ = list_folder(root)
        only = Path(folders[0].path) if len(folders) == 1 else None
        if only is None or _images_in(root) or not list_folder(only)[0]:
            break
        notices.append(
            f"The folder {text(root.name)}/ holds nothing but {text(only.name)}/: the images are read from there."
        )
        root = only
    return root


def _split_folders(root: Path, notices: list[str]) -> dict[str, Path]:
    """Find ``train/`` and its kin; nothing if these are class folders (a class may be called "train")."""
    folders = [Path(entry.path) for entry in list_folder(root)[0]]
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
    if not list_folder(splits["train"])[0]:
        return {}
    notices.append(f"{text(root.name)}/: folders beside train/ are not read: {join_names(others)}.")
    return splits


def _read_classes(folder: Path, prefix: str, notices: list[str]) -> dict[str, list[tuple[Path, str]]]:
    """The images of each class folder: name of the class -> (path, id)."""
    walker = Walker()
    walker.enter(folder)
    folders = [Path(entry.path) for entry in list_folder(folder)[0]]
    found = {
        one.name: [(image.path, f"{prefix}{text(one.name)}/{image.name}") for image in images]
        for one, images in zip(folders, walker.images(folders), strict=True)
    }
    if found and (loose := _images_in(folder)):
        notices.append(
            f"{text(folder.name)}/: left out {len(loose)} images outside of class folders: {join_names(loose)}."
        )
    notices.extend(walker.notices(f"{text(folder.name)}/"))
    return found


def _read_train(folder: Path, prefix: str, notices: list[str]) -> dict[str, list[tuple[Path, str]]]:
    found = _read_classes(folder, prefix, notices)
    if not found:
        loose = _images_in(folder)
        what = f"{len(loose)} images but no class folders" if loose else "no images"
        raise DataError(f"{folder} holds {what}. {_LAYOUT} For labels in a table give `train_csv`.")
    if not any(found.values()):
        raise DataError(f"{folder} holds no images in any of its {len(found)} folders. {_LAYOUT}")
    if empty := [f"{text(name)}/" for name, images in found.items() if not images]:
        raise DataError(
            f"Class folders without any image in {folder}: {join_names(empty)}. Add images, or remove these folders."
        )
    return found


def _read_other(folder: Path, prefix: str, classes: list[str], notices: list[str]) -> dict[str, list[tuple[Path, str]]]:
    """Validation or test: no class that training does not know; classes may lack."""
    found = _read_classes(folder, prefix, notices)
    where = f"{text(folder.name)}/"
    if not found:
        notices.append(f"{where}: not used, since it has no class folders.")
        return {}
    if extra := [text(name) for name in found if name not in classes]:
        raise DataError(
            f"{folder} has classes that train/ does not have: {join_names(extra)}. "
            "Rename these folders, remove them, or add them to train/."
        )
    lacking = [text(name) for name in classes if not found.get(name)]
    if lacking and len(lacking) < len(classes):
        notices.append(f"{where}: no images of {len(lacking)} of the {len(classes)} classes: {join_names(lacking)}.")
    if len(lacking) == len(classes):
        notices.append(f"{where}: not used, since it has no images.")
        return {}
    return found


def _table(found: dict[str, list[tuple[Path, str]]], classes: list[str]) -> ImageTable:
    number = {name: index for index, name in enumerate(classes)}
    images = [(path, name, number[owner]) for owner, members in found.items() for path, name in members]
    return ImageTable(
        [path for path, _, _ in images],
        [name for _, name, _ in images],
        torch.tensor([target for _, _, target in images], dtype=torch.int64),
        [text(name) for name in classes],
    )


def read_folder(root: str | Path, notices: list[str]) -> dict[str, ImageTable]:
    """Read a folder of class folders, or one with ``train/``, ``val/`` (or ``valid/``, ``validation/``) and ``test/``.

    Classes are the class folders in byte order of their names. Hidden files are ignored, upper-case endings count,
    class folders may have folders inside. A folder that holds a single folder is gone through; ids are relative to
    where that leads, so it does not matter where the path given begins.

    Args:
        root: The folder.
        notices: Receives one line for each thing that was left out or looks strange.

    Returns:
        A table for ``train``, and for ``val`` and ``test`` if there are such folders with images in them.

    Raises:
        DataError: If there are no images to train on, or classes disagree.
    """
    root = Path(root)
    if not root.is_dir():
        what = "It is a file" if root.exists() else f"There is none; relative paths start at {Path.cwd()}"
        raise DataError(f"{root} must be a folder of images. {what}. Check the path.")
    root = _descend(root, notices)
    splits = _split_folders(root, notices)
    if not splits:
        found = _read_train(root, "", notices)
        return {"train": _table(found, list(found))}
    found = _read_train(splits["train"], f"{text(splits['train'].name)}/", notices)
    classes = list(found)
    tables = {"train": _table(found, classes)}
    for split in ("val", "test"):
        if split in splits:
            other = _read_other(splits[split], f"{text(splits[split].name)}/", classes, notices)
            if other:
                tables[split] = _table(other, classes)
    return tables
