"""Semantic segmentation as it is exported: from images to the class of each of their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from autotimm.export.graph import Agreement, Graph, Size
from autotimm.export.resize import Place, letterbox_place, letterboxed
from autotimm.tasks.letterbox import places, shown
from autotimm.tasks.segmentation import SemanticSegmentor
from autotimm.types import Batch, DataSpec

__all__ = ["PixelGraph"]


class _Labelled(NamedTuple):
    """The classes of an image's pixels, ``uint8`` (H, W), and the run's logits (C, h, w) that they follow from."""

    labels: Tensor
    logits: Tensor | None = None


class PixelGraph(Graph):
    """Semantic segmentation: ``labels`` ``uint8`` (N, H, W), the index of the likeliest class of each pixel."""

    outputs = ("labels",)

    def __init__(self, task: SemanticSegmentor, spec: DataSpec, half: bool, dtype: torch.dtype) -> None:
        super().__init__(task, spec, half, dtype)
        self.input_rule |= {"resize": "letterbox", "interpolation": "bilinear"}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict images."""
        place = letterbox_place(images, self.size, self.dtype)
        logits = self.network(letterboxed(images, place, self.size)).float()
        return {"labels": _likeliest(logits, place, images.shape[-2], images.shape[-1])}

    def of_run(self, task: SemanticSegmentor, output: Tensor, batch: Batch) -> list[_Labelled]:
        """The class of each pixel."""
        images = zip(output, places(batch), strict=True)
        return [_Labelled(task.original_labels(each, place), shown(each.float(), place)) for each, place in images]

    def of_file(self, results: Sequence[Mapping[str, Tensor]], sizes: Sequence[Size]) -> list[_Labelled]:
        """The class of each pixel."""
        return [_Labelled(result["labels"]) for result in results]

    def compare(self, expected: Sequence[_Labelled], found: Sequence[_Labelled], tolerance: float) -> Agreement:
        """Compare classes; where they differ, how far apart the run's probabilities of both are."""
        largest, undecided, disagreements = 0.0, 0, 0
        for mine, theirs in zip(expected, found, strict=True):
            rows, columns = torch.nonzero(mine.labels != theirs.labels, as_tuple=True)
            if len(rows):
                gap = _gaps(mine, theirs.labels, rows, columns)
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


def _gaps(mine: _Labelled, labels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """How much likelier the run's class is than another one, at some pixels."""
    assert mine.logits is not None
    height, width = mine.labels.shape
    zero = torch.zeros((), dtype=torch.float64)
    sides = [torch.full((), side, dtype=torch.float64) for side in mine.logits.shape[1:]]
    above, below, down = (each[rows] for each in _between(sides[0], height, zero))
    left, right, along = (each[columns] for each in _between(sides[1], width, zero))
    at_left = mine.logits[:, above, left] * (1 - down) + mine.logits[:, below, left] * down
    at_right = mine.logits[:, above, right] * (1 - down) + mine.logits[:, below, right] * down
    scores = (at_left * (1 - along) + at_right * along).softmax(0)
    index = torch.stack([mine.labels[rows, columns], labels[rows, columns]]).long()
    return scores.gather(0, index).diff(dim=0).abs()[0]
