"""``autotimm doctor``: what could go wrong here, before it does."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autotimm.cli.parser import Given, parse
from autotimm.cli.verb import Verb
from autotimm.config import COMMAND_LINE, FitConfig, Option, defaults, options, read_yaml
from autotimm.config.value_types import Path
from autotimm.errors import UsageError

if TYPE_CHECKING:
    from autotimm.doctor import Finding

__all__ = ["DOCTOR"]

_SHARED = ("task", "backbone", "arch", "width", "image_size", "batch_size")
_OF_MODEL = ("task", "backbone", "arch", "width")
_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def run(argv: Sequence[str]) -> int:
    """Look at versions, switches and machine, then at one training step; exit with the first problem's code."""
    given = parse(DOCTOR, argv)
    if given is None:
        return 0
    config, nested = _configure(given)
    from autotimm.doctor.versions import check_versions  # lazy: everything above answers without torch

    found = _report("Versions", check_versions())
    if found:
        print("The rest waits until the versions fit.")
        return found[0].exit_code
    from autotimm.doctor.machine import check_machine, check_switches
    from autotimm.doctor.step import settled

    config = config if nested else settled(config)
    machine = check_machine(config.out, config.image_size, config.batch_size, config.num_workers)
    found = _report("Switches", check_switches()) + _report("Machine", machine)
    found += _report("One training step", _step(config, nested, given.options.get("config", "")))
    return found[0].exit_code if found else 0


def _configure(given: Given) -> tuple[FitConfig, dict[str, Any]]:
    """The options of fit as far as they are known, and the content of a file in Lightning's style."""
    typed = {name: given.value(name) for name in _SHARED if name in given.options}
    values, nested = read_yaml(given.options["config"]) if "config" in given.options else ({}, False)
    without_effect = [name for name in _OF_MODEL if name in typed]
    if nested and without_effect:
        raise UsageError(
            f"{given.options['config']} sets the model, so that --{without_effect[0]} would have no effect. "
            "Leave it out."
        )
    flat = _flat(values) if nested else values
    # The data are not looked at, so that any path will do.
    layers = [("default", {"path": "."}), (f"file {given.options.get('config')}", flat), (COMMAND_LINE, typed)]
    return FitConfig.layered(layers), values if nested else {}


def _flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """What a file in Lightning's style says of the options that matter here, apart from its model."""
    sections = [nested.get(key) for key in ("data", "trainer")]
    arguments = [one.get("init_args", one) or {} for one in sections if isinstance(one, Mapping)]
    wanted = ("batch_size", "deterministic", "image_size", "num_workers")
    return {
        name: one[name] for one in arguments if isinstance(one, Mapping) for name in wanted if one.get(name) is not None
    }


def _step(config: FitConfig, nested: Mapping[str, Any], file: str) -> list[Finding]:
    from autotimm.doctor.example import example_batch
    from autotimm.doctor.step import check_step, stand_in_task
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


def _report(title: str, findings: Iterable[Finding]) -> list[Finding]:
    """Print findings under a heading, as wide as the terminal; return those that are problems."""
    from rich.console import Console  # lazy, as above
    from rich.table import Table
    from rich.text import Text

    found = list(findings)
    table = Table.grid(padding=(0, 2))
    for one in found:
        table.add_row(
            Text(f"  {one.level}", _STYLES[one.level]), Text(". ".join([one.text, one.cure]) if one.cure else one.text)
        )
    console = Console(file=sys.stdout, highlight=False)
    console.print(Text(title, "bold"))
    console.print(table)
    return [one for one in found if one.level == "problem"]


_CONFIG = Option(Path(metavar="FILE"), "the file that fit will be given, instead of a backbone", "Options")

DOCTOR = Verb(
    name="doctor",
    summary="look for what could go wrong here: versions, switches, operators that do not repeat",
    run=run,
    options={"config": _CONFIG, **{name: replace(options()[name], group="Options", common=False) for name in _SHARED}},
    defaults={name: defaults()[name] for name in _SHARED},
    examples=(
        "autotimm doctor",
        "autotimm doctor --backbone vit_small_patch16_224",
        "autotimm doctor --task detection --arch faster_rcnn",
        "autotimm doctor --config photos.yaml",
    ),
    notes=(
        "Without a GPU one training step is traced as it would run on one (experimental); with a GPU it is run.",
        "Steps of detectors ask for numbers: they are calculated on the CPU for two drawn images, for some seconds.",
        "Exits with 0 if there is no problem, 4 if the step has operators that cannot repeat, 1 for other problems.",
    ),
)
