"""Backbones that compute with 8 bits: ONNX Runtime's static quantization, calibrated on images of the training.

Weights are rounded for each channel, activations to the range that they have on the images. What is before the backbone
and behind it, the resize, the decoder, the heads and the choice of objects, keeps its numbers.

Source:
    Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    CVPR 2018.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotimm.data.inference_loaders import as_evaluated
from autotimm.data.table import Table
from autotimm.errors import ModelError
from autotimm.export.torch_file import first_line
from autotimm.repro.streams import key
from autotimm.types import DataSpec

__all__ = ["CALIBRATED", "calibration_names", "quantized"]

CALIBRATED = 128
"""How many training images the ranges are measured on, or all if there are fewer."""


def calibration_names(ids: Sequence[str]) -> list[int]:
    """Positions of the images for calibration: those whose ids have the smallest keys, whatever their order."""
    return sorted(range(len(ids)), key=lambda index: key(0, "export", "calibration", ids[index]))[:CALIBRATED]


def quantized(model: Any, nodes: Sequence[str], table: Table, spec: DataSpec) -> Any:
    """Quantize some nodes of an ONNX model.

    Args:
        model: The model.
        nodes: Names of its nodes that are to compute with 8 bits.
        table: The training images.
        spec: What the task knows of its data.

    Raises:
        ModelError: If it cannot be quantized.
    """
    import onnx  # optional extras
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.table, self.names = as_evaluated(table, spec), iter(calibration_names(table.ids))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            index = next(self.names, None)
            return None if index is None else {"images": self.table.load(index).image.numpy()[None]}

    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)  # it asks for a step that folds constants, as the exporter has done
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder, "int8.onnx")
            quantize_static(
                model, path, Images(), quant_format=QuantFormat.QDQ, per_channel=True, nodes_to_quantize=list(nodes),
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
            result = onnx.load(path)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"The backbone cannot compute with 8 bits ({first_line(error)}). Use --precision fp32 or fp16."
        ) from error
    finally:
        logger.setLevel(before)
    if not any(node.op_type == "QuantizeLinear" for node in result.graph.node):
        raise ModelError("The backbone has no part that computes with 8 bits. Use --precision fp32 or fp16.")
    del result.metadata_props[:]
    return result
