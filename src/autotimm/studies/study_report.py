"""The results of a study: its statistics, the tables and the plot for people, and the files for programs."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autotimm.config import options
from autotimm.errors import DataError, printable
from autotimm.records.atomic import atomic_path, write_text
from autotimm.records.csv_cells import csv_text, safe_cell
from autotimm.records.manifest import Manifest
from autotimm.runs.run import Run
from autotimm.studies.statistics import Paired, Share, Summary, compare_pairs, least_p, share_variance, summarize
from autotimm.studies.trials import Plan, Trial

__all__ = ["Results", "as_data", "as_text", "draw", "write_csv", "write_json"]


@dataclass(frozen=True)
class Results:
    """The results of a study.

    Attributes:
        plan: The study's runs.
        metrics: The metrics of each run, by its name: those of its best epoch on validation data, and those on test
            data if there is any; without either, those of training.
        summaries: The spread by configuration (``a``, ``b``) and metric.
        paired: The comparison of B with A, by metric.
        shares: The share of the variance, by metric and stream.
        splits: The number of different splits that the runs were evaluated on.
    """

    plan: Plan
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    summaries: dict[str, dict[str, Summary]] = field(default_factory=dict)
    paired: dict[str, Paired] = field(default_factory=dict)
    shares: dict[str, dict[str, Share]] = field(default_factory=dict)
    splits: int = 1

    @classmethod
    def read(cls, plan: Plan) -> Results:
        """Read the results of a plan whose runs have all finished.

        Raises:
            DataError: If the runs have different metrics, or none that is a finite number in each of them.
        """
        metrics = {trial.name: _trial_metrics(trial) for trial in plan.trials}
        if len({tuple(sorted(values)) for values in metrics.values()}) > 1:
            raise DataError(
                f"The runs of {plan.folder} must have the same metrics, but some have others. Use one list of metrics."
            )
        results = cls(plan, metrics)
        names = results.names
        if not names:
            undefined = ", ".join(results.undefined) or "none at all"
            raise DataError(f"The runs of {plan.folder} must have a metric that is a number in each of them. They have "
                            f"{undefined}. Use other metrics.")  # fmt: skip
        summaries = {arm: {name: summarize(results.values(arm, name)) for name in names} for arm in results.arms}
        paired, shares = {}, {}
        for name in names:
            if "b" in summaries:
                paired[name] = compare_pairs(results.values("a", name), results.values("b", name))
            if plan.single:
                alone = {stream: results.values("a", name, stream) for stream in plan.single}
                shares[name] = share_variance(alone, results.values("a", name))
        return cls(plan, metrics, summaries, paired, shares, _count_splits(plan))

    @property
    def arms(self) -> list[str]:
        """``a``, and ``b`` if there are two configurations."""
        return [*dict.fromkeys(arm for arm, _ in self.plan.groups)]

    @property
    def names(self) -> list[str]:
        """The names of the metrics that have statistics: test before validation, and losses last."""
        return [name for name in self.recorded if name not in self.undefined]

    @property
    def undefined(self) -> list[str]:
        """The names of metrics that are no finite number in some run, and so have no statistics."""
        runs = self.metrics.values()
        return [name for name in self.recorded if not all(math.isfinite(metrics[name]) for metrics in runs)]

    @property
    def recorded(self) -> list[str]:
        """The names of all metrics, in the order of :attr:`names`."""
        metrics = next(iter(self.metrics.values()), {})
        return sorted(metrics, key=lambda name: (not name.startswith("test/"), name.endswith("loss"), name))

    def values(self, arm: str, name: str, vary: str = "") -> list[float]:
        """The values of a metric, one per seed, in the order of the seeds."""
        return [self.metrics[trial.name][name] for trial in self.plan.groups[arm, vary or self.plan.whole]]

    @property
    def notes(self) -> list[str]:
        """Sentences that explain how to read the numbers."""
        n = len(self.plan.seeds)
        lines = ["The interval is that of the mean; single runs scatter between minimum and maximum."]
        for name in self.undefined:
            runs = sum(not math.isfinite(metrics[name]) for metrics in self.metrics.values())
            which = f"{runs} of {len(self.metrics)} runs"
            lines.append(f"{printable(name)} has no statistics: it is not a finite number in {which}.")
        if self.splits > 1:
            lines.append("The split varies with the seed: each run was evaluated on other images.")
        if self.paired:
            lines.append(f"p is that of an exact permutation test, which with {n} seeds gives {least_p(n):.2g} at best."
                         if all(comparison.exact for comparison in self.paired.values()) else
                         "p is that of a permutation test with 100,000 random choices of signs.")  # fmt: skip
            lines.append("Seeds needed: to detect such a difference four times out of five at p = 0.05, if it is real.")
        if self.shares:
            lines.append(f"With {n} seeds per stream a share is a rough estimate, as its interval shows. Shares need "
                         "not sum to 100 %. Another order also pairs images with other augmentations.")  # fmt: skip
        return lines


def _trial_metrics(trial: Trial) -> dict[str, float]:
    metrics = Run(trial.folder).metrics
    measured = {name: float(value) for name, value in metrics.items() if name.startswith(("val/", "test/"))}
    return measured or {name: float(value) for name, value in metrics.items()}


def _count_splits(plan: Plan) -> int:
    trials = plan.groups["a", plan.whole]
    return len({Manifest.load(trial.folder / "manifest.json").inputs["splits"] for trial in trials})


# Tables for people

_TEXT_WIDTH = 110


def as_text(results: Results) -> str:
    """The tables, and the notes that explain them."""
    text = io.StringIO()
    console = Console(file=text, width=_TEXT_WIDTH, highlight=False, color_system=None)
    console.print(_spread_table(results))
    if results.paired:
        changed = ", ".join(
            f"{name} {_as_option(name, b)} instead of {_as_option(name, a)}"
            for name, (a, b) in results.plan.changed.items()
        )
        console.print(f"\nB has {changed}", soft_wrap=True, markup=False)
        console.print(_difference_table(results))
    if results.shares:
        console.print()
        console.print(_share_table(results))
    console.print()
    for note in results.notes:
        console.print(note)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join(lines).strip("\n")


def _spread_table(results: Results) -> Table:
    several = len(results.arms) > 1
    plan = results.plan
    varied = "everything" if plan.whole == "all" else plan.whole.replace("+", ", ")
    table = _table(f"{len(plan.seeds)} seeds of {varied}", "mean ± sd", "95 % interval", "minimum", "maximum")
    for name in results.names:
        for arm in results.arms:
            summary = results.summaries[arm][name]
            label = _label(f"{name}  {arm.upper()}" if several else name)
            table.add_row(label, *_mean_cells(summary), f"{summary.min:.4f}", f"{summary.max:.4f}")
    return table


def _difference_table(results: Results) -> Table:
    table = _table("B minus A, seed by seed", "mean ± sd", "95 % interval", "p", "seeds needed")
    for name, comparison in results.paired.items():
        unknown = "-" if comparison.difference.mean == 0 else "> 100,000"
        needed = unknown if comparison.needed is None else f"{comparison.needed:,}"
        table.add_row(_label(name), *_mean_cells(comparison.difference, "+"), f"{comparison.p:.3g}", needed)
    return table


def _share_table(results: Results) -> Table:
    table = _table("Varied alone", "stream", "sd", "share of the variance", "95 % interval")
    for name, streams in results.shares.items():
        for stream, share in streams.items():
            if share.share is None or share.low is None or share.high is None:
                table.add_row(_label(name), stream, f"{share.sd:.4f}", "-", "-")
            else:
                interval = f"{_percent(share.low)} to {_percent(share.high)}"
                table.add_row(_label(name), stream, f"{share.sd:.4f}", _percent(share.share), interval)
    return table


def _label(name: str) -> Text:
    """The name of a metric, in which rich shall see no markup."""
    return Text(printable(name))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _mean_cells(summary: Summary, sign: str = "") -> tuple[str, str]:
    return f"{summary.mean:{sign}.4f} ± {summary.sd:.4f}", f"{summary.low:{sign}.4f} to {summary.high:{sign}.4f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share < 10 else f"{share:.0f} times"


def _as_option(name: str, value: object) -> object:
    """A value as it is written in a file: ``auto`` rather than ``None``."""
    return options()[name].word(value)


# The plot

_COLOR_A, _COLOR_B, _GRAY = "#1f77b4", "#d95f02", "#9a9a9a"  # distinguishable with color vision deficiency
_PLOT_COLUMNS = 4
_MAX_OFFSET = 0.16  # of dots from the middle of their column


def draw(path: Path, results: Results) -> bool:
    """Plot each metric in a panel of its own: dots for runs, a bar for the 95 % interval of the mean.

    With two configurations, a line joins the two runs of a seed. Streams that were varied alone have a column each.

    Args:
        path: The PNG file.
        results: The results to plot.

    Returns:
        Whether it was drawn: ``False`` without matplotlib, which is an optional extra.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # not pyplot, which has global state
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = results.names
    rows = -(-len(names) // _PLOT_COLUMNS)
    columns = -(-len(names) // rows)
    groups = len(results.plan.groups)
    figure = Figure(figsize=(columns * (1.9 + 0.55 * groups), 0.4 + rows * 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(names):
        _panel(figure.add_subplot(rows, columns, number + 1), results, name)
    figure.suptitle(f"{len(results.plan.seeds)} seeds; dots are runs, bars the 95 % interval of the mean", fontsize=9)
    with atomic_path(path) as temporary:
        # matplotlib would write its version into the file; without it, equal results give equal files.
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    return True


def _panel(axes: Any, results: Results, name: str) -> None:
    groups = [*results.plan.groups]
    values = [results.values(arm, name, vary) for arm, vary in groups]
    if results.paired:
        for pair in zip(*values, strict=True):
            axes.plot((0.0, 1.0), pair, color=_GRAY, linewidth=0.9, zorder=1)
    for column, ((arm, _), group_values) in enumerate(zip(groups, values, strict=True)):
        offsets = [0.0] * len(group_values) if results.paired else _offsets(group_values)
        color = _COLOR_B if arm == "b" else _COLOR_A
        axes.scatter([column + x for x in offsets], group_values, s=26, color=color, alpha=0.75, linewidths=0, zorder=3)
        _draw_interval(
            axes, column + (0.3 if arm == "b" or not results.paired else -0.3), summarize(group_values), color
        )
    labels = [_group_label(results, arm, vary) for arm, vary in groups]
    axes.set_xticks(range(len(groups)), labels, fontsize=8)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    title = f"{name}\nB − A, p = {results.paired[name].p:.2g}" if results.paired else name
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_interval(axes: Any, x: float, summary: Summary, color: str) -> None:
    axes.vlines(x, summary.low, summary.high, color=color, linewidth=2.2, zorder=2)
    axes.plot([x], [summary.mean], marker="_", color=color, markersize=11, markeredgewidth=2.2, zorder=4)


def _offsets(values: list[float]) -> list[float]:
    """Horizontal offsets that keep dots of nearly equal values apart; computed without random numbers."""
    width = (max(values) - min(values)) / 12 or 1.0
    counts: dict[int, int] = {}
    steps = []
    for value in values:
        bin_ = round(value / width)
        counts[bin_] = count = counts.get(bin_, 0) + 1
        steps.append(count // 2 * (1 if count % 2 else -1))
    most = max(map(abs, steps)) or 1
    return [-0.1 + step * min(0.07, _MAX_OFFSET / most) for step in steps]


def _group_label(results: Results, arm: str, vary: str) -> str:
    if results.paired:
        return arm.upper()
    if results.plan.single and vary == results.plan.whole:
        return "together"
    return vary.replace("+", "\n")


# Files for programs


def as_data(results: Results) -> dict[str, Any]:
    """Everything as plain data, as in ``study.json``; metrics that are no finite number are ``None``."""
    plan = results.plan
    return {
        "schema": 1,
        "status": "finished" if results.metrics else "running",
        "seeds": list(plan.seeds),
        "vary": plan.whole,
        "threads": plan.threads,
        "changed": {name: {"a": a, "b": b} for name, (a, b) in plan.changed.items()},
        "groups": [
            {"config": arm, "vary": vary, "runs": [trial.name for trial in trials]}
            for (arm, vary), trials in plan.groups.items()
        ],
        "metrics": {
            run: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            for run, metrics in results.metrics.items()
        },
        "summaries": {
            arm: {name: asdict(summary) for name, summary in summaries.items()}
            for arm, summaries in results.summaries.items()
        },
        "paired": {name: asdict(comparison) for name, comparison in results.paired.items()},
        "shares": {
            name: {stream: asdict(share) for stream, share in shares.items()} for name, shares in results.shares.items()
        },
        "notes": results.notes if results.metrics else [],
    }


def write_json(path: Path, results: Results) -> None:
    """Write ``study.json``: everything, as plain data with sorted keys."""
    write_text(path, json.dumps(as_data(results), indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_csv(path: Path, results: Results) -> None:
    """Write ``study.csv``: a row per configuration, varied streams and seed, with every metric."""
    rows: list[list[object]] = [["config", "vary", "seed", "run", *map(safe_cell, results.recorded)]]
    for (arm, vary), trials in results.plan.groups.items():
        for seed, trial in zip(results.plan.seeds, trials, strict=True):
            metrics = results.metrics[trial.name]
            rows.append([arm, vary, seed, trial.name, *(repr(metrics[name]) for name in results.recorded)])
    write_text(path, csv_text(rows))
