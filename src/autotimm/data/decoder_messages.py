"""Messages of Pillow and libtiff while they decode a file, collected so that a notice can name the file.

Pillow warns through Python, without the name of the file. libtiff writes to the standard error output, with a name that
Pillow has made up, and goes on: of a damaged page it may decode the half, and no error is raised.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

__all__ = ["heard", "listening", "silent"]

_MAPS = "/proc/self/maps"  # of Linux; elsewhere libtiff speaks for itself
_LONGEST = 400
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


class _Ear(threading.local):
    messages: list[str] | None = None


_EAR = _Ear()


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Collect the messages about what this thread reads, each once; the main thread must be :func:`listening`."""
    before, _EAR.messages = _EAR.messages, []
    try:
        yield _EAR.messages
    finally:
        _EAR.messages = before


def _note(message: str) -> bool:
    """Keep a message of this thread; ``False`` if nobody listens."""
    if _EAR.messages is None:
        return False
    line = " ".join(message.split()).rstrip(".")
    if line and line not in _EAR.messages:
        _EAR.messages.append(line)
    return True


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Pass the messages of each thread to its :func:`heard`. Use it in one thread only: it changes warning filters."""
    _listen_to_libtiff()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"PIL\.")
        show = warnings.showwarning

        def showwarning(message: Any, *where: Any, **options: Any) -> None:
            if not _note(str(message)):
                show(message, *where, **options)

        warnings.showwarning = showwarning
        yield


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppress messages about a file that were reported when the data were checked."""
    _listen_to_libtiff()
    with warnings.catch_warnings(), heard():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        yield


@functools.cache
def _listen_to_libtiff() -> Any:
    """Take over the messages of the libtiff that Pillow uses; returns what must be kept alive, or nothing."""
    library = _libtiff()
    if library is None:
        return None

    def say(module: bytes | None, form: bytes, values: int) -> None:
        buffer = ctypes.create_string_buffer(_LONGEST)
        ctypes.CDLL(None).vsnprintf(buffer, _LONGEST, form, ctypes.c_void_p(values))
        # The name is one that Pillow has made up, or that of a function.
        if not _note(message := buffer.value.decode("utf-8", "replace")):
            print(f"{(module or b'libtiff').decode('utf-8', 'replace')}: {message}", file=sys.stderr)

    handler = _HANDLER(say)
    library.TIFFSetWarningHandler(handler)
    library.TIFFSetErrorHandler(handler)
    return handler


def _libtiff() -> Any:
    from PIL import _imaging  # noqa: F401  # loads it

    try:
        with open(_MAPS, encoding="utf-8", errors="replace") as maps:
            paths = {line.split(maxsplit=5)[-1].strip() for line in maps if "libtiff" in line}
        return ctypes.CDLL(paths.pop()) if len(paths) == 1 else None
    except OSError:
        return None
