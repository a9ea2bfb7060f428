"""Exported backbones: how much faster than eager torch is ONNX Runtime?

Classifiers with random weights on backbones of many families are exported to ONNX. Then eager torch, with the
transforms of evaluation, and ONNX Runtime, whose file contains them, take turns on the same decoded images, one at a
time on one thread; the time is CPU time.

    python benchmarks/export_speed.py [--quick] [--backbones resnet18,...]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from _bench import Turns, arguments, median, report, seconds, take_turns
from _networks import BACKBONES, classifier

from autotimm.data.inference_loaders import evaluation_transform
from autotimm.export.agreement_check import seeded_sample
from autotimm.export.exporter import graph_for, open_exported, write_graph


def compared(backbone: str, folder: Path, turns: int) -> Turns:
    """CPU seconds per image of ONNX Runtime (ours) and of eager torch (theirs)."""
    task, spec = classifier(backbone)
    graph, file = graph_for(task, spec, "onnx"), folder / f"{backbone}.onnx"
    write_graph(graph, file, "onnx", {}, None, spec)
    runtime, transform, image = open_exported(file, "onnx", 1), evaluation_transform(spec), seeded_sample(0, graph.size)
    pixels = image.image[None].numpy()

    def eager() -> None:
        with torch.no_grad():
            task.network(transform(image).image[None]).softmax(1)

    return take_turns(lambda: seconds(lambda: runtime(pixels), "cpu"), lambda: seconds(eager, "cpu"), turns, 3)


def main() -> None:
    """Export the backbones and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--backbones", help="names with commas between them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.backbones.split(",") if given.backbones else ["test_resnet"] if given.quick else list(BACKBONES)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            taken = compared(name, Path(folder), 4 if given.quick else 16)
            eager, onnx = (round(median(side) * 1000, 2) for side in (taken.theirs, taken.ours))
            rows.append([name, eager, onnx, round(1 / taken.ratio, 2)])
            print(*rows[-1], flush=True)
    columns = ("backbone", "eager, CPU ms", "ONNX Runtime, CPU ms", "times as fast")
    report("export_speed", columns, rows, backbones=[dict(zip(columns, row, strict=True)) for row in rows])


if __name__ == "__main__":
    main()
