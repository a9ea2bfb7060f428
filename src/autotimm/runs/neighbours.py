"""The training images that are nearest to predicted ones, by the cosine similarity of their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autotimm.data.data_facts import content
from autotimm.data.inference_loaders import evaluation_loader
from autotimm.data.module import DataModule
from autotimm.data.table import Table
from autotimm.errors import DataError
from autotimm.records.sample_index import Content
from autotimm.runs.embeddings import FeatureReader, Rows
from autotimm.runs.predict import known_data
from autotimm.tasks import Task
from autotimm.train import AutoTrainer
from autotimm.types import Neighbour, ObjectPrediction, PixelPrediction, Prediction

__all__ = [
    "NOVELTY_RANK", "NearestSamples", "nearest_samples", "novelties", "recorded_training_table", "with_neighbours",
    "with_novelties",
]  # fmt: skip

NOVELTY_RANK = 5
"""The neighbour whose distance is taken: few enough for small classes, and one odd training image decides nothing."""

_BLOCK = 1024  # rows of either side that are compared at once: 8 MB of similarities
_GRID = 2.0**25


def recorded_training_table(data: DataModule, recorded: Mapping[str, str]) -> Table:
    """The training samples of a run, if they are those that it was trained on.

    Args:
        data: The data of the run.
        recorded: The digest of each training sample by id, as the run has recorded them.

    Raises:
        DataError: If a sample is missing, new or has another content.
    """
    data.setup("fit")
    table = data.tables["train"]
    if changed := Content(recorded).changed(content([table])):
        shown = "; ".join(changed[:3])
        raise DataError(
            f"The training images must be those that the run was trained on. {len(changed)} are not: {shown}. Restore "
            "them, or predict without `neighbours`."
        )
    return data.without_dropped(table)


def nearest_samples(
    task: Task, trainer: AutoTrainer, table: Table, features: Rows, most: int
) -> list[tuple[Neighbour, ...]]:
    """The nearest samples of a table to each row of features. The features of the table are never held as a whole.

    Args:
        task: The task that the features come from.
        trainer: Who predicts the samples of the table, as it predicts other images.
        table: The samples.
        features: Features of other images.
        most: How many samples to name for each.
    """
    nearest = NearestSamples(features, table.ids, most)
    with FeatureReader(task, nearest.add).reading(trainer):
        trainer.predict(task, evaluation_loader(table, known_data(task)), return_predictions=False)
    indices = {id: index for index, id in enumerate(table.ids)}
    return [
        tuple(Neighbour(id, table.labels(indices[id]), similarity) for id, similarity in found)
        for found in nearest.found()
    ]


class NearestSamples:
    """Finds the most similar of many rows of features, which are given in blocks.

    Similarities are exact for what they are computed of: unit vectors on a grid of 2**-25. Products and their sums are
    then multiples of 2**-50 below 2, which 64-bit floats hold without rounding in whatever order they are added. So
    neither blocks, threads nor other images change a bit, and of equal similarities the smaller id comes first.

    Args:
        features: The rows whose nearest are sought.
        ids: The distinct ids of all rows that will be added, in any order.
        most: How many to find for each.

    Example:
        >>> nearest = NearestSamples(np.float32([[1, 0]]), ["b", "a", "c"], 2)
        >>> nearest.add(["b", "c", "a"], np.float32([[0, 1], [2, 2], [0, 3]]))
        >>> [(id, round(similarity, 3)) for id, similarity in nearest.found()[0]]
        [('c', 0.707), ('a', 0.0)]
    """

    def __init__(self, features: Rows, ids: Sequence[str], most: int) -> None:
        self._features, self._ids = features, sorted(ids)
        self._ranks = {id: rank for rank, id in enumerate(self._ids)}
        shape = (len(features), min(most, len(self._ids)))
        self._best = np.full(shape, -np.inf)
        self._best_ranks = np.full(shape, len(self._ids), np.int64)
        self._waiting: list[tuple[Sequence[str], Rows]] = []

    def add(self, ids: Sequence[str], rows: Rows) -> None:
        """Compare with more rows; they are gathered until there are enough to be compared at once."""
        self._waiting.append((ids, rows))
        if sum(len(each) for each, _ in self._waiting) >= _BLOCK:
            self._compare()

    def found(self) -> list[list[tuple[str, float]]]:
        """The ids that are nearest to each row, with their similarities in [-1, 1], the most similar first."""
        self._compare()
        pairs = zip(self._best_ranks.tolist(), self._best.tolist(), strict=True)
        return [[(self._ids[rank], value) for rank, value in zip(*row, strict=True)] for row in pairs]

    def _compare(self) -> None:
        if not self._waiting:
            return
        ranks = np.array([self._ranks[id] for ids, _ in self._waiting for id in ids])
        others = _unit_rows(np.concatenate([rows for _, rows in self._waiting])).T
        self._waiting = []
        most = self._best.shape[1]
        for start in range(0, len(self._features), _BLOCK):
            part = slice(start, start + _BLOCK)
            new = np.clip(_unit_rows(self._features[part]) @ others, -1, 1)
            values = np.hstack([self._best[part], new])
            candidates = np.hstack([self._best_ranks[part], np.broadcast_to(ranks, new.shape)])
            order = np.lexsort((candidates, -values))[:, :most]
            self._best[part] = np.take_along_axis(values, order, axis=1)
            self._best_ranks[part] = np.take_along_axis(candidates, order, axis=1)


def _unit_rows(features: Rows) -> NDArray[np.float64]:
    """Rows of length 1 on the grid; zeros for a row without a direction."""
    rows = features.astype(np.float64)
    lengths = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    known = np.isfinite(lengths) & (lengths > 0)
    units = np.divide(rows, lengths, out=np.zeros_like(rows), where=known)
    return np.asarray(np.rint(units * _GRID) / _GRID)


def with_neighbours(
    predictions: Sequence[Prediction | ObjectPrediction | PixelPrediction], neighbours: Sequence[tuple[Neighbour, ...]]
) -> list[Prediction | ObjectPrediction | PixelPrediction]:
    """Predictions with their nearest training images."""
    return [each._replace(neighbours=near) for each, near in zip(predictions, neighbours, strict=True)]


def novelties(similarities: Sequence[float], held_out: Sequence[float]) -> list[float]:
    """How unlike the training images others are, among images that are known to be alike.

    The distance of an image is that of the features of its k-th nearest training image. Its novelty is the share of
    the validation images that are nearer: for images of the same kind it is uniform, so that 5 % of them are above
    0.95. One minus it is the p-value of a conformal test. Validation images chose the best epoch, which makes them a
    little nearer than new ones.

    Args:
        similarities: Cosine similarity of each image to its k-th nearest training image.
        held_out: The same of the validation images.

    Returns:
        A number in [0, 1) for each image; it stays below 1 by one part in one more than there are validation images.

    Source:
        Sun, Ming, Zhu and Li, "Out-of-distribution detection with deep nearest neighbors", ICML 2022.

    Example:
        >>> novelties([0.95, 0.85, 0.1], [0.9, 0.8, 0.99])
        [0.25, 0.5, 0.75]
    """
    known = np.sort(np.asarray(held_out))[::-1]
    # Counted on negative numbers, since the search wants them in ascending order.
    nearer = np.searchsorted(-known, -np.asarray(similarities), side="left")
    return [float(count) / (len(known) + 1) for count in nearer]


def with_novelties(
    predictions: Sequence[Prediction | ObjectPrediction | PixelPrediction],
    near: Sequence[tuple[Neighbour, ...]],
    held_out: Sequence[tuple[Neighbour, ...]],
) -> list[Prediction | ObjectPrediction | PixelPrediction]:
    """Predictions with their novelty, from their neighbours and those of the validation images."""

    def distant(found: Sequence[tuple[Neighbour, ...]]) -> list[float]:
        return [each[min(NOVELTY_RANK, len(each)) - 1].similarity for each in found]

    values = novelties(distant(near), distant(held_out))
    return [each._replace(novelty=value) for each, value in zip(predictions, values, strict=True)]
