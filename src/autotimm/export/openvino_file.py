"""OpenVINO files: an ``.xml`` with the graph and the metadata, and a ``.bin`` beside it with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotimm.errors import ModelError, RunError, missing_extra
from autotimm.export.graph import Runtime
from autotimm.export.torch_file import first_line

__all__ = ["METADATA_SECTION", "openvino_runtime", "require_openvino", "weights_beside", "write_openvino"]

METADATA_SECTION = "autotimm"
"""The part of ``rt_info`` with the metadata."""


def require_openvino() -> None:
    """Refuse to go on without the packages that write and run OpenVINO files.

    Raises:
        UsageError: If one of them is not installed.
    """
    if not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript", "openvino"))):
        raise missing_extra("Export to OpenVINO", "openvino")


def weights_beside(path: Path) -> Path:
    """The file with the weights of an ``.xml`` file."""
    return path.with_suffix(".bin")


def write_openvino(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX model as OpenVINO's two files.

    ``openvino.convert_model`` would do the same, and report its use to Intel.

    Args:
        model: The ONNX model, whose pixels are computed with 32 bits, see :mod:`autotimm.export.resize`.
        path: The ``.xml`` file; both files are written over.
        metadata: Texts by name, for the section ``autotimm`` of ``rt_info``.

    Raises:
        ModelError: If OpenVINO cannot read the model.
        RunError: If it cannot write the files.
    """
    import openvino  # an optional extra

    try:
        converted = openvino.Core().read_model(model.SerializeToString(deterministic=True))
        for name, text in sorted(metadata.items()):
            converted.set_rt_info(text, [METADATA_SECTION, name])
        for position, operation in enumerate(converted.get_ordered_ops()):
            operation.set_friendly_name(f"{operation.get_type_name()}_{position}")  # else a count of this process
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot read the network ({first_line(error)}). Try --to onnx.") from error
    try:
        openvino.save_model(converted, str(path), compress_to_fp16=False)
    except RuntimeError as error:
        raise RunError(
            f"The file {path.name} could not be written by OpenVINO ({first_line(error)}). Free some space."
        ) from error


def openvino_runtime(path: Path, threads: int = 0) -> Runtime:
    """Open an OpenVINO file in OpenVINO's runtime, on the CPU.

    Args:
        path: The ``.xml`` file.
        threads: CPU threads; 0 is OpenVINO's choice.

    Raises:
        ModelError: If OpenVINO cannot run it.
    """
    import openvino  # an optional extra

    # On CPUs with bfloat16 it would compute with 16 bits unless it is told otherwise.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot run the network ({first_line(error)}). Try --to onnx.") from error
    names = [output.get_any_name() for output in compiled.outputs]

    def run(images: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        results = compiled(images)
        return {name: np.array(results[index]) for index, name in enumerate(names)}

    return run
