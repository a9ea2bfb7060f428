"""Sets of classes that contain the true one with a given probability: split-conformal prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from autotimm.errors import UsageError, number, require
from autotimm.evidence.evidence_file import Evidence
from autotimm.evidence.temperature import scaled
from autotimm.types import Prediction

__all__ = ["least_score", "with_members"]

_ROUNDING = 1e-6  # of scores in 32 bits, so that a class at the limit is a member


def least_score(evidence: Evidence, coverage: float, temperature: float = 1.0) -> float:
    """The probability from which on a class is a member of the set of an image.

    A set contains the true class of a share ``coverage`` of images at least, on average over draws of the validation
    samples and of the image, if both are drawn alike. It says nothing of a single class, nor of other images.

    Args:
        evidence: Predictions of validation samples, of one class each.
        coverage: The share of sets that shall contain the true class, in (0, 1).
        temperature: What logits are divided by before they are compared.

    Returns:
        The score, 0 if there are too few samples for such a coverage: then each set has all classes.

    Raises:
        UsageError: If the coverage is out of range, or the evidence is not that of one class per image.

    Source:
        Sadinle et al., "Least ambiguous set-valued classifiers with bounded error levels", JASA 2019.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], np.float32)
        >>> arrays = {"scores": scores, "targets": np.array([0, 0, 1])}
        >>> evidence = Evidence("val", "classes", False, None, ("a", "b"), ("1", "2", "3"), arrays)
        >>> round(least_score(evidence, 0.75), 6), least_score(evidence, 0.9)
        (0.6, 0.0)
    """
    require(0 < number(coverage) < 1, "coverage", "predict", "in (0, 1)", coverage, "Give for example 0.9.")
    if evidence.kind != "classes" or evidence.multi_label:
        raise UsageError("The `coverage` of predict must be left out: sets are of images that have one class each.")
    scores = scaled(evidence.scores, temperature, multi_label=False)
    true = np.sort(scores[np.arange(len(scores)), evidence.targets])[::-1]
    rank = math.ceil((len(true) + 1) * coverage)
    return float(true[rank - 1]) if rank <= len(true) else 0.0


def with_members(predictions: Iterable[Prediction], least: float) -> list[Prediction]:
    """Predictions with their sets: the likeliest class, and all classes from a score on.

    Example:
        >>> with_members([Prediction("1.jpg", ("cat",), {"cat": 0.6, "dog": 0.3, "eel": 0.1})], 0.2)[0].members
        ('cat', 'dog')
    """
    found = []
    for prediction in predictions:
        ranked = sorted(prediction.scores.items(), key=lambda pair: -pair[1])
        members = [name for at, (name, score) in enumerate(ranked) if at == 0 or score >= least - _ROUNDING]
        found.append(prediction._replace(members=tuple(members)))
    return found
