"""Images per second of autotimm's input pipeline, compared with torchvision's ``ImageFolder`` and a ``DataLoader``.

Both sides read the same files, decode them with Pillow (autotimm's side at a reduced scale where the network needs no
more, as ``autotimm fit`` does), and apply the same augmentation: a crop of 50 to 100 % of the
area resized to 224 px with antialiasing, a horizontal flip, and changes of brightness, contrast and saturation by up to
20 %. torchvision's side converts to floats first, as most training scripts do; autotimm's side works on ``uint8``, with
order and augmentation from named streams.

Normalization is compared in two ways. ``yes``: both sides produce normalized ``float32`` batches in the training
process. torchvision's side normalizes each image in the loader; autotimm's time includes the network's first layer,
which normalizes whole batches. ``no``: both sides omit it, as when that layer runs on a GPU.

Each turn is one epoch of each side. Workers are persistent, and the first epoch, which starts them, does not count.
autotimm's check for unreadable images, once before training, is not included. ``--clock wall`` measures the throughput
of the whole machine; ``--clock cpu --threads 1 --workers 0`` measures the CPU time per image, which other programs on a
busy machine affect less.

``--megapixels 12`` enlarges the photographs to that size and adds noise, so that their files are as large as those of
a phone.

``--cache disk`` or ``ram`` keeps decoded images, in a folder of its own; the first epoch, which does not count, decodes
them.

Target: at least 1.3 times the images per second; on photographs of 12 megapixels with a cache 20 times.

    python benchmarks/pipeline.py [--quick] [--data FOLDER] [--workers 0 2] [--threads 2] [--clock wall]
                                  [--megapixels 12] [--cache disk]
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _bench import CLOCKS, PHOTOS, Turns, arguments, data_folder, median, report, seconds, take_turns
from _drawn import draw_classes
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from autotimm import ImageDataModule
from autotimm.data.image_io import is_image_name
from autotimm.models import Normalize
from autotimm.repro.seed import default_threads

MEAN, STD, BATCH_SIZE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32


def theirs(folder: Path, image_size: int, workers: int, normalize: bool) -> DataLoader[Any]:
    """The pipeline of most training scripts: floats from the start."""
    transforms = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomResizedCrop(image_size, scale=(0.5, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.2, 0.2, 0.2),
        *([v2.Normalize(MEAN, STD)] if normalize else []),
    ]
    dataset = ImageFolder(folder, v2.Compose(transforms))
    return DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


class Ours:
    """autotimm's loader, with or without the network's first layer after it."""

    def __init__(self, folder: Path, image_size: int, workers: int, normalize: bool, cache: str) -> None:
        data = ImageDataModule(folder, image_size=image_size, batch_size=BATCH_SIZE, num_workers=workers, val_split=0,
                               decode="reduced", cache=cache)  # fmt: skip
        self.loader = data.train_dataloader()
        self.last: Callable[[Tensor], Tensor] = Normalize(MEAN, STD) if normalize else nn.Identity()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self.last(batch.images), batch.targets) for batch in self.loader)


def enlarged(folder: Path, target: Path, megapixels: float, per_class: int) -> Path:
    """Copy photographs as a phone would have taken them: enlarged, with noise, at quality 92."""
    noise = np.random.default_rng(0)
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        (target / place.name).mkdir(parents=True)
        for path in sorted(path for path in place.iterdir() if is_image_name(path.name))[:per_class]:
            image = Image.open(path).convert("RGB")
            factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
            large = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
            pixels = np.asarray(large) + noise.normal(0, 3, (large.height, large.width, 1))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                target / place.name / f"{path.stem}.jpg", quality=92
            )
    return target


def count(batches: Iterable[Any], expected: int) -> None:
    """Iterate over all batches, and check that no image is missing."""
    found = sum(len(images) for images, _ in batches)
    if found != expected:
        raise SystemExit(f"{found} images came instead of {expected}")


def compare(folder: Path, image_size: int, workers: int, normalize: bool, turns: int, clock: str, cache: str) -> Turns:
    """Images per second of both sides, epoch by epoch."""
    a, b = Ours(folder, image_size, workers, normalize, cache), theirs(folder, image_size, workers, normalize)
    images = len(ImageFolder(folder))
    return take_turns(
        lambda: images / seconds(lambda: count(a, images), clock),
        lambda: images / seconds(lambda: count(b, images), clock),
        turns,
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="a folder of class folders")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of loading processes")
    parser.add_argument("--threads", type=int, default=default_threads(), help="CPU threads of the main process")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="CPU time counts the main process alone")
    parser.add_argument("--megapixels", type=float, help="enlarge some of the photographs to this size")
    parser.add_argument("--cache", choices=("off", "disk", "ram"), default="off", help="keep decoded images")
    options = parser.parse_args()
    image_size, turns = (32, 1) if options.quick else (224, 11)
    torch.set_num_threads(options.threads)
    figures: list[dict[str, Any]] = []
    with data_folder(options, PHOTOS / "cls_clothing", draw_classes) as root, TemporaryDirectory() as scratch:
        folder = root / "train" if (root / "train").is_dir() else root
        if options.megapixels:
            folder = enlarged(folder, Path(scratch, "photos"), options.megapixels, per_class=1 if options.quick else 4)
        if options.cache != "off":
            os.environ["XDG_CACHE_HOME"] = scratch
            time.sleep(4)  # nothing is kept of files younger than three seconds
        for workers, normalize in product(options.workers, (True, False)):
            speeds = compare(folder, image_size, workers, normalize, turns, options.clock, options.cache)
            figures.append(
                {
                    "workers": workers,
                    "normalized": "yes" if normalize else "no",
                    "torchvision": round(median(speeds.theirs)),
                    "autotimm": round(median(speeds.ours)),
                    "ratio": round(speeds.ratio, 2),
                    "quartiles": speeds.quartiles,
                }
            )
    columns = ("workers", "normalized", "torchvision, images/s", "autotimm, images/s", "ratio", "quartiles")
    rows = [tuple(found.values()) for found in figures]
    report(
        "pipeline",
        columns,
        rows,
        image_size=image_size,
        threads=options.threads,
        clock=options.clock,
        cache=options.cache,
        figures=figures,
    )


if __name__ == "__main__":
    main()
