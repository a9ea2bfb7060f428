"""Real data and documents that lie beside the repository, in ``../shared``, and are not part of it."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
WANT = "needs ../shared/"


def shared(name: str) -> Path:
    """A file or folder in ``../shared``; skips the test where it is not there."""
    if not (SHARED / name).exists():
        pytest.skip(WANT + name)
    return SHARED / name


def without_shared(skipped: list[pytest.TestReport]) -> int:
    """How many of the skipped tests wanted something from ``../shared``."""
    reasons = [report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)]
    return sum(WANT in reason for reason in reasons)
