"""``autotimm selfcheck``: check that a setup is reproducible, including the user's own classes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import Given, parse
from autotimm.cli.verb import Verb, loading_torch
from autotimm.config import FitConfig, Option, read_yaml
from autotimm.config.value_types import Path, Text
from autotimm.errors import UsageError

if TYPE_CHECKING:
    from autotimm.selfcheck import Report
    from autotimm.selfcheck.setup import Setup

__all__ = ["SELFCHECK"]

_STYLES = {"ok": "green", "skipped": "yellow", "problem": "bold red"}


def run(argv: Sequence[str]) -> int:
    """Train, compare and print a table; return 5 if something differs."""
    given = parse(SELFCHECK, argv)
    if given is None:
        return 0
    file = given.options.get("config", "")
    values, nested = read_yaml(file) if file else ({}, False)
    without_effect = [name for name in ("model", "data") if name in given.options]
    if nested and without_effect:
        raise UsageError(f"{file} sets the classes, so that --{without_effect[0]} would have no effect. Leave it out.")
    if not nested:
        FitConfig.layered(
            [("default", {"path": "."}), (f"file {file}", values)]
        )  # report mistakes before loading torch
    with answering(given) as answer:
        with loading_torch():
            from autotimm.selfcheck.check import check
        report = check(_setup(given, values, nested), lambda line: print(line, file=sys.stderr, flush=True))
        _show(report)
        answer.update(report.as_dict())
    return report.exit_code


def _setup(given: Given, values: dict[str, object], nested: bool) -> Setup:
    from autotimm.cli.lightning_yaml import build
    from autotimm.selfcheck.setup import Setup
    from autotimm.serialization import import_name

    file = given.options.get("config", "")
    place = os.path.abspath(file) if file else ""
    if nested:
        return Setup(nested=values, builder=import_name(build), file=file, place=place)
    return Setup(
        options=values, file=file, place=place, model=given.options.get("model", ""), data=given.options.get("data", "")
    )


def _show(report: Report) -> None:
    """Print a line per check, the causes of differences, and the levels, wrapped to the terminal."""
    if not sys.stdout.isatty():
        print(report)
        return
    from rich.console import Console  # lazy: needed on a terminal only
    from rich.table import Table
    from rich.text import Text

    table, levels = Table.grid(padding=(0, 2)), Table.grid(padding=(0, 2))
    for result in report.results:
        table.add_row(result.name, Text(result.text, _STYLES[result.verdict]))
    for level, text in report.levels.items():
        levels.add_row(level, Text(text))
    console = Console(file=sys.stdout, highlight=False)
    console.print(table)
    for cause, names in report.causes.items():
        console.print(Text(f"\n{', '.join(names)}: {cause}"))
    console.print("", levels, "", "reproducible" if report.passed else "not reproducible", sep="\n")


SELFCHECK = Verb(
    name="selfcheck",
    summary="check by short trainings that a setup is reproducible, including your own classes",
    run=run,
    options={
        "config": Option(Path(metavar="FILE"), "YAML file with options of fit, or in Lightning's style", "Options"),
        "model": Option(Text(metavar="pkg.Class"), "your own task class, instead of the default model", "Options"),
        "data": Option(Text(metavar="pkg.Class"), "your own data module class, given toy images", "Options"),
        "json": JSON,
    },
    defaults={"json": False},
    examples=(
        "autotimm selfcheck",
        "autotimm selfcheck --model my_models.MyTask --data my_data.MyImages",
        "autotimm selfcheck --config photos.yaml",
    ),
    notes=(
        "Trains about thirty times for 6 steps, two trainings at a time: a minute or two on two cores.",
        "Exit codes: 0 reproducible, 5 something differs. The last lines list the reproducibility levels.",
    ),
)
