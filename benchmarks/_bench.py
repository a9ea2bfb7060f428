"""What the benchmarks share: timing in turns, medians of ratios, the machine in words, tables for RESULTS.md.

A shared machine slows down and speeds up by more than what is measured here. So the two sides of a comparison are never
timed one after the other: they take turns, each turn gives one ratio, and the median of the ratios is reported
with its quartiles. A disturbance then hits both sides, or one ratio of many.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT.parent / "shared" / "data"  # real photographs; not part of the project
PACKAGES = ("torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "numpy", "pillow")


@dataclass
class Turns:
    """What two sides took, turn by turn, in one unit."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Ours divided by theirs, one for each turn."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> str:
        """The middle half of the ratios."""
        low, _, high = statistics.quantiles(self.ratios, n=4) if len(self.ratios) > 1 else self.ratios * 3
        return f"{low:.3f} to {high:.3f}"


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Time as it passes, and CPU time of this process, which other programs on the machine disturb less."""


def seconds(action: Callable[[], Any], clock: str = "wall") -> float:
    """How long an action takes by one of the :data:`CLOCKS`."""
    now = CLOCKS[clock]
    start = now()
    action()
    return now() - start


def take_turns(ours: Callable[[], float], theirs: Callable[[], float], turns: int, warm_up: int = 1) -> Turns:
    """Let two sides measure themselves in turns; who begins changes each time. The first turns do not count."""
    taken = Turns()
    for turn in range(-warm_up, turns):
        if turn % 2:
            second, first = theirs(), ours()
        else:
            first, second = ours(), theirs()
        if turn >= 0:
            taken.ours.append(first)
            taken.theirs.append(second)
    return taken


class Outcome(NamedTuple):
    """What one side reached, in per cent, once for each seed, and the seconds that a training took."""

    values: list[float]
    seconds: float

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.values)

    @property
    def std(self) -> float:
        """Over the seeds, of a sample."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def against(self, theirs: Outcome) -> str:
        """Whether this is not worse than the other by more than one standard deviation, of the two pooled."""
        pooled = math.sqrt((self.std**2 + theirs.std**2) / 2)
        return "holds" if self.mean >= theirs.mean - pooled else "missed"

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.std:.1f} ({', '.join(f'{value:.1f}' for value in self.values)})"


def median(values: Iterable[float]) -> float:
    """The median, under a name that reads well beside :class:`Turns`."""
    return statistics.median(values)


def machine() -> dict[str, Any]:
    """What the figures depend on; neither the name of the machine, nor a user, nor a path."""
    import torch

    found = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of a benchmark, with the options that all of them have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run, whose figures mean nothing")
    return parser


@contextmanager
def data_folder(options: argparse.Namespace, usual: Path, draw: Callable[[Path], None]) -> Iterator[Path]:
    """The folder to measure on: that of ``--data``, else the usual one, but a drawn one for ``--quick``.

    Args:
        options: Parsed arguments, with ``data`` (None if it was not given) and ``quick``.
        usual: The real data set.
        draw: Writes a small stand-in for it into an empty folder.

    Raises:
        SystemExit: If there is no such folder.
    """
    if options.quick and options.data is None:
        with tempfile.TemporaryDirectory() as scratch:
            draw(Path(scratch))
            yield Path(scratch)
        return
    folder = options.data or usual
    if not folder.is_dir():
        raise SystemExit(f"There is no folder {folder}. Name one with --data, or try a drawn one with --quick.")
    yield folder


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, aligned so that it can be read in a terminal too."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells)


def report(name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], **figures: Any) -> None:
    """Print the table of a benchmark, and everything in one line of JSON for a program to read."""
    print(f"\n{table(columns, rows)}\n")
    print(json.dumps({"benchmark": name, **figures, "machine": machine()}, sort_keys=True))
