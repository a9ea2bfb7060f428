"""Networks that give every pixel a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from autotimm.errors import ModelError, UsageError, require, require_choice, sentence
from autotimm.models.backbone.feature_maps import DenseNetwork, Level, build_maps, simple_strides
from autotimm.models.backbone.pooled import data_config
from autotimm.models.backbone.weights import Weights
from autotimm.models.layers.feature_pyramid import SimplePyramid, check_width
from autotimm.models.layers.normalize import Normalize
from autotimm.models.segmentation.decoders import DECODERS, Decoder, Rule, decoded_channels
from autotimm.repro.streams import scope
from autotimm.serialization import import_object

__all__ = ["SEGMENTERS", "Segmenter", "build_segmenter"]

SEGMENTERS = tuple(DECODERS)
MakeDecoder = Callable[[Sequence[int], Sequence[int], int], nn.Module]


class Segmenter(DenseNetwork):
    """Normalization, a backbone with feature maps, a decoder and a layer that tells classes apart.

    Args:
        normalize: The network's first layer.
        backbone: A model of timm.
        levels: The maps that it gives.
        pyramid: Makes of one map those that the decoder takes; ``None`` where the backbone gives them.
        decoder: Takes maps, fine to coarse, and gives (N, D, h, w).
        head: Turns D channels into C.

    Shape:
        - images: (N, 3, H, W), ``uint8`` in [0, 255] or float in [0, 1].
        - logits: (N, C, H, W), resized bilinearly from what the decoder gives.
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
        """Logits of every pixel."""
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
    image_size: int | None = None,
    width: int = 256,
    drop_path_rate: float = 0.0,
) -> Segmenter:
    """Build a network for semantic segmentation around any timm model with feature maps.

    Args:
        arch: One of :data:`SEGMENTERS`, or a callable of your own, or the import path of one. It is given the channels
            and the strides of the maps, fine to coarse, and the width, and returns a module that takes the list of maps
            and gives one (N, D, h, w).
        backbone: Name of the backbone.
        num_classes: Number of classes C.
        weights: Where the backbone's weights come from; default random.
        seed: Root seed of the streams ``(init, backbone)``, ``(init, pyramid)``, ``(init, decoder)`` and
            ``(init, head)``.
        image_size: Side of the square images in pixels; ``None`` is the backbone's own.
        width: Channels of the decoder, a multiple of 64; 64 is small and fast.
        drop_path_rate: Probability in [0, 1) of skipping a residual block.

    Raises:
        ModelError: If the backbone is unknown or does not give the maps that the decoder needs.
        UsageError: If an argument is wrong.
        WeightsError: If the weights do not fit.

    Example:
        >>> import torch
        >>> network = build_segmenter("unet", "test_resnet", num_classes=3, image_size=64, width=64)
        >>> network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([2, 3, 64, 64])
    """
    owner = "a segmenter"
    whole = type(num_classes) is int and num_classes > 0
    require(whole, "num_classes", owner, "an integer of at least 1", num_classes, "Give the number of your classes.")
    check_width(width, owner)
    chosen = _chosen(arch)
    rule = chosen if isinstance(chosen, Rule) else None
    body, levels = build_maps(
        backbone, weights=weights, seed=seed, image_size=image_size, drop_path_rate=drop_path_rate,
        finest=rule.finest if rule else 2, output_stride=16 if rule and rule.dilated else None,
    )  # fmt: skip
    pyramid, channels, strides = None, [level.channels for level in levels], [level.stride for level in levels]
    if len(levels) == 1:
        strides = list(simple_strides(strides[0], backbone))
        with scope(seed, "init", "pyramid"):
            pyramid = SimplePyramid(channels[0], levels[0].stride, strides, width)
        channels = [width] * len(strides)
    if rule:
        _check_strides(str(arch), backbone, strides, [4, 8, 16] if rule.dilated else [4, 8, 16, 32])
    with scope(seed, "init", "decoder"):
        into = (channels, strides, width)
        decoder = Decoder(chosen, *into) if isinstance(chosen, Rule) else _own(chosen, *into)
        inner = decoded_channels(decoder, channels, strides)
    with scope(seed, "init", "head"):
        kernel = decoder.kernel if isinstance(decoder, Decoder) else 1
        head = nn.Conv2d(inner, num_classes, kernel, padding=kernel // 2)
        # LeCun et al., "Efficient backprop", 1998. Much smaller, as in mmsegmentation (0.01), suits its 160,000 steps:
        # Adam moves a weight by at most the rate per step, and rare classes would wait until the logits have grown.
        nn.init.normal_(head.weight, std=head.weight[0].numel() ** -0.5)
        nn.init.zeros_(head.bias)  # type: ignore[arg-type]  # there is one
    config = data_config(body)
    return Segmenter(Normalize(config.mean, config.std), body, levels, pyramid, decoder, head)


def _chosen(arch: str | MakeDecoder) -> Rule | MakeDecoder:
    """How to make the decoder. An import path is what checkpoints and the records of runs know of a callable."""
    if isinstance(arch, str) and arch in DECODERS:
        return DECODERS[arch]
    found: Any = arch
    if isinstance(arch, str) and "." in arch:
        try:
            found = import_object(arch)
        except ImportError as error:
            do = f"It cannot be imported ({error}). Check the path."
            raise UsageError(sentence("arch", "a segmenter", "a name, or the path of a callable", arch, do)) from None
    if not callable(found):
        require_choice("arch", "a segmenter", found, SEGMENTERS)
    make: MakeDecoder = found
    return make


def _own(make: MakeDecoder, channels: Sequence[int], strides: Sequence[int], width: int) -> nn.Module:
    made: Any = make(channels, strides, width)
    if isinstance(made, nn.Module):
        return made
    do = "See segmentation_models_pytorch.decoders for some."
    raise UsageError(sentence("arch", "a segmenter", "a name, or a callable that returns a module", made, do))


def _check_strides(arch: str, backbone: str, strides: Sequence[int], needed: list[int]) -> None:
    if [stride for stride in strides if stride > 2] != needed:
        shown, wanted = (", ".join(map(str, some)) for some in (strides, needed))
        raise ModelError(
            f"The `backbone` {backbone} must have feature maps of strides {wanted} for {arch}. Its strides are {shown}."
            " Choose another, such as 'resnet18'."
        )
