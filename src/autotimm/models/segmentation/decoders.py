"""Decoders of segmentation-models-pytorch over feature maps of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from autotimm.errors import UsageError
from autotimm.models.layers.deterministic import replace_pooling

__all__ = ["DECODERS", "Decoder", "Made", "Rule", "decoded_channels"]


class Made(NamedTuple):
    """A decoder of smp, and the side of the kernel of the layer that smp puts behind it."""

    module: nn.Module
    kernel: int = 1


class Rule(NamedTuple):
    """How to make a decoder, and what it asks of the backbone.

    Attributes:
        make: Takes the channels of maps of strides 1, 2, 4, 8 ... (0 for none) and the width.
        finest: The smallest stride that it makes use of.
        dilated: Whether strides end at 16, by dilation.
    """

    make: Callable[[list[int], int], Made]
    finest: int = 4
    dilated: bool = False


def _fpn(channels: list[int], width: int) -> Made:
    return Made(FPNDecoder(channels, pyramid_channels=width, segmentation_channels=width // 2))


def _unet(channels: list[int], width: int) -> Made:
    steps = [max(16, width >> step) for step in range(len(channels) - 1)]
    return Made(UnetDecoder(channels, steps, n_blocks=len(steps)), kernel=3)


def _deeplab(channels: list[int], width: int) -> Made:
    decoder = DeepLabV3PlusDecoder(
        channels, encoder_depth=5, out_channels=width, atrous_rates=(12, 24, 36), output_stride=16,
        aspp_separable=True, aspp_dropout=0.5,
    )  # fmt: skip
    return Made(decoder)


def _upernet(channels: list[int], width: int) -> Made:
    return Made(UPerNetDecoder(channels, decoder_channels=width))


def _segformer(channels: list[int], width: int) -> Made:
    return Made(SegformerDecoder(channels, segmentation_channels=width))


DECODERS: dict[str, Rule] = {
    "fpn": Rule(_fpn),  # Kirillov et al., "Panoptic feature pyramid networks", CVPR 2019
    "unet": Rule(_unet, finest=2),  # Ronneberger et al., MICCAI 2015
    "deeplabv3plus": Rule(_deeplab, dilated=True),  # Chen et al., ECCV 2018
    "upernet": Rule(_upernet),  # Xiao et al., ECCV 2018
    "segformer": Rule(_segformer),  # Xie et al., NeurIPS 2021
}


class Decoder(nn.Module):
    """A decoder of smp, fed as smp's own encoders would.

    It expects maps of strides 1, 2, 4 ... of which the first is the image. Only their sizes count where we have none:
    then it gets maps without channels.

    Args:
        rule: How to make it.
        channels: Of the maps that there are.
        strides: Of the maps, fine to coarse.
        width: Of the decoder.

    Shape:
        - maps: (N, C, H / stride, W / stride) each.
        - output: (N, D, h, w), with a stride of 1 for U-Net and of 4 for all others.

    Attributes:
        kernel: Side of the kernel of the layer that smp puts behind this decoder.
    """

    def __init__(self, rule: Rule, channels: Sequence[int], strides: Sequence[int], width: int) -> None:
        super().__init__()
        known = dict(zip(strides, channels, strict=True))
        if rule.dilated:  # the last map stands where one of stride 32 would; nobody looks at the one before it
            known[2 * strides[-1]] = known.pop(strides[-1])
        self._finest, self._dilated = strides[0], rule.dilated
        self._missing = tuple(stride for stride in (2,) if stride not in known)
        made = rule.make([3, *(known.get(2**step, 0) for step in range(1, 6))], width)
        self.body, self.kernel = made.module, made.kernel
        initialize_decoder(self.body)
        replace_pooling(self.body)
        _spare_pooled(self.body)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode."""
        finest = maps[0]
        height, width = (side * self._finest for side in finest.shape[-2:])
        full = [finest.new_empty(len(finest), 0, height, width)]
        full += [finest.new_empty(len(finest), 0, height // stride, width // stride) for stride in self._missing]
        gap = [maps[-1][:, :0]] if self._dilated else []
        decoded: Tensor = self.body([*full, *maps[:-1], *gap, maps[-1]])
        return decoded


def _spare_pooled(module: nn.Module) -> None:
    """Give branches that pool an image to one value a normalization that a batch of one image can have too.

    The statistics of a batch normalization would be of one value there, which torch refuses.
    """
    for branch in module.modules():
        if isinstance(branch, nn.Sequential) and isinstance(branch[0], nn.AdaptiveAvgPool2d):
            for name, child in list(branch.named_modules()):
                if isinstance(child, nn.BatchNorm2d):
                    owner, _, last = name.rpartition(".")
                    setattr(branch.get_submodule(owner), last, nn.GroupNorm(1, child.num_features))


def decoded_channels(decoder: nn.Module, channels: Sequence[int], strides: Sequence[int]) -> int:
    """Measure how many channels a decoder gives, with maps of zeros.

    Raises:
        UsageError: If it gives no map.
    """
    side = 2 * max(strides)
    training = decoder.training
    with torch.no_grad():
        maps = [torch.zeros(1, c, side // s, side // s) for c, s in zip(channels, strides, strict=True)]
        found: Any = decoder.eval()(maps)
    decoder.train(training)
    if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != 1:
        got = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise UsageError(
            "The `arch` of a segmenter must make a module that takes a list of maps and gives one tensor (N, D, h, w). "
            f"Got {got} for maps of N = 1 instead. Let it return its last map alone."
        )
    return found.shape[1]
