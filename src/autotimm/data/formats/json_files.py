"""JSON files of annotations: recognized without parsing them, and read whatever their size."""

from __future__ import annotations

import codecs
import mmap
import re
from pathlib import Path
from typing import Any

from autotimm.errors import DataError
from autotimm.serialization import read_json

__all__ = ["contains", "load_json"]

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as PowerShell writes files


def contains(path: Path, *patterns: re.Pattern[bytes]) -> bool:
    """Whether a file matches all patterns, without parsing half a gigabyte."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            wide = content[:2] in _UTF_16
            searched = content[:].decode("utf-16").encode() if wide else content
            return all(pattern.search(searched) for pattern in patterns)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def load_json(path: Path) -> Any:
    """Read a JSON file of any size.

    Raises:
        DataError: If it cannot be read, or is not JSON.
    """
    try:
        return read_json(path, largest=None)  # large data sets have files of gigabytes
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}. Export it again.") from error
