"""``--json``: what a verb answers as one JSON object on standard output, and everything else on standard error."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autotimm.cli.parser import Given
from autotimm.config import Option
from autotimm.config.value_types import Flag
from autotimm.errors import AutotimmError

__all__ = ["JSON", "answering", "json_text", "print_error", "wants_json"]

JSON = Option(Flag(), "print one JSON object, and everything else on standard error", "Options")
"""The option, which every verb has."""


@contextlib.contextmanager
def answering(given: Given) -> Iterator[dict[str, Any]]:
    """Collect the answer of a verb, and print it at the end if ``--json`` was given.

    Meanwhile everything that the verb, its libraries and its child processes print on standard output goes to standard
    error. Of several processes the first prints. Nothing is printed if the verb fails: see :func:`print_error`.

    Args:
        given: The arguments, of a verb that has the option :data:`JSON`.

    Yields:
        The answer, to be filled: strings, numbers, paths, and mappings and lists of these. Without ``--json`` it is
        ignored.

    Example::

        with answering(given) as answer:
            run = open_folder(given).resume()
            print_run(run)  # for people
            answer["run"] = run.path
    """
    answer: dict[str, Any] = {}
    if not given.value("json"):
        yield answer
        return
    with _text_on_stderr():
        yield answer
    if _is_first_process():
        print(json_text(answer), flush=True)


def json_text(answer: Mapping[str, Any]) -> str:
    """An answer as JSON in ASCII, so that no name can steer a terminal. JSON has no NaN and no infinity: they are null.

    Example:
        >>> print(json_text({"accuracy": float("nan"), "classes": ("cat",)}))
        {
          "accuracy": null,
          "classes": [
            "cat"
          ]
        }
    """
    return json.dumps(_plain(answer), indent=2, allow_nan=False)


def wants_json(words: Sequence[str]) -> bool:
    """Whether a command that may be wrong in other respects asks for JSON.

    Example:
        >>> wants_json(["--epochs", "x", "--json"]), wants_json(["--json=false"]), wants_json(["--", "--json"])
        (True, False, False)
    """
    options = words[: words.index("--")] if "--" in words else words
    return any(word in ("--json", "--json=true") for word in options)


def print_error(error: BaseException, exit_code: int) -> None:
    """Print an error as the answer: the text, the kind such as ``DataError``, and the exit code."""
    if not _is_first_process():
        return
    kind = type(error).__name__ if isinstance(error, AutotimmError) else "Interrupted"
    text = str(error) or "interrupted"
    print(json_text({"error": text, "kind": kind, "exit_code": exit_code}), flush=True)


def _is_first_process() -> bool:
    if "pytorch_lightning" not in sys.modules:
        return True
    from pytorch_lightning.utilities import rank_zero_only

    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]  # set by Lightning when it is imported


@contextlib.contextmanager
def _text_on_stderr() -> Iterator[None]:
    """Send standard output to standard error, also that of libraries in C and of child processes."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return os.fspath(value) if isinstance(value, os.PathLike) else value
