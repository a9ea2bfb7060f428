"""Figures of detection and instance segmentation, made of evidence: average precision as in COCO, and its causes.

Predicted objects are matched with true ones by pycocotools; what is computed from the matches here can be weighted, so
that a bootstrap does not match again.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from autotimm.evidence.evidence_file import Evidence

__all__ = ["AREAS", "Matches", "ObjectPair", "match_objects", "object_pairs"]

AREAS = ("all", "small", "medium", "large")
"""COCO's sizes of objects: below 32² pixels, up to 96², and above."""

_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Matches:
    """The predicted objects of one class and size, the best score first, and what they were matched with.

    Attributes:
        image: The index of the image of each (K,).
        score: Its score (K,).
        hit: Whether it was matched at each of the overlaps, ten or one (O, K), of which the first is one half.
        ignored: Whether it counts neither as right nor as wrong (O, K).
        there: True objects in each image (N,).
    """

    image: NDArray[np.int64]
    score: NDArray[np.float64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    there: NDArray[np.int64]

    def curve(self, weights: NDArray[Any], overlap: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Recall and precision after each object, (R, K), for several weightings (R, N) of the images."""
        counts = weights[:, self.image] * ~self.ignored[overlap]
        hits = np.cumsum(counts * self.hit[overlap], axis=1, dtype=np.float64)
        found = np.cumsum(counts, axis=1, dtype=np.float64)
        there = (weights @ self.there)[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            return hits / there, hits / np.maximum(found, np.spacing(1))

    def average_precision(self, weights: NDArray[Any], overlaps: range = range(10)) -> NDArray[np.float64]:
        """COCO's average precision (R,) for several weightings (R, N) of the images; NaN without a true object."""
        values = [self._interpolated(weights, overlap) for overlap in overlaps]
        return np.where(weights @ self.there > 0, np.mean(values, axis=0), np.nan)

    def _interpolated(self, weights: NDArray[Any], overlap: int) -> NDArray[np.float64]:
        recall, precision = self.curve(weights, overlap)
        if not len(self.image):
            return np.zeros(len(weights))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # no precision is below a later one
        values = np.zeros(len(weights))
        for row in range(len(weights)):
            at = np.searchsorted(recall[row], _RECALLS, side="left")
            values[row] = np.append(best[row], 0.0)[at].mean()
        return values


def _dataset(evidence: Evidence) -> tuple[COCO, COCO]:
    """Truth and predictions as pycocotools holds them; images and objects are numbered from 1, classes too."""
    sizes = evidence["sizes"].tolist()
    images = [{"id": at + 1, "height": size[0], "width": size[1]} for at, size in enumerate(sizes)]
    categories = [{"id": at + 1, "name": name} for at, name in enumerate(evidence.class_names)]
    sides = []
    for true in (True, False):
        side = COCO()
        side.dataset = {"images": images, "categories": categories, "annotations": [*_annotations(evidence, true)]}
        with contextlib.redirect_stdout(io.StringIO()):  # it tells how long that took
            side.createIndex()
        sides.append(side)
    return sides[0], sides[1]


def _annotations(evidence: Evidence, true: bool) -> Iterator[dict[str, Any]]:
    prefix = "true_" if true else ""
    boxes, labels = evidence[f"{prefix}boxes"].astype(np.float64), evidence[f"{prefix}labels"]
    for image in range(len(evidence)):
        size, rows = evidence["sizes"][image].tolist(), evidence.of_image(image, true=true)
        for row in range(rows.start, rows.stop):
            x1, y1, x2, y2 = boxes[row].tolist()
            area = (x2 - x1) * (y2 - y1)
            each: dict[str, Any] = {"id": row + 1, "image_id": image + 1, "category_id": int(labels[row]) + 1}
            each |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0}
            if evidence.kind == "instances":
                each["segmentation"] = {"size": size, "counts": evidence.mask(row, true=true)}
                each["area"] = float(coco_mask.area(each["segmentation"]))
            if true:
                each["iscrowd"] = int(evidence["true_crowd"][row])
                each["area"] = float(evidence["true_area"][row]) or each["area"]
            else:
                each["score"] = float(evidence.scores[row])
            yield each


def match_objects(evidence: Evidence, *, quick: bool = False) -> dict[tuple[int, str], Matches]:
    """Match predicted with true objects, by masks where there are any: the matches of each class and size.

    Those of all sizes are matched at ten overlaps, those of one size at an overlap of one half alone, which is quick.

    Args:
        evidence: What was predicted, and the truth.
        quick: Match objects of all sizes together, and at an overlap of one half alone.
    """
    truth, found = _dataset(evidence)
    matched: dict[tuple[int, str], Matches] = {}
    for areas, overlaps in ((AREAS[:1], 1),) if quick else ((AREAS[:1], 10), (AREAS[1:], 1)):
        judge = COCOeval(truth, found, "segm" if evidence.kind == "instances" else "bbox")
        judge.params.areaRng = [judge.params.areaRng[AREAS.index(area)] for area in areas]
        judge.params.areaRngLbl = list(areas)
        judge.params.iouThrs = judge.params.iouThrs[:overlaps]
        judge.params.maxDets = [max(1, int(np.diff(evidence["offsets"]).max(initial=0)))]
        with contextlib.redirect_stdout(io.StringIO()):
            judge.evaluate()
        cells = iter(judge.evalImgs)  # by class, then by size, then by image
        for label in range(len(evidence.class_names)):
            for area in areas:
                matched[label, area] = _joined([next(cells) for _ in range(len(evidence))], overlaps)
    return matched


def _joined(images: list[dict[str, Any] | None], overlaps: int) -> Matches:
    """The matches of all images in one list, in the order in which COCO counts them."""
    there = np.array([0 if each is None else int((~np.asarray(each["gtIgnore"], bool)).sum()) for each in images])
    parts = [(at, each) for at, each in enumerate(images) if each is not None and len(each["dtScores"])]
    if not parts:
        none = np.zeros((overlaps, 0), bool)
        return Matches(np.zeros(0, np.int64), np.zeros(0), none, none, there)
    image = np.concatenate([np.full(len(each["dtScores"]), at) for at, each in parts])
    score = np.concatenate([each["dtScores"] for _, each in parts]).astype(np.float64)
    order = np.argsort(-score, kind="mergesort")
    hit, ignored = (np.concatenate([np.asarray(each[name], bool) for _, each in parts], axis=1)[:, order]
                    for name in ("dtMatches", "dtIgnore"))  # fmt: skip
    return Matches(image[order], score[order], hit, ignored, there)


@dataclass(frozen=True)
class ObjectPair:
    """A true object and what was found in its place, or one of the two alone.

    Attributes:
        image: The index of the image.
        true: The row of the true object; -1 for what is nothing in truth.
        found: The row of the predicted object; -1 for an object that was missed.
    """

    image: int
    true: int
    found: int


def object_pairs(evidence: Evidence, threshold: float, overlap: float = 0.5) -> list[ObjectPair]:
    """Pair predicted objects from a score on with true ones of any class whose boxes overlap, the best score first.

    Objects in crowds are left out, and predictions within them too.
    """
    pairs: list[ObjectPair] = []
    for image in range(len(evidence)):
        found, true = evidence.of_image(image), evidence.of_image(image, true=True)
        rows = found.start + np.flatnonzero(evidence.scores[found] >= threshold)
        rows = rows[np.argsort(-evidence.scores[rows], kind="stable")]
        crowd = evidence["true_crowd"][true].astype(bool)
        shares = _overlaps(evidence["boxes"][rows], evidence["true_boxes"][true], crowd)
        free = ~crowd
        for at, row in enumerate(rows.tolist()):
            fits = np.where(free, shares[at], -1.0)
            # Of equally good places the one of its own class.
            own = evidence["true_labels"][true] == evidence["labels"][row]
            best = int(np.lexsort((own, np.round(fits, 6)))[-1]) if len(fits) else -1
            if best >= 0 and fits[best] >= overlap:
                free[best] = False
                pairs.append(ObjectPair(image, true.start + best, row))
            elif not (len(crowd) and (shares[at][crowd] >= overlap).any()):
                pairs.append(ObjectPair(image, -1, row))
        pairs += [ObjectPair(image, true.start + int(at), -1) for at in np.flatnonzero(free)]
    return pairs


def _overlaps(found: NDArray[Any], true: NDArray[Any], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Intersection over union of boxes (K, T); over the found box's own area for crowds."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2, dtype=np.float64)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1, dtype=np.float64) for boxes in (found, true)]
    total = np.where(crowd[None], areas[0][:, None], areas[0][:, None] + areas[1][None] - both)
    return np.asarray(both / np.maximum(total, np.finfo(np.float64).tiny))
