"""A color for each class: the same in every picture, and far from those of its neighbors."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["BLACK", "Color", "WHITE", "class_colors", "css_colors", "is_background", "readable_on"]


Color: TypeAlias = tuple[int, int, int]

BLACK: Color = (0, 0, 0)
WHITE: Color = (255, 255, 255)

_GOLDEN = 0.618033988749895  # of the circle of hues: the next color always falls into the widest gap
_TONES = ((0.9, 0.95), (0.5, 1.0), (0.9, 0.6))  # saturation and value, in turns
_BACKGROUND = frozenset(("background", "_background_", "bg", "unlabeled", "unlabelled", "void", "none"))


def is_background(name: str) -> bool:
    """Whether a class is what is left beside the objects; it is not painted."""
    return name.strip().casefold() in _BACKGROUND


def class_colors(class_names: Sequence[str]) -> list[Color]:
    """One RGB color per class, a function of its index alone; black for a background.

    Example:
        >>> class_colors(["background", "cat", "dog"])
        [(0, 0, 0), (128, 165, 255), (96, 153, 15)]
    """
    return [BLACK if is_background(name) else _color(index) for index, name in enumerate(class_names)]


def css_colors(class_names: Sequence[str]) -> list[str]:
    """The same colors as CSS writes them.

    Example:
        >>> css_colors(["background", "cat"])
        ['#000000', '#80a5ff']
    """
    return ["#{:02x}{:02x}{:02x}".format(*color) for color in class_colors(class_names)]


def _color(index: int) -> Color:
    saturation, value = _TONES[index % len(_TONES)]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def readable_on(color: Color) -> Color:
    """Black or white, whichever can be read on a color better (weights of ITU-R BT.601)."""
    red, green, blue = color
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 127 else WHITE
