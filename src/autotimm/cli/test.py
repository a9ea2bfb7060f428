"""``autotimm test``: measure a run on its test images."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.measure import CKPT, RUN, measure
from autotimm.cli.verb import Positional, Verb

__all__ = ["TEST"]


def run(argv: Sequence[str]) -> int:
    """Print the test metrics."""
    return measure(TEST, argv)


TEST = Verb(
    name="test",
    summary="measure a run on its test images",
    run=run,
    positionals=(RUN, Positional("path", "PATH", "other labelled images: a folder or a CSV file", required=False)),
    options={"ckpt": CKPT},
    defaults={"ckpt": "best"},
    examples=("autotimm test runs/photos-001", "autotimm test runs/photos-001 more-photos/"),
)
