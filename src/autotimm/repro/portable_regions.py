"""Operators on boxes and regions of a portable run, for the table of :mod:`autotimm.repro.portable_arithmetic`.

Those of torchvision have no table of instruction sets, but a compiler may fuse a product and a sum in them, and the
gradient of a region adds up numbers in the order of its loops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from autotimm.errors import UsageError
from autotimm.repro.exact_sums import bits_of, matmul, on_grid, sum_over
from autotimm.repro.portable_arithmetic import as_type, replaces

__all__: list[str] = []

_BITS_OF_AREAS = 25  # of a coordinate: float64 holds the sum of two areas exactly, also of negative coordinates


@replaces("torchvision::nms")
def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    # All areas are exact, and each quotient is rounded once: nothing is left to a compiler. Its sort is a stable one.
    exact = on_grid(boxes, (0, 1), _BITS_OF_AREAS) if boxes.numel() else boxes.double()
    result: Tensor = torch.ops.torchvision.nms(exact, scores.double(), iou_threshold)
    return result


# RoI align: the mean of some points in each cell of a square, each of which lies between four cells of the map


def _lines(rois: Tensor, axis: int, scale: float, out: int, sampling: int, aligned: bool) -> Tensor:
    """Where the points of each region (R, 5) lie along an axis: (R, out, sampling), in cells of the map."""
    low, high = (rois[:, place + axis].double() * scale for place in (1, 3))
    length = high - low if aligned else (high - low).clamp_(min=1)  # at least one cell
    offsets = torch.arange(out * sampling, dtype=torch.float64).add_(0.5)
    points = (low - 0.5 if aligned else low)[:, None] + offsets * (length / (out * sampling))[:, None]
    return points.view(-1, out, sampling)


def _inside(points: Tensor, cells: int) -> Tensor:
    return ((points >= -1) & (points <= cells)).double()


def _neighbors(points: Tensor, cells: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """The cells before and behind each point, and their weights; points far outside have none."""
    inside, points = _inside(points, cells), points.clamp(0, cells - 1)
    before = points.long()
    share = points - before
    return (before, (1 - share) * inside), ((before + 1).clamp_(max=cells - 1), share * inside)


def _corners(
    rois: Tensor, size: Sequence[int], scale: float, out: Sequence[int], sampling: int, aligned: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each point of a cell, and each of its four neighbors: where it is in the maps, and its weight.

    Args:
        rois: Number of the image, x1, y1, x2, y2: (R, 5).
        size: Rows and columns of the maps.
        scale: Cells of a map per pixel of the boxes.
        out: Rows and columns of the squares.
        sampling: Points per cell of a square and axis.
        aligned: Whether the center of a cell is at one half.

    Yields:
        Places in the cells of all maps (R * rows * columns,), and weights in [0, 1] for them.
    """
    rows = _neighbors(_lines(rois, 1, scale, out[0], sampling, aligned), size[0])
    columns = _neighbors(_lines(rois, 0, scale, out[1], sampling, aligned), size[1])
    first = (rois[:, 0].long() * (size[0] * size[1]))[:, None, None]
    for down in range(sampling):
        for along in range(sampling):
            for row, of_row in rows:
                for column, of_column in columns:
                    places = first + row[:, :, None, down] * size[1] + column[:, None, :, along]
                    weights = of_row[:, :, None, down] * of_column[:, None, :, along]
                    yield places.flatten(), weights.flatten()


@replaces("torchvision::roi_align")
def _roi_align(x: Tensor, rois: Tensor, scale: float, height: int, width: int, sampling: int, aligned: bool) -> Tensor:
    if sampling <= 0:
        return as_type(_adaptive(x, rois, scale, (height, width), aligned), x)
    cells = x.double().permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    total = torch.zeros(len(rois) * height * width, x.shape[1], dtype=torch.float64)
    for places, weights in _corners(rois, x.shape[2:], scale, (height, width), sampling, aligned):
        total += cells[places].mul_(weights[:, None])
    squares = total.div_(sampling * sampling).view(len(rois), height, width, x.shape[1]).permute(0, 3, 1, 2)
    return as_type(squares, x).contiguous()


def _adaptive(x: Tensor, rois: Tensor, scale: float, out: Sequence[int], aligned: bool) -> Tensor:
    """RoI align with about one point per cell of the map, in float64: a product of matrices for each region."""
    result = torch.zeros(len(rois), x.shape[1], *out, dtype=torch.float64)
    for square, roi in zip(result, rois, strict=True):
        by_axis = []
        for axis, cells, count in ((1, x.shape[2], out[0]), (0, x.shape[3], out[1])):
            length = (roi[3 + axis] - roi[1 + axis]).item() * scale
            sampling = max(1, -int(-length // count))
            points = _lines(roi[None], axis, scale, count, sampling, aligned)[0]
            apart = points.clamp(0, cells - 1)[..., None] - torch.arange(cells)
            weights = (1 - apart.abs()).clamp_(min=0).mul_(_inside(points, cells)[..., None])
            by_axis.append(sum_over(weights, [1]).div_(sampling))
        square.copy_(matmul(matmul(by_axis[0], x[int(roi[0])]), by_axis[1].t()))
    return result


@replaces("torchvision::_roi_align_backward")
def _roi_align_backward(
    gradient: Tensor, rois: Tensor, scale: float, height: int, width: int, images: int, channels: int, rows: int,
    columns: int, sampling: int, aligned: bool,
) -> Tensor:  # fmt: skip
    if sampling <= 0:
        must = "a fixed number of points per cell, where it is trained through RoI align"
        raise UsageError(f"A portable run must have {must}. Got a `sampling_ratio` of {sampling}. Give for example 2.")
    total = torch.zeros(images * rows * columns, channels, dtype=torch.float64)
    if gradient.numel():
        of_cells = gradient.permute(0, 2, 3, 1).reshape(-1, channels)
        bits = bits_of(4 * sampling * sampling * len(of_cells)) // 2
        exact, unit = on_grid(of_cells, (0,), bits), 2.0**-bits
        # Each sum is one of few multiples of one number, as in `matmul`: no order of the additions changes a bit.
        for places, weights in _corners(rois, (rows, columns), scale, (height, width), sampling, aligned):
            total.index_add_(0, places, exact * weights.div_(unit).round_().mul_(unit)[:, None])
    maps = total.div_(sampling * sampling).view(images, rows, columns, channels).permute(0, 3, 1, 2)
    return as_type(maps, gradient).contiguous()


_BILINEAR, _BORDER = 0, 1  # as torch counts what `grid_sample` may do


@replaces("grid_sampler_2d")
def _grid_sample(x: Tensor, grid: Tensor, interpolation: int, padding: int, align_corners: bool) -> Tensor:
    if (interpolation, padding, align_corners) != (_BILINEAR, _BORDER, False):
        must = "bilinear, with padding by the border and without aligned corners"
        raise UsageError(f"The `grid_sample` of a portable run must be {must}. Got others. Leave `portable` out.")
    sizes = (x.shape[3], x.shape[2])
    points = [((grid[..., axis].double() + 1) * size - 1) / 2 for axis, size in enumerate(sizes)]
    columns, rows = (_neighbors(at.clamp(0, size - 1), size) for at, size in zip(points, sizes, strict=True))
    wide, total = x.double(), torch.zeros(*x.shape[:2], *grid.shape[1:3], dtype=torch.float64)
    for row, of_row in rows:
        for column, of_column in columns:
            for image, found, at_row, at_column, weight in zip(
                wide, total, row, column, of_row * of_column, strict=True
            ):
                found += image[:, at_row, at_column].mul_(weight)
    return as_type(total, x)
