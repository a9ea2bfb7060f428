"""Programs of ``torch.export``, which torch runs without the code of autotimm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autotimm.export.graph import Graph
from autotimm.export.onnx_file import Runtime, traced

__all__ = ["METADATA_FILE", "torch_runtime", "write_torch"]

METADATA_FILE = "autotimm.json"
"""The extra file of a program with its metadata, a JSON object of texts."""


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
