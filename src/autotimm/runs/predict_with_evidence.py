"""Predict with what a run knows of its own images: sets of classes that hold the true one, neighbours, novelty.

All of it is read from the run: evidence of the validation images, which the best weights have predicted, and features
of the training images, which are computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from autotimm.data.table import Table
from autotimm.errors import DataError, ModelError, UsageError, is_whole, require, require_flags, sentence
from autotimm.evidence.conformal import least_score, with_members
from autotimm.records.run_folder import RunFolder
from autotimm.runs.embeddings import Rows, collecting_features, write_embeddings
from autotimm.runs.neighbours import (
    NOVELTY_RANK,
    nearest_samples,
    recorded_training_table,
    with_neighbours,
    with_novelties,
)  # fmt: skip
from autotimm.runs.output_paths import require_features_file
from autotimm.runs.predict import predict
from autotimm.tasks import Task
from autotimm.train import AutoTrainer
from autotimm.train.progress import say
from autotimm.types import Neighbour, ObjectPrediction, PixelPrediction, Prediction

if TYPE_CHECKING:
    from autotimm.runs.run import Run

__all__ = ["Wanted", "predict_with_evidence"]

_Predictions = list[Prediction | ObjectPrediction | PixelPrediction]


class Wanted(NamedTuple):
    """What is asked for besides the predictions, see :meth:`autotimm.Run.predict`.

    Attributes:
        coverage: The probability with which a set of classes must hold the true one.
        embeddings: The new file for the features of the images.
        neighbours: How many of the nearest training images to name for each.
        novelty: Whether to say how unlike the training images each is.
    """

    coverage: float | None = None
    embeddings: str | Path | None = None
    neighbours: int | None = None
    novelty: bool = False

    @property
    def compares(self) -> bool:
        """Whether images are compared with those of the training."""
        return self.neighbours is not None or self.novelty

    def check(self, tta: str | None) -> None:
        """Refuse arguments that are wrong before anything is loaded.

        Args:
            tta: How each image is looked at more than once.

        Raises:
            UsageError: If one is wrong, or does not go together with another.
        """
        if self.embeddings is not None:
            require_features_file(str(self.embeddings), "embeddings", "predict")
        require_flags("predict", novelty=self.novelty)
        whole = self.neighbours is None or is_whole(self.neighbours, 1)
        require(whole, "neighbours", "predict", "a whole number from 1", self.neighbours, "Give 5.")
        if tta is not None and self.coverage is not None:
            cure = "The validation images, which sets are measured on, were looked at once."
            raise UsageError(sentence("tta", "predict", "left out with a coverage", tta, cure))


def predict_with_evidence(
    run: Run, task: Task, new_trainer: Callable[[], AutoTrainer], paths: str | Path | Iterable[str | Path],
    wanted: Wanted, *, ckpt: str | Path, is_best: bool, fast: bool, threshold: float | None, raw: bool,
    tta: str | None,
) -> _Predictions:  # fmt: skip
    """Predict images with a checkpoint of a run, see :meth:`autotimm.Run.predict` for the other arguments and errors.

    Args:
        run: The run.
        task: The task of the checkpoint.
        new_trainer: Makes a trainer with the settings of the run.
        paths: What to predict.
        wanted: What is asked for besides.
        ckpt: The checkpoint.
        is_best: Whether it is the one whose predictions are the run's evidence.
        fast: Skip the padding of batches.
        threshold: Score from which on labels or objects are reported; ``None`` for the task's own.
        raw: Leave out what was fitted on the validation images.
        tta: How each image is looked at more than once; ``None`` for once.
    """
    if not is_best:
        _refuse_without_evidence(wanted)
    # What the run must have is looked for before the images are predicted, which may take long.
    least = None if wanted.coverage is None else _least_score(run, task, wanted.coverage, raw=raw)
    validation = _validation_features(run) if wanted.novelty else None
    trained = _training_table(run) if wanted.compares else None
    trainer = new_trainer()
    reads_features = wanted.embeddings is not None or wanted.compares
    with collecting_features(task, trainer) if reads_features else nullcontext() as collected:
        found = predict(task, paths, trainer=trainer, fast=fast, threshold=threshold, raw=raw, tta=tta)
    features = None if collected is None else collected()
    if features is not None and trained is not None:
        rows = features.features if validation is None else np.concatenate([features.features, validation])
        most = max(wanted.neighbours or 0, NOVELTY_RANK if wanted.novelty else 0)
        found = _compared(found, nearest_samples(task, new_trainer(), trained, rows, most), wanted)
    if features is not None and wanted.embeddings is not None:
        write_embeddings(wanted.embeddings, features, run.checkpoint(ckpt))
    if least is None:
        return found
    return [*with_members((each for each in found if isinstance(each, Prediction)), least)]


def _compared(found: _Predictions, near: Sequence[tuple[Neighbour, ...]], wanted: Wanted) -> _Predictions:
    """Predictions with novelty and neighbours.

    Args:
        found: The predictions.
        near: The nearest training images of each, and after them those of the validation images, if they are needed.
        wanted: What is asked for.
    """
    of_images, of_validation = near[: len(found)], near[len(found) :]
    if wanted.novelty:
        found = with_novelties(found, of_images, of_validation)
    if wanted.neighbours is not None:
        found = with_neighbours(found, [each[: wanted.neighbours] for each in of_images])
    return found


def _refuse_without_evidence(wanted: Wanted) -> None:
    """Refuse what is measured on the validation images, for other weights than those that have predicted them."""
    for name in ("coverage", "novelty"):
        if (given := getattr(wanted, name)) not in (None, False):
            cure = "Give the run's folder, and no other checkpoint: the validation samples were predicted by the best."
            raise UsageError(sentence(name, "predict", "left out", given, cure))


def _least_score(run: Run, task: Task, coverage: float, *, raw: bool) -> float:
    """The score from which on a class is a member of a set."""
    evidence = run.evidence("val")
    least = least_score(evidence, coverage, 1.0 if raw else task.temperature)
    if least == 0:
        say(f"{len(evidence)} validation images are too few for a coverage of {coverage:g}: sets have all classes")
    return least


def _validation_features(run: Run) -> Rows:
    features = run.evidence().features
    if features is None:
        raise ModelError(
            f"The evidence of {run.path} must have the features of its validation images. It has none. Predict "
            "without `novelty`."
        )
    return np.asarray(features, np.float32)


def _training_table(run: Run) -> Table:
    """The samples that the run was trained on, compared with its record."""
    recorded = RunFolder(run.path, run.path.parent).samples.content_of("train")
    if not recorded:
        raise DataError(
            f"The run {run.path} must have a list of its training images. It has none: it was made from loaders "
            "of your own, or is a checkpoint alone. Predict without `neighbours`."
        )
    return recorded_training_table(run.data(), recorded)
