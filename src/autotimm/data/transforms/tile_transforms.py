"""Tiles of large images: random crops at full resolution in training, and whole images in evaluation, which tasks cut.

Records hold digests of transform objects: their classes and attributes must keep their names.
"""

from __future__ import annotations

from math import ceil, floor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from autotimm.constants import IGNORE_INDEX
from autotimm.data.transforms.image_transforms import SampleTransform, changes_colors, resize_masks
from autotimm.data.transforms.spatial_transforms import (
    GRAY,
    SPATIAL_AUGMENTATIONS,
    Pair,
    PairTransform,
    photometric,
    truth_of,
)  # fmt: skip
from autotimm.errors import require_choice
from autotimm.image_size import ImageSize, height_and_width
from autotimm.types import Placement, Sample, Tiling

__all__ = ["TileCrop", "WholeImage", "tile_augmentation"]

_AROUND_OBJECT = 0.75  # of the crops; the others lie anywhere, so that a background is learned as well
_VISIBLE = 0.25  # share of an object, or of a tile, from which on an object in a crop is one
_SCALES = {"none": (1.0, 1.0), "light": (0.9, 1.1), "default": (0.8, 1.25), "strong": (0.5, 2.0)}


def tile_augmentation(name: str, tile: ImageSize, owner: str, outside: int = 0, channels: int = 3) -> PairTransform:
    """Build one of the augmentations for tiles: those of whole images, at full resolution.

    =========  ========================================================================================================
    name       what it does
    =========  ========================================================================================================
    none       a random tile
    light      a tile at 90 to 110 % of its size, a little brightness and contrast; never mirrored
    default    a tile at 80 to 125 %, mirrored, with brightness, contrast and saturation
    strong     a tile at 50 to 200 %, mirrored, with the photometric distortion of SSD (Liu et al., ECCV 2016)
    =========  ========================================================================================================

    Args:
        name: One of :data:`autotimm.data.transforms.spatial_transforms.SPATIAL_AUGMENTATIONS`.
        tile: Size of a tile in pixels.
        owner: The class it was given to, for errors.
        outside: The value of masks beyond a small image: 0, or ``IGNORE_INDEX`` for class indices.
        channels: Channels of the images; colors are changed where there are 1 or 3.

    Returns:
        A callable from an image and its target to the same, of the size of a tile.

    Raises:
        UsageError: If the name is unknown.
    """
    require_choice("augmentation", owner, name, SPATIAL_AUGMENTATIONS)
    parts: list[Any] = [TileCrop(tile, *_SCALES[name], outside)]
    if name in ("default", "strong"):
        parts.append(v2.RandomHorizontalFlip())
    if name != "none" and changes_colors(channels):
        parts.append(photometric(name))
    composed: PairTransform = v2.Compose(parts)
    return composed


class TileCrop(nn.Module):
    """Take a random crop of an image with its target, at a random scale near that of the image.

    Three crops of four contain an object, or for class indices a pixel of a class: both drawn with equal chances among
    those of the image. Where the object lies in the crop is random. Others lie anywhere. Of an object that a crop cuts,
    the visible part is kept if it is a quarter of the object, or of the tile. Images that are smaller are padded.

    All random numbers come from torch's generator.

    Args:
        tile: Size of a crop in pixels, the side of a square, or height and width.
        low: The smallest scale.
        high: The largest scale.
        outside: The value of masks beyond a small image.
    """

    def __init__(self, tile: ImageSize, low: float = 1.0, high: float = 1.0, outside: int = 0) -> None:
        super().__init__()
        self.tile, self.low, self.high, self.outside = tile, low, high, outside

    def forward(self, image: Tensor, target: Any) -> Pair:
        """Crop an image (3, H, W) and its target, see :class:`autotimm.types.Sample`."""
        height, width = image.shape[-2:]
        crop = self._crop(height, width, target)
        if not isinstance(target, dict):
            return crop.of(image, GRAY), None if target is None else crop.of(target, self.outside)
        keep = _visible(target["boxes"].as_subclass(Tensor), *crop.window)
        kept = {name: (value.as_subclass(Tensor)[keep], value) for name, value in target.items()}
        moved = {
            name: crop.of(tv_tensors.wrap(rows, like=value), 0) if isinstance(value, tv_tensors.TVTensor) else rows
            for name, (rows, value) in kept.items()
        }
        return crop.of(image, GRAY), moved

    def _crop(self, height: int, width: int, target: Any) -> _Crop:
        """Draw a crop."""
        rows, columns = height_and_width(self.tile)
        scale = self.low if self.low == self.high else float(torch.empty(1).uniform_(self.low, self.high))
        size = min(height, max(1, round(rows / scale))), min(width, max(1, round(columns / scale)))
        box = _around(target) if float(torch.rand(())) < _AROUND_OBJECT else None
        top = _first(box and (box[1], box[3]), size[0], height)
        left = _first(box and (box[0], box[2]), size[1], width)
        shown = min(rows, max(1, round(size[0] * scale))), min(columns, max(1, round(size[1] * scale)))
        above, before = (rows - shown[0]) // 2, (columns - shown[1]) // 2
        return _Crop((top, left, *size), shown, (before, above, columns - shown[1] - before, rows - shown[0] - above))


class _Crop(NamedTuple):
    """A part of an image, the size that it gets, and the border that it gets around it.

    Attributes:
        window: First row, first column, height and width in pixels of the image.
        shown: Height and width in the crop.
        padding: Columns and rows that are added at the left, the top, the right and the bottom.
    """

    window: tuple[int, int, int, int]
    shown: tuple[int, int]
    padding: tuple[int, int, int, int]

    def of(self, pixels: Tensor, fill: int) -> Tensor:
        """The part of an image, of boxes or of masks; ``fill`` is the value of the border."""
        if isinstance(pixels, tv_tensors.Mask) and not pixels.numel():  # of no object
            left, top, right, bottom = self.padding
            empty: Tensor = tv_tensors.Mask(
                torch.zeros(0, top + self.shown[0] + bottom, left + self.shown[1] + right, dtype=pixels.dtype)
            )
            return empty
        cropped: Tensor = F.crop(pixels, *self.window)
        if self.window[2:] != self.shown:
            if isinstance(pixels, tv_tensors.Mask):
                cropped = tv_tensors.wrap(resize_masks(cropped, self.shown), like=pixels)
            else:
                cropped = F.resize(cropped, list(self.shown), antialias=True)
        padded: Tensor = F.pad(cropped, list(self.padding), fill=fill) if any(self.padding) else cropped
        return padded


def _first(interval: tuple[float, float] | None, length: int, limit: int) -> int:
    """A random first row or column of a crop: one that shows an interval, or only it where it is longer; or any."""
    low, high = (0, limit - length) if interval is None else (ceil(interval[1]) - length, floor(interval[0]))
    least, most = sorted((low, high))
    least, most = max(0, min(least, limit - length)), max(0, min(most, limit - length))
    return int(torch.randint(least, most + 1, ()))


def _around(target: Any) -> tuple[float, float, float, float] | None:
    """The box of a random object, or a random pixel of a random class; ``None`` if there is none."""
    if target is None:
        return None
    if isinstance(target, dict):
        boxes = target["boxes"].as_subclass(Tensor)
        learned = (~target["crowd"]).nonzero().flatten() if "crowd" in target else torch.arange(len(boxes))
        if not len(learned):
            return None
        x1, y1, x2, y2 = boxes[learned[int(torch.randint(len(learned), ()))]].tolist()
        return x1, y1, x2, y2
    classes = target.as_subclass(Tensor)
    counts = torch.bincount(classes.flatten(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    present = counts.nonzero().flatten()
    if not len(present):
        return None
    label = int(present[int(torch.randint(len(present), ()))])
    return _pixel(classes == label, int(torch.randint(int(counts[label]), ())))


def _pixel(mask: Tensor, number: int) -> tuple[float, float, float, float]:
    """The box of one of the pixels that are set (H, W), by its number in the order of rows."""
    of_rows = mask.sum(1).cumsum(0)
    row = int(torch.searchsorted(of_rows, number, right=True))
    before = int(of_rows[row - 1]) if row else 0
    column = int(mask[row].nonzero().flatten()[number - before])
    return float(column), float(row), float(column + 1), float(row + 1)


def _visible(boxes: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Which boxes (K, 4) a crop shows enough of to be learned."""
    low, high = boxes.new_tensor([left, top]), boxes.new_tensor([left + width, top + height])
    shown = (torch.minimum(boxes[:, 2:], high) - torch.maximum(boxes[:, :2], low)).clamp(min=0).prod(1)
    return (shown >= _VISIBLE * (boxes[:, 2:] - boxes[:, :2]).prod(1)) & (shown > 0) | (
        shown >= _VISIBLE * height * width
    )


class WholeImage(SampleTransform):
    """The transform of evaluation with tiles: the image and its target as they are, and how the task cuts them.

    Args:
        tiling: How images are cut.
        name: The argument it stands for, for errors.
        owner: The class it was given to, for errors.
    """

    def __init__(self, tiling: Tiling, name: str, owner: str) -> None:
        self.transform, self.tiling, self.name, self.owner, self.torch_only = None, tiling, name, owner, True

    def __call__(self, sample: Sample) -> Sample:
        """The sample with plain tensors, its placement and its truth."""
        height, width = sample.image.shape[-2:]
        target = sample.target
        if isinstance(target, dict):
            target = {name: value.as_subclass(Tensor) for name, value in target.items() if name != "masks"}
        elif target is not None:
            target = target.as_subclass(Tensor)
        place = Placement(height, width, 0, 0, height, width)
        return Sample(sample.image.as_subclass(Tensor), target, sample.id, place, truth_of(sample), self.tiling)

    def check(self, sample: Sample) -> None:
        """Nothing can be wrong."""
