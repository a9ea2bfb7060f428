"""Which parameters can learn, told before anything is computed.

Feature maps of timm models, from fine to coarse, with strides that were measured and not believed.
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
from autotimm.models.backbone.architectures import Architecture
from autotimm.models.backbone.around_backbone import AroundBackbone
from autotimm.models.backbone.model_args import at_size
from autotimm.models.backbone.pooled import checked_arguments, make_backbone
from autotimm.models.backbone.weights import Weights
from autotimm.models.layers.deterministic import steady_resizing
from autotimm.models.layers.normalize import Normalize

__all__ = ["DenseNetwork", "Level", "build_maps", "feature_maps", "freeze", "idle_parameters", "simple_strides"]


def idle_parameters(model: nn.Module, outputs: Iterable[Tensor]) -> frozenset[str]:
    """Name the parameters that outputs do not depend on, and that no loss of them gives a gradient.

    Nothing is computed: autograd's graph is followed from the outputs back to the parameters, as
    ``DistributedDataParallel`` does for ``find_unused_parameters``.

    Args:
        model: A module in training mode. In evaluation timm's EfficientFormer and TinyViT read their attention biases
            from a cache that knows no gradient.
        outputs: What it gave while gradients were on, of any shape and on any device, the meta device included.

    Example:
        >>> import torch
        >>> pair = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2, bias=False)})
        >>> sorted(idle_parameters(pair, [pair["used"](torch.zeros(1, 2))]))
        ['idle.weight']
    """
    waiting: list[Node | None] = [one.grad_fn for one in outputs]
    seen: set[Node] = set()
    reached: set[int] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(id(getattr(node, "variable", None)))  # the leaves of the graph, and they alone, have it
        waiting += [before for before, _ in node.next_functions]
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) not in reached)


def freeze(model: nn.Module, names: Collection[str]) -> None:
    """Let parameters be as they are; names that the model does not have are passed over."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)


class Level(NamedTuple):
    """One feature map of a backbone.

    Attributes:
        number: Its place among the model's ``feature_info``.
        channels: How many it has.
        stride: Pixels of the image per cell, in both directions.
    """

    number: int
    channels: int
    stride: int


def feature_maps(backbone: nn.Module, numbers: Sequence[int], images: Tensor) -> list[Tensor]:
    """Run a model of timm for its feature maps alone, (N, C, H, W) each; also of models that work on (N, H, W, C).

    Args:
        backbone: A model of timm with ``forward_intermediates``.
        numbers: Which maps, by their place in ``feature_info``.
        images: Normalized images (N, 3, H, W).
    """
    run: Any = backbone.forward_intermediates
    maps: list[Tensor] = run(images, indices=list(numbers), norm=False, output_fmt="NCHW", intermediates_only=True)
    return maps


def build_maps(
    name: str,
    *,
    weights: Weights | None = None,
    seed: int = 42,
    image_size: int | None = None,
    drop_path_rate: float = 0.0,
    finest: int = 4,
    output_stride: int | None = None,
) -> tuple[nn.Module, tuple[Level, ...]]:
    """Build a timm model for its feature maps: what lies behind the last of them is taken away.

    What is left and leads to none of the maps is frozen. In an HRNet all maps are made side by side, the finest too,
    which detectors may not look at: its layers would never get a gradient, and training in several processes (DDP)
    refuses that. Frozen and not removed, they are read from files of weights and written as ever.

    Its first weights are, bit for bit, those of :func:`autotimm.models.build_backbone` with the same seed.

    Args:
        name: See :func:`autotimm.models.backbone.architectures.find_architecture`.
        weights: Where the weights come from; default random.
        seed: Root seed of the stream ``(init, backbone)``.
        image_size: Side in pixels of the square images; ``None`` is the backbone's own.
        drop_path_rate: Probability in [0, 1) of skipping a residual block.
        finest: The smallest stride that is of use. Finer maps are left out, unless fewer than two would remain.
        output_stride: Largest stride, kept to by dilation (Chen et al., "DeepLab", TPAMI 2018); ``None`` is the
            backbone's own.

    Returns:
        The model, and the levels that :func:`feature_maps` gives of it: the last map of each stride, each stride twice
        the one before. A plain ViT has one.

    Raises:
        ModelError: If the backbone is unknown, has no feature maps, has others than it says, or cannot take images of
            this size.
        UsageError: If an argument is wrong.
        WeightsError: If the weights do not fit.

    Example:
        >>> import torch
        >>> backbone, levels = build_maps("test_resnet", image_size=64)
        >>> [level.stride for level in levels]
        [4, 8, 16, 32]
        >>> maps = feature_maps(backbone, [level.number for level in levels], torch.zeros(1, 3, 64, 64))
        >>> [tuple(one.shape) for one in maps] == [(1, level.channels, *2 * (64 // level.stride,)) for level in levels]
        True
    """
    architecture, arguments = checked_arguments(name, image_size, drop_path_rate)
    if output_stride is not None:
        arguments["output_stride"] = output_stride
        _check_dilation(architecture, arguments, image_size)

    def look(model: nn.Module, images: Tensor) -> tuple[tuple[Level, ...], frozenset[str]]:
        levels = _of_use(_measured(name, model, images, min(finest, 4)), finest)
        return levels, _idle(model, levels, images)

    levels, idle = at_size(architecture, arguments, image_size, look)

    def prune(model: nn.Module) -> Sequence[int]:
        shorten: Any = model.prune_intermediate_layers
        numbers: Sequence[int] = shorten([level.number for level in levels], prune_norm=True, prune_head=True)
        freeze(model, idle)
        return numbers

    backbone, numbers = make_backbone(architecture, arguments, weights, seed, prune)
    return backbone, tuple(level._replace(number=number) for level, number in zip(levels, numbers, strict=True))


def simple_strides(stride: int, name: str) -> tuple[int, ...]:
    """The strides of the pyramid over a plain backbone: 4, 8, 16 and 32.

    Args:
        stride: That of the backbone's one feature map.
        name: The backbone, for the message.

    Raises:
        ModelError: If they cannot be reached by doubling and halving.

    Example:
        >>> simple_strides(16, "test_vit")
        (4, 8, 16, 32)
    """
    if stride not in (4, 8, 16, 32, 64):
        shown = ", ".join(f"{stride * factor:g}" for factor in (0.25, 0.5, 1, 2))
        raise ModelError(
            f"The `backbone` {name} must have patches whose size is a power of two, for a pyramid with strides of 4, "
            f"8, 16 and 32 pixels. Its patches are {stride} pixels, which gives {shown}. Choose one with patches of 8 "
            "or 16."
        )
    return 4, 8, 16, 32


def _check_dilation(architecture: Architecture, arguments: dict[str, Any], image_size: int | None) -> None:
    wanted, plain = arguments["output_stride"], {**arguments}
    del plain["output_stride"]
    name = architecture.name
    try:
        coarsest = at_size(architecture, arguments, image_size, lambda model, images: max(_said(model)))
    except (TypeError, AssertionError, NotImplementedError, ModelError):  # unknown to it, or not this number
        coarsest = 0
    if coarsest == wanted:
        return
    # What nothing else could be built on either is refused for that reason, before the others are recommended.
    at_size(architecture, plain, image_size, lambda model, images: _measured(name, model, images, 4))
    raise ModelError(
        f"The `backbone` {name} must be one that can be dilated to a stride of {wanted}. It cannot. Use arch='upernet' "
        "or 'fpn' with it, or a ResNet, RegNet, EfficientNet or ConvNeXt."
    )


def _said(model: nn.Module) -> list[Any]:
    """The strides of all maps, as the model says; nothing if it says nothing."""
    info: Any = getattr(model, "feature_info", None) or []
    return [entry["reduction"] for entry in getattr(info, "info", info)]


def _measured(name: str, model: nn.Module, images: Tensor, finest: int) -> tuple[Level, ...]:
    """Compare what the model says of its maps with those that it gives."""
    strides = _said(model)
    if not strides or not hasattr(model, "forward_intermediates"):
        raise ModelError(
            f"The `backbone` {name} must give feature maps. timm has none of it. Choose another, such as 'resnet18'."
        )
    last = {stride: index for index, stride in enumerate(strides) if stride >= finest}  # of equals the deepest
    chosen = sorted(last)
    doubling = all(coarse == 2 * fine for fine, coarse in pairwise(chosen))
    if not chosen or not doubling or (len(chosen) > 1 and chosen[0] not in (1, 2, 4, 8, 16)):
        raise ModelError(
            f"The `backbone` {name} must have feature maps with strides such as 4, 8, 16 and 32. It has "
            f"{', '.join(map(str, sorted(set(strides))))}. Choose another, such as 'resnet18'."
        )
    side, multiple = images.shape[-1], chosen[-1]
    if len(chosen) == 1:  # before the size is looked at: no size would help
        multiple = max(multiple, *simple_strides(multiple, name))
    if side % multiple:
        raise ValueError(f"its feature maps ask for a multiple of {multiple}")
    maps = feature_maps(model, [last[stride] for stride in chosen], images)
    for stride, one in zip(chosen, maps, strict=True):
        if one.ndim != 4 or one.shape[-1] != one.shape[-2] or one.shape[-1] * stride != side:
            shape = " x ".join(map(str, one.shape[2:]))
            raise ModelError(
                f"The `backbone` {name} must have a feature map of stride {stride}, as timm says. It gives one of "
                f"{shape} for an image of {side} x {side}. Choose another, such as 'resnet18'."
            )
    return tuple(Level(last[stride], one.shape[1], stride) for stride, one in zip(chosen, maps, strict=True))


def _of_use(levels: tuple[Level, ...], finest: int) -> tuple[Level, ...]:
    """The levels that a pyramid from ``finest`` on looks at: all of them, if it must make or refuse some."""
    kept = tuple(level for level in levels if level.stride >= finest)
    return kept if len(kept) > 1 else levels


def _idle(model: nn.Module, levels: Sequence[Level], images: Tensor) -> frozenset[str]:
    """Names of the parameters that lead to none of the maps."""
    with torch.enable_grad():
        return idle_parameters(model, feature_maps(model.train(), [level.number for level in levels], images))


class DenseNetwork(AroundBackbone, ABC):
    """Normalization and a backbone that gives feature maps.

    Args:
        normalize: The network's first layer.
        backbone: A model of timm, see :func:`autotimm.models.backbone.feature_maps.build_maps`.
        levels: The maps that it gives.

    Attributes:
        multiple: What the sides of images must be a multiple of.
    """

    def __init__(self, normalize: Normalize, backbone: nn.Module, levels: Sequence[Level], multiple: int) -> None:
        super().__init__()
        self.normalize = normalize
        self.backbone = backbone
        self.levels = tuple(levels)
        self.multiple = max(multiple, *(level.stride for level in levels))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps of (N, 3, H, W) images, fine to coarse, one per level.

        Raises:
            UsageError: If the sides of the images are not a multiple of what the maps ask for.
            ModelError: If a map has not the size that its stride says: everything after it would be in wrong places.
        """
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            below = max(1, min(height, width) // self.multiple) * self.multiple
            raise UsageError(
                f"The images must have sides that are multiples of {self.multiple}. They are {height} x {width}. "
                f"Give the data image_size={below} or {below + self.multiple}."
            )
        with steady_resizing(self.backbone, images):
            found = feature_maps(self.backbone, [level.number for level in self.levels], self.normalize(images))
        for level, one in zip(self.levels, found, strict=True):
            expected = (len(images), level.channels, height // level.stride, width // level.stride)
            if tuple(one.shape) != expected:
                raise ModelError(
                    f"The feature map of stride {level.stride} must have the shape {expected}. Got "
                    f"{tuple(one.shape)} instead. Choose another `backbone`, or its own `image_size`."
                )
        return found
