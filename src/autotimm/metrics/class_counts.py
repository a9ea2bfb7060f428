"""Metrics of torchmetrics for one class per sample, updated with memory that grows linearly with the classes.

torchmetrics counts every pair of a true and a predicted class in each batch, also for metrics that need three numbers
per class. With deterministic algorithms it compares each sample with each pair, which takes N x C x C integers for N
samples and C classes: 7 GB for 16 images and 5,000 classes, 4 GB for two masks of 512 x 512 pixels and 21 classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassStatScores

# Private to torchmetrics: the checks that its own updates make.
from torchmetrics.functional.classification.confusion_matrix import _multiclass_confusion_matrix_tensor_validation
from torchmetrics.functional.classification.stat_scores import _multiclass_stat_scores_tensor_validation

__all__ = ["class_counts", "linear"]


def class_counts(labels: Tensor, counted: Tensor, num_classes: int) -> Tensor:
    """Count how often each class occurs.

    The result is exact and independent of the order, and no device has to be waited for.

    Args:
        labels: Class indices ``int64`` (N,); those that are not counted may be any numbers.
        counted: Which of them count, ``bool`` (N,).
        num_classes: Number of classes C.

    Returns:
        ``int64`` (C,).

    Example:
        >>> import torch
        >>> class_counts(torch.tensor([2, 0, 2, -1]), torch.tensor([True, False, True, False]), 3)
        tensor([0, 0, 2])
    """
    return _add(labels.new_zeros(num_classes), labels, counted)


def _add(counts: Tensor, positions: Tensor, counted: Tensor) -> Tensor:
    """Add one at each position that counts, in place; the others add 0 somewhere."""
    return counts.scatter_add_(0, positions * counted, counted.to(counts.dtype))


def _labels(metric: Any, preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted and true classes of all samples or pixels, ``int64`` (N,), and which pairs count.

    As in torchmetrics, what is no class does not count, such as the targets that a loss ignores.
    """
    if preds.ndim == target.ndim + 1:
        preds = preds.argmax(dim=1)
    preds, target = preds.flatten().long(), target.flatten().long()
    inside = [(labels >= 0) & (labels < metric.num_classes) for labels in (preds, target)]
    counted = inside[0] & inside[1]
    return preds, target, counted if metric.ignore_index is None else counted & (target != metric.ignore_index)


def _update_stat_scores(self: Any, preds: Tensor, target: Tensor) -> None:
    """Update the states with predictions and targets."""
    if self.validate_args:
        arguments = (self.num_classes, self.multidim_average, self.ignore_index)
        _multiclass_stat_scores_tensor_validation(preds, target, *arguments)
    preds, target, counted = _labels(self, preds, target)
    pairs = ((target, counted & (preds == target)), (preds, counted), (target, counted))
    correct, predicted, true = (class_counts(labels, which, self.num_classes) for labels, which in pairs)
    self.tp = self.tp + correct
    self.fp = self.fp + predicted - correct
    self.fn = self.fn + true - correct
    self.tn = self.tn + true.sum() - (predicted + true - correct)


def _update_confusion_matrix(self: Any, preds: Tensor, target: Tensor) -> None:
    """Update the matrix with predictions and targets."""
    if self.validate_args:
        _multiclass_confusion_matrix_tensor_validation(preds, target, self.num_classes, self.ignore_index)
    preds, target, counted = _labels(self, preds, target)
    _add(self.confmat.view(-1), target * self.num_classes + preds, counted)


def linear(metric: Metric) -> Metric:
    """Return a metric with the same states and values whose update takes memory for samples and for classes alone.

    Metrics of other kinds, with an ``update`` of their own, per sample, of the top k or over all classes together are
    returned as they are: they do not count pairs. The state of a confusion matrix stays one.
    """
    if type(metric).update is MulticlassConfusionMatrix.update:
        return _with_update(metric, _update_confusion_matrix)
    if type(metric).update is not MulticlassStatScores.update:
        return metric
    scores: Any = metric
    counts_pairs = scores.multidim_average == "global" and scores.top_k == 1 and scores.average != "micro"
    return _with_update(metric, _update_stat_scores) if counts_pairs else metric


def _with_update(metric: Metric, update: Callable[..., None]) -> Metric:
    return _restored(type(metric), update, metric.__getstate__())


def _restored(base: type[Metric], update: Callable[..., None], state: dict[str, Any]) -> Metric:
    """A metric of a class with another update, from the state of one, as pickles and copies have it."""
    cls = _class_with(base, update)
    metric = cls.__new__(cls)
    metric.__setstate__(state)
    return metric


@cache
def _class_with(base: type[Metric], update: Callable[..., None]) -> type[Metric]:
    """A subclass under the same name; torchmetrics binds the update of the class whenever a metric is unpickled."""

    def reduce(self: Metric) -> tuple[Any, ...]:
        return _restored, (base, update, self.__getstate__())

    return type(base.__name__, (base,), {"update": update, "__reduce__": reduce, "__doc__": base.__doc__})
