"""Figures of semantic segmentation, made of evidence: IoU per class and per image, and maps of errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotimm.evidence import Evidence

__all__ = ["image_scores", "mean_iou", "region_scores"]


def mean_iou(evidence: Evidence, weights: NDArray[Any]) -> NDArray[np.float64]:
    """The mean over classes of intersection over union (R,), for several weightings (R, N) of the images."""
    both, either = (weights @ evidence[name] for name in ("intersections", "unions"))
    occurs = either > 0
    ratios = np.divide(both, either, out=np.zeros(both.shape), where=occurs)
    return np.asarray(ratios.sum(axis=1) / np.maximum(occurs.sum(axis=1), 1))


def region_scores(evidence: Evidence) -> dict[str, NDArray[Any]]:
    """IoU, Dice, precision and recall of each class (C,), NaN where undefined, and its share of the true pixels."""
    matrix = evidence["confusion"].astype(np.float64)
    both, found, there = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "iou": both / (found + there - both), "dice": 2 * both / (found + there), "precision": both / found,
            "recall": both / there, "share": there / max(there.sum(), 1.0),
        }  # fmt: skip


def image_scores(evidence: Evidence) -> NDArray[np.float64]:
    """The mean IoU of each image (N,), over the classes that occur in it or in its prediction."""
    return mean_iou(evidence, np.eye(len(evidence), dtype=np.int64))
