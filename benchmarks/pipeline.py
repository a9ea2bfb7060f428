"""Images per second of autotimm's input pipeline, beside the loaders that most training scripts use.

All sides read the same files with the same augmentation, a crop of 50 to 100 % of the area resized to 224 px with
antialiasing, a mirror, and changes of brightness, contrast and saturation by up to 20 %, and end with normalized
``float32`` batches in the training process:

- ``torchvision, PIL``: ``ImageFolder`` with transforms of Pillow images, as in torchvision's references;
- ``torchvision, floats``: ``ImageFolder`` with transforms v2 of floats;
- ``timm``: ``create_loader``, as in timm's own training script, without the prefetcher, which needs a GPU;
- autotimm decodes JPEGs at a reduced scale where the network needs no more, as ``autotimm fit`` does, with order and
  augmentation from named streams. The network's first layer, which normalizes, is included.

Each turn is one epoch of each side. Workers are persistent, and the first epoch, which starts them, does not count.
autotimm's check for unreadable images, once before training, is not included. ``--clock wall`` measures the throughput
of the whole machine; ``--clock cpu --threads 1 --workers 0`` measures the CPU time per image, which other programs on a
busy machine affect less.

``--megapixels 12`` enlarges the photographs to that size and adds noise, so that their files are as large as those of
a phone. ``--cache disk`` or ``ram`` keeps autotimm's decoded images, in a folder of its own; the first epoch, which
does not count, decodes them.

Target: twice the images per second of the best of the others; on photographs of 12 megapixels 5 times, and 20 times
with a cache.

    python benchmarks/pipeline.py [--quick] [--data FOLDER] [--workers 0 2] [--threads 2] [--clock wall]
                                  [--megapixels 12] [--cache disk]
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _bench import CLOCKS, PHOTOS, Turns, arguments, data_folder, median, report, seconds
from _drawn import draw_classes
from PIL import Image
from timm.data import create_dataset, create_loader
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from autotimm import ImageDataModule
from autotimm.data.image_io import is_image_name
from autotimm.models import Normalize
from autotimm.repro.seed import default_threads

MEAN, STD, BATCH_SIZE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32


def pil(folder: Path, image_size: int, batch_size: int, workers: int) -> Iterable[Any]:
    """torchvision's transforms of Pillow images."""
    transforms = [
        v2.RandomResizedCrop(image_size, scale=(0.5, 1.0)),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.2, 0.2, 0.2),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
    return _torch_loader(folder, transforms, batch_size, workers)


def floats(folder: Path, image_size: int, batch_size: int, workers: int) -> Iterable[Any]:
    """torchvision's transforms of floats."""
    transforms = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomResizedCrop(image_size, scale=(0.5, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.2, 0.2, 0.2),
        v2.Normalize(MEAN, STD),
    ]
    return _torch_loader(folder, transforms, batch_size, workers)


def _torch_loader(folder: Path, transforms: list[Any], batch_size: int, workers: int) -> Iterable[Any]:
    dataset = ImageFolder(folder, v2.Compose(transforms))
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def timm_loader(folder: Path, image_size: int, batch_size: int, workers: int) -> Iterable[Any]:
    """timm's own loader."""
    loader: Iterable[Any] = create_loader(
        create_dataset("", root=str(folder), split="", is_training=True),
        input_size=(3, image_size, image_size),
        batch_size=batch_size,
        is_training=True,
        use_prefetcher=False,
        scale=(0.5, 1.0),
        hflip=0.5,
        color_jitter=(0.2, 0.2, 0.2),
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return loader


PEERS = {"torchvision, PIL": pil, "torchvision, floats": floats, "timm": timm_loader}


class Ours:
    """autotimm's loader, and the network's first layer after it."""

    def __init__(self, folder: Path, image_size: int, batch_size: int, workers: int, cache: str) -> None:
        data = ImageDataModule(folder, image_size=image_size, batch_size=batch_size, num_workers=workers, val_split=0,
                               decode="reduced", cache=cache)  # fmt: skip
        self.loader, self.last = data.train_dataloader(), Normalize(MEAN, STD)

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


def compare(folder: Path, image_size: int, workers: int, turns: int, clock: str, cache: str) -> dict[str, Turns]:
    """Images per second of autotimm and of each of the others, epoch by epoch."""
    images = len(ImageFolder(folder))
    batch_size = min(BATCH_SIZE, images)
    loaders: dict[str, Iterable[Any]] = {
        name: make(folder, image_size, batch_size, workers) for name, make in PEERS.items()
    }
    loaders["autotimm"] = Ours(folder, image_size, batch_size, workers, cache)

    def epoch(name: str) -> float:
        shown = 0

        def read() -> None:
            nonlocal shown
            shown = sum(len(batch[0]) for batch in loaders[name])

        speed = images / seconds(read, clock)
        if images - shown >= batch_size or (name == "autotimm" and shown != images):  # timm leaves out the last batch
            raise SystemExit(f"{name} gave {shown} images instead of {images}")
        return speed * shown / images

    taken = {name: Turns() for name in PEERS}
    names = list(loaders)
    for turn in range(-1, turns):
        order = names[turn % len(names) :] + names[: turn % len(names)]  # no side always comes first
        speeds = {name: epoch(name) for name in order}
        for name in PEERS if turn >= 0 else ():
            taken[name].ours.append(speeds["autotimm"])
            taken[name].theirs.append(speeds[name])
    return taken


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
        for workers in options.workers:
            for name, speeds in compare(folder, image_size, workers, turns, options.clock, options.cache).items():
                figures.append(
                    {
                        "workers": workers,
                        "peer": name,
                        "theirs": round(median(speeds.theirs)),
                        "autotimm": round(median(speeds.ours)),
                        "ratio": round(speeds.ratio, 2),
                        "quartiles": speeds.quartiles,
                    }
                )
    columns = ("workers", "beside", "theirs, images/s", "autotimm, images/s", "ratio", "quartiles")
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
    )  # fmt: skip


if __name__ == "__main__":
    main()
