"""Listing image files: in byte order on every system, each file once, whatever links there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from autotimm.data.read import is_image_name
from autotimm.errors import DataError

__all__ = ["Found", "Walker", "list_folder", "some", "text"]


def text(name: str) -> str:
    r"""A file name as valid text: bytes that are not UTF-8, which Linux allows, become ``\xff`` escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def some(names: list[str], limit: int = 5) -> str:
    """Enumerate names, and say how many more there are.

    Example:
        >>> some(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


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

    def enter(self, folder: Path) -> bool:
        """Note a folder as visited; ``False`` if it was visited before, under this or another name."""
        real = os.path.realpath(folder)
        if real in self._folders:
            return False
        self._folders.add(real)
        return True

    def images(self, folder: Path) -> list[Found]:
        """List the images in a folder and all folders below, in byte order of their relative paths."""
        if not self.enter(folder):
            self.links.append(text(str(folder)))
            return []
        links: list[Found] = []
        found = list(self._below(folder, "", os.path.realpath(folder), links))
        for link in links:
            real = os.path.realpath(link.path)
            if real in self._files:
                self.links.append(link.name)
            else:
                self._files.add(real)
                found.append(link)
        return sorted(found, key=lambda one: os.fsencode(str(one.path)))

    def _below(self, folder: Path, prefix: str, real: str, links: list[Found]) -> Iterator[Found]:
        folders, files = list_folder(folder)
        for entry in files:
            one = Found(Path(entry.path), prefix + text(entry.name))
            if not is_image_name(entry.name):
                self.others.append(one.name)
            elif entry.is_symlink():
                links.append(one)
            else:
                self._files.add(os.path.join(real, entry.name))
                yield one
        for entry in sorted(folders, key=os.DirEntry.is_symlink):
            if self.enter(Path(entry.path)):
                below = os.path.realpath(entry.path)
                yield from self._below(Path(entry.path), f"{prefix}{text(entry.name)}/", below, links)
            else:
                self.links.append(prefix + text(entry.name))

    def notices(self, where: str) -> Iterator[str]:
        """Say what was left out of a folder."""
        if self.links:
            yield f"{where}: left out {len(self.links)} links to what is there already: {some(self.links)}."
        if self.others:
            yield f"{where}: left out {len(self.others)} files that do not end like images: {some(self.others)}."
