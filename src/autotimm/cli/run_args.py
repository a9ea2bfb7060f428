"""What ``validate`` and ``test`` share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from math import isnan
from typing import TYPE_CHECKING

from autotimm.cli.loading import loading_torch
from autotimm.cli.parser import Given, parse
from autotimm.cli.verb import Positional, Verb
from autotimm.config import Option
from autotimm.config.value_types import Path, Whole
from autotimm.errors import UsageError

if TYPE_CHECKING:
    from autotimm.runs.run import Run

__all__ = [
    "CKPT", "DATA", "FOLDER", "RUN", "WORKERS", "class_lines", "measuring", "open_folder", "open_run", "print_run",
]  # fmt: skip

_LONGEST = 40  # letters of a class name
_BLOCK = 20  # classes below each other, before a second block is begun beside them
_GAP = 4

RUN = Positional("run", "RUN|CKPT", "a run's folder, or one of its checkpoints")
FOLDER = Positional("run", "RUN", "a run's folder")
DATA = Option(Path(), "where the data is now, if it was moved", "Options", none="as recorded")
WORKERS = Option(Whole(), "processes that load images; never changes results", "Options", none="as recorded")
CKPT = Option(Path(metavar="best|last|FILE"), "which checkpoint of the run", "Options", cure="Give best or last.")


def open_folder(where: str) -> Run:
    """Open a run's folder."""
    with loading_torch():
        from autotimm.runs.run import Run
    return Run(where)


def open_run(given: Given) -> tuple[Run, str]:
    """Open the run that was named; return it and the checkpoint to use.

    Raises:
        UsageError: If a checkpoint is named twice.
    """
    where, ckpt = given.positionals["run"], given.value("ckpt")
    if "ckpt" in given.options and where.endswith(".ckpt"):
        raise UsageError(f"{where} is a checkpoint already. Leave out --ckpt, or give the run's folder.")
    return open_folder(where), ckpt


def print_run(run: Run) -> None:
    """Print the line that scripts read, the last on standard output; of several processes the first prints it."""
    from pytorch_lightning.utilities import rank_zero_only  # by now it is loaded

    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # set by Lightning when it is imported
        print(f"run: {run.path}")


def measuring(name: str, images: str, measure: Callable[[Run, str | None, str], Mapping[str, float]]) -> Verb:
    """Make a verb that measures a run.

    Args:
        name: The verb.
        images: On which of the run's images, in a word.
        measure: What measures, given the run, other images or ``None``, and the checkpoint.
    """

    def run(argv: Sequence[str]) -> int:
        given = parse(verb, argv)
        if given is None:
            return 0
        opened, ckpt = open_run(given)
        print_metrics(measure(opened, given.positionals["path"], ckpt))
        if opened.per_class:
            print()
            print("\n".join(class_lines(opened.per_class, _wide())))
        return 0

    verb = Verb(
        name=name,
        summary=f"measure a run on its {images} images",
        run=run,
        positionals=(RUN, Positional("path", "PATH", "other labelled images: a folder or a CSV file", required=False)),
        options={"ckpt": CKPT},
        defaults={"ckpt": "best"},
        examples=(f"autotimm {name} runs/photos-001", f"autotimm {name} runs/photos-001 more-photos/"),
    )
    return verb


def print_metrics(metrics: Mapping[str, float]) -> None:
    """One metric per line, aligned."""
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:.4f}")


def _wide() -> int:
    """Columns of a terminal; 0 for other readers, which get a class per line."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def class_lines(table: Mapping[str, Mapping[str, float]], width: int = 0) -> list[str]:
    r"""The values per class as lines of text, aligned; many classes in blocks side by side where there is room.

    Args:
        table: A row per class, a column per metric; NaN, shown as ``-``, where nothing was measured.
        width: Columns that there are; 0 for a class per line, however many.

    Example:
        >>> print("\n".join(class_lines({"cat": {"AP": 0.5}, "dog": {"AP": float("nan")}})))
        class      AP
        cat    0.5000
        dog         -
    """
    titles = list(next(iter(table.values())))
    names = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in table]
    cells = [["-" if isnan(one) else f"{one:.4f}" for one in row.values()] for row in table.values()]
    widths = [max(6, len(title)) for title in titles]
    left = max(map(len, ["class", *names]))

    def line(first: str, others: Sequence[str]) -> str:
        return "  ".join([f"{first:<{left}}", *(f"{one:>{wide}}" for one, wide in zip(others, widths, strict=True))])

    head, lines = line("class", titles), [line(name, row) for name, row in zip(names, cells, strict=True)]
    blocks = max(1, min((width + _GAP) // (len(head) + _GAP), -(-len(lines) // _BLOCK)))
    high = -(-len(lines) // blocks)
    columns = [[head, *lines[start : start + high]] for start in range(0, len(lines), high)]
    return [(" " * _GAP).join(parts).rstrip() for parts in zip_longest(*columns, fillvalue="")]
