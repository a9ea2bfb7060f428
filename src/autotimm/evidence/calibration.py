"""Fit how scores become probabilities and labels: a temperature, and a threshold for each class.

Both are fitted on validation samples in 64-bit floats and without random numbers, so that a replay finds the same
bits. What they are worth is measured on *other* samples: a keyed hash of the ids halves the samples, and each half is
measured with what was fitted on the other one. What does no good there is not used, and the rest is fitted again on all
samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotimm.evidence.evidence_file import Evidence
from autotimm.evidence.reliability import confidence_of, expected_calibration_error, reliability
from autotimm.evidence.temperature import cross_entropy, fit_temperature, scaled
from autotimm.evidence.thresholds import F1, ScoredClass, at_temperature, scored_classes
from autotimm.repro.streams import key
from autotimm.types import Calibration

__all__ = ["LEAST_SAMPLES", "Fitted", "fit_calibration", "halves", "scaled_by_other_half"]

LEAST_SAMPLES = 20
"""Samples below which nothing is fitted: halves of fewer say nothing."""

_Half = NDArray[np.bool_]
"""Which samples are in one half (N,); the other half is its opposite."""


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
        thresholds, of_thresholds = _thresholds(evidence, evidence.threshold, half, temperature, aim)
        measured |= of_thresholds
    name = aim if isinstance(aim, str) else f"precision {aim:g}"
    calibration = Calibration(temperature, thresholds, name, len(evidence))
    return Fitted(calibration, measured | {"temperature": temperature, "samples": float(len(evidence))})


def halves(evidence: Evidence) -> _Half:
    """One half of the samples, ``bool`` (N,): every second one, sorted by class where there is one, then by a hash."""
    strata = [0] * len(evidence)
    if evidence.kind == "classes" and not evidence.multi_label:
        strata = evidence.targets.tolist()
    order = sorted(range(len(evidence)), key=lambda at: (strata[at], key(0, "calibration", evidence.ids[at])))
    half = np.zeros(len(evidence), bool)
    half[order[::2]] = True
    return half


def scaled_by_other_half(evidence: Evidence) -> NDArray[np.float64]:
    """Probabilities (N, C) of samples, each with the temperature that fits the other half of them."""
    return _scaled_by_other_half(evidence, halves(evidence))


def _scaled_by_other_half(evidence: Evidence, half: _Half) -> NDArray[np.float64]:
    result = np.empty(evidence.scores.shape)
    for fitted, other in ((half, ~half), (~half, half)):
        temperature = fit_temperature(evidence.scores[fitted], evidence.targets[fitted])
        result[other] = scaled(evidence.scores[other], temperature, multi_label=evidence.multi_label)
    return result


def _temperature(evidence: Evidence, half: _Half) -> tuple[float, dict[str, float]]:
    """The temperature of all samples, or 1 if that of one half does the other no good; with what was measured."""
    as_they_are, calibrated = evidence.scores.astype(np.float64), _scaled_by_other_half(evidence, half)
    measured: dict[str, float] = {}
    for prefix, scores in (("", as_they_are), ("calibrated_", calibrated)):
        measured[f"{prefix}ece"] = expected_calibration_error(reliability(*confidence_of(scores, evidence.targets)))
        measured[f"{prefix}cross_entropy"] = cross_entropy(scores, evidence.targets)
    if not measured["calibrated_cross_entropy"] < measured["cross_entropy"]:
        return 1.0, measured
    return fit_temperature(evidence.scores, evidence.targets), measured


def _thresholds(
    evidence: Evidence, default: float, half: _Half, temperature: float, aim: str | float
) -> tuple[tuple[float, ...], dict[str, float]]:
    """The thresholds of all classes, or that of the run if others do no good; with what was measured.

    A class that does not occur keeps the threshold of the run.

    Args:
        evidence: Predictions of several labels per image, or of objects.
        default: The threshold of the run.
        half: See :func:`halves`.
        temperature: What ``predict`` divides logits by before it compares scores with thresholds.
        aim: See :func:`fit_calibration`.
    """
    classes = scored_classes(evidence, evidence.scores)
    # Metrics count from `default` on, without the temperature: with it, the same labels are predicted from `kept` on.
    kept = at_temperature(default, temperature)
    unfitted = () if kept == default else (kept,) * len(classes)
    occurring = [each for each in classes if each.occurs]
    if not occurring:
        return unfitted, {}
    measured = _measured_thresholds(occurring, default, half, aim)
    # A precision that was asked for may cost F1: it is not dropped for that.
    if isinstance(aim, str) and not measured["fitted_f1"] > measured["f1"]:
        return unfitted, measured | {"fitted": 0.0}
    if evidence.kind == "classes":
        classes = scored_classes(evidence, scaled(evidence.scores, temperature, multi_label=True))
    return tuple(each.chosen(kept, aim) for each in classes), measured | {"fitted": 1.0}


def _measured_thresholds(
    classes: Sequence[ScoredClass], default: float, half: _Half, aim: str | float
) -> dict[str, float]:
    """Figures at the threshold of the run, and at thresholds that were chosen on the other half of the samples."""
    before, after = [], []
    for each in classes:
        before.append(each.counts(default))
        counts = np.zeros(3, np.int64)
        for fitted, other in ((half, ~half), (~half, half)):
            threshold = each.of(fitted).chosen(default, aim)
            counts += each.of(other).counts(threshold)
        after.append(counts)
    figures = {f"fitted_{name}": value for name, value in _means(after).items()}
    return {"f1": _means(before)["f1"], **figures}


def _means(counts: Sequence[NDArray[np.int64]]) -> dict[str, float]:
    """Means over the classes of F1, precision and recall; a class of which nothing was found has a precision of 0."""
    hits, found, there = np.stack(counts).T
    ratios = {
        "f1": 2 * hits / (found + there),
        "precision": hits / np.maximum(found, 1),
        "recall": hits / there,
    }
    return {name: float(ratio.mean()) for name, ratio in ratios.items()}
