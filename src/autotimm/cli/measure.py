"""What ``validate`` and ``test`` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autotimm.cli.parser import Given, parse
from autotimm.cli.verb import Positional, Verb
from autotimm.config import Option
from autotimm.config.kinds import Path
from autotimm.errors import UsageError

if TYPE_CHECKING:
    from autotimm.run import Run

__all__ = ["CKPT", "RUN", "measure", "open_run"]

RUN = Positional("run", "RUN|CKPT", "a run's folder, or one of its checkpoints")
CKPT = Option(Path(metavar="best|last|FILE"), "which checkpoint of the run", "Options", cure="Give best or last.")


def open_run(given: Given) -> tuple[Run, str]:
    """Open the run that was named; return it and the checkpoint to use.

    Raises:
        UsageError: If a checkpoint is named twice.
    """
    where, ckpt = given.positionals["run"], given.value("ckpt")
    if "ckpt" in given.options and where.endswith(".ckpt"):
        raise UsageError(f"{where} is a checkpoint already. Leave out --ckpt, or give the run's folder.")
    from autotimm.run import Run  # lazy: a mistake in the command is answered without torch

    return Run(where), ckpt


def measure(verb: Verb, argv: Sequence[str]) -> int:
    """Run ``Run.validate`` or ``Run.test`` and print what they measured."""
    given = parse(verb, argv)
    if given is None:
        return 0
    run, ckpt = open_run(given)
    method = run.validate if verb.name == "validate" else run.test
    print_metrics(method(given.positionals["path"], ckpt=ckpt))
    return 0


def print_metrics(metrics: Mapping[str, float]) -> None:
    """One metric per line, aligned."""
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:.4f}")
