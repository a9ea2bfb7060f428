"""``autotimm predict``: label images, find objects, tell regions apart."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autotimm.cli.parser import parse
from autotimm.cli.run_args import CKPT, RUN, open_run
from autotimm.cli.verb import Positional, Verb
from autotimm.config import Option
from autotimm.config.value_types import Flag, Number, Path
from autotimm.errors import UsageError, sentence
from autotimm.runs.output_paths import require_new_file, require_new_folder

if TYPE_CHECKING:
    from autotimm.types import DataSpec

__all__ = ["PREDICT"]

_OWNER = "autotimm predict"
_ROWS_SHOWN = 40
_FILES = (".csv", ".json")
# What --out may be for each kind of data, see DataSpec.
_OUT = {
    "classes": ((".csv",), "a file that ends in .csv", "The table is CSV."),
    "boxes": (_FILES, "a file that ends in .json or .csv", "COCO results are JSON, a table is CSV."),
    "instances": (_FILES, "a file that ends in .json or .csv", "COCO results are JSON, a table is CSV."),
    "pixels": (("", ".csv"), "a folder, or a file that ends in .csv", "Label images go into a folder, a table is CSV."),
}


def run(argv: Sequence[str]) -> int:
    """Predict, then save what was found, show a table of it, or print it as CSV."""
    given = parse(PREDICT, argv)
    if given is None:
        return 0
    fast, out, draw, paths = (given.value("fast"), given.value("out"), given.value("draw"), given.positionals["paths"])
    _check_places(out, draw)
    run, ckpt = open_run(given)
    from autotimm.runs.predict import data_of_checkpoint, image_files

    data = data_of_checkpoint(run.checkpoint(ckpt))
    _check_kind(data.kind, out, draw)
    found = run.predict(paths, fast=fast, ckpt=ckpt, threshold=given.value("threshold"))
    if out is not None:
        _save(out, found, data)
        print(f"predictions: {out} ({len(found)} images)")
    if draw is not None:
        from autotimm.runs.prediction_files import write_pictures

        drawn: Any = found  # of objects or pixels, as was checked
        write_pictures(draw, drawn, data.class_names, image_files(paths))
        print(f"pictures: {draw} ({len(found)} images)")
    if out is None and draw is None:
        _show(found)
    return 0


def _ending(path: str) -> str:
    """Which kind of file a path names; nothing for a folder."""
    return next((ending for ending in _FILES if path.lower().endswith(ending)), "")


def _check_places(out: str | None, draw: str | None) -> None:
    """Refuse places that cannot take the results before the work is done, not after it."""
    if out is not None:
        (require_new_file if _ending(out) else require_new_folder)(out, "--out", _OWNER)
    if draw is not None:
        require_new_folder(draw, "--draw", _OWNER)
        if draw == out:
            cure = "Label images and pictures have the same names."
            raise UsageError(sentence("--draw", _OWNER, "another folder than --out", draw, cure))


def _check_kind(kind: str, out: str | None, draw: str | None) -> None:
    """Refuse what a task does not give."""
    endings, must, why = _OUT[kind]
    if out is not None and _ending(out) not in endings:
        raise UsageError(sentence("--out", _OWNER, must, out, why))
    if draw is not None and kind == "classes":
        cure = "There are neither boxes nor masks to draw."
        raise UsageError(sentence("--draw", _OWNER, "left out for classification", draw, cure))


def _save(out: str, found: Any, data: DataSpec) -> None:
    from autotimm.runs.prediction_files import as_csv, coco_results, write_json, write_labels, write_table

    ending = _ending(out)
    if ending == ".csv":
        write_table(out, as_csv(found))
    elif ending == ".json":
        write_json(out, coco_results(found, data.class_names))
    else:
        write_labels(out, found, data.class_names)


def _show(found: Any) -> None:
    from autotimm.runs.prediction_files import as_csv, as_rows

    if not sys.stdout.isatty():
        print(as_csv(found), end="")
        return
    from rich.console import Console  # lazy: a terminal is the only place that needs it
    from rich.table import Table
    from rich.text import Text

    titles, rows = as_rows(found)
    table = Table(*titles, box=None, pad_edge=False)
    for row in rows[:_ROWS_SHOWN]:
        table.add_row(*map(Text, row))
    Console().print(table)
    if len(rows) > _ROWS_SHOWN:
        print(f"... and {len(rows) - _ROWS_SHOWN} more; --out predictions.csv saves them all.")


PREDICT = Verb(
    name="predict",
    summary="label images, find objects in them, or tell their regions apart",
    run=run,
    positionals=(RUN, Positional("paths", "PATH", "images, or folders of images", many=True)),
    options={
        "out": Option(Path(metavar="FILE|DIR"), "save: a table .csv, COCO results .json, label images DIR", "Options"),
        "draw": Option(Path(metavar="DIR"), "save pictures with boxes, masks, names and scores", "Options"),
        "ckpt": CKPT,
        "threshold": Option(
            Number(0, 1, low_open=True, high_open=True),
            "score from which labels and objects are reported",
            "Options",
            none="the run's",
        ),
        "fast": Option(Flag(), "do not pad the last batch; the last bits of the scores may differ", "Options"),
    },
    defaults={"ckpt": "best", "threshold": None, "fast": False},
    examples=(
        "autotimm predict runs/photos-001 new/ --out predictions.csv",
        "autotimm predict runs/photos-001 one.jpg two.jpg",
        "autotimm predict runs/cars-001 new/ --out found.json --draw pictures/ --threshold 0.5",
    ),
    notes=(
        "Without --out and --draw the table is shown on a terminal, and is CSV for any other reader.",
        "Objects: a table has a line per object, found.json COCO's images, categories and results.",
        "Regions: DIR gets a PNG file of class indices per image, and _classes.csv. Nothing is written over.",
    ),
    elsewhere=("infer", "classify", "detect", "segment"),
)
