"""How far the objects that a file finds agree with those of its run.

A detector drops objects below a score, objects that overlap a better one, and all beyond a number. Where a score or an
overlap equals such a limit up to rounding, or two objects that overlap have the same score, an object may be there in
one list and not in the other. Such objects count as undecided; any other that has no counterpart is a disagreement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import box_iou

from autotimm.export.graph import Agreement, Size
from autotimm.export.object_heads import Limits

__all__ = ["compare_objects"]

_SAME = 0.9  # overlap from which on two boxes are those of one object
_NEAR = 0.1  # pixels between the sides of two such boxes
_OVERLAP_ROUNDING = 1e-3  # of an overlap: that of boxes of a few pixels changes by as much with their last bits


def compare_objects(
    expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], tolerance: float, limits: Limits
) -> Agreement:
    """Compare the objects of some images.

    Args:
        expected: Those of the run: ``boxes`` (K, 4), ``scores`` (K,), ``labels`` (K,) and perhaps ``masks``, run
            lengths as ``((height, width), counts)``.
        found: Those of the file.
        tolerance: The allowed difference of scores.
        limits: Where the detector decides.

    Returns:
        The largest differences of ``scores``, of ``boxes`` as a share of the longer side of the box, and of the overlap
        of ``masks`` from 1; and how many objects of one list are not in the other.
    """
    differences = {"scores": 0.0, "boxes": 0.0}
    undecided = disagreements = 0
    for mine, theirs in zip(expected, found, strict=True):
        pairs = _pairs(mine, theirs)
        for here, there in pairs:
            box, other = mine["boxes"][here], theirs["boxes"][there]
            side = float((box[2:] - box[:2]).max().clamp(min=1))
            _raise(differences, "scores", float((mine["scores"][here] - theirs["scores"][there]).abs()))
            _raise(differences, "boxes", float((box - other).abs().max()) / side)
            if "masks" in mine:
                _raise(differences, "masks", 1 - _mask_overlap(mine["masks"][here], theirs["masks"][there]))
        for objects, others, at in ((mine, theirs, 0), (theirs, mine, 1)):
            paired = {pair[at] for pair in pairs}
            lost = [index for index in range(len(objects["scores"])) if index not in paired]
            doubtful = sum(_is_doubtful(objects, others, index, tolerance, limits) for index in lost)
            undecided += doubtful
            disagreements += len(lost) - doubtful
    return Agreement(differences, undecided, disagreements)


def _raise(differences: dict[str, float], name: str, value: float) -> None:
    differences[name] = max(differences.get(name, 0.0), value)


def _pairs(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Objects of one class that overlap most, each with one of the other list."""
    overlaps = box_iou(mine["boxes"], theirs["boxes"])
    near = torch.cdist(mine["boxes"], theirs["boxes"], p=torch.inf) <= _NEAR  # boxes on the border may have no area
    same = ((overlaps >= _SAME) | near) & (mine["labels"][:, None] == theirs["labels"])
    # Of several in one place, those with the same score belong together.
    likeness = overlaps.nan_to_num(0.0) - (mine["scores"][:, None] - theirs["scores"]).abs()
    pairs, free = [], torch.ones(len(theirs["scores"]), dtype=torch.bool)
    for here in range(len(overlaps)):
        fitting = same[here] & free
        if bool(fitting.any()):
            there = int(torch.where(fitting, likeness[here], -2.0).argmax())
            free[there] = False
            pairs.append((here, there))
    return pairs


def _is_doubtful(
    objects: Mapping[str, Any], others: Mapping[str, Any], index: int, tolerance: float, limits: Limits
) -> bool:
    """Whether an object that only one list has may be there or not, up to rounding."""
    score: Tensor = objects["scores"][index]
    if float(score) <= limits.score + tolerance:
        return True
    for listed in (objects, others):
        if len(listed["scores"]) >= limits.number and float(score) <= float(listed["scores"].min()) + tolerance:
            return True
        rivals = listed["labels"] == objects["labels"][index]
        overlaps = box_iou(objects["boxes"][index : index + 1], listed["boxes"][rivals])[0]
        if bool(((overlaps - limits.overlap).abs() <= _OVERLAP_ROUNDING).any()):
            return True
        # Of two with one score, rounding decides which drops the other.
        equal = (listed["scores"][rivals] - score).abs() <= tolerance
        if listed is others and bool((equal & (overlaps > limits.overlap)).any()):
            return True
    return False


def _mask_overlap(mine: tuple[Size, bytes], theirs: tuple[Size, bytes]) -> float:
    """The intersection over union of two masks; 1 for two empty ones."""
    first, second = ({"size": list(size), "counts": counts} for size, counts in (mine, theirs))
    if not int(coco_mask.area(first)) + int(coco_mask.area(second)):
        return 1.0
    return float(coco_mask.iou([first], [second], [False])[0, 0])
