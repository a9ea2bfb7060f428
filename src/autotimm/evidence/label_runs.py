"""Label maps as run lengths, reduced so that the longer side has at most 256 pixels: for pictures, not for figures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONGEST_SIDE", "LabelRuns"]

LONGEST_SIDE = 256
"""Pixels of the longer side of a stored label map: at most 65,536 runs, however large the image is."""


class LabelRuns(NamedTuple):
    """A label map (H, W) as runs of equal labels, row by row.

    Attributes:
        height: Rows.
        width: Columns.
        values: The label of each run, ``uint8`` (R,).
        lengths: The number of pixels of each run, ``int32`` (R,).
    """

    height: int
    width: int
    values: NDArray[np.uint8]
    lengths: NDArray[np.int32]

    @classmethod
    def of(cls, labels: NDArray[np.uint8], longest: int = LONGEST_SIDE) -> LabelRuns:
        """Reduce a label map to its pixels on a regular grid, and count runs.

        Example:
            >>> runs = LabelRuns.of(np.array([[0, 0, 1], [1, 1, 2]], np.uint8))
            >>> runs.values.tolist(), runs.lengths.tolist()
            ([0, 1, 2], [2, 3, 1])
        """
        height, width = labels.shape
        scale = max(1.0, max(height, width) / longest)
        rows, columns = (_grid(size, max(1, round(size / scale))) for size in (height, width))
        reduced = labels[rows[:, None], columns]
        flat = reduced.ravel()
        starts = np.flatnonzero(np.diff(flat, prepend=flat[0] ^ 1))
        lengths = np.diff(starts, append=flat.size).astype(np.int32)
        return cls(len(rows), len(columns), flat[starts], lengths)

    def labels(self) -> NDArray[np.uint8]:
        """The label map, ``uint8`` (height, width)."""
        return np.repeat(self.values, self.lengths).reshape(self.height, self.width)


def _grid(size: int, reduced: int) -> NDArray[np.int64]:
    """The pixels whose centers are nearest to those of a smaller grid."""
    return ((np.arange(reduced) + 0.5) * size / reduced).astype(np.int64)
