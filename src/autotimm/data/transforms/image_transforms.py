"""Transforms of images between decoder and network: torchvision v2 on ``uint8``.

Images stay ``uint8`` up to the network, which owns the normalization: a quarter of the memory between processes,
several times faster resizing, and color changes whose bits do not depend on the number of threads.

Records hold digests of transform objects: their classes and attributes must keep their names.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from autotimm.data.transforms.colors import Colors
from autotimm.errors import UsageError, require_choice, sentence
from autotimm.image_size import ImageSize, height_and_width
from autotimm.types import Placement, Sample

__all__ = [
    "AUGMENTATIONS",
    "Cover",
    "INTERPOLATIONS",
    "ImageTransform",
    "Part",
    "RandomView",
    "SampleTransform",
    "ScaleJitter",
    "changes_colors",
    "draws_from_torch_only",
    "eval_placement",
    "eval_transform",
    "pixels_needed",
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


def eval_placement(height: int, width: int, image_size: ImageSize, crop_pct: float = 0.875) -> Placement:
    """Where :func:`eval_transform` puts an image: beyond the input by what the crop cuts off.

    Args:
        height: Height of the image in pixels.
        width: Its width.
        image_size: As for :func:`eval_transform`.
        crop_pct: As for :func:`eval_transform`.

    Example:
        >>> eval_placement(50, 70, 32, 1.0)
        Placement(height=50, width=70, top=0, left=-6, shown_height=32, shown_width=44)
    """
    rows, columns = height_and_width(image_size)
    if isinstance(image_size, tuple):
        scale = max(rows / height, columns / width) / crop_pct
        tall, wide = max(rows, int(height * scale)), max(columns, int(width * scale))
    else:
        short = max(image_size, round(image_size / crop_pct))
        long = int(short * max(height, width) / min(height, width))  # rounded down, as torchvision does
        tall, wide = (short, long) if height <= width else (long, short)
    return Placement(height, width, -round((tall - rows) / 2), -round((wide - columns) / 2), tall, wide)


# Shares of an image that the smallest random crop takes: of its area; for `light` of its shorter side.
_SMALLEST_LIGHT, _SMALLEST_DEFAULT, _SMALLEST_STRONG, _SMALLEST_POLICY = 0.9, 0.5, 0.2, 0.35
_RATIO = (3 / 4, 4 / 3)  # of width and height of a crop, beside that of the result
_TRIES = 10


class Part(NamedTuple):
    """A part of an image, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


class RandomView:
    """A random part of an image, resized to one size, and half of the time mirrored.

    The parts are those of torchvision's ``RandomResizedCrop``: the area and the logarithm of the aspect ratio are
    uniform, and an image in which none of 10 draws fits gives its center. All random numbers come from one call.

    Args:
        size: The side of a square in pixels, or height and width.
        smallest: The smallest part, as a share of the area.
        interpolation: How pixels are resampled.
    """

    def __init__(self, size: ImageSize, smallest: float, interpolation: InterpolationMode) -> None:
        self.height, self.width = height_and_width(size)
        self.smallest, self.interpolation = smallest, interpolation

    def __call__(self, image: Tensor) -> Tensor:
        """Show a part of an image (C, H, W)."""
        part = self.draw(*image.shape[-2:])
        rows, columns = slice(part.top, part.top + part.height), slice(part.left, part.left + part.width)
        shown = image.as_subclass(Tensor)[..., rows, columns]
        view: Tensor = F.resize_image(
            shown, [self.height, self.width], interpolation=self.interpolation, antialias=True
        )
        return view.flip(-1) if part.mirrored else view

    def draw(self, height: int, width: int) -> Part:
        """Draw a part of an image of that size."""
        *numbers, down, right, mirror = torch.rand(2 * _TRIES + 3).tolist()
        tall, wide = self._size(height, width, numbers)
        if tall:
            return Part(int(down * (height - tall + 1)), int(right * (width - wide + 1)), tall, wide, mirror < 0.5)
        tall, wide = self._center(height, width)
        return Part((height - tall) // 2, (width - wide) // 2, tall, wide, mirror < 0.5)

    def _ratios(self) -> tuple[float, float]:
        """The least and the greatest ratio of width and height."""
        return _RATIO[0] * self.width / self.height, _RATIO[1] * self.width / self.height

    def _size(self, height: int, width: int, numbers: list[float]) -> tuple[int, int]:
        """Height and width of the first part that fits; zeros if none does."""
        low, high = (math.log(ratio) for ratio in self._ratios())
        for share, position in zip(numbers[::2], numbers[1::2], strict=True):
            area = height * width * (self.smallest + (1 - self.smallest) * share)
            ratio = math.exp(low + (high - low) * position)
            tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < tall <= height and 0 < wide <= width:
                return tall, wide
        return 0, 0

    def _center(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the largest part with a ratio that is allowed."""
        low, high = self._ratios()
        if width < low * height:
            return max(1, round(width / low)), width
        if width > high * height:
            return height, max(1, round(height * high))
        return height, width


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
    if augmentation == "none":
        return eval_transform(image_size, crop_pct, interpolation)
    if augmentation == "light":
        if isinstance(image_size, tuple):
            return _compose([Cover(*image_size, 1.0, 1 / _SMALLEST_LIGHT, mode), v2.RandomCrop(image_size)])
        # RandomResizedCrop cannot take 80 % of an oblong image as a square, and then falls back to the center.
        sides = list(range(image_size, round(image_size / _SMALLEST_LIGHT) + 1))
        return _compose([v2.RandomShortestSize(sides, interpolation=mode, antialias=True), v2.RandomCrop(image_size)])
    smallest = {"default": _SMALLEST_DEFAULT, "strong": _SMALLEST_STRONG}.get(augmentation, _SMALLEST_POLICY)
    parts: list[Transform] = [RandomView(image_size, smallest, mode)]
    if changes_colors(channels):
        parts.extend(_colors(augmentation, mode))
    if augmentation == "strong":
        parts.append(v2.RandomErasing(0.25))
    return _compose(parts)


def _colors(augmentation: str, mode: InterpolationMode) -> list[Transform]:
    if augmentation == "default":
        return [Colors(0.2, 0.2, 0.2)]
    if augmentation == "strong":
        return [Colors(0.4, 0.4, 0.4), v2.ColorJitter(hue=0.1), v2.RandomGrayscale(0.1)]
    policies = {
        "randaugment": v2.RandAugment,
        "trivialaugment": v2.TrivialAugmentWide,
        "autoaugment": v2.AutoAugment,
    }
    return [policies[augmentation](interpolation=mode)]


def pixels_needed(image_size: ImageSize, crop_pct: float, augmentation: str = "none") -> tuple[int, int]:
    """Height and width that an image must have so that no crop of it is ever enlarged.

    It depends on what a transform may draw, and never on what it draws: the pixels of a file are always the same.

    Args:
        image_size: The side of a square in pixels, or height and width.
        crop_pct: As in :func:`eval_transform`.
        augmentation: That of :func:`train_transform`; ``none`` is evaluation.

    Example:
        >>> pixels_needed(224, 0.875), pixels_needed(224, 0.875, "default"), pixels_needed(224, 0.875, "strong")
        ((256, 256), (366, 366), (579, 579))
    """
    shares = {"default": _SMALLEST_DEFAULT, "strong": _SMALLEST_STRONG}
    if augmentation == "none":
        factor = 1 / crop_pct
    elif augmentation == "light":
        factor = 1 / _SMALLEST_LIGHT
    else:  # a crop of the smallest area whose sides differ most
        factor = (shares.get(augmentation, _SMALLEST_POLICY) * _RATIO[0]) ** -0.5
    height, width = height_and_width(image_size)
    return math.ceil(height * factor), math.ceil(width * factor)


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
