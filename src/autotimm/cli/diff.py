"""``autotimm diff``: compare two runs."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import TRUST
from autotimm.cli.verb import Positional, Verb, loading_torch
from autotimm.config import Option
from autotimm.config.value_types import Flag
from autotimm.errors import printable

__all__ = ["DIFF"]


def run(argv: Sequence[str]) -> int:
    """Print the differences; return 0 for equal and 5 for different runs, and 6 if a record is incomplete."""
    given = parse(DIFF, argv)
    if given is None:
        return 0
    with answering(given) as answer:
        with loading_torch():
            from autotimm.runs.run import diff
        comparison = diff(
            given.positionals["a"], given.positionals["b"], explain=given.value("explain"), trust=given.value("trust")
        )
        print(printable(comparison, keep="\n"))
        answer.update(comparison.as_dict())
    return comparison.exit_code


DIFF = Verb(
    name="diff",
    summary="compare two runs: settings, data, first differing step, metrics",
    run=run,
    positionals=(Positional("a", "RUN_A", "a run folder"), Positional("b", "RUN_B", "another run folder")),
    options={
        "explain": Option(Flag(), "confirm the cause: replay the step with each factor restored", "Options"),
        "trust": TRUST,
        "json": JSON,
    },
    defaults={"explain": False, "trust": False, "json": False},
    examples=(
        "autotimm diff runs/photos-001 runs/photos-002",
        "autotimm diff runs/photos-001 runs/photos-002 --explain",
    ),
    notes=("Exit codes: 0 the runs are equal, 5 they differ, 6 a record is incomplete and equal as far as it goes.",),
)
