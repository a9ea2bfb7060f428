"""``autotimm reproduce``: train a run again as a new run, and compare the two."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.parser import parse
from autotimm.cli.run_args import DATA, FOLDER, open_folder, print_run
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.value_types import Path

__all__ = ["REPRODUCE"]


def run(argv: Sequence[str]) -> int:
    """Train again, and print the comparison and the new run folder."""
    given = parse(REPRODUCE, argv)
    if given is None:
        return 0
    original = open_folder(given.positionals["run"])
    from autotimm.runs.run import diff

    reproduced = original.reproduce(given.value("out"), data=given.value("data"))
    comparison = diff(original.path, reproduced.path)
    print(comparison)
    print_run(reproduced)
    return comparison.exit_code


REPRODUCE = Verb(
    name="reproduce",
    summary="train a run again as a new run, and compare the two",
    run=run,
    positionals=(FOLDER,),
    options={"out": Option(Path(), "folder of the new run", "Options", none="auto"), "data": DATA},
    defaults={"out": None, "data": None},
    examples=("autotimm reproduce runs/photos-001",),
    notes=("Exit codes: 0 the runs are equal, 5 they differ, 6 the record of the run is incomplete.",),
)
