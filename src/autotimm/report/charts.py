"""Charts as inline SVG: they scale, print and follow the colors of the page. Texts in them are escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from autotimm.evidence.reliability import Bin

__all__ = ["Line", "curve_chart", "epoch_chart", "reliability_chart"]

_WIDTH, _HEIGHT = 320, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 10, 10, 26


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        label: What it shows.
        points: x and y; a y that is not finite is a gap.
    """

    label: str
    points: Sequence[tuple[float, float]]


class _Frame(NamedTuple):
    """The ranges of a chart, and where they lie in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return _LEFT + across * inner_width, _TOP + (1 - up) * inner_height


def epoch_chart(title: str, lines: Sequence[Line], best: float | None = None, first: int = 0) -> Markup:
    """Values over epochs, with the best epoch marked.

    Args:
        title: What the chart shows, for those who cannot see it.
        lines: At least one, with x counted from 1.
        best: The epoch whose weights were kept.
        first: The number of the color of the first line.
    """
    xs = [x for line in lines for x, y in line.points if math.isfinite(y)]
    ys = [y for line in lines for _, y in line.points if math.isfinite(y)]
    ticks = _ticks(min(ys), max(ys))
    low, high = ticks[0], ticks[-1]
    frame = _Frame((min(xs), max(max(xs), min(xs) + 1)), (low, high))
    parts = [_grid(frame, ticks, _whole_ticks(*frame.x))]
    if best is not None:
        (x, top), (_, bottom) = frame.at(best, high), frame.at(best, low)
        parts.append(_BEST_LINE.format(x, top, bottom))
    parts += [_line(frame, line, number, dots=len(line.points) < 25) for number, line in enumerate(lines, first)]
    return _svg(title, parts)


def curve_chart(title: str, lines: Sequence[Line], across: str, mark: float | None = None) -> Markup:
    """Curves in the unit square.

    Args:
        title: What the chart shows.
        lines: At least one.
        across: What x is.
        mark: An x to be marked.
    """
    frame = _Frame((0.0, 1.0), (0.0, 1.0))
    parts = [_grid(frame, _UNIT, _UNIT), _caption(across)]
    if mark is not None:
        x, top = frame.at(mark, 1.0)
        parts.append(_BEST_LINE.format(x, top, _HEIGHT - _BOTTOM))
    parts += [_line(frame, line, number) for number, line in enumerate(lines)]
    return _svg(title, parts)


def reliability_chart(title: str, bins: Sequence[Bin], are: str = "right") -> Markup:
    """The share of right predictions in bins of confidence, beside the diagonal of perfect calibration.

    Args:
        title: What the chart shows.
        bins: The bins.
        are: The word for predictions that count: ``right``, or ``there`` for single labels.
    """
    frame = _Frame((0.0, 1.0), (0.0, 1.0))
    parts = [_grid(frame, _UNIT, _UNIT), _caption("confidence")]
    largest = max((each.size for each in bins), default=1) or 1
    for each in (each for each in bins if each.size):
        (left, top), (right, bottom) = frame.at(each.low + 0.008, each.correct), frame.at(each.high - 0.008, 0)
        text = f"{each.low:.0%} to {each.high:.0%}: {each.correct:.0%} of {each.size} {are}"
        shape = (left, top, right - left, bottom - top, 0.35 + 0.65 * each.size / largest)
        parts.append(_BAR.format(*shape, text))
    (x1, y1), (x2, y2) = frame.at(0, 0), frame.at(1, 1)
    parts.append(Markup('<line class="ideal" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(x1, y1, x2, y2))
    return _svg(title, parts)


_BAR = Markup(
    '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" style="--a:{:.2f}"><title>{}</title></rect>'
)
_GRID_LINE = Markup('<line class="grid" x1="{0:.1f}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>')
_BEST_LINE = Markup('<line class="best" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>')
_UNIT = (0.0, 0.25, 0.5, 0.75, 1.0)


def _svg(title: str, parts: Iterable[Markup]) -> Markup:
    body = Markup("").join(parts)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title>{}</svg>').format(
        _WIDTH, _HEIGHT, title, body
    )


def _grid(frame: _Frame, ys: Sequence[float], xs: Sequence[float]) -> Markup:
    parts = []
    for y in ys:
        left, at = frame.at(frame.x[0], y)
        parts.append(_GRID_LINE.format(left, _WIDTH - _RIGHT, at))
        parts.append(Markup('<text x="{:.1f}" y="{:.1f}" class="y">{:g}</text>').format(left - 6, at + 3.5, y))
    for x in xs:
        at, _ = frame.at(x, frame.y[0])
        parts.append(Markup('<text x="{:.1f}" y="{}" class="x">{:g}</text>').format(at, _HEIGHT - _BOTTOM + 14, x))
    return Markup("").join(parts)


def _caption(text: str) -> Markup:
    return Markup('<text x="{}" y="{}" class="caption">{}</text>').format(_WIDTH - _RIGHT, _HEIGHT - 2, text)


def _line(frame: _Frame, line: Line, number: int, dots: bool = False) -> Markup:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if math.isfinite(y):
            pieces[-1].append(frame.at(x, y))
        elif pieces[-1]:
            pieces.append([])
    path = " ".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in piece) for piece in pieces if piece)
    drawn = Markup('<path class="line s{}" d="{}"><title>{}</title></path>').format(number % 8, path, line.label)
    points = [point for piece in pieces for point in piece] if dots else []
    return drawn + Markup("").join(
        Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="2.2"/>').format(number % 8, *point)
        for point in points
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers at equal distances, from one below the lowest value to one above the highest."""
    if high - low < 1e-9 * max(abs(high), 1e-3):  # a value that never changes is shown beside 0
        low, high = min(low, 0.0), max(high, 0.0) or float(low == 0)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{at * step:.6g}") for at in range(first, last + 1)]


def _whole_ticks(low: float, high: float) -> list[float]:
    step = max(1, math.ceil((high - low) / 6))
    return [low + at * step for at in range(int((high - low) // step) + 1)]
