"""The exceptions of autotimm and the one sentence that they all speak.

::

    AutotimmError                 exit code 1
    ├── UsageError (ValueError)   2   an argument, option or key is wrong
    ├── DataError                 3   the data on disk is wrong
    ├── ModelError                4   a backbone or checkpoint is wrong
    │   └── WeightsError          4   pretrained weights cannot be had, or do not fit
    ├── DifferentError            5   two runs that should be equal are not
    └── RunError                  1   a run failed while it ran

Example:
    >>> print(sentence("val_split", "ImageDataModule", "a number in [0, 1)", 1.5, "Give 0 to train on everything."))
    The `val_split` of ImageDataModule must be a number in [0, 1). Got 1.5 instead. Give 0 to train on everything.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "AutotimmError",
    "DataError",
    "DifferentError",
    "ModelError",
    "RunError",
    "UsageError",
    "WeightsError",
    "is_whole",
    "missing_extra",
    "nearest",
    "number",
    "refuse_unknown",
    "require",
    "require_choice",
    "require_flags",
    "sentence",
]


class AutotimmError(Exception):
    """Root of every error that autotimm raises on purpose.

    Attributes:
        exit_code: What the command line exits with.
    """

    exit_code: ClassVar[int] = 1


class UsageError(AutotimmError, ValueError):
    """An argument, an option or a key of a configuration is wrong. It is also a ``ValueError``."""

    exit_code = 2


class DataError(AutotimmError):
    """The images, folders or tables on disk cannot be used as they are."""

    exit_code = 3


class ModelError(AutotimmError):
    """A backbone or a checkpoint cannot be used as it is."""

    exit_code = 4


class WeightsError(ModelError):
    """Pretrained weights cannot be had, or do not fit the backbone."""


class RunError(AutotimmError):
    """A run failed while it ran: a loss that is not a number, a full disk, a device out of memory."""


class DifferentError(AutotimmError):
    """Two runs that were expected to be equal are not."""

    exit_code = 5


def sentence(name: str, owner: str, must: str, got: object, do: str) -> str:
    """Say what of whom must be which, what was given, and what to do.

    Args:
        name: The argument or field.
        owner: The class, function or file that it belongs to.
        must: What it must be, without the words "must be".
        got: The offending value; its ``repr`` is shown.
        do: The cure, as a sentence.
    """
    return f"The `{name}` of {owner} must be {must}. Got {got!r} instead. {do}"


def missing_extra(what: str, extra: str) -> UsageError:
    """The error that optional packages are not installed, with the line that installs them.

    Args:
        what: What needs them.
        extra: Their name in ``project.optional-dependencies`` of pyproject.toml.

    Example:
        >>> print(missing_extra("The launcher ray", "ray"))
        The launcher ray needs optional packages: pip install 'autotimm[ray]'
    """
    return UsageError(f"{what} needs optional packages: pip install 'autotimm[{extra}]'")


def nearest(word: str, options: Iterable[str], n: int = 3) -> str:
    """Suggest the options that are spelled most like ``word``; an empty string if none is close.

    Case, dashes and underscores do not count. Beside the closest only those are named that are about as close.

    Example:
        >>> nearest("resnet81", ["resnet18", "vit_tiny"])
        "Did you mean 'resnet18'?"
    """
    by_lower = {option.lower(): option for option in options}
    likeness = {option: _likeness(word, option) for option in by_lower.values()}
    best = max(likeness.values(), default=0.0)
    close = [option for option, score in likeness.items() if score > 0 and score >= best - _AS_CLOSE]
    close.sort(key=lambda option: (-likeness[option], option))
    return f"Did you mean {' or '.join(map(repr, close[:n]))}?" if close else ""


_AS_CLOSE = 0.05


def _likeness(word: str, option: str) -> float:
    """How much like a slip for ``option`` a word looks, in [0, 1]; 0 if nobody would have meant it.

    By the ratio of difflib alone, dashes that all options begin with count as common letters, and a short option like
    ``lr`` is near to nothing that contains it.
    """
    given, known = (re.findall(r"[^\W_]+", text.lower()) for text in (word, option))
    typed, meant = "".join(given), "".join(known)
    short, long = sorted((typed, meant), key=len)
    ratio = difflib.SequenceMatcher(None, meant, typed).ratio()
    if len(short) >= 3 and long.startswith(short):
        return 0.8 + 0.2 * ratio  # val for validate, outdir for out
    given_words, known_words = f" {' '.join(given)} ", f" {' '.join(known)} "
    if short and (given_words in known_words or known_words in given_words):
        return 0.75 + 0.25 * ratio  # workers for num_workers, max_epochs for epochs
    if len(short) >= 5 and short in long:
        return 0.7 + 0.2 * ratio  # kappa for CohenKappa
    # Two letters of three may be a slip of the fingers; two thirds of a long word are another word.
    return ratio if ratio >= (0.66 if len(typed) in (3, 4) else 0.72) else 0.0


def refuse_unknown(unknown: Iterable[str], owner: str, known: Iterable[str]) -> None:
    """Raise a :class:`UsageError` with the nearest names if there are arguments that nobody knows."""
    for name in unknown:
        raise UsageError(f"{owner} takes no argument `{name}`. {nearest(name, known)}".rstrip())


def require(condition: bool, name: str, owner: str, must: str, got: object, do: str) -> None:
    """Raise a :class:`UsageError` in the words of :func:`sentence` unless ``condition`` holds."""
    if not condition:
        raise UsageError(sentence(name, owner, must, got, do))


def number(value: object) -> float:
    """The value if it is a finite number, else nan, which fails every comparison that it is put to.

    Example:
        >>> [0 <= number(value) < 1 for value in (0.5, 1, "0.5", None, True)]
        [True, False, False, False, False]
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf"):
        return float(value)
    return float("nan")


def is_whole(value: object, least: int) -> bool:
    """Whether the value is an integer of at least ``least``; ``True`` and 2.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def require_flags(owner: str, **flags: object) -> None:
    """Raise a :class:`UsageError` unless all values are bools: "no" and "false" would count as true."""
    for name, value in flags.items():
        require(isinstance(value, bool), name, owner, "True or False", value, "Give one of them.")


def require_choice(name: str, owner: str, value: object, options: Iterable[str]) -> None:
    """Raise a :class:`UsageError` that names the nearest options unless ``value`` is one of them."""
    options = list(options)
    if value not in options:
        cure = nearest(str(value), options) or "Choose one of these."
        raise UsageError(sentence(name, owner, f"one of {', '.join(options)}", value, cure))
