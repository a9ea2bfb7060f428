"""``autotimm verify``: replay a run and say whether it is the same, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autotimm.cli.parser import parse
from autotimm.cli.run_args import DATA, FOLDER, WORKERS, open_folder
from autotimm.cli.verb import Verb
from autotimm.config import Option
from autotimm.config.value_types import Flag, Text, Whole
from autotimm.errors import UsageError, sentence

__all__ = ["VERIFY"]


def run(argv: Sequence[str]) -> int:
    """Replay, and print the verdict last."""
    given = parse(VERIFY, argv)
    if given is None:
        return 0
    epochs = _stretch(given.value("epochs"))
    opened = open_folder(given.positionals["run"])
    verdict = opened.verify(
        data=given.value("data"), steps=given.value("steps"), epochs=epochs, workers=given.value("workers"),
        explain=given.value("explain"),
    )  # fmt: skip
    print(verdict)
    return verdict.exit_code


def _stretch(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        must = "two epochs with a colon between them, counted from 1"
        raise UsageError(sentence("--epochs", "autotimm verify", must, text, "Give for example 3:4."))
    return int(found[1]), int(found[2])


VERIFY = Verb(
    name="verify",
    summary="replay a run and say whether it is the same, bit for bit",
    run=run,
    positionals=(FOLDER,),
    options={
        "data": DATA,
        "steps": Option(Whole(1), "compare so many optimizer steps only", "Options", none="all"),
        "epochs": Option(
            Text(metavar="A:B"), "replay a stretch of epochs only, from a checkpoint", "Options", none="all"
        ),
        "workers": WORKERS,
        "explain": Option(Flag(), "confirm the cause: replay the step with each factor set back", "Options"),
    },
    defaults={"data": None, "steps": None, "epochs": None, "workers": None, "explain": False},
    examples=("autotimm verify runs/photos-001", "autotimm verify runs/photos-001 --epochs 3:4 --workers 2"),
    notes=("Exit codes: 0 identical, 5 different, 3 the data has changed, 4 it cannot be replayed here.",),
)
