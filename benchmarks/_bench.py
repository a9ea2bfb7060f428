"""Shared by the benchmarks: alternating timing, medians of ratios, a description of the machine, tables for RESULTS.md.

The speed of a shared machine varies by more than the differences measured here. Therefore the two sides of a comparison
alternate: each turn gives one ratio, and the median of the ratios is reported with its quartiles. A disturbance then
affects both sides, or one ratio of many.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT.parent / "shared" / "data"  # real photographs; not part of the project
WEIGHTS = ROOT.parent / "shared" / "weights" / "tf_efficientnet_lite0.safetensors"  # real ones; as the photographs
PACKAGES = ("torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "numpy", "pillow")


@dataclass
class Turns:
    """The measurements of both sides, turn by turn, in the same unit."""

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
    """Measure both sides alternately; the side that begins changes each turn. Warm-up turns do not count."""
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
    """The metric of one side in percent, one value per seed, and the seconds that one training took."""

    values: list[float]
    seconds: float

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(self.values)

    @property
    def std(self) -> float:
        """The sample standard deviation over the seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def against(self, theirs: Outcome) -> str:
        """``holds`` unless this side is worse by more than one pooled standard deviation."""
        pooled = math.sqrt((self.std**2 + theirs.std**2) / 2)
        return "holds" if self.mean >= theirs.mean - pooled else "missed"

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.std:.1f} ({', '.join(f'{value:.1f}' for value in self.values)})"


def median(values: Iterable[float]) -> float:
    """The median of some values."""
    return statistics.median(values)


def machine() -> dict[str, Any]:
    """Hardware and versions that the figures depend on, without names of machine or user, and without paths."""
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


def done_lines(file: Path | None) -> list[dict[str, Any]]:
    """The results that an interrupted call has written to a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file is not None and file.exists() else []


def keep_line(line: Mapping[str, Any], file: Path | None) -> None:
    """Append a result to a file of JSON lines, if there is one: an interrupted call goes on from there."""
    if file is not None:
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")


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
