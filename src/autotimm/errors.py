"""The exceptions of autotimm, and helpers that word their messages.

::

    AutotimmError                 exit code 1
    ├── UsageError (ValueError)   2   an argument, option or key is wrong
    ├── DataError                 3   the data on disk is wrong
    │   ├── ChangedDataError      3   files changed while a run trained; its folder is complete
    │   └── UnreadableSampleError 3   the file of a sample cannot be read; names the sample
    ├── ModelError                4   a backbone or checkpoint is wrong
    │   └── WeightsError          4   pretrained weights are unavailable or do not fit
    ├── DifferentError            5   two runs that should be equal are not
    ├── IncompleteError           6   a record lacks something, so that a run cannot be called identical
    └── RunError                  1   a run failed

Example:
    >>> print(sentence("val_split", "ImageDataModule", "a number in [0, 1)", 1.5, "Give 0 to train on everything."))
    The `val_split` of ImageDataModule must be a number in [0, 1). Got 1.5 instead. Give 0 to train on everything.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import ClassVar

__all__ = [
    "AutotimmError",
    "ChangedDataError",
    "DataError",
    "DifferentError",
    "IncompleteError",
    "LossError",
    "ModelError",
    "RunError",
    "UnreadableSampleError",
    "UsageError",
    "WeightsError",
    "error_of",
    "is_whole",
    "join_names",
    "missing_extra",
    "nearest",
    "number",
    "printable",
    "refuse_unknown",
    "require",
    "require_choice",
    "require_flags",
    "sentence",
    "shortened",
]


class AutotimmError(Exception):
    """Base class of all errors that autotimm raises on purpose.

    Attributes:
        exit_code: The exit code of the command line.
    """

    exit_code: ClassVar[int] = 1


class UsageError(AutotimmError, ValueError):
    """An argument, an option or a key of a configuration is wrong. It is also a ``ValueError``."""

    exit_code = 2


class DataError(AutotimmError):
    """The images, folders or tables on disk cannot be used as they are."""

    exit_code = 3


class ChangedDataError(DataError):
    """Files changed while a run trained on them. The run has finished, and its folder is complete."""


class UnreadableSampleError(DataError):
    """The file of a sample cannot be read, which was found when the sample was loaded.

    Attributes:
        id: The sample's id.
    """

    id: str = ""

    @classmethod
    def of(cls, id: str, error: DataError) -> UnreadableSampleError:
        """Return the error of a sample; it keeps its id on the way out of a loading process."""
        unreadable = cls(str(error))
        unreadable.id = id
        return unreadable


class ModelError(AutotimmError):
    """A backbone or a checkpoint cannot be used as it is."""

    exit_code = 4


class WeightsError(ModelError):
    """Pretrained weights are unavailable, or do not fit the backbone."""


class RunError(AutotimmError):
    """A run failed, for example because of a NaN loss, a full disk or too little memory."""


class LossError(RunError):
    """The loss of a training is infinite or not a number."""


class DifferentError(AutotimmError):
    """Two runs that were expected to be equal are not."""

    exit_code = 5


class IncompleteError(AutotimmError):
    """A record is damaged, cut or unfinished, so that a run cannot be called identical to it."""

    exit_code = 6


def sentence(name: str, owner: str, must: str, got: object, do: str) -> str:
    """The standard message for an invalid value: what it must be, what was given, and what to do.

    Args:
        name: The argument or field.
        owner: The class, function or file that it belongs to.
        must: What it must be, without the words "must be".
        got: The invalid value; its ``repr`` is shown, the middle of a long one left out.
        do: What to do, as a sentence.
    """
    return f"The `{name}` of {owner} must be {must}. Got {shortened(repr(got))} instead. {do}"


def shortened(text: str, limit: int = 300) -> str:
    """A text, without its middle if it is too long for a message.

    Example:
        >>> shortened("abcdefghij", 4)
        'ab...j'
    """
    # A path of 4096 characters would hide what is wrong with it.
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 4 :]}"


_UNSAFE = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of surrogate pairs, separators of lines and paragraphs
# They reorder the letters after them: a name may end in "gpj.exe" and look as if it ended in "exe.jpg".
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object, keep: str = "") -> str:
    r"""A text as it may be shown: what would steer a terminal, or reorder the line, as Python's escape sequences.

    Names of files, classes and columns are written by others. An escape sequence in one could erase an error, recolor
    a verdict or rename the window.

    Args:
        text: The text, or an object whose text is shown.
        keep: Characters that stay as they are, such as a line break in a message of several lines.

    Example:
        >>> printable("cat\x1b[2J"), printable("Käse")
        ('cat\\x1b[2J', 'Käse')
    """
    text = str(text)
    if text.isprintable():  # nearly always
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character not in keep and (unicodedata.category(character) in _UNSAFE or character in _REORDERING)
        else character
        for character in text
    )


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


def error_of(exit_code: int) -> type[AutotimmError]:
    """The class of the errors with which a process ends with an exit code; :class:`RunError` for any other code.

    Example:
        >>> error_of(3)
        <class 'autotimm.errors.DataError'>
    """
    return next((error for error in (UsageError, DataError, ModelError) if error.exit_code == exit_code), RunError)


def nearest(word: str, options: Iterable[str], n: int = 3) -> str:
    """Suggest the options that are spelled most like ``word``; an empty string if none is close.

    Case, dashes and underscores are ignored. Other options are named only if they are about as close as the closest.

    Example:
        >>> nearest("resnet81", ["resnet18", "vit_tiny"])
        "Did you mean 'resnet18'?"
    """
    if len(word) > 200:  # no misspelt name, and the comparison takes the square of its length
        return ""
    by_lower = {option.lower(): option for option in options}
    likeness = {option: _likeness(word, option) for option in by_lower.values()}
    best = max(likeness.values(), default=0.0)
    close = [option for option, score in likeness.items() if score > 0 and score >= best - _TOLERANCE]
    close.sort(key=lambda option: (-likeness[option], option))
    return f"Did you mean {' or '.join(map(repr, close[:n]))}?" if close else ""


_TOLERANCE = 0.05


def _likeness(word: str, option: str) -> float:
    """How likely ``word`` is a misspelt ``option``, in [0, 1]; 0 if it is too different.

    The ratio of difflib alone would count the leading dashes of options as common letters, and would find no word that
    contains a short option like ``lr`` similar to it.
    """
    # Not difflib.get_close_matches: at its best cutoff it gets 5 of the 20 cases in tests/test_errors.py wrong, even
    # without case and dashes: "val" does not find validate, "f1" does not find val/f1, and "metric" finds strict.
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
    # In words of three or four letters, one wrong letter is a large part of the ratio.
    return ratio if ratio >= (0.66 if len(typed) in (3, 4) else 0.72) else 0.0


def join_names(names: Sequence[str], limit: int = 5) -> str:
    """Join the first names by commas, each as :func:`printable` shows it, and give the number of the others.

    Example:
        >>> join_names(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    rest = len(names) - limit
    return ", ".join(map(printable, names[:limit])) + (f" and {rest} more" if rest > 0 else "")


def refuse_unknown(unknown: Iterable[str], owner: str, known: Iterable[str]) -> None:
    """Raise a :class:`UsageError` for the first unknown argument, with the nearest known names."""
    for name in unknown:
        raise UsageError(f"{owner} takes no argument `{name}`. {nearest(name, known)}".rstrip())


def require(condition: bool, name: str, owner: str, must: str, got: object, do: str) -> None:
    """Raise a :class:`UsageError` with the message of :func:`sentence` unless ``condition`` holds."""
    if not condition:
        raise UsageError(sentence(name, owner, must, got, do))


def number(value: object) -> float:
    """The value if it is a finite number, otherwise NaN, with which every comparison is false.

    Example:
        >>> [0 <= number(value) < 1 for value in (0.5, 1, "0.5", None, True)]
        [True, False, False, False, False]
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf"):
        return float(value)
    return float("nan")


def is_whole(value: object, least: int) -> bool:
    """Whether the value is an integer of at least ``least``; ``True`` and 2.0 are not integers."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def require_flags(owner: str, **flags: object) -> None:
    """Raise a :class:`UsageError` unless all values are bools; the strings "no" and "false" would count as true."""
    for name, value in flags.items():
        require(isinstance(value, bool), name, owner, "True or False", value, "Give one of them.")


def require_choice(name: str, owner: str, value: object, options: Iterable[str]) -> None:
    """Raise a :class:`UsageError` that names the nearest options unless ``value`` is one of them."""
    options = list(options)
    if value not in options:
        cure = nearest(str(value), options) or "Choose one of these."
        raise UsageError(sentence(name, owner, f"one of {', '.join(options)}", value, cure))
