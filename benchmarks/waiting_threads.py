"""What threads of torch cost that wait for each other: those of libgomp spin, and sleep after a while.

Every operator ends when its last thread does. Until then the others ask again and again, or sleep and are woken up. The
first is faster by the time of waking up, if each thread has a core of its own. If other programs want the cores, a
thread that spins keeps the one that it waits for from running.

One process for each setting trains the same network on noise. They take turns, some steps at a time, first alone and
then beside programs that compute without end, three for each core. The figures are seconds of one step, by the clock
and of CPU time, and the ratio to libgomp's own setting by the clock.

    python benchmarks/waiting_threads.py [--quick] [--threads 2]
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from _bench import arguments, median, report

NETWORKS = {"resnet18": 64, "test_resnet": 32, "tf_efficientnet_lite0": 128}  # and the side of their images
SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's own": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "1,000 times": {"GOMP_SPINCOUNT": "1000"},
    "autotimm's, 3,000 times": {"GOMP_SPINCOUNT": "3000"},
    "30,000 times": {"GOMP_SPINCOUNT": "30000"},
}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")

TRAINS = """
import sys, time, timm, torch
torch.set_num_threads(int(sys.argv[1]))
network = timm.create_model(sys.argv[2], num_classes=10).train()
images = torch.randn(32, 3, int(sys.argv[3]), int(sys.argv[3]))
optimizer = torch.optim.SGD(network.parameters(), 1e-3)
for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(int(line)):
        network(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)
"""


class Step(NamedTuple):
    """The seconds of one step."""

    wall: float
    cpu: float


class Trainer:
    """A process that trains with a setting."""

    def __init__(self, network: str, threads: int, variables: Mapping[str, str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAINS, str(threads), network, str(NETWORKS[network])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment | dict(variables),
        )  # fmt: skip

    def steps(self, number: int) -> Step:
        """Train some steps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(number, file=self.process.stdin, flush=True)
        wall, cpu = map(float, self.process.stdout.readline().split())
        return Step(wall / number, cpu / number)

    def end(self) -> None:
        """End the process."""
        self.process.communicate()


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Let some programs compute while a block runs."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measured(network: str, programs: int, options: Any) -> list[dict[str, Any]]:
    """One row for each setting."""
    trainers = {name: Trainer(network, options.threads, variables) for name, variables in SETTINGS.items()}
    for trainer in trainers.values():
        trainer.steps(2)
    taken: dict[str, list[Step]] = {name: [] for name in SETTINGS}
    with busy(programs):
        for _ in range(options.turns):
            for name, trainer in trainers.items():
                taken[name].append(trainer.steps(options.steps))
    for trainer in trainers.values():
        trainer.end()
    own = [step.wall for step in taken["libgomp's own"]]
    return [
        {
            "network": f"{network}, {NETWORKS[network]} px", "others": programs, "waiting": name,
            "wall": median(step.wall for step in steps), "cpu": median(step.cpu for step in steps),
            "ratio": median(step.wall / first for step, first in zip(steps, own, strict=True)),
        }
        for name, steps in taken.items()
    ]  # fmt: skip


def main() -> None:
    """Measure all settings."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads of each process")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    networks = ["test_resnet"] if options.quick else [*NETWORKS]
    if options.quick:
        options.steps = options.turns = 1
    rows = [
        row
        for network in networks
        for programs in (0, 3 * (os.cpu_count() or 1))
        for row in measured(network, programs, options)
    ]
    report(
        "waiting_threads", ("network", "others", "waiting", "s", "CPU s", "times libgomp's own"),
        [
            [r["network"], r["others"], r["waiting"], f"{r['wall']:.3f}", f"{r['cpu']:.3f}", f"{r['ratio']:.2f}"]
            for r in rows
        ],
        steps=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
