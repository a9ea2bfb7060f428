"""A temperature divides all logits, so that a model that is 80 % sure is right in 80 of 100 cases.

It leaves the order of the classes as it is. Logits are found again from the probabilities, of which evidence is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["cross_entropy", "fit_temperature", "scaled"]

_TEMPERATURES = (0.05, 20.0)  # beyond, the samples are all right or all wrong
_TINY = float(np.finfo(np.float32).tiny)  # the least probability whose logarithm is taken
_BELOW_ONE = 1 - 2.0**-25  # what rounds to 1 in 32 bits
_BLOCK = 1 << 22  # numbers that are computed with at once

_Floats = NDArray[np.float64]


def fit_temperature(scores: NDArray[Any], targets: NDArray[Any]) -> float:
    """The temperature with the least cross-entropy, between 0.05 and 20, to six digits.

    Args:
        scores: Probabilities (N, C).
        targets: Class indices (N,), or zeros and ones (N, C) for several labels.

    Source:
        Guo et al., "On calibration of modern neural networks", ICML 2017.

    Example:
        >>> scores = np.array([[0.9, 0.1]] * 4)  # 90 % sure, and right in three of four cases
        >>> fit_temperature(scores, np.array([0, 0, 0, 1]))
        2.0
    """
    from scipy.optimize import brentq  # late: a training need not wait for it before its first step

    def slope(log_temperature: float) -> float:
        return _slope(scores, targets, float(np.exp(-log_temperature)))

    # The cross-entropy is convex in the inverse of the temperature, so that its slope changes its sign once at most.
    low, high = map(float, np.log(_TEMPERATURES))
    if slope(low) <= 0:
        return _TEMPERATURES[0]
    if slope(high) >= 0:
        return _TEMPERATURES[1]
    return float(f"{np.exp(brentq(slope, low, high, xtol=1e-10)):.6g}")


def scaled(scores: NDArray[Any], temperature: float, *, multi_label: bool) -> _Floats:
    """Probabilities (N, C) whose logits are divided by a temperature."""
    blocks = [_probabilities(_logits(block, multi_label) / temperature, multi_label) for (block,) in _blocks(scores)]
    return np.concatenate(blocks) if blocks else scores.astype(np.float64)


def cross_entropy(scores: _Floats, targets: NDArray[Any]) -> float:
    """The mean cross-entropy of probabilities (N, C); of all labels where there are several."""
    chosen = scores[np.arange(len(scores)), targets] if targets.ndim == 1 else np.where(targets, scores, 1 - scores)
    return float(-np.log(np.maximum(chosen, _TINY)).mean())


def _slope(scores: NDArray[Any], targets: NDArray[Any], inverse: float) -> float:
    """The derivative of the cross-entropy with respect to the inverse of the temperature, times a positive number."""
    total, multi_label = 0.0, targets.ndim == 2
    for block, true in _blocks(scores, targets):
        logits = _logits(block, multi_label)
        expected = _probabilities(logits * inverse, multi_label)
        if multi_label:
            total += float(((expected - true) * logits).sum())
        else:
            total += float((expected * logits).sum() - logits[np.arange(len(true)), true].sum())
    return total


def _blocks(*arrays: NDArray[Any]) -> Iterator[tuple[NDArray[Any], ...]]:
    """The same rows of several arrays, some at a time: the 64-bit logits of all samples may not fit into memory."""
    rows = max(1, _BLOCK // max(1, arrays[0].shape[1]))
    for start in range(0, len(arrays[0]), rows):
        yield tuple(array[start : start + rows] for array in arrays)


def _logits(scores: NDArray[Any], multi_label: bool) -> _Floats:
    """Logits of probabilities; those of a softmax are known but for a constant, which the next softmax drops."""
    scores = scores.astype(np.float64)
    others = np.log1p(-np.minimum(scores, _BELOW_ONE)) if multi_label else 0.0
    return np.asarray(np.log(np.maximum(scores, _TINY)) - others)


def _probabilities(logits: _Floats, multi_label: bool) -> _Floats:
    if multi_label:
        return np.asarray(np.exp(-np.logaddexp(0, -logits)))  # a sigmoid that does not overflow
    exact = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exact / exact.sum(axis=1, keepdims=True))
