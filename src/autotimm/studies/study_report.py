"""The numbers of a study: the metrics of its runs, and what follows from them.

The results of a study as a picture: every seed a dot, with mean and interval.

The results of a study as a table for people, and as files for programs.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from autotimm.config import options
from autotimm.errors import DataError
from autotimm.records.atomic import atomic_path, write_text
from autotimm.records.manifest import Manifest
from autotimm.runs.run import Run
from autotimm.studies.statistics import Paired, Share, Summary, compare_pairs, least_p, share_variance, summarize
from autotimm.studies.trials import Plan, Trial

__all__ = ["Results", "as_data", "as_text", "draw", "write_csv", "write_json"]


@dataclass(frozen=True)
class Results:
    """What came out.

    Attributes:
        plan: The study's runs.
        metrics: The metrics of each run, by its name: those of its best epoch on validation data, and those on test
            data if there is any; without either those of training.
        summaries: By configuration (``a``, ``b``) and metric, how it scatters.
        paired: By metric, what B does differently.
        shares: By metric and stream, how much of the variance it makes alone.
        splits: How many different splits the runs were measured on.
    """

    plan: Plan
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    summaries: dict[str, dict[str, Summary]] = field(default_factory=dict)
    paired: dict[str, Paired] = field(default_factory=dict)
    shares: dict[str, dict[str, Share]] = field(default_factory=dict)
    splits: int = 1

    @classmethod
    def read(cls, plan: Plan) -> Results:
        """Read the results of runs that are all finished.

        Raises:
            DataError: If they were not measured with the same metrics.
        """
        metrics = {trial.name: _measured(trial) for trial in plan.trials}
        named = {tuple(sorted(one)) for one in metrics.values()}
        if len(named) > 1:
            raise DataError(f"The runs of {plan.folder} must have the same metrics. They have not. Use one list.")
        found = cls(plan, metrics)
        arms = {arm: {name: summarize(found.values(arm, name)) for name in found.names} for arm in found.arms}
        paired, shares = {}, {}
        for name in found.names:
            if "b" in arms:
                paired[name] = compare_pairs(found.values("a", name), found.values("b", name))
            if plan.single:
                alone = {stream: found.values("a", name, stream) for stream in plan.single}
                shares[name] = share_variance(alone, found.values("a", name))
        return cls(plan, metrics, arms, paired, shares, _splits(plan))

    @property
    def arms(self) -> list[str]:
        """``a``, and ``b`` if there are two configurations."""
        return [*dict.fromkeys(arm for arm, _ in self.plan.groups)]

    @property
    def names(self) -> list[str]:
        """The names of the metrics: test before validation, and losses last."""
        found = next(iter(self.metrics.values()), {})
        return sorted(found, key=lambda name: (not name.startswith("test/"), name.endswith("loss"), name))

    def values(self, arm: str, name: str, vary: str = "") -> list[float]:
        """The values of a metric, one per seed in the order of the seeds."""
        return [self.metrics[trial.name][name] for trial in self.plan.groups[arm, vary or self.plan.whole]]

    @property
    def notes(self) -> list[str]:
        """What a reader must know to read the numbers rightly."""
        n = len(self.plan.seeds)
        lines = ["The interval is that of the mean; single runs scatter as far as minimum and maximum say."]
        if self.splits > 1:
            lines.append("The split varies with the seed: each run was measured on images of its own.")
        if self.paired:
            lines.append(f"p is that of an exact permutation test, which with {n} seeds gives {least_p(n):.2g} at best."
                         if all(one.exact for one in self.paired.values()) else
                         "p is that of a permutation test of 100,000 choices of signs.")  # fmt: skip
            lines.append("Seeds needed: to see such a difference four times out of five at p = 0.05, if it is real.")
        if self.shares:
            lines.append(f"With {n} seeds per stream a share is a rough guess, as its interval says. Shares need not "
                         "sum to 100 %. Another order also pairs images with other augmentations.")  # fmt: skip
        return lines


def _splits(plan: Plan) -> int:
    trials = plan.groups["a", plan.whole]
    return len({Manifest.load(trial.folder / "manifest.json").inputs["splits"] for trial in trials})


def _measured(trial: Trial) -> dict[str, float]:
    found = Run(trial.folder).metrics
    kept = {name: float(value) for name, value in found.items() if name.startswith(("val/", "test/"))}
    return kept or {name: float(value) for name, value in found.items()}


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


_WIDTH = 110


def as_text(results: Results) -> str:
    """The tables, and what to know when reading them."""
    text = io.StringIO()
    console = Console(file=text, width=_WIDTH, highlight=False, color_system=None)
    console.print(_spread(results))
    if results.paired:
        changed = ", ".join(
            f"{name} {_word(name, b)} instead of {_word(name, a)}" for name, (a, b) in results.plan.changed.items()
        )
        console.print(f"\nB has {changed}", soft_wrap=True, markup=False)
        console.print(_differences(results))
    if results.shares:
        console.print()
        console.print(_shares(results))
    console.print()
    for note in results.notes:
        console.print(note)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join(lines).strip("\n")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _spread(results: Results) -> Table:
    several = len(results.arms) > 1
    plan = results.plan
    varied = "everything" if plan.whole == "all" else plan.whole.replace("+", ", ")
    table = _table(f"{len(plan.seeds)} seeds of {varied}", "mean ± sd", "95 % interval", "minimum", "maximum")
    for name in results.names:
        for arm in results.arms:
            one = results.summaries[arm][name]
            label = f"{name}  {arm.upper()}" if several else name
            table.add_row(label, *_cells(one), f"{one.min:.4f}", f"{one.max:.4f}")
    return table


def _word(name: str, value: object) -> object:
    """A value as it is written in a file: ``auto`` rather than ``None``."""
    return options()[name].word(value)


def _cells(one: Summary, sign: str = "") -> tuple[str, str]:
    return f"{one.mean:{sign}.4f} ± {one.sd:.4f}", f"{one.low:{sign}.4f} to {one.high:{sign}.4f}"


def _differences(results: Results) -> Table:
    table = _table("B minus A, seed by seed", "mean ± sd", "95 % interval", "p", "seeds needed")
    for name, one in results.paired.items():
        none = "-" if one.difference.mean == 0 else "> 100,000"
        needed = none if one.needed is None else f"{one.needed:,}"
        table.add_row(name, *_cells(one.difference, "+"), f"{one.p:.3g}", needed)
    return table


def _shares(results: Results) -> Table:
    table = _table("Varied alone", "stream", "sd", "share of the variance", "95 % interval")
    for name, streams in results.shares.items():
        for stream, one in streams.items():
            if one.share is None or one.low is None or one.high is None:
                table.add_row(name, stream, f"{one.sd:.4f}", "-", "-")
            else:
                interval = f"{_percent(one.low)} to {_percent(one.high)}"
                table.add_row(name, stream, f"{one.sd:.4f}", _percent(one.share), interval)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share < 10 else f"{share:.0f} times"


def as_data(results: Results) -> dict[str, Any]:
    """Everything as plain data, as it stands in ``study.json``."""
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
        "metrics": results.metrics,
        "summaries": {arm: {n: asdict(one) for n, one in found.items()} for arm, found in results.summaries.items()},
        "paired": {name: asdict(one) for name, one in results.paired.items()},
        "shares": {n: {stream: asdict(one) for stream, one in found.items()} for n, found in results.shares.items()},
        "notes": results.notes if results.metrics else [],
    }


def write_json(path: Path, results: Results) -> None:
    """Write ``study.json``: everything, as plain data with sorted keys."""
    write_text(path, json.dumps(as_data(results), indent=2, sort_keys=True) + "\n")


def write_csv(path: Path, results: Results) -> None:
    """Write ``study.csv``: one line per configuration, what varies, and seed, with every metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["config", "vary", "seed", "run", *results.names])
    for (arm, vary), trials in results.plan.groups.items():
        for seed, trial in zip(results.plan.seeds, trials, strict=True):
            found = results.metrics[trial.name]
            writer.writerow([arm, vary, seed, trial.name, *(repr(found[name]) for name in results.names)])
    write_text(path, text.getvalue())
