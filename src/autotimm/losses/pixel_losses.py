"""Losses of semantic segmentation: by name, added up, by import path, or as they are; unknown pixels never count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from segmentation_models_pytorch.losses import DiceLoss, JaccardLoss
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from autotimm.constants import IGNORE_INDEX
from autotimm.errors import require, require_choice
from autotimm.losses.image_losses import checked_weights, loss_of

__all__ = ["DENSE_LOSSES", "PixelCrossEntropy", "PixelFocalLoss", "SumOfLosses", "build_dense_loss"]

DENSE_LOSSES = ("ce", "dice", "focal", "jaccard")


class _PixelLoss(nn.Module):
    """A loss of every pixel by itself; ``reduce`` says how they become one number."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index

    def flat(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (P, C), targets (P,) with 0 where unknown, and where they are known (P,).

        Flat, since torch's loss of (N, C, H, W) logits has no deterministic CUDA implementation, and raises.
        """
        pixels, known = logits.movedim(1, -1).flatten(0, -2), targets.flatten() != self.ignore_index
        # Also unknown pixels whose logits are not numbers have no say: not even times 0.
        pixels = torch.where(known[:, None], pixels, 0.0)
        return pixels, torch.where(known, targets.flatten().long(), 0), known


class PixelCrossEntropy(_PixelLoss):
    """Cross-entropy over the known pixels of a batch; 0 if there is none.

    Args:
        weight: Weight of each class, shape (C,), or ``None``. The mean is weighted, as torch's.
        ignore_index: The target of unknown pixels.

    Shape:
        - logits: (N, C, H, W).
        - targets: Integers (N, H, W).
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        pixels, wanted, known = self.flat(logits, targets)
        each = F.cross_entropy(pixels, wanted, weight=self.weight, reduction="none")
        share = known.to(each.dtype) if self.weight is None else torch.where(known, self.weight[wanted], 0.0)
        # Of known pixels the weighted sum is at least the smallest weight: only a batch without any divides by 1.
        total = share.sum()
        return torch.where(known, each, 0.0).sum() / torch.where(total > 0, total, 1.0)


class PixelFocalLoss(_PixelLoss):
    """Focal loss of torchvision over the known pixels of a batch, one class vs. all others; 0 if there is none.

    Summed over classes and averaged over pixels, as :class:`autotimm.losses.FocalLoss` does with samples.

    Args:
        weight: Weight of each class, shape (C,), or ``None``.
        ignore_index: The target of unknown pixels.

    Shape:
        - logits: (N, C, H, W).
        - targets: Integers (N, H, W).

    Source:
        Lin et al., "Focal loss for dense object detection", ICCV 2017.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        pixels, wanted, known = self.flat(logits, targets)
        classes = torch.arange(pixels.shape[1], device=pixels.device)
        one_hot = (wanted[:, None] == classes).to(pixels.dtype)
        each: Tensor = sigmoid_focal_loss(pixels, one_hot, alpha=-1, gamma=2, reduction="none")
        each = each if self.weight is None else each * self.weight
        return torch.where(known, each.sum(dim=1), 0.0).sum() / known.sum().clamp(min=1)


class _RegionLoss(nn.Module):
    """A loss of smp that compares the regions of classes, not pixels."""

    def __init__(self, body: nn.Module, ignore_index: int) -> None:
        super().__init__()
        self.body, self.ignore_index = body, ignore_index

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar; 0 without known pixels."""
        known = (targets != self.ignore_index)[:, None]
        loss: Tensor = self.body(torch.where(known, logits, 0.0), targets.long())
        return loss


class SumOfLosses(nn.Module):
    """Several losses, added up.

    Args:
        parts: Modules that take the same predictions and targets.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, predictions: Any, targets: Any) -> Tensor:
        """The sum, a scalar."""
        return torch.stack([part(predictions, targets) for part in self.parts]).sum()


def build_dense_loss(
    loss: str | Callable[..., Any] | None = None,
    *,
    num_classes: int,
    class_weights: Sequence[float] | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> nn.Module:
    """Build the loss of a segmenter, a module that takes logits (N, C, H, W) and targets (N, H, W).

    All names work on CUDA under ``deterministic=True``.

    Args:
        loss: ``None`` (cross-entropy); names joined by ``+``: ``ce``, ``focal``, ``dice`` (Milletari et al., "V-Net",
            3DV 2016) and ``jaccard`` (Rahman & Wang, ISVC 2016), the last two from segmentation-models-pytorch; an
            import path, a module class, a module, or a function. What is not a name is used as it is, and ignores
            unknown pixels by itself.
        num_classes: Number of classes C.
        class_weights: One weight per class, at least 0 and not all 0.
        ignore_index: The target of pixels that nobody knows the class of.

    Raises:
        UsageError: If an argument is wrong, or a loss of your own is to be weighted.

    Example:
        >>> criterion = build_dense_loss("ce+dice", num_classes=2)
        >>> criterion(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 255))
        tensor(0.)
    """
    owner = "the loss"
    weights = checked_weights(class_weights, num_classes)
    outside = type(ignore_index) is int and not 0 <= ignore_index < num_classes
    require(outside, "ignore_index", owner, "an integer that is no class", ignore_index, "255 is common.")
    name = "ce" if loss is None else loss
    if isinstance(name, str) and "." not in name:
        parts = name.split("+")
        for part in parts:
            require_choice("loss", "a segmenter", part, DENSE_LOSSES)
        made = [_named(part, weights, ignore_index) for part in parts]
        return made[0] if len(made) == 1 else SumOfLosses(made)
    do = "Configure your own loss itself, or choose from " + ", ".join(DENSE_LOSSES) + "."
    require(weights is None, "class_weights", owner, "left out with a loss of your own", class_weights, do)
    return loss_of(name)


def _named(name: str, weights: Tensor | None, ignore_index: int) -> nn.Module:
    if name == "ce":
        return PixelCrossEntropy(weights, ignore_index)
    if name == "focal":
        return PixelFocalLoss(weights, ignore_index)
    kind = DiceLoss if name == "dice" else JaccardLoss
    body = kind("multiclass", ignore_index=ignore_index, class_weights=None if weights is None else weights.tolist())
    return _RegionLoss(body, ignore_index)
