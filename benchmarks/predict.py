"""Images per second of ``predict``, compared with the loop that one writes with timm.

Both read the same folder of photographs with the same network, 16 at a time, and give the most likely class of each
image. The loop uses timm's ``create_dataset``, ``create_loader`` and softmax, as timm's own ``inference.py``. Ours is
``autotimm predict``, which also decodes each file as documented (EXIF, 16 bits, damaged files), pads the last batch, so
that an image has the same bits in any batch, and returns the score of every class.

CPU time is that of the process and of its loading processes.

    python benchmarks/predict.py [--quick] [--threads 1] [--workers 0] [--data FOLDER]
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from _bench import PHOTOS, Turns, arguments, data_folder, median, report, take_turns
from _drawn import draw_classes
from timm.data import create_dataset, create_loader, resolve_data_config

from autotimm import AutoTrainer, ImageClassifier
from autotimm.runs.predict import predict
from autotimm.types import DataSpec

BATCH = 16
CLASSES = 10
NETWORKS = {"test_resnet": 160, "tf_efficientnet_lite0": 224, "resnet18": 224}  # and the side of their images


def cpu() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def ours(task: ImageClassifier, folder: Path, threads: int, workers: int) -> Callable[[], int]:
    """Predict with autotimm; the result is the number of images."""

    def run() -> int:
        trainer = AutoTrainer(
            run_dir=False, enable_checkpointing=False, threads=threads, accelerator="cpu", enable_progress_bar=False
        )
        return len(predict(task, folder, trainer=trainer, num_workers=workers))

    return run


def theirs(network: torch.nn.Module, size: int, folder: Path, workers: int) -> Callable[[], int]:
    """Predict with timm's loader; the result is the number of images."""
    config = resolve_data_config({"input_size": (3, size, size)}, model=network)

    def run() -> int:
        loader = create_loader(
            create_dataset("", root=str(folder)), config["input_size"], BATCH, is_training=False, use_prefetcher=False,
            num_workers=workers, mean=config["mean"], std=config["std"], interpolation=config["interpolation"],
            crop_pct=1.0, crop_mode="squash", device=torch.device("cpu"), pin_memory=False,
        )  # fmt: skip
        found: list[int] = []
        with torch.inference_mode():
            for images, _ in loader:
                found += network(images).softmax(1).argmax(1).tolist()
        return len(found)

    return run


def compare(name: str, size: int, folder: Path, options: Any, turns: int) -> dict[str, Any]:
    """The figures of one line of the table."""
    task = ImageClassifier(name, CLASSES, image_size=size, pretrained=False, eval_batch_size=BATCH).eval()
    task.spec = DataSpec(tuple(map(str, range(CLASSES))), image_size=size)
    network = timm.create_model(name, num_classes=CLASSES).eval()
    sides = ours(task, folder, options.threads, options.workers), theirs(network, size, folder, options.workers)
    count, same = sides[0](), sides[1]()
    assert count == same, f"{count} images and {same}"
    figures: dict[str, Any] = {"images": count}
    for clock, now in (("wall", time.perf_counter), ("cpu", cpu)):
        taken = take_turns(*(_timed(side, now) for side in sides), turns)
        figures |= _rates(taken, count, clock)
    return figures


def _timed(action: Callable[[], int], now: Callable[[], float]) -> Callable[[], float]:
    def run() -> float:
        began = now()
        action()
        return now() - began

    return run


def _rates(taken: Turns, count: int, clock: str) -> dict[str, Any]:
    faster = Turns(taken.theirs, taken.ours)
    return {
        f"{clock}_ours": round(count / median(taken.ours), 1),
        f"{clock}_timm": round(count / median(taken.theirs), 1),
        f"{clock}_ratio": round(faster.ratio, 2),
        f"{clock}_quartiles": faster.quartiles,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both sides")
    parser.add_argument("--workers", type=int, default=0, help="loading processes of both sides")
    parser.add_argument("--data", type=Path, help="a folder of class folders")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = {"test_resnet": 64} if options.quick else NETWORKS
    with data_folder(options, PHOTOS / "cls_clothing" / "train", draw_classes) as folder:
        figures = {
            f"{name}, {size} px": compare(name, size, folder, options, 2 if options.quick else 7)
            for name, size in names.items()
        }
    columns = (
        "network", "images", "ours, images/s", "timm", "ratio, wall", "quartiles",
        "ours, images per CPU s", "timm", "ratio, CPU", "quartiles",
    )  # fmt: skip
    report("predict", columns, [(name, *row.values()) for name, row in figures.items()], figures=figures)


if __name__ == "__main__":
    main()
