"""Feature maps of timm backbones, and the base class of the networks that use them.

A map of stride 8 has one cell for every 8 x 8 pixels. The strides that timm declares are compared with the maps that a
model returns, since a wrong stride would shift every prediction.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from autotimm.errors import ModelError, UsageError
from autotimm.image_size import ImageSize, read_image_size
from autotimm.models.backbone.architectures import Architecture
from autotimm.models.backbone.model_args import at_size, remembered
from autotimm.models.backbone.pooled import BackboneNetwork, checked_arguments, make_backbone
from autotimm.models.backbone.weights import Weights
from autotimm.models.layers.deterministic import deterministic_resizing
from autotimm.models.layers.normalize import Normalize

__all__ = [
    "DenseNetwork",
    "Level",
    "build_feature_backbone",
    "feature_maps",
    "freeze",
    "simple_strides",
    "unused_parameters",
]


class Level(NamedTuple):
    """One feature map of a backbone.

    Attributes:
        number: Index of the map in the model's ``feature_info``.
        channels: Number of channels.
        stride: Pixels of the image per cell, in both dimensions.
    """

    number: int
    channels: int
    stride: int


def build_feature_backbone(
    name: str,
    *,
    weights: Weights | None = None,
    seed: int = 42,
    image_size: ImageSize | None = None,
    drop_path_rate: float = 0.0,
    finest: int = 4,
    output_stride: int | None = None,
    in_chans: int = 3,
) -> tuple[nn.Module, tuple[Level, ...]]:
    """Build a timm model for its feature maps. The layers after the last map are removed.

    Remaining parameters that contribute to none of the maps are frozen: an HRNet, for example, computes all maps in
    parallel, also the finest one, which a detector may not use. Parameters without a gradient would make
    ``DistributedDataParallel`` raise an error. They stay in the model, so that weights files load and save as usual.

    The initial weights are, bit for bit, those of :func:`autotimm.models.build_backbone` with the same seed.

    Args:
        name: Name of the backbone, see :func:`autotimm.models.find_architecture`.
        weights: Initial weights; ``None`` is random.
        seed: Root seed of the stream ``(init, backbone)``.
        image_size: Size of the images in pixels; ``None`` is the backbone's own size.
        drop_path_rate: Probability in [0, 1) of skipping a residual block.
        finest: Smallest stride that is needed. Finer maps are left out, unless fewer than two maps would remain.
        output_stride: Largest stride, obtained by dilation (Chen et al., "DeepLab", TPAMI 2018); ``None`` is the
            backbone's own.
        in_chans: Channels of the images.

    Returns:
        The model, and the levels to request from :func:`feature_maps`: the last map of each stride, with doubling
        strides. A plain ViT has one level.

    Raises:
        ModelError: If the backbone is unknown, has no feature maps or other ones than timm declares, or does not
            support images of this size.
        UsageError: If an argument is out of range.
        WeightsError: If the weights do not fit.

    Example:
        >>> import torch
        >>> backbone, levels = build_feature_backbone("test_resnet", image_size=64)
        >>> [level.stride for level in levels]
        [4, 8, 16, 32]
        >>> maps = feature_maps(backbone, [level.number for level in levels], torch.zeros(1, 3, 64, 64))
        >>> [tuple(map.shape) for map in maps] == [(1, level.channels, *2 * (64 // level.stride,)) for level in levels]
        True
    """
    architecture, arguments, image_size = checked_arguments(name, image_size, drop_path_rate, in_chans)
    if output_stride is not None:
        arguments["output_stride"] = output_stride
        _check_dilation(architecture, arguments, image_size)

    def inspect_levels(model: nn.Module, images: Tensor) -> tuple[tuple[Level, ...], frozenset[str]]:
        levels = _needed_levels(_measured_levels(name, model, images, min(finest, 4)), finest)
        return levels, _unused_by_levels(model, levels, images)

    levels, unused = remembered(
        f"levels from stride {finest}", architecture, arguments, image_size,
        lambda: at_size(architecture, arguments, image_size, inspect_levels),
    )  # fmt: skip

    def prune(model: nn.Module) -> Sequence[int]:
        prune_layers: Any = model.prune_intermediate_layers
        numbers: Sequence[int] = prune_layers([level.number for level in levels], prune_norm=True, prune_head=True)
        freeze(model, unused)
        return numbers

    backbone, numbers = make_backbone(architecture, arguments, weights, seed, prune)
    return backbone, tuple(level._replace(number=number) for level, number in zip(levels, numbers, strict=True))


def feature_maps(backbone: nn.Module, numbers: Sequence[int], images: Tensor) -> list[Tensor]:
    """Compute feature maps of a timm model in (N, C, H, W) layout, also for models that work on (N, H, W, C).

    Args:
        backbone: A timm model with ``forward_intermediates``.
        numbers: Indices of the maps in ``feature_info``.
        images: Normalized images (N, 3, H, W).

    Returns:
        One map (N, C, H / stride, W / stride) per index.
    """
    forward: Any = backbone.forward_intermediates
    maps: list[Tensor] = forward(images, indices=list(numbers), norm=False, output_fmt="NCHW", intermediates_only=True)
    return maps


class DenseNetwork(BackboneNetwork, ABC):
    """Base class of networks on the feature maps of a backbone: detectors and segmenters.

    Args:
        normalize: The first layer.
        backbone: A timm model, see :func:`build_feature_backbone`.
        levels: The feature maps to compute.
        multiple: Number of pixels of which the sides of the images must be multiples, beside the strides.

    Attributes:
        levels: The feature maps.
        multiple: Number of pixels of which the sides of the images must be multiples.
    """

    def __init__(self, normalize: Normalize, backbone: nn.Module, levels: Sequence[Level], multiple: int) -> None:
        super().__init__()
        self.normalize = normalize
        self.backbone = backbone
        self.levels = tuple(levels)
        self.multiple = max(multiple, *(level.stride for level in levels))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Compute the feature maps of (N, 3, H, W) images, fine to coarse, one per level.

        Raises:
            UsageError: If the sides of the images are not multiples of ``multiple``.
            ModelError: If a map has another size than its stride implies, which would shift all predictions.
        """
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            below = read_image_size([max(1, side // self.multiple) * self.multiple for side in (height, width)])
            above = read_image_size([(side // self.multiple + 1) * self.multiple for side in (height, width)])
            raise UsageError(
                f"The images must have sides that are multiples of {self.multiple}. They are {height} x {width}. "
                f"Give the data image_size={below} or {above}."
            )
        with deterministic_resizing(self.backbone, images):
            maps = feature_maps(self.backbone, [level.number for level in self.levels], self.normalize(images))
        for level, level_map in zip(self.levels, maps, strict=True):
            expected = (images.shape[0], level.channels, height // level.stride, width // level.stride)
            if tuple(level_map.shape) != expected:
                raise ModelError(
                    f"The feature map of stride {level.stride} must have the shape {expected}. Got "
                    f"{tuple(level_map.shape)} instead. Choose another `backbone`, or its own `image_size`."
                )
        return maps


def simple_strides(stride: int, name: str) -> tuple[int, ...]:
    """Return the strides of the simple pyramid over a plain backbone: 4, 8, 16 and 32.

    Args:
        stride: Stride of the backbone's single feature map, its patch size in pixels.
        name: Name of the backbone, for the message.

    Raises:
        ModelError: If these strides cannot be obtained by doubling and halving.

    Example:
        >>> simple_strides(16, "test_vit")
        (4, 8, 16, 32)
    """
    if stride not in (4, 8, 16, 32, 64):
        strides = ", ".join(f"{stride * factor:g}" for factor in (0.25, 0.5, 1, 2))
        raise ModelError(
            f"The `backbone` {name} must have a patch size that is a power of two, for a pyramid with strides of 4, 8, "
            f"16 and 32 pixels. Its patch size of {stride} pixels would give {strides}. Choose one with a patch size "
            "of 8 or 16."
        )
    return 4, 8, 16, 32


def unused_parameters(model: nn.Module, outputs: Iterable[Tensor]) -> frozenset[str]:
    """Return the names of the parameters that do not contribute to the outputs and would get no gradient.

    Nothing is computed: the autograd graph is traversed from the outputs to the parameters, as
    ``DistributedDataParallel`` does for ``find_unused_parameters``.

    Args:
        model: A module in training mode. In evaluation mode, timm's EfficientFormer and TinyViT read their attention
            biases from a cache without gradients.
        outputs: Outputs of the module, computed with gradients enabled; of any shape and on any device, including the
            meta device.

    Example:
        >>> import torch
        >>> pair = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2, bias=False)})
        >>> sorted(unused_parameters(pair, [pair["used"](torch.zeros(1, 2))]))
        ['unused.weight']
    """
    pending: list[Node | None] = [output.grad_fn for output in outputs]
    visited: set[Node] = set()
    used: set[int] = set()
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        used.add(id(getattr(node, "variable", None)))  # only leaves of the graph have this attribute
        pending += [previous for previous, _ in node.next_functions]
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) not in used)


def freeze(model: nn.Module, names: Collection[str]) -> None:
    """Disable gradients for the named parameters. Names that the model does not have are ignored."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)


def _unused_by_levels(model: nn.Module, levels: Sequence[Level], images: Tensor) -> frozenset[str]:
    with torch.enable_grad():
        return unused_parameters(model, feature_maps(model.train(), [level.number for level in levels], images))


def _needed_levels(levels: tuple[Level, ...], finest: int) -> tuple[Level, ...]:
    """Return the levels from stride ``finest`` on, or all if fewer than two remain: the pyramid then handles them."""
    needed = tuple(level for level in levels if level.stride >= finest)
    return needed if len(needed) > 1 else levels


def _declared_strides(model: nn.Module) -> list[Any]:
    """Return the strides in the model's ``feature_info``; an empty list if it has none."""
    info: Any = getattr(model, "feature_info", None) or []
    return [entry["reduction"] for entry in getattr(info, "info", info)]


def _measured_levels(name: str, model: nn.Module, images: Tensor, finest: int) -> tuple[Level, ...]:
    """Return the levels from stride ``finest`` on, after comparing the declared strides with the actual maps."""
    strides = _declared_strides(model)
    if not strides or not hasattr(model, "forward_intermediates"):
        raise ModelError(
            f"The `backbone` {name} must provide feature maps. timm has none for it. Choose another, such as "
            "'resnet18'."
        )
    deepest = {stride: index for index, stride in enumerate(strides) if stride >= finest}  # later maps overwrite
    selected = sorted(deepest)
    doubling = all(coarse == 2 * fine for fine, coarse in pairwise(selected))
    if not selected or not doubling or (len(selected) > 1 and selected[0] not in (1, 2, 4, 8, 16)):
        raise ModelError(
            f"The `backbone` {name} must have feature maps with strides such as 4, 8, 16 and 32. It has "
            f"{', '.join(map(str, sorted(set(strides))))}. Choose another, such as 'resnet18'."
        )
    (height, width), multiple = images.shape[-2:], selected[-1]
    if len(selected) == 1:  # before the check of the image size, since another size would not help
        multiple = max(multiple, *simple_strides(multiple, name))
    if height % multiple or width % multiple:
        raise ValueError(f"its feature maps require a multiple of {multiple}")
    maps = feature_maps(model, [deepest[stride] for stride in selected], images)
    for stride, level_map in zip(selected, maps, strict=True):
        if level_map.ndim != 4 or tuple(side * stride for side in level_map.shape[2:]) != (height, width):
            shape = " x ".join(map(str, level_map.shape[2:]))
            raise ModelError(
                f"The `backbone` {name} must have a feature map of stride {stride}, as timm declares. It returns one "
                f"of {shape} for an image of {height} x {width}. Choose another, such as 'resnet18'."
            )
    return tuple(
        Level(deepest[stride], level_map.shape[1], stride) for stride, level_map in zip(selected, maps, strict=True)
    )


def _check_dilation(architecture: Architecture, arguments: dict[str, Any], image_size: ImageSize | None) -> None:
    """Raise a ModelError unless the model with the argument ``output_stride`` really has that largest stride."""
    output_stride, undilated = arguments["output_stride"], {**arguments}
    del undilated["output_stride"]
    name = architecture.name
    try:
        coarsest = at_size(architecture, arguments, image_size, lambda model, images: max(_declared_strides(model)))
    except (TypeError, AssertionError, NotImplementedError, ModelError):  # not an argument, or not this value
        coarsest = 0
    if coarsest == output_stride:
        return
    # A backbone that no other decoder could use either is rejected for that reason first.
    at_size(architecture, undilated, image_size, lambda model, images: _measured_levels(name, model, images, 4))
    raise ModelError(
        f"The `backbone` {name} cannot be dilated to a stride of {output_stride}. Use arch='upernet' or 'fpn' with it, "
        "or a ResNet, RegNet, EfficientNet or ConvNeXt."
    )
