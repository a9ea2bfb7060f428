"""How long a training pauses for a checkpoint that a thread writes, compared with one that it waits for.

One training of random weights on noise, with AdamW, whose state is twice as large as the weights. After every second
epoch it waits until the checkpoint is on the disk; after the others it goes on. A pause is the time between the last
batch of an epoch and the first of the next. An epoch is counted with its pause: on a machine without a free core, the
thread takes its time from the training.

    python benchmarks/checkpoints.py [--quick] [--threads 1]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from _bench import Turns, arguments, median, report
from epoch import CLASSES, Case, NoiseBatches

from autotimm import AutoTrainer, ImageClassifier
from autotimm.train.callbacks.run_checkpoint import RunCheckpoint

CASES = [Case("resnet18", 64, steps=8, epochs=22), Case("resnet50", 64, steps=8, epochs=12)]


class WaitsEverySecond(pl.Callback):
    """Waits for every second checkpoint, and times pauses and epochs: ``ours`` of both goes on, ``theirs`` waits."""

    def __init__(self) -> None:
        self.pauses, self.epochs = Turns(), Turns()
        self.ended = self.resumed = 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ended = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        writer = trainer.checkpoint_callback
        assert isinstance(writer, RunCheckpoint)
        waits = trainer.current_epoch % 2 == 0
        if waits:
            writer.writer.wait()
        now = time.perf_counter()
        if self.resumed and trainer.current_epoch > 2:  # the first epochs warm up
            (self.pauses.theirs if waits else self.pauses.ours).append(now - self.ended)
            (self.epochs.theirs if waits else self.epochs.ours).append(now - self.resumed)
        self.resumed = now


def compare(case: Case, threads: int, folder: Path) -> dict[str, Any]:
    """Train once; return the figures of one line of the table."""
    task = ImageClassifier(case.backbone, CLASSES, pretrained=False, image_size=case.image_size, lr=1e-3)
    timed = WaitsEverySecond()
    trainer = AutoTrainer(
        case.epochs, threads=threads, callbacks=[timed], run_dir=folder / case.backbone, accelerator="cpu",
        enable_progress_bar=False, keep="last",
    )  # fmt: skip
    trainer.fit(task, train_dataloaders=NoiseBatches(case))
    size = (folder / case.backbone / "checkpoints" / "last.ckpt").stat().st_size
    pairs = min(len(timed.pauses.ours), len(timed.pauses.theirs))
    pauses, epochs = (Turns(turns.ours[:pairs], turns.theirs[:pairs]) for turns in (timed.pauses, timed.epochs))
    return {
        "megabytes": round(size / 1e6),
        "waits_ms": round(median(pauses.theirs) * 1e3),
        "goes_on_ms": round(median(pauses.ours) * 1e3),
        "pause": round(pauses.ratio, 3),
        "epoch": round(epochs.ratio, 3),
        "quartiles": epochs.quartiles,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the training")
    options = parser.parse_args()
    cases = [Case("test_resnet", 32, steps=2, epochs=8)] if options.quick else CASES
    with tempfile.TemporaryDirectory() as scratch:
        figures = {str(case): compare(case, options.threads, Path(scratch)) for case in cases}
    columns = ("training", "MB", "waits, ms", "goes on, ms", "ratio of pauses", "ratio of epochs", "quartiles")
    report("checkpoints", columns, [(name, *row.values()) for name, row in figures.items()], figures=figures)


if __name__ == "__main__":
    main()
