"""Figures of classification: confusion, figures per class and thresholds, made of evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotimm.evidence import Evidence

__all__ = ["GRID", "average_precision", "confusion_matrix", "outcomes", "per_class", "selective", "threshold_scores"]


GRID = np.linspace(0, 1, 101)
"""The thresholds of curves."""


def confusion_matrix(true: NDArray[Any], predicted: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Count pairs of a true (rows) and a predicted class (columns), ``int64`` (C, C).

    Example:
        >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    pairs = true.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def outcomes(evidence: Evidence, threshold: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What is predicted and what is true, ``bool`` (N, C): one class each, or those from the threshold on."""
    if evidence.multi_label:
        # As the task does: in the numbers of Python, not rounded to 32 bits.
        return evidence.scores.astype(np.float64) >= threshold, evidence.targets.astype(bool)
    columns = np.arange(len(evidence.class_names))
    return evidence.scores.argmax(axis=1)[:, None] == columns, evidence.targets[:, None] == columns


def per_class(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Precision, recall and F1 of each class (C,), NaN where undefined, and the counts behind them.

    Example:
        >>> predicted, true = np.array([[True], [True]]), np.array([[True], [False]])
        >>> {name: values.tolist() for name, values in per_class(predicted, true).items()}["precision"]
        [0.5]
    """
    hits, found, there = (predicted & true).sum(0), predicted.sum(0), true.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = {"precision": hits / found, "recall": hits / there, "f1": 2 * hits / (found + there)}
    return {"images": there, "predicted": found, "correct": hits, **scores}


def average_precision(scores: NDArray[Any], true: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    """Average precision of one class for several weightings of the samples, NaN without a true sample.

    The step-wise integral that scikit-learn's ``average_precision_score`` and torchmetrics use.

    Args:
        scores: (N,).
        true: Zeros and ones (N,).
        weights: (R, N).

    Returns:
        (R,).

    Example:
        >>> average_precision(np.array([0.9, 0.8, 0.1]), np.array([1, 0, 1]), np.ones((1, 3))).round(4).tolist()
        [0.8333]
    """
    order = np.argsort(-scores, kind="stable")
    scores, true, weights = scores[order], true[order], weights[:, order]
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # equal scores have one precision
    hits, counted = (np.cumsum(part, axis=1)[:, ends] for part in (weights * true, weights))
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(hits / counted)
        recall = hits / hits[:, -1:]
    return np.asarray((np.diff(recall, axis=1, prepend=0) * precision).sum(axis=1))


def selective(confidence: NDArray[Any], correct: NDArray[Any], thresholds: NDArray[Any]) -> NDArray[np.float64]:
    """The share of predictions kept from each threshold on, and the accuracy of those: (T, 2), NaN for none.

    Example:
        >>> selective(np.array([0.9, 0.6]), np.array([1.0, 0.0]), np.array([0.0, 0.8])).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    kept = confidence[None] >= thresholds[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([kept.mean(axis=1), (kept * correct).sum(axis=1) / kept.sum(axis=1)], axis=1)


def threshold_scores(scores: NDArray[Any], true: NDArray[Any], missed: int = 0) -> NDArray[np.float64]:
    """Precision, recall and F1 from each threshold of :data:`GRID` on, (101, 3); NaN where undefined.

    Args:
        scores: Scores of what was found (K,).
        true: Whether it is right (K,).
        missed: True objects that were not found at all.
    """
    kept = scores[None] >= GRID[:, None]
    hits, found, there = (kept * true).sum(axis=1), kept.sum(axis=1), true.sum() + missed
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([hits / found, hits / there, 2 * hits / (found + there)], axis=1)
