"""What to measure when nothing was said, and which metric tells the best checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from autotimm.errors import nearest, require
from autotimm.metrics.metric_config import MetricConfig

__all__ = [
    "Monitor",
    "choose_monitor",
    "default_metrics",
    "default_monitor",
    "mean_ap",
    "named_metric",
    "region_scores",
]

_TOP_K = 5


class Monitor(NamedTuple):
    """The logged value that tells the best checkpoint.

    Attributes:
        name: As it is logged, such as ``"val/accuracy"``.
        mode: ``"max"`` if larger is better, else ``"min"``.
    """

    name: str
    mode: str


def default_metrics(num_classes: int, *, multi_label: bool = False, threshold: float = 0.5) -> list[MetricConfig]:
    """What a classifier measures in validation and test when nothing was asked for.

    Single label: accuracy, top-5 accuracy with more than five classes, and macro F1. Multi-label: mean average
    precision over the classes, and macro F1 at the threshold. Training is watched by its loss alone:
    metrics of augmented images say little and cost time in every step.

    Args:
        num_classes: Number of classes C.
        multi_label: Whether targets are (N, C) zeros and ones.
        threshold: Probability from which on a label counts, for multi-label.

    Example:
        >>> [config.name for config in default_metrics(10)]
        ['accuracy', 'top5_accuracy', 'f1']
    """

    def metric(name: str, metric_class: str, **params: Any) -> MetricConfig:
        # Without validation: the loss has seen the same targets, and a look at every batch makes a GPU wait.
        params |= {"validate_args": False}
        shown = name == default_monitor(multi_label=multi_label).name.removeprefix("val/")
        return MetricConfig(name, metric_class=metric_class, params=params, stages=("val", "test"), prog_bar=shown)

    if multi_label:
        return [
            metric("mAP", "MultilabelAveragePrecision", num_labels=num_classes, average="macro"),
            metric("f1", "MultilabelF1Score", num_labels=num_classes, average="macro", threshold=threshold),
        ]
    found = [metric("accuracy", "MulticlassAccuracy", num_classes=num_classes, average="micro")]
    if num_classes > _TOP_K:
        name = f"top{_TOP_K}_accuracy"
        found.append(metric(name, "MulticlassAccuracy", num_classes=num_classes, average="micro", top_k=_TOP_K))
    return [*found, metric("f1", "MulticlassF1Score", num_classes=num_classes, average="macro")]


def mean_ap(name: str, num_classes: int, iou_type: str) -> MetricConfig:
    """Average precision of boxes (``bbox``) or masks (``segm``) in validation and test."""
    return MetricConfig(
        name, backend="custom", metric_class="autotimm.metrics.MeanAP",
        params={"num_classes": num_classes, "iou_type": iou_type}, stages=("val", "test"), prog_bar=True,
    )  # fmt: skip


def region_scores(name: str, num_classes: int, ignore_index: int) -> MetricConfig:
    """Overlap of regions in validation and test."""
    return MetricConfig(
        name, backend="custom", metric_class="autotimm.metrics.RegionScores",
        params={"num_classes": num_classes, "ignore_index": ignore_index}, stages=("val", "test"), prog_bar=True,
    )  # fmt: skip


def named_metric(metric_class: str, num_classes: int, *, multi_label: bool = False) -> MetricConfig:
    """Configure a classification metric of torchmetrics by its name alone.

    Args:
        metric_class: One of the classes that choose by ``task``, such as ``"Accuracy"`` or ``"CohenKappa"``.
        num_classes: Number of classes C.
        multi_label: Whether targets are (N, C) zeros and ones.

    Raises:
        UsageError: If there is no such metric, or it needs more than the number of classes.

    Example:
        >>> named_metric("CohenKappa", 3).name
        'cohen_kappa'
    """
    kind = (
        {"task": "multilabel", "num_labels": num_classes}
        if multi_label
        else {"task": "multiclass", "num_classes": num_classes}
    )
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", metric_class).lower()
    return MetricConfig(name, metric_class=metric_class, params=kind, stages=("val", "test"))


def default_monitor(*, multi_label: bool = False) -> Monitor:
    """What tells the best checkpoint of a classifier with the default metrics."""
    return Monitor("val/mAP" if multi_label else "val/accuracy", "max")


def choose_monitor(configs: Iterable[MetricConfig], name: str | None = None) -> Monitor:
    """Choose what tells the best checkpoint: the first validation metric that knows its direction, or the loss.

    Args:
        configs: The metrics of a task.
        name: A logged value that was asked for, such as ``"val/f1"``. A name that contains ``loss`` is minimized; which
            losses a task has, a step has to show: a trainer refuses then what is none of them.

    Raises:
        UsageError: If there is no such metric, or its direction is not known.

    Example:
        >>> choose_monitor(default_metrics(10)), choose_monitor([])
        (Monitor(name='val/accuracy', mode='max'), Monitor(name='val/loss', mode='min'))
    """
    configs = list(configs)
    metrics = {
        f"{stage}/{config.name}": config.build().higher_is_better
        for stage in ("val", "train")
        for config in configs
        if stage in config.stages
    }
    known = [Monitor(key, "max" if higher else "min") for key, higher in metrics.items() if higher is not None]
    if name is None:
        return next((one for one in known if one.name.startswith("val/")), Monitor("val/loss", "min"))
    if "loss" in name and name not in metrics and name.startswith(("train/", "val/")):
        return Monitor(name, "min")
    names = [*(monitor.name for monitor in known), "val/loss", "train/loss"]
    cure = nearest(name, names) or "Give one of these, or leave it out."
    require(name in names, "monitor", "a task", f"one of {', '.join(names)}", name, cure)
    return next(monitor for monitor in known if monitor.name == name)
