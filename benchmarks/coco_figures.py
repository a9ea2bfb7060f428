"""The figures of ``autotimm test`` for boxes and masks, compared with those of pycocotools on the user's own files.

Two real sets in COCO's format, photographs of damaged cars and of nuts, and the four architectures. A resnet18 with
random weights is trained for some epochs, so that there is something to find. Then:

- autotimm's side is ``Run.test`` on an annotation file;
- the other side is ``Run.predict`` on its images, the results as ``predict --out --ids`` writes them, ``COCO.loadRes``
  and ``COCOeval`` on the annotation file as it is.

Target: none of the twelve figures, and no average precision of a class, differs by more than 1e-6.

    python benchmarks/coco_figures.py [--quick] [--data FOLDER] [--epochs 6] [--threads 1]
"""

from __future__ import annotations

import json
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _bench import PHOTOS, arguments, data_folder, report
from _drawn import draw_coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import autotimm
from autotimm.runs.predict import data_of_checkpoint
from autotimm.runs.prediction_files import coco_results

ARCHS = {"fcos": "detection", "retinanet": "detection", "faster_rcnn": "detection", "mask_rcnn": "instance"}
FIGURES = (
    "", "_50", "_75", "_small", "_medium", "_large", "_recall_1", "_recall_10", "_recall", "_recall_small",
    "_recall_medium", "_recall_large",
)  # fmt: skip
KINDS = {"mAP": "bbox", "mask_mAP": "segm"}


class Set(NamedTuple):
    """A data set: what is trained on, and the annotation file and the images that are measured."""

    name: str
    train: str
    measured: str
    images: str


SETS = (
    Set("damaged cars", "inst_cardamage_coco", "inst_cardamage_coco/valid/_annotations.coco.json",
        "inst_cardamage_coco/valid"),
    Set("nuts", "inst_nuts_coco", "inst_nuts_coco/data/trainval.json", "inst_nuts_coco/data/images"),
)  # fmt: skip


class Compared(NamedTuple):
    """The largest differences of a run, and what it has found."""

    figures: float
    classes: float
    reached: dict[str, float]
    objects: int


def compare(run: autotimm.Run, root: Path, data: Set, out: Path) -> Compared:
    """Both sides on one annotation file."""
    ids = _counted_from_one(root / data.measured, out)
    ours = run.test(root / data.measured)
    by_class = run.per_class
    spec = data_of_checkpoint(run.checkpoint("best"))
    found: Any = run.predict(root / data.images, threshold=1e-6)
    results = coco_results(found, spec.class_names, category_ids=spec.category_ids, ids=ids)
    if not results["annotations"]:  # which `loadRes` does not take
        return Compared(max(value for name, value in ours.items() if "AP" in name), 0.0, {}, 0)
    figures = classes = 0.0
    reached: dict[str, float] = {}
    for metric, kind in KINDS.items():
        if f"test/{metric}" not in ours:
            continue
        stats, precision = _by_pycocotools(ids, results["annotations"], kind)
        reached[metric] = stats[0]
        pairs = [(ours.get(f"test/{metric}{name}", -1.0), value) for name, value in zip(FIGURES, stats, strict=True)]
        figures = max(figures, *(abs(a - max(b, 0.0) if name == 0 else a - b) for name, (a, b) in enumerate(pairs)))
        title = "AP" if run_measures_boxes_alone(ours) else f"{metric} AP"
        classes = max(classes, *(abs(by_class[name][title] - value) for name, value in precision.items()))
    return Compared(figures, classes, reached, len(results["annotations"]))


def run_measures_boxes_alone(values: dict[str, float]) -> bool:
    """Whether there are no masks, so that the table per class has one column."""
    return "test/mask_mAP" not in values


def _counted_from_one(annotations: Path, out: Path) -> Path:
    """The file, or a copy whose annotations count from 1: pycocotools takes the one with the id 0 for missed."""
    content = json.loads(annotations.read_text())
    if min(entry["id"] for entry in content["annotations"]) > 0:
        return annotations
    for entry in content["annotations"]:
        entry["id"] += 1
    copy = out / annotations.name
    copy.write_text(json.dumps(content))
    return copy


def _by_pycocotools(
    annotations: Path, results: list[dict[str, Any]], kind: str
) -> tuple[list[float], dict[str, float]]:
    if kind == "segm":  # with boxes, `loadRes` takes the area of the box for that of the mask, as detectron2 notes too
        results = [{name: value for name, value in entry.items() if name != "bbox"} for entry in results]
    with redirect_stdout(StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision: dict[str, float] = {}
    for column, category in enumerate(evaluation.params.catIds):
        defined = evaluation.eval["precision"][:, :, column, 0, -1]
        if (defined > -1).any():
            precision[truth.cats[category]["name"]] = float(defined[defined > -1].mean())
    return evaluation.stats.tolist(), precision


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    epochs, size = (1, 96) if options.quick else (options.epochs, 256)
    rows, worst = [], 0.0
    with data_folder(options, PHOTOS, draw_coco) as root, tempfile.TemporaryDirectory() as scratch:
        for data in SETS:
            for arch, task in ARCHS.items():
                run = autotimm.fit(
                    root / data.train, task=task, arch=arch, backbone="resnet18", pretrained=False, width=64,
                    epochs=epochs, image_size=size, batch_size=4, lr=5e-4, num_workers=0, threads=options.threads,
                    out=scratch, name=f"{data.train}-{arch}",
                )  # fmt: skip
                found = compare(run, root, data, Path(scratch))
                worst = max(worst, found.figures, found.classes)
                reached = ", ".join(f"{name} {value:.4f}" for name, value in found.reached.items())
                rows.append([data.name, arch, reached, found.objects, f"{found.figures:.1e}", f"{found.classes:.1e}"])
    columns = ["set", "arch", "pycocotools", "objects found", "largest difference", "of a class"]
    report("coco_figures", columns, rows, worst=worst, holds=worst <= 1e-6)


if __name__ == "__main__":
    main()
