"""The program that ``export --with-runner`` writes against ``autotimm predict``: start, and images per second.

Both predict the same photographs with the same run and write the same table, each as a process of its own, in turns.
The first figure is the CPU time from the start of a process to its end with one photograph. The second is how many more
photographs a process predicts per CPU second, by the difference to the process that predicts one. Both have one thread
by default.

Targets: less than 0.7 s of CPU time to the first prediction, and at least as many images per second as ``autotimm
predict``.

    python benchmarks/runner.py [--quick] [--threads 1] [--data FOLDER]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from _bench import PHOTOS, Turns, arguments, data_folder, median, report
from _drawn import draw_classes
from _trained import briefly_trained

NETWORKS = {"test_resnet": 160, "tf_efficientnet_lite0": 224, "resnet18": 224}  # and the side of their images


class Took(NamedTuple):
    """The seconds that a process took."""

    wall: float
    cpu: float


def took(command: Sequence[str | Path], threads: int) -> Took:
    """Run a command and wait for it."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)  # unlike Popen.wait, it tells the CPU time
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed with exit code {process.returncode}")
    return Took(wall, usage.ru_utime + usage.ru_stime)


def compare(name: str, size: int, folder: Path, threads: int, turns: int) -> dict[str, object]:
    """The figures of one network."""
    with tempfile.TemporaryDirectory() as scratch:
        run = briefly_trained(folder, Path(scratch), name, size, threads)
        run.export(Path(scratch, "model", "m.onnx"), with_runner=True, check="seeded")
        photos = sorted(file for file in folder.rglob("*") if file.is_file())
        ours = [Path(scratch, "model", "predict.py")]
        theirs = ["-m", "autotimm", "predict", run.path]
        starts, rates = Turns(), Turns()
        for turn in range(-1, turns):
            first = [took([*side, photos[0]], threads).cpu for side in (ours, theirs)]
            every = [took([*side, *photos], threads).cpu for side in (ours, theirs)]
            if turn >= 0:
                more = [max(whole - one, 1e-3) for whole, one in zip(every, first, strict=True)]
                starts.ours.append(first[0])
                starts.theirs.append(first[1])
                rates.ours.append((len(photos) - 1) / more[0])
                rates.theirs.append((len(photos) - 1) / more[1])
    return {
        "network": f"{name}, {size} px", "photos": len(photos), "start_s": round(median(starts.ours), 2),
        "predict_start_s": round(median(starts.theirs), 2), "per_s": round(median(rates.ours), 1),
        "predict_per_s": round(median(rates.theirs), 1), "ratio": round(rates.ratio, 2), "quartiles": rates.quartiles,
    }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both sides")
    parser.add_argument("--networks", help="names with commas between them")
    parser.add_argument("--data", type=Path, help="a folder of class folders")
    options = parser.parse_args()
    networks = {"test_resnet": 64} if options.quick else NETWORKS
    names = options.networks.split(",") if options.networks else list(networks)
    with data_folder(options, PHOTOS / "cls_clothing" / "validation", draw_classes) as folder:
        found = [compare(name, networks[name], folder, options.threads, 1 if options.quick else 3) for name in names]
    columns = (
        "network",
        "photographs",
        "start of the runner, CPU s",
        "start of predict, CPU s",
        "images per CPU s, runner",
        "images per CPU s, predict",
        "ratio",
        "middle half of the ratios",
    )
    report("runner", columns, [[*one.values()] for one in found], threads=options.threads, networks=found)


if __name__ == "__main__":
    main()
