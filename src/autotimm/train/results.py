"""``results.json``: the metrics of the best and the last epoch, and those of a test, also per class."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import isnan, nan
from pathlib import Path
from typing import Any

from autotimm.repro.files import write_text

__all__ = ["PER_CLASS", "read_results", "write_results"]

PER_CLASS = "per_class"
"""The group with a row per class and a column per metric; the others hold one value per metric."""


def read_results(path: Path) -> dict[str, Any]:
    """The groups of metrics in a file; none if it is not there."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if PER_CLASS in found:
        found[PER_CLASS] = {
            name: _replaced(row, lambda one: nan if one is None else one) for name, row in found[PER_CLASS].items()
        }
    return found


def write_results(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write groups of metrics, in the order of their names; classes stay in theirs.

    Values per class that are NaN, since nothing was measured, become ``null``: JSON has no NaN.
    """
    groups = {name: dict(sorted(results[name].items())) for name in sorted(results) if name != PER_CLASS}
    if table := results.get(PER_CLASS):
        groups[PER_CLASS] = {
            name: _replaced(row, lambda one: None if isnan(one) else one) for name, row in table.items()
        }
    write_text(path, json.dumps(groups, indent=2) + "\n")


def _replaced(row: Mapping[str, Any], value: Callable[[Any], Any]) -> dict[str, Any]:
    return {title: value(one) for title, one in row.items()}
