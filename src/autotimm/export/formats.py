"""Names of the formats, and where files may be written. Nothing here imports torch."""

from __future__ import annotations

import os

from autotimm.errors import UsageError, sentence
from autotimm.records.atomic import refuse_sealed

__all__ = ["CHECKS", "FORMATS", "PRECISIONS", "REPORT", "RUNNER", "SUFFIXES", "require_new_files"]

FORMATS = ("onnx", "torch", "openvino", "timm")
"""What a run can be exported to."""

PRECISIONS = ("fp32", "fp16", "int8")
"""The numbers that the network computes with; with ``int8`` its backbone does, in ONNX and OpenVINO."""

CHECKS = ("sample", "full", "seeded")
"""Which images are compared: some of the validation images, all of them, or images drawn from a seed."""

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml", "timm": ""}
"""Ending of the file of each format; timm reads a folder."""

REPORT = "export.json"
"""The file beside exported ones that says what was compared."""

RUNNER = "predict.py"
"""The program beside an ONNX file that predicts with it."""


def require_new_files(out: str, to: str, runner: bool, owner: str) -> None:
    """Refuse a path that cannot become what is exported.

    Raises:
        UsageError: If it has another ending than the format, if there is something already, or if it cannot be written.
    """
    refuse_sealed(out, "Give another `out`.")
    suffix = SUFFIXES[to]
    if suffix and not out.lower().endswith(suffix):
        raise UsageError(sentence("out", owner, f"a file that ends in {suffix}", out, "Its readers expect that."))
    if runner and to != "onnx":
        raise UsageError(sentence("with_runner", owner, "left out unless `to` is onnx", True, "Export to onnx."))
    if os.path.lexists(out) and not (to == "timm" and os.path.isdir(out) and not os.listdir(out)):
        raise UsageError(sentence("out", owner, "a path that is not there yet", out, "Nothing is written over."))
    if to == "openvino" and os.path.lexists(weights := f"{os.path.splitext(out)[0]}.bin"):
        must = f"in a folder without {os.path.basename(weights)}"
        raise UsageError(sentence("out", owner, must, out, "The weights go there, and nothing is written over."))
    folder = os.path.dirname(os.path.abspath(out))
    beside = os.path.join(folder, RUNNER)
    if runner and os.path.lexists(beside):
        raise UsageError(sentence("out", owner, f"in a folder without {RUNNER}", out, "Nothing is written over."))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UsageError(sentence("out", owner, "in a folder that can be written to", out, "Give another place."))
