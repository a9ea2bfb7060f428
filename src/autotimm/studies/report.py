"""The results of a study as a table for people, and as files for programs."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from autotimm.config import options
from autotimm.repro.files import write_text
from autotimm.studies.results import Results
from autotimm.studies.statistics import Summary

__all__ = ["as_data", "as_text", "write_csv", "write_json"]

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
