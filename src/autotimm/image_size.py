"""The size of the images that a network sees: a whole number is the side of a square, two are height and width.

Squares stay numbers wherever they are kept, so that records of squares are the same whichever way they were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["MUST", "ImageSize", "height_and_width", "read_image_size", "written_size"]

ImageSize: TypeAlias = int | tuple[int, int]
"""The side of a square in pixels, or height and width."""

MUST = "a whole number, 1 or more, or height and width, such as 480x640"
"""What a size must be, as it stands in an error sentence."""

_MOST_BITS = 31  # of a side: more fits into no image


def read_image_size(value: object) -> ImageSize:
    """Convert a size that was given as a number, as two, or as text.

    Raises:
        ValueError: If it is no size.
        TypeError: If it is no size.

    Example:
        >>> read_image_size("224"), read_image_size("480x640"), read_image_size([480, 640]), read_image_size((64, 64))
        (224, (480, 640), (480, 640), 64)
    """
    parts: Sequence[object] = [value]
    if isinstance(value, str):
        parts = value.lower().split("x")
    elif isinstance(value, (list, tuple)):
        if len(value) != 2:
            raise ValueError
        parts = value
    sides = [_side(part) for part in parts]
    if len(sides) > 2:
        raise ValueError
    return sides[0] if sides[0] == sides[-1] else (sides[0], sides[1])


def _side(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError
    side = int(value)
    if side < 1 or side.bit_length() > _MOST_BITS:
        raise ValueError
    return side


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """Both sides.

    Example:
        >>> height_and_width(224), height_and_width((480, 640))
        ((224, 224), (480, 640))
    """
    return (size, size) if isinstance(size, int) else size


def written_size(size: ImageSize) -> str:
    """A size as people write it.

    Example:
        >>> written_size(224), written_size((480, 640))
        ('224', '480x640')
    """
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"
