"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "note", "ok", "problem"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        level: ``ok``; ``note`` for what is worth knowing and needs no action; ``problem`` for what should be fixed.
        text: The finding, without a full stop.
        cure: What to do about it, as a sentence; empty if there is nothing to do.
        exit_code: The exit code of the command line; 0 unless it is a problem.
    """

    level: Literal["ok", "note", "problem"]
    text: str
    cure: str = ""
    exit_code: int = 0


def ok(text: str) -> Finding:
    """Make a finding without a problem."""
    return Finding("ok", text)


def note(text: str, cure: str = "") -> Finding:
    """Make a finding that is worth knowing."""
    return Finding("note", text, cure)


def problem(text: str, cure: str, exit_code: int = 1) -> Finding:
    """Make a finding that should be fixed."""
    return Finding("problem", text, cure, exit_code)
