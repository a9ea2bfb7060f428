"""Thresholds decide which labels of an image, or which objects, are predicted: the score from which on a class is."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotimm.evidence.evidence_file import Evidence
from autotimm.evidence.object_matches import match_objects
from autotimm.evidence.temperature import scaled

__all__ = ["F1", "ScoredClass", "at_temperature", "choose_threshold", "scored_classes"]

F1 = "f1"
"""The aim of thresholds that balance precision and recall; any other aim is a precision."""


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
    if isinstance(aim, str):
        worth = 2 * hits / (found + there)
    else:
        worth = hits / found
        if (enough := worth >= aim).any():
            worth = np.where(enough, hits, -1)  # the most hits are the highest recall
    best = int(worth.argmax())
    least_found = score[ends[best]]
    next_score = score[ends[best] + 1] if best + 1 < len(ends) else 0.0
    return _inside((least_found + next_score) / 2)


def at_temperature(threshold: float, temperature: float) -> float:
    """The calibrated score of what the network itself gives a score of; a temperature moves all but one half."""
    if temperature == 1:
        return threshold
    return _inside(float(scaled(np.array([[threshold]]), temperature, multi_label=True)[0, 0]))


def _inside(threshold: float) -> float:
    """A threshold within (0, 1), as a record must have it."""
    return float(np.clip(threshold, 1e-6, 1 - 1e-6))


class ScoredClass(NamedTuple):
    """What was found of one class, and how much of it is there.

    Attributes:
        sample: The index of the sample of each (K,).
        score: Its score (K,).
        right: Whether it is right (K,).
        there: How many there are in each sample in truth (N,).
    """

    sample: NDArray[np.int64]
    score: NDArray[np.float64]
    right: NDArray[np.bool_]
    there: NDArray[np.int64]

    @property
    def occurs(self) -> bool:
        """Whether any sample has the class in truth."""
        return bool(self.there.sum())

    def of(self, samples: NDArray[np.bool_]) -> ScoredClass:
        """The part of some samples, ``bool`` (N,)."""
        kept = samples[self.sample]
        return ScoredClass(self.sample[kept], self.score[kept], self.right[kept], np.where(samples, self.there, 0))

    def chosen(self, default: float, aim: str | float) -> float:
        """The threshold that :func:`choose_threshold` chooses, or a default if there is nothing to choose from."""
        threshold = choose_threshold(self.score, self.right, int(self.there.sum()), aim)
        return default if threshold is None else threshold

    def counts(self, threshold: float) -> NDArray[np.int64]:
        """Right ones, found ones and those that are there, from a score on (3,)."""
        kept = self.score >= threshold
        return np.array([(kept & self.right).sum(), kept.sum(), self.there.sum()], np.int64)


def scored_classes(evidence: Evidence, scores: NDArray[Any]) -> list[ScoredClass]:
    """What was found of each class: all labels, or all objects with those that they were matched with.

    Args:
        evidence: Predictions of several labels per image, or of objects.
        scores: The scores of labels (N, C), which may be calibrated; objects have those of the evidence.
    """
    if evidence.kind == "classes":
        samples, true = np.arange(len(evidence)), evidence.targets.astype(bool)
        columns = zip(scores.astype(np.float64).T, true.T, strict=True)
        return [ScoredClass(samples, column, right, right.astype(np.int64)) for column, right in columns]
    matched = match_objects(evidence, quick=True)
    classes = []
    for label in range(len(evidence.class_names)):
        matches = matched[label, "all"]
        counted = ~matches.ignored[0]
        classes.append(
            ScoredClass(matches.image[counted], matches.score[counted], matches.hit[0][counted], matches.there)
        )
    return classes
