"""Detection, segmentation and multi-label classification from random weights, compared with hand-written loops.

Four real data sets, three seeds, a resnet18 without pretrained weights; image size, epochs, batch size, learning rate,
width of pyramid and heads, and files are the same on both sides. The best epoch on validation data is tested:

- ``boxes``: `det_bccd_voc`, blood cells, FCOS, mAP50 of the test images;
- ``pixels``: `seg_dhcn`, rooms of a building, FPN, mIoU of the test images;
- ``masks``: `inst_nuts_coco`, nuts, Mask R-CNN, mask mAP50 of the four images that are not in the training set;
- ``labels``: `multilabel_cards`, playing cards, a linear head, mAP of the test images.

autotimm's side is ``autotimm.fit`` with its other defaults, then ``Run.test``, and once ``Run.verify``, which replays
every step of the run. The loops are in ``_dense_loops.py``: the detectors of torchvision, the FPN of
segmentation-models-pytorch and the classifier of timm, trained as their documentation recommends.

Target: autotimm's mean is not below the loop's by more than one pooled standard deviation.

    python benchmarks/dense.py [--quick] [--set boxes] [--seeds 0 1 2] [--data FOLDER] [--threads 1] [--keep FOLDER]
"""

from __future__ import annotations

import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _bench import PHOTOS, Outcome, arguments, data_folder, median, report
from _dense_loops import LOOPS, Budget, cards
from _drawn import draw_dense

import autotimm
from autotimm.repro.seed import default_threads

BUDGETS = {
    "boxes": Budget(epochs=10, batch_size=8, image_size=192, lr=5e-4, width=64, workers=0),
    "pixels": Budget(epochs=20, batch_size=8, image_size=128, lr=5e-4, width=64, workers=0),
    "masks": Budget(epochs=30, batch_size=2, image_size=256, lr=2.5e-4, width=64, workers=0),
    "labels": Budget(epochs=20, batch_size=16, image_size=128, lr=1e-3, width=64, workers=0),
}
SIDES = ("autotimm", "by hand")
FOLDERS = {"boxes": "det_bccd_voc", "pixels": "seg_dhcn", "masks": "inst_nuts_coco"}
MEASURED = {"boxes": "mAP_50", "pixels": "mIoU", "masks": "mask_mAP_50", "labels": "mAP"}
TASKS = {"boxes": "detection", "pixels": "segmentation", "masks": "instance", "labels": "classification"}
TITLES = {"boxes": "mAP50", "pixels": "mIoU", "masks": "mask mAP50", "labels": "mAP"}


def fitted(name: str, root: Path, budget: Budget, seed: int, out: Path) -> autotimm.Run:
    """Train with autotimm."""
    options: dict[str, Any] = {
        "task": TASKS[name], "epochs": budget.epochs, "batch_size": budget.batch_size, "lr": budget.lr,
        "image_size": budget.image_size, "num_workers": budget.workers,
    }  # fmt: skip
    if name != "labels":
        options |= {"path": root / FOLDERS[name], "width": budget.width}
    else:
        header, splits = cards(root)
        for split, rows in splits.items():
            table = out / f"{split}.csv"
            with table.open("w", newline="") as file:
                csv.writer(file).writerows([header, *rows])
            options[f"{split}_csv"] = table
        options |= {"image_column": header[0], "label_column": header[1:], "image_dir": "/"}
    return autotimm.fit(
        **options, backbone="resnet18", pretrained=False, seed=seed, threads=torch.get_num_threads(),
        out=out, name=f"{name}-{seed}",
    )  # fmt: skip


def reached(run: autotimm.Run, name: str) -> float:
    """The metric of the test images, or of the validation images if there is no test set."""
    if name == "masks":
        return run.metrics[f"val/{MEASURED[name]}"]
    return run.test()[f"test/{MEASURED[name]}"]


def compare(
    name: str, root: Path, seeds: list[int], budget: Budget, out: Path, sides: list[str]
) -> tuple[dict[str, Outcome], str]:
    """Train both sides with each seed, alternately; verify the first run of autotimm."""
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    runs: list[autotimm.Run] = []

    def ours(seed: int) -> float:
        runs.append(fitted(name, root, budget, seed, out))
        return reached(runs[-1], name)

    def theirs(seed: int) -> float:
        return LOOPS[name](root, budget, seed)

    for seed in seeds:
        for side in sides:
            start = time.perf_counter()
            value = round(100 * (ours if side == "autotimm" else theirs)(seed), 2)
            found[side].append((value, time.perf_counter() - start))
            print(f"{name}, seed {seed}, {side}: {value:.1f} % in {found[side][-1][1]:.0f} s", flush=True)
    verified = "-"
    if runs:
        verdict = runs[0].verify()
        print(f"{name}: {verdict}", flush=True)
        verified = "identical" if verdict.identical else "different"
    outcomes = {
        side: Outcome([value for value, _ in pairs], round(median(took for _, took in pairs), 1))
        for side, pairs in found.items()
    }
    return outcomes, verified


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--set", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, help="the folder that holds the data sets")
    parser.add_argument("--threads", type=int, default=default_threads(), help="CPU threads of both sides")
    parser.add_argument("--side", nargs="+", choices=SIDES, default=list(SIDES), help="one side alone has no target")
    parser.add_argument("--keep", type=Path, help="a folder to leave the runs in, to look at what they predict")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, figures = [], {}
    for name in options.set:
        budget = BUDGETS[name]._replace(epochs=1) if options.quick else BUDGETS[name]
        seeds = options.seeds[:1] if options.quick else options.seeds
        with tempfile.TemporaryDirectory() as scratch, data_folder(options, PHOTOS, draw_dense) as folder:
            out = options.keep or Path(scratch)
            out.mkdir(parents=True, exist_ok=True)
            found, verified = compare(name, folder.resolve(), seeds, budget, out, options.side)
        both = len(found) == len(SIDES)
        target = found["autotimm"].against(found["by hand"]) if both else "-"
        reached_by = [str(found.get(side, "-")) for side in SIDES]
        took = " / ".join(f"{found[side].seconds:.0f}" for side in options.side)
        rows.append((name, TITLES[name], budget.epochs, budget.image_size, *reached_by, target, verified, took))
        figures[name] = {side: outcome._asdict() for side, outcome in found.items()}
        figures[name] |= {"target": target, "verify": verified}
    columns = ("set", "measured", "epochs", "px", "autotimm, %", "by hand, %", "target", "verify", "seconds")
    report("dense", columns, rows, backbone="resnet18", threads=options.threads, figures=figures)


if __name__ == "__main__":
    main()
