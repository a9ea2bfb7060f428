"""The learning rate of fine-tuning after a fitted head: which part of the usual one validates best on folds.

A pretrained backbone is fine-tuned by the recipe ``auto`` at 1, 1/2, 1/5 and 1/10 of the rate of ``plain``, on thirds
of the pool that training and validation images are drawn from: two are learned from and validated on, the last one
judges. No image that `accuracy.py` tests on is looked at. Besides what the recipe keeps, the fitted head and the last
epoch are measured: they tell what fine-tuning did, and what the choice among the candidates saved.

Results are written line by line to ``--out``; a second call goes on where the first was interrupted.

    python benchmarks/head_rate.py --weights FILE [--quick] [--sets clothing digits] [--folds 0 1 2] [--out FILE]
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from _bench import PHOTOS, WEIGHTS, arguments, done_lines, keep_line, report
from _small_sets import SETS, SmallSet, write_tables
from safetensors.torch import save_file

import autotimm

PARTS = {"1": 1.0, "1/2": 0.5, "1/5": 0.2, "1/10": 0.1}
STUDIED = ("clothing", "digits", "cards", "shapes")
BACKBONE, USUAL = "tf_efficientnet_lite0", 5e-4  # the rate of CNNs at a batch of 32


def measured(chosen: SmallSet, fold: int, part: float, options: Any, folder: Path) -> dict[str, Any]:
    """Train on two thirds of the pool; return what the third one measures."""
    splits = chosen.folded(fold)
    tables = write_tables(splits, chosen.columns, folder)
    run = autotimm.fit(
        train_csv=tables["train"], val_csv=tables["val"], test_csv=tables["test"], image_dir="/",
        image_column="image", label_column=chosen.columns, backbone=BACKBONE, pretrained=str(options.weights),
        image_size=options.image_size, batch_size=options.batch_size,
        lr=part * USUAL * (options.batch_size / 32) ** 0.5,
        num_workers=0, threads=1, seed=fold, cache="ram", out=str(folder / "runs"), progress=False,
        epochs=math.ceil(options.steps / math.ceil(len(splits["train"]) / options.batch_size)),
    )  # fmt: skip
    figures = {"best": run.test(), "last": run.test(ckpt="last")}
    figures["head"] = run.test(ckpt=next((run.path / "checkpoints").glob("epoch-0000-*")))
    choice = json.loads((run.path / "results.json").read_text())["recipe"]
    return {"kept": choice["kept"], "val": run.metrics, "epochs": run.config["epochs"]} | figures


COLUMNS = ("set", "part of the rate", "kept, val %", "kept, %", "loss", "last epoch, %", "loss", "head, %", "folds")


def table_of(lines: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row per set and rate, with means over the folds."""
    rows = []
    for name, part in dict.fromkeys((line["set"], line["part"]) for line in lines):
        found = [line for line in lines if (line["set"], line["part"]) == (name, part)]
        metric = "mAP" if "test/mAP" in found[0]["best"] else "accuracy"

        def mean(which: str, metric: str, split: str = "test", found: list[dict[str, Any]] = found) -> float:
            return statistics.mean(line[which][f"{split}/{metric}"] for line in found)

        kept = [f"{100 * mean('val', metric, 'val'):.1f}"]
        for which in ("best", "last"):
            kept += [f"{100 * mean(which, metric):.1f}", f"{mean(which, 'loss'):.2f}"]
        rows.append((name, part, *kept, f"{100 * mean('head', metric):.1f}", str(len(found))))
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(STUDIED))
    parser.add_argument("--folds", type=int, nargs="+", choices=range(3), default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=PHOTOS, help="the folder that holds the data sets")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="pretrained weights of the backbone")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of a training, rounded up to epochs")
    parser.add_argument("--out", type=Path, help="a file of JSON lines, which is continued")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.sets, options.folds, options.steps, options.image_size = ["shapes"], [0], 1, 32
    done = done_lines(options.out)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.weights = Path(scratch) / "random.safetensors"
            save_file(timm.create_model(BACKBONE).state_dict(), options.weights)
        sets = {name: SETS[name](options.data, Path(scratch)) for name in options.sets}
        for fold in options.folds:
            for name, chosen in sets.items():
                for part, factor in PARTS.items():
                    if any((line["set"], line["fold"], line["part"]) == (name, fold, part) for line in done):
                        continue
                    start = time.perf_counter()
                    with tempfile.TemporaryDirectory() as folder:
                        line = measured(chosen, fold, factor, options, Path(folder))
                    line = {"set": name, "fold": fold, "part": part, "seconds": time.perf_counter() - start, **line}
                    done.append(line)
                    keep_line(line, options.out)
                    print(name, fold, part, line["best"], flush=True)
    report("head_rate", COLUMNS, table_of(done), backbone=BACKBONE, steps=options.steps, lines=done)


if __name__ == "__main__":
    main()
