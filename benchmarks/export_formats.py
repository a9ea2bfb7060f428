"""Exported architectures by format and precision: which can be exported, how far they differ, how large the files are.

Networks with random weights (``_networks.py``) are exported and compared on 32 images drawn from a seed, each file in
its own runtime: classifiers with backbones of many families, and every ``arch`` of the other tasks on ``test_resnet``,
some of them also as models that see tiles. Networks and images are small: differences come from the operators, and only
the sizes of files grow with the backbone. 8 bits are calibrated on other seeded images.

The table is that of ``docs/guide/export.md``.

    python benchmarks/export_formats.py [--quick] [--models resnet18,fcos,...] [--out FILE]

With ``--out`` each row is appended to a file of JSON lines, and those in it are not computed again.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _bench import arguments, done_lines, keep_line, report
from _networks import ARCHS, BACKBONES, TILED, classifier, dense_task, family_of

from autotimm import Task
from autotimm.data.table import Table
from autotimm.errors import ModelError
from autotimm.export.agreement_check import check_file, seeded_sample
from autotimm.export.exporter import TOLERANCES, graph_for, open_exported
from autotimm.export.formats import SUFFIXES
from autotimm.export.graph import Graph
from autotimm.export.int8 import quantized
from autotimm.export.onnx_file import onnx_model, save_onnx
from autotimm.export.openvino_file import weights_beside, write_openvino
from autotimm.export.torch_file import write_torch
from autotimm.types import DataSpec, Sample

COLUMNS = {
    "ONNX": ("onnx", "fp32"), "ONNX, fp16": ("onnx", "fp16"), "ONNX, int8": ("onnx", "int8"),
    "torch": ("torch", "fp32"), "OpenVINO": ("openvino", "fp32"), "OpenVINO, int8": ("openvino", "int8"),
}  # fmt: skip
"""Formats and precisions by their titles."""

SIDE = 64  # of the images of segmenters and detectors
CALIBRATED = 16


class Seeded(Table):
    """Images drawn from a seed, as training images."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size, self.ids = size, [f"seeded/{1000 + index}" for index in range(CALIBRATED)]

    def load(self, index: int) -> Sample:
        """Draw an image."""
        return seeded_sample(1000 + index, self.size)


class Exported(NamedTuple):
    """One cell of the table.

    Attributes:
        difference: The largest difference of scores.
        megabytes: The size of the file, for OpenVINO of both.
        reason: Why it cannot be exported; empty if it can.
    """

    difference: float = math.nan
    megabytes: float = math.nan
    reason: str = ""


class Exporter:
    """Exports one network in several formats; those that share a graph convert it once."""

    def __init__(self, task: Task, spec: DataSpec, folder: Path, most: int) -> None:
        self.task, self.spec, self.folder, self.most = task, spec, folder, most
        self._converted: dict[tuple[bool, bool], tuple[Graph, Any, list[str]]] = {}

    def __call__(self, to: str, precision: str) -> Exported:
        """Export the network, and compare it."""
        path = self.folder / f"m{SUFFIXES[to]}"
        try:
            graph = self._write(path, to, precision)
            # Fewer bits are held to the metric of a trained network, which there is none of here.
            check = check_file(
                self.task, self.spec, graph, open_exported(path, to, 1), table=None, most=self.most,
                tolerance=TOLERANCES["fp32"], by_metric=precision != "fp32",
            )  # fmt: skip
        except ModelError as error:
            return Exported(reason=str(error))
        difference = check.differences["scores"]
        files = [path, weights_beside(path)] if to == "openvino" else [path]
        problem = check.problem or ("" if math.isfinite(difference) else "its scores are no numbers")
        return Exported(difference, sum(file.stat().st_size for file in files) / 1e6, problem)

    def _write(self, path: Path, to: str, precision: str) -> Graph:
        if to == "torch":
            graph = graph_for(self.task, self.spec, to, precision)
            write_torch(graph, path, {})
            return graph
        kind = (to == "openvino", precision == "fp16")
        if kind not in self._converted:
            graph = graph_for(self.task, self.spec, to, precision)
            self._converted[kind] = (graph, *onnx_model(graph))
        graph, model, nodes = self._converted[kind]
        model = deepcopy(model)
        if precision == "int8":
            model = quantized(model, nodes, Seeded(graph.size), self.spec)
        (write_openvino if to == "openvino" else save_onnx)(model, path, {})
        return graph


def row(name: str, folder: Path, most: int) -> dict[str, Any]:
    """All formats of one architecture."""
    dense = name in (*ARCHS, *TILED)
    task, spec = dense_task(TILED.get(name, name), SIDE, 0.2 if name in TILED else None) if dense else classifier(name)
    found: dict[str, Any] = {"model": name, "family": spec.kind if dense else family_of(name)}
    export = Exporter(task, spec, folder, most)
    for title, (to, precision) in COLUMNS.items():
        found[title] = export(to, precision)._asdict()
    return found


def guide_table(rows: list[dict[str, Any]]) -> str:
    """The table of the guide, and below it the reasons of what is refused."""
    reasons: list[str] = []

    def cell(found: dict[str, Any]) -> str:
        if found["reason"]:
            reasons.extend([found["reason"]] if found["reason"] not in reasons else [])
            return f"no ({reasons.index(found['reason']) + 1})"
        return f"{found['difference']:.0e}, {found['megabytes']:.1f} MB"

    lines = [f"| model | family or task | {' | '.join(COLUMNS)} |", f"|{' --- |' * (len(COLUMNS) + 2)}"]
    lines += [f"| {r['model']} | {r['family']} | {' | '.join(cell(r[title]) for title in COLUMNS)} |" for r in rows]
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))])


def main() -> None:
    """Export the networks and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--models", help="names of backbones and of `arch`, with commas between them")
    parser.add_argument("--out", type=Path, help="a file of JSON lines to resume from")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    every = ["test_resnet"] if given.quick else [*BACKBONES, *ARCHS, *TILED]
    names = given.models.split(",") if given.models else every
    rows = {done["model"]: done for done in done_lines(given.out)}
    for name in names:
        if name not in rows:
            with tempfile.TemporaryDirectory() as folder:
                rows[name] = row(name, Path(folder), 4 if given.quick else 32)
            print(json.dumps(rows[name]), file=sys.stderr)
            keep_line(rows[name], given.out)
    wanted = [rows[name] for name in names]
    print(f"\n{guide_table(wanted)}")
    report("export_formats", ("models",), [[len(wanted)]], models=wanted)


if __name__ == "__main__":
    main()
