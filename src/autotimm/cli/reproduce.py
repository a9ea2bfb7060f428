"""``autotimm reproduce``: make a run again, as a run of its own."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.parser import parse
from autotimm.cli.run_args import DATA, FOLDER, open_folder, print_run
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.value_types import Path

__all__ = ["REPRODUCE"]


def run(argv: Sequence[str]) -> int:
    """Train again, and end with the comparison."""
    given = parse(REPRODUCE, argv)
    if given is None:
        return 0
    opened = open_folder(given.positionals["run"])
    from autotimm.runs.run import diff

    again = opened.reproduce(given.value("out"), data=given.value("data"))
    found = diff(opened.path, again.path)
    print(found)
    print_run(again)
    return found.exit_code


REPRODUCE = Verb(
    name="reproduce",
    summary="make a run again as a new one, and compare the two",
    run=run,
    positionals=(FOLDER,),
    options={"out": Option(Path(), "the new run's folder", "Options", none="auto"), "data": DATA},
    defaults={"out": None, "data": None},
    examples=("autotimm reproduce runs/photos-001",),
    notes=("Exit codes: 0 the runs are equal, 5 they differ.",),
)
