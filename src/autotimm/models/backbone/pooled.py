"""timm backbones that pool images to feature vectors, and the classifier built on one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data.config import resolve_model_data_config
from timm.layers.grn import GlobalResponseNorm
from timm.models import group_parameters
from torch import Tensor, nn

from autotimm.errors import is_whole, number, require
from autotimm.image_size import ImageSize
from autotimm.models.backbone.architectures import Architecture, find_architecture, list_backbones
from autotimm.models.backbone.model_args import create, fitting_arguments, measure_features
from autotimm.models.backbone.weights import Weights, load_weights
from autotimm.models.layers.deterministic import deterministic_resizing
from autotimm.models.layers.normalize import Normalize
from autotimm.repro.streams import scope
from autotimm.types import check_image_size

__all__ = [
    "BackboneNetwork", "DataConfig", "PooledClassifier", "build_backbone", "build_classifier", "build_normalize",
    "data_config", "list_backbones", "undo_zero_init",
]  # fmt: skip


class BackboneNetwork(nn.Module, ABC):
    """Base class of networks with a timm model as their ``backbone``.

    It numbers the layers for layer-wise learning rates; see :func:`autotimm.optim.build_optimizer`.

    Attributes:
        backbone: The timm model. All other modules count as the head.
    """

    backbone: nn.Module

    @abstractmethod
    def forward(self, *inputs: Any) -> Any:
        """Run the network."""

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Number the layers for layer-wise learning rates, as timm's models do.

        Args:
            coarse: Whether to count stages instead of blocks.

        Returns:
            A function from the name of a parameter to the number of its layer, from 0; infinity for the head.
        """
        matcher = getattr(self.backbone, "group_matcher", None)  # two timm models have none and count as one layer
        layers = group_parameters(self.backbone, matcher(coarse=coarse), reverse=True) if matcher else {}
        numbers = {f"backbone.{name}": float(layers.get(name, 0)) for name, _ in self.backbone.named_parameters()}
        return lambda name: numbers.get(name, math.inf)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that timm excludes from weight decay, such as position embeddings, by name."""
        excluded = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in excluded()}


@dataclass(frozen=True)
class DataConfig:
    """The preprocessing that a backbone's pretrained weights expect.

    Attributes:
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        crop_pct: Side of the central crop in evaluation, as a share in (0, 1] of the resized shorter side.
        interpolation: ``"bilinear"``, ``"bicubic"`` or another value of ``torchvision.transforms.InterpolationMode``.
        image_size: Side of the square images in pixels that the weights were trained on.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str
    image_size: int


def data_config(backbone: str | nn.Module) -> DataConfig:
    """Return the preprocessing of a backbone, from timm's data configuration.

    Args:
        backbone: A name, or a timm model.

    Raises:
        ModelError: If the name is unknown.

    Example:
        >>> data_config("resnet18").image_size
        224
    """
    if isinstance(backbone, str):
        config = resolve_model_data_config(None, pretrained_cfg=find_architecture(backbone).config)
    else:
        config = resolve_model_data_config(backbone)
    return DataConfig(
        tuple(map(float, config["mean"])),
        tuple(map(float, config["std"])),
        float(config["crop_pct"]),
        str(config["interpolation"]),
        int(config["input_size"][-1]),
    )


def build_backbone(
    name: str,
    *,
    weights: Weights | None = None,
    seed: int = 42,
    image_size: ImageSize | None = None,
    drop_path_rate: float = 0.0,
    in_chans: int = 3,
) -> nn.Module:
    """Build a timm backbone that maps normalized images (N, C, S, S) to features (N, D).

    Its random initial weights are a function of ``seed`` and the name: they do not depend on the number of classes or
    on the global generators, which are left unchanged.

    Args:
        name: Name of the backbone, see :func:`autotimm.models.find_architecture`.
        weights: Initial weights, see :func:`autotimm.models.resolve_weights`; ``None`` is random.
        seed: Root seed of the stream ``(init, backbone)``.
        image_size: Size of the images in pixels. ``None`` is the backbone's own size; a model that supports variable
            image sizes then accepts other sizes as well.
        drop_path_rate: Probability in [0, 1) of skipping a residual block (Huang et al., "Deep networks with stochastic
            depth", ECCV 2016).
        in_chans: Channels C of the images. Pretrained weights of the first layer are adapted as timm does: summed for
            one channel, otherwise repeated and scaled.

    Returns:
        The module. Its attribute ``num_features`` is D, as measured.

    Raises:
        ModelError: If the backbone is unknown, does not pool to a vector, or does not accept images of this size. The
            message suggests names or sizes.
        UsageError: If ``drop_path_rate`` is not in [0, 1), or the backbone does not support stochastic depth.
        WeightsError: If the weights do not fit.

    Example:
        >>> import torch
        >>> backbone = build_backbone("test_resnet", image_size=32)
        >>> backbone(torch.zeros(2, 3, 32, 32)).shape == (2, backbone.num_features)
        True
    """
    architecture, arguments, image_size = checked_arguments(name, image_size, drop_path_rate, in_chans)
    features = measure_features(architecture, arguments, image_size)
    backbone, _ = make_backbone(architecture, arguments, weights, seed)
    setattr(backbone, "num_features", features)  # noqa: B010 - timm's own value excludes the layers of its head
    return backbone


def build_classifier(
    backbone: str,
    num_classes: int,
    *,
    weights: Weights | None = None,
    seed: int = 42,
    image_size: ImageSize | None = None,
    head_dropout: float = 0.0,
    drop_path_rate: float = 0.0,
    in_chans: int = 3,
) -> PooledClassifier:
    """Build a classifier: a backbone from :func:`build_backbone`, dropout and a linear head.

    Args:
        backbone: Name of the backbone.
        num_classes: Number of logits.
        weights: Initial weights of the backbone; ``None`` is random.
        seed: Root seed of the streams ``(init, backbone)`` and ``(init, head)``.
        image_size: Size of the images in pixels; ``None`` is the backbone's own size.
        head_dropout: Probability in [0, 1) of dropping a feature before the head.
        drop_path_rate: Probability in [0, 1) of skipping a residual block.
        in_chans: Channels of the images.

    Raises:
        ModelError: See :func:`build_backbone`.
        UsageError: If an argument is out of range.
        WeightsError: If the weights do not fit.

    Example:
        >>> import torch
        >>> network = build_classifier("test_resnet", num_classes=3, image_size=32)
        >>> network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 3])
    """
    must, do = "in [0, 1)", "Give 0 to switch it off, or for example 0.2."
    require(0 <= number(head_dropout) < 1, "head_dropout", "a classifier", must, head_dropout, do)
    body = build_backbone(
        backbone, weights=weights, seed=seed, image_size=image_size, drop_path_rate=drop_path_rate, in_chans=in_chans
    )
    with scope(seed, "init", "head"):
        head = nn.Linear(int(body.num_features), num_classes)  # type: ignore[arg-type]  # an int, set by build_backbone
    return PooledClassifier(build_normalize(body, in_chans), body, head, head_dropout)


def build_normalize(backbone: nn.Module, in_chans: int = 3) -> Normalize:
    """The normalization that the weights of a timm model expect.

    Args:
        backbone: The model.
        in_chans: Channels of the images. One channel has the mean of the model's statistics; more repeat them in their
            order, as timm repeats the weights of the first layer.

    Example:
        >>> import timm
        >>> build_normalize(timm.create_model("test_resnet", in_chans=5), 5).mean.shape
        torch.Size([1, 5, 1, 1])
    """
    config = data_config(backbone)
    return Normalize(_of_channels(config.mean, in_chans), _of_channels(config.std, in_chans))


def _of_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if channels == len(values):
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[channel % len(values)] for channel in range(channels))


class PooledClassifier(BackboneNetwork):
    """Normalization, a backbone that pools to a vector, dropout and a linear head.

    Args:
        normalize: The first layer.
        backbone: Maps (N, C, H, W) to (N, D), where D is its ``num_features``.
        head: Maps (N, D) to (N, num_classes).
        head_dropout: Probability in [0, 1) of dropping a feature before the head.

    Shape:
        - images: (N, C, H, W), ``uint8`` in [0, 255] or float in [0, 1].
        - logits: (N, num_classes).
    """

    def __init__(self, normalize: Normalize, backbone: nn.Module, head: nn.Module, head_dropout: float = 0.0) -> None:
        super().__init__()
        self.normalize = normalize
        self.backbone = backbone
        self.dropout = nn.Dropout(head_dropout)
        self.head = head

    def features(self, images: Tensor) -> Tensor:
        """Compute the pooled features, (N, D)."""
        with deterministic_resizing(self.backbone, images):
            features: Tensor = self.backbone(self.normalize(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits, (N, num_classes)."""
        logits: Tensor = self.head(self.dropout(self.features(images)))
        return logits


def checked_arguments(
    name: str, image_size: ImageSize | None, drop_path_rate: float, in_chans: int = 3
) -> tuple[Architecture, dict[str, Any], ImageSize | None]:
    """Validate the arguments of :func:`build_backbone`, and choose those of ``timm.create_model``.

    Returns:
        The architecture, the arguments for timm, and the image size, which a checkpoint may hold as a list.
    """
    must, do = "in [0, 1)", "Give 0 to switch it off, or for example 0.1."
    require(0 <= number(drop_path_rate) < 1, "drop_path_rate", name, must, drop_path_rate, do)
    require(is_whole(in_chans, 1), "in_chans", name, "a whole number, 1 or more", in_chans, "Give 3 for RGB.")
    if image_size is not None:
        image_size = check_image_size(image_size, name)
    architecture = find_architecture(name)
    return architecture, fitting_arguments(architecture, image_size, drop_path_rate, in_chans), image_size


def make_backbone(
    architecture: Architecture,
    arguments: dict[str, Any],
    weights: Weights | None,
    seed: int,
    prune: Callable[[nn.Module], Sequence[int]] = lambda model: (),
) -> tuple[nn.Module, Sequence[int]]:
    """Create a backbone on the stream ``(init, backbone)`` and load its weights.

    Args:
        architecture: The architecture of the backbone.
        arguments: Arguments of ``timm.create_model``, see :func:`checked_arguments`.
        weights: Initial weights; ``None`` is random.
        seed: Root seed.
        prune: Removes unused layers in place, before weights are loaded.

    Returns:
        The backbone, and the result of ``prune``.

    Raises:
        WeightsError: If the weights do not fit.
    """
    weights = weights or Weights()
    # Not `torch_only`: a constructor may draw from NumPy or `random` as well.
    with scope(seed, "init", "backbone"):
        backbone = create(architecture, arguments)
        pruned = prune(backbone)
        if weights.file is not None:
            load_weights(backbone, Path(weights.file), architecture, arguments)
        else:
            undo_zero_init(backbone)
    return backbone, pruned


# LayerScale starts at 1e-6 to 1e-4, depending on the architecture. BEiT's factors of 0.1 are kept.
_LARGEST_LAYER_SCALE = 1e-3


@torch.no_grad()
def undo_zero_init(network: nn.Module) -> int:
    """Set the zero-initialized or tiny factors of residual branches to 1, in place.

    timm initializes the residual branches of many networks so that a block starts as the identity. In ResNets and
    similar networks, the last normalization of a branch has factors of 0 (Goyal et al., "Accurate, large minibatch
    SGD", 2017); in ConvNeXt, CaiT and others, a LayerScale has factors of about 1e-6 (Touvron et al., "Going deeper
    with image transformers", ICCV 2021). This helps training for hundreds of epochs on ImageNet. Adam, however, changes
    a factor by at most the learning rate per step, so that a branch needs 1,000 steps at 1e-3 to take effect. On a few
    hundred images, most trainings from scratch would end before that, with little more than the stem and the shortcuts
    trained.

    Do not apply it to pretrained weights.

    Args:
        network: A network with random weights.

    Returns:
        The number of parameters that were changed.

    Example:
        >>> import timm
        >>> [undo_zero_init(timm.create_model(name)) for name in ("resnet18", "test_convnext", "test_vit")]
        [8, 9, 0]
    """
    small = [
        parameter
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if not parameter.is_meta and (_is_zero_norm(module, name, parameter) or _is_layer_scale(name, parameter))
    ]
    for parameter in small:
        parameter.fill_(1)
    return len(small)


def _is_zero_norm(module: nn.Module, name: str, factors: Tensor) -> bool:
    # 1-d weights belong to normalizations. GlobalResponseNorm of ConvNeXt V2 adds its input, so 0 does not block it.
    return name == "weight" and factors.dim() == 1 and not factors.any() and not isinstance(module, GlobalResponseNorm)


def _is_layer_scale(name: str, factors: Tensor) -> bool:
    # Equal factors, one per channel: `gamma`, `gamma_1`, `ls1` or `scale`, of shape (C,) or (C, 1, 1).
    if name.endswith("bias") or factors.dim() == 0 or factors.numel() != max(factors.shape):
        return False
    first = factors.flatten()[0]
    return bool(0 < first <= _LARGEST_LAYER_SCALE and (factors == first).all())
