"""The operators without a deterministic CUDA implementation, as the installed torch documents them.

The docstring of ``torch.use_deterministic_algorithms`` lists the operations that "will throw a RuntimeError". It names
modules and functions (``torch.nn.AdaptiveAvgPool2d``), while a trace shows operators of the dispatcher
(``aten::_adaptive_avg_pool2d_backward``). :data:`TABLE` maps the ones to the others. It may have more entries than a
version of torch documents; the docstring decides. A test compares the two and fails on new entries. torchvision
documents no such list; :data:`VISION` is taken from its sources.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

__all__ = ["IRRELEVANT", "TABLE", "VISION", "Entry", "Operator", "Rule", "entries", "rules", "unknown"]


@dataclass(frozen=True)
class Operator:
    """An operator of a training step that has no deterministic CUDA implementation.

    Attributes:
        name: Its name, such as ``aten::upsample_bicubic2d_backward``; on a GPU the kernel that torch reported.
        documented: Its name in torch's documentation, such as ``torch.nn.functional.interpolate``, or the function of
            torchvision; empty if the step ran on a GPU.
        modules: The modules that called it, such as ``network.decoder (Decoder)``; empty if the step ran on a GPU.
    """

    name: str
    documented: str = ""
    modules: tuple[str, ...] = ()


class Entry(NamedTuple):
    """One bullet of the docstring: the name at its beginning, and its text on one line."""

    name: str
    text: str


class Rule(NamedTuple):
    """The operator that a documented operation calls.

    Attributes:
        operator: Name of the operator, without an overload.
        word: Applies only if the entry's text contains this word, such as a mode of interpolation.
        applies: Applies only to calls for which this returns true, given the arguments by their names in the schema.
    """

    operator: str
    word: str = ""
    applies: Callable[[Mapping[str, Any]], bool] = lambda arguments: True


def _is_max_mode(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments["mode"] == 2)


def _is_reduced(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments["reduction"] != 0)  # 0 is "none", where each value has a thread of its own


def _has_weights(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("weights") is not None


def _is_product(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments["reduce"] == "prod")


def _interpolation() -> tuple[Rule, ...]:
    """Antialiased resizing calls operators of its own; torch documents both under one name."""
    operators = {
        "linear": ["upsample_linear1d"],
        "bilinear": ["upsample_bilinear2d", "_upsample_bilinear2d_aa"],
        "bicubic": ["upsample_bicubic2d", "_upsample_bicubic2d_aa"],
        "trilinear": ["upsample_trilinear3d"],
    }
    return tuple(Rule(f"aten::{name}_backward", f"``{mode}``") for mode, names in operators.items() for name in names)


def _rules(*operators: str, **rule: Any) -> tuple[Rule, ...]:
    return tuple(Rule(f"aten::{operator}", **rule) for operator in operators)


TABLE: dict[str, tuple[Rule, ...]] = {
    "torch.nn.AvgPool3d": _rules("avg_pool3d_backward"),
    # Pooling to one value is computed as a mean, which is deterministic.
    "torch.nn.AdaptiveAvgPool2d": _rules("_adaptive_avg_pool2d_backward"),
    "torch.nn.AdaptiveAvgPool3d": _rules("_adaptive_avg_pool3d_backward"),
    "torch.nn.AdaptiveMaxPool2d": _rules("adaptive_max_pool2d_backward"),
    "torch.nn.FractionalMaxPool2d": _rules("fractional_max_pool2d_backward"),
    "torch.nn.FractionalMaxPool3d": _rules("fractional_max_pool3d_backward"),
    "torch.nn.MaxUnpool1d": (),  # computed as MaxUnpool2d with a height of 1
    "torch.nn.MaxUnpool2d": _rules("max_unpool2d"),
    "torch.nn.MaxUnpool3d": _rules("max_unpool3d"),
    "torch.nn.functional.interpolate": _interpolation(),
    "torch.nn.ReflectionPad1d": _rules("reflection_pad1d_backward"),
    "torch.nn.ReflectionPad2d": _rules("reflection_pad2d_backward"),
    "torch.nn.ReflectionPad3d": _rules("reflection_pad3d_backward"),
    "torch.nn.ReplicationPad1d": _rules("replication_pad1d_backward"),
    "torch.nn.ReplicationPad2d": _rules("replication_pad2d_backward"),
    "torch.nn.ReplicationPad3d": _rules("replication_pad3d_backward"),
    "torch.nn.MaxPool3d": _rules("max_pool3d_with_indices_backward"),
    # Only the loss of images: that of (N, C) logits is another operator, without atomic additions.
    "torch.nn.NLLLoss": _rules("nll_loss2d_forward", applies=_is_reduced),
    "torch.nn.CTCLoss": _rules("_ctc_loss_backward"),
    "torch.nn.EmbeddingBag": _rules("_embedding_bag_backward", "_embedding_bag_dense_backward", applies=_is_max_mode),
    "torch.Tensor.put_": _rules("put", "put_"),  # two entries, with and without accumulate, cover every call
    "torch.histc": _rules("histc"),
    "torch.bincount": _rules("bincount", applies=_has_weights),
    "torch.median": _rules("median.dim", "median.dim_values", "nanmedian.dim", "nanmedian.dim_values"),
    "torch.kthvalue": _rules("kthvalue"),
    "torch.cumsum": _rules("cumsum"),
    "torch.nn.functional.grid_sample": _rules(
        "grid_sampler_2d_backward", "grid_sampler_3d_backward", "cudnn_grid_sampler_backward"
    ),
    "torch.Tensor.scatter_reduce": _rules("scatter_reduce", "scatter_reduce_", applies=_is_product),
}
"""Documented operations, and the operators that they call. A name with an overload stands for that overload only."""

IRRELEVANT: dict[str, str] = {"torch.Tensor.resize_": "quantized tensors only, which are not trained"}
"""Documented operations that cannot occur in a training step, with the reason."""

VISION: tuple[tuple[Rule, Entry], ...] = tuple(
    (Rule(f"torchvision::_{name}_backward"), Entry(f"torchvision.ops.{name}", ""))
    for name in ("deform_conv2d", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool")
)
"""Operators of torchvision that call ``alertNotDeterministic`` on CUDA (``csrc/ops/cuda/*.cu``), for atomic adds."""


def entries(docstring: str | None = None) -> list[Entry]:
    """The operations that "will throw a RuntimeError", from torch's docstring; by default that of the installed torch.

    Example:
        >>> [entry.name for entry in entries()][:2]
        ['torch.nn.AvgPool3d', 'torch.nn.AdaptiveAvgPool2d']
    """
    text = inspect.cleandoc(torch.use_deterministic_algorithms.__doc__ or "" if docstring is None else docstring)
    section = re.search(r"will throw a\s+:class:`RuntimeError` when ``mode=True``:\n(.*?)(?=\n\S|\Z)", text, re.DOTALL)
    bullets = re.split(r"\n +\* ", "\n" + section[1]) if section else []
    lines = [" ".join(bullet.split()) for bullet in bullets]
    matches = [(re.match(r":\w+:`~?([\w.]+)`", line), line) for line in lines]
    return [Entry(match[1], line) for match, line in matches if match]


def rules(documented: list[Entry]) -> dict[str, list[tuple[Rule, Entry]]]:
    """The rules of documented entries and of torchvision, by operator."""
    selected = [(rule, entry) for entry in documented for rule in TABLE.get(entry.name, ()) if rule.word in entry.text]
    by_operator: dict[str, list[tuple[Rule, Entry]]] = {}
    for rule, entry in (*selected, *VISION):
        by_operator.setdefault(rule.operator, []).append((rule, entry))
    return by_operator


def unknown(documented: list[Entry]) -> list[str]:
    """The documented names that are in neither table."""
    return sorted({entry.name for entry in documented} - TABLE.keys() - IRRELEVANT.keys())
