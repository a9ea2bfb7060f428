"""Losses of semantic segmentation: by name, as sums of named losses, and losses of your own.

The named losses ignore unlabeled pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from autotimm.constants import IGNORE_INDEX
from autotimm.errors import require, require_choice
from autotimm.losses.image_losses import checked_weights, loss_module

__all__ = ["DENSE_LOSSES", "PixelCrossEntropy", "PixelFocalLoss", "SumOfLosses", "build_dense_loss"]

DENSE_LOSSES = ("ce", "dice", "focal", "jaccard")


class _PixelLoss(nn.Module):
    """Base of the losses that are computed pixel by pixel."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index

    def flat(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Flatten a batch to P = N * H * W pixels.

        torch's loss of (N, C, H, W) logits has no deterministic CUDA implementation and raises an error.

        Returns:
            Logits (P, C) and targets (P,), both 0 for unlabeled pixels, and a mask (P,) of the labeled ones.
        """
        pixels, labeled = logits.movedim(1, -1).flatten(0, -2), targets.flatten() != self.ignore_index
        # where and not a product: NaN or infinite logits of an unlabeled pixel would survive a factor of 0.
        pixels = torch.where(labeled[:, None], pixels, 0.0)
        return pixels, torch.where(labeled, targets.flatten().long(), 0), labeled


class PixelCrossEntropy(_PixelLoss):
    """Cross-entropy over the labeled pixels of a batch; 0 if there are none.

    Args:
        weight: Weight of each class, shape (C,), or ``None``. The mean is weighted, as in torch.
        ignore_index: Target of unlabeled pixels.

    Shape:
        - logits: (N, C, H, W).
        - targets: integers (N, H, W).
        - output: scalar.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss."""
        pixels, classes, labeled = self.flat(logits, targets)
        losses = F.cross_entropy(pixels, classes, weight=self.weight, reduction="none")
        weights = labeled.to(losses.dtype) if self.weight is None else torch.where(labeled, self.weight[classes], 0.0)
        total = weights.sum()  # 0 without labeled pixels; the loss is then 0 / 1
        return torch.where(labeled, losses, 0.0).sum() / torch.where(total > 0, total, 1.0)


class PixelFocalLoss(_PixelLoss):
    """Focal loss over the labeled pixels of a batch, with one binary problem per class; 0 if there are none.

    Computed by torchvision. It is summed over classes and averaged over pixels, as
    :class:`autotimm.losses.FocalLoss` is over samples.

    Args:
        weight: Weight of each class, shape (C,), or ``None``.
        ignore_index: Target of unlabeled pixels.

    Shape:
        - logits: (N, C, H, W).
        - targets: integers (N, H, W).
        - output: scalar.

    Source:
        Lin et al., "Focal loss for dense object detection", ICCV 2017.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss."""
        pixels, classes, labeled = self.flat(logits, targets)
        one_hot = (classes[:, None] == torch.arange(pixels.shape[1], device=pixels.device)).to(pixels.dtype)
        losses: Tensor = sigmoid_focal_loss(pixels, one_hot, alpha=-1, gamma=2, reduction="none")
        losses = losses if self.weight is None else losses * self.weight
        return torch.where(labeled, losses.sum(dim=1), 0.0).sum() / labeled.sum().clamp(min=1)


class _RegionLoss(nn.Module):
    """A loss of segmentation-models-pytorch on the overlap of regions, with unlabeled pixels masked out."""

    def __init__(self, body: nn.Module, ignore_index: int) -> None:
        super().__init__()
        self.body, self.ignore_index = body, ignore_index

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss, a scalar; 0 without labeled pixels."""
        # smp multiplies by the mask, which would keep NaN and infinite logits.
        labeled = (targets != self.ignore_index)[:, None]
        loss: Tensor = self.body(torch.where(labeled, logits, 0.0), targets.long())
        return loss


class SumOfLosses(nn.Module):
    """The sum of several losses.

    Args:
        parts: Losses that take the same predictions and targets and return a scalar.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, predictions: Any, targets: Any) -> Tensor:
        """Compute the sum, a scalar."""
        return torch.stack([part(predictions, targets) for part in self.parts]).sum()


def build_dense_loss(
    loss: str | Callable[..., Any] | None = None,
    *,
    num_classes: int,
    class_weights: Sequence[float] | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> nn.Module:
    """Build the loss of a segmenter: a module that takes logits (N, C, H, W) and targets (N, H, W), returns a scalar.

    All named losses have deterministic CUDA implementations.

    Args:
        loss: ``None`` (cross-entropy); one or several names joined by ``+``: ``ce``, ``focal``, ``dice`` (Milletari et
            al., "V-Net", 3DV 2016) and ``jaccard`` (Rahman & Wang, ISVC 2016), the last two from
            segmentation-models-pytorch; an import path, a module class, a module, or a function. A loss of your own
            must ignore unlabeled pixels itself.
        num_classes: Number of classes C.
        class_weights: One weight per class, at least 0 and not all 0.
        ignore_index: Target of unlabeled pixels, an integer that is not a class index.

    Raises:
        UsageError: If an argument is wrong, or ``class_weights`` are given with a loss of your own.

    Example:
        >>> criterion = build_dense_loss("ce+dice", num_classes=2)
        >>> criterion(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 255))
        tensor(0.)
    """
    owner = "the loss"
    weights = checked_weights(class_weights, num_classes)
    valid = type(ignore_index) is int and not 0 <= ignore_index < num_classes
    require(valid, "ignore_index", owner, "an integer that is not a class index", ignore_index, "Give for example 255.")
    name = "ce" if loss is None else loss
    if isinstance(name, str) and "." not in name:
        parts = name.split("+")
        for part in parts:
            require_choice("loss", "a segmenter", part, DENSE_LOSSES)
        losses = [_named_loss(part, weights, ignore_index) for part in parts]
        return losses[0] if len(losses) == 1 else SumOfLosses(losses)
    do = "Configure your own loss itself, or choose from " + ", ".join(DENSE_LOSSES) + "."
    require(weights is None, "class_weights", owner, "left out with a loss of your own", class_weights, do)
    return loss_module(name)


def _named_loss(name: str, weights: Tensor | None, ignore_index: int) -> nn.Module:
    if name == "ce":
        return PixelCrossEntropy(weights, ignore_index)
    if name == "focal":
        return PixelFocalLoss(weights, ignore_index)
    from segmentation_models_pytorch.losses import DiceLoss, JaccardLoss  # late: other losses do not need it

    loss_class = DiceLoss if name == "dice" else JaccardLoss
    class_weights = None if weights is None else weights.tolist()
    return _RegionLoss(loss_class("multiclass", ignore_index=ignore_index, class_weights=class_weights), ignore_index)
