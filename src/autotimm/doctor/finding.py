"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "note", "ok", "problem"]


@dataclass(frozen=True)
class Finding:
    """Something that was looked at.

    Attributes:
        level: ``ok``; ``note`` for what is worth knowing and can stay as it is; ``problem`` for what should not.
        text: What was found, without a full stop.
        cure: What to do about it, as a sentence; empty where there is nothing to do.
        exit_code: What the command line exits with on account of it; 0 unless it is a problem.
    """

    level: Literal["ok", "note", "problem"]
    text: str
    cure: str = ""
    exit_code: int = 0


def ok(text: str) -> Finding:
    """Something is as it should be."""
    return Finding("ok", text)


def note(text: str, cure: str = "") -> Finding:
    """Something is worth knowing."""
    return Finding("note", text, cure)


def problem(text: str, cure: str, exit_code: int = 1) -> Finding:
    """Something should not stay as it is."""
    return Finding("problem", text, cure, exit_code)
