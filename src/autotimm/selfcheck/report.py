"""What a check found, as data and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Report", "Result"]


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        name: What was varied.
        level: The level of reproducibility that it belongs to; empty for what must change something.
        verdict: ``ok``; ``problem``; ``skipped`` for what could not be checked.
        text: What was found: ``same``, or where the two trainings part.
        cause: What is likely behind a problem, as a sentence.
    """

    name: str
    level: str
    verdict: Literal["ok", "problem", "skipped"]
    text: str
    cause: str = ""


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        results: A line for each thing that was varied.
        levels: What the set-up may claim, ``R0`` to ``R7``: ``checked``, or ``no, because ...``.
    """

    results: tuple[Result, ...]
    levels: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether no line is a problem."""
        return not self.problems

    @property
    def problems(self) -> tuple[Result, ...]:
        """The lines that are problems."""
        return tuple(one for one in self.results if one.verdict == "problem")

    @property
    def causes(self) -> dict[str, list[str]]:
        """What is likely behind the problems, each with the lines that point to it."""
        found: dict[str, list[str]] = {}
        for one in self.problems:
            found.setdefault(one.cause, []).append(one.name)
        return found

    @property
    def exit_code(self) -> int:
        """0 if all is well, 5 if something differs."""
        return 0 if self.passed else 5

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for other programs."""
        return {
            "passed": self.passed,
            "results": [asdict(one) for one in self.results],
            "levels": dict(self.levels),
        }

    def __str__(self) -> str:
        width = max(len(one.name) for one in self.results)
        lines = [f"{one.name:<{width}}  {one.text}" for one in self.results]
        if self.problems:
            lines += ["", *(f"{', '.join(names)}: {cause}" for cause, names in self.causes.items())]
        lines += ["", *(f"{level}  {text}" for level, text in self.levels.items())]
        return "\n".join([*lines, "", "reproducible" if self.passed else "not reproducible"])
