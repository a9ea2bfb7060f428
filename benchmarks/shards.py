"""The cost of a training step on shards, against torch's DistributedDataParallel at equal work, with two processes.

Both sides train the same network on the same images in the same two processes, with the same loop: forward, backward,
sums over the processes, optimizer. The one sums by DDP, whose reducer works while the backward pass goes on; the other
as ``shards`` do, one shard a process. Sides alternate, and each turn gives one ratio. Beside it stands what the
exchange alone costs by gloo, of as many numbers: DDP's ``all_reduce``, and what shards do.

Targets: at most 1.10 of DDP by CPU time and on the clock.

    python benchmarks/shards.py [--quick] [--turns 15] [--steps 4]
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.distributed as dist
from _bench import arguments, median, report, seconds, take_turns
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from autotimm.train.shard_sums import Pool, ShardStep, Sums, sum_of_processes

PROCESSES = 2
SETUPS = (("resnet18", 64, 16), ("resnet18", 128, 16), ("test_resnet", 32, 16))
"""Network, side of the images in pixels, and images for each process."""


class Side:
    """One of both ways: a network, its optimizer and a batch."""

    def __init__(self, name: str, size: int, images: int, *, by_ddp: bool) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = timm.create_model(name, num_classes=10)
        self.called = DistributedDataParallel(self.network) if by_ddp else self.network
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        stream = torch.Generator().manual_seed(dist.get_rank())
        self.images = torch.rand(images, 3, size, size, generator=stream)
        self.targets = torch.randint(10, (images,), generator=stream)
        self.by_ddp, self.pool = by_ddp, Pool()
        self.held: Sums | None = None

    def step(self) -> None:
        """Make one step of training."""
        self.optimizer.zero_grad()
        if self.by_ddp:
            cross_entropy(self.called(self.images), self.targets).backward()
        else:
            self._step_on_shards()
        self.optimizer.step()

    def _step_on_shards(self) -> None:
        if self.held is not None:
            self.pool.give(self.held.vectors)
        rank, step = dist.get_rank(), ShardStep(self.network, PROCESSES, self.pool)
        loss = cross_entropy(self.called(self.images), self.targets)
        (loss / PROCESSES).backward()
        sums = step.take([loss], 1 / PROCESSES, counts=rank == 0)
        self.held = sum_of_processes({(rank, rank + 1): sums}, PROCESSES, rank, PROCESSES)
        gradients, _ = step.finish(self.held)
        for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
            parameter.grad = gradient


def exchange_by_reducing(numbers: Tensor) -> Callable[[], object]:
    """What DDP does with gradients."""
    return lambda: dist.all_reduce(numbers)


def exchange_in_order(numbers: Tensor) -> Callable[[], object]:
    """What shards do with them."""
    rank, pool = dist.get_rank(), Pool()

    def exchange() -> None:
        ours = Sums([pool.take(numbers.dtype, len(numbers), numbers.device)], pool)
        pool.give(sum_of_processes({(rank, rank + 1): ours}, PROCESSES, rank, PROCESSES).vectors)

    return exchange


def several(action: Callable[[], object], times: int, clock: str) -> Callable[[], float]:
    """Measure an action that all processes begin together; the time of one."""

    def measured() -> float:
        dist.barrier()
        return seconds(lambda: [action() for _ in range(times)], clock) / times

    return measured


def measure(options: argparse.Namespace) -> None:
    """Measure in this process together with the others; the first prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rows, ratios = [], {}
    for name, size, images in SETUPS[-1:] if options.quick else SETUPS:
        ours, theirs = (Side(name, size, images, by_ddp=by_ddp) for by_ddp in (False, True))
        numbers = torch.zeros(-(-sum(each.numel() for each in ours.network.parameters()) // PROCESSES) * PROCESSES)
        cells: dict[str, Any] = {}
        for clock in ("wall", "cpu"):
            steps = take_turns(
                several(ours.step, options.steps, clock), several(theirs.step, options.steps, clock), options.turns, 2
            )
            exchanges = take_turns(
                several(exchange_in_order(numbers), options.steps, clock),
                several(exchange_by_reducing(numbers), options.steps, clock), options.turns, 2,
            )  # fmt: skip
            cells[clock] = (steps, *(1e3 * median(each) for each in (exchanges.ours, exchanges.theirs)))
            ratios[f"{name} {size} {clock}"] = round(steps.ratio, 4)
        for clock, (steps, in_order, reduced) in cells.items():
            rows.append(
                (f"{name}, {size} px, {PROCESSES} x {images} images", clock, f"{steps.ratio:.3f}", steps.quartiles,
                 f"{1e3 * median(steps.theirs):.1f}", f"{reduced:.1f}", f"{in_order:.1f}")
            )  # fmt: skip
    if dist.get_rank() == 0:
        columns = (
            "training",
            "time",
            "ratio",
            "quartiles",
            "a step by DDP, ms",
            "all_reduce alone, ms",
            "ours alone, ms",
        )
        report("shards", columns, rows, ratios=ratios, turns=options.turns)
    dist.destroy_process_group()


def main() -> None:
    """Start both processes, or be one of them."""
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="steps that each turn takes the mean of")
    options = parser.parse_args()
    if options.quick:
        options.turns, options.steps = 2, 1
    if "RANK" in os.environ:
        measure(options)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(PROCESSES)}
    started = [
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, **place, "RANK": str(rank)})
        for rank in range(PROCESSES)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
