"""Startup time: what ``import autotimm`` adds to that of Python, and the CPU time of ``autotimm --help``.

Each turn starts two fresh processes, ``python -c pass`` and the command, and takes the difference. The median over the
turns is reported as wall-clock time and as CPU time, which is the user and system time of the process as counted by the
kernel and hardly depends on other programs. Files are in the page cache, because the first turn is not counted.

Targets: ``import autotimm`` adds less than 0.1 s of wall-clock time; ``autotimm --help`` takes less than 0.5 s of CPU
time in total, including Python's own startup.

    python benchmarks/startup.py [--quick]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import NamedTuple

from _bench import arguments, median, report

COMMANDS = {
    "import autotimm": ["-c", "import autotimm"],
    "autotimm --help": ["-m", "autotimm", "--help"],
    "autotimm fit --help": ["-m", "autotimm", "fit", "--help"],
    "autotimm fit --epochs x (a usage error)": ["-m", "autotimm", "fit", "photos", "--epochs", "x"],
    "import torch (for comparison)": ["-c", "import torch"],
    "import torch, timm, pytorch_lightning (for comparison)": ["-c", "import torch, timm, pytorch_lightning"],
    "what autotimm fit imports": ["-c", "import autotimm.cli.fit, autotimm.runs.fit"],
}


class Took(NamedTuple):
    """The seconds that a process took."""

    wall: float
    cpu: float


def start(arguments: list[str]) -> Took:
    """Run Python with arguments and wait for it."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # unlike Popen.wait, it tells the CPU time
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 2):  # 2 is a usage error
        raise SystemExit(f"{' '.join(arguments)} failed with exit code {process.returncode}")
    return Took(wall, usage.ru_utime + usage.ru_stime)


def main() -> None:
    turns = 3 if arguments(__doc__).parse_args().quick else 15
    figures = {}
    for name, command in COMMANDS.items():
        pairs = [(start(["-c", "pass"]), start(command)) for _ in range(turns + 1)][1:]
        figures[name] = {
            "added_wall_s": round(median(command.wall - bare.wall for bare, command in pairs), 3),
            "added_cpu_s": round(median(command.cpu - bare.cpu for bare, command in pairs), 3),
            "cpu_s": round(median(command.cpu for _, command in pairs), 3),
        }
    columns = ("command", "added to `python -c pass`, s", "the same, CPU s", "in all, CPU s")
    rows = [(name, *found.values()) for name, found in figures.items()]
    report("startup", columns, rows, turns=turns, figures=figures)


if __name__ == "__main__":
    main()
