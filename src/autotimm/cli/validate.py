"""``autotimm validate``: measure a run on its validation images."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.measure import CKPT, RUN, measure
from autotimm.cli.verb import Positional, Verb

__all__ = ["VALIDATE"]


def run(argv: Sequence[str]) -> int:
    """Print the validation metrics."""
    return measure(VALIDATE, argv)


VALIDATE = Verb(
    name="validate",
    summary="measure a run on its validation images",
    run=run,
    positionals=(RUN, Positional("path", "PATH", "other labelled images: a folder or a CSV file", required=False)),
    options={"ckpt": CKPT},
    defaults={"ckpt": "best"},
    examples=("autotimm validate runs/photos-001", "autotimm validate runs/photos-001 more-photos/"),
)
