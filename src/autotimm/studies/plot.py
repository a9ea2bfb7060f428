"""The results of a study as a picture: every seed a dot, with mean and interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotimm.repro.files import atomic_path
from autotimm.studies.results import Results
from autotimm.studies.statistics import Summary, summarize

__all__ = ["draw"]

_A, _B, _GRAY = "#1f77b4", "#d95f02", "#9a9a9a"  # told apart by people who see no red or green, too
_COLUMNS = 4
_SPREAD = 0.16  # how far apart dots of one column may lie


def draw(path: Path, results: Results) -> bool:
    """Draw every metric in a panel of its own: dots for seeds, a bar for the 95 % interval of the mean.

    With two configurations a line joins the two runs of a seed. With single streams varied each has a column.

    Args:
        path: The PNG file.
        results: What to draw.

    Returns:
        Whether it was drawn; not without matplotlib, which is an optional extra.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # optional; without pyplot, whose state is global
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = results.names
    rows = -(-len(names) // _COLUMNS)
    columns = -(-len(names) // rows)
    groups = len(results.plan.groups)
    figure = Figure(figsize=(columns * (1.9 + 0.55 * groups), 0.4 + rows * 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(names):
        _panel(figure.add_subplot(rows, columns, number + 1), results, name)
    figure.suptitle(f"{len(results.plan.seeds)} seeds; dots are runs, bars the 95 % interval of the mean", fontsize=9)
    with atomic_path(path) as temporary:
        # Without the version of matplotlib: equal results give equal files.
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    return True


def _panel(axes: Any, results: Results, name: str) -> None:
    groups = [*results.plan.groups]
    values = [results.values(arm, name, vary) for arm, vary in groups]
    if results.paired:
        for pair in zip(*values, strict=True):
            axes.plot((0.0, 1.0), pair, color=_GRAY, linewidth=0.9, zorder=1)
    for place, ((arm, _), found) in enumerate(zip(groups, values, strict=True)):
        offsets = [0.0] * len(found) if results.paired else _offsets(found)
        color = _B if arm == "b" else _A
        axes.scatter([place + x for x in offsets], found, s=26, color=color, alpha=0.75, linewidths=0, zorder=3)
        _interval(axes, place + (0.3 if arm == "b" or not results.paired else -0.3), summarize(found), color)
    labels = [_label(results, arm, vary) for arm, vary in groups]
    axes.set_xticks(range(len(groups)), labels, fontsize=8)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    title = f"{name}\nB − A, p = {results.paired[name].p:.2g}" if results.paired else name
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _interval(axes: Any, place: float, one: Summary, color: str) -> None:
    axes.vlines(place, one.low, one.high, color=color, linewidth=2.2, zorder=2)
    axes.plot([place], [one.mean], marker="_", color=color, markersize=11, markeredgewidth=2.2, zorder=4)


def _offsets(values: list[float]) -> list[float]:
    """Sideways steps that keep dots of nearly equal values from covering each other; no random numbers."""
    width = (max(values) - min(values)) / 12 or 1.0
    seen: dict[int, int] = {}
    steps = []
    for value in values:
        bin_ = round(value / width)
        seen[bin_] = count = seen.get(bin_, 0) + 1
        steps.append(count // 2 * (1 if count % 2 else -1))
    most = max(map(abs, steps)) or 1
    return [-0.1 + step * min(0.07, _SPREAD / most) for step in steps]


def _label(results: Results, arm: str, vary: str) -> str:
    if results.paired:
        return arm.upper()
    if results.plan.single and vary == results.plan.whole:
        return "together"
    return vary.replace("+", "\n")
