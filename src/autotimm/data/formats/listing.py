"""The listing of a folder, and what the names in it say: the split, the id of a sample.

Each directory is read once, whichever formats look at it. Names come in byte order on every system, hidden files are
left out, and links never make a file appear twice.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, overload
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from autotimm.data.image_io import HEIF_SUFFIXES, is_image_name
from autotimm.data.image_reading import ARRAY_SUFFIX
from autotimm.errors import DataError, join_names, printable

__all__ = [
    "ImageSearch",
    "ListedFile",
    "ListedFiles",
    "Listing",
    "extensions",
    "in_byte_order",
    "near_name",
    "relative",
    "split_of",
    "text",
    "texts",
]


_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def text(name: str) -> str:
    r"""A file name as valid text: bytes that are not UTF-8, which Linux allows, become ``\xff`` escapes."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, in an annotation: no file has such a name
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def texts(names: Sequence[str]) -> Sequence[str]:
    """:func:`text` of many file names, nearly all of which are as they should be."""
    return names if "".join(names).isascii() else [text(name) for name in names]


def in_byte_order(names: Iterable[str]) -> list[str]:
    r"""Names sorted by their bytes in UTF-8; JSON can hold names that have none, such as half of a surrogate pair.

    Example:
        >>> in_byte_order({"dog", "10", "2", "\ud800"})
        ['10', '2', 'dog', '\ud800']
    """
    return sorted(names, key=lambda name: name.encode("utf-8", "surrogatepass"))


def relative(path: Path, root: Path) -> str:
    """The id of a file: its path relative to the root of the data, as valid text."""
    try:
        return text(path.relative_to(root).as_posix())
    except ValueError:
        return text(os.path.relpath(path, root).replace(os.sep, "/"))


def near_name(name: str) -> str:
    """What names have in common that tools write differently: URL-quoted, decomposed (NFD), or in another case.

    Example:
        >>> near_name("Caf%C3%A9 1.JPG") == near_name("cafe\u0301 1.jpg")
        True
    """
    return unicodedata.normalize("NFC", unquote(name).casefold())


def extensions(names: Sequence[str]) -> str:
    """A sentence on files that are no images by their names, to say why nothing is left; empty if there are none.

    Example:
        >>> extensions(["a/1.HEIC", "a/2.HEIC", "b/3"])
        " Ignored are 2 .HEIC and 1 without an extension: pip install 'autotimm[heif]' reads HEIC images."
    """
    counts = Counter(os.path.splitext(name)[1] or "without an extension" for name in names)
    kinds = " and ".join(printable(f"{count} {suffix}") for suffix, count in counts.most_common(5))
    rest = len(counts) - 5
    heic = any(suffix.lower() in HEIF_SUFFIXES for suffix in counts)
    end = ": pip install 'autotimm[heif]' reads HEIC images." if heic else "."
    if ARRAY_SUFFIX in counts and not heic:
        end = ": NumPy arrays are images with other than 3 channels, see in_chans."
    return f" Ignored are {kinds}{f' and {rest} other kinds' if rest > 0 else ''}{end}" if counts else ""


def split_of(path: str | Path) -> str | None:
    """The split that a relative path names: that of its last part that names exactly one.

    Example:
        >>> split_of("images/train2017/1.jpg"), split_of("instances_val2017.json"), split_of("trainval.json")
        ('train', 'val', None)
    """
    for part in reversed(PurePosixPath(path).parts):
        splits = {_SPLIT_WORDS[word] for word in re.findall(r"[a-z]+", part.lower()) if word in _SPLIT_WORDS}
        if len(splits) == 1:
            return splits.pop()
    return None


_MOST_LEVELS = 100  # of folders below the one that was given; each level costs a call of Python's 1000
_OF_TOOLS = {"@eadir", "#recycle", "$recycle.bin", "__macosx", "__pycache__", "lost+found", "system volume information"}
"""Folders that systems and devices put among files, in lower case; they hold previews and rubbish."""
_ASIDE = {"readme", "license", "licence", "notice"}
_ASIDE_SUFFIXES = ("", ".md", ".txt", ".pdf", ".html")


class ListedFile(NamedTuple):
    """A file of a folder.

    Attributes:
        path: The file.
        name: Its path relative to the folder, as valid text.
    """

    path: Path
    name: str


class _Files(NamedTuple):
    """Files of one directory.

    Attributes:
        folder: The directory.
        prefix: Its path relative to the folder that was searched, as valid text with a slash at the end, or empty.
        entries: Their names as they are, in byte order.
    """

    folder: Path
    prefix: str
    entries: Sequence[str]


class ListedFiles(Sequence[ListedFile]):
    """Files below a folder in byte order of their paths, each made when it is asked for.

    Args:
        files: The files of each directory.
    """

    def __init__(self, files: Sequence[_Files]) -> None:
        self._files = [part for part in files if part.entries]
        sizes = [len(part.entries) for part in self._files]
        parts = np.repeat(np.arange(len(sizes)), sizes)
        rows = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.zeros(0, np.int64)
        if len(sizes) > 1:
            paths = [os.fsencode(path) for path in self._paths(parts, rows)]
            order = sorted(range(len(paths)), key=paths.__getitem__)
            parts, rows = parts[order], rows[order]
        self._parts, self._rows = parts, rows

    def _paths(self, parts: NDArray[np.int64], rows: NDArray[np.int64]) -> Iterator[str]:
        folders = [_before_names(part.folder) for part in self._files]
        entries = [part.entries for part in self._files]
        return (folders[part] + entries[part][row] for part, row in zip(parts.tolist(), rows.tolist(), strict=True))

    @property
    def paths(self) -> Iterator[str]:
        """The paths as texts, which takes less time than the files one by one."""
        return self._paths(self._parts, self._rows)

    @property
    def names(self) -> Iterator[str]:
        """The paths relative to the folder, as valid text."""
        return (prefix + name for _, prefix, entries in self.groups for name in texts(entries))

    @property
    def groups(self) -> Iterator[tuple[str, str, Sequence[str]]]:
        """The files that follow each other in one directory: its path and its prefix, then the names of the files.

        The path and the prefix end so that a name can follow.
        """
        starts = [0, *(np.flatnonzero(np.diff(self._parts)) + 1).tolist(), len(self._parts)]
        for start, end in itertools.pairwise(starts) if len(self) else ():
            files = self._files[int(self._parts[start])]
            all_of_it = end - start == len(files.entries) and len(self._files) == 1
            own = files.entries if all_of_it else [files.entries[row] for row in self._rows[start:end].tolist()]
            yield _before_names(files.folder), files.prefix, own

    @property
    def folders(self) -> set[str]:
        """The directories that hold any of them, relative to the folder and as valid text; empty for the folder."""
        return {part.prefix.rstrip("/") for part in self._files}

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> ListedFile: ...

    @overload
    def __getitem__(self, index: slice) -> list[ListedFile]: ...

    def __getitem__(self, index: int | slice) -> ListedFile | list[ListedFile]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        part = self._files[self._parts[index]]
        entry = part.entries[self._rows[index]]
        return ListedFile(part.folder / entry, part.prefix + text(entry))


def _before_names(folder: Path) -> str:
    """What stands before the name of a file: of `.` nothing, and else the folder with a slash."""
    return str(folder / "_")[:-1]


class ImageSearch(NamedTuple):
    """The images below some folders.

    Attributes:
        images: The images below each folder, in byte order of their paths.
        links: Links that were left out, since their targets are listed already.
        others: Files without an image extension.
    """

    images: list[ListedFiles]
    links: list[str]
    others: list[str]

    def notices(self, where: str) -> Iterator[str]:
        """Say what was left out of a folder."""
        if self.links:
            yield f"{where}: left out {len(self.links)} links to files listed already: {join_names(self.links)}."
        if self.others:
            yield f"{where}: left out {len(self.others)} files without an image extension: {join_names(self.others)}."


class Listing:
    """The contents of a folder, or of the folder of a file.

    Nothing is read before it is asked for, and no directory is read twice: a listing is a snapshot, made for one
    recognition and the reading after it.

    Args:
        path: A folder, or a file that names the rest of the data.

    Attributes:
        path: The path as given.
        file: The path if it is a file, otherwise ``None``.
        opened: What formats have opened to see what it is, by their names, for the reading after it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file = self.path if os.path.isfile(self.path) else None
        self._contents: dict[str, _Contents] = {}
        self._images: dict[Path, ListedFiles] = {}
        self.opened: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Listing({str(self.path)!r})"

    @functools.cached_property
    def root(self) -> Path:
        """The folder with the data: ``path``, or further down if that holds a single folder and perhaps a license.

        Raises:
            DataError: If ``path`` is not a folder.
        """
        if not os.path.isdir(self.path):
            raise DataError(f"There is no folder {self.path}. Check the path; relative paths start at {Path.cwd()}.")
        root, entered = self.path, set[str]()
        while (real := os.path.realpath(root)) not in entered:
            entered.add(real)
            contents = self._contents_of(root)
            if len(contents.folders) != 1 or not all(map(_is_aside, contents.files)):
                break
            only = root / contents.folders[0]
            if split_of(only.name) or not self._contents_of(only).folders:
                break
            root = only
            _check_depth(self.path, len(entered))
        return root

    @property
    def base(self) -> Path:
        """The folder that paths are relative to: :attr:`root`, or the folder of :attr:`file`.

        A file in a folder ``annotations`` has its images beside that folder.
        """
        if self.file is None:
            return self.root
        folder = self.file.absolute().parent
        return folder.parent if folder.name.lower() == "annotations" else self.file.parent

    def folders(self, folder: Path) -> list[Path]:
        """The folders directly in a folder, in byte order."""
        return [folder / name for name in self._contents_of(folder).folders]

    def files(self, folder: Path) -> list[Path]:
        """The files directly in a folder, in byte order."""
        return [folder / name for name in self._contents_of(folder).files]

    def files_below(self, suffixes: Sequence[str], depth: int = 3) -> list[Path]:
        """The files of :attr:`base` with one of some suffixes, in byte order.

        Args:
            suffixes: In lower case, with the dot.
            depth: How many levels of folders below are searched.
        """
        files: list[Path] = []
        level, entered = [self.base], set[str]()
        for _ in range(depth + 1):
            below = []
            for folder in level:
                real = os.path.realpath(folder)
                if real not in entered:
                    entered.add(real)
                    contents = self._contents_of(folder)
                    files += [folder / name for suffix in suffixes for name in contents.by_suffix.get(suffix, ())]
                    below += [folder / name for name in contents.folders]
            level = below
        return sorted(files, key=os.fsencode)

    def images_below(self, folder: Path | None = None) -> ListedFiles:
        """Every image below a folder, by default :attr:`base`, in byte order; each file once."""
        folder = self.base if folder is None else folder
        if folder not in self._images:
            self._images[folder] = self.search_images([folder]).images[0]
        return self._images[folder]

    def search_images(self, folders: Sequence[Path], inside: Path | None = None) -> ImageSearch:
        """Search several folders for images, to any depth, so that no file is listed for two of them.

        Args:
            folders: The folders.
            inside: A folder that they are in: links to it are not followed.
        """
        return _ImageWalk(self, inside).search(folders)

    def _contents_of(self, folder: Path) -> _Contents:
        real = os.path.realpath(folder)
        if real not in self._contents:
            self._contents[real] = _read_directory(folder)
        return self._contents[real]


class _Contents:
    """The names in one directory in byte order, except hidden ones.

    Attributes:
        folders: The names of folders, and of links to folders.
        files: Those of files, and of links to files or to nothing.
        links: Which of them are links.
    """

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.files: list[str] = []
        self.links: set[str] = set()

    @functools.cached_property
    def by_suffix(self) -> dict[str, list[str]]:
        """The files by their suffix in lower case."""
        # As `os.path.splitext`, which takes several times as long; no name begins with a dot.
        suffixes = [name[place:] if (place := name.rfind(".")) > 0 else "" for name in self.files]
        if len(kinds := {*suffixes}) == 1:
            return {kinds.pop().lower(): self.files}
        names: dict[str, list[str]] = {}
        for name, suffix in zip(self.files, suffixes, strict=True):
            names.setdefault(suffix.lower(), []).append(name)
        return names

    @property
    def images(self) -> list[str]:
        """The files with an image extension."""
        suffixes = [suffix for suffix in self.by_suffix if is_image_name(f"_{suffix}")]
        if len(suffixes) == len(self.by_suffix):
            return self.files
        named = {name for suffix in suffixes for name in self.by_suffix[suffix]}
        return [name for name in self.files if name in named]


def _read_directory(folder: Path) -> _Contents:
    contents = _Contents()
    try:
        with os.scandir(folder) as scanned:
            visible = [entry for entry in scanned if not _is_hidden(entry.name)]
    except OSError as error:
        raise DataError(
            f"The folder {folder} cannot be listed: {error.strerror}. Check the path and its permissions."
        ) from error
    for entry in visible:
        if _is_plain_file(entry):  # nearly all are, and nothing else is asked of them
            contents.files.append(entry.name)
            continue
        if _is_folder(entry):
            contents.folders.append(entry.name)
        elif _is_file(entry):
            contents.files.append(entry.name)
        if entry.is_symlink():
            contents.links.add(entry.name)
    contents.folders.sort(key=os.fsencode)
    contents.files.sort(key=None if "".join(contents.files).isascii() else os.fsencode)
    return contents


def _is_hidden(name: str) -> bool:
    """Whether an entry is hidden, or a folder that no person has put there."""
    return name.startswith(".") or name.lower() in _OF_TOOLS


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, or a link that leads nowhere; a pipe or a device is neither."""
    try:
        return entry.is_file() or not os.path.exists(entry.path)
    except OSError:
        return True  # the error of whoever reads it says more


def _is_plain_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _check_depth(folder: Path, levels: int) -> None:
    """Refuse folders that are nested deeper than any that are meant well."""
    if levels > _MOST_LEVELS:
        raise DataError(
            f"The folders in {folder} must be nested at most {_MOST_LEVELS} levels deep. They are deeper. Give the "
            "folder that holds the images."
        )


def _is_aside(name: str) -> bool:
    """Whether a file is a license or a text to read, which does not make a folder the root of the data."""
    stem, suffix = os.path.splitext(name)
    return bool(_ASIDE & set(re.findall(r"[a-z]+", stem.lower()))) and suffix.lower() in _ASIDE_SUFFIXES


class _LinkedFile(NamedTuple):
    """A link, with the number of the folder that it was met below."""

    file: ListedFile
    owner: int


class _ImageWalk:
    """One search for images. Real files and folders come before links to them, so that links are what is left out."""

    def __init__(self, listing: Listing, inside: Path | None) -> None:
        self._listing = listing
        self._links: list[str] = []
        self._others: list[str] = []
        self._entered = set[str]() if inside is None else {os.path.realpath(inside)}
        self._linked_folders: list[_LinkedFile] = []
        self._linked_files: list[_LinkedFile] = []

    def search(self, folders: Sequence[Path]) -> ImageSearch:
        images: list[list[_Files]] = [[] for _ in folders]
        for owner, folder in enumerate(folders):
            if folder.is_symlink():
                self._linked_folders.append(_LinkedFile(ListedFile(folder, ""), owner))
            elif self._enter(folder):
                images[owner] += self._images_in(ListedFile(folder, ""), owner)
        for link in self._linked_folders:  # grows while links lead to folders with further links
            if self._enter(link.file.path):
                images[link.owner] += self._images_in(link.file, link.owner)
            else:
                self._links.append(link.file.name.rstrip("/") or text(link.file.path.name))
        self._follow(images)
        return ImageSearch([ListedFiles(files) for files in images], self._links, self._others)

    def _follow(self, images: list[list[_Files]]) -> None:
        """Add the links to files that are not listed yet."""
        if not self._linked_files:
            return
        listed = {
            os.path.join(real, entry)
            for of_owner in images for files in of_owner for real in [os.path.realpath(files.folder)]
            for entry in files.entries
        }  # fmt: skip
        linked: dict[tuple[int, Path, str], list[str]] = {}
        for link in self._linked_files:
            path, prefix = link.file.path, link.file.name[: link.file.name.rfind("/") + 1]
            real = os.path.realpath(path)
            if real in listed:
                self._links.append(link.file.name)
            else:
                listed.add(real)
                linked.setdefault((link.owner, path.parent, prefix), []).append(path.name)
        for (owner, folder, prefix), entries in linked.items():
            images[owner].append(_Files(folder, prefix, entries))

    def _enter(self, folder: Path) -> bool:
        """Note a folder as entered; ``False`` if it was entered before, under this or another name."""
        real = os.path.realpath(folder)
        new = real not in self._entered
        self._entered.add(real)
        return new

    def _images_in(self, folder: ListedFile, owner: int) -> Iterator[_Files]:
        """The images of one folder and its real sub-folders; links are put aside."""
        contents = self._listing._contents_of(folder.path)
        images = contents.images
        if len(images) < len(contents.files):
            named = set(images)
            self._others += [folder.name + text(entry) for entry in contents.files if entry not in named]
        for entry in images if contents.links else ():
            if entry in contents.links:
                file = ListedFile(folder.path / entry, folder.name + text(entry))
                self._linked_files.append(_LinkedFile(file, owner))
        real = [entry for entry in images if entry not in contents.links] if contents.links else images
        yield _Files(folder.path, folder.name, real)
        for entry in contents.folders:
            below = ListedFile(folder.path / entry, f"{folder.name}{text(entry)}/")
            if entry in contents.links:
                self._linked_folders.append(_LinkedFile(below, owner))
            elif self._enter(below.path):
                _check_depth(self._listing.path, below.name.count("/"))
                yield from self._images_in(below, owner)
