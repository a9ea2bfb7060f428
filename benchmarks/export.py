"""Exported backbones: does the file agree with the network, how large is it, and how fast is ONNX Runtime?

Classifiers with random weights on backbones of many families are exported to ONNX and to a program of ``torch.export``,
and compared on images drawn from a seed. Then eager torch, with the transforms of evaluation, and ONNX Runtime, whose
file contains them, take turns on the same decoded images, one at a time on one thread; the time is CPU time.

The first table is that of ``docs/guide/export.md``.

    python benchmarks/export.py [--quick] [--backbones resnet18,...]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _bench import arguments, report, seconds, take_turns
from timm.models import model_entrypoint

from autotimm import ImageClassifier
from autotimm.data.inference_loaders import evaluation_transform
from autotimm.errors import ModelError
from autotimm.export.agreement_check import SAMPLE, check_file, seeded_sample
from autotimm.export.build_graph import build_graph
from autotimm.export.exporter import TOLERANCES
from autotimm.export.formats import SUFFIXES
from autotimm.export.graph import Graph
from autotimm.export.onnx_file import Runtime, onnx_model, onnx_runtime, save_onnx
from autotimm.export.torch_file import torch_runtime, write_torch
from autotimm.types import DataSpec

BACKBONES = {
    "test_resnet": 96, "resnet18": 96, "regnetx_002": 96, "test_vit": 96, "test_convnext": 96, "test_efficientnet": 96,
    "mobilenetv3_small_050": 96, "mobilevit_xxs": 96, "pvt_v2_b0": 96,
    "levit_128s": 224, "mixer_s32_224": 224, "xcit_nano_12_p16_224": 96,
}  # fmt: skip
"""Backbones, and the side of their images in pixels."""

FORMATS: dict[str, tuple[Callable[..., None], Callable[[Path], Runtime]]] = {
    "onnx": (
        lambda graph, path, texts: save_onnx(onnx_model(graph)[0], path, texts),
        lambda path: onnx_runtime(path, threads=1),
    ),
    "torch": (write_torch, torch_runtime),
}


def compared(name: str, size: int, folder: Path, turns: int) -> dict[str, Any]:
    """Export one backbone in all formats, and time it."""
    task = ImageClassifier(name, 5, image_size=size, pretrained=False).eval()
    spec = DataSpec(tuple("abcde"), image_size=size)
    task.spec = spec
    row: dict[str, Any] = {"backbone": name, "family": model_entrypoint(name).__module__.rpartition(".")[2]}
    runtimes: dict[str, Runtime] = {}
    for to, (write, read) in FORMATS.items():
        path, graph = folder / f"{name}{SUFFIXES[to]}", build_graph(task, spec)
        try:
            write(graph, path, {})
        except ModelError as error:
            row[to] = f"no: {error}"
            continue
        runtimes[to] = read(path)
        check = check_file(
            task, spec, graph, runtimes[to], table=None, most=SAMPLE, tolerance=TOLERANCES["fp32"], by_metric=False
        )
        row[to] = f"no: {check.problem}" if check.problem else f"{check.differences['scores']:.0e}"
        row[f"{to}_mb"] = round(path.stat().st_size / 1e6, 1)
    if "onnx" in runtimes:
        row |= timed(task, spec, graph, runtimes["onnx"], turns)
    return row


def timed(task: ImageClassifier, spec: DataSpec, graph: Graph, runtime: Runtime, turns: int) -> dict[str, float]:
    """CPU milliseconds per image of eager torch and of ONNX Runtime, in turns."""
    transform, image = evaluation_transform(spec), seeded_sample(0, graph.size)
    pixels = image.image[None].numpy()

    def eager() -> None:
        with torch.no_grad():
            task.network(transform(image).image[None]).softmax(1)

    taken = take_turns(lambda: seconds(eager, "cpu"), lambda: seconds(lambda: runtime(pixels), "cpu"), turns, 3)
    mine, theirs = (round(median(side) * 1000, 2) for side in (taken.ours, taken.theirs))
    return {"eager_ms": mine, "onnx_ms": theirs, "faster": round(taken.ratio, 2)}


def guide_table(rows: list[dict[str, Any]]) -> str:
    """The table of the guide."""
    lines = ["| backbone | family | ONNX | torch | size of the ONNX file |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        size = f"{row['onnx_mb']} MB" if "onnx_mb" in row else "-"
        lines.append(f"| {row['backbone']} | {row['family']} | {row['onnx']} | {row['torch']} | {size} |")
    return "\n".join(lines)


def main() -> None:
    """Export the backbones and print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--backbones", help="names with commas between them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.backbones.split(",") if given.backbones else ["test_resnet"] if given.quick else list(BACKBONES)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name in names:
            rows.append(compared(name, BACKBONES.get(name, 224), Path(folder), 4 if given.quick else 16))
            print(*rows[-1].values(), flush=True)  # no line of JSON: the report is the only one
    print(f"\n{guide_table(rows)}\n")
    columns = ("backbone", "eager, CPU ms", "ONNX Runtime, CPU ms", "times as fast")
    shown = [[row.get(name, "-") for name in ("backbone", "eager_ms", "onnx_ms", "faster")] for row in rows]
    report("export", columns, shown, backbones=rows)


if __name__ == "__main__":
    main()
