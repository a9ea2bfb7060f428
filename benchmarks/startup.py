"""Startup time: what ``import autotimm`` adds to that of Python, and the CPU time of ``autotimm --help``.

Each turn starts two fresh processes, ``python -c pass`` and the command, and takes the difference. The median over the
turns is reported as wall-clock time and as CPU time, which is the user and system time of the process as counted by the
kernel and hardly depends on other programs. Files are in the page cache, because the first turn is not counted.

``fit to its first step`` and ``predict of one image`` are ratios within one process: the CPU time from its start to
that point, and the CPU time until torch, timm and pytorch_lightning were imported. Bytecode is written before, as pip
does.

Targets: ``import autotimm`` adds less than 0.1 s of wall-clock time; ``autotimm --help`` takes less than 0.5 s of CPU
time in total, including Python's own startup; both ratios are at most 1.1.

    python benchmarks/startup.py [--quick]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
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


# Of a small network, whose own work is small beside the imports.
FIRST = """
import os, sys, time
import torch, timm, pytorch_lightning
base = time.process_time()
from autotimm.cli.main import main

def told(*args, **kwargs):
    print(time.process_time() / base, flush=True)
    os._exit(0)

if sys.argv[1] == "first step":
    from autotimm.train.callbacks.recorder import Recorder
    Recorder.on_train_batch_end = told
main(sys.argv[2:])
told()
"""
FIT = "--backbone test_resnet --pretrained false --image-size 32 --batch-size 8 --num-workers 0 --threads 1 --epochs 1"


def ratios(turns: int) -> dict[str, float]:
    """The CPU time of a fit to its first step, and of a prediction, as multiples of that of the imports."""
    from autotimm.data.toy import write_toy_folder

    with tempfile.TemporaryDirectory() as scratch:
        photos = write_toy_folder(Path(scratch) / "photos", n=24, num_classes=3, image_size=32)
        image = str(next(photos.rglob("*.png")))
        fit = ["fit", str(photos), *FIT.split(), "--accelerator", "cpu", "--out", scratch]
        commands = {
            "fit to its first step": ["first step", *fit],
            "predict of one image": ["end", "predict", f"{scratch}/one", image],
        }
        found: dict[str, list[float]] = {name: [] for name in commands}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = f"{scratch}/bytecode"

        def program(words: list[str]) -> str:
            command = [sys.executable, "-c", FIRST, *words]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            return done.stdout.splitlines()[-1]

        program(["end", *fit, "--name", "one"])
        for turn in range(turns + 1):
            for name, words in commands.items():
                ratio = float(program(words))
                found[name] += [ratio] if turn else []  # the first writes the bytecode
        return {name: round(median(each), 3) for name, each in found.items()}


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
    of_imports = ratios(1 if turns == 3 else 5)
    rows += [(f"{name}: times the imports", "", "", ratio) for name, ratio in of_imports.items()]
    report("startup", columns, rows, turns=turns, figures=figures, ratios=of_imports)


if __name__ == "__main__":
    main()
