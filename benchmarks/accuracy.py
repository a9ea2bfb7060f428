"""Test accuracy of fine-tuning on small sets: autotimm's recipes beside those of fastai, AutoGluon and scikit-learn.

All methods start from the same ImageNet weights, see the same training images in the same order with the same
augmentation, pixels and batch size, and train for the same number of epochs. They are:

- ``auto``, ``plain`` and ``probe``: the recipes of ``autotimm.fit``; what ``Run.test`` measures.
- ``fastai``, ``AutoMM`` and ``logistic``: the loops of ``_fine_tuning_loops.py``. fastai's has one more epoch, in which
  the backbone is frozen, since its users get that too.

The sets are those of ``_small_sets.py``. Each seed draws other training and validation images, initial weights, order
and augmentation. Test images are looked at once per training, and nothing is chosen by them. The score is accuracy, or
mean average precision of several labels. A paired t-test over the seeds compares ``auto`` with each other method.

Results are written line by line to ``--out``; a second call with the same file goes on where the first was interrupted.

    python benchmarks/accuracy.py [--quick] [--sets clothing] [--methods auto fastai] [--seeds 0 1] [--out FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from _bench import PHOTOS, WEIGHTS, Outcome, arguments, done_lines, keep_line, median, report
from _fine_tuning_loops import PEERS, Scores
from _small_sets import SETS, SmallSet, deal, write_tables
from safetensors.torch import save_file
from scipy.stats import ttest_rel

import autotimm
from autotimm import ImageDataModule

BACKBONE = "tf_efficientnet_lite0"
RECIPES = ("auto", "plain", "probe")
METHODS = (*RECIPES, *PEERS)


def with_autotimm(chosen: SmallSet, recipe: str, seed: int, options: Any, folder: Path) -> dict[str, Any]:
    """Train by a recipe of autotimm."""
    tables = write_tables(chosen.drawn(seed), chosen.columns, folder)
    run = autotimm.fit(
        train_csv=tables["train"], val_csv=tables["val"], test_csv=tables["test"], image_dir="/",
        image_column="image", label_column=chosen.columns, backbone=BACKBONE, pretrained=str(options.weights),
        image_size=options.image_size, batch_size=options.batch_size, recipe=recipe, seed=seed, num_workers=0,
        threads=options.threads, cache="ram", out=str(folder / "runs"), progress=False,
        **({} if recipe == "probe" else {"epochs": options.epochs}),
    )  # fmt: skip
    found, name = run.metrics | run.test(), "mAP" if chosen.several else "accuracy"
    kept = json.loads((run.path / "results.json").read_text()).get("recipe", {}).get("kept", "")
    scores: dict[str, Scores] = {
        split: {"score": found[f"{split}/{name}"], "loss": found[f"{split}/loss"]} for split in ("val", "test")
    }
    return {**scores, "kept": kept}


def with_a_loop(chosen: SmallSet, name: str, seed: int, options: Any, folder: Path) -> dict[str, Any]:
    """Train by a loop on the batches of the same data module."""
    tables = write_tables(chosen.drawn(seed), chosen.columns, folder)
    data = ImageDataModule(
        train_csv=tables["train"], val_csv=tables["val"], test_csv=tables["test"], image_dir="/", image_column="image",
        label_column=chosen.columns if chosen.several else chosen.columns[0], image_size=options.image_size,
        batch_size=options.batch_size, decode="reduced", seed=seed, num_workers=0, cache="ram",
    )  # fmt: skip
    for stage in ("fit", "test"):
        data.setup(stage)
    return dict(PEERS[name](data, BACKBONE, str(options.weights), options.epochs, seed))


def results(options: Any, scratch: Path) -> list[dict[str, Any]]:
    """Train everything that is not in the file yet; seed by seed, so that an interrupted call has whole ones."""
    sets = {name: SETS[name](options.data, scratch) for name in options.sets}
    if options.quick:
        sets = {name: _few(chosen) for name, chosen in sets.items()}
    lines = done_lines(options.out)
    done = {(line["set"], line["method"], line["seed"]) for line in lines}
    for seed in options.seeds:
        for name, chosen in sets.items():
            for method in (method for method in options.methods if (name, method, seed) not in done):
                train, start = with_autotimm if method in RECIPES else with_a_loop, time.process_time()
                with tempfile.TemporaryDirectory() as folder:
                    found = train(chosen, method, seed, options, Path(folder))
                took = {"cpu_seconds": round(time.process_time() - start, 1), "load": round(os.getloadavg()[0], 1)}
                lines.append({"set": name, "method": method, "seed": seed, **found, **took})
                print(json.dumps(lines[-1]), file=sys.stderr)
                keep_line(lines[-1], options.out)
    return lines


def _few(chosen: SmallSet) -> SmallSet:
    test = deal(chosen.test, (24,), "quick")[0]
    return chosen._replace(train=min(chosen.train, 36), val=min(chosen.val, 12), test=test)


def table_of(lines: list[dict[str, Any]], options: Any) -> tuple[list[tuple[str, ...]], dict[str, Any]]:
    """One row per set: mean and standard deviation of each method, and how sure it is that ``auto`` differs."""
    rows, figures = [], {}
    for name in options.sets:
        found = {
            method: {line["seed"]: line for line in lines if (line["set"], line["method"]) == (name, method)}
            for method in options.methods
        }
        for method, by_seed in found.items():
            seeds = [seed for seed in options.seeds if seed in by_seed]
            scores = [100 * by_seed[seed]["test"]["score"] for seed in seeds]
            losses = [by_seed[seed]["test"]["loss"] for seed in seeds]
            outcome = Outcome(scores, median(by_seed[seed]["cpu_seconds"] for seed in seeds))
            ours = [100 * found["auto"][seed]["test"]["score"] for seed in seeds] if "auto" in found else scores
            compared = method != "auto" and "auto" in found
            ahead = statistics.mean(ours) - outcome.mean
            sure = float(ttest_rel(ours, scores).pvalue) if compared and len(seeds) > 1 and ours != scores else None
            figures[f"{name}: {method}"] = {"scores": scores, "losses": losses, "p": sure}
            rows.append(
                (
                    name, method, f"{outcome.mean:.1f} ± {outcome.std:.1f}", f"{statistics.mean(losses):.2f}",
                    f"{ahead:+.1f}" if compared else "", f"{sure:.3f}" if sure is not None else "", str(len(seeds)),
                    f"{outcome.seconds:.0f}",
                )
            )  # fmt: skip
    return rows, figures


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--data", type=Path, default=PHOTOS, help="the folder that holds the data sets")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help=f"weights of {BACKBONE}, as safetensors")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of all methods")
    parser.add_argument("--out", type=Path, help="a file of JSON lines, which is continued")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.sets, options.seeds, options.epochs, options.image_size = ["shapes"], [0], 1, 64
            options.weights = Path(scratch) / "random.safetensors"
            save_file(timm.create_model(BACKBONE).state_dict(), options.weights)
        lines = results(options, Path(scratch))
    rows, figures = table_of(lines, options)
    columns = ("set", "method", "test score, %", "test loss", "auto ahead by", "p", "seeds", "CPU s")
    report(
        "accuracy", columns, rows, backbone=BACKBONE, image_size=options.image_size, batch_size=options.batch_size,
        epochs=options.epochs, threads=options.threads, scikit_learn=version("scikit-learn"), figures=figures,
    )  # fmt: skip


if __name__ == "__main__":
    main()
