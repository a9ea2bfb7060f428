"""Semantic segmentation as it is exported: from images to the class of each of their pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from autotimm.export.graph import Agreement, Graph, Size, dense_input_rule
from autotimm.export.resize import Place, letterbox_place, letterboxed
from autotimm.export.tile_graph import sums_of_tiles, tile_grid
from autotimm.tasks.letterbox import places, shown
from autotimm.tasks.segmentation import SemanticSegmentor
from autotimm.tasks.tiles import WHOLE, placement, tile_windows, tiled
from autotimm.types import Batch, DataSpec, Tiling

__all__ = ["PixelGraph"]


_Scores: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class _Labelled(NamedTuple):
    """The classes of an image's pixels, ``uint8`` (H, W), and in the run the scores (C, K) of K of them."""

    labels: Tensor
    scores: _Scores | None = None


class PixelGraph(Graph):
    """Semantic segmentation: ``labels`` ``uint8`` (N, H, W), the index of the likeliest class of each pixel."""

    outputs = ("labels",)

    def __init__(self, task: SemanticSegmentor, spec: DataSpec, half: bool, dtype: torch.dtype) -> None:
        super().__init__(task, spec, half, dtype)
        self.input_rule |= dense_input_rule(spec)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict images."""
        if self.tiling is not None:
            grid = tile_grid(images, self.tiling)
            probabilities = self.network(grid.tiles()).float().softmax(1)
            sums = sums_of_tiles((probabilities * WHOLE).round().to(torch.int32), grid)
            return {"labels": sums.argmax(1).to(torch.uint8)}
        place = letterbox_place(images, self.size, self.dtype)
        logits = self.network(letterboxed(images, place, self.size)).float()
        return {"labels": _likeliest(logits, place, images.shape[-2], images.shape[-1])}

    def of_run(self, task: SemanticSegmentor, batch: Batch) -> list[_Labelled]:
        """The class of each pixel."""
        output = task.output(batch)
        if batch.tiling is not None:
            images = zip(output, batch.images, strict=True)
            return [
                _Labelled(labels, partial(_scores_of_tiles, task.infer, image, batch.tiling))
                for labels, image in images
            ]  # fmt: skip
        found = []
        for each, place in zip(output, places(batch), strict=True):
            labels, logits = task.original_labels(each, place), shown(each.float(), place)
            found.append(_Labelled(labels, partial(_scores_between, logits, (place.height, place.width))))
        return found

    def of_file(self, results: Sequence[Mapping[str, Tensor]], sizes: Sequence[Size]) -> list[_Labelled]:
        """The class of each pixel."""
        return [_Labelled(result["labels"]) for result in results]

    def compare(self, expected: Sequence[_Labelled], found: Sequence[_Labelled], tolerance: float) -> Agreement:
        """Compare classes; where they differ, how far apart the run's probabilities of both are."""
        largest, undecided, disagreements = 0.0, 0, 0
        for mine, theirs in zip(expected, found, strict=True):
            rows, columns = torch.nonzero(mine.labels != theirs.labels, as_tuple=True)
            if len(rows):
                assert mine.scores is not None
                index = torch.stack([labels[rows, columns].long() for labels in (mine.labels, theirs.labels)])
                gap = mine.scores(rows, columns).gather(0, index).diff(dim=0).abs()[0]
                largest = max(largest, float(gap.max()))
                undecided += int((gap <= tolerance).sum())
                disagreements += int((gap > tolerance).sum())
        return Agreement({"scores": largest}, undecided, disagreements)

    def joined(self, found: Sequence[_Labelled]) -> list[Tensor]:
        """The classes of each image."""
        return [image.labels for image in found]


def _likeliest(logits: Tensor, place: Place, height: int, width: int) -> Tensor:
    """The likeliest class of each pixel of the original images, as ``autotimm.tasks.letterbox.likeliest``."""
    above, below, down = _between(place.shown_height, height, place.top)
    left, right, along = _between(place.shown_width, width, place.left)
    down = down[:, None]
    strip = logits.index_select(2, above) * (1 - down) + logits.index_select(2, below) * down
    strip = strip.index_select(3, left) * (1 - along) + strip.index_select(3, right) * along
    return strip.argmax(1).to(torch.uint8)


def _between(size: Tensor, new_size: int, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each new pixel the old ones before and behind its center, counted from ``first``, and the second's share."""
    at = (torch.arange(new_size, dtype=size.dtype) + 0.5) * size / new_size - 0.5
    at = torch.minimum(at.clamp(min=0), size - 1)
    before = torch.floor(at)
    behind = torch.minimum(before + 1, size - 1)
    return (before + first).to(torch.int64), (behind + first).to(torch.int64), (at - before).to(torch.float32)


def _scores_between(logits: Tensor, size: Size, rows: Tensor, columns: Tensor) -> Tensor:
    """The probabilities (C, K) of some pixels of an image of a size, from the logits (C, h, w) of its shrunk copy."""
    zero = torch.zeros((), dtype=torch.float64)
    sides = [torch.full((), side, dtype=torch.float64) for side in logits.shape[1:]]
    above, below, down = (each[rows] for each in _between(sides[0], size[0], zero))
    left, right, along = (each[columns] for each in _between(sides[1], size[1], zero))
    at_left = logits[:, above, left] * (1 - down) + logits[:, below, left] * down
    at_right = logits[:, above, right] * (1 - down) + logits[:, below, right] * down
    return (at_left * (1 - along) + at_right * along).softmax(0)


@torch.no_grad()
def _scores_of_tiles(
    infer: Callable[[Tensor], Tensor], image: Tensor, tiling: Tiling, rows: Tensor, columns: Tensor
) -> Tensor:
    """The mean probabilities (C, K) of some pixels of an image in tiles, which are predicted once more."""
    sums, number = torch.zeros(()), torch.zeros(len(rows))
    for (window,), logits in tiled(image, tile_windows(image.shape[1], image.shape[2], tiling), tiling, 1, infer):
        in_window = shown(logits[0].float(), placement(window, tiling)).softmax(0)
        down, along = rows - window.top, columns - window.left
        inside = (down >= 0) & (down < window.height) & (along >= 0) & (along < window.width)
        at = (down.clamp(0, window.height - 1), along.clamp(0, window.width - 1))
        sums, number = sums + in_window[:, at[0], at[1]] * inside, number + inside
    return sums / number
