"""What 8 bits bring and cost: speed, size and accuracy of exported classifiers of photographs.

Three classifiers are trained, one of them from ImageNet weights, and exported to ONNX and OpenVINO with 32 and with 8
bits. Each file and eager torch, with the transforms of evaluation, take turns on the same photographs, one at a time on
one thread; the time is CPU time. The accuracy is that of all validation photographs, through the run and through the
file.

    python benchmarks/export_int8.py [--quick] [--data FOLDER]
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from _bench import PHOTOS, WEIGHTS, Turns, arguments, data_folder, median, report, seconds, take_turns
from _drawn import draw_classes
from torch import Tensor

import autotimm
from autotimm import Run, Task
from autotimm.data.inference_loaders import evaluation_transform
from autotimm.export.exporter import open_exported
from autotimm.export.formats import SUFFIXES
from autotimm.export.graph import Runtime
from autotimm.export.openvino_file import weights_beside
from autotimm.types import Sample

BACKBONES = {"tf_efficientnet_lite0": WEIGHTS, "resnet18": False, "mobilenetv3_small_050": False}
"""Backbones, and the file of their ImageNet weights; without one they have random weights."""

ACCURACY = "accuracy"
FILES = [("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8")]


def trained(photos: Path, backbone: str, out: Path, quick: bool) -> Run:
    """A classifier of the photographs, from ImageNet weights where there are some."""
    return autotimm.fit(
        photos, backbone=backbone, pretrained=BACKBONES.get(backbone, False), image_size=64 if quick else 128,
        epochs=1 if quick else 8, threads=1, num_workers=0, accelerator="cpu", progress=False, out=out,
    )  # fmt: skip


def compared(run: Run, folder: Path, turns: int) -> Iterator[list[object]]:
    """The rows of one classifier."""
    task, table = run.model(), run.data().tables["val"]
    samples = [table.load(index) for index in islice(cycle(range(len(table))), turns)]
    for to, precision in FILES:
        file = folder / f"{precision}{SUFFIXES[to]}"
        # A tolerance that every file is within: this asks what is lost, and does not refuse it.
        check = run.export(file, to=to, precision=precision, check="full", tolerance=1).check
        taken = timed(task, open_exported(file, to, 1), samples)
        size = sum(path.stat().st_size for path in ([file, weights_beside(file)] if to == "openvino" else [file]))
        accuracy = check.metrics[ACCURACY]
        yield [
            f"{to}, {precision}", *(round(median(side) * 1000, 2) for side in (taken.theirs, taken.ours)),
            round(1 / taken.ratio, 2), round(size / 1e6, 1), *(round(accuracy[side], 3) for side in ("run", "file")),
        ]  # fmt: skip


def timed(task: Task, runtime: Runtime, samples: Sequence[Sample]) -> Turns:
    """CPU seconds of the file (ours) and of eager torch (theirs) on the same photographs, in turns."""
    transform, ours, theirs = evaluation_transform(task.spec), iter(samples), iter(samples)

    def exported() -> None:
        runtime(next(ours).image.as_subclass(Tensor)[None].numpy())

    def eager() -> None:
        with torch.no_grad():
            task.network(transform(next(theirs)).image[None]).softmax(1)

    warm_up = 3
    return take_turns(lambda: seconds(exported, "cpu"), lambda: seconds(eager, "cpu"), len(samples) - warm_up, warm_up)


def main() -> None:
    """Train and export the classifiers, and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="a folder of class folders")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[object]] = []
    with data_folder(options, PHOTOS / "cls_clothing", draw_classes) as photos:
        for backbone in ["test_resnet"] if options.quick else BACKBONES:
            with tempfile.TemporaryDirectory() as scratch:
                run = trained(photos, backbone, Path(scratch, "runs"), options.quick)
                for row in compared(run, Path(scratch), 8 if options.quick else 99):
                    rows.append([backbone, *row])
                    print(*rows[-1], flush=True)
    columns = (
        "backbone", "file", "eager, CPU ms", "CPU ms", "times as fast", "MB", "accuracy of the run", "of the file",
    )  # fmt: skip
    report("export_int8", columns, rows, files=[dict(zip(columns, row, strict=True)) for row in rows])


if __name__ == "__main__":
    main()
