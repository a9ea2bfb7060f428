"""Transforms of images with boxes or masks: torchvision v2, then a letterbox.

The letterbox keeps the aspect ratio: the image becomes as large as fits into the network's input, the rest is gray.
Objects are not distorted, and predictions can be mapped back to the pixels of the original image.

Records hold digests of transform objects: their classes and attributes must keep their names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from autotimm.constants import IGNORE_INDEX
from autotimm.data.annotations.outlines import RunLengths
from autotimm.data.transforms.colors import Colors
from autotimm.data.transforms.image_transforms import (
    SampleTransform,
    ScaleJitter,
    changes_colors,
    draws_from_torch_only,
    resize_masks,
)  # fmt: skip
from autotimm.errors import UsageError, require_choice, sentence
from autotimm.image_size import ImageSize, height_and_width
from autotimm.types import Placement, Sample

__all__ = [
    "GRAY", "SPATIAL_AUGMENTATIONS", "Pair", "PairTransform", "SpatialTransform", "photometric", "place",
    "spatial_augmentation", "truth_of",
]  # fmt: skip

SPATIAL_AUGMENTATIONS = ("none", "light", "default", "strong")
"""Names of the built-in augmentations, see :func:`spatial_augmentation`."""

GRAY = 114
"""The fill of a letterbox: near the mean of photographs, so that the border does not stand out."""

_USE_V2 = "Use torchvision's v2 transforms, without normalization: the network does that."

Pair: TypeAlias = tuple[Any, Any]
PairTransform: TypeAlias = Callable[[Any, Any], Pair]


def spatial_augmentation(
    name: str, image_size: ImageSize, owner: str, outside: int = 0, channels: int = 3
) -> PairTransform | None:
    """Build one of the augmentations for images with boxes or masks.

    =========  ========================================================================================================
    name       what it does
    =========  ========================================================================================================
    none       nothing but the letterbox
    light      the image at 90 to 110 % of its size, a little brightness and contrast; never mirrored: safe for text
    default    mirror, 80 to 125 % with a random crop, brightness, contrast and saturation
    strong     mirror, large scale jitter of 10 to 200 % (Ghiasi et al., "Simple copy-paste", CVPR 2021) with a random
               crop, and the photometric distortion of SSD (Liu et al., ECCV 2016)
    =========  ========================================================================================================

    Args:
        name: One of :data:`SPATIAL_AUGMENTATIONS`.
        image_size: Size of the network's input in pixels, which the scale is relative to.
        owner: The class it was given to, for errors.
        outside: The value of masks where a crop reaches beyond the image: 0, or ``IGNORE_INDEX`` for class indices.
        channels: Channels of the images; colors are changed where there are 1 or 3.

    Returns:
        A callable from an image and its target to the same, or ``None`` for nothing.

    Raises:
        UsageError: If the name is unknown.
    """
    require_choice("augmentation", owner, name, SPATIAL_AUGMENTATIONS)
    if name == "none":
        return None
    low, high = {"light": (0.9, 1.1), "default": (0.8, 1.25), "strong": (0.1, 2.0)}[name]
    fill = {tv_tensors.Image: GRAY, tv_tensors.Mask: outside, "others": 0}
    parts: list[Any] = [] if name == "light" else [v2.RandomHorizontalFlip()]
    parts.append(ScaleJitter(image_size, low, high))
    parts.append(
        v2.RandomCrop(height_and_width(image_size), pad_if_needed=True, fill=fill)
    )  # pads images that the jitter made too small
    if changes_colors(channels):
        parts.append(photometric(name))
    composed: PairTransform = v2.Compose(parts)
    return composed


def photometric(name: str) -> v2.Transform:
    """The changes of color of an augmentation, ``light``, ``default`` or ``strong``."""
    colors = {"light": Colors(0.1, 0.1), "default": Colors(0.2, 0.2, 0.2)}
    return colors.get(name) or v2.RandomPhotometricDistort()


def place(height: int, width: int, image_size: ImageSize) -> Placement:
    """The placement of an image in the center of the network's input, as large as fits.

    Example:
        >>> place(100, 200, 64)
        Placement(height=100, width=200, top=16, left=0, shown_height=32, shown_width=64)
    """
    if isinstance(image_size, int):
        scale = image_size / max(height, width)
    else:
        scale = min(image_size[0] / height, image_size[1] / width)
    rows, columns = height_and_width(image_size)
    shown_height, shown_width = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (rows - shown_height) // 2, (columns - shown_width) // 2
    return Placement(height, width, top, left, shown_height, shown_width)


class SpatialTransform(SampleTransform):
    """A transform of image and target together, followed by the letterbox, applied to a sample.

    Class indices of the border are ``IGNORE_INDEX``. In training, objects outside of the image or under one pixel are
    dropped: nothing can be learned from them. In evaluation all are kept, as a missed object is missed however small.

    Args:
        transform: A callable from a ``uint8`` ``tv_tensors.Image`` (3, H, W) and its target (see
            :class:`autotimm.types.Sample`) to the same at any size; ``None`` for the letterbox alone.
        image_size: Size of the network's input in pixels: the side of a square, or height and width.
        name: The argument it was given as, for errors.
        owner: The class it was given to, for errors.
        keep_all: Whether no object is dropped, as in evaluation.
        channels: Channels of the images.
    """

    def __init__(
        self, transform: PairTransform | None, image_size: ImageSize, name: str, owner: str, keep_all: bool = False,
        channels: int = 3,
    ) -> None:  # fmt: skip
        if transform is not None and not callable(transform):
            raise UsageError(sentence(name, owner, "callable", transform, "Give for example a torchvision v2.Compose."))
        self.transform, self.image_size, self.name, self.owner = transform, image_size, name, owner
        self.keep_all, self.channels = keep_all, channels
        self.torch_only = transform is None or draws_from_torch_only(transform)

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample: ``uint8`` (3, h, w), its target as plain tensors, and the placement of the original.

        Raises:
            UsageError: If the result is not an image and a target.
        """
        image, target = sample.image, sample.target
        if self.transform is not None:
            image, target = self._augmented(tv_tensors.Image(image), target)
        height, width = image.shape[-2:]
        placement = place(height, width, self.image_size)
        image = self._boxed(image, placement, GRAY)
        if isinstance(target, dict):
            target = self._objects(target, placement)
        elif target is not None:
            target = self._boxed(target, placement, IGNORE_INDEX).to(torch.int64)
        if self.transform is not None:  # after a crop, predictions cannot be mapped back
            return Sample(image, target, sample.id)
        return Sample(image, target, sample.id, placement, truth_of(sample))

    def check(self, sample: Sample) -> None:
        """Refuse a transform that dropped boxes and kept their labels, or vice versa."""
        sizes = {name: len(value) for name, value in sample.target.items()} if isinstance(sample.target, dict) else {}
        if len(set(sizes.values())) > 1:
            got = ", ".join(f"{size} {name}" for name, size in sizes.items())
            self._refuse(f"{got} of one image", "Let v2.SanitizeBoundingBoxes have a `labels_getter` for all of them.")

    def _augmented(self, image: Any, target: Any) -> Pair:
        assert self.transform is not None
        result = self.transform(image, target)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            self._refuse(f"a {type(result).__name__}", _USE_V2)
        image, target = result
        if (
            not isinstance(image, Tensor)
            or image.dtype != torch.uint8
            or image.ndim != 3
            or len(image) != self.channels
        ):
            dtype = f" of {image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else ""
            self._refuse(f"a {type(image).__name__}{dtype} as the image", _USE_V2)
        return image, target

    def _refuse(self, got: str, do: str) -> None:
        raise UsageError(
            f"The `{self.name}` of {self.owner} must take and give (image, target), the image as uint8 of shape "
            f"({self.channels}, height, width). Got {got} instead. {do}"
        )

    def _boxed(self, image: Tensor, at: Placement, fill: int) -> Tensor:
        """Resize and pad an image (3, H, W) or masks (..., H, W)."""
        is_mask = fill != GRAY
        tensor, size = image.as_subclass(Tensor), (at.shown_height, at.shown_width)
        layers = tensor if tensor.ndim == 3 else tensor.unsqueeze(0)
        if layers.shape[-2:] != size:
            layers = resize_masks(layers, size) if is_mask else F.resize(layers, list(size), antialias=True)
        height, width = height_and_width(self.image_size)
        bottom, right = height - at.top - at.shown_height, width - at.left - at.shown_width
        layers = F.pad(layers, [at.left, at.top, right, bottom], fill=fill)
        result: Tensor = layers if tensor.ndim == 3 else layers[0]
        return result

    def _objects(self, target: dict[str, Any], at: Placement) -> dict[str, Tensor]:
        """Boxes and masks in pixels of the input, without objects that are outside of it or under a pixel."""
        boxes = target["boxes"].as_subclass(Tensor).to(torch.float32)
        scale = boxes.new_tensor([at.shown_width / at.width, at.shown_height / at.height] * 2)
        low = boxes.new_tensor([at.left, at.top] * 2)
        high = low + boxes.new_tensor([at.shown_width, at.shown_height] * 2)
        moved = {name: value.as_subclass(Tensor) for name, value in target.items()}
        moved["boxes"] = torch.minimum(torch.maximum(boxes * scale + low, low), high)
        if "masks" in moved:
            masks = moved["masks"]
            moved["masks"] = (
                self._boxed(masks, at, 0) if len(masks) else masks.new_zeros(0, *height_and_width(self.image_size))
            )
        if self.keep_all:
            return moved
        keep = ((moved["boxes"][:, 2:] - moved["boxes"][:, :2]) >= 1).all(1)
        if "masks" in moved and len(keep):
            keep &= moved["masks"].flatten(1).bool().any(1)
        return {name: value[keep] for name, value in moved.items()}


def truth_of(sample: Sample) -> Any:
    """The truth of an untransformed sample, with masks as run lengths: those of pixels would not fit into memory."""
    if not isinstance(sample.target, dict):
        return None if sample.target is None else sample.target.as_subclass(Tensor)
    target = {name: value.as_subclass(Tensor) for name, value in sample.target.items()}
    truth = {"boxes": target["boxes"], "labels": target["labels"], **(sample.truth or {})}
    if "masks" in target:
        truth["masks"] = [RunLengths.of_mask(mask.numpy()).as_pair() for mask in target["masks"]]
    return truth
