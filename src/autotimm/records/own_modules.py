"""Where the user's own modules are looked for: after all installed packages, and only once one of them is needed."""

from __future__ import annotations

import os
import sys

__all__ = ["search_also", "search_path", "use_own_modules"]

_OWN_PLACES: list[str] = []


def search_also(folder: str | os.PathLike[str]) -> None:
    """Look for the user's own modules in a folder, too, after all installed packages.

    It joins ``sys.path`` only with the first of these modules. Libraries import what they can do without, such as
    ``apex`` or ``wandb``, and read the entry points of packages: from the folder that somebody works in, both would be
    the code of whoever filled it.
    """
    if (place := os.path.abspath(folder)) not in _OWN_PLACES:
        _OWN_PLACES.append(place)


def search_path() -> list[str]:
    """Where modules are looked for, those of the user's own included."""
    return [*sys.path, *(place for place in _OWN_PLACES if place not in sys.path)]


def use_own_modules() -> None:
    """Let Python find the user's own modules."""
    sys.path[:] = search_path()
