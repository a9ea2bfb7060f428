"""Decoders of segmentation-models-pytorch (smp) on the feature maps of a timm backbone.

smp is imported where a decoder is built: other tasks need none of its 80 modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from autotimm.errors import UsageError
from autotimm.models.layers.deterministic import replace_pooling

__all__ = ["DECODERS", "BuiltDecoder", "Decoder", "DecoderSpec", "decoded_channels"]


class BuiltDecoder(NamedTuple):
    """A decoder of smp, and the kernel size of the output layer that smp uses with it."""

    module: nn.Module
    kernel: int = 1


class DecoderSpec(NamedTuple):
    """How to build a decoder, and which feature maps it needs.

    Attributes:
        make: Takes the channels of the maps with strides 1, 2, 4, 8 and so on (0 for a missing map) and the width.
        finest: Smallest stride that it uses.
        dilated: Whether the largest stride is 16, by dilation of the backbone.
    """

    make: Callable[[list[int], int], BuiltDecoder]
    finest: int = 4
    dilated: bool = False


def _fpn(channels: list[int], width: int) -> BuiltDecoder:
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder

    return BuiltDecoder(FPNDecoder(channels, pyramid_channels=width, segmentation_channels=width // 2))


def _unet(channels: list[int], width: int) -> BuiltDecoder:
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

    widths = [max(16, width >> step) for step in range(len(channels) - 1)]
    return BuiltDecoder(UnetDecoder(channels, widths, n_blocks=len(widths)), kernel=3)


def _deeplab(channels: list[int], width: int) -> BuiltDecoder:
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder

    decoder = DeepLabV3PlusDecoder(
        channels, encoder_depth=5, out_channels=width, atrous_rates=(12, 24, 36), output_stride=16,
        aspp_separable=True, aspp_dropout=0.5,
    )  # fmt: skip
    return BuiltDecoder(decoder)


def _upernet(channels: list[int], width: int) -> BuiltDecoder:
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

    return BuiltDecoder(UPerNetDecoder(channels, decoder_channels=width))


def _segformer(channels: list[int], width: int) -> BuiltDecoder:
    from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder

    return BuiltDecoder(SegformerDecoder(channels, segmentation_channels=width))


DECODERS: dict[str, DecoderSpec] = {
    "fpn": DecoderSpec(_fpn),  # Kirillov et al., "Panoptic feature pyramid networks", CVPR 2019
    "unet": DecoderSpec(_unet, finest=2),  # Ronneberger et al., MICCAI 2015
    "deeplabv3plus": DecoderSpec(_deeplab, dilated=True),  # Chen et al., ECCV 2018
    "upernet": DecoderSpec(_upernet),  # Xiao et al., ECCV 2018
    "segformer": DecoderSpec(_segformer),  # Xie et al., NeurIPS 2021
}


class Decoder(nn.Module):
    """A decoder of smp on the feature maps of a timm backbone.

    smp's decoders expect the maps of smp's encoders: strides 1, 2, 4 and so on, beginning with the image. Where a
    backbone has no such map, the decoder reads only its size; it gets a map without channels.

    Args:
        spec: How to build the decoder.
        channels: Number of channels of each available map.
        strides: Stride of each available map in pixels, fine to coarse.
        width: Number of channels of the decoder.

    Shape:
        - maps: (N, C, H / stride, W / stride) each.
        - output: (N, D, h, w), with a stride of 1 for U-Net and of 4 for all others.

    Attributes:
        kernel: Kernel size of the output layer that smp uses with this decoder.
    """

    def __init__(self, spec: DecoderSpec, channels: Sequence[int], strides: Sequence[int], width: int) -> None:
        from segmentation_models_pytorch.base.initialization import initialize_decoder

        super().__init__()
        by_stride = dict(zip(strides, channels, strict=True))
        if spec.dilated:  # the last map takes the place of one of stride 32; the decoder ignores the one before it
            by_stride[2 * strides[-1]] = by_stride.pop(strides[-1])
        self._finest, self._dilated = strides[0], spec.dilated
        self._missing = tuple(stride for stride in (2,) if stride not in by_stride)
        decoder = spec.make([3, *(by_stride.get(2**step, 0) for step in range(1, 6))], width)
        self.body, self.kernel = decoder.module, decoder.kernel
        initialize_decoder(self.body)
        replace_pooling(self.body)
        _replace_pooled_norms(self.body)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode the feature maps."""
        finest = maps[0]
        height, width = (side * self._finest for side in finest.shape[-2:])
        number = finest.shape[0]  # not len(): it would fix the number of images of an exported graph
        empty = [finest.new_empty(number, 0, height, width)]
        empty += [finest.new_empty(number, 0, height // stride, width // stride) for stride in self._missing]
        gap = [maps[-1][:, :0]] if self._dilated else []
        decoded: Tensor = self.body([*empty, *maps[:-1], *gap, maps[-1]])
        return decoded


def _replace_pooled_norms(module: nn.Module) -> None:
    """Replace batch normalization by group normalization after global pooling, in place.

    With a single image per batch, there is one value per channel, and torch's batch normalization raises an error.
    """
    for branch in module.modules():
        if isinstance(branch, nn.Sequential) and isinstance(branch[0], nn.AdaptiveAvgPool2d):
            for name, child in list(branch.named_modules()):
                if isinstance(child, nn.BatchNorm2d):
                    parent, _, attribute = name.rpartition(".")
                    setattr(branch.get_submodule(parent), attribute, nn.GroupNorm(1, child.num_features))


def decoded_channels(decoder: nn.Module, channels: Sequence[int], strides: Sequence[int]) -> int:
    """Measure the number of output channels of a decoder, by running it on zeros.

    Args:
        decoder: The decoder.
        channels: Number of channels of each map.
        strides: Stride of each map in pixels, fine to coarse.

    Raises:
        UsageError: If the decoder does not return one tensor (N, D, h, w).
    """
    side = 2 * max(strides)
    training = decoder.training
    with torch.no_grad():
        maps = [torch.zeros(1, c, side // s, side // s) for c, s in zip(channels, strides, strict=True)]
        output: Any = decoder.eval()(maps)
    decoder.train(training)
    if not isinstance(output, Tensor) or output.ndim != 4 or len(output) != 1:
        got = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise UsageError(
            "The `arch` of a segmenter must create a module that takes a list of maps and returns one tensor "
            f"(N, D, h, w). Got {got} for maps with N = 1 instead. Return the last map only."
        )
    return output.shape[1]
