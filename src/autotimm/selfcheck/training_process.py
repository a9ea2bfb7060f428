"""A child process of the check: ``python -m autotimm.selfcheck.training_process JOB.json``.

It runs the trainings that the file describes, one after the other. Each training writes a run folder and, once it has
finished, a JSON file of the same name beside it. An error ends the process; the parent reads the last line of its
standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from autotimm.data.loader import KeyedLoader
from autotimm.errors import AutotimmError, printable
from autotimm.metrics import MetricConfig, build_metrics
from autotimm.records.atomic import write_text
from autotimm.records.own_modules import search_also
from autotimm.repro.streams import RootSeed
from autotimm.selfcheck.setup import Setup, make
from autotimm.selfcheck.variations import Variation
from autotimm.serialization import read_json
from autotimm.tasks import Task
from autotimm.train.callbacks.rng_noise import DrawsEverywhere, pollute_generators
from autotimm.types import Batch, Stage

__all__ = ["main"]

_FINGERPRINT = 16  # hexadecimal digits per sample


class _SampleFingerprints(Callback):
    """Records a fingerprint of each sample's pixels in each epoch."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, str, str]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Split the fingerprints of a batch into those of its samples."""
        if isinstance(batch, Batch) and batch.fingerprints:
            text = batch.fingerprints
            parts = [text[at : at + _FINGERPRINT] for at in range(0, len(text), _FINGERPRINT)]
            self.samples += [(trainer.current_epoch, *pair) for pair in zip(batch.ids, parts, strict=True)]


class _Kill(Callback):
    """Kills the process in the middle of the second epoch, as a power cut would."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Kill in the second batch, or in the first if there is no other."""
        if trainer.current_epoch == 1 and batch_idx == min(1, int(trainer.num_training_batches) - 1):
            os.kill(os.getpid(), signal.SIGKILL)


class _Prefetch(Callback):
    """Sets the number of batches that training workers prepare in advance."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Change torch's loader before it starts its workers; autotimm has no option for the number."""
        loader = trainer.train_dataloader
        if isinstance(loader, KeyedLoader) and loader.num_workers:
            loader._torch_loader().prefetch_factor = self.batches


def _measure_twice(task: Task) -> None:
    """Add the first metric again under another name."""
    extra = MetricConfig.of({**task.metric_configs[0].to_dict(), "name": "selfcheck"})
    task.metric_configs = [*task.metric_configs, extra]
    for stage in Stage:
        metrics: Any = task.metrics[f"{stage.value}_metrics"]
        metrics.update(build_metrics([extra], stage))


def _train(setup: Setup, variation: Variation, toy: Path, run_dir: Path) -> None:
    if variation.pollute:
        pollute_generators()
    model, data, trainer = make(setup, variation, toy, run_dir)
    if variation.pollute:
        pollute_generators()
    if variation.metric and isinstance(model, Task):
        _measure_twice(model)
    if variation.stream in ("order", "augment", "step", "eval"):
        trainer.root_seed = RootSeed(trainer.root_seed, {variation.stream: trainer.root_seed + 1})
    fingerprints = _SampleFingerprints()
    added: list[Callback] = [fingerprints]
    added += [DrawsEverywhere()] * variation.draws + [_Kill()] * variation.killed
    added += [_Prefetch(variation.prefetch)] * bool(variation.prefetch)
    trainer.callbacks[:0] = added  # type: ignore[attr-defined]  # set at run time
    trainer.fit(model, datamodule=data, ckpt_path="last" if variation.resumed else None)
    if trainer.is_global_zero:
        write_text(run_dir.with_suffix(".json"), json.dumps({"samples": fingerprints.samples}))


def _run(job: Mapping[str, Any]) -> None:
    for entry in job["path"]:
        search_also(entry)
    setup = Setup(**job["setup"])
    for training in job["trainings"]:
        _train(setup, Variation(**training["variation"]), Path(job["toy"]), Path(training["run_dir"]))


def main(file: str) -> int:
    """Run the trainings of a job file; an error of autotimm becomes one line and an exit code."""
    try:
        _run(read_json(Path(file)))
    except AutotimmError as error:
        print(printable(error), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
