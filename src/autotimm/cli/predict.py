"""``autotimm predict``: label images."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autotimm.cli.measure import CKPT, RUN, open_run
from autotimm.cli.parser import parse
from autotimm.cli.verb import Positional, Verb
from autotimm.config import Option
from autotimm.config.kinds import Flag, Path
from autotimm.errors import RunError, UsageError, sentence

if TYPE_CHECKING:
    from autotimm.types import Prediction

__all__ = ["PREDICT", "as_csv"]

_ROWS_SHOWN = 40


def run(argv: Sequence[str]) -> int:
    """Predict, then save a table, show one, or print it as CSV."""
    given = parse(PREDICT, argv)
    if given is None:
        return 0
    fast, out = given.value("fast"), given.value("out")
    _check_writable(out)
    run, ckpt = open_run(given)
    predictions = run.predict(given.positionals["paths"], fast=fast, ckpt=ckpt)
    if out is not None:
        _save(out, as_csv(predictions))
        print(f"predictions: {out} ({len(predictions)} images)")
    elif sys.stdout.isatty():
        _show(predictions)
    else:
        print(as_csv(predictions), end="")
    return 0


def _check_writable(out: str | None) -> None:
    """Refuse a place that cannot take the table before the work is done, not after it."""
    if out is None:
        return
    folder = os.path.dirname(out) or "."
    if os.path.isdir(out) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        cure = "Give the name of a new file in a folder that exists and can be written to."
        raise UsageError(sentence("--out", "autotimm predict", "a file that can be written", out, cure))
    if not out.lower().endswith(".csv"):
        raise UsageError(sentence("--out", "autotimm predict", "a file that ends in .csv", out, "The table is CSV."))


def _save(out: str, text: str) -> None:
    from autotimm.repro.files import write_text  # lazy: its package brings torch

    try:
        write_text(out, text)
    except OSError as error:
        raise RunError(f"The predictions cannot be written to {out}: {error.strerror}. Give another --out.") from None


def as_csv(predictions: Sequence[Prediction]) -> str:
    """Write predictions as a table: path, label, score, and the probability of each class.

    Several labels are joined with ``|``, none at all is an empty cell. The score is that of the likeliest class.
    Nine digits are what a 32-bit float needs to be read back to the bit.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "score", *(predictions[0].scores if predictions else ())])
    for one in predictions:
        writer.writerow(
            [one.id, "|".join(one.labels), *(f"{score:.9g}" for score in (_score(one), *one.scores.values()))]
        )
    return text.getvalue()


def _score(one: Prediction) -> float:
    return max(one.scores.values())


def _show(predictions: Sequence[Prediction]) -> None:
    from rich.console import Console  # lazy: a terminal is the only place that needs it
    from rich.table import Table
    from rich.text import Text

    table = Table("path", "label", "score", box=None, pad_edge=False)
    for one in predictions[:_ROWS_SHOWN]:
        table.add_row(Text(one.id), Text(", ".join(one.labels) or "-"), f"{_score(one):.3f}")
    Console().print(table)
    if len(predictions) > _ROWS_SHOWN:
        print(f"... and {len(predictions) - _ROWS_SHOWN} more; --out predictions.csv saves them all.")


PREDICT = Verb(
    name="predict",
    summary="label images",
    run=run,
    positionals=(RUN, Positional("paths", "PATH", "images, or folders of images", many=True)),
    options={
        "out": Option(Path(metavar="FILE"), "save a table: path, label, score, probability of each class", "Options"),
        "ckpt": CKPT,
        "fast": Option(Flag(), "do not pad the last batch; the last bits of the scores may differ", "Options"),
    },
    defaults={"ckpt": "best", "fast": False},
    examples=(
        "autotimm predict runs/photos-001 new/ --out predictions.csv",
        "autotimm predict runs/photos-001 one.jpg two.jpg",
    ),
    notes=("Without --out the table is shown on a terminal, and is CSV for any other reader.",),
    elsewhere=("infer", "classify"),
)
