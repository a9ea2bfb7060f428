"""From nothing to the first batch: CPU time and memory of data modules over many small files.

Folders of hard links to a few hundred JPEGs of 100 px stand for large data sets. Each figure comes from a process of
its own, whose imports do not count: the CPU seconds of all its threads from ``ImageDataModule(...)`` to the first
batch, cold (an empty cache) and warm; then, as ``and its record``, up to the digests that a run writes down. Files have
been left alone for ten seconds before, since nothing is remembered of younger ones. Memory is what belongs to the
process alone after all of that (``smaps``), and memory per image the slope between the two sizes; that of loading
processes is taken at the end of an epoch.

Peers: reading every file once, and torchvision's ``ImageFolder`` up to the first batch.

Targets: at 100,000 images cold within 1.3 times of reading them once, warm under 3 s; at 1,000,000 warm under 25 s; at
most 250 bytes per image, and none in a loading process.

    python benchmarks/ready.py [--sizes 10000 100000] [--workers] [--scratch FOLDER] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _bench import arguments, report

CLASSES, DISTINCT, SIDE = 100, 400, 100
_SETTLED = 10.0  # seconds


def draw(folder: Path, images: int) -> None:
    """Write class folders of hard links to a few JPEGs."""
    import numpy as np
    from PIL import Image

    originals = folder / "originals"
    originals.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(min(DISTINCT, images)):
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(originals / f"{number}.jpg", quality=90)
    for label in range(CLASSES):
        (folder / "data" / f"class_{label:03d}").mkdir(parents=True)
    for number in range(images):
        source = originals / f"{number % min(DISTINCT, images)}.jpg"
        os.link(source, folder / "data" / f"class_{number % CLASSES:03d}" / f"image_{number:07d}.jpg")


def own_memory(pid: int) -> int:
    """Bytes of memory that belong to a process alone, on Linux."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))


def module(folder: Path, workers: int = 0) -> Any:
    """The data module that is measured."""
    from autotimm import ImageDataModule

    return ImageDataModule(folder, image_size=32, num_workers=workers, augmentation="none")


def ours(folder: Path) -> Iterator[str]:
    """Our data module up to the first batch, then up to the digests of all samples."""
    data = module(folder)
    next(iter(data.train_dataloader()))
    yield "first batch"
    from autotimm.data.data_facts import Snapshot

    snapshot = Snapshot(data.tables.values(), progress=False)
    yield "and its record"
    del snapshot, data


def reading(folder: Path) -> Iterator[str]:
    """Read every file once."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                file.read()
    yield "first batch"


def torchvisions(folder: Path) -> Iterator[str]:
    """torchvision's ``ImageFolder`` up to the first batch."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    data = ImageFolder(str(folder), v2.Compose([v2.PILToTensor(), v2.Resize(32)]))
    next(iter(DataLoader(data, 32, shuffle=True)))
    yield "first batch"
    del data


def workers(folder: Path) -> Iterator[str]:
    """An epoch of our data module with two loading processes."""
    import multiprocessing

    data = module(folder, 2)
    loader = data.train_dataloader()
    batches = iter(loader)
    for _ in range(len(loader) - 1):
        next(batches)
    yield "epoch"
    yield f"worker {max(own_memory(child.pid or 0) for child in multiprocessing.active_children())}"
    del data


SIDES: dict[str, Callable[[Path], Iterator[str]]] = {
    "autotimm": ours, "reading every file": reading, "torchvision": torchvisions, "workers": workers,
}  # fmt: skip


def measure(side: str, folder: Path, small: Path) -> None:
    """Measure one side in this process, after a look at a small folder, and print the figures."""
    for _ in SIDES[side](small):
        pass
    found: dict[str, float] = {}
    start, began = time.process_time(), time.perf_counter()
    for stage in SIDES[side](folder):
        name, _, value = stage.partition("worker ")
        if value:
            found["worker_bytes"] = int(value)
        else:
            found[f"{name}, s"], found[f"{name}, wall"] = time.process_time() - start, time.perf_counter() - began
            if side != "workers":  # which share what they do not change
                found["bytes"] = own_memory(os.getpid())
    print(json.dumps(found))


def child(side: str, folder: Path, small: Path, cache: Path) -> dict[str, float]:
    """The figures of one side, from a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--small", str(small)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def drawn(scratch: Path | None, images: int) -> Iterator[Path]:
    """A folder of so many images, removed at the end."""
    home = Path(tempfile.mkdtemp(dir=scratch))
    try:
        draw(home, images)
        time.sleep(_SETTLED)
        yield home / "data"
    finally:
        shutil.rmtree(home)


def of_size(images: int, small: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All figures of one size."""
    found: dict[str, dict[str, float]] = {}
    with drawn(options.scratch, images) as folder, tempfile.TemporaryDirectory(dir=options.scratch) as cache:
        child("reading every file", folder, small, Path(cache))  # into the page cache
        found["reading every file"] = child("reading every file", folder, small, Path(cache))
        found["torchvision ImageFolder"] = child("torchvision", folder, small, Path(cache))
        found["autotimm, cold"] = child("autotimm", folder, small, Path(cache))
        found["autotimm, warm"] = child("autotimm", folder, small, Path(cache))
        if options.workers:
            found["autotimm, 2 workers"] = child("workers", folder, small, Path(cache))
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="numbers of images")
    parser.add_argument("--workers", action="store_true", help="also the memory of loading processes, after an epoch")
    parser.add_argument("--scratch", type=Path, help="where to write the hard links; the usual temporary folder")
    for name in ("side", "folder", "small"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure(options.side, Path(options.folder), Path(options.small))
        return
    sizes = [200, 400] if options.quick else sorted(options.sizes)
    with drawn(options.scratch, 200) as small:
        figures = {images: of_size(images, small, options) for images in sizes}
    rows = []
    for images, found in figures.items():
        read = found["reading every file"]["first batch, s"]
        for side, figure in found.items():
            seconds = figure.get("first batch, s", figure.get("epoch, s", 0.0))
            slopes = [
                f"{(figure[kind] - figures[sizes[0]][side][kind]) / (images - sizes[0]):.0f}"
                if kind in figure and images > sizes[0] else ""
                for kind in ("bytes", "worker_bytes")
            ]  # fmt: skip
            record = figure.get("and its record, s")
            columns = [f"{seconds:.2f}", f"{seconds / read:.2f}", "" if record is None else f"{record:.2f}"]
            rows.append((f"{images:,}", side, *columns, *slopes))
    columns = ("images", "side", "first batch, CPU s", "times reading", "with record, CPU s", "bytes per image",
               "of a worker")  # fmt: skip
    report("ready", columns, rows, figures=figures)


if __name__ == "__main__":
    main()
