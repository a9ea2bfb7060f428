"""Classification as it is exported: from images to the probability of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autotimm.export.graph import Agreement, Graph, Size
from autotimm.export.resize import cropped
from autotimm.tasks import Task
from autotimm.tasks.classification import ImageClassifier
from autotimm.types import Batch, DataSpec

__all__ = ["ClassGraph"]


class ClassGraph(Graph):
    """Classification: ``scores`` float32 (N, C), the probability of each class, at the temperature of the run."""

    outputs = ("scores",)

    def __init__(self, task: ImageClassifier, spec: DataSpec, half: bool, dtype: torch.dtype) -> None:
        super().__init__(task, spec, half, dtype)
        self.multi_label = spec.multi_label
        self.least = torch.tensor(task.least_scores(task.num_classes) or (0.5,), dtype=torch.float64)
        self.temperature = task.temperature
        self.interpolation, self.crop_pct = spec.interpolation, spec.crop_pct
        self.input_rule |= {"resize": "crop", "crop_pct": self.crop_pct, "interpolation": self.interpolation}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict images."""
        logits = self.network(cropped(images, self.size, self.crop_pct, self.interpolation, self.dtype)).float()
        return {"scores": self._scores(logits)}

    def _scores(self, logits: Tensor) -> Tensor:
        logits = logits if self.temperature == 1 else logits / self.temperature
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)

    def of_run(self, task: Task, batch: Batch) -> list[Tensor]:
        """The probabilities of each class."""
        return list(self._scores(task.infer(batch.images).float()))

    def of_file(self, results: Sequence[Mapping[str, Tensor]], sizes: Sequence[Size]) -> list[Tensor]:
        """The probabilities of each class."""
        return [result["scores"] for result in results]

    def compare(self, expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> Agreement:
        """Compare probabilities, and the labels that follow from them."""
        mine, theirs = torch.stack(list(expected)), torch.stack(list(found))
        largest = float((mine - theirs).abs().max())
        if self.multi_label:
            differ = (mine >= self.least) != (theirs >= self.least)
            gap = (mine - self.least).abs()[differ]
        else:
            best, other = mine.argmax(1), theirs.argmax(1)
            gap = mine.gather(1, torch.stack([best, other], 1)).diff(dim=1).abs()[best != other]
        undecided = int((gap <= tolerance).sum())
        return Agreement({"scores": largest}, undecided, gap.numel() - undecided)

    def joined(self, found: Sequence[Tensor]) -> Tensor:
        """Logits (N, C), up to a number for each image, as metrics take those of the run: without the temperature."""
        scores = torch.stack(list(found)).double()
        logits = (
            scores.logit(eps=2**-25) if self.multi_label else scores.clamp(min=torch.finfo(torch.float32).tiny).log()
        )
        return (logits * self.temperature).float()
