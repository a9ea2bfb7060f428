"""How often predictions are right that say how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bin", "confidence_of", "expected_calibration_error", "reliability"]

_BINS = 10


class Bin(NamedTuple):
    """Predictions of similar confidence.

    Attributes:
        low: The lowest confidence that belongs to it.
        high: The highest.
        size: Predictions in it.
        confidence: Their mean confidence; NaN for none.
        correct: The share of them that is right; NaN for none.
    """

    low: float
    high: float
    size: int
    confidence: float
    correct: float


def confidence_of(scores: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """How sure predictions are, and which of them are right: the likeliest class of each sample, or each label.

    Args:
        scores: Probabilities (N, C).
        targets: Class indices (N,), or zeros and ones (N, C) for several labels.

    Returns:
        As many numbers in [0, 1], and zeros and ones.
    """
    if targets.ndim == 2:
        return scores.ravel(), targets.ravel().astype(np.float64)
    return scores.max(axis=1), (scores.argmax(axis=1) == targets).astype(np.float64)


def reliability(confidence: NDArray[Any], correct: NDArray[Any], bins: int = _BINS) -> list[Bin]:
    """Compare confidence with the share that is right, in bins of equal width.

    Source:
        Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    numbers = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount(numbers, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = [np.bincount(numbers, values, bins) / counts for values in (confidence, correct)]
    return [Bin(at / bins, (at + 1) / bins, int(counts[at]), float(means[0][at]), float(means[1][at]))
            for at in range(bins)]  # fmt: skip


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """The mean distance of confidence and correctness, weighted by the predictions in each bin."""
    total = sum(each.size for each in bins)
    return sum(each.size * abs(each.confidence - each.correct) for each in bins if each.size) / max(total, 1)
