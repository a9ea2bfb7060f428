"""Transforms of images between decoder and network: torchvision v2 on ``uint8``.

Images stay ``uint8`` up to the network, which owns the normalization: a quarter of the memory between processes,
several times faster resizing, and color changes whose bits do not depend on the number of threads.

Records hold digests of transform objects: their classes and attributes must keep their names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from autotimm.errors import UsageError, require_choice, sentence
from autotimm.image_size import ImageSize, height_and_width
from autotimm.types import Sample

__all__ = [
    "AUGMENTATIONS",
    "Cover",
    "INTERPOLATIONS",
    "ImageTransform",
    "SampleTransform",
    "ScaleJitter",
    "changes_colors",
    "draws_from_torch_only",
    "eval_transform",
    "resize_masks",
    "train_transform",
    "without_colors",
]


AUGMENTATIONS = ("none", "light", "default", "strong", "randaugment", "trivialaugment", "autoaugment")
"""Names of the built-in augmentations, see :func:`train_transform`."""

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")
"""Names of the interpolations that torchvision supports for tensors."""

Transform: TypeAlias = Callable[[Any], Any]


def _mode(interpolation: str, owner: str) -> InterpolationMode:
    require_choice("interpolation", owner, interpolation, INTERPOLATIONS)
    return InterpolationMode(interpolation)


def _compose(parts: Sequence[Transform]) -> Transform:
    composed: Transform = v2.Compose(list(parts))
    return composed


class Cover(v2.Transform):
    """Resize an image to the smallest that covers height and width, times a factor; the aspect ratio is kept.

    For a square that is torchvision's ``Resize`` of the shorter side.

    Args:
        height: Height in pixels.
        width: Width in pixels.
        low: The smallest factor.
        high: The largest factor; a random number is drawn only if it is another one.
        interpolation: How pixels are resampled.
    """

    def __init__(self, height: int, width: int, low: float, high: float, interpolation: InterpolationMode) -> None:
        super().__init__()
        self.height, self.width, self.low, self.high, self.interpolation = height, width, low, high, interpolation

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Height and width of the resized image."""
        height, width = F.get_size(flat_inputs[0])
        factor = self.low if self.low == self.high else float(torch.empty(1).uniform_(self.low, self.high))
        scale = factor * max(self.height / height, self.width / width)
        return {"size": (max(self.height, int(height * scale)), max(self.width, int(width * scale)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image."""
        return F.resize(inpt, list(params["size"]), interpolation=self.interpolation, antialias=True)


def eval_transform(image_size: ImageSize, crop_pct: float = 0.875, interpolation: str = "bilinear") -> Transform:
    """Resize to the smallest image that covers ``image_size / crop_pct`` and take its center.

    Args:
        image_size: The side of a square in pixels, or height and width.
        crop_pct: Share of the resized image that the crop keeps of a side that fits, in (0, 1].
        interpolation: One of :data:`INTERPOLATIONS`.

    Returns:
        A callable from ``uint8`` (3, H, W) to ``uint8`` (3, height, width).

    Example:
        >>> eval_transform(32)(torch.zeros(3, 50, 70, dtype=torch.uint8)).shape
        torch.Size([3, 32, 32])
    """
    if isinstance(image_size, tuple):
        scale = 1 / crop_pct
        cover = Cover(*image_size, scale, scale, _mode(interpolation, "eval_transform"))
        return _compose([cover, v2.CenterCrop(image_size)])
    size = max(image_size, round(image_size / crop_pct))
    return _compose(
        [v2.Resize(size, _mode(interpolation, "eval_transform"), antialias=True), v2.CenterCrop(image_size)]
    )


def _crop(image_size: ImageSize, mode: InterpolationMode, scale: float) -> Transform:
    if isinstance(image_size, tuple):
        height, width = image_size
        ratio = (3 / 4 * width / height, 4 / 3 * width / height)
        rectangle: Transform = v2.RandomResizedCrop(
            image_size, scale=(scale, 1.0), ratio=ratio, interpolation=mode, antialias=True
        )
        return rectangle
    crop: Transform = v2.RandomResizedCrop(image_size, scale=(scale, 1.0), interpolation=mode, antialias=True)
    return crop


def train_transform(
    augmentation: str = "default", image_size: ImageSize = 224, interpolation: str = "bilinear",
    crop_pct: float = 0.875, channels: int = 3,
) -> Transform:  # fmt: skip
    """Build one of the augmentations.

    ===============  ==================================================================================================
    name             what it does
    ===============  ==================================================================================================
    none             as in evaluation
    light            random square of 90 to 100 % of the shorter side, never distorted or mirrored: safe for text
    default          random crop of 50 to 100 %, mirror, a little brightness, contrast and saturation
    strong           random crop of 20 to 100 %, mirror, strong color, grayscale, and a quarter of images partly erased
    randaugment      random crop of 35 to 100 %, mirror, RandAugment(2, 9) (Cubuk et al., arXiv:1909.13719)
    trivialaugment   the same with TrivialAugmentWide (Müller and Hutter, arXiv:2103.10158)
    autoaugment      the same with AutoAugment's ImageNet policy (Cubuk et al., arXiv:1805.09501)
    ===============  ==================================================================================================

    Args:
        augmentation: One of :data:`AUGMENTATIONS`.
        image_size: The side of a square in pixels, or height and width.
        interpolation: One of :data:`INTERPOLATIONS`.
        crop_pct: For ``none``, as in :func:`eval_transform`.
        channels: Channels of the images; colors are changed where there are 1 or 3.

    Returns:
        A callable from ``uint8`` (C, H, W) to ``uint8`` (C, height, width).

    Raises:
        UsageError: If a name is unknown.
    """
    require_choice("augmentation", "ImageDataModule", augmentation, AUGMENTATIONS)
    mode = _mode(interpolation, "ImageDataModule")
    mirror = v2.RandomHorizontalFlip()
    if augmentation == "none":
        return eval_transform(image_size, crop_pct, interpolation)
    if augmentation == "light":
        if isinstance(image_size, tuple):
            return _compose([Cover(*image_size, 1.0, 1 / 0.9, mode), v2.RandomCrop(image_size)])
        # RandomResizedCrop cannot take 80 % of an oblong image as a square, and then falls back to the center.
        sides = list(range(image_size, round(image_size / 0.9) + 1))
        return _compose([v2.RandomShortestSize(sides, interpolation=mode, antialias=True), v2.RandomCrop(image_size)])
    if augmentation == "default":
        color = [v2.ColorJitter(0.2, 0.2, 0.2)] if changes_colors(channels) else []
        return _compose([_crop(image_size, mode, 0.5), mirror, *color])
    if augmentation == "strong":
        color = [v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomGrayscale(0.1)] if changes_colors(channels) else []
        return _compose([_crop(image_size, mode, 0.2), mirror, *color, v2.RandomErasing(0.25)])
    if not changes_colors(channels):
        return _compose([_crop(image_size, mode, 0.35), mirror])
    policies = {
        "randaugment": v2.RandAugment,
        "trivialaugment": v2.TrivialAugmentWide,
        "autoaugment": v2.AutoAugment,
    }
    return _compose([_crop(image_size, mode, 0.35), mirror, policies[augmentation](interpolation=mode)])


def changes_colors(channels: int) -> bool:
    """Whether images of so many channels have colors to change: torchvision's transforms of colors take 1 or 3."""
    return channels in (1, 3)


def without_colors(augmentation: str, channels: int) -> list[str]:
    """A line on what an augmentation leaves out for images of so many channels; none if it leaves out nothing."""
    if changes_colors(channels) or augmentation == "none":
        return []
    return [f"The augmentation {augmentation!r} changes no colors: images of {channels} channels have none to change."]


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks (..., H, W) by nearest pixel centers, as plain tensors.

    torchvision's ``NEAREST`` rounds down instead, which shifts a mask by half a pixel against its image and boxes.
    """
    tensor = masks.as_subclass(Tensor)
    batch = tensor if tensor.ndim > 2 else tensor.unsqueeze(0)
    resized: Tensor = F.resize(batch, list(size), interpolation=InterpolationMode.NEAREST_EXACT)
    return resized if tensor.ndim > 2 else resized[0]


class ScaleJitter(v2.Transform):
    """Random scaling of an image with its boxes and masks, by the same random numbers as torchvision's transform.

    torchvision's ``ScaleJitter`` always resizes masks with ``NEAREST``, see :func:`resize_masks`, and gives images that
    are much longer than wide a side of 0 pixels.

    Args:
        size: What a scale of 1 fits the image into: the side of a square in pixels, or height and width.
        low: The smallest scale.
        high: The largest scale.
    """

    def __init__(self, size: ImageSize, low: float, high: float) -> None:
        super().__init__()
        height, width = height_and_width(size)
        # torchvision compares its first number with the width, whatever its documentation says.
        self.drawn = v2.ScaleJitter((width, height), scale_range=(low, high))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Height and width, at least one pixel each."""
        height, width = self.drawn.make_params(flat_inputs)["size"]
        return {"size": (max(1, height), max(1, width))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image, boxes or masks."""
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.wrap(resize_masks(inpt, params["size"]), like=inpt)
        return F.resize(inpt, list(params["size"]), antialias=True)


def draws_from_torch_only(transform: Any) -> bool:
    """Whether a transform consists of torchvision v2 and our own transforms, which use torch's generator only.

    A ``v2.Lambda``, a subclass of your own, a v1 transform or any other callable may use ``random`` or NumPy.

    Example:
        >>> draws_from_torch_only(v2.Compose([v2.RandomHorizontalFlip()]))
        True
        >>> draws_from_torch_only(v2.Compose([v2.RandomHorizontalFlip(), lambda image: image]))
        False
    """
    if type(transform).__module__.startswith("autotimm.data.transforms."):
        return True
    if not type(transform).__module__.startswith("torchvision.transforms.v2.") or isinstance(transform, v2.Lambda):
        return False
    # The containers of v2 keep plain lists, which nn.Module.modules() does not see.
    return all(draws_from_torch_only(part) for part in vars(transform).get("transforms", ()))


class SampleTransform(ABC):
    """A transform of whole samples, between table and batch.

    Attributes:
        transform: The user's or the built-in transform, for the record of a run.
        name: The argument it was given as, for errors.
        owner: The class it was given to, for errors.
        torch_only: Whether it uses no other global generator than torch's.
    """

    transform: Any
    name: str
    owner: str
    torch_only: bool

    @abstractmethod
    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample.

        Raises:
            UsageError: If the result is not a sample.
        """

    @abstractmethod
    def check(self, sample: Sample) -> None:
        """Check the first result, before worker processes start.

        Raises:
            UsageError: If the result cannot be used.
        """


class ImageTransform(SampleTransform):
    """A transform of the image alone, applied to a sample; targets of classification do not change with the pixels.

    Args:
        transform: A callable from a ``uint8`` ``tv_tensors.Image`` (C, H, W) to a tensor (C, h, w), ``uint8`` in
            [0, 255] or floating point in [0, 1].
        name: The argument it was given as, for errors.
        owner: The class it was given to, for errors.
        channels: Channels C of the images.
    """

    def __init__(self, transform: Transform, name: str, owner: str = "ImageDataModule", channels: int = 3) -> None:
        if not callable(transform):
            raise UsageError(sentence(name, owner, "callable", transform, "Give for example a torchvision v2.Compose."))
        self.transform, self.name, self.owner, self.channels = transform, name, owner, channels
        self.torch_only = draws_from_torch_only(transform)

    def __call__(self, sample: Sample) -> Sample:
        """Transform the image of a sample.

        Raises:
            UsageError: If the result is not an image.
        """
        image = self.transform(sample.image)
        if not isinstance(image, Tensor):
            self._refuse(type(image).__name__, "End them with a tensor, for example with v2.ToImage().")
        if image.ndim != 3 or image.shape[0] != self.channels or image.numel() == 0:
            self._refuse(f"a tensor of shape {tuple(image.shape)}", "Keep all channels, channels first.")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            self._refuse(
                f"a tensor of {image.dtype}", "Keep uint8, or convert with v2.ToDtype(torch.float32, scale=True)."
            )
        return Sample(image.as_subclass(Tensor), sample.target, sample.id)

    def check(self, sample: Sample) -> None:
        """Refuse floating-point values far outside of [0, 1]: the network would normalize a second time.

        Raises:
            UsageError: If values lie outside. Slightly outside is allowed, since bicubic resizing overshoots.
        """
        image = sample.image
        low, high = float(image.min()), float(image.max())
        if image.is_floating_point() and not (low >= -0.5 and high <= 1.5):
            self._refuse(f"values from {low:.3g} to {high:.3g}", "Leave out Normalize: the network normalizes.")

    def _refuse(self, got: str, do: str) -> None:
        raise UsageError(
            f"The `{self.name}` of {self.owner} must give a tensor ({self.channels}, height, width), uint8 in [0, 255] "
            f"or floating point in [0, 1]. Got {got} instead. {do}"
        )
