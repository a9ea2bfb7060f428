"""``autotimm reproduce``: train a run again as a new run, and compare the two."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import DATA, FOLDER, TRUST, open_folder, print_once, print_run, run_answer
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.value_types import Path

__all__ = ["REPRODUCE"]


def run(argv: Sequence[str]) -> int:
    """Train again, and print the comparison and the new run folder."""
    given = parse(REPRODUCE, argv)
    if given is None:
        return 0
    with answering(given) as answer:
        original = open_folder(given)
        from autotimm.runs.run import diff
        from autotimm.train.lightning_compat import of_first_process

        reproduced = original.reproduce(given.value("out"), data=given.value("data"))
        comparison = of_first_process(lambda: diff(original.path, reproduced.path))
        print_once(comparison)
        print_run(reproduced)
        answer.update(run_answer(reproduced), comparison=comparison.as_dict())
    return comparison.exit_code


REPRODUCE = Verb(
    name="reproduce",
    summary="train a run again as a new run, and compare the two",
    run=run,
    positionals=(FOLDER,),
    options={
        "out": Option(Path(), "folder of the new run", "Options", none="auto"),
        "data": DATA,
        "trust": TRUST,
        "json": JSON,
    },
    defaults={"out": None, "data": None, "trust": False, "json": False},
    examples=("autotimm reproduce runs/photos-001",),
    notes=("Exit codes: 0 the runs are equal, 5 they differ, 6 the record of the run is incomplete.",),
)
