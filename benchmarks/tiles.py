"""Objects of 7 pixels in pictures of 12 megapixels: what a detector finds of them with and without tiles.

Pictures of 3000 x 4000 pixels are drawn from a seed: discs of 7 pixels in three colors on a mottled ground. A small
detector (FCOS on timm's smallest ResNet, random weights) learns them from random crops at full resolution. Then the
same weights look for those of other pictures:

- in the whole picture, letterboxed to an input of 640 pixels, where a disc is about a pixel;
- in overlapping tiles.

A detector that is trained on letterboxed pictures with an input of the size of a tile is tried as well: there all
objects are smaller than a pixel.

Recall is the share of the true objects that have a predicted box with an IoU of at least 0.5, precision the share of
the predicted boxes that are such a box, for scores from 0.2 on.

Target: a recall of at least 0.8 with tiles.

    python benchmarks/tiles.py [--quick] [--tile 96] [--epochs 220] [--threads 1] [--draw FOLDER]
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import arguments, report
from PIL import Image
from torchvision.ops import box_iou

import autotimm
from autotimm.errors import DataError
from autotimm.runs.predict import known_data, predict
from autotimm.runs.prediction_files import write_pictures
from autotimm.types import ObjectPrediction

SIDE = 7  # of an object, in pixels
WHOLE = 640  # side in pixels of the input for a whole picture
SCORE = 0.2
COLORS = np.array([[230, 60, 50], [250, 210, 60], [60, 90, 230]], np.float32)


Boxes = list[tuple[int, int, int, int]]


def draw(path: Path, size: tuple[int, int], objects: int, seed: int) -> Boxes:
    """Draw a picture: mottles of all sizes, and discs that do not touch; return their boxes."""
    random, (height, width) = np.random.default_rng(seed), size
    ground = np.zeros((height, width), np.float32)
    for cells in (8, 64, 512):
        coarse = Image.fromarray(random.uniform(-25, 25, (cells * height // width, cells)).astype(np.float32))
        ground += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    pixels = np.stack([110 + ground, 125 + ground, 100 + ground], 2) + random.normal(0, 6, (height, width, 1))
    places = random.permutation((height // 24) * (width // 24))[:objects]
    boxes: Boxes = []
    disc = np.hypot(*np.mgrid[-3:4, -3:4]) < 3.6
    for cell in places:
        top = int(cell) // (width // 24) * 24 + int(random.integers(24 - SIDE))
        left = int(cell) % (width // 24) * 24 + int(random.integers(24 - SIDE))
        pixels[top : top + SIDE, left : left + SIDE][disc] = COLORS[int(random.integers(len(COLORS)))]
        boxes.append((left, top, left + SIDE, top + SIDE))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return boxes


def write_set(root: Path, pictures: dict[str, int], size: tuple[int, int], objects: int) -> dict[str, Boxes]:
    """Write pictures and COCO files; return the truth of each file."""
    truths: dict[str, Boxes] = {}
    for number, (split, count) in enumerate(pictures.items()):
        sheet: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "disc"}]}
        for picture in range(count):
            name = f"{picture:02d}.bmp"  # read in a third of the time of a JPEG file
            boxes = draw(root / split / name, size, objects, 1000 * number + picture)
            truths[f"{split}/{name}"] = boxes
            sheet["images"].append({"id": picture + 1, "file_name": name, "height": size[0], "width": size[1]})
            for x1, y1, x2, y2 in boxes:
                sheet["annotations"].append({
                    "id": len(sheet["annotations"]) + 1, "image_id": picture + 1, "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "category_id": 1, "area": SIDE**2, "iscrowd": 0,
                })  # fmt: skip
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(sheet))
    return truths


def found(predictions: Sequence[ObjectPrediction], truths: Sequence[Boxes]) -> tuple[float, float]:
    """Recall and precision at an IoU of one half; objects do not touch, so that a box fits one of them at most."""
    hits = objects = boxes = 0
    for prediction, truth in zip(predictions, truths, strict=True):
        objects, boxes = objects + len(truth), boxes + len(prediction.boxes)
        for rows in torch.tensor(truth).float().chunk(8) if prediction.boxes else ():
            hits += int((box_iou(rows, torch.tensor(prediction.boxes)) >= 0.5).any(1).sum())
    return hits / objects, hits / boxes if boxes else 0.0


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tile", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=220)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draw", type=Path, help="folder for pictures of what was found with tiles")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, objects, pictures = (3000, 4000), 6000, {"train": 4, "test": 1}
    if options.quick:
        size, objects, pictures, options.epochs = (240, 320), 40, {"train": 2, "test": 1}, 1
    rows, recalls = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "set"
        truths = write_set(root, pictures, size, objects)
        settings = {
            "task": "detection", "backbone": "test_resnet", "pretrained": False, "width": 64, "epochs": options.epochs,
            "batch_size": 4, "lr": 3e-3, "val_split": 0, "num_workers": 0, "threads": options.threads, "keep": "last",
            "max_objects": 2 * objects, "progress": False, "out": scratch,
        }  # fmt: skip
        refusal = ""
        if not options.quick:
            try:
                autotimm.fit(root, image_size=options.tile, **settings)
            except DataError as error:
                refusal = str(error)
        print(f"trained letterboxed: {refusal}")
        start = time.perf_counter()
        run = autotimm.fit(root, tile=options.tile, **settings)
        print(f"trained in {time.perf_counter() - start:.0f} s")
        images = sorted((root / "test").glob("*.bmp"))
        for way in ("whole", "in tiles"):
            task = run.model("last")
            if way == "whole":
                task.spec = replace(known_data(task), image_size=WHOLE, overlap=None)
            start = time.perf_counter()
            predictions: Any = predict(task, images, threshold=SCORE)
            taken = (time.perf_counter() - start) / len(images)
            recalls[way], precision = found(predictions, [truths[f"test/{image.name}"] for image in images])
            rows.append([way, f"{recalls[way]:.3f}", f"{precision:.3f}", f"{taken:.1f}"])
        if options.draw is not None:
            write_pictures(options.draw, predictions, ["disc"], {str(image): image for image in images})
    report("tiles", ["pictures are seen", "recall", "precision", "a picture, s"], rows, recall=recalls,
           holds=recalls["in tiles"] >= 0.8)  # fmt: skip


if __name__ == "__main__":
    main()
