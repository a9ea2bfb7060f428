"""``autotimm resume``: resume an interrupted run."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import DATA, DEVICES, FOLDER, THREADS, TRUST, WORKERS, open_folder, print_run, run_answer
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.value_types import Text

__all__ = ["RESUME"]

DROP = Option(
    Text(metavar="ID"), "leave out a sample whose file cannot be read; several with commas", "Options", none="none"
)


def run(argv: Sequence[str]) -> int:
    """Resume; the last line printed is the run folder, as with ``fit``."""
    given = parse(RESUME, argv)
    if given is None:
        return 0
    with answering(given) as answer:
        run = open_folder(given).resume(
            data=given.value("data"), workers=given.value("workers"), devices=given.value("devices"),
            threads=given.value("threads"), drop=given.value("drop"),
        )  # fmt: skip
        print_run(run)
        answer.update(run_answer(run))
    return 0


RESUME = Verb(
    name="resume",
    summary="resume an interrupted run, bit for bit",
    run=run,
    positionals=(FOLDER,),
    options={
        "data": DATA,
        "workers": WORKERS,
        "devices": DEVICES,
        "threads": THREADS,
        "drop": DROP,
        "trust": TRUST,
        "json": JSON,
    },
    defaults={
        "data": None,
        "workers": None,
        "devices": None,
        "threads": None,
        "drop": (),
        "trust": False,
        "json": False,
    },
    examples=("autotimm resume runs/photos-001", "autotimm resume runs/photos-001 --drop cat/broken.jpg"),
)
