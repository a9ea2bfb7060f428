"""Listing image files: in byte order on every system, each file once, whatever links there are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from autotimm.data.image_io import is_image_name
from autotimm.errors import DataError, join_names

__all__ = ["Found", "Walker", "list_folder", "text"]


def text(name: str) -> str:
    r"""A file name as valid text: bytes that are not UTF-8, which Linux allows, become ``\xff`` escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def list_folder(folder: Path) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """List the sub-folders and the files of a folder, each in byte order, without what is hidden.

    Raises:
        DataError: If it cannot be listed.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: os.fsencode(e.name))
    except OSError as error:
        raise DataError(
            f"The folder {folder} cannot be listed: {error.strerror}. Check the path and its permissions."
        ) from error
    folders = [entry for entry in entries if _is_folder(entry)]
    return folders, [entry for entry in entries if not _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


class Found(NamedTuple):
    """A file of a folder.

    Attributes:
        path: Where it is.
        name: Its path relative to the folder, as valid text.
    """

    path: Path
    name: str


class _Link(NamedTuple):
    """A link whose turn comes when everything that is really there is known."""

    found: Found
    owner: int


class Walker:
    """Lists images below several folders so that no folder and no file comes twice.

    What is really there comes before links to it, so a link is what is left out.

    Attributes:
        links: Links that were left out, since what they lead to was there already.
        others: Files that do not end like images.
    """

    def __init__(self) -> None:
        self.links: list[str] = []
        self.others: list[str] = []
        self._folders: set[str] = set()
        self._files: set[str] = set()
        self._linked_folders: list[_Link] = []
        self._linked_files: list[_Link] = []

    def enter(self, folder: Path) -> bool:
        """Note a folder as visited; ``False`` if it was visited before, under this or another name."""
        real = os.path.realpath(folder)
        new = real not in self._folders
        self._folders.add(real)
        return new

    def images(self, folders: Sequence[Path]) -> list[list[Found]]:
        """List the images in each folder and all folders below it, in byte order of their paths."""
        results: list[list[Found]] = [[] for _ in folders]
        for owner, folder in enumerate(folders):
            if folder.is_symlink():
                self._linked_folders.append(_Link(Found(folder, ""), owner))
            elif self.enter(folder):
                results[owner] += self._below(Found(folder, ""), owner)
        for link in self._linked_folders:  # grows while links lead to folders with further links
            if self.enter(link.found.path):
                results[link.owner] += self._below(link.found, link.owner)
            else:
                self.links.append(link.found.name.rstrip("/") or text(link.found.path.name))
        for link in self._linked_files:
            real = os.path.realpath(link.found.path)
            if real in self._files:
                self.links.append(link.found.name)
            else:
                self._files.add(real)
                results[link.owner].append(link.found)
        return [sorted(found, key=lambda one: os.fsencode(one.path)) for found in results]

    def _below(self, folder: Found, owner: int) -> Iterator[Found]:
        """The images of one folder and its real sub-folders; links are put aside."""
        folders, files = list_folder(folder.path)
        real = os.path.realpath(folder.path)
        for entry in files:
            one = Found(Path(entry.path), folder.name + text(entry.name))
            if not is_image_name(entry.name):
                self.others.append(one.name)
            elif entry.is_symlink():
                self._linked_files.append(_Link(one, owner))
            else:
                self._files.add(os.path.join(real, entry.name))
                yield one
        for entry in folders:
            one = Found(Path(entry.path), f"{folder.name}{text(entry.name)}/")
            if entry.is_symlink():
                self._linked_folders.append(_Link(one, owner))
            elif self.enter(one.path):
                yield from self._below(one, owner)

    def notices(self, where: str) -> Iterator[str]:
        """Say what was left out of a folder."""
        if self.links:
            yield f"{where}: left out {len(self.links)} links to what is there already: {join_names(self.links)}."
        if self.others:
            yield f"{where}: left out {len(self.others)} files that do not end like images: {join_names(self.others)}."
