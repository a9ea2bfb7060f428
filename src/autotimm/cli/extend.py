"""``autotimm extend``: train on from a finished run, on its own data or on other data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import FOLDER, TRUST, open_folder, print_run, run_answer
from autotimm.cli.verb import Positional, Verb
from autotimm.config import COMMAND_LINE, NETWORK_OPTIONS, Option, defaults, options
from autotimm.config.value_types import Path, Text
from autotimm.errors import UsageError

__all__ = ["EXTEND"]

_COMMON = ("batch_size", "augmentation", "lr", "freeze_backbone", "seed", "name")
_OWN = ("epochs", "ckpt", "trust", "json")  # what is not an option of the new run


def run(argv: Sequence[str]) -> int:
    """Train on; the last line printed is the new run folder."""
    given = parse(EXTEND, argv)
    if given is None:
        return 0
    if "epochs" not in given.options:
        raise UsageError("autotimm extend needs --epochs: the number of epochs to train, such as +10.")
    epochs, ckpt = given.value("epochs"), given.value("ckpt")
    changes = {name: given.value(name) for name in given.options if name not in _OWN}
    with answering(given) as answer:
        parent = open_folder(given)
        from autotimm.runs.run import train_on

        path = given.positionals["path"]
        run = train_on(parent, path, epochs=epochs, ckpt=ckpt, changes=changes, source=COMMAND_LINE)
        print_run(run)
        answer.update(run_answer(run))
    return 0


EXTEND = Verb(
    name="extend",
    summary="train on from a finished run as a new run, on its data or on other data",
    run=run,
    positionals=(FOLDER, Positional("path", "PATH", "other data to fine-tune on: a folder or a table", required=False)),
    options={
        "epochs": Option(
            Text(metavar="+N"), "epochs to train, with a schedule of their own; +10 is 10", "Options", common=True
        ),
        "ckpt": Option(
            Path(metavar="best|last|FILE"), "checkpoint to begin with; auto is last, and best on other data", "Options",
            none="auto", common=True, cure="Give best or last.",
        ),
        "trust": TRUST,
        "json": JSON,
        **{
            name: replace(option, common=name in _COMMON)
            for name, option in options().items()
            if name not in (*NETWORK_OPTIONS, "path", "epochs")
        },
    },
    defaults={**defaults(), "epochs": None, "ckpt": None, "trust": False, "json": False},
    examples=(
        "autotimm extend runs/photos-001 --epochs +10 --lr 1e-4",
        "autotimm extend runs/photos-001 flowers/ --epochs 20",
    ),
    notes=(
        "Options that are not given have the values of the run, not the defaults shown.",
        "The last line printed is the new run folder.",
    ),
    elsewhere=("continue", "finetune", "fine-tune"),
)  # fmt: skip
