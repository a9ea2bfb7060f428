"""What the names of files and folders say: the split, the id of a sample."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

__all__ = ["relative", "split_of", "text"]

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
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def relative(path: Path, root: Path) -> str:
    """The id of a file: its path relative to the root of the data, as valid text."""
    try:
        return text(path.relative_to(root).as_posix())
    except ValueError:
        return text(os.path.relpath(path, root).replace(os.sep, "/"))


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
