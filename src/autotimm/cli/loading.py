"""A word to whoever waits while torch is being loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["loading_torch"]

_LINE = "loading torch ..."


@contextmanager
def loading_torch(progress: bool = True) -> Iterator[None]:
    """Show a line on a terminal while the imports inside take their seconds, and wipe it out again.

    Args:
        progress: Whether the user wants to see any progress.
    """
    shown = progress and "torch" not in sys.modules and sys.stderr.isatty()
    if shown:
        print(_LINE, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            # Blanks rather than an escape sequence: every terminal knows them.
            print(f"\r{' ' * len(_LINE)}\r", end="", file=sys.stderr, flush=True)
