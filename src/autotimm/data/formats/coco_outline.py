"""What COCO calls a segmentation: polygons, or run lengths in two spellings; checked as far as the decoder does not."""

from __future__ import annotations

from typing import Any

import numpy as np

from autotimm.data.outline import Outline, Polygons, RunLengths

__all__ = ["read_outline"]


def read_outline(segmentation: Any) -> Outline | None:
    """Read what COCO calls a segmentation, and check it as far as the decoder does not.

    Args:
        segmentation: A list of polygons; one polygon; run lengths, compressed or not.

    Returns:
        ``None`` if there is none: no list, or no polygon of three corners.

    Raises:
        ValueError: If it is broken, with the reason.
    """
    if isinstance(segmentation, dict):
        return _read_runs(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    lists = [segmentation] if isinstance(segmentation[0], (int, float)) else segmentation
    parts = []
    for numbers in lists:
        try:
            part = np.array(numbers, np.float64)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("a polygon that is no list of numbers") from None
        if part.ndim != 1 or part.size % 2 or not np.isfinite(part).all():
            raise ValueError("a polygon that is no list of x and y")
        if part.size >= 6:  # pycocotools would take four numbers for a box
            parts.append(part.reshape(-1, 2))
    return Polygons(tuple(parts)) if parts else None


def _read_runs(segmentation: dict[str, Any]) -> RunLengths:
    counts = segmentation.get("counts")
    try:
        height, width = (int(side) for side in segmentation["size"])
        runs = _uncompressed(counts) if isinstance(counts, str) else [int(run) for run in counts or ()]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError("run lengths that cannot be read") from None
    # pycocotools writes past the end of its memory, or leaves garbage, where the runs do not fill the mask.
    if min(runs, default=0) < 0 or sum(runs) != height * width or height * width >= 1 << 32:
        raise ValueError("run lengths that do not fill their mask")
    if isinstance(counts, str):
        return RunLengths(height, width, counts.encode("ascii"))
    return RunLengths.of_counts(height, width, runs)


def _uncompressed(text: str) -> list[int]:
    """Undo COCO's spelling: six bits a character, the lowest first, and from the third run on differences."""
    runs: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        bits = code - 48
        if not 0 <= bits < 64:
            raise ValueError
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError
    return runs
