"""``autotimm doctor``: check versions, switches, the machine and one training step for problems."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import Given, parse
from autotimm.cli.verb import Verb
from autotimm.config import COMMAND_LINE, FitConfig, Option, defaults, options, read_yaml
from autotimm.config.value_types import Flag, Path
from autotimm.errors import UsageError

if TYPE_CHECKING:
    from autotimm.doctor import Finding

__all__ = ["DOCTOR"]

_SHARED = ("task", "backbone", "arch", "width", "image_size", "batch_size")
_MODEL_OPTIONS = ("task", "backbone", "arch", "width")
_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def run(argv: Sequence[str]) -> int:
    """Check versions, switches, machine and one training step; return the exit code of the first problem."""
    given = parse(DOCTOR, argv)
    if given is None:
        return 0
    with answering(given) as answer:
        findings = _examine(given)
        answer["findings"] = [
            {"about": title, **asdict(finding)} for title, section in findings.items() for finding in section
        ]
    problems = [finding for section in findings.values() for finding in section if finding.level == "problem"]
    return problems[0].exit_code if problems else 0


def _examine(given: Given) -> dict[str, list[Finding]]:
    """Check, and print the findings as they come; return them by heading."""
    config, nested = _configure(given)
    findings: dict[str, list[Finding]] = {}
    if given.value("clear_cache"):
        _report("Decoded images", _clear_cache(), findings)
        return findings
    from autotimm.doctor.package_versions import (
        check_versions,  # lazy: mistakes above are reported without loading torch
    )

    _report("Versions", check_versions(), findings)
    if any(finding.level == "problem" for finding in findings["Versions"]):
        print("The other checks need matching versions and are skipped.")
        return findings
    from autotimm.doctor.machine import check_machine, check_switches
    from autotimm.doctor.training_step import settle_task
    from autotimm.runs.names_of_file import names_of_file

    config = config if nested else settle_task(config)
    machine = check_machine(config.out, config.image_size, config.batch_size, config.num_workers)
    _report("Switches", check_switches(), findings)
    _report("Machine", machine, findings)
    with names_of_file(given.options.get("config")):
        _report("One training step", _check_step(config, nested, given.options.get("config", "")), findings)
    return findings


def _clear_cache() -> list[Finding]:
    """Remove decoded images that earlier runs have kept, but for those in use."""
    from autotimm.config.byte_size import written_bytes
    from autotimm.data.pixel_cache import cache_folder  # lazy, as above
    from autotimm.data.pixel_store import bytes_by_name, clear
    from autotimm.doctor.finding import ok, problem

    before, left = bytes_by_name(cache_folder()), clear(cache_folder())
    freed = sum(before.values()) - sum(bytes_by_name(cache_folder()).values())
    findings = [ok(f"{written_bytes(freed)} were removed from {cache_folder()}")]
    if left:
        findings.append(problem(f"{len(left)} of {len(before)} data sets are in use and stay", "Try again later."))
    return findings


def _configure(given: Given) -> tuple[FitConfig, dict[str, Any]]:
    """The options of ``fit`` as far as they are given, and the content of a file in Lightning's style."""
    typed = {name: given.value(name) for name in _SHARED if name in given.options}
    values, nested = read_yaml(given.options["config"]) if "config" in given.options else ({}, False)
    without_effect = [name for name in _MODEL_OPTIONS if name in typed]
    if nested and without_effect:
        raise UsageError(
            f"{given.options['config']} sets the model, so that --{without_effect[0]} would have no effect. "
            "Leave it out."
        )
    flat = _flat(values) if nested else values
    # The data is not read: any path will do.
    layers = [("default", {"path": "."}), (f"file {given.options.get('config')}", flat), (COMMAND_LINE, typed)]
    return FitConfig.layered(layers), values if nested else {}


def _flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """The options that matter here, besides the model, from a file in Lightning's style."""
    sections = [nested.get(key) for key in ("data", "trainer")]
    sections = [section.get("init_args", section) or {} for section in sections if isinstance(section, Mapping)]
    relevant = ("batch_size", "deterministic", "image_size", "num_workers")
    return {
        name: arguments[name]
        for arguments in sections
        if isinstance(arguments, Mapping)
        for name in relevant
        if arguments.get(name) is not None
    }


def _check_step(config: FitConfig, nested: Mapping[str, Any], file: str) -> list[Finding]:
    from autotimm.doctor.trace import example_batch
    from autotimm.doctor.training_step import check_step, stand_in_task
    from autotimm.tasks import Task

    if not nested:
        task: Any = stand_in_task(config)
    else:
        from autotimm.cli.lightning_yaml import build

        task = build(nested, file)[0]
        if not isinstance(task, Task):
            raise UsageError(f"The `model` of {file} must be a Task to be traced. Got {type(task).__name__} instead. "
                             "Leave out --config, or name a subclass of autotimm.Task.")  # fmt: skip
    return check_step(task, example_batch(task, config.image_size, config.batch_size), config.deterministic)


def _report(title: str, found: Iterable[Finding], findings: dict[str, list[Finding]]) -> None:
    """Print findings under a heading, wrapped to the terminal, and keep them."""
    from rich.console import Console  # lazy, as above
    from rich.table import Table
    from rich.text import Text

    findings[title] = list(found)
    table = Table.grid(padding=(0, 2))
    for finding in findings[title]:
        text = f"{finding.text}. {finding.cure}" if finding.cure else finding.text
        table.add_row(Text(f"  {finding.level}", _STYLES[finding.level]), Text(text))
    console = Console(file=sys.stdout, highlight=False)
    console.print(Text(title, "bold"))
    console.print(table)


_CONFIG = Option(Path(metavar="FILE"), "configuration file of fit, instead of a backbone", "Options")
_CLEAR = Option(Flag(), "check nothing, and remove the decoded images that `fit --cache` has kept on disk", "Options")

DOCTOR = Verb(
    name="doctor",
    summary="check versions, switches, the machine, and a training step for non-deterministic operators",
    run=run,
    options={
        "config": _CONFIG,
        "clear_cache": _CLEAR,
        **{name: replace(options()[name], group="Options", common=False) for name in _SHARED},
        "json": JSON,
    },
    defaults={**{name: defaults()[name] for name in _SHARED}, "clear_cache": False, "json": False},
    examples=(
        "autotimm doctor",
        "autotimm doctor --backbone vit_small_patch16_224",
        "autotimm doctor --task detection --arch faster_rcnn",
        "autotimm doctor --config photos.yaml",
    ),
    notes=(
        "Without a GPU, one training step is traced as it would run on one (experimental); with a GPU, it is run.",
        "The steps of detectors depend on values: they are calculated on the CPU for two drawn images in some seconds.",
        "Exit codes: 0 no problem, 4 the step has non-deterministic operators, 1 another problem.",
    ),
)
