"""Fit how scores become probabilities and labels: a temperature, and a threshold for each class.

A temperature divides all logits, so that a model that is 80 % sure is right in 80 of 100 cases, and leaves the order of
the classes as it is. Thresholds decide which labels of an image, or which objects, are predicted.

Both are fitted on validation samples in 64-bit floats and without random numbers, so that a replay finds the same
bits. What they are worth is measured on *other* samples: a keyed hash of the ids halves the samples, and each half is
measured with what was fitted on the other one. What does no good there is not used, and the rest is fitted again on all
samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotimm.evidence.evidence_file import Evidence
from autotimm.evidence.object_matches import match_objects
from autotimm.evidence.reliability import confidence_of, expected_calibration_error, reliability
from autotimm.repro.streams import key
from autotimm.types import Calibration

__all__ = [
    "F1", "LEAST_SAMPLES", "Fitted", "at_temperature", "choose_threshold", "fit_calibration", "fit_temperature",
    "halves", "scaled", "scaled_by_other_half",
]  # fmt: skip

F1 = "f1"
"""The aim of thresholds that balance precision and recall; any other aim is a precision."""

LEAST_SAMPLES = 20
"""Samples below which nothing is fitted: halves of fewer say nothing."""

_TEMPERATURES = (0.05, 20.0)  # beyond, the samples are all right or all wrong
_TINY = float(np.finfo(np.float32).tiny)  # the least probability whose logarithm is taken
_BELOW_ONE = 1 - 2.0**-25  # what rounds to 1 in 32 bits
_BLOCK = 1 << 22  # numbers that are computed with at once

Floats = NDArray[np.float64]


class Fitted(NamedTuple):
    """What was fitted, and what it is worth.

    Attributes:
        calibration: What was fitted on all samples.
        measured: Figures of the samples, each measured with what was fitted on the other half of them: ``ece`` and
            ``cross_entropy`` of the scores as they are and, with ``calibrated_`` in front, with a temperature; ``f1``
            at the threshold of the run and ``fitted_f1``, ``fitted_precision`` and ``fitted_recall`` at those that
            were chosen, means over the classes that occur. ``temperature`` and ``samples`` are those of the
            calibration; ``fitted`` is 1 if it has thresholds, and 0 if that of the run is not worse.
    """

    calibration: Calibration
    measured: dict[str, float]


def fit_calibration(evidence: Evidence, aim: str | float = F1) -> Fitted | None:
    """Fit a temperature for classes, and thresholds for several labels per image and for objects.

    Args:
        evidence: Predictions of validation samples, as the network made them, and the truth.
        aim: ``f1``, or the precision that each class shall have.

    Returns:
        ``None`` for pixels, and for fewer than 20 samples.
    """
    if evidence.kind == "pixels" or len(evidence) < LEAST_SAMPLES:
        return None
    half, temperature = halves(evidence), 1.0
    thresholds: tuple[float, ...] = ()
    measured: dict[str, float] = {}
    if evidence.kind == "classes":
        temperature, measured = _temperature(evidence, half)
    if evidence.threshold is not None:
        thresholds, of_thresholds = _thresholds(evidence, half, temperature, aim)
        measured |= of_thresholds
    name = aim if isinstance(aim, str) else f"precision {aim:g}"
    calibration = Calibration(temperature, thresholds, name, len(evidence))
    return Fitted(calibration, measured | {"temperature": temperature, "samples": float(len(evidence))})


def halves(evidence: Evidence) -> NDArray[np.bool_]:
    """One half of the samples, ``bool`` (N,): every second one, sorted by class where there is one, then by a hash."""
    strata = [0] * len(evidence)
    if evidence.kind == "classes" and not evidence.multi_label:
        strata = evidence.targets.tolist()
    order = sorted(range(len(evidence)), key=lambda at: (strata[at], key(0, "calibration", evidence.ids[at])))
    half = np.zeros(len(evidence), bool)
    half[order[::2]] = True
    return half


# Temperature


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

    low, high = map(float, np.log(_TEMPERATURES))
    if slope(low) <= 0:  # the cross-entropy is convex in the inverse of the temperature
        return _TEMPERATURES[0]
    if slope(high) >= 0:
        return _TEMPERATURES[1]
    return float(f"{np.exp(brentq(slope, low, high, xtol=1e-10)):.6g}")


def scaled(scores: NDArray[Any], temperature: float, *, multi_label: bool) -> Floats:
    """Probabilities (N, C) whose logits are divided by a temperature."""
    blocks = [_probabilities(_logits(block, multi_label) / temperature, multi_label) for (block,) in _blocks(scores)]
    return np.concatenate(blocks) if blocks else scores.astype(np.float64)


def scaled_by_other_half(evidence: Evidence) -> Floats:
    """Probabilities (N, C) of samples, each with the temperature that fits the other half of them."""
    return _by_halves(evidence, halves(evidence))


def _by_halves(evidence: Evidence, half: NDArray[np.bool_]) -> Floats:
    result = np.empty(evidence.scores.shape)
    for fitted, other in ((half, ~half), (~half, half)):
        temperature = fit_temperature(evidence.scores[fitted], evidence.targets[fitted])
        result[other] = scaled(evidence.scores[other], temperature, multi_label=evidence.multi_label)
    return result


def _temperature(evidence: Evidence, half: NDArray[np.bool_]) -> tuple[float, dict[str, float]]:
    """The temperature of all samples, or 1 if that of one half does the other no good; with what was measured."""
    measured: dict[str, float] = {}
    for prefix, scores in (("", evidence.scores.astype(np.float64)), ("calibrated_", _by_halves(evidence, half))):
        measured[f"{prefix}ece"] = expected_calibration_error(reliability(*confidence_of(scores, evidence.targets)))
        measured[f"{prefix}cross_entropy"] = _cross_entropy(scores, evidence.targets)
    if not measured["calibrated_cross_entropy"] < measured["cross_entropy"]:
        return 1.0, measured
    return fit_temperature(evidence.scores, evidence.targets), measured


def _cross_entropy(scores: Floats, targets: NDArray[Any]) -> float:
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
    rows = max(1, _BLOCK // max(1, arrays[0].shape[1]))
    for start in range(0, len(arrays[0]), rows):
        yield tuple(array[start : start + rows] for array in arrays)


def _logits(scores: NDArray[Any], multi_label: bool) -> Floats:
    scores = scores.astype(np.float64)
    others = np.log1p(-np.minimum(scores, _BELOW_ONE)) if multi_label else 0.0
    return np.asarray(np.log(np.maximum(scores, _TINY)) - others)


def _probabilities(logits: Floats, multi_label: bool) -> Floats:
    if multi_label:
        return np.asarray(np.exp(-np.logaddexp(0, -logits)))
    exact = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exact / exact.sum(axis=1, keepdims=True))


# Thresholds


class _Scored(NamedTuple):
    """What was found of one class: sample and score of each (K,), whether it is right, and what is there (N,)."""

    sample: NDArray[np.int64]
    score: Floats
    right: NDArray[np.bool_]
    there: NDArray[np.int64]

    def of(self, samples: NDArray[np.bool_]) -> _Scored:
        """The part of some samples."""
        kept = samples[self.sample]
        return _Scored(self.sample[kept], self.score[kept], self.right[kept], np.where(samples, self.there, 0))

    def counts(self, threshold: float) -> NDArray[np.int64]:
        """Right ones, found ones and those that are there, from a score on."""
        kept = self.score >= threshold
        return np.array([(kept & self.right).sum(), kept.sum(), self.there.sum()], np.int64)


def choose_threshold(score: NDArray[Any], right: NDArray[np.bool_], there: int, aim: str | float = F1) -> float | None:
    """The score from which on one class is predicted, half-way between two of the scores.

    Args:
        score: The scores of what was found (K,).
        right: Whether each is right (K,).
        there: How many there are in truth.
        aim: ``f1``, or a precision: of the thresholds that have it the one with the highest recall is chosen, or the
            one with the highest precision if none has it.

    Returns:
        ``None`` if there is nothing to choose from.

    Example:
        >>> choose_threshold(np.array([0.9, 0.5, 0.3]), np.array([True, True, False]), 2)
        0.4
    """
    if not (len(score) and there):
        return None
    order = np.argsort(-score, kind="stable")
    score, right = score[order].astype(np.float64), right[order]
    ends = np.flatnonzero(np.append(np.diff(score) != 0, True))  # equal scores are predicted together
    hits, found = np.cumsum(right)[ends], ends + 1
    worth = 2 * hits / (found + there) if isinstance(aim, str) else hits / found
    if not isinstance(aim, str) and (enough := worth >= aim).any():
        worth = np.where(enough, hits, -1)
    best = int(worth.argmax())
    below = score[ends[best] + 1] if best + 1 < len(ends) else 0.0
    return _inside((score[ends[best]] + below) / 2)


def _thresholds(
    evidence: Evidence, half: NDArray[np.bool_], temperature: float, aim: str | float
) -> tuple[tuple[float, ...], dict[str, float]]:
    """The thresholds of all classes, or that of the run if others do no good; with what was measured.

    A class that does not occur keeps the threshold of the run.
    """
    assert evidence.threshold is not None
    default, classes = evidence.threshold, _scored(evidence, evidence.scores)
    kept = at_temperature(default, temperature)  # what is predicted from it on is what metrics count
    unfitted = () if kept == default else (kept,) * len(classes)
    before, after = [], []
    for each in classes:
        if not each.there.sum():
            continue
        before.append(each.counts(default))
        after.append(sum(each.of(~part).counts(_chosen(each.of(part), default, aim)) for part in (half, ~half)))
    if not before:
        return unfitted, {}
    measured = {"f1": _means(before)["f1"], **{f"fitted_{name}": value for name, value in _means(after).items()}}
    if isinstance(aim, str) and not measured["fitted_f1"] > measured["f1"]:
        return unfitted, measured | {"fitted": 0.0}
    if evidence.kind == "classes":
        classes = _scored(evidence, scaled(evidence.scores, temperature, multi_label=True))
    return tuple(_chosen(each, kept, aim) for each in classes), measured | {"fitted": 1.0}


def at_temperature(threshold: float, temperature: float) -> float:
    """The calibrated score of what the network itself gives a score of; a temperature moves all but one half."""
    if temperature == 1:
        return threshold
    return _inside(float(scaled(np.array([[threshold]]), temperature, multi_label=True)[0, 0]))


def _inside(threshold: float) -> float:
    return float(np.clip(threshold, 1e-6, 1 - 1e-6))


def _chosen(each: _Scored, default: float, aim: str | float) -> float:
    chosen = choose_threshold(each.score, each.right, int(each.there.sum()), aim)
    return default if chosen is None else chosen


def _means(counts: list[Any]) -> dict[str, float]:
    """Means over the classes of F1, precision and recall; a class of which nothing was found has a precision of 0."""
    hits, found, there = np.stack(counts).T
    ratios: dict[str, Callable[[], Floats]] = {
        "f1": lambda: 2 * hits / (found + there),
        "precision": lambda: hits / np.maximum(found, 1),
        "recall": lambda: hits / there,
    }
    return {name: float(ratio().mean()) for name, ratio in ratios.items()}


def _scored(evidence: Evidence, scores: NDArray[Any]) -> list[_Scored]:
    """What was found of each class: all labels, or all objects with those that they were matched with."""
    if evidence.kind == "classes":
        samples, true = np.arange(len(evidence)), evidence.targets.astype(bool)
        columns = zip(scores.astype(np.float64).T, true.T, strict=True)
        return [_Scored(samples, column, right, right.astype(np.int64)) for column, right in columns]
    matched, found = match_objects(evidence, quick=True), []
    for label in range(len(evidence.class_names)):
        matches = matched[label, "all"]
        counted = ~matches.ignored[0]
        found.append(_Scored(matches.image[counted], matches.score[counted], matches.hit[0][counted], matches.there))
    return found
