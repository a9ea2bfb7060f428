"""Images per second from packed data sets, beside the loader that each engine has of its own.

The same photographs are packed by Lance and by litData. Both sides of a comparison read them in a shuffled order with
the same decoder, augmentation and batch size, in one process, so that what differs is how samples are reached, and what
autotimm adds: its order, named streams, and the digest of each sample.

- Lance: ``SafeLanceDataset`` in a torch ``DataLoader`` that shuffles;
- litData: ``StreamingDataset`` with ``shuffle=True`` in a ``StreamingDataLoader``, which shuffles chunks, and within
  them.

``bytes`` is reading alone: encoded images, in the order of the permutation, and the same by the engine's own loader.
``folder`` is autotimm on the files that were packed, beside autotimm on the packed ones.

Target: at least the images per second of the engine's own loader.

    python benchmarks/engines.py [--quick] [--data FOLDER] [--clock cpu] [--turns 7]
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _bench import CLOCKS, PHOTOS, arguments, data_folder, median, report, seconds, take_turns
from _drawn import draw_classes
from torch.utils.data import DataLoader

from autotimm import ImageDataModule
from autotimm.constants import ENGINES
from autotimm.data.image_channels import read_bytes_as
from autotimm.data.loader import collate_samples
from autotimm.data.packed.packing import pack
from autotimm.data.table import AT_ONCE
from autotimm.types import Sample

BATCH_SIZE, IMAGE_SIZE = 32, 224


def opened(folder: Path, image_size: int) -> ImageDataModule:
    """autotimm's data module."""
    data = ImageDataModule(folder, image_size=image_size, batch_size=BATCH_SIZE, num_workers=0, val_split=0)
    data.setup()
    return data


def own_loader(engine: str, path: Path, collate: Callable[[Any], Any]) -> Iterable[Any]:
    """The loader of an engine, over dictionaries or lists of columns."""
    if engine == "lance":
        from lance.torch.data import SafeLanceDataset

        return DataLoader(SafeLanceDataset(str(path)), BATCH_SIZE, shuffle=True, collate_fn=collate)
    from litdata import StreamingDataLoader, StreamingDataset

    stream = StreamingDataset(str(path / "images"), shuffle=True, drop_last=False, batch_decode=0)
    loader: Iterable[Any] = StreamingDataLoader(stream, batch_size=BATCH_SIZE, num_workers=0, collate_fn=collate)
    return loader


def encoded(engine: str, row: Any) -> bytes:
    """The image of a row."""
    return row["image"] if engine == "lance" else bytes(row[1])


class Sides:
    """What is measured of one engine, each the images of an epoch."""

    def __init__(self, engine: str, path: Path, folder: Path, image_size: int) -> None:
        data = opened(path, image_size)
        self.loader, self.files = data.train_dataloader(), opened(folder, image_size).train_dataloader()
        transform, reading = data.transforms["train"], data.tables["train"].reading
        self.packed = data.tables["train"].packed()

        def batch(rows: Any) -> Any:
            images = (read_bytes_as(encoded(engine, row), "", reading) for row in rows)
            return collate_samples([transform(Sample(image, 0, "")) for image in images])

        self.own = own_loader(engine, path, batch)
        self.own_bytes = own_loader(engine, path, lambda rows: [encoded(engine, row) for row in rows])

    def read(self) -> None:
        """Read all encoded images in the order of a permutation."""
        places = np.random.default_rng(0).permutation(self.packed.places)
        for first in range(0, len(places), AT_ONCE):
            self.packed.rows.fetch(places[first : first + AT_ONCE].tolist())


def main() -> None:
    """Measure both engines and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="folder of class folders")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    turns, size = (1, 32) if options.quick else (options.turns, IMAGE_SIZE)
    torch.set_num_threads(1)
    rows, ratios = [], {}
    usual = PHOTOS / "cls_clothing" / "train"
    with data_folder(options, usual, draw_classes) as folder, TemporaryDirectory() as scratch:
        number = len(opened(folder, size).tables["train"])
        for engine in ENGINES:
            with contextlib.redirect_stdout(io.StringIO()):  # litData says what it writes
                path = pack(opened_to_pack(folder), engine, Path(scratch) / engine, progress=False).path
            sides = Sides(engine, path, folder, size)
            compared = {
                "images": (lambda sides=sides: list(sides.loader), lambda sides=sides: list(sides.own)),
                "bytes": (sides.read, lambda sides=sides: list(sides.own_bytes)),
                "folder": (lambda sides=sides: list(sides.loader), lambda sides=sides: list(sides.files)),
            }
            for what, (ours, theirs) in compared.items():
                taken = take_turns(
                    lambda act=ours: number / seconds(act, options.clock),
                    lambda act=theirs: number / seconds(act, options.clock), turns,
                )  # fmt: skip
                ratios[f"{engine} {what}"] = round(taken.ratio, 3)
                beside = "autotimm, files" if what == "folder" else f"{engine}'s own"
                rows.append((engine, "images" if what == "folder" else what, beside, f"{median(taken.theirs):.0f}",
                             f"{median(taken.ours):.0f}", f"{taken.ratio:.2f}", taken.quartiles))  # fmt: skip
    columns = ("engine", "what", "beside", "theirs", "autotimm", "ratio", "quartiles")
    report("engines", columns, rows, ratios=ratios, turns=turns, clock=options.clock, images=number)


def opened_to_pack(folder: Path) -> ImageDataModule:
    """A data module that was not set up yet."""
    return ImageDataModule(folder, num_workers=0)


if __name__ == "__main__":
    main()
