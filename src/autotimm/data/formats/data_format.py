"""What a data format is: something that can be seen in a listing, and read from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from autotimm.data.formats.listing import Listing
from autotimm.data.table import Table

__all__ = ["Format", "ReadOptions", "Sighting"]


class Sighting(NamedTuple):
    """What a format sees in a listing.

    Attributes:
        what: What there is, for people, such as ``2 COCO files with outlines``.
        tasks: The tasks that it can be used for, the most specific first.
        certain: Whether files of this format were seen. ``False`` is a guess, which counts if no format is certain.
        missing: What has to be added before it can be read, as a sentence; empty if nothing is missing.
    """

    what: str
    tasks: tuple[str, ...]
    certain: bool = True
    missing: str = ""


class ReadOptions(NamedTuple):
    """How data are read.

    Attributes:
        masks: Whether samples have a mask for each object.
        strict: Refuse what is wrong instead of leaving it out.
        colors: What the values of label images mean, where no file gives it.
    """

    masks: bool = False
    strict: bool = False
    colors: Mapping[str, Any] | str | Path | None = None


class Format(ABC):
    """A data format. It keeps no state: all that it knows of a folder is in the listing.

    To add one, write a subclass in a module of its own and put an instance of it into
    :data:`autotimm.data.formats.recognize.FORMATS`.

    Attributes:
        name: What ``--format`` calls it. Two formats of different tasks may share a name.
        tasks: The tasks that data of this format can be for.
        covers: Formats that are not seen where this one is: their files are a part or a copy of its own.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    covers: ClassVar[tuple[type[Format], ...]] = ()

    @abstractmethod
    def see(self, listing: Listing) -> Sighting | None:
        """What there is of this format; ``None`` if nothing.

        Raises:
            DataError: If there is something of this format that contradicts itself.
        """

    def hint(self, listing: Listing) -> str:
        """A sentence on a file of a folder that can be given instead of the folder; empty if there is none."""
        return ""

    @abstractmethod
    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> Mapping[str, Table]:
        """Read the data.

        Args:
            listing: The listing.
            notices: Receives one line for each thing that was left out or looks strange.
            options: How they are read.

        Returns:
            A table per split, always including ``train``.

        Raises:
            DataError: If the data cannot be used.
        """
