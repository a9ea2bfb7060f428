"""``autotimm verify``: replay a run and check that it is identical to its record, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import Given, parse
from autotimm.cli.run_args import DATA, DEVICES, FOLDER, THREADS, TRUST, WORKERS, open_folder, print_once
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.value_types import Choice, Flag, Path, Share, Text, Whole
from autotimm.constants import LAUNCHERS
from autotimm.errors import UsageError, sentence

__all__ = ["VERIFY"]


def run(argv: Sequence[str]) -> int:
    """Replay the run; the last line printed is the verdict."""
    given = parse(VERIFY, argv)
    if given is None:
        return 0
    epochs = _epoch_range(given.value("epochs"))
    _check_stretches(given)
    with answering(given) as answer:
        recorded_run = open_folder(given)
        verdict = recorded_run.verify(
            data=given.value("data"), steps=given.value("steps"), epochs=epochs, workers=given.value("workers"),
            devices=given.value("devices"), threads=given.value("threads"), explain=given.value("explain"),
            stretches=given.value("stretches"), budget=given.value("budget"), challenge=given.value("challenge"),
            jobs=given.value("jobs"), launcher=given.value("launcher"), key=given.value("key"),
            commitment=given.value("commitment"),
        )  # fmt: skip
        print_once(verdict)
        answer.update(verdict.as_dict())
    return verdict.exit_code


def _check_stretches(given: Given) -> None:
    """Refuse options that do not go together with `--stretches` or `--budget`, or that mean nothing without them."""
    drawing = [name for name in ("stretches", "budget") if given.value(name) is not None]
    wrong = ""
    if not drawing:
        lost = [name for name in given.options if name in ("challenge", "jobs", "launcher")]
        wrong = f"--{lost[0]} of autotimm verify needs --stretches. Add for example --stretches 8." if lost else ""
    elif len(drawing) == 2:
        wrong = "--stretches and --budget of autotimm verify do not go together. Leave one of them out."
    elif lost := [name for name in ("epochs", "explain", "devices", "threads") if given.value(name)]:
        wrong = f"--{lost[0]} of autotimm verify does not go with --{drawing[0]}. Leave one of them out."
    if wrong:
        raise UsageError(wrong)


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
        "steps": Option(
            Whole(1), "number of optimizer steps to compare, with --stretches of each (5)", "Options", none="all"
        ),
        "epochs": Option(
            Text(metavar="A:B"), "replay epochs A to B only, from a checkpoint; counted from 1", "Options", none="all"
        ),
        "stretches": Option(
            Whole(1), "on other hardware: replay so many stretches, from drawn checkpoints", "Options", none="none"
        ),
        "budget": Option(
            Share(), "draw as many stretches as have this share of the run's steps, such as 10%", "Options", none="none"
        ),
        "challenge": Option(Whole(), "the seed that stretches are drawn with", "Options", none="random"),
        "jobs": Option(Whole(1), "number of parallel processes that replay stretches", "Options"),
        "launcher": Option(Choice(LAUNCHERS), "these processes on this machine, or on a Ray cluster", "Options"),
        "workers": WORKERS,
        "devices": DEVICES,
        "threads": THREADS,
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
        "stretches": None,
        "budget": None,
        "challenge": None,
        "jobs": 1,
        "launcher": "local",
        "workers": None,
        "devices": None,
        "threads": None,
        "trust": False,
        "key": None,
        "commitment": None,
        "explain": False,
        "json": False,
    },
    examples=(
        "autotimm verify runs/photos-001",
        "autotimm verify runs/photos-001 --epochs 3:4 --workers 2",
        "autotimm verify runs/photos-001 --stretches 8 --steps 5   on another machine",
        "autotimm verify runs/photos-001 --budget 10%              a tenth of the steps, drawn at random",
    ),
    notes=(
        "`identical` means that every recorded line was met and compared, and that results, weights and settings agree "
        "with the replay. What the replay cannot tell is listed as `not checked`. Nothing is written into the run.",
        "A sealed run is compared with its seal before it is replayed: `different` if a byte, a file or key differs.",
        "With --steps or --epochs the verdict is `identical in part`.",
        "With --stretches or --budget the verdict is `consistent`, or `different` where rounding does not explain the "
        "distance. --budget counts steps that are compared; where bits differ, each is replayed about six times more.",
        "Exit codes: 0 identical, 7 consistent, 5 different, 6 the record is incomplete and equal as far as it goes, 3 "
        "the data has changed, 4 the run cannot be replayed here.",
    ),
)
