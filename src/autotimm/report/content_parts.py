"""Parts of a page that tasks share: numbers as rows of a table, a confusion matrix, and fitted thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotimm.report.class_figures import GRID
from autotimm.report.content import Content, Matrix, NumberTable
from autotimm.types import Calibration

__all__ = ["best_on_grid", "confusion", "curve_rows", "fitted_thresholds", "matrix_rows", "number"]

_MOST_NAMES = 24  # classes of a matrix; beyond, its largest mistakes are listed
_MOST_PAIRS = 40


def number(value: Any) -> Any:
    """A number of NumPy as one of Python; ``None`` where it is undefined."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def matrix_rows(names: list[str], rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Rows with a name in front of each, below a row of the names."""
    return [["true", *names], *([name, *row] for name, row in zip(names, rows, strict=True))]


def curve_rows(curve: NDArray[Any], *before: Any) -> list[list[Any]]:
    """The rows of a curve over the grid of thresholds (101, K), each with its threshold in front."""
    return [[*before, at, *map(number, row)] for at, row in zip(GRID.tolist(), curve, strict=True)]


def best_on_grid(values: NDArray[Any]) -> int:
    """Where on the grid of thresholds values (101,) are highest, at first; 0 if none is defined."""
    return int(np.nanargmax(values)) if np.isfinite(values).any() else 0


def confusion(counts: NDArray[np.int64], names: list[str], unit: str, last: str = "") -> Matrix:
    """A matrix of counts with links; the largest mistakes alone where there are many names.

    Args:
        counts: True classes by predicted ones.
        names: The names of both.
        unit: What is counted.
        last: What the last row and column stand for, if they are no class; empty if they are one.
    """
    size = len(counts)
    labels = [*names, *([last] if last else [])]
    if size <= _MOST_NAMES:
        links = {
            (row, column): f"c{row}-{column}" for row in range(size) for column in range(size) if counts[row, column]
        }
        return Matrix(labels, labels, counts.tolist(), links, unit)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    pairs = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS].tolist():
        true, predicted = divmod(place, size)
        if count := int(wrong[true, predicted]):
            pairs.append((labels[true], labels[predicted], count, f"c{true}-{predicted}"))
    return Matrix((), (), (), {}, unit, pairs)


def fitted_thresholds(
    content: Content, names: Sequence[str], calibration: Calibration, kept: float | None = None
) -> None:
    """Add the thresholds that `predict` uses in place of that of the run, if there are any.

    Args:
        content: What is shown.
        names: The classes.
        calibration: What was fitted.
        kept: The threshold of the run, at the temperature.
    """
    if len(calibration.thresholds) != len(names):  # there are none
        return
    rows = [[name, round(least, 4)] for name, least in zip(names, calibration.thresholds, strict=True)]
    aim = "F1" if calibration.aim == "f1" else f"a {calibration.aim}"
    origin = f"Fitted on {calibration.samples} validation images for {aim}, and used by predict."
    if {*calibration.thresholds} == {kept}:
        origin = "That of the run, moved by the temperature: the same labels."
    text = f"{origin} Counts on this page are those of the one threshold that the metrics have."
    content.tables["Thresholds that predict uses"] = NumberTable(["class", "threshold"], rows, {}), text
    content.numbers["fitted_thresholds"] = [["class", "threshold"], *rows]
