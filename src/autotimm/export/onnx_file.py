"""ONNX files: written by torch's exporter without traces of the machine, and run by ONNX Runtime."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autotimm.errors import ModelError, missing_extra
from autotimm.export.graph import Graph, Runtime
from autotimm.export.torch_file import UNTRACEABLE, first_line, quiet_exporter, traced

__all__ = ["OPSET", "onnx_model", "onnx_runtime", "require_onnx", "save_onnx"]

OPSET = 20
"""The version of ONNX's operators: the first with all that is used, so that most runtimes know it."""

_LARGEST = 2**31 - 1  # bytes of a protobuf message


def require_onnx() -> None:
    """Refuse to go on without the packages that write and run ONNX files.

    Raises:
        UsageError: If one of them is not installed.
    """
    if not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):
        raise missing_extra("Export to ONNX", "onnx")


def onnx_model(graph: Graph) -> tuple[Any, list[str]]:
    """Convert a graph to ONNX.

    Returns:
        The model without traces of the machine, and the names of the nodes of the graph's :attr:`Graph.quantized`
        module.

    Raises:
        ModelError: If it cannot be exported.
    """
    program = traced(graph)
    try:
        with torch.no_grad(), quiet_exporter():
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, opset_version=OPSET, input_names=["images"],
                output_names=list(graph.outputs),
            )  # fmt: skip
        assert exported is not None
        model = exported.model_proto
    except (*UNTRACEABLE, torch.onnx.OnnxExporterError) as error:
        raise ModelError(f"The network cannot be exported to ONNX ({first_line(error)}). Try --to torch.") from error
    if model.ByteSize() > _LARGEST:
        raise ModelError("The network is too large for one ONNX file, which holds 2 GB. Try --to torch.")
    nodes = [node.name for node in model.graph.node if _is_within(node, graph.quantized)]
    _strip(model)
    return model, nodes


def save_onnx(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model as a file whose bytes depend on the model and the metadata alone.

    Args:
        model: The model.
        path: The file, which is written over.
        metadata: Texts by name, for ``metadata_props``.
    """
    for name, text in sorted(metadata.items()):
        model.metadata_props.add(key=name, value=text)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _is_within(node: Any, module: str) -> bool:
    """Whether a node was made by a module, whose name is like ``network.backbone``."""
    scopes = [part.value for part in node.metadata_props if part.key == "pkg.torch.onnx.name_scopes"]
    names = ast.literal_eval(scopes[0]) if scopes else []
    return any(name == module or name.startswith(f"{module}.") for name in names)


def _strip(model: Any) -> None:
    """Remove what the exporter says of the program that was traced: stack traces with paths, names of modules."""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        del graph.metadata_props[:]
        del graph.value_info[:]
        for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
            part.doc_string = ""
            del part.metadata_props[:]
        graphs += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    del model.metadata_props[:]
    model.doc_string = ""


def onnx_runtime(path: Path, threads: int = 0) -> Runtime:
    """Open an ONNX file in ONNX Runtime, on the CPU.

    Args:
        path: The file.
        threads: CPU threads; 0 is one per core.
    """
    import onnxruntime  # an optional extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        return dict(zip(names, session.run(None, {"images": images}), strict=True))

    return run
