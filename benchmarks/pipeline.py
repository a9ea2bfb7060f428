"""Images per second of autotimm's input pipeline against torchvision's ``ImageFolder`` and torch's ``DataLoader``.

Both sides read the same files, decode them with Pillow, and apply the same random changes: a crop of 50 to 100 % of the
area resized to 224 px with antialiasing, a mirror, brightness, contrast and saturation by up to 20 %, normalization.
Both end with normalized ``float32`` batches of 32 in the training process. torchvision's side converts to floats first
and works on floats, as most training scripts do; autotimm's works on ``uint8`` and normalizes whole batches in the
network's first layer, which is part of its time here. Order and augmentation of autotimm's side are keyed, as always.

Each turn is one epoch of each side, workers are persistent, and the first epoch, which starts them, does not count.
autotimm's check for unreadable images, done once before training, is not part of it.

Target: at least 1.3 times the images per second.

    python benchmarks/pipeline.py [--quick] [--data FOLDER_OF_CLASS_FOLDERS] [--workers 0 2]
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from _bench import PHOTOS, Turns, arguments, median, report, seconds, take_turns
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from autotimm import Batch, ImageDataModule
from autotimm.models import Normalize

MEAN, STD, BATCH_SIZE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32


def torchvision_loader(folder: Path, image_size: int, workers: int) -> DataLoader[Any]:
    """The pipeline of many a training script: floats from the start."""
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomResizedCrop(image_size, scale=(0.5, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2),
            v2.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(
        ImageFolder(folder, transform), BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


class Ours:
    """autotimm's loader, with the network's first layer behind it."""

    def __init__(self, folder: Path, image_size: int, workers: int) -> None:
        data = ImageDataModule(folder, image_size=image_size, batch_size=BATCH_SIZE, num_workers=workers, val_split=0)
        self.loader, self.normalize = data.train_dataloader(), Normalize(MEAN, STD)

    def __iter__(self) -> Any:
        return ((self.normalize(batch.images), batch.targets) for batch in map(Batch.of, self.loader))


def count(batches: Iterable[Any], expected: int) -> None:
    """Take every batch, and check that no image is missing."""
    found = sum(len(images) for images, _ in batches)
    if found != expected:
        raise SystemExit(f"{found} images came instead of {expected}")


def compare(folder: Path, image_size: int, workers: int, turns: int) -> tuple[Turns, int]:
    """Time epochs of both sides; return them and the number of images of an epoch."""
    theirs = torchvision_loader(folder, image_size, workers)
    ours, images = Ours(folder, image_size, workers), len(theirs.dataset)  # type: ignore[arg-type]
    took = take_turns(
        lambda: seconds(lambda: count(ours, images)), lambda: seconds(lambda: count(theirs, images)), turns
    )
    return took, images


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=PHOTOS / "cls_clothing", help="a folder of class folders")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of loading processes")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no folder {options.data}; give one of class folders with --data")
        return
    folder = options.data / "train" if (options.data / "train").is_dir() else options.data
    image_size, turns = (32, 1) if options.quick else (224, 9)
    rows, figures = [], {}
    for workers in options.workers:
        took, images = compare(folder, image_size, workers, turns)
        speeds = Turns(theirs=[images / time for time in took.theirs], ours=[images / time for time in took.ours])
        found = {
            "torchvision": round(median(speeds.theirs)),
            "autotimm": round(median(speeds.ours)),
            "ratio": round(speeds.ratio, 3),
            "quartiles": speeds.quartiles,
        }
        rows.append((workers, *found.values()))
        figures[f"{workers} workers"] = found
    columns = ("workers", "torchvision, images/s", "autotimm, images/s", "ratio", "quartiles")
    report(
        "pipeline", columns, rows, image_size=image_size, turns=turns, threads=torch.get_num_threads(), figures=figures
    )


if __name__ == "__main__":
    main()
