"""``autotimm predict``: classify images, detect objects, or segment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import CKPT, RUN, THRESHOLD, TRUST, TTA, open_run
from autotimm.cli.verb import Positional, Verb
from autotimm.config import Option
from autotimm.config.value_types import Flag, Number, Path, Whole
from autotimm.errors import UsageError, printable, sentence
from autotimm.runs.output_paths import require_features_file, require_new_file, require_new_folder

if TYPE_CHECKING:
    from autotimm.types import DataSpec

__all__ = ["PREDICT"]

_OWNER = "autotimm predict"
_ROWS_SHOWN = 40
_FILES = (".csv", ".json")
# Allowed --out for each kind of data (see DataSpec): endings, description, reason.
_OUT = {
    "classes": ((".csv",), "a file that ends in .csv", "The table is CSV."),
    "boxes": (_FILES, "a file that ends in .json or .csv", "COCO results are JSON, a table is CSV."),
    "instances": (_FILES, "a file that ends in .json or .csv", "COCO results are JSON, a table is CSV."),
    "pixels": (("", ".csv"), "a folder, or a file that ends in .csv", "Label images go into a folder, a table is CSV."),
}


def run(argv: Sequence[str]) -> int:
    """Predict; save the predictions, show a table of them, or print them as CSV."""
    given = parse(PREDICT, argv)
    if given is None:
        return 0
    fast, out, draw, paths = (given.value("fast"), given.value("out"), given.value("draw"), given.positionals["paths"])
    ids, embeddings = given.value("ids"), given.value("embeddings")
    _check_outputs(out, draw)
    most, novelty = given.value("neighbours"), given.value("novelty")
    if (most is not None or novelty) and (_ending(out) == "" if out else draw is not None):
        name, got = ("--novelty", novelty) if most is None else ("--neighbours", most)
        cure = f"Pictures and label images {'say nothing of it' if most is None else 'name no neighbours'}."
        must = "given with an --out that ends in .csv or .json, or without --out and --draw"
        raise UsageError(sentence(name, _OWNER, must, got, cure))
    if embeddings is not None:
        require_features_file(embeddings, "--embeddings", _OWNER)
        if embeddings == out:
            raise UsageError(
                sentence("--embeddings", _OWNER, "another file than --out", out, "Give each its own name.")
            )
    if ids is not None and (out is None or _ending(out) != ".json"):
        cure = "It says which numbers images and categories have in a COCO file. Add for example --out found.json."
        raise UsageError(sentence("--ids", _OWNER, "given with an --out that ends in .json", ids, cure))
    run, ckpt = open_run(given)
    from PIL import Image  # lazy: the help needs no images

    from autotimm.runs.predict import data_of_checkpoint, image_files

    data = data_of_checkpoint(run.checkpoint(ckpt))
    if (pixels := given.value("max_pixels")) is not None:
        Image.MAX_IMAGE_PIXELS = pixels
    _check_kind(data.kind, out, draw)
    with answering(given) as answer:
        predictions = run.predict(paths, fast=fast, ckpt=ckpt, threshold=given.value("threshold"),
                                  raw=given.value("raw"), coverage=given.value("coverage"),
                                  embeddings=embeddings, neighbours=most, novelty=novelty,
                                  tta=given.value("tta"))  # fmt: skip
        answer |= {"run": run.path, "images": len(predictions), "out": out, "pictures": draw, "embeddings": embeddings,
                   "tta": given.value("tta")}  # fmt: skip
        if embeddings is not None:
            from autotimm.train.progress import say

            say(f"embeddings: {embeddings} ({len(predictions)} images)")  # apart from a table on standard output
        if out is not None:
            _save(out, predictions, data, ids)
            print(f"predictions: {out} ({len(predictions)} images)")
        if draw is not None:
            from autotimm.data.image_reading import reading_of
            from autotimm.runs.prediction_files import write_pictures

            drawable: Any = predictions  # objects or pixels: _check_kind has refused classes
            write_pictures(draw, drawable, data.class_names, image_files(paths, data), reading_of(data))
            print(f"pictures: {draw} ({len(predictions)} images)")
        if out is None and draw is None:
            if given.value("json"):
                from autotimm.serving.answers import as_plain

                answer["predictions"] = [as_plain(prediction) for prediction in predictions]
            else:
                _show(predictions)
    return 0


def _ending(path: str) -> str:
    """The ending of a file name; empty for a folder."""
    return next((ending for ending in _FILES if path.lower().endswith(ending)), "")


def _check_outputs(out: str | None, draw: str | None) -> None:
    """Refuse output paths that cannot be written to, before anything is predicted."""
    if out is not None:
        (require_new_file if _ending(out) else require_new_folder)(out, "--out", _OWNER)
    if draw is not None:
        require_new_folder(draw, "--draw", _OWNER)
        if draw == out:
            cure = "Label images and pictures have the same names."
            raise UsageError(sentence("--draw", _OWNER, "another folder than --out", draw, cure))


def _check_kind(kind: str, out: str | None, draw: str | None) -> None:
    """Refuse outputs that the task does not have."""
    endings, must, why = _OUT[kind]
    if out is not None and _ending(out) not in endings:
        raise UsageError(sentence("--out", _OWNER, must, out, why))
    if draw is not None and kind == "classes":
        cure = "There are neither boxes nor masks to draw."
        raise UsageError(sentence("--draw", _OWNER, "left out for classification", draw, cure))


def _save(out: str, predictions: Any, data: DataSpec, ids: str | None) -> None:
    from autotimm.runs.prediction_files import as_csv, coco_results, write_json, write_labels, write_table

    ending = _ending(out)
    if ending == ".csv":
        write_table(out, as_csv(predictions))
    elif ending == ".json":
        write_json(out, coco_results(predictions, data.class_names, category_ids=data.category_ids, ids=ids))
    else:
        write_labels(out, predictions, data.class_names)


def _show(predictions: Any) -> None:
    from autotimm.runs.prediction_files import as_csv, as_rows

    if not sys.stdout.isatty():
        print(as_csv(predictions), end="")
        return
    from rich.console import Console  # lazy: needed on a terminal only
    from rich.table import Table
    from rich.text import Text

    titles, rows = as_rows(predictions)
    table = Table(*titles, box=None, pad_edge=False)
    for row in rows[:_ROWS_SHOWN]:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)
    if len(rows) > _ROWS_SHOWN:
        print(f"... and {len(rows) - _ROWS_SHOWN} more; --out predictions.csv saves all of them.")


PREDICT = Verb(
    name="predict",
    summary="classify images, detect objects, or segment",
    run=run,
    positionals=(RUN, Positional("paths", "PATH", "images, or folders of images", many=True)),
    options={
        "out": Option(Path(metavar="FILE|DIR"), "save a .csv table, COCO .json, or label images in DIR", "Options"),
        "ids": Option(
            Path(metavar="FILE"),
            "COCO file whose image ids (else 1, 2, ...) and category ids the .json gets",
            "Options",
        ),
        "draw": Option(Path(metavar="DIR"), "save pictures with boxes, masks, class names and scores", "Options"),
        "ckpt": CKPT,
        "trust": TRUST,
        "threshold": THRESHOLD,
        "coverage": Option(
            Number(0, 1, low_open=True, high_open=True),
            "add sets of classes that contain the true one with this probability",
            "Options",
            none="no sets",
        ),
        "embeddings": Option(
            Path(metavar="FILE"), "save the pooled features of each image as .safetensors or .csv", "Options"
        ),
        "neighbours": Option(
            Whole(1), "name the training images with the most similar features, this many", "Options", none="none"
        ),
        "novelty": Option(
            Flag(), "say which share of the validation images is more like the training images", "Options"
        ),
        "tta": TTA,
        "raw": Option(Flag(), "scores and threshold as trained, without what was fitted on validation", "Options"),
        "max_pixels": Option(
            Whole(1),
            "pixels of the largest image that is read, which takes 7 bytes of memory for each",
            "Options",
            none="Pillow's",
        ),
        "json": JSON,
        "fast": Option(Flag(), "do not pad the last batch; the last bits of the scores may differ", "Options"),
    },
    defaults={
        "ckpt": "best",
        "trust": False,
        "threshold": None,
        "coverage": None,
        "embeddings": None,
        "neighbours": None,
        "novelty": False,
        "tta": None,
        "raw": False,
        "max_pixels": None,
        "json": False,
        "fast": False,
    },
    examples=(
        "autotimm predict runs/photos-001 new/ --out predictions.csv",
        "autotimm predict runs/photos-001 one.jpg two.jpg",
        "autotimm predict runs/photos-001 new/ --coverage 0.9 --out sets.csv",
        "autotimm predict runs/photos-001 new/ --out predictions.csv --embeddings features.safetensors",
        "autotimm predict runs/photos-001 new/ --neighbours 5 --json",
        "autotimm predict runs/photos-001 new/ --novelty --out predictions.csv",
        "autotimm predict runs/photos-001 new/ --tta flip --out predictions.csv",
        "autotimm predict runs/cars-001 new/ --tta multiscale --out found.json",
        "autotimm predict runs/cars-001 new/ --out found.json --draw pictures/ --threshold 0.5",
        "autotimm predict runs/tiles-001 satellite.tif --out found.json --max-pixels 400000000",
        "autotimm predict runs/cars-001 val/ --out found.json --ids annotations/instances_val.json --threshold 0.001",
    ),
    notes=(
        "Without --out and --draw, prints a table on a terminal and CSV to a pipe or file; with --json, an object.",
        "Objects: the table has a row per object; the .json file has COCO's images, categories and results.",
        "Segmentation: DIR gets a PNG file of class indices per image, and _classes.csv. No file is overwritten.",
    ),
    elsewhere=("infer", "classify", "detect", "segment"),
)
