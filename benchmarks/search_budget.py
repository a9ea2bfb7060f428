"""Test accuracy from random weights with and without a search for length, rate and regularization.

The methods are the recipes of ``autotimm.fit``:

- ``10 epochs``: the defaults of ``plain``.
- ``auto``: the defaults. With random weights no head can be fitted, so that it trains as ``plain`` does for as many
  epochs, bit for bit; the program checks that for the first seed.
- ``search``: the same with ``search_budget``. What it chooses is chosen on folds of the training images.
- ``as long``: the defaults for the length that the search has chosen, so that the gain of a longer training is told
  from that of another rate and regularization. Where nothing else was chosen, that is the same training.
- ``all steps``: the defaults for as many steps as the search and the training after it have made together.

The sets are those of ``_small_sets.py``; each seed draws other training and validation images. Test images are looked
at once per training. Results are written line by line to ``--out``; a second call with the same file goes on from
there.

    python benchmarks/search_budget.py [--quick] [--sets clothing digits] [--seeds 0 1] [--budget 2x] [--out FILE]
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _bench import PHOTOS, Outcome, arguments, done_lines, keep_line, median, report
from _small_sets import SETS, SmallSet, deal, write_tables

import autotimm
from autotimm.records.digest import file_digest
from autotimm.records.manifest import Manifest

METHODS = ("10 epochs", "auto", "search", "as long", "all steps")


def train(chosen: SmallSet, options: Any, seed: int, folder: Path, **own: Any) -> dict[str, Any]:
    """Train once, and test."""
    tables = write_tables(chosen.drawn(seed), chosen.columns, folder)
    run = autotimm.fit(
        train_csv=tables["train"], val_csv=tables["val"], test_csv=tables["test"], image_dir="/",
        image_column="image", label_column=chosen.columns, backbone=options.backbone, pretrained=False,
        image_size=options.image_size, batch_size=options.batch_size, seed=seed, num_workers=0, threads=options.threads,
        cache="ram", out=str(folder / "runs"), progress=False, keep="last", **own,
    )  # fmt: skip
    found, manifest = run.test(), Manifest.load(run.path / "manifest.json")
    searched = manifest.decisions.get("search", {})
    return {
        "score": found["test/mAP" if chosen.several else "test/accuracy"], "loss": found["test/loss"],
        "steps": manifest.results["steps"], "weights": file_digest(run.path / "model.safetensors"),
        "chosen": searched.get("chosen", {}), "searched": searched.get("steps", 0),
    }  # fmt: skip


def results(options: Any, scratch: Path) -> list[dict[str, Any]]:
    """Train everything that is not in the file yet."""
    lines = done_lines(options.out)
    for seed in options.seeds:
        for name in options.sets:
            chosen = SETS[name](options.data, scratch)
            if options.quick:
                chosen = chosen._replace(train=24, val=12, test=deal(chosen.test, (24,), "quick")[0])
            for method in METHODS:
                if any((line["set"], line["method"], line["seed"]) == (name, method, seed) for line in lines):
                    continue
                found = _timed(name, chosen, method, seed, lines, options)
                lines.append(found | {"set": name, "method": method, "seed": seed})
                print(json.dumps(lines[-1]), file=sys.stderr)
                keep_line(lines[-1], options.out)
    return lines


def _timed(
    name: str, chosen: SmallSet, method: str, seed: int, lines: list[dict[str, Any]], options: Any
) -> dict[str, Any]:
    per_epoch = math.ceil(chosen.train / options.batch_size)
    own: dict[str, Any] = {"epochs": 10} if method == "10 epochs" else {}
    if method == "search":
        own = {"search_budget": options.budget}
    elif method in ("as long", "all steps"):
        of_seed = [line for line in lines if (line["set"], line["seed"]) == (name, seed)]
        (searched,) = (line for line in of_seed if line["method"] == "search")
        if method == "as long" and searched["chosen"].keys() <= {"epochs"}:
            return {**searched, "method": method, "searched": 0}
        steps = searched["steps"] + (searched["searched"] if method == "all steps" else 0)
        own = {"epochs": math.ceil(steps / per_epoch)}
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        found = train(chosen, options, seed, Path(folder), **own)
        if method == "auto" and seed == options.seeds[0]:
            as_long = {"recipe": "plain", "epochs": found["steps"] // per_epoch}
            plain = train(chosen, options, seed, Path(folder) / "plain", **as_long)
            assert plain["weights"] == found["weights"], "with random weights `auto` is `plain`"
    return {**found, "cpu_seconds": round(time.process_time() - start, 1), "load": round(os.getloadavg()[0], 1)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["clothing", "digits"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", default="2x")
    parser.add_argument("--data", type=Path, default=PHOTOS, help="the folder that holds the data sets")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of all methods")
    parser.add_argument("--out", type=Path, help="a file of JSON lines, which is continued")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.sets, options.seeds, options.backbone, options.image_size = ["shapes"], [0], "test_resnet", 32
        lines = results(options, Path(scratch))
    rows, figures = [], {}
    for name in options.sets:
        for method in METHODS:
            found = [line for line in lines if (line["set"], line["method"]) == (name, method)]
            outcome = Outcome([100 * line["score"] for line in found], median(line["cpu_seconds"] for line in found))
            steps = " ".join(f"{line['searched']} + {line['steps']}" for line in found)
            rows.append((name, method, outcome, f"{sum(line['loss'] for line in found) / len(found):.2f}", steps,
                         f"{outcome.seconds:.0f}"))  # fmt: skip
            figures[f"{name}: {method}"] = found
    columns = ("set", "method", "test score, %", "test loss", "steps: search + training", "CPU s")
    report(
        "search_budget", columns, rows, backbone=options.backbone, image_size=options.image_size,
        batch_size=options.batch_size, budget=options.budget, threads=options.threads, figures=figures,
    )  # fmt: skip


if __name__ == "__main__":
    main()
