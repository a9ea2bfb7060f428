"""``autotimm report``: make the page of a run again, or a page that compares runs."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import DATA, TRUST
from autotimm.cli.verb import Positional, Verb, loading_torch
from autotimm.config import Option
from autotimm.config.value_types import Path
from autotimm.errors import printable

__all__ = ["REPORT"]

_OUT = Option(Path(metavar="FILE"), "where the page is written", "Options", none="auto")


def run(argv: Sequence[str]) -> int:
    """Make the page, and print where it is."""
    given = parse(REPORT, argv)
    if given is None:
        return 0
    folders, out = given.positionals["runs"], given.options.get("out")
    with answering(given) as answer:
        with loading_torch():
            from autotimm.records.run_folder import require_run_folder
            from autotimm.runs.run import Run, compare_reports
        trust, data = bool(given.options.get("trust")), given.options.get("data")
        if len(folders) > 1:
            report = compare_reports(folders, out, data=data, trust=trust)
        else:
            require_run_folder(folders[0])
            report = Run(folders[0], trust=trust).report(data, out=out)
        print(f"report: {printable(report.path)}")
        answer["report"] = report.path
    return 0


REPORT = Verb(
    name="report",
    summary="make the page of a run again, or compare runs on one page",
    run=run,
    positionals=(Positional("runs", "RUN", "a run folder; several are compared with the first", many=True),),
    options={"out": _OUT, "data": DATA, "trust": TRUST, "json": JSON},
    defaults={"out": None, "data": None, "trust": False, "json": False},
    examples=("autotimm report runs/photos-001", "autotimm report runs/photos-001 runs/photos-002"),
    notes=(
        "The page of a run is RUN/report.html. A comparison is written beside the first run, unless --out says where. "
        "The page of a sealed run needs --out, since nothing is written into the run.",
    ),
)
