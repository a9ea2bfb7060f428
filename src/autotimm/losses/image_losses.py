"""Losses of image classification: those of torch, timm and torchvision by name, and losses of your own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.loss import (  # type: ignore[attr-defined]  # timm re-exports these without an `__all__`
    AsymmetricLossMultiLabel,
    AsymmetricLossSingleLabel,
    BinaryCrossEntropy,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from autotimm.errors import UsageError, nearest, require, sentence
from autotimm.records.imports import Kind, import_named

__all__ = ["LOSSES", "MULTI_LABEL_LOSSES", "FocalLoss", "FunctionLoss", "balanced_weights", "build_loss"]

LOSSES = ("asymmetric", "bce", "cross_entropy", "focal")
MULTI_LABEL_LOSSES = ("asymmetric", "bce", "focal")


def _takes_targets(function: Callable[..., Any]) -> bool:
    """Whether a function can be called as ``function(predictions, targets)``; one of a library must name the latter."""
    try:
        signature = inspect.signature(function)
        signature.bind(None, None)
    except (TypeError, ValueError):  # ValueError: some built-in functions have no signature
        return False
    second = [*signature.parameters][1:2]
    named = bool(second) and second[0].startswith(("target", "label", "y_true", "y"))
    return named or function.__module__.partition(".")[0] not in _LIBRARIES


_LIBRARIES = ("torch", "torchvision", "timm", "segmentation_models_pytorch")
LOSS = Kind(
    "`loss`",
    "a subclass of torch.nn.Module, or of a function of predictions and targets",
    base=nn.Module,
    libraries=("autotimm.losses", "torch.nn", "torchvision.ops", "timm.loss", "segmentation_models_pytorch.losses"),
    function=_takes_targets,
)


class FocalLoss(nn.Module):
    """Focal loss with one binary problem per class, computed by torchvision with gamma = 2 and no alpha.

    It is summed over classes and averaged over samples, as the paper normalizes by the number of positives.

    Args:
        weight: Weight of each class, shape (C,), or ``None``.

    Shape:
        - logits: (N, C).
        - targets: ``int64`` (N,) class indices, or float (N, C) in [0, 1].
        - output: scalar.

    Source:
        Lin et al., "Focal loss for dense object detection", ICCV 2017.
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss."""
        if targets.ndim == 1:
            targets = F.one_hot(targets, logits.shape[1])
        # alpha=-1 switches off the balance of positives and negatives, which is tuned for detection.
        loss: Tensor = sigmoid_focal_loss(logits, targets.to(logits.dtype), alpha=-1, gamma=2, reduction="none")
        if self.weight is not None:
            loss = loss * self.weight
        return loss.sum(dim=1).mean()


class FunctionLoss(nn.Module):
    """A module that calls a function.

    Args:
        function: Takes predictions and targets, returns a scalar.
    """

    def __init__(self, function: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, predictions: Any, targets: Any) -> Tensor:
        """Call the function."""
        return self.function(predictions, targets)


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Compute class weights inversely proportional to the class frequencies, as scikit-learn's ``balanced`` does.

    The weight of a class is ``total / (num_classes * count)``. A class without samples gets the weight of a class with
    one sample.

    Args:
        counts: Number of training samples per class.

    Returns:
        One weight per class.

    Source:
        King & Zeng, "Logistic regression in rare events data", Political Analysis 2001.

    Example:
        >>> balanced_weights([30, 10])
        [0.6666666666666666, 2.0]
    """
    return [sum(counts) / (len(counts) * max(1, count)) for count in counts]


def build_loss(
    loss: str | Callable[..., Any] | None = None,
    *,
    multi_label: bool = False,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    num_classes: int,
    soft_targets: bool = False,
) -> nn.Module:
    """Build the loss of a classifier: a module that takes logits (N, C) and targets and returns a scalar.

    Args:
        loss: ``None`` (cross-entropy, or binary cross-entropy for multi-label); a name: ``cross_entropy``, ``bce``
            (timm; Wightman et al., "ResNet strikes back", 2021), ``focal`` (torchvision), ``asymmetric`` (timm; Ridnik
            et al., ICCV 2021); the import path of a module class or function, such as ``timm.loss.JsdCrossEntropy``; a
            module class, a module, or a function. A class is created without arguments.
        multi_label: Whether targets are float (N, C) of zeros and ones instead of ``int64`` (N,) class indices.
        label_smoothing: Share in [0, 1) of the target that is spread over all classes (Szegedy et al., CVPR 2016).
        class_weights: One weight per class, at least 0 and not all 0; see :func:`balanced_weights`. They weight the
            samples of a class, and the positive term of a class for multi-label.
        num_classes: Number of classes C.
        soft_targets: Whether targets may also be float (N, C) distributions, as mixup and CutMix produce.

    Returns:
        The loss. Its class weights, if any, are part of its ``state_dict``.

    Raises:
        UsageError: If an argument is wrong, or if the loss does not support the given combination of arguments.

    Example:
        >>> criterion = build_loss(num_classes=3, label_smoothing=0.1)
        >>> criterion(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor(1.0986)
    """
    owner = "the loss"
    require(
        0 <= label_smoothing < 1, "label_smoothing", owner, "in [0, 1)", label_smoothing, "Give 0 to switch it off."
    )
    supported = not (multi_label and label_smoothing)
    do = "Smoothing spreads the single class of a sample over all classes."
    require(supported, "label_smoothing", owner, "0 with multi_label", label_smoothing, do)
    weights = checked_weights(class_weights, num_classes)
    name = loss if loss is not None else "bce" if multi_label else "cross_entropy"
    if isinstance(name, str) and name in LOSSES:
        return _named_loss(name, multi_label, float(label_smoothing), weights, soft_targets)
    for option, value in (("label_smoothing", label_smoothing), ("class_weights", class_weights)):
        do = "Configure your own loss itself, or choose one of " + ", ".join(LOSSES) + "."
        require(not value, option, owner, f"left out with {_describe(name)}", value, do)
    return loss_module(name)


def _describe(loss: object) -> str:
    return repr(loss) if isinstance(loss, str) else "a loss of your own"


def checked_weights(weights: Sequence[float] | None, num_classes: int) -> Tensor | None:
    """Convert class weights to a tensor of shape (C,); ``None`` is returned as it is.

    Raises:
        UsageError: If they are not one finite number of at least 0 per class, or all 0.
    """
    if weights is None:
        return None
    do = "Give one number per class, for example balanced_weights(counts)."
    must = f"{num_classes} numbers of at least 0, not all 0"
    # A string such as "balanced" is a sequence too, and float() would raise another error.
    require(not isinstance(weights, str), "class_weights", "the loss", must, weights, do)
    values = [float(value) for value in weights]
    valid = len(values) == num_classes and any(values) and all(value >= 0 and math.isfinite(value) for value in values)
    require(valid, "class_weights", "the loss", must, values, do)
    return torch.tensor(values)


def _named_loss(
    name: str, multi_label: bool, smoothing: float, weights: Tensor | None, soft_targets: bool
) -> nn.Module:
    if multi_label and name not in MULTI_LABEL_LOSSES:
        do = f"Choose one of {', '.join(MULTI_LABEL_LOSSES)}."
        raise UsageError(sentence("loss", "a multi-label classifier", "one for independent classes", name, do))
    if name == "asymmetric":
        return _asymmetric_loss(multi_label, smoothing, weights, soft_targets)
    if name == "focal":
        do = "Use 'bce' with label smoothing."
        require(not smoothing, "label_smoothing", "the loss", "0 with 'focal'", smoothing, do)
        return FocalLoss(weights)
    if name == "cross_entropy":
        return nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)
    if multi_label:
        # Not `weight`, which would also scale the loss of negative labels.
        return nn.BCEWithLogitsLoss(pos_weight=weights)
    criterion: nn.Module = BinaryCrossEntropy(smoothing=smoothing, weight=weights)
    return criterion


def _asymmetric_loss(multi_label: bool, smoothing: float, weights: Tensor | None, soft_targets: bool) -> nn.Module:
    do = "Use 'focal', or leave the weights out."
    require(weights is None, "class_weights", "the loss", "left out with 'asymmetric'", weights, do)
    if multi_label:
        multi_label_criterion: nn.Module = AsymmetricLossMultiLabel()
        return multi_label_criterion
    if soft_targets:  # timm's implementation takes class indices only
        raise UsageError(
            "The `loss` of a classifier with mixup or CutMix must take soft targets. Got 'asymmetric' instead. "
            "Use 'cross_entropy', 'bce' or 'focal', or switch mixup and CutMix off."
        )
    criterion: nn.Module = AsymmetricLossSingleLabel(eps=smoothing)
    return criterion


def _import_loss(path: str) -> Any:
    if "." not in path:
        suggestion = nearest(path, LOSSES) or f"Choose one of {', '.join(LOSSES)}, or give an import path."
        raise UsageError(f"Unknown `loss` {path!r}. {suggestion}")
    return import_named(path, LOSS)


def loss_module(loss: Any) -> nn.Module:
    """Convert an import path, a module class or a function to a module; a module is returned as it is.

    Raises:
        UsageError: If it is none of these, or a class that needs arguments.
    """
    loss = _import_loss(loss) if isinstance(loss, str) else loss
    if isinstance(loss, nn.Module):
        return loss
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        try:
            return loss()
        except TypeError as error:
            raise UsageError(
                f"The `loss` {loss.__name__} cannot be created without arguments: {error}. Create it yourself and give "
                "the module."
            ) from None
    if callable(loss) and not isinstance(loss, type):
        return FunctionLoss(loss)
    raise UsageError(
        sentence("loss", "a classifier", "a name, an import path, a module or a function", loss, "Try 'cross_entropy'.")
    )
