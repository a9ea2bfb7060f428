"""The time of a training epoch with autotimm, compared with a hand-written PyTorch loop.

Both sides train the same network (``build_classifier``, same seed) on the same batches in memory, with AdamW, weight
decay on matrices only, gradients clipped to norm 1, and a cosine schedule per step. The hand-written loop only keeps a
running loss. autotimm runs ``AutoTrainer`` and ``ImageClassifier`` with streams, switches, checks of the loss and
logging. Run folder, progress and validation are off, because the loop has none. Both compute no training metric but the
loss, which is autotimm's default.

Trainer and loop alternate epoch by epoch in one process. The time of the trainer's epoch is everything between two
epochs of the loop. At the end the weights of both sides are compared: if they have the same bits, both have done the
same work. Ratios are given in wall-clock time and in CPU time of the process. On a busy machine, CPU time with
``--threads 1`` is more reliable.

Target: a ratio of at most 1.05 for resnet18 at 64 px, batch 32. The tiny network shows the overhead of a single step.

    python benchmarks/epoch.py [--quick] [--threads 2]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from _bench import CLOCKS, Turns, arguments, median, report
from torch import nn

from autotimm import AutoTrainer, Batch, ImageClassifier
from autotimm.models import build_classifier
from autotimm.repro import generator, state_digest
from autotimm.repro.seed import default_threads

CLASSES, LEARNING_RATE, WEIGHT_DECAY = 10, 1e-3, 0.05


@dataclass(frozen=True)
class Case:
    """A network, and how many steps and epochs to train it."""

    backbone: str
    image_size: int
    steps: int
    epochs: int

    def __str__(self) -> str:
        return f"{self.backbone}, {self.image_size} px, batch 32"


CASES = [Case("resnet18", 64, steps=8, epochs=21), Case("test_resnet", 32, steps=40, epochs=21)]


class NoiseBatches:
    """Batches of noise with random classes, made once. No plain list: Lightning takes that for several loaders."""

    def __init__(self, case: Case) -> None:
        stream, shape = generator(0, "benchmark"), (32, 3, case.image_size, case.image_size)
        self.batches = [
            Batch(
                torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream),
                torch.randint(0, CLASSES, (32,), generator=stream),
            )
            for _ in range(case.steps)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class HandWritten:
    """The loop that one writes by hand: nothing stands between torch and the batches."""

    def __init__(self, network: nn.Module, batches: NoiseBatches, epochs: int) -> None:
        self.network, self.batches = network.train(), batches
        flat = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
        others = [parameter for parameter in network.parameters() if parameter.ndim > 1]
        self.parameters = [*flat, *others]
        groups = [{"params": flat, "weight_decay": 0.0}, {"params": others, "weight_decay": WEIGHT_DECAY}]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
        steps = epochs * len(batches)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        self.criterion = nn.CrossEntropyLoss()

    def epoch(self) -> float:
        """Train on every batch once; return the mean loss."""
        total = torch.zeros(())
        for batch in self.batches:
            loss = self.criterion(self.network(batch.images), batch.targets)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.schedule.step()
            total += loss.detach()
        return float(total) / len(self.batches)


class InTurns(pl.Callback):
    """Lets the hand-written loop do an epoch after each epoch of the trainer, and times both by every clock."""

    def __init__(self, loop: HandWritten) -> None:
        self.loop = loop
        self.took = {name: Turns() for name in CLOCKS}
        self.resumed: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stopped = _now()
        self.loop.epoch()
        done = _now()
        if self.resumed:  # the first epoch warms up
            for name, turns in self.took.items():
                turns.ours.append(stopped[name] - self.resumed[name])
                turns.theirs.append(done[name] - stopped[name])
        self.resumed = done


def _now() -> dict[str, float]:
    return {name: clock() for name, clock in CLOCKS.items()}


def compare(case: Case, threads: int) -> tuple[dict[str, Turns], bool]:
    """Train both sides; return what the epochs took and whether the weights have the same bits."""
    batches = NoiseBatches(case)
    task = ImageClassifier(
        case.backbone, CLASSES, pretrained=False, image_size=case.image_size, lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY, schedule="cosine", warmup_epochs=0,
    )  # fmt: skip
    network = build_classifier(case.backbone, CLASSES, image_size=case.image_size)
    turns = InTurns(HandWritten(network, batches, case.epochs))
    trainer = AutoTrainer(
        case.epochs, threads=threads, callbacks=[turns], run_dir=False, accelerator="cpu",
        enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(task, train_dataloaders=batches)
    return turns.took, state_digest(task.network.state_dict()) == state_digest(network.state_dict())


def figures_of(case: Case, took: dict[str, Turns], same: bool) -> dict[str, Any]:
    """The figures of one line of the table."""
    wall, cpu = took["wall"], took["cpu"]
    return {
        "ratio": round(wall.ratio, 3),
        "quartiles": wall.quartiles,
        "cpu_ratio": round(cpu.ratio, 3),
        "cpu_quartiles": cpu.quartiles,
        "step_ms": round(median(wall.theirs) / case.steps * 1e3, 2),
        "added_cpu_us": round(median(a - b for a, b in zip(cpu.ours, cpu.theirs, strict=True)) / case.steps * 1e6),
        "same_weights": same,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=default_threads(), help="CPU threads of both sides")
    options = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    for case in CASES:
        if options.quick:
            case = Case(case.backbone, 32, steps=4, epochs=3)
        figures[str(case)] = figures_of(case, *compare(case, options.threads))
    columns = (
        "training", "ratio, wall", "quartiles", "ratio, CPU", "quartiles", "a step by hand, ms",
        "added to a step, CPU µs", "same weights",
    )  # fmt: skip
    rows = [(name, *found.values()) for name, found in figures.items()]
    report("epoch", columns, rows, threads=options.threads, figures=figures)


if __name__ == "__main__":
    main()
