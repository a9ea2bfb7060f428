"""Default metrics, and the choice of the value that selects the best checkpoint."""

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
    """The logged value that selects the best checkpoint.

    Attributes:
        name: Logged name of the value, such as ``"val/accuracy"``.
        mode: ``"max"`` if larger values are better, otherwise ``"min"``.
    """

    name: str
    mode: str


def default_metrics(num_classes: int, *, multi_label: bool = False, threshold: float = 0.5) -> list[MetricConfig]:
    """Return the default metrics of a classifier, for validation and test.

    Single-label: accuracy, macro F1 and, with more than five classes, top-5 accuracy. Multi-label: mean average
    precision over the classes, and macro F1 at the threshold. There are none for training, where metrics of augmented
    images say little and cost time in every step.

    Args:
        num_classes: Number of classes C.
        multi_label: Whether targets are (N, C) zeros and ones.
        threshold: Probability in [0, 1] above which a label is predicted, for multi-label classification.

    Example:
        >>> [config.name for config in default_metrics(10)]
        ['accuracy', 'top5_accuracy', 'f1']
    """

    def metric(name: str, metric_class: str, **params: Any) -> MetricConfig:
        # Validation of the arguments reads each batch on the host and makes a GPU wait. The loss has seen the targets.
        params |= {"validate_args": False}
        prog_bar = name == default_monitor(multi_label=multi_label).name.removeprefix("val/")
        return MetricConfig(name, metric_class=metric_class, params=params, stages=("val", "test"), prog_bar=prog_bar)

    if multi_label:
        return [
            metric("mAP", "MultilabelAveragePrecision", num_labels=num_classes, average="macro"),
            metric("f1", "MultilabelF1Score", num_labels=num_classes, average="macro", threshold=threshold),
        ]
    metrics = [metric("accuracy", "MulticlassAccuracy", num_classes=num_classes, average="micro")]
    if num_classes > _TOP_K:
        name = f"top{_TOP_K}_accuracy"
        metrics.append(metric(name, "MulticlassAccuracy", num_classes=num_classes, average="micro", top_k=_TOP_K))
    return [*metrics, metric("f1", "MulticlassF1Score", num_classes=num_classes, average="macro")]


def mean_ap(name: str, num_classes: int, iou_type: str, max_objects: int = 100) -> MetricConfig:
    """Configure :class:`autotimm.metrics.MeanAP` for validation and test.

    Args:
        name: Name of the metric in logs.
        num_classes: Number of classes C.
        iou_type: ``"bbox"`` for boxes, ``"segm"`` for masks.
        max_objects: Detections per image that count at most.
    """
    most = {} if max_objects == 100 else {"max_objects": max_objects}
    return MetricConfig(
        name, backend="custom", metric_class="autotimm.metrics.MeanAP",
        params={"num_classes": num_classes, "iou_type": iou_type, **most}, stages=("val", "test"), prog_bar=True,
    )  # fmt: skip


def region_scores(name: str, num_classes: int, ignore_index: int) -> MetricConfig:
    """Configure :class:`autotimm.metrics.RegionScores` for validation and test.

    Args:
        name: Name of the metric in logs.
        num_classes: Number of classes C.
        ignore_index: Target of unlabeled pixels.
    """
    return MetricConfig(
        name, backend="custom", metric_class="autotimm.metrics.RegionScores",
        params={"num_classes": num_classes, "ignore_index": ignore_index}, stages=("val", "test"), prog_bar=True,
    )  # fmt: skip


def named_metric(metric_class: str, num_classes: int, *, multi_label: bool = False) -> MetricConfig:
    """Configure a classification metric of torchmetrics by its class name.

    Args:
        metric_class: Name of a class that takes a ``task`` argument, such as ``"Accuracy"`` or ``"CohenKappa"``.
        num_classes: Number of classes C.
        multi_label: Whether targets are (N, C) zeros and ones.

    Returns:
        A configuration for validation and test, named after the class in snake case.

    Raises:
        UsageError: If there is no such metric, or it has other required arguments.

    Example:
        >>> named_metric("CohenKappa", 3).name
        'cohen_kappa'
    """
    params = (
        {"task": "multilabel", "num_labels": num_classes}
        if multi_label
        else {"task": "multiclass", "num_classes": num_classes}
    )
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", metric_class).lower()
    return MetricConfig(name, metric_class=metric_class, params=params, stages=("val", "test"))


def default_monitor(*, multi_label: bool = False) -> Monitor:
    """Return the monitor of a classifier with the default metrics."""
    return Monitor("val/mAP" if multi_label else "val/accuracy", "max")


def choose_monitor(configs: Iterable[MetricConfig], name: str | None = None) -> Monitor:
    """Choose the value that selects the best checkpoint.

    Args:
        configs: The metrics of a task.
        name: A logged value, such as ``"val/f1"``. The default is the first validation metric with a known
            ``higher_is_better``, or ``"val/loss"`` if there is none. A name that contains ``loss`` is minimized; the
            trainer checks after the first steps that the task logs such a loss.

    Raises:
        UsageError: If there is no such metric, or its ``higher_is_better`` is not known.

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
    monitors = [Monitor(key, "max" if higher else "min") for key, higher in metrics.items() if higher is not None]
    if name is None:
        return next((monitor for monitor in monitors if monitor.name.startswith("val/")), Monitor("val/loss", "min"))
    if "loss" in name and name not in metrics and name.startswith(("train/", "val/")):
        return Monitor(name, "min")
    names = [*(monitor.name for monitor in monitors), "val/loss", "train/loss"]
    suggestion = nearest(name, names) or "Give one of these, or leave it out."
    require(name in names, "monitor", "a task", f"one of {', '.join(names)}", name, suggestion)
    return next(monitor for monitor in monitors if monitor.name == name)
