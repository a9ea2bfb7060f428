"""How well `predict --novelty` tells images unlike the training images from others of their kind.

A classifier of clothes is trained on ``cls_clothing``; features of its test photographs and of photographs of other
sets are compared with those of its training images. For the distance to the k-th nearest of them, for several k, the
program prints the area under the ROC curve of telling an other set from the test photographs of clothes, and the share
of images with a novelty of 0.95 or more. Of the test photographs about 5 % should have that much. For the k of
``predict`` it checks that ``predict`` says the same.

    python benchmarks/novelty.py [--quick] [--epochs 2] [--image-size 160] [--most 60] [--data FOLDER]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import PHOTOS, WEIGHTS, arguments, report
from _small_sets import SETS
from scipy.stats import mannwhitneyu

import autotimm
from autotimm.data.toy import write_toy_folder
from autotimm.runs.neighbours import NOVELTY_RANK, NearestSamples, novelties

RANKS = (1, 5, 10, 50)
NOVEL = 0.95
OTHERS = {
    "sign digits": "cls_sign_digits", "blood cells": "det_bccd_voc", "corridors": "seg_dhcn",
    "COCO": "det_inst_tinycoco", "cards": "multilabel_cards",
}  # fmt: skip


def photographs(folder: Path, most: int) -> list[Path]:
    """At most so many photographs below a folder, evenly from all of them in the order of their names."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(files) <= most:
        return files
    return [files[round(index * (len(files) - 1) / (most - 1))] for index in range(most)]


def sets_of(options: Any, scratch: Path) -> tuple[Path, dict[str, list[Path]]]:
    """The folder to train on, and the images of each set: of the same kind (``test``) and others."""
    if options.quick:
        folder = write_toy_folder(scratch / "toy", splits={"train": 24, "val": 12, "test": 12}, num_classes=3)
        drawn = SETS["shapes"](options.data, scratch).test[:12]
        return folder, {"test": sorted((folder / "test").rglob("*.png")), "shapes": [photo.path for photo in drawn]}
    folder = options.data / "cls_clothing"
    sets = {"test": sorted((folder / "test").glob("*/*.jpg"))}
    return folder, sets | {name: photographs(options.data / place, options.most) for name, place in OTHERS.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=PHOTOS, help="the folder that holds the data sets")
    parser.add_argument("--weights", default=str(WEIGHTS), help="ImageNet weights, as safetensors")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--most", type=int, default=60, help="images of each other set")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder, sets = sets_of(options, Path(scratch))
        small = {"backbone": "test_resnet", "pretrained": False, "image_size": 32, "epochs": 1}
        real = {"backbone": "tf_efficientnet_lite0", "pretrained": options.weights, "image_size": options.image_size,
                "epochs": options.epochs}  # fmt: skip
        run = autotimm.fit(
            folder, out=str(Path(scratch) / "runs"), seed=options.seed, num_workers=0, threads=options.threads,
            progress=False, **(small if options.quick else real),
        )  # fmt: skip
        distances = distances_of(run, sets)
        said = [each.novelty for each in run.predict(sets["test"], novelty=True)]
    held_out = distances.pop("val")
    assert said == novelties(distances["test"][:, NOVELTY_RANK - 1], held_out[:, NOVELTY_RANK - 1])
    rows = []
    for name, found in distances.items():
        cells = []
        for rank in RANKS:
            column = min(rank, found.shape[1]) - 1
            values = np.array(novelties(found[:, column], held_out[:, column]))
            area = mannwhitneyu(distances["test"][:, column], found[:, column]).statistic
            area /= len(distances["test"]) * len(found)
            told = "" if name == "test" else f"{area:.3f} "
            cells.append(f"{told}({(values >= NOVEL).mean():.1%})")
        rows.append((f"{name} ({len(found)})", *cells))
    columns = ("images", *(f"k = {rank}" for rank in RANKS))
    report(
        "novelty", columns, rows, held_out=len(held_out), image_size=options.image_size, epochs=options.epochs,
        seed=options.seed,
    )  # fmt: skip


def distances_of(run: autotimm.Run, sets: dict[str, list[Path]]) -> dict[str, np.ndarray]:
    """Cosine similarities of the images of each set, and of the validation images, to their nearest training images."""
    trained = run.embed(run.data().tables["train"].files())
    evidence = run.evidence().features
    assert evidence is not None
    features = {"val": np.asarray(evidence, np.float32)}
    features |= {name: run.embed(paths).features for name, paths in sets.items()}
    found = {}
    for name, rows in features.items():
        nearest = NearestSamples(rows, trained.ids, max(RANKS))
        nearest.add(trained.ids, trained.features)
        found[name] = np.array([[similarity for _, similarity in each] for each in nearest.found()])
    return found


if __name__ == "__main__":
    main()
