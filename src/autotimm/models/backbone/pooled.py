"""Where a training from scratch starts: residual branches that say something from the first step on.

timm backbones that turn images into vectors, and the classifier around one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data.config import resolve_model_data_config
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from autotimm.errors import is_whole, number, require
from autotimm.models.backbone.architectures import Architecture, find_architecture, list_backbones
from autotimm.models.backbone.around_backbone import AroundBackbone
from autotimm.models.backbone.model_args import create, fitting_arguments, measure_features
from autotimm.models.backbone.weights import Weights
from autotimm.models.backbone.weights_file import load_weights
from autotimm.models.layers.deterministic import steady_resizing
from autotimm.models.layers.normalize import Normalize
from autotimm.repro.streams import scope

__all__ = [
    "DataConfig",
    "PooledClassifier",
    "build_backbone",
    "build_classifier",
    "data_config",
    "list_backbones",
    "open_residuals",
]


# Factors of LayerScale begin at 1e-6 to 1e-4, depending on the architecture. Those of BEiT, 0.1, are left alone.
_CLOSED = 1e-3


@torch.no_grad()
def open_residuals(network: nn.Module) -> int:
    """Set the factors that close residual branches to 1, in place.

    timm closes the residual branches of many random networks at first, so that a block begins as the identity. In
    ResNets and their kin the last normalization of a branch has factors of 0 (Goyal et al., "Accurate, large minibatch
    SGD", 2017); in ConvNeXt, CaiT and others a LayerScale has factors of about 1e-6 (Touvron et al., "Going deeper with
    image transformers", ICCV 2021). That helps hundreds of epochs of ImageNet. A step of Adam moves a factor by at most
    the learning rate, so that it takes 1,000 steps at 1e-3 to open a branch: most trainings from scratch on a few
    hundred photographs would be over before, having trained little more than the stem and the shortcuts.

    Pretrained weights have been through that; they are not to be touched.

    Args:
        network: A network with random weights.

    Returns:
        How many parameters were closed.

    Example:
        >>> import timm
        >>> [open_residuals(timm.create_model(name)) for name in ("resnet18", "test_convnext", "test_vit")]
        [8, 9, 0]
    """
    closed = [
        parameter
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if not parameter.is_meta and (_is_last_norm(module, name, parameter) or _is_layer_scale(name, parameter))
    ]
    for parameter in closed:
        parameter.fill_(1)
    return len(closed)


def _is_last_norm(module: nn.Module, name: str, factors: Tensor) -> bool:
    # Weights of one dimension are those of normalizations; that of ConvNeXt V2 is a branch of its own, open at 0.
    return name == "weight" and factors.dim() == 1 and not factors.any() and not isinstance(module, GlobalResponseNorm)


def _is_layer_scale(name: str, factors: Tensor) -> bool:
    # A factor per channel, all alike: `gamma`, `gamma_1`, `ls1` or `scale`, of shape (C,) or (C, 1, 1).
    if name.endswith("bias") or factors.dim() == 0 or factors.numel() != max(factors.shape):
        return False
    first = factors.flatten()[0]
    return bool(0 < first <= _CLOSED and (factors == first).all())


@dataclass(frozen=True)
class DataConfig:
    """How a backbone's pretrained weights want their images.

    Attributes:
        mean: Mean of each channel, in [0, 1] units.
        std: Standard deviation of each channel, in [0, 1] units.
        crop_pct: Share of the resized image that the central crop keeps in evaluation.
        interpolation: ``"bilinear"``, ``"bicubic"`` or another name of ``torchvision.transforms.InterpolationMode``.
        image_size: Side in pixels of the square image that the weights were trained on.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str
    image_size: int


def data_config(backbone: str | nn.Module) -> DataConfig:
    """Say how a backbone wants its images, from timm's data configuration.

    Args:
        backbone: A name, or a module of timm.

    Raises:
        ModelError: If the name is unknown.

    Example:
        >>> data_config("resnet18").image_size
        224
    """
    if isinstance(backbone, str):
        found = resolve_model_data_config(None, pretrained_cfg=find_architecture(backbone).config)
    else:
        found = resolve_model_data_config(backbone)
    return DataConfig(
        tuple(map(float, found["mean"])),
        tuple(map(float, found["std"])),
        float(found["crop_pct"]),
        str(found["interpolation"]),
        int(found["input_size"][-1]),
    )


def build_backbone(
    name: str,
    *,
    weights: Weights | None = None,
    seed: int = 42,
    image_size: int | None = None,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """Build a timm backbone that turns (N, 3, S, S) normalized images into (N, D) features.

    Its random initial weights are a function of ``seed`` and the name alone: the number of classes has no influence,
    and the global generators are left as they were.

    Args:
        name: See :func:`autotimm.models.backbone.architectures.find_architecture`.
        weights: Their origin, see :func:`autotimm.models.backbone.weights.resolve_weights`; default random.
        seed: Root seed of the stream ``(init, backbone)``.
        image_size: Side S in pixels. ``None`` is the backbone's own size; models that can take other sizes too then do.
        drop_path_rate: Probability in [0, 1) of skipping a residual block (Huang et al., "Deep networks with stochastic
            depth", ECCV 2016).

    Returns:
        The module. Its ``num_features`` is D, measured and not looked up.

    Raises:
        ModelError: If the backbone is unknown, does not pool to a vector, or cannot take images of this size; the
            nearest names or sizes are given.
        UsageError: If ``drop_path_rate`` is not in [0, 1), or the backbone has no stochastic depth.
        WeightsError: If the weights do not fit.

    Example:
        >>> import torch
        >>> backbone = build_backbone("test_resnet", image_size=32)
        >>> backbone(torch.zeros(2, 3, 32, 32)).shape == (2, backbone.num_features)
        True
    """
    architecture, arguments = checked_arguments(name, image_size, drop_path_rate)
    features = measure_features(architecture, arguments, image_size)
    backbone, _ = make_backbone(architecture, arguments, weights, seed)
    setattr(backbone, "num_features", features)  # noqa: B010 - timm's own number is that before the head's layers
    return backbone


def checked_arguments(name: str, image_size: int | None, drop_path_rate: float) -> tuple[Architecture, dict[str, Any]]:
    """Find a backbone, and the arguments of ``timm.create_model`` that make it fit; see :func:`build_backbone`."""
    must, do = "in [0, 1)", "Give 0 to switch it off, or for example 0.1."
    require(0 <= number(drop_path_rate) < 1, "drop_path_rate", name, must, drop_path_rate, do)
    whole = image_size is None or is_whole(image_size, 1)
    require(whole, "image_size", name, "an integer above 0, or None", image_size, "Give for example 224.")
    architecture = find_architecture(name)
    return architecture, fitting_arguments(architecture, image_size, drop_path_rate)


def make_backbone(
    architecture: Architecture,
    arguments: dict[str, Any],
    weights: Weights | None,
    seed: int,
    prune: Callable[[nn.Module], Sequence[int]] = lambda model: (),
) -> tuple[nn.Module, Sequence[int]]:
    """Make a backbone on the stream ``(init, backbone)``, and fill it with its weights.

    Args:
        architecture: What to build.
        arguments: See :func:`checked_arguments`.
        weights: Where the weights come from; default random.
        seed: Root seed.
        prune: Takes away in place what is not needed, before weights are read for what is left.

    Returns:
        The backbone, and what ``prune`` returned.

    Raises:
        WeightsError: If the weights do not fit.
    """
    weights = weights or Weights()
    # Not `torch_only`: a constructor may draw from NumPy or `random` too.
    with scope(seed, "init", "backbone"):
        backbone = create(architecture, arguments)
        pruned = prune(backbone)
        if weights.file is not None:
            load_weights(backbone, Path(weights.file), architecture, arguments)
        else:
            open_residuals(backbone)
    return backbone, pruned


class PooledClassifier(AroundBackbone):
    """Normalization, a backbone that pools to a vector, dropout and a linear head.

    Args:
        normalize: The network's first layer.
        backbone: Turns (N, 3, H, W) into (N, D), with D as its ``num_features``.
        head: Turns (N, D) into (N, num_classes).
        head_dropout: Probability in [0, 1) of dropping a feature before the head.

    Shape:
        - images: (N, 3, H, W), ``uint8`` in [0, 255] or float in [0, 1].
        - logits: (N, num_classes).
    """

    def __init__(self, normalize: Normalize, backbone: nn.Module, head: nn.Module, head_dropout: float = 0.0) -> None:
        super().__init__()
        self.normalize = normalize
        self.backbone = backbone
        self.dropout = nn.Dropout(head_dropout)
        self.head = head

    def features(self, images: Tensor) -> Tensor:
        """Pooled features, (N, D)."""
        with steady_resizing(self.backbone, images):
            features: Tensor = self.backbone(self.normalize(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, num_classes)."""
        logits: Tensor = self.head(self.dropout(self.features(images)))
        return logits


def build_classifier(
    backbone: str,
    num_classes: int,
    *,
    weights: Weights | None = None,
    seed: int = 42,
    image_size: int | None = None,
    head_dropout: float = 0.0,
    drop_path_rate: float = 0.0,
) -> PooledClassifier:
    """Build a classifier: :func:`build_backbone` and a head on the stream ``(init, head)``.

    Args:
        backbone: Name of the backbone.
        num_classes: Number of logits.
        weights: Where the backbone's weights come from; default random.
        seed: Root seed of the streams ``(init, backbone)`` and ``(init, head)``.
        image_size: Side of the square images in pixels; ``None`` is the backbone's own.
        head_dropout: Probability in [0, 1) of dropping a feature before the head.
        drop_path_rate: Probability in [0, 1) of skipping a residual block.

    Raises:
        ModelError: See :func:`build_backbone`.
        UsageError: If an argument is wrong.
        WeightsError: If the weights do not fit.

    Example:
        >>> import torch
        >>> network = build_classifier("test_resnet", num_classes=3, image_size=32)
        >>> network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 3])
    """
    must, do = "in [0, 1)", "Give 0 to switch it off, or for example 0.2."
    require(0 <= number(head_dropout) < 1, "head_dropout", "a classifier", must, head_dropout, do)
    body = build_backbone(backbone, weights=weights, seed=seed, image_size=image_size, drop_path_rate=drop_path_rate)
    with scope(seed, "init", "head"):
        head = nn.Linear(int(body.num_features), num_classes)  # type: ignore[arg-type]  # an int, which no type says
    config = data_config(body)
    return PooledClassifier(Normalize(config.mean, config.std), body, head, head_dropout)
