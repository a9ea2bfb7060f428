"""``autotimm resume``: go on with a run that was stopped."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.parser import parse
from autotimm.cli.run_args import DATA, FOLDER, WORKERS, open_folder, print_run
from autotimm.cli.verb import Verb

__all__ = ["RESUME"]


def run(argv: Sequence[str]) -> int:
    """Go on, and print the run's folder last, as ``fit`` does."""
    given = parse(RESUME, argv)
    if given is None:
        return 0
    finished = open_folder(given.positionals["run"]).resume(data=given.value("data"), workers=given.value("workers"))
    print_run(finished)
    return 0


RESUME = Verb(
    name="resume",
    summary="go on with a run that was stopped, to the same bits",
    run=run,
    positionals=(FOLDER,),
    options={"data": DATA, "workers": WORKERS},
    defaults={"data": None, "workers": None},
    examples=("autotimm resume runs/photos-001",),
)
