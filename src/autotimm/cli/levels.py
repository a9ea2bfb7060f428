"""``autotimm levels``: what a run may claim of its reproducibility, and why not more."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import FOLDER, open_folder
from autotimm.cli.verb import Verb, loading_torch
from autotimm.errors import printable

__all__ = ["LEVELS"]


def run(argv: Sequence[str]) -> int:
    """Print the levels R0 to R7: what each means, and what the run claims."""
    given = parse(LEVELS, argv)
    if given is None:
        return 0
    with answering(given) as answer:
        claims = open_folder(given).level()
        with loading_torch():
            from autotimm.records.checked_levels import LEVELS as MEANINGS
        for level, claim in claims.items():
            print(f"{level}  {MEANINGS.get(level, '')}\n    {printable(claim)}")
            answer[level] = {"meaning": MEANINGS.get(level, ""), "claim": claim}
    return 0


LEVELS = Verb(
    name="levels",
    summary="show what a run may claim of its reproducibility, R0 to R7, and why",
    run=run,
    positionals=(FOLDER,),
    options={"json": JSON},
    defaults={"json": False},
    examples=("autotimm levels runs/photos-001",),
    notes=(
        "`expected` is what autotimm is tested for. `checked` is what you have verified on this machine, of the record "
        "as it is now: `autotimm verify RUN` remembers it outside of the run folder.",
    ),
)
