"""The types of option values: how each is parsed from text, checked and described.

Seeds of single streams are written ``init=7,order=3``.
"""

from __future__ import annotations

import math
import operator
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, SupportsFloat, SupportsIndex

from autotimm.config.byte_size import BYTES_MUST, exact_bytes, read_bytes
from autotimm.constants import STREAMS
from autotimm.errors import nearest
from autotimm.image_size import MUST, ImageSize, read_image_size, written_size

__all__ = [
    "Bytes",
    "Choice",
    "Either",
    "Flag",
    "Kind",
    "Name",
    "Number",
    "Path",
    "Seeds",
    "Share",
    "Size",
    "StreamSeeds",
    "TRUTH",
    "Text",
    "Times",
    "Whole",
    "Words",
    "path_problem",
    "stream_seeds",
]


TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Kind(ABC):
    """A type of value."""

    @property
    @abstractmethod
    def must(self) -> str:
        """What the value must be, as it stands in an error sentence."""

    @property
    @abstractmethod
    def metavar(self) -> str:
        """The word that stands for the value in the help."""

    @abstractmethod
    def read(self, value: object) -> Any:
        """Convert a value of this kind, given as text or as the thing itself.

        Raises:
            ValueError: If it is not of this kind.
            TypeError: If it is not of this kind.
        """

    def suggest(self, value: object) -> str:
        """Name what the value may have been meant to be; an empty string if nothing is near."""
        return ""

    def word(self, value: Any) -> object:
        """Turn a value into what a YAML file holds."""
        return list(value) if isinstance(value, tuple) else value


def _refuse(condition: bool) -> None:
    if condition:
        raise ValueError


_MOST_BITS = 31  # of a count: more fits into no size, and no loop ends


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number from ``low`` on, with at most ``bits`` bits; 31 if they are not given."""

    low: int = 0
    bits: int | None = None
    metavar: str = "N"

    @property
    def must(self) -> str:
        """What the value must be."""
        if self.bits is None:
            return f"a whole number, {self.low} or more"
        return f"a whole number in [{self.low}, 2**{self.bits})"

    def suggest(self, value: object) -> str:
        """Say what is wrong with a number that is too large."""
        large = re.fullmatch(r"\d{10,}", str(value)) and self.bits is None
        return f"It is larger than {2**_MOST_BITS - 1:,}." if large else ""

    def read(self, value: object) -> int:
        """Convert text or an integer of any library; a bool is not a number."""
        if isinstance(value, bool) or not isinstance(value, (str, SupportsIndex)):
            raise TypeError
        # Not int() of everything: it cuts off the fraction of whatever has one.
        number = int(value) if isinstance(value, str) else operator.index(value)
        _refuse(number < self.low or number.bit_length() > (_MOST_BITS if self.bits is None else self.bits))
        return number


@dataclass(frozen=True)
class Size(Kind):
    """The size of images: a whole number for a square, or height and width."""

    must: str = MUST
    metavar: str = "N|HxW"

    def read(self, value: object) -> ImageSize:
        """Convert a number, text such as ``480x640``, or a pair."""
        return read_image_size(value)

    def word(self, value: Any) -> object:
        """A number, or ``480x640``."""
        return value if isinstance(value, int) else written_size(value)


_SMALLEST, _LARGEST = 2.0**-126, 2.0**128 - 2.0**104  # of the 32-bit floats with full precision


@dataclass(frozen=True)
class Number(Kind):
    """A number between ``low`` and ``high``; each end counts unless it is said to be open."""

    low: float = 0.0
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    metavar: str = "X"

    @property
    def must(self) -> str:
        """What the value must be."""
        if self.high == math.inf:
            return f"a number {'above' if self.low_open else 'of at least'} {self.low:g}"
        return f"a number in {'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"

    def suggest(self, value: object) -> str:
        """Say what is wrong with a number that is too large or too small for torch."""
        try:
            number = abs(float(str(value)))
        except ValueError:
            return ""
        small, large = 0 < number < _SMALLEST, _LARGEST < number < math.inf
        return f"torch computes with numbers from {_SMALLEST:.2g} to {_LARGEST:.2g}." if small or large else ""

    def read(self, value: object) -> float:
        """Convert text or a number; a bool, infinity, nan and what a 32-bit float cannot hold are refused."""
        if isinstance(value, bool) or not isinstance(value, (str, SupportsFloat, SupportsIndex)):
            raise TypeError
        try:
            number = float(value)
        except OverflowError:  # an integer of more than 308 digits
            raise ValueError from None
        # torch computes with 32 bits: 1e39 is infinite there, and 1e-46 is 0.
        _refuse(number != 0 and not _SMALLEST <= abs(number) <= _LARGEST)
        below = number <= self.low if self.low_open else number < self.low
        above = number >= self.high if self.high_open else number > self.high
        _refuse(not math.isfinite(number) or below or above)
        return number


_MOST_TIMES = 100


@dataclass(frozen=True)
class Times(Kind):
    """A multiple, such as ``2x``; as a number it is given without the x."""

    must: str = f"a multiple from 0x to {_MOST_TIMES}x, such as 2x"
    metavar: str = "Nx"

    def read(self, value: object) -> float:
        """Convert text with or without the x, or a number."""
        text = value.strip().lower().removesuffix("x") if isinstance(value, str) else value
        return Number(0, _MOST_TIMES).read(text)

    def word(self, value: Any) -> object:
        """The number with the x."""
        return f"{value:g}x" if float(f"{value:g}") == value else f"{value!r}x"


@dataclass(frozen=True)
class Share(Kind):
    """A share of a whole, above 0: a percentage such as ``10%``, or a number such as 0.1."""

    must: str = "a share above 0 and at most 1, such as 10% or 0.1"
    metavar: str = "SHARE"

    def read(self, value: object) -> float:
        """Convert a percentage or a number."""
        number = Number(0, 100, low_open=True)
        if isinstance(value, str) and value.strip().endswith("%"):
            return number.read(value.strip()[:-1]) / 100
        return Number(0, 1, low_open=True).read(value)

    def word(self, value: Any) -> object:
        """A percentage."""
        return f"{100 * value:g}%"


@dataclass(frozen=True)
class Bytes(Kind):
    """A number of bytes, as such or with a unit."""

    must: str = BYTES_MUST
    metavar: str = "SIZE"

    def read(self, value: object) -> int:
        """Convert a number, or text such as ``20GB``."""
        return read_bytes(value)

    def word(self, value: Any) -> object:
        """The number with the largest unit that divides it."""
        return exact_bytes(value)


@dataclass(frozen=True)
class Flag(Kind):
    """True or false; on the command line the bare ``--option`` means true."""

    must: str = "true or false"
    metavar: str = "true|false"

    def read(self, value: object) -> bool:
        """Convert a bool or one of the words true, yes, on, false, no, off."""
        if isinstance(value, bool):
            return value
        _refuse(not isinstance(value, str) or value.lower() not in TRUTH)
        return TRUTH[str(value).lower()]


@dataclass(frozen=True)
class Text(Kind):
    """Any text but the empty one."""

    must: str = "text"
    metavar: str = "TEXT"

    def read(self, value: object) -> str:
        """Return the text."""
        _refuse(not isinstance(value, str) or not value)
        return str(value)


@dataclass(frozen=True)
class Name(Kind):
    """A name of something that can be imported: a word, or words with dots between them."""

    must: str = "a name, or an import path such as my_package.Mine"
    metavar: str = "TEXT"

    def read(self, value: object) -> str:
        """Return the name."""
        _refuse(not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_]\w*(-\w+)*(\.[A-Za-z_]\w*)*", str(value)))
        return str(value)


@dataclass(frozen=True)
class Path(Kind):
    """A file or folder; ``~`` is the home folder."""

    must: str = "a path"
    metavar: str = "PATH"

    def read(self, value: object) -> str:
        """Convert text or a ``pathlib.Path``."""
        _refuse(not isinstance(value, (str, os.PathLike)) or not str(value))
        path = os.path.expanduser(str(value))
        _refuse(bool(path_problem(path)))
        return path

    def suggest(self, value: object) -> str:
        """Say why no file can have this name."""
        return path_problem(str(value)) if isinstance(value, (str, os.PathLike)) else ""


_MOST_BYTES_OF_NAME, _MOST_BYTES_OF_PATH = 255, 4095  # of Linux and macOS; most file systems have the first


def path_problem(path: str) -> str:
    """Why no file can have a path, as a sentence; empty if one can.

    A system call with such a path raises an error that is not the one of a missing file.

    Example:
        >>> path_problem("photos"), path_problem("a" * 256)
        ('', 'A name in it is longer than 255 bytes, which is the most that a file can have.')
    """
    if "\0" in path:
        return "It contains a NUL character, which no file name can have."
    try:
        content = os.fsencode(path)
    except UnicodeEncodeError:
        return "It contains a half of a surrogate pair, which no file name can have."
    if max(map(len, content.split(b"/"))) > _MOST_BYTES_OF_NAME:
        return f"A name in it is longer than {_MOST_BYTES_OF_NAME} bytes, which is the most that a file can have."
    if len(content) > _MOST_BYTES_OF_PATH:
        return f"It is longer than {_MOST_BYTES_OF_PATH} bytes, which is the most that a path can have."
    return ""


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few words."""

    TOO_MANY: ClassVar[str] = "NAME"
    options: tuple[str, ...]

    @property
    def must(self) -> str:
        """What the value must be."""
        return f"one of {', '.join(self.options)}"

    @property
    def metavar(self) -> str:
        """The words themselves, or a stand-in where they are too many."""
        words = "|".join(self.options)
        return words if len(words) <= 20 else self.TOO_MANY

    def read(self, value: object) -> str:
        """Return the word."""
        _refuse(str(value) not in self.options)
        return str(value)

    def suggest(self, value: object) -> str:
        """Name the nearest words."""
        return nearest(str(value), self.options)


@dataclass(frozen=True)
class Words(Kind):
    """Several words: a list, or text with commas. If there are ``options``, each must be one of them."""

    options: tuple[str, ...] = ()

    @property
    def must(self) -> str:
        """What the value must be."""
        return f"one or more of {', '.join(self.options)}" if self.options else "words with commas between them"

    @property
    def metavar(self) -> str:
        """The first two words."""
        return ",".join(self.options[:2] or ("A", "B"))

    def read(self, value: object) -> tuple[str, ...]:
        """Split text at the commas, or check a list of text."""
        words = value.split(",") if isinstance(value, str) else value
        if not isinstance(words, (list, tuple)) or not words or not all(isinstance(word, str) for word in words):
            raise TypeError
        stripped = tuple(word.strip() for word in words)
        known = self.options or stripped
        _refuse(not all(word and word in known for word in stripped) or len({*stripped}) < len(stripped))
        return stripped

    def suggest(self, value: object) -> str:
        """Name the words nearest to the first wrong one."""
        words = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else ()
        wrong = [str(word).strip() for word in words if str(word).strip() not in self.options]
        return nearest(wrong[0], self.options) if wrong else ""


@dataclass(frozen=True)
class Either(Kind):
    """The first of several kinds that the value fits."""

    kinds: tuple[Kind, ...]
    must: str = ""
    metavar: str = ""

    def read(self, value: object) -> Any:
        """Try the kinds in turn."""
        for kind in self.kinds[:-1]:
            try:
                return kind.read(value)
            except (TypeError, ValueError):
                continue
        return self.kinds[-1].read(value)


_BITS = 32


@dataclass(frozen=True)
class StreamSeeds(Kind):
    """Pairs of a stream and its seed: text, a list of such pairs, or a mapping. Read into words like ``init=7``."""

    must: str = f"pairs such as init=7,order=3 with {', '.join(STREAMS[:-1])} or {STREAMS[-1]}"
    metavar: str = "init=N,..."

    def read(self, value: object) -> tuple[str, ...]:
        """Split, check and sort the pairs, so that equal choices are written alike."""
        seeds: dict[str, int] = {}
        for name, text in _pairs(value):
            number = int(text) if isinstance(text, str) else text
            if name not in STREAMS or name in seeds or isinstance(number, bool) or not isinstance(number, int):
                raise ValueError
            if number < 0 or number.bit_length() > _BITS:
                raise ValueError
            seeds[name] = number
        if not seeds:
            raise ValueError
        return tuple(f"{name}={seeds[name]}" for name in STREAMS if name in seeds)

    def suggest(self, value: object) -> str:
        """Name the streams nearest to the first unknown one."""
        names = [name for name, _ in _pairs(value) if name not in STREAMS]
        return nearest(names[0], STREAMS) if names else "Seeds are whole numbers in [0, 2**32), one per stream."


@dataclass(frozen=True)
class Seeds(Kind):
    """How many seeds, or which: ``5``, or ``1,2,3``."""

    must: str = "a number of seeds, 2 or more, or different seeds such as 1,2,3"
    metavar: str = "N|A,B,..."

    def read(self, value: object) -> int | tuple[int, ...]:
        """Convert a number, text with commas, or a list of numbers."""
        if isinstance(value, str) and "," in value:
            value = [int(word) for word in value.split(",") if word.strip()]
        if isinstance(value, (list, tuple, range)):
            kind = Whole(bits=_BITS)
            seeds = tuple(kind.read(seed) for seed in value)
            if len(seeds) < 2 or len({*seeds}) < len(seeds):
                raise ValueError
            return seeds
        return Whole(2).read(value)


def _pairs(value: object) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(name), number) for name, number in value.items()]
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        return []  # refused by the caller
    parts = [word.partition("=") for word in words]
    return [(name.strip(), number.strip()) for name, _, number in parts]


def stream_seeds(words: tuple[str, ...] | None) -> dict[str, int]:
    """The seed of each stream that has one of its own.

    Example:
        >>> stream_seeds(("init=7", "order=3"))
        {'init': 7, 'order': 3}
    """
    return {name: int(number) for name, _, number in (word.partition("=") for word in words or ())}
