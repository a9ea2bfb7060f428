"""What the values of masks tell without a table: which are areas of a class, and which are soft edges between them.

A mask that was resized with smoothing, or saved as JPEG, has values between those that somebody painted. They are told
from classes by their shape: an area of a class consists of squares of 2x2 equal pixels, a soft edge hardly has any.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from autotimm.data.annotations.masks import IGNORED, VOC_BORDER, MaskCode, MaskFacts, color_name
from autotimm.errors import join_names

__all__ = ["MaskValues", "SoftCode", "areas_among", "is_stretched", "palettes_differ", "with_soft_edges"]

_NEARLY_ALL = 0.9  # of the pixels lie on the values of classes: small pictures of many objects have that many edges
_MOSTLY = 0.75  # the same, where black and white alone make areas and other values are light: indices are small
_LIGHT = 128
_SOLID = 0.25  # squares per pixel: 1 in large areas, 0.25 in a dot of 2x2 pixels, 0 in edges and lines
_SURELY_SOLID = 0.6
_SHARE = 0.002  # of all pixels; compression leaves small areas of other values beside edges
_APART = 16  # values of classes differ by that much where edges between them are soft
_NEAR = 8  # what lossy compression changes a value by


@dataclass(frozen=True)
class MaskValues:
    """The values or colors of several masks.

    Attributes:
        by_color: Whether they are colors.
        pixels: How many pixels have each.
        squares: How many squares of 2x2 pixels have each.
        total: The number of all pixels, those of values that no mask lists among them.
    """

    by_color: bool
    pixels: Counter[int]
    squares: Counter[int]
    total: int

    @classmethod
    def of(cls, facts: Iterable[MaskFacts], by_color: bool) -> MaskValues:
        """Add up masks. Those of colors have no values, and count only by color."""
        pixels, squares, total = Counter[int](), Counter[int](), 0
        for fact in facts:
            total += fact.width * fact.height
            for key, count, solid in zip(_keys(fact, by_color), fact.counts, fact.solid, strict=True):
                pixels[key] += count
                squares[key] += solid
        return cls(by_color, pixels, squares, total)

    def solidity(self, value: int) -> float:
        """Squares per pixel of a value."""
        return self.squares[value] / self.pixels[value] if self.pixels[value] else 0.0

    def distance(self, one: int, other: int) -> int:
        """The difference of two values, or the largest difference of a channel of two colors."""
        if not self.by_color:
            return abs(one - other)
        return max(abs((one >> shift & 255) - (other >> shift & 255)) for shift in (16, 8, 0))

    def described(self, limit: int = 10) -> str:
        """The most frequent values with their pixels, for errors."""
        name = color_name if self.by_color else str
        listed = sorted(self.pixels.items(), key=lambda item: (-item[1], item[0]))
        return join_names([f"{name(value)} ({count} pixels)" for value, count in listed], limit) or "no pixels"


def _keys(fact: MaskFacts, by_color: bool) -> Sequence[int]:
    return fact.colors if by_color or fact.values is None else fact.values


def areas_among(values: MaskValues, lossy: bool) -> list[int] | None:
    """The few gray values that classes were painted with, where edges between them are soft.

    Args:
        values: The values of the masks.
        lossy: Whether a file among them is known to keep values inexactly.

    Returns:
        The values in ascending order; empty where edges are soft and the classes cannot be told; ``None`` where values
        are classes as they are.
    """
    solid = [value for value in values.pixels if values.solidity(value) >= _SOLID]
    thin = len(values.pixels) - len(solid)
    black_and_white = set(solid) <= {0, 255} and thin > 0 and 255 in solid
    if not (lossy or black_and_white or thin > len(solid)):
        return None
    large = [value for value in solid if values.pixels[value] >= _SHARE * values.total]
    sure = sorted(value for value in large if values.solidity(value) >= _SURELY_SOLID)
    if not lossy and any(after - value < _APART for value, after in itertools.pairwise(sure)):
        return [] if thin > _NEAR or 255 in sure else None  # 0, 1, 2 and 255: an edge may have the value of a class
    areas: list[int] = []
    for value in sorted(solid, key=lambda value: (-values.pixels[value], value)):
        counts = value in large or values.solidity(value) >= _SURELY_SOLID
        if counts and all(values.distance(value, area) >= _APART for area in areas):
            areas.append(value)
    near = sum(
        count for value, count in values.pixels.items() if any(values.distance(value, area) <= _NEAR for area in areas)
    )
    light = any(_LIGHT <= value < 255 for value in values.pixels)
    if len(areas) >= 2 and near >= (_MOSTLY if black_and_white and light else _NEARLY_ALL) * values.total:
        return sorted(areas)
    # Lines and dots of a few classes have no squares either.
    return [] if lossy or thin > max(_NEAR, 2 * len(solid)) else None


def is_stretched(areas: Sequence[int]) -> bool:
    """Whether three or more values are spread evenly over 0 to 255, as programs paint masks to be seen by people.

    Example:
        >>> is_stretched([0, 128, 255]), is_stretched([0, 1, 255])
        (True, False)
    """
    if len(areas) < 3 or areas[0] != 0 or areas[-1] != 255:
        return False
    step = 255 / (len(areas) - 1)
    return all(abs(value - step * at) <= 2 for at, value in enumerate(areas))


class SoftCode(NamedTuple):
    """How masks with soft edges are read by a table.

    Attributes:
        code: The code.
        unknown: Values that make areas and are not in the table.
    """

    code: MaskCode
    unknown: frozenset[int] = frozenset()


def with_soft_edges(code: MaskCode, values: MaskValues, lossy: bool) -> SoftCode:
    """A code by which soft edges between the values of a table belong to the nearest of them.

    Values that the table does not name and that make areas stay unknown. The code is the same where no edge is soft, or
    where the values of the table are too near to each other to tell.
    """
    implied = {VOC_BORDER if code.by_color else IGNORED} & values.pixels.keys() - set(code.keys)
    named = [*code.keys, *implied]
    if any(values.distance(one, other) < _APART for at, one in enumerate(named) for other in named[:at]):
        return SoftCode(code)
    others = {value for value in values.pixels if value >= 0} - set(named)
    near = {value for value in others if any(values.distance(value, key) <= _NEAR for key in named)}
    shifted = near if lossy or len(near) > len(named) else set()  # compression shifts whole areas
    areas = {value for value in others - shifted if values.solidity(value) >= _SOLID}
    soft = others - shifted - areas
    pixels = values.total - sum(values.pixels.values()) + sum(values.pixels[value] for value in soft)
    if not (shifted or pixels) or pixels > (1 - _NEARLY_ALL) * values.total:
        return SoftCode(code)
    keys = (*code.keys, *sorted(implied), *sorted(areas))
    classes = (*code.classes, *(IGNORED for _ in (*implied, *areas)))
    return SoftCode(MaskCode(code.by_color, keys, classes, nearest=True), frozenset(areas))


def palettes_differ(facts: Iterable[MaskFacts]) -> bool:
    """Whether an index that occurs has different colors in the palettes of different masks."""
    colors: dict[int, int] = {}
    for fact in facts:
        if fact.palette:
            for value, color in zip(fact.values or (), fact.colors, strict=True):
                if colors.setdefault(value, color) != color:
                    return True
    return False
