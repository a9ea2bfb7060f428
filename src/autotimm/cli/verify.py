"""``autotimm verify``: replay a run and check that it is identical to its record, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import DATA, FOLDER, TRUST, WORKERS, open_folder, print_once
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.value_types import Flag, Path, Text, Whole
from autotimm.errors import UsageError, sentence

__all__ = ["VERIFY"]


def run(argv: Sequence[str]) -> int:
    """Replay the run; the last line printed is the verdict."""
    given = parse(VERIFY, argv)
    if given is None:
        return 0
    epochs = _epoch_range(given.value("epochs"))
    with answering(given) as answer:
        recorded_run = open_folder(given)
        verdict = recorded_run.verify(
            data=given.value("data"), steps=given.value("steps"), epochs=epochs, workers=given.value("workers"),
            explain=given.value("explain"), key=given.value("key"),
            commitment=given.value("commitment"),
        )  # fmt: skip
        print_once(verdict)
        answer.update(verdict.as_dict())
    return verdict.exit_code


def _epoch_range(text: str | None) -> tuple[int, int] | None:
    """Parse ``3:4``, the first and the last epoch, counted from 1."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        must = "two epochs with a colon between them, counted from 1"
        raise UsageError(sentence("--epochs", "autotimm verify", must, text, "Give for example 3:4."))
    return int(match[1]), int(match[2])


VERIFY = Verb(
    name="verify",
    summary="replay a run and check that it is identical, bit for bit",
    run=run,
    positionals=(FOLDER,),
    options={
        "data": DATA,
        "steps": Option(Whole(1), "number of optimizer steps to compare", "Options", none="all"),
        "epochs": Option(
            Text(metavar="A:B"), "replay epochs A to B only, from a checkpoint; counted from 1", "Options", none="all"
        ),
        "workers": WORKERS,
        "trust": TRUST,
        "key": Option(Path(metavar="FILE"), "public key of whom the seal must be, as PEM", "Options", none="any"),
        "commitment": Option(
            Text(metavar="DIGEST"), "digest that was published before the run, see fit --commit", "Options", none="any"
        ),
        "explain": Option(Flag(), "confirm the cause: replay the step with each factor restored", "Options"),
        "json": JSON,
    },
    defaults={
        "data": None,
        "steps": None,
        "epochs": None,
        "workers": None,
        "trust": False,
        "key": None,
        "commitment": None,
        "explain": False,
        "json": False,
    },
    examples=("autotimm verify runs/photos-001", "autotimm verify runs/photos-001 --epochs 3:4 --workers 2"),
    notes=(
        "`identical` means that every recorded line was met and compared, and that results, weights and settings agree "
        "with the replay. What the replay cannot tell is listed as `not checked`. Nothing is written into the run.",
        "A sealed run is compared with its seal before it is replayed: `different` if a byte, a file or key differs.",
        "With --steps or --epochs the verdict is `identical in part`.",
        "Exit codes: 0 identical, 5 different, 6 the record is incomplete and equal as far as it goes, 3 the data has "
        "changed, 4 the run cannot be replayed here.",
    ),
)
