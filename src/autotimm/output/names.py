"""Names for files that are made from images: inside of one folder, and never twice the same."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

__all__ = ["file_names"]


def file_names(ids: Sequence[str], suffix: str = ".png") -> list[str]:
    """Name a file for each image: its place below the folder that all are in, with another ending.

    Images that differ in their endings alone keep them, since their files must differ.

    Args:
        ids: Distinct ``/``-separated names of images, relative to one folder or as somebody typed them.
        suffix: The ending.

    Example:
        >>> file_names(["a/1.jpg", "b/1.jpg"]), file_names(["1.jpg", "1.png"])
        (['a/1.png', 'b/1.png'], ['1.jpg.png', '1.png.png'])
        >>> file_names(["../x/1.jpg", "/data/2.jpg"])[0].startswith("..")
        False
    """
    paths = [PurePosixPath(id) for id in _inside(ids)]
    whole: set[int] = set()
    while True:
        names = [f"{path if at in whole else path.with_suffix('')}{suffix}" for at, path in enumerate(paths)]
        # Systems that do not tell a.png from A.png would write one over the other.
        counts = Counter(name.casefold() for name in names)
        twice = {at for at, name in enumerate(names) if counts[name.casefold()] > 1}
        if twice <= whole:
            return [f"{index}-{name}" if index in twice else name for index, name in enumerate(names)]
        whole |= twice


def _inside(ids: Sequence[str]) -> list[str]:
    """The names below the folder that all are in, so that none leads out of it."""
    full = [os.path.abspath(id) for id in ids]
    common = os.path.commonpath([os.path.dirname(one) for one in full])
    return [os.path.relpath(one, common).replace(os.sep, "/") for one in full]
