"""How long to train from random weights on a small set: which number of steps is best on folds.

The recipe ``plain`` trains for its 10 epochs, and for 100, 200, 400 and 800 optimizer steps, on thirds of the pool that
training and validation images are drawn from: two are learned from and validated on, the last one judges. No image
that `accuracy.py` or `search_budget.py` tests on is looked at. Of the network of the best epoch the score and the loss
on the last third are given, and the loss of the last epoch, which tells whether the set was learned by heart.

Results are written line by line to ``--out``; a second call goes on where the first was interrupted.

    python benchmarks/length.py [--quick] [--sets clothing digits] [--folds 0 1 2] [--backbone NAME] [--out FILE]
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _bench import PHOTOS, arguments, done_lines, keep_line, median, report
from _small_sets import SETS, SmallSet, write_tables

import autotimm

EPOCHS = 10  # the default of fit
COLUMNS = ("set", "steps", "epochs", "kept, %", "loss", "last epoch, loss", "folds", "CPU s")


def measured(chosen: SmallSet, fold: int, steps: int, options: Any, folder: Path) -> dict[str, Any]:
    """Train on two thirds of the pool; return what the third one measures."""
    splits = chosen.folded(fold)
    tables = write_tables(splits, chosen.columns, folder)
    per_epoch = math.ceil(len(splits["train"]) / options.batch_size)
    epochs = math.ceil(steps / per_epoch) if steps else EPOCHS
    start = time.process_time()
    run = autotimm.fit(
        train_csv=tables["train"], val_csv=tables["val"], test_csv=tables["test"], image_dir="/",
        image_column="image", label_column=chosen.columns, backbone=options.backbone, pretrained=False, recipe="plain",
        image_size=options.image_size, batch_size=options.batch_size, epochs=epochs, num_workers=0,
        threads=options.threads, seed=fold, cache="ram", out=str(folder / "runs"), progress=False, keep="last",
    )  # fmt: skip
    took = time.process_time() - start
    metric = "mAP" if chosen.several else "accuracy"
    best, last = run.test(), run.test(ckpt="last")
    return {
        "epochs": epochs, "steps": epochs * per_epoch, "score": best[f"test/{metric}"], "loss": best["test/loss"],
        "last score": last[f"test/{metric}"], "last loss": last["test/loss"], "cpu_seconds": round(took, 1),
    }  # fmt: skip


def table_of(lines: list[dict[str, Any]], options: Any) -> list[tuple[str, ...]]:
    """One row per set and length, with means over the folds."""
    rows = []
    for name in options.sets:
        for steps in options.steps:
            found = [line for line in lines if (line["set"], line["asked"]) == (name, steps)]
            if not found:
                continue
            mean = {key: statistics.mean(line[key] for line in found) for key in ("score", "loss", "last loss")}
            middle = {key: f"{median(line[key] for line in found):.0f}" for key in ("steps", "epochs", "cpu_seconds")}
            rows.append((
                name, middle["steps"], middle["epochs"], f"{100 * mean['score']:.1f}", f"{mean['loss']:.2f}",
                f"{mean['last loss']:.2f}", str(len(found)), middle["cpu_seconds"],
            ))  # fmt: skip
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["clothing", "digits", "cards", "shapes"])
    parser.add_argument("--folds", type=int, nargs="+", choices=range(3), default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 100, 200, 400, 800], help="0: 10 epochs")
    parser.add_argument("--data", type=Path, default=PHOTOS, help="the folder that holds the data sets")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file of JSON lines, which is continued")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.sets, options.folds, options.steps = ["shapes"], [0], [1, 2]
        options.backbone, options.image_size = "test_resnet", 32
    lines = [line for line in done_lines(options.out) if line["backbone"] == options.backbone]
    done = {(line["set"], line["fold"], line["asked"]) for line in lines}
    with tempfile.TemporaryDirectory() as scratch:
        sets = {name: SETS[name](options.data, Path(scratch)) for name in options.sets}
        for fold in options.folds:
            for name, chosen in sets.items():
                for steps in (steps for steps in options.steps if (name, fold, steps) not in done):
                    with tempfile.TemporaryDirectory() as folder:
                        found = measured(chosen, fold, steps, options, Path(folder))
                    line = {"set": name, "fold": fold, "asked": steps, "backbone": options.backbone, **found}
                    lines.append(line)
                    print(json.dumps(line), file=sys.stderr, flush=True)
                    keep_line(line, options.out)
    report("length", COLUMNS, table_of(lines, options), backbone=options.backbone, image_size=options.image_size,
           batch_size=options.batch_size, threads=options.threads, lines=lines)  # fmt: skip


if __name__ == "__main__":
    main()
