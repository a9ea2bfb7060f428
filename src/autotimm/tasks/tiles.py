"""Large images in tiles of the network's size: where they lie, and how their predictions become those of the image.

Results do not depend on the order of tiles, to the last bit: objects are sorted before they are compared, and
probabilities are added as whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from autotimm.data.transforms.spatial_transforms import GRAY
from autotimm.tasks.letterbox import shown, to_original
from autotimm.types import Placement, Tiling

__all__ = [
    "MARGIN", "TileLabels", "WHOLE", "Window", "column_blocks", "cut", "cut_targets", "merge_objects", "placement",
    "tile_step", "tile_windows", "tiled", "without_suppressed",
]  # fmt: skip

MARGIN = 2  # pixels between a box and the border of a tile up to which the object may go on beyond it
WHOLE = 1 << 20  # a probability of 1 as a whole number; 100 tiles that overlap stay below 2**31
_MOST_BYTES = 256 * 2**20  # of the probabilities that wait for the tiles below them


class Window(NamedTuple):
    """A part of an image that a tile shows.

    Attributes:
        top: Its first row.
        left: Its first column.
        height: Its rows: those of a tile, or of an image that has fewer.
        width: Its columns.
    """

    top: int
    left: int
    height: int
    width: int


def tile_windows(height: int, width: int, tiling: Tiling) -> list[Window]:
    """The tiles of an image, row by row; the last ones of a row and of a column end with the image.

    Example:
        >>> [window[:2] for window in tile_windows(100, 150, Tiling(100, 100, 0.2))]
        [(0, 0), (0, 50)]
    """
    rows, columns = min(height, tiling.height), min(width, tiling.width)
    return [
        Window(top, left, rows, columns)
        for top in _starts(height, tiling.height, tiling.overlap)
        for left in _starts(width, tiling.width, tiling.overlap)
    ]


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    last = max(0, length - tile)
    return [*range(0, last, tile_step(tile, overlap)), last]


def tile_step(tile: int, overlap: float) -> int:
    """Pixels from the first one of a tile to that of the next."""
    return max(1, tile - round(tile * overlap))


def cut(image: Tensor, window: Window, tiling: Tiling) -> Tensor:
    """A tile of an image (3, H, W) as the network sees it, with gray around an image that is smaller."""
    tile = image[:, window.top : window.top + window.height, window.left : window.left + window.width]
    return _padded(tile, window, tiling, GRAY)


def _padded(layers: Tensor, window: Window, tiling: Tiling, fill: int) -> Tensor:
    above, left = (tiling.height - window.height) // 2, (tiling.width - window.width) // 2
    padding = (left, tiling.width - window.width - left, above, tiling.height - window.height - above)
    return (F.pad(layers, padding, value=fill) if any(padding) else layers).contiguous()


def cut_targets(classes: Tensor, window: Window, tiling: Tiling, outside: int) -> Tensor:
    """The class indices (H, W) of a tile, ``int64``."""
    tile = classes[window.top : window.top + window.height, window.left : window.left + window.width]
    return _padded(tile.long(), window, tiling, outside)


def placement(window: Window, tiling: Tiling) -> Placement:
    """The part of a tile that shows the image."""
    above, left = (tiling.height - window.height) // 2, (tiling.width - window.width) // 2
    return Placement(window.height, window.width, above, left, window.height, window.width)


def tiled(
    image: Tensor, windows: Iterable[Window], tiling: Tiling, at_once: int, infer: Callable[[Tensor], Any]
) -> Iterator[tuple[list[Window], Any]]:
    """Run a network on tiles of an image, a batch at a time.

    Args:
        image: (3, H, W).
        windows: The tiles.
        tiling: Their size.
        at_once: Tiles per batch.
        infer: Runs the network on (N, 3, h, w).

    Yields:
        The windows of a batch, and the output for it.
    """
    rest = iter(windows)
    while batch := list(islice(rest, at_once)):
        yield batch, infer(torch.stack([cut(image, window, tiling) for window in batch]))


# Objects


def merge_objects(
    found: Sequence[tuple[Window, dict[str, Tensor]]],
    height: int,
    width: int,
    tiling: Tiling,
    nms_iou: float,
    most: int,
) -> dict[str, Tensor]:
    """Merge the objects of all tiles of an image, in pixels of the image.

    A tile may show a part of an object only. A box that ends at the border of its tile and is smaller than the overlap
    is left out, since the next tile shows more of the object. What remains twice is dropped by non-maximum suppression,
    class by class.

    Args:
        found: Each tile with its objects: ``boxes`` (K, 4) in pixels of the tile, ``scores`` and ``labels`` (K,), and
            possibly ``masks``.
        height: Height of the image.
        width: Its width.
        tiling: How it was cut.
        nms_iou: Intersection over union of two boxes of a class from which the one with the lower score is dropped.
        most: Objects to keep, those with the highest scores.

    Returns:
        The same entries, highest score first.
    """
    parts = [
        _in_image(objects, window, height, width, tiling) for window, objects in sorted(found, key=lambda one: one[0])
    ]
    merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return without_suppressed(merged, merged["boxes"], nms_iou, most)


def _in_image(objects: dict[str, Tensor], window: Window, height: int, width: int, tiling: Tiling) -> dict[str, Tensor]:
    """The objects of a tile in pixels of the image, without those that the next tile shows more of."""
    objects = {name: value.detach().cpu() for name, value in objects.items()}
    boxes = to_original(objects["boxes"].float(), placement(window, tiling))
    shown_whole = torch.ones(len(boxes), dtype=torch.bool)
    borders = (
        (1, window.top, window.height, height, tiling.height),
        (0, window.left, window.width, width, tiling.width),
    )
    for axis, first, length, limit, tile in borders:
        low, high = boxes[:, axis], boxes[:, axis + 2]
        small = high - low < tile - tile_step(tile, tiling.overlap) - 2 * MARGIN
        goes_on = (low <= MARGIN) & (first > 0) | (high >= length - MARGIN) & (first + length < limit)
        shown_whole &= ~(small & goes_on)
    moved = {**objects, "boxes": boxes + boxes.new_tensor([window.left, window.top] * 2)}
    return {name: value[shown_whole] for name, value in moved.items()}


def without_suppressed(objects: Mapping[str, Tensor], boxes: Tensor, nms_iou: float, most: int) -> dict[str, Tensor]:
    """The objects that no better one of their class suppresses, highest score first, at most a number of them.

    Args:
        objects: ``scores`` and ``labels`` (K,), and further entries with a row per object.
        boxes: The boxes that are compared, (K, 4).
        nms_iou: Intersection over union of two boxes of a class from which the one with the lower score is dropped.
        most: Objects to keep.
    """
    order = objects["scores"].sort(descending=True, stable=True).indices
    keep = order[_survivors(boxes[order], objects["scores"][order], objects["labels"][order], nms_iou, most)]
    return {name: value[keep] for name, value in objects.items()}


def _survivors(boxes: Tensor, scores: Tensor, labels: Tensor, nms_iou: float, most: int) -> Tensor:
    """Indices of the best boxes that no better one of their class suppresses; boxes are sorted by score.

    Not torchvision's ``batched_nms``: it moves the boxes of each class by a multiple of the largest coordinate, where
    32 bits no longer resolve a pixel. Which boxes survive is decided from the top, so that the first ones suffice.
    """
    looked_at = 10 * most
    while True:
        first = labels[:looked_at]
        of_classes = [(first == label).nonzero().flatten() for label in first.unique()]
        kept = [of[nms(boxes[of], scores[of], nms_iou)] for of in of_classes]
        survivors = torch.cat([*kept, first.new_zeros(0)]).sort().values
        if len(survivors) >= most or looked_at >= len(labels):
            return survivors[:most]
        looked_at *= 2


# Pixels


def column_blocks(width: int, classes: int, tiling: Tiling, most_bytes: int = _MOST_BYTES) -> list[tuple[int, int]]:
    """Parts of the columns of an image whose probabilities fit into memory: the first column and the end of each.

    Tiles that reach over the end of a part are predicted for both; neither changes a bit of the result.

    Example:
        >>> column_blocks(20_000, 20, Tiling(640, 640, 0.2))
        [(0, 5242), (5242, 10484), (10484, 15726), (15726, 20000)]
    """
    columns = max(tiling.width, most_bytes // (4 * classes * tiling.height))
    return [(left, min(left + columns, width)) for left in range(0, width, columns)]


class TileLabels:
    """Add the probabilities of overlapping tiles, and keep the likeliest class of each pixel.

    Rows whose tiles have all been added are decided, so that the probabilities of one row of tiles are held at a time.

    Args:
        labels: ``uint8`` (H, W), which is filled.
        left: The first column of a part of the image, see :func:`column_blocks`.
        right: The end of the part.
        classes: Number of classes C.
        tiling: How the image is cut.
    """

    def __init__(self, labels: Tensor, left: int, right: int, classes: int, tiling: Tiling) -> None:
        self.labels, self.left, self.right, self.tiling = labels, left, right, tiling
        self.top = 0  # the first row that is not decided
        self.sums = torch.zeros(classes, min(len(labels), tiling.height), right - left, dtype=torch.int32)

    def add(self, window: Window, logits: Tensor) -> None:
        """Add a tile, whose ``window`` begins in the row of the one before or below it.

        Args:
            window: Where the tile lies.
            logits: (C, h, w) of the whole input.
        """
        self._decide(window.top)
        probabilities = shown(logits.float().cpu(), placement(window, self.tiling)).softmax(0)
        first, end = max(window.left, self.left), min(window.left + window.width, self.right)
        part = probabilities[:, :, first - window.left : end - window.left]
        self.sums[:, :, first - self.left : end - self.left] += (part * WHOLE).round().int()

    def finish(self) -> None:
        """Decide the last rows."""
        self._decide(len(self.labels))

    def _decide(self, row: int) -> None:
        """Decide all rows above a row, which no other tile shows."""
        number = min(row - self.top, self.sums.shape[1])
        if number <= 0:
            return
        self.labels[self.top : self.top + number, self.left : self.right] = self.sums[:, :number].argmax(0)
        self.sums = self.sums.roll(-number, 1)
        self.sums[:, self.sums.shape[1] - number :] = 0
        self.top = row
