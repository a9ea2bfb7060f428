"""Networks for semantic segmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from autotimm.errors import ModelError, UsageError, require, require_choice, sentence
from autotimm.image_size import ImageSize
from autotimm.models.backbone.feature_maps import DenseNetwork, Level, build_feature_backbone, simple_strides
from autotimm.models.backbone.pooled import build_normalize
from autotimm.models.backbone.weights import Weights
from autotimm.models.layers.feature_pyramid import SimplePyramid, check_width
from autotimm.models.layers.normalize import Normalize
from autotimm.models.segmentation.decoders import DECODERS, Decoder, DecoderSpec, decoded_channels
from autotimm.records.imports import Kind, import_named
from autotimm.repro.streams import scope

__all__ = ["SEGMENTERS", "Segmenter", "build_segmenter"]

SEGMENTERS = tuple(DECODERS)
MakeDecoder = Callable[[Sequence[int], Sequence[int], int], nn.Module]
DECODER = Kind(
    "`arch`",
    "a subclass of torch.nn.Module, or of a function that returns one",
    base=nn.Module,
    libraries=("autotimm.models.segmentation", "segmentation_models_pytorch.decoders"),
    function=lambda function: True,  # it is called with channels, strides and a width, and what it returns is checked
)


class Segmenter(DenseNetwork):
    """Normalization, a backbone with feature maps, a decoder and a convolution that classifies each cell.

    Args:
        normalize: The first layer.
        backbone: A timm model.
        levels: The feature maps to compute.
        pyramid: Computes the decoder's maps from the single map of a plain ViT; ``None`` for hierarchical backbones.
        decoder: Maps a list of feature maps, fine to coarse, to (N, D, h, w).
        head: Maps D channels to C.

    Shape:
        - images: (N, 3, H, W), or with other channels, ``uint8`` in [0, 255] or float in [0, 1].
        - logits: float32 (N, C, H, W), resized bilinearly from (N, C, h, w).
    """

    def __init__(
        self,
        normalize: Normalize,
        backbone: nn.Module,
        levels: Sequence[Level],
        pyramid: SimplePyramid | None,
        decoder: nn.Module,
        head: nn.Module,
    ) -> None:
        super().__init__(normalize, backbone, levels, 32 if pyramid is not None else 1)
        self.pyramid = pyramid
        self.decoder = decoder
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of each pixel."""
        maps = self.maps(images)
        logits: Tensor = self.head(self.decoder(maps if self.pyramid is None else self.pyramid(maps))).float()
        size = images.shape[-2:]
        if logits.shape[-2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def build_segmenter(
    arch: str | MakeDecoder,
    backbone: str,
    num_classes: int,
    *,
    weights: Weights | None = None,
    seed: int = 42,
    image_size: ImageSize | None = None,
    width: int = 256,
    drop_path_rate: float = 0.0,
    in_chans: int = 3,
) -> Segmenter:
    """Build a network for semantic segmentation on any timm model with feature maps.

    Args:
        arch: One of :data:`SEGMENTERS`, or a callable of your own or its import path. The callable takes the channels
            of the feature maps, their strides, fine to coarse, and ``width``; it returns a module that takes the list
            of maps and returns one tensor (N, D, h, w).
        backbone: Name of the backbone.
        num_classes: Number of classes C.
        weights: Initial weights of the backbone; ``None`` is random.
        seed: Root seed of the streams ``(init, backbone)``, ``(init, pyramid)``, ``(init, decoder)`` and
            ``(init, head)``.
        image_size: Size of the images in pixels; ``None`` is the backbone's own size.
        width: Number of channels of the decoder, a multiple of 64; 64 is small and fast.
        drop_path_rate: Probability in [0, 1) of skipping a residual block.
        in_chans: Channels of the images.

    Raises:
        ModelError: If the backbone is unknown, or does not provide the feature maps that the decoder needs.
        UsageError: If an argument is out of range, or ``arch`` is not a decoder.
        WeightsError: If the weights do not fit.

    Example:
        >>> import torch
        >>> network = build_segmenter("unet", "test_resnet", num_classes=3, image_size=64, width=64)
        >>> network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([2, 3, 64, 64])
    """
    owner = "a segmenter"
    valid = type(num_classes) is int and num_classes > 0
    require(valid, "num_classes", owner, "an integer of at least 1", num_classes, "Give the number of your classes.")
    check_width(width, owner)
    factory = _find_decoder(arch)
    spec = factory if isinstance(factory, DecoderSpec) else None
    body, levels = build_feature_backbone(
        backbone, weights=weights, seed=seed, image_size=image_size, drop_path_rate=drop_path_rate,
        finest=spec.finest if spec else 2, output_stride=16 if spec and spec.dilated else None,
        in_chans=in_chans,
    )  # fmt: skip
    pyramid, channels, strides = None, [level.channels for level in levels], [level.stride for level in levels]
    if len(levels) == 1:
        strides = list(simple_strides(strides[0], backbone))
        with scope(seed, "init", "pyramid"):
            pyramid = SimplePyramid(channels[0], levels[0].stride, strides, width)
        channels = [width] * len(strides)
    if spec:
        _check_strides(str(arch), backbone, strides, [4, 8, 16] if spec.dilated else [4, 8, 16, 32])
    with scope(seed, "init", "decoder"):
        maps = (channels, strides, width)
        decoder = Decoder(factory, *maps) if isinstance(factory, DecoderSpec) else _custom_decoder(factory, *maps)
        decoder_channels = decoded_channels(decoder, channels, strides)
    with scope(seed, "init", "head"):
        kernel = decoder.kernel if isinstance(decoder, Decoder) else 1
        head = nn.Conv2d(decoder_channels, num_classes, kernel, padding=kernel // 2)
        # LeCun et al., "Efficient backprop", 1998. The 0.01 of mmsegmentation suits its 160,000 steps: Adam changes a
        # weight by at most the learning rate per step, and rare classes would be learned only after the logits grew.
        nn.init.normal_(head.weight, std=head.weight[0].numel() ** -0.5)
        nn.init.zeros_(head.bias)  # type: ignore[arg-type]  # not None, since bias=True
    return Segmenter(build_normalize(body, in_chans), body, levels, pyramid, decoder, head)


def _find_decoder(arch: str | MakeDecoder) -> DecoderSpec | MakeDecoder:
    """Look up a decoder by name or import path. Checkpoints and run records store a callable as its import path."""
    if isinstance(arch, str) and arch in DECODERS:
        return DECODERS[arch]
    factory: Any = arch
    if isinstance(arch, str) and "." in arch:
        factory = import_named(arch, DECODER)
    if not callable(factory):
        require_choice("arch", "a segmenter", factory, SEGMENTERS)
    make_decoder: MakeDecoder = factory
    return make_decoder


def _custom_decoder(
    make_decoder: MakeDecoder, channels: Sequence[int], strides: Sequence[int], width: int
) -> nn.Module:
    decoder: Any = make_decoder(channels, strides, width)
    if isinstance(decoder, nn.Module):
        return decoder
    do = "See segmentation_models_pytorch.decoders for examples."
    raise UsageError(sentence("arch", "a segmenter", "a name, or a callable that returns a module", decoder, do))


def _check_strides(arch: str, backbone: str, strides: Sequence[int], needed: list[int]) -> None:
    if [stride for stride in strides if stride > 2] != needed:
        available, required = (", ".join(map(str, values)) for values in (strides, needed))
        raise ModelError(
            f"The `backbone` {backbone} must have feature maps of strides {required} for {arch}. Its strides are "
            f"{available}. Choose another, such as 'resnet18'."
        )
