"""Export a trained task: write the file, compare it with the task, and keep it only if both agree."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import autotimm
from autotimm.data.table import Table
from autotimm.errors import ModelError, RunError, UsageError, sentence
from autotimm.export.agreement_check import check_file
from autotimm.export.build_graph import build_graph
from autotimm.export.export_result import Export
from autotimm.export.formats import REPORT, RUNNER, require_new_files
from autotimm.export.graph import Graph, Runtime
from autotimm.export.int8 import calibration_names, quantized
from autotimm.export.onnx_file import OPSET, onnx_model, onnx_runtime, save_onnx
from autotimm.export.openvino_file import openvino_runtime, weights_beside, write_openvino
from autotimm.export.torch_file import torch_runtime, write_torch
from autotimm.records.atomic import write_text
from autotimm.records.digest import file_digest, state_digest
from autotimm.serialization import read_json
from autotimm.tasks import Task
from autotimm.types import DataSpec

__all__ = ["TOLERANCES", "add_report", "export_task", "graph_for", "open_exported", "write_graph", "written_beside"]

TOLERANCES = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.02}
"""What a file may differ by unless another tolerance is given: in scores for 32 bits, in metrics for fewer."""

_RESIZED_WITH = {"openvino": torch.float32}  # OpenVINO has no 64-bit floats on the CPU


def export_task(
    task: Task, spec: DataSpec, out: Path, *, to: str, precision: str, origin: Mapping[str, str], table: Table | None,
    training: Table | None, most: int | None, tolerance: float | None, runner: bool, paste_masks: bool = False,
) -> Export:  # fmt: skip
    """Export a task to ONNX, torch or OpenVINO.

    Args:
        task: The trained task, on the CPU.
        spec: What it knows of its data.
        out: The file; what is above it is made.
        to: ``onnx``, ``torch`` or ``openvino``.
        precision: One of :data:`autotimm.export.formats.PRECISIONS`.
        origin: Texts about the run, for the metadata.
        table: Labelled images to compare on; ``None`` for images drawn from a seed.
        training: The run's training images, for ``int8``.
        most: How many of them are compared; ``None`` for all.
        tolerance: What the file may differ by; ``None`` for that of :data:`TOLERANCES`.
        runner: Whether to write ``predict.py`` beside the file.
        paste_masks: Whether the file pastes masks of objects into the image.

    Raises:
        UsageError: If the file cannot be written, or there are no masks to paste.
        ModelError: If the task cannot be exported, or the file disagrees with it. No file is left.
    """
    require_new_files(str(out), to, runner, "export")
    by_metric = precision != "fp32"
    if by_metric and table is None:
        must = "fp32 where the check is on seeded images"
        raise UsageError(sentence("precision", "export", must, precision, "Metrics need labelled images: give `data`."))
    graph = graph_for(task, spec, to, precision, paste_masks)
    metadata = _metadata(task, spec, graph, to, precision, origin)
    if training is not None:
        metadata["calibration"] = f"{len(calibration_names(training.ids))} training images"
    with written_beside(out) as file:
        write_graph(graph, file, to, metadata, training, spec)
        allowed = TOLERANCES[precision] if tolerance is None else tolerance
        check = check_file(
            task, spec, graph, open_exported(file, to), table=table, most=most, tolerance=allowed, by_metric=by_metric
        )
        if check.problem:
            raise ModelError(
                f"The exported file must agree with the run within {allowed:g}. On {check.images} {check.source} "
                f"{check.problem}. No file was written."
            )
        report = {"to": to, "sha256": file_digest(file), "check": check.as_dict(), **metadata}
        if to == "openvino":
            report |= {"bin_sha256": file_digest(weights_beside(file))}
            os.replace(weights_beside(file), weights_beside(out))  # first: who sees the .xml finds both
        add_report(out.with_name(REPORT), out.name, report | _runtime_version(to))
    program = out.with_name(RUNNER) if runner else None
    if program is not None:
        write_text(program, Path(__file__).with_name("runner.py").read_text(encoding="utf-8"))
    return Export(out, check, program, weights_beside(out) if to == "openvino" else None)


def graph_for(task: Task, spec: DataSpec, to: str, precision: str = "fp32", paste_masks: bool = False) -> Graph:
    """Build what is exported of a task to a format.

    Raises:
        UsageError: If masks are to be pasted and there are none.
        ModelError: If the task cannot be exported; the message says why.
    """
    dtype = _RESIZED_WITH.get(to, torch.float64)
    return build_graph(task, spec, half=precision == "fp16", dtype=dtype, paste_masks=paste_masks)


def write_graph(
    graph: Graph, file: Path, to: str, metadata: Mapping[str, str], training: Table | None, spec: DataSpec
) -> None:
    """Write a graph as a file of a format.

    Args:
        graph: What is exported.
        file: The file, which is written over.
        to: ``onnx``, ``torch`` or ``openvino``.
        metadata: Texts by name.
        training: Images to calibrate 8 bits on; ``None`` for other precisions.
        spec: What the task knows of its data.

    Raises:
        ModelError: If the graph cannot be written.
    """
    if to == "torch":
        write_torch(graph, file, metadata)
        return
    model, nodes = onnx_model(graph)
    if training is not None:
        model = quantized(model, nodes, training, spec)
    (save_onnx if to == "onnx" else write_openvino)(model, file, metadata)


def open_exported(file: Path, to: str, threads: int = 0) -> Runtime:
    """Open a file in the runtime of its format, on the CPU.

    Args:
        file: The file.
        to: ``onnx``, ``torch`` or ``openvino``.
        threads: CPU threads of runtimes other than torch; 0 is their choice.
    """
    if to == "torch":
        return torch_runtime(file)
    return onnx_runtime(file, threads) if to == "onnx" else openvino_runtime(file, threads)


def _runtime_version(to: str) -> dict[str, str]:
    name = {"onnx": "onnxruntime"}.get(to, to)
    return {"runtime": f"{name} {version(name)}"}


def _metadata(
    task: Task, spec: DataSpec, graph: Graph, to: str, precision: str, origin: Mapping[str, str]
) -> dict[str, str]:
    """What a file says of itself, as texts: ONNX has no other kind."""
    texts = {
        "task": spec.kind,
        "class_names": json.dumps(list(spec.class_names), ensure_ascii=False),
        "multi_label": json.dumps(spec.multi_label),
        "threshold": json.dumps(task.threshold),
        "thresholds": json.dumps(task.least_scores(len(spec.class_names))),
        "temperature": json.dumps(task.temperature),
        "input": json.dumps(graph.input_rule, sort_keys=True),
        "outputs": json.dumps(list(graph.outputs)),
        "precision": precision,
        "weights": state_digest(task.network.state_dict()),
        "autotimm": autotimm.__version__,
        **origin,
    }
    return texts | ({} if to == "torch" else {"opset": str(OPSET)})


@contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """Yield a path beside a file or folder to be; on success what was written there gets its name, else it is removed.

    Raises:
        RunError: If it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
            path = Path(folder, out.name)
            yield path
            os.replace(path, out)
    except OSError as error:
        raise RunError(f"The folder {out.parent} must be writable. It is not ({error.strerror or error}).") from error


def add_report(path: Path, name: str, report: Mapping[str, Any]) -> None:
    """Add the entry of an exported file to the report of its folder.

    Raises:
        UsageError: If there is another file of that name.
    """
    reports: Any = {}
    if path.exists():
        try:
            reports = read_json(path)
        except ValueError:
            reports = None
        if not isinstance(reports, dict) or not all(isinstance(value, dict) for value in reports.values()):
            raise UsageError(f"{path} must be the report of earlier exports. It is something else. Export elsewhere.")
    reports[name] = report
    write_text(path, json.dumps(reports, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
