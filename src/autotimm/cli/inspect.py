"""``autotimm inspect``: look at data before training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from autotimm.cli.fit import FIT, configure
from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.verb import Positional, Verb, loading_torch
from autotimm.config import FitConfig, Option, defaults, options
from autotimm.config.value_types import Flag, Path
from autotimm.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from autotimm.inspection import Inspection
    from autotimm.inspection.data_finding import Finding

__all__ = ["INSPECT"]

_STYLES = {"warning": "bold red", "note": "yellow"}
_MOST_CASES = 3  # of a finding that are shown in a terminal


def run(argv: Sequence[str]) -> int:
    """Inspect, and print what was found; with ``--strict`` return 3 if there is a warning."""
    given = parse(INSPECT, argv)
    if given is None:
        return 0
    own = {name: given.value(name) for name in _OWN}
    config = configure(given, own=_OWN)
    if not isinstance(config, FitConfig):
        raise UsageError(
            f"Inspect needs options of fit. {given.options['config']} names classes instead: call "
            "autotimm.inspect_data with your data module."
        )
    from autotimm.runs.output_paths import require_new_file  # imports no torch

    for name in ("html", "preview"):
        if own[name] is not None:
            require_new_file(own[name], name, "inspect")
    with answering(given) as answer:
        with loading_torch(config.progress):
            from autotimm.inspection import inspect_config
        inspection = inspect_config(config, own["run"], config.progress)
        _print(inspection)
        written = {}
        if own["html"] is not None:
            written["page"] = inspection.write_page(own["html"])
        if own["preview"] is not None:
            written["preview"] = inspection.write_preview(own["preview"])
        for name, path in written.items():
            print(f"{name}: {printable(path)}")
        answer.update(inspection.as_dict() | written)
    return DataError.exit_code if own["strict"] and inspection.warnings else 0


def _print(inspection: Inspection) -> None:
    from rich.console import Console  # lazy: mistakes above are reported without it
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, emoji=False)
    console.print(inspection.summary())
    rows = Table.grid(padding=(0, 2))
    for line in inspection.remarks():
        rows.add_row(Text("•", "dim"), Text(printable(line)))
    console.print(rows)
    if inspection.findings:
        console.print()
        rows = Table.grid(padding=(0, 2))
        for finding in inspection.findings:
            text = Text(printable(f"{finding.sentence} {finding.cure}"))
            if cases := _cases(finding):
                text.append(f"\n{cases}", "dim")
            rows.add_row(Text(finding.severity, _STYLES[finding.severity]), text)
        console.print(rows)
    warnings = len(inspection.warnings)
    notes = len(inspection.findings) - warnings
    console.print(f"\n{_count(warnings, 'warning')}, {_count(notes, 'note')}")


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _cases(finding: Finding) -> str:
    """The first samples of a finding in a line; nothing where its sentence names them."""
    cases = [case for case in finding.cases if case.split and case.id not in finding.sentence]
    named = [f"{case.split}: {case.id}" + (f" ({case.note})" if case.note else "") for case in cases[:_MOST_CASES]]
    more = ["..."] if len(cases) > _MOST_CASES else []
    return printable(", ".join([*named, *more]))


_GROUP = "Inspection"
_OWN = {
    "html": Option(Path(metavar="FILE"), "write a page with the pictures of each finding", _GROUP, none="none",
                   common=True),
    "preview": Option(Path(metavar="FILE"), "write a PNG of augmented images, as training with this seed sees them",
                      _GROUP, none="none", common=True),
    "run": Option(Path(metavar="RUN"), "list labels that are probably wrong, by the predictions of a run on these data",
                  _GROUP, none="none", common=True),
    "json": replace(JSON, group=_GROUP, common=True),
    "strict": Option(Flag(), "exit with 3 if there is a warning", _GROUP, common=True),
}  # fmt: skip
# What has no effect on what is read, or on which images are drawn for the preview.
_LOADING = ("num_workers", "eval_batch_size", "strict")
_READING = [
    name
    for name, option in options().items()
    if name in ("task", "seed", "progress")
    or (any(to.part == "data" for to in option.to) and name not in (*_LOADING, "path"))
]
_COMMON = ("task", "image_size", "augmentation", "seed")

INSPECT = Verb(
    name="inspect",
    summary="look at data before training: broken, suspicious and repeated images, classes, boxes and masks",
    run=run,
    positionals=(Positional("path", "PATH", options()["path"].help, required=False),),
    options={
        **_OWN,
        "config": replace(FIT.options["config"], help="YAML file with options of fit"),
        **{name: replace(options()[name], common=name in _COMMON) for name in _READING},
    },
    defaults={
        **{name: defaults()[name] for name in _READING}, "html": None, "preview": None, "run": None,
        "json": False, "strict": False,
    },
    examples=(
        "autotimm inspect photos/",
        "autotimm inspect photos/ --html photos.html --preview augmented.png",
        "autotimm inspect photos/ --strict && autotimm fit photos/",
    ),
    notes=(
        "Data are read as fit reads them, with the same options. Nothing is changed.",
        "Exit codes: 0 inspected, 3 the data cannot be read, or with --strict there is a warning.",
    ),
    elsewhere=("check", "lint", "stats"),
)  # fmt: skip
