"""Large images inside an exported graph: cut into the tiles of ``autotimm.tasks.tiles``, all in one batch, and merged.

How many tiles an image has is a number of the graph, so that one graph takes images of any height and width.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from autotimm.data.transforms.spatial_transforms import GRAY
from autotimm.export.object_heads import Found, Limits, best
from autotimm.tasks.tiles import MARGIN, tile_step
from autotimm.types import Tiling

__all__ = ["Grid", "objects_of_tiles", "sums_of_tiles", "tile_grid"]

_CLASSES_AT_ONCE = 16  # moved aside from each other: with more of them, 32 bits would not resolve a pixel of the image


class _Axis(NamedTuple):
    """The tiles along one axis of an image.

    Attributes:
        length: Pixels of the image.
        tile: Pixels of a tile.
        step: Pixels from one tile to the next.
        number: How many tiles there are.
        starts: The first pixel of each, ``int64``; the last tile ends with the image.
        margin: Pixels of a tile before the image, a scalar; 0 unless the image is smaller than a tile.
    """

    length: int
    tile: int
    step: int
    number: int
    starts: Tensor
    margin: Tensor

    def cells(self) -> tuple[Tensor, Tensor]:
        """The pixel of the image for each pixel of the tiles, and whether there is one."""
        pixels = (self.starts[:, None] + torch.arange(self.tile) - self.margin).flatten()
        return pixels.clamp(0, self.length - 1), (pixels >= 0) & (pixels < self.length)

    def summed(self, values: Tensor) -> Tensor:
        """Add what the tiles say of each pixel: (..., tiles times ``tile``) to (..., length)."""
        pixels = torch.arange(self.length)
        latest = (self.starts <= pixels[:, None]).sum(1) - 1
        total = torch.zeros((), dtype=values.dtype)
        for before in range(ceil(self.tile / self.step) + 1):  # one more than the step tells, since the last is moved
            number = (latest - before).clamp(min=0)
            cell = pixels - self.starts[number]
            here = (latest >= before) & (cell < self.tile)
            at = number * self.tile + (cell + self.margin).clamp(max=self.tile - 1)
            total = total + values.index_select(-1, at) * here
        return total


class Grid(NamedTuple):
    """The tiles of N images of one size, row by row, T of them in all.

    Attributes:
        images: ``uint8`` (N, 3, H, W).
        down: Their tiles along a column.
        along: Their tiles along a row.
    """

    images: Tensor
    down: _Axis
    along: _Axis

    def tiles(self) -> Tensor:
        """``uint8`` (T, 3, h, w), with gray around images that are smaller than a tile."""
        (rows, in_rows), (columns, in_columns) = self.down.cells(), self.along.cells()
        pixels = self.images.index_select(2, rows).index_select(3, columns)
        pixels = torch.where(in_rows[:, None] & in_columns, pixels, torch.full_like(pixels, GRAY))
        number, channels = self.images.shape[:2]
        cut = pixels.reshape(number, channels, self.down.number, self.down.tile, self.along.number, self.along.tile)
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def starts(self) -> tuple[Tensor, Tensor]:
        """The first row and the first column of each tile, ``int64`` (T,)."""
        rows, columns = self.down.starts[:, None], self.along.starts
        shape = (self.images.shape[0], self.down.number, self.along.number)
        return (rows + 0 * columns).expand(shape).flatten(), (0 * rows + columns).expand(shape).flatten()


def tile_grid(images: Tensor, tiling: Tiling) -> Grid:
    """Lay tiles over images (N, 3, H, W), as :func:`autotimm.tasks.tiles.tile_windows` does."""
    height, width = images.shape[-2:]
    return Grid(
        images, _axis(height, tiling.height, tiling.overlap), _axis(width, tiling.width, tiling.overlap)
    )  # fmt: skip


def _axis(length: int, tile: int, overlap: float) -> _Axis:
    step, whole = tile_step(tile, overlap), torch.full((), length, dtype=torch.int64)
    last = (whole - tile).clamp(min=0)
    number: int = (torch.div(last + step - 1, step, rounding_mode="floor") + 1).item()  # type: ignore[assignment]
    torch._check(number >= 1)
    starts = torch.minimum(torch.arange(number) * step, last)
    margin = torch.div((tile - whole).clamp(min=0), 2, rounding_mode="floor")
    return _Axis(length, tile, step, number, starts, margin)


def sums_of_tiles(values: Tensor, grid: Grid) -> Tensor:
    """Add the values of overlapping tiles, (T, C, h, w), for each pixel of the images: (N, C, H, W)."""
    (down, along), channels = (grid.down, grid.along), values.shape[1]
    parts = values.reshape(grid.images.shape[0], down.number, along.number, channels, down.tile, along.tile)
    columns = along.summed(parts.permute(0, 1, 3, 4, 2, 5).flatten(-2))  # (N, rows of tiles, C, h, W)
    return down.summed(columns.permute(0, 2, 4, 1, 3).flatten(-2)).transpose(-1, -2)


def objects_of_tiles(found: Found, grid: Grid, limits: Limits, classes: int) -> Found:
    """Merge the objects of all tiles of an image, as :func:`autotimm.tasks.tiles.merge_objects` does.

    Args:
        found: The objects of T tiles, in pixels of the tile.
        grid: Where the tiles lie.
        limits: What is kept.
        classes: Number of classes.

    Returns:
        The objects of N images, in pixels of the image.
    """
    rows, columns = (first[:, None].to(found.boxes.dtype) for first in grid.starts())
    left, top, right, bottom = found.boxes.unbind(-1)
    (top, bottom), whole_down = _in_image(top, bottom, rows, grid.down)
    (left, right), whole_along = _in_image(left, right, columns, grid.along)
    boxes = torch.stack([left, top, right, bottom], dim=-1)
    scores = torch.where(whole_down & whole_along, found.scores, 0.0)
    number = grid.images.shape[0]
    boxes, scores, labels = boxes.reshape(number, -1, 4), scores.reshape(number, -1), found.labels.reshape(number, -1)
    masks = None if found.masks is None else found.masks.reshape(number, -1, *found.masks.shape[2:])
    size = (grid.down.length, grid.along.length)
    groups = [range(first, min(first + _CLASSES_AT_ONCE, classes)) for first in range(0, classes, _CLASSES_AT_ONCE)]
    return best(Found(boxes, scores, labels, masks), limits, size, groups)


def _in_image(low: Tensor, high: Tensor, first: Tensor, axis: _Axis) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The sides of boxes (T, D) in pixels of the image, and whether no other tile shows more of the object."""
    shown = torch.full((), axis.length, dtype=low.dtype).clamp(max=axis.tile)
    low, high = (torch.minimum((side - axis.margin.to(side.dtype)).clamp(min=0), shown) for side in (low, high))
    small = high - low < axis.tile - axis.step - 2 * MARGIN
    goes_on = (low <= MARGIN) & (first > 0) | (high >= shown - MARGIN) & (first + shown < axis.length)
    return (low + first, high + first), ~(small & goes_on)
