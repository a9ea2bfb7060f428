"""The operators without a deterministic CUDA implementation, as the installed torch documents them.

torch says in the docstring of ``torch.use_deterministic_algorithms`` which operations "will throw a RuntimeError". It
speaks of modules and functions (``torch.nn.AdaptiveAvgPool2d``); a trace shows operators of the dispatcher
(``aten::_adaptive_avg_pool2d_backward``). :data:`TABLE` translates. It may know more than a version of torch documents:
what counts is the docstring. A test compares the two, so that a new release of torch is noticed. torchvision documents
nothing of the kind; :data:`VISION` has what its sources say.
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
        name: Its name, such as ``aten::upsample_bicubic2d_backward``; on a GPU the kernel that torch named.
        documented: What torch's documentation calls it, such as ``torch.nn.functional.interpolate``, or the function of
            torchvision; empty if a GPU was the judge.
        modules: The modules that called it, such as ``network.decoder (Decoder)``; empty if a GPU was the judge.
    """

    name: str
    documented: str = ""
    modules: tuple[str, ...] = ()


class Entry(NamedTuple):
    """One bullet of the docstring: the name that it begins with, and its text on one line."""

    name: str
    text: str


class Rule(NamedTuple):
    """How an operation of the documentation shows in a trace.

    Attributes:
        operator: Name of the operator, without an overload.
        word: Counts only where the entry's text has this word, such as a mode of interpolation.
        applies: Counts only for calls with such arguments, by the names of the operator's schema.
    """

    operator: str
    word: str = ""
    applies: Callable[[Mapping[str, Any]], bool] = lambda arguments: True


def _bags_by_max(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments["mode"] == 2)


def _sums_up(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments["reduction"] != 0)  # 0 is "none": one thread for each value


def _weighs(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("weights") is not None


def _multiplies(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments["reduce"] == "prod")


def _interpolation() -> tuple[Rule, ...]:
    """Antialiased resizing has kernels of its own; torch documents both under one name."""
    named = {
        "linear": ["upsample_linear1d"],
        "bilinear": ["upsample_bilinear2d", "_upsample_bilinear2d_aa"],
        "bicubic": ["upsample_bicubic2d", "_upsample_bicubic2d_aa"],
        "trilinear": ["upsample_trilinear3d"],
    }
    return tuple(Rule(f"aten::{name}_backward", f"``{mode}``") for mode, names in named.items() for name in names)


def _each(*operators: str, **rule: Any) -> tuple[Rule, ...]:
    return tuple(Rule(f"aten::{operator}", **rule) for operator in operators)


TABLE: dict[str, tuple[Rule, ...]] = {
    "torch.nn.AvgPool3d": _each("avg_pool3d_backward"),
    # Pooling to one value is a mean, which has no such operator and is deterministic.
    "torch.nn.AdaptiveAvgPool2d": _each("_adaptive_avg_pool2d_backward"),
    "torch.nn.AdaptiveAvgPool3d": _each("_adaptive_avg_pool3d_backward"),
    "torch.nn.AdaptiveMaxPool2d": _each("adaptive_max_pool2d_backward"),
    "torch.nn.FractionalMaxPool2d": _each("fractional_max_pool2d_backward"),
    "torch.nn.FractionalMaxPool3d": _each("fractional_max_pool3d_backward"),
    "torch.nn.MaxUnpool1d": (),  # is MaxUnpool2d with a height of 1, and listed as that
    "torch.nn.MaxUnpool2d": _each("max_unpool2d"),
    "torch.nn.MaxUnpool3d": _each("max_unpool3d"),
    "torch.nn.functional.interpolate": _interpolation(),
    "torch.nn.ReflectionPad1d": _each("reflection_pad1d_backward"),
    "torch.nn.ReflectionPad2d": _each("reflection_pad2d_backward"),
    "torch.nn.ReflectionPad3d": _each("reflection_pad3d_backward"),
    "torch.nn.ReplicationPad1d": _each("replication_pad1d_backward"),
    "torch.nn.ReplicationPad2d": _each("replication_pad2d_backward"),
    "torch.nn.ReplicationPad3d": _each("replication_pad3d_backward"),
    "torch.nn.MaxPool3d": _each("max_pool3d_with_indices_backward"),
    # The loss of (N, C) logits is another operator, without atomic additions; only that of images is meant.
    "torch.nn.NLLLoss": _each("nll_loss2d_forward", applies=_sums_up),
    "torch.nn.CTCLoss": _each("_ctc_loss_backward"),
    "torch.nn.EmbeddingBag": _each("_embedding_bag_backward", "_embedding_bag_dense_backward", applies=_bags_by_max),
    "torch.Tensor.put_": _each("put", "put_"),  # accumulating or not: two entries, which together cover every call
    "torch.histc": _each("histc"),
    "torch.bincount": _each("bincount", applies=_weighs),
    "torch.median": _each("median.dim", "median.dim_values", "nanmedian.dim", "nanmedian.dim_values"),
    "torch.kthvalue": _each("kthvalue"),
    "torch.cumsum": _each("cumsum"),
    "torch.nn.functional.grid_sample": _each(
        "grid_sampler_2d_backward", "grid_sampler_3d_backward", "cudnn_grid_sampler_backward"
    ),
    "torch.Tensor.scatter_reduce": _each("scatter_reduce", "scatter_reduce_", applies=_multiplies),
}
"""What torch documents, and the operators that a trace shows of it. One name with an overload stands for that alone."""

IRRELEVANT: dict[str, str] = {"torch.Tensor.resize_": "of quantized tensors only, which nobody trains"}
"""What torch documents and no training step can show, with the reason."""

VISION: tuple[tuple[Rule, Entry], ...] = tuple(
    (Rule(f"torchvision::_{name}_backward"), Entry(f"torchvision.ops.{name}", ""))
    for name in ("deform_conv2d", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool")
)
"""What of torchvision calls ``alertNotDeterministic`` on CUDA (``csrc/ops/cuda/*.cu``): all adds up atomically."""


def entries(docstring: str | None = None) -> list[Entry]:
    """The operations that "will throw a RuntimeError", from a docstring in torch's style; by default the installed one.

    Example:
        >>> [entry.name for entry in entries()][:2]
        ['torch.nn.AvgPool3d', 'torch.nn.AdaptiveAvgPool2d']
    """
    text = inspect.cleandoc(torch.use_deterministic_algorithms.__doc__ or "" if docstring is None else docstring)
    section = re.search(r"will throw a\s+:class:`RuntimeError` when ``mode=True``:\n(.*?)(?=\n\S|\Z)", text, re.DOTALL)
    bullets = re.split(r"\n +\* ", "\n" + section[1]) if section else []
    lines = [" ".join(bullet.split()) for bullet in bullets]
    named = [(re.match(r":\w+:`~?([\w.]+)`", line), line) for line in lines]
    return [Entry(match[1], line) for match, line in named if match]


def rules(found: list[Entry]) -> dict[str, list[tuple[Rule, Entry]]]:
    """The rules that some entries ask for, and those of torchvision, by operator."""
    asked = [(rule, entry) for entry in found for rule in TABLE.get(entry.name, ()) if rule.word in entry.text]
    by_operator: dict[str, list[tuple[Rule, Entry]]] = {}
    for rule, entry in (*asked, *VISION):
        by_operator.setdefault(rule.operator, []).append((rule, entry))
    return by_operator


def unknown(found: list[Entry]) -> list[str]:
    """The names that nobody has translated yet."""
    return sorted({entry.name for entry in found} - TABLE.keys() - IRRELEVANT.keys())
