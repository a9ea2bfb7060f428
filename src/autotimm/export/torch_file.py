"""Programs of ``torch.export``: how a graph is traced, and files that torch runs without the code of autotimm."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autotimm.errors import ModelError
from autotimm.export.graph import Graph, Runtime

__all__ = ["METADATA_FILE", "UNTRACEABLE", "first_line", "quiet_exporter", "torch_runtime", "traced", "write_torch"]

METADATA_FILE = "autotimm.json"
"""The extra file of a program with its metadata, a JSON object of texts."""

UNTRACEABLE = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError, AssertionError)
"""What tracing may raise: what the traced code raises, and errors of torch.export and of the exporter to ONNX."""


def traced(graph: Graph) -> torch.export.ExportedProgram:
    """Trace a graph for any number of images of any height and width.

    Raises:
        ModelError: If torch cannot trace it.
    """
    dynamic = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 3, graph.size[0] + 3, graph.size[1] + 5, dtype=torch.uint8)  # no two sizes are equal
    try:
        with torch.no_grad(), quiet_exporter():
            program: torch.export.ExportedProgram = torch.export.export(
                graph, (example,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
            )
    except UNTRACEABLE as error:
        raise ModelError(
            f"The network cannot be exported: torch.export cannot trace it ({first_line(error)}). "
            "The guide to exporting lists backbones that can be."
        ) from error
    return program


def first_line(error: BaseException) -> str:
    """What an error says, without what follows it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without what torch's exporter says of itself: it is of no use to who exports a model."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def write_torch(graph: Graph, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a graph as a program of ``torch.export``.

    Args:
        graph: The graph.
        path: The file, which is written over; its name ends in ``.pt2``.
        metadata: Texts by name; ``torch.export.load`` returns them with ``extra_files={"autotimm.json": ""}``.

    Raises:
        ModelError: If it cannot be traced.
    """
    program = traced(graph)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:  # stack traces hold paths of this machine
                for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
                    node.meta.pop(name, None)
    content = BytesIO()  # in a file of its own the archive would have the name of the file inside
    torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(dict(sorted(metadata.items())))})
    path.write_bytes(content.getvalue())


def torch_runtime(path: Path) -> Runtime:
    """Open a program of ``torch.export``, on the CPU."""
    module = torch.export.load(path).module()

    def run(images: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        with torch.no_grad():
            results = module(torch.from_numpy(images))
        return {name: value.numpy() for name, value in results.items()}

    return run
