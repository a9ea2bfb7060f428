"""Many texts in a few flat arrays: the ids and the paths of a data set.

A million paths as objects of Python take 150 MB, and each loading process copies them page by page, since looking at an
object changes its reference count. Here they are one buffer of bytes, which nobody changes, and folders are kept once.
"""

from __future__ import annotations

import itertools
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Joined", "Paths", "Picked", "Texts", "TextsView", "as_texts", "file_names"]

_BLOCK = 4096  # texts that are made at once


class TextsView(Sequence[str]):
    """A sequence of texts that is equal to a tuple of them, and hashes as one."""

    @abstractmethod
    def at(self, places: NDArray[np.integer[Any]]) -> list[str]:
        """The texts at places that exist; many of them take less time than one after the other."""

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self.at(np.arange(*index.indices(len(self)))))
        place = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError("index out of range")
        return self.one(place)

    def one(self, place: int) -> str:
        """The text at a place that exists."""
        return self.at(np.array([place]))[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):
            yield from self.at(np.arange(start, min(start + _BLOCK, len(self))))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (tuple, TextsView)):
            return NotImplemented
        return len(self) == len(other) and all(map(str.__eq__, self, other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __add__(self, other: Sequence[str]) -> tuple[str, ...]:
        return (*self, *other)

    def __repr__(self) -> str:
        return repr(tuple(self))


class Texts(TextsView):
    r"""Texts in one buffer. What stands before the last ``/`` of several is kept once.

    Args:
        texts: The texts; half a surrogate pair, as in file names that are not UTF-8, is kept.

    Example:
        >>> texts = Texts(["cat/1.jpg", "cat/2.jpg", "\udcff"])
        >>> texts[1], texts == ("cat/1.jpg", "cat/2.jpg", "\udcff"), texts[-1:]
        ('cat/2.jpg', True, ('\udcff',))
    """

    def __init__(self, texts: Iterable[str]) -> None:
        folders: dict[str, int] = {}
        buffer, ends, owners = bytearray(), [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
        texts, has_folders = iter(texts), True
        while block := [text.rpartition("/") for text in itertools.islice(texts, _BLOCK)]:
            if not has_folders:  # nearly each has one of its own
                block = [("", "", f"{folder}{slash}{name}") for folder, slash, name in block]
            names = [_encoded(name) for _, _, name in block]
            sizes = np.fromiter(map(len, names), np.int64, len(names))
            ends.append(ends[-1][-1] + np.cumsum(sizes))
            of_block = [folders.setdefault(folder + slash, len(folders)) for folder, slash, _ in block]
            owners.append(np.array(of_block, np.int64))
            buffer += b"".join(names)
            has_folders = has_folders and 2 * len(folders) <= sum(map(len, owners))
        self._folders, self._bytes = tuple(folders), bytes(buffer)
        self._ends = _smallest(np.concatenate(ends))
        self._owners = _smallest(np.concatenate(owners))

    @classmethod
    def of_folders(cls, groups: Iterable[tuple[str, Sequence[str]]]) -> Texts:
        """Texts that begin alike, in a tenth of the time.

        Args:
            groups: What the texts of a group begin with, and the rest of each.

        Example:
            >>> Texts.of_folders([("cat/", ["1.jpg", "2.jpg"]), ("dog/", ["1.jpg"])])
            ('cat/1.jpg', 'cat/2.jpg', 'dog/1.jpg')
        """
        groups = [(folder, names) for folder, names in groups if len(names)]
        counts = [len(names) for _, names in groups]
        if 2 * len(counts) > sum(counts):
            return cls(folder + name for folder, names in groups for name in names)
        folders: dict[str, int] = {}
        buffer, sizes = bytearray(), [np.zeros(1, np.int64)]
        for _, names in groups:
            text = "".join(names)
            data = text.encode("utf-8", "surrogatepass")
            buffer += data
            each = map(len, names) if len(data) == len(text) else (len(_encoded(name)) for name in names)
            sizes.append(np.fromiter(each, np.int64, len(names)))
        owners = [folders.setdefault(folder, len(folders)) for folder, _ in groups]
        texts = cls(())
        texts._folders, texts._bytes = tuple(folders), bytes(buffer)
        texts._ends = _smallest(np.cumsum(np.concatenate(sizes)))
        texts._owners = _smallest(np.repeat(np.array(owners, np.int64), counts))
        return texts

    def __len__(self) -> int:
        return len(self._owners)

    def at(self, places: NDArray[np.integer[Any]]) -> list[str]:
        """The texts at places that exist."""
        columns = (self._owners[places], self._ends[places], self._ends[places + 1])
        return [
            self._folders[owner] + self._bytes[begin:end].decode("utf-8", "surrogatepass")
            for owner, begin, end in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def one(self, place: int) -> str:
        """The text at a place that exists, without arrays: it is asked for several times for each sample."""
        name = self._bytes[self._ends[place] : self._ends[place + 1]]
        folder: str = self._folders[self._owners[place]]
        return folder + name.decode("utf-8", "surrogatepass")


class Picked(TextsView):
    """Some of other texts, without a copy.

    Args:
        texts: The texts.
        places: Which of them, in this order.
    """

    def __init__(self, texts: Sequence[str], places: NDArray[np.integer[Any]]) -> None:
        self._texts, self._places = texts, places

    def __len__(self) -> int:
        return len(self._places)

    def at(self, places: NDArray[np.integer[Any]]) -> list[str]:
        """The texts at places that exist."""
        inner = self._places[places]
        if isinstance(self._texts, TextsView):
            return self._texts.at(inner)
        return [self._texts[place] for place in inner.tolist()]

    def one(self, place: int) -> str:
        """The text at a place that exists."""
        return self._texts[int(self._places[place])]


class Joined(TextsView):
    """Several sequences of texts one after the other, without a copy.

    Args:
        parts: The sequences.
    """

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._of_all = [part for part in parts if len(part)]
        self._starts = np.cumsum([0, *map(len, self._of_all)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def at(self, places: NDArray[np.integer[Any]]) -> list[str]:
        """The texts at places that exist."""
        parts = np.searchsorted(self._starts, places, side="right") - 1
        inner = places - self._starts[parts]
        return [self._of_all[part][place] for part, place in zip(parts.tolist(), inner.tolist(), strict=True)]

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self._of_all)


class Paths(Sequence[Path]):
    """Texts as paths, made when they are asked for.

    Args:
        names: The texts.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Path, ...]: ...

    def __getitem__(self, index: int | slice) -> Path | tuple[Path, ...]:
        return tuple(map(Path, self.names[index])) if isinstance(index, slice) else Path(self.names[index])

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (tuple, Paths)):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))


def as_texts(texts: Iterable[str]) -> TextsView:
    """Texts in flat arrays, unless they are in such already."""
    return texts if isinstance(texts, TextsView) else Texts(texts)


def file_names(files: Sequence[Path]) -> Sequence[str]:
    """Paths as texts, without a path object for each where they are in flat arrays."""
    return files.names if isinstance(files, Paths) else tuple(map(os.fspath, files))


def _encoded(text: str) -> bytes:
    """A text as bytes; half a surrogate pair too."""
    return text.encode("utf-8", "surrogatepass")


def _smallest(numbers: NDArray[np.int64]) -> NDArray[np.integer[Any]]:
    """Whole numbers, none below 0, in four bytes each if they fit."""
    return numbers.astype(np.uint32) if not len(numbers) or numbers.max() < 2**32 else numbers
