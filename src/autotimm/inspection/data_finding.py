"""What an inspection finds, and all that it says of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

__all__ = ["MOST_CASES", "Case", "Finding", "Severity", "SizeRange", "counted", "finding_of", "form"]

MOST_CASES = 60
"""Cases that a finding lists at most; its count is that of all."""

Severity = Literal["warning", "note"]


class Case(NamedTuple):
    """A sample that a finding is about.

    Attributes:
        id: Its id, or the name of a file that is no sample.
        split: ``train``, ``val`` or ``test``; empty if it is in none.
        note: What was measured of it, or which group of repeated images it is in; may be empty.
        objects: The rows of those of its objects that the finding is about; empty if it is about the sample.
    """

    id: str
    split: str = ""
    note: str = ""
    objects: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One thing that an inspection found.

    Attributes:
        check: Which check found it, in one word, such as ``near_duplicates``.
        severity: ``warning`` for what makes a training or its figures worse; ``note`` for what may be as it should.
        count: How many cases there are.
        sentence: What was found.
        cure: What to do.
        cases: The first cases, :data:`MOST_CASES` at most.
    """

    check: str
    severity: Severity
    count: int
    sentence: str
    cure: str
    cases: tuple[Case, ...] = field(default=(), repr=False)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        cases = [{**case._asdict(), "objects": list(case.objects)} for case in self.cases]
        return {
            "check": self.check, "severity": self.severity, "count": self.count, "sentence": self.sentence,
            "cure": self.cure, "cases": cases,
        }  # fmt: skip


def finding_of(
    check: str, severity: Severity, sentence: str, cure: str, cases: Sequence[Case], count: int | None = None
) -> list[Finding]:
    """A finding, or nothing if there is no case.

    Args:
        check: See :class:`Finding`.
        severity: See :class:`Finding`.
        sentence: See :class:`Finding`.
        cure: See :class:`Finding`.
        cases: All cases, or the first ones.
        count: How many there are; by default as many as given.
    """
    count = len(cases) if count is None else count
    return [Finding(check, severity, count, sentence, cure, tuple(cases[:MOST_CASES]))] if count else []


def form(number: int, one: str, several: str) -> str:
    """The form of a word that goes with a number.

    Example:
        >>> form(1, "is", "are"), form(0, "is", "are")
        ('is', 'are')
    """
    return one if number == 1 else several


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "image"), counted(2, "image")
        ('1 image', '2 images')
    """
    return f"{number} {form(number, noun, f'{noun}s')}"


class SizeRange(NamedTuple):
    """Width and height in pixels of the smallest, the median and the largest image, by area.

    Attributes:
        smallest: The smallest.
        median: The median.
        largest: The largest.
    """

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]

    def as_dict(self) -> Mapping[str, list[int]]:
        """As plain data, for JSON."""
        return {name: list(size) for name, size in self._asdict().items()}
