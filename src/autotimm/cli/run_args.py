"""Arguments of the verbs that take a run, and the common part of ``validate`` and ``test``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from math import isnan
from typing import TYPE_CHECKING, Any

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import Given, parse
from autotimm.cli.verb import Positional, Verb, loading_torch
from autotimm.config import Option
from autotimm.config.value_types import Choice, Flag, Number, Path, Whole
from autotimm.constants import VIEWS
from autotimm.errors import UsageError, printable

if TYPE_CHECKING:
    from autotimm.runs.run import Run

__all__ = [
    "CKPT", "DATA", "DEVICES", "FOLDER", "RUN", "THREADS", "THRESHOLD", "TRUST", "TTA", "WORKERS", "class_lines",
    "measuring", "open_folder", "open_run", "print_once", "print_run", "run_answer",
]  # fmt: skip

_MAX_NAME = 40  # characters of a class name
_BLOCK_ROWS = 20  # with more classes, a second block begins beside the first
_GAP = 4

RUN = Positional("run", "RUN|CKPT", "a run folder, or one of its checkpoints")
FOLDER = Positional("run", "RUN", "a run folder")
DATA = Option(Path(), "new path of the data, if it was moved", "Options", none="as recorded")
WORKERS = Option(Whole(), "data loading processes; never changes results", "Options", none="as recorded")
DEVICES = Option(
    Whole(1), "devices or processes, of a run with shards; never changes results", "Options", none="as recorded"
)
THREADS = Option(
    Whole(1), "threads to compute with, of a portable run; never changes results", "Options", none="as recorded"
)
TRUST = Option(Flag(), "import own classes that the run names; this runs their code", "Options")
CKPT = Option(Path(metavar="best|last|FILE"), "which checkpoint of the run", "Options", cure="Give best or last.")
TTA = Option(
    Choice(VIEWS), "look at each image mirrored too, or in three sizes: probabilities are averaged, objects merged",
    "Options", none="none",
)  # fmt: skip
THRESHOLD = Option(
    Number(0, 1, low_open=True, high_open=True), "minimum score of reported labels and objects", "Options",
    none="the run's",
)  # fmt: skip


def open_folder(given: Given) -> Run:
    """Open the run given as ``RUN``, with ``--trust`` if the verb has it and it was given.

    Raises:
        ModelError: If it is not the folder of a run; a checkpoint would be taken for the whole run.
    """
    with loading_torch():
        from autotimm.records.run_folder import require_run_folder
    require_run_folder(given.positionals["run"])
    return _opened(given)


def _opened(given: Given) -> Run:
    with loading_torch():
        from autotimm.runs.run import Run
    return Run(given.positionals["run"], trust=bool(given.options.get("trust")))


def open_run(given: Given) -> tuple[Run, str]:
    """Open the run given as ``RUN|CKPT``; return it and the checkpoint to use.

    Raises:
        UsageError: If a checkpoint is given as ``RUN|CKPT`` and as ``--ckpt``.
    """
    path, ckpt = given.positionals["run"], given.value("ckpt")
    if "ckpt" in given.options and path.endswith(".ckpt"):
        raise UsageError(f"{path} is a checkpoint already. Leave out --ckpt, or give the run folder.")
    return _opened(given), ckpt


def print_once(result: object) -> None:
    """Print a result; of several processes the first prints it."""
    from pytorch_lightning.utilities import rank_zero_only  # by now it is loaded

    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # set by Lightning when it is imported
        print(printable(result, keep="\n"))


def print_run(run: Run) -> None:
    """Print where the report is, and then the line that scripts read; of several processes the first prints both."""
    from pytorch_lightning.utilities import rank_zero_only  # by now it is loaded

    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # set by Lightning when it is imported
        if (report := run.path / "report.html").is_file():
            print(f"report: {printable(report)}")
        print(f"run: {printable(run.path) if sys.stdout.isatty() else run.path}")  # a script needs the path as it is


def run_answer(run: Run) -> dict[str, Any]:
    """What ``--json`` says of a run that was trained: its folder, its report if it has one, its metrics and folds."""
    report = run.path / "report.html"
    answer = {"run": run.path, "report": report if report.is_file() else None, "metrics": run.metrics}
    return answer | ({"folds": run.folds} if run.folds else {})


def measuring(
    name: str, images: str, measure: Callable[[Run, str | None, str, str | None, str | None], Mapping[str, float]], *,
    keeps: bool = False,
) -> Verb:  # fmt: skip
    """Make a verb that evaluates a run.

    Args:
        name: The verb.
        images: The split, in words.
        measure: Returns the metrics of a run, on other images or ``None``, with a checkpoint, written to a file or
            ``None``, of the named views of each image or ``None``.
        keeps: Whether its results are kept with the run, or written elsewhere with ``--out``.
    """

    def run(argv: Sequence[str]) -> int:
        given = parse(verb, argv)
        if given is None:
            return 0
        with answering(given) as answer:
            evaluated, ckpt = open_run(given)
            out, tta = given.value("out") if keeps else None, given.value("tta")
            metrics = measure(evaluated, given.positionals["path"], ckpt, out, tta)
            print_metrics(metrics)
            if evaluated.per_class:
                print()
                print("\n".join(class_lines(evaluated.per_class, _terminal_columns())))
            answer.update(run=evaluated.path, metrics=metrics, per_class=evaluated.per_class, tta=tta)
        return 0

    out = {"out": Option(Path(metavar="FILE"), "new JSON file for the results", "Options", none="with the run")}
    verb = Verb(
        name=name,
        summary=f"evaluate a run on its {images} images",
        run=run,
        positionals=(RUN, Positional("path", "PATH", "other labelled images: a folder or a CSV file", required=False)),
        options={"ckpt": CKPT, "tta": TTA, **(out if keeps else {}), "trust": TRUST, "json": JSON},
        defaults={"ckpt": "best", "tta": None, **({"out": None} if keeps else {}), "trust": False, "json": False},
        examples=(
            f"autotimm {name} runs/photos-001",
            f"autotimm {name} runs/photos-001 more-photos/",
            f"autotimm {name} runs/photos-001 --tta flip",
        ),
    )
    return verb


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print one metric per line, aligned."""
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        print(f"{printable(name):<{width}}  {value:.4f}")


def _terminal_columns() -> int:
    """Width of the terminal; 0 if the output goes elsewhere, where every class gets a line."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def class_lines(table: Mapping[str, Mapping[str, float]], width: int = 0) -> list[str]:
    r"""Format the values per class as aligned lines; many classes are set in blocks side by side.

    Args:
        table: A row per class, a column per metric; NaN, shown as ``-``, for values that are undefined.
        width: Available columns; 0 for one class per line.

    Example:
        >>> print("\n".join(class_lines({"cat": {"AP": 0.5}, "dog": {"AP": float("nan")}})))
        class      AP
        cat    0.5000
        dog         -
    """
    titles = list(next(iter(table.values())))
    names = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…" for name in map(printable, table)]
    rows = [["-" if isnan(value) else f"{value:.4f}" for value in row.values()] for row in table.values()]
    widths = [max(6, len(title)) for title in titles]
    name_width = max(map(len, ["class", *names]))

    def line(name: str, cells: Sequence[str]) -> str:
        padded = (f"{cell:>{cell_width}}" for cell, cell_width in zip(cells, widths, strict=True))
        return "  ".join([f"{name:<{name_width}}", *padded])

    head, lines = line("class", titles), [line(name, row) for name, row in zip(names, rows, strict=True)]
    blocks = max(1, min((width + _GAP) // (len(head) + _GAP), -(-len(lines) // _BLOCK_ROWS)))
    height = -(-len(lines) // blocks)
    columns = [[head, *lines[start : start + height]] for start in range(0, len(lines), height)]
    return [(" " * _GAP).join(line_parts).rstrip() for line_parts in zip_longest(*columns, fillvalue="")]
