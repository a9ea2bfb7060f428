"""Maps that say which pixels a score comes from: Grad-CAM, integrated gradients and attention rollout.

The extra ``explain`` installs captum, which computes the first two.
"""

from __future__ import annotations

from importlib.util import find_spec
from math import nan
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autotimm.attribution.feature_taps import tapped
from autotimm.attribution.rollout import attention_rollout
from autotimm.errors import UsageError, missing_extra
from autotimm.models.backbone.feature_maps import DenseNetwork
from autotimm.models.backbone.pooled import BackboneNetwork
from autotimm.types import ExplainedScore

__all__ = ["METHODS", "Attributed", "attribute", "chosen_method", "mean_color", "require_captum"]

METHODS = ("gradcam", "integrated-gradients", "attention-rollout")

_STEPS = 128  # points of the integral; half as many left errors of up to 29 % in an EfficientNet
_FEW_STEPS = 32  # for maps that are only compared
_AT_ONCE = 16  # of these points


class Attributed(NamedTuple):
    """A map of one image.

    Attributes:
        values: What each pixel of the network's input adds to the score, ``float32`` (H, W): below 0 where it speaks
            against it. Without a unit; that of attention rollout is never below 0.
        completeness: Of integrated gradients the difference between the sum of all values and that of the scores of
            image and baseline, as a share of the latter; otherwise NaN.
    """

    values: Tensor
    completeness: float = nan


def require_captum() -> None:
    """Refuse to explain without the extra.

    Raises:
        UsageError: If captum is not installed.
    """
    if find_spec("captum") is None:
        raise missing_extra("The verb explain", "explain")


def mean_color(network: nn.Module, image: Tensor) -> Tensor:
    """The color that normalization makes 0 of, as an image of the same size, (1, C, H, W); black without one."""
    mean = getattr(getattr(network, "normalize", None), "mean", None)
    return mean.to(image).expand_as(image).clone() if isinstance(mean, Tensor) else torch.zeros_like(image)


def chosen_method(network: nn.Module, method: str, image: Tensor) -> str:
    """The method that ``auto`` stands for: ``gradcam`` where a network has feature maps with several cells.

    Args:
        network: The network.
        method: One of :data:`METHODS`, or ``auto``.
        image: An input, (1, C, H, W).
    """
    if method != "auto":
        return method
    with torch.no_grad(), tapped(network, image.shape[-2], image.shape[-1]) as tap:
        if tap is not None:
            network(image)
        return "gradcam" if tap is not None and tap.cells > 1 else "integrated-gradients"


def attribute(
    network: nn.Module, score: ExplainedScore, image: Tensor, method: str, *, rough: bool = False
) -> Attributed:
    """Compute the map of one image.

    Args:
        network: The network, in evaluation mode.
        score: What to explain, a function of the network.
        image: The input, floats in [0, 1], (1, C, H, W).
        method: One of :data:`METHODS`.
        rough: Whether fewer points of an integral will do.

    Raises:
        UsageError: If the method does not suit the network; the message says why.
    """
    if method == "gradcam":
        return Attributed(_gradcam(network, score, image))
    if method == "integrated-gradients":
        return _integrated_gradients(network, score, image, _FEW_STEPS if rough else _STEPS)
    if not isinstance(network, BackboneNetwork):
        raise UsageError(f"The method attention-rollout needs a timm backbone. {type(network).__name__} has none.")
    return Attributed(_resized(attention_rollout(network, network.backbone, image)[None, None], image))


def _resized(cells: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(cells.float(), image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]


def _gradcam(network: nn.Module, score: ExplainedScore, image: Tensor) -> Tensor:
    """Selvaraju et al., "Grad-CAM", ICCV 2017; for objects and regions with the gradients of each cell, not their mean.

    The mean over all cells forgets where an object is, so that everything alike lights up (Zhao et al., "ODAM", ICLR
    2023; Draelos et al., "Use HiResCAM instead of Grad-CAM", arXiv:2011.08891). Of three blood cells the mean
    explained one better than a random order does, the gradients of each cell all three.
    """
    from captum.attr import LayerGradCam, LayerGradientXActivation  # an optional extra

    with torch.enable_grad(), tapped(network, image.shape[-2], image.shape[-1], score.level) as tap:
        if tap is not None:
            score.logit(image)
        if tap is None or tap.cells < 2:
            raise UsageError(
                f"The method gradcam needs a network with feature maps. {type(network).__name__} shows none that have "
                "the form of an image. Take integrated-gradients."
            )
        inputs = image.detach().requires_grad_()
        if isinstance(network, DenseNetwork):
            cells = LayerGradientXActivation(score.logit, tap.layer).attribute(inputs).sum(dim=1, keepdim=True)
        else:
            cells = LayerGradCam(score.logit, tap.layer).attribute(inputs)
    return _resized(cells.detach(), image)


def _integrated_gradients(network: nn.Module, score: ExplainedScore, image: Tensor, steps: int) -> Attributed:
    """Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", ICML 2017, from the mean color on."""
    from captum.attr import IntegratedGradients  # an optional extra

    baseline, inputs = mean_color(network, image), image.detach().requires_grad_()
    with torch.enable_grad():
        values = (
            IntegratedGradients(score.logit)
            .attribute(inputs, baselines=baseline, n_steps=steps, internal_batch_size=_AT_ONCE)
            .detach()
        )
    with torch.no_grad():
        difference = float(score.logit(image).double() - score.logit(baseline).double())
    total = float(values.double().sum())
    return Attributed(values[0].float().sum(dim=0), abs(total - difference) / max(abs(difference), 1e-12))
