"""Predictions as tables: CSV for programs, rows for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from autotimm.types import ObjectPrediction, PixelPrediction, Prediction

__all__ = ["as_csv", "as_rows"]

_BOX = ("x1", "y1", "x2", "y2")


def as_csv(predictions: Sequence[Prediction | PixelPrediction | ObjectPrediction]) -> str:
    """Write predictions as a table.

    For classes: path, label, score, and the probability of each class, or the share of the pixels that it has. Several
    labels are joined with ``|``, none at all is an empty cell. The score is that of the likeliest class.

    For objects: path, label, score, x1, y1, x2, y2 in pixels of the original image, a line per object. Images without
    objects have none.

    Nine digits are what a 32-bit float needs to be read back to the bit.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, one in enumerate(predictions):
        titles, lines = _lines(one)
        if number == 0:
            writer.writerow(["path", "label", "score", *titles])
        writer.writerows([one.id, label, *(f"{value:.9g}" for value in values)] for label, *values in lines)
    return text.getvalue()


def _lines(one: Prediction | PixelPrediction | ObjectPrediction) -> tuple[Iterable[str], Iterable[tuple[Any, ...]]]:
    """What the columns behind the score are called, and what stands behind the path of an image."""
    if isinstance(one, ObjectPrediction):
        found = zip(one.labels, one.scores, one.boxes, strict=True)
        return _BOX, [(label, score, *box) for label, score, box in found]
    return one.scores, [("|".join(one.labels), max(one.scores.values()), *one.scores.values())]


def as_rows(
    predictions: Iterable[Prediction | PixelPrediction | ObjectPrediction],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The titles of a table for people, and its rows; ``-`` stands for nothing."""
    titles: tuple[str, ...] = ("path", "label", "score")
    rows: list[tuple[str, ...]] = []
    for one in predictions:
        if isinstance(one, ObjectPrediction):
            titles = ("path", "label", "score", *_BOX)
            found = zip(one.labels, one.scores, one.boxes, strict=True)
            objects = [(one.id, label, f"{score:.3f}", *(f"{x:.0f}" for x in box)) for label, score, box in found]
            rows += objects or [(one.id, *("-" for _ in titles[1:]))]
        elif isinstance(one, PixelPrediction):
            titles = ("path", "labels")
            rows.append((one.id, ", ".join(f"{name} {one.scores[name]:.1%}" for name in one.labels)))
        else:
            rows.append((one.id, ", ".join(one.labels) or "-", f"{max(one.scores.values()):.3f}"))
    return titles, rows
