"""Settings that must not change the weights: the digest must be the same for all of them.

Each setting trains a small network on photographs for three epochs in a fresh process, and prints the digest of the
final weights. The settings differ in the number of data workers and whether they persist, in an extra metric, a logger,
the interval of validation, checkpoints, the state of the global generators, and a callback that draws from them.

Target: a single digest. The exit code is 1 if there are several.

    python benchmarks/invariance.py [--quick] [--data FOLDER_OF_CLASS_FOLDERS]
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from _bench import PHOTOS, arguments, data_folder, report
from _drawn import draw_classes
from pytorch_lightning.loggers import TensorBoardLogger

from autotimm import AutoTrainer, ImageClassifier, ImageDataModule, MetricConfig
from autotimm.metrics import default_metrics
from autotimm.repro import state_digest

BACKBONE, IMAGE_SIZE = "test_resnet", 32


@dataclass(frozen=True)
class Setting:
    """How the training is run; the defaults are the baseline."""

    workers: int = 0
    persistent: bool = True
    extra_metric: bool = False
    tensorboard: bool = False
    val_every: int = 1
    run_folder: bool = False
    polluted: bool = False


SETTINGS = {
    "0 workers": Setting(),
    "1 worker": Setting(workers=1),
    "1 worker, not persistent": Setting(workers=1, persistent=False),
    "2 workers": Setting(workers=2),
    "2 workers, not persistent": Setting(workers=2, persistent=False),
    "4 workers": Setting(workers=4),
    "4 workers, not persistent": Setting(workers=4, persistent=False),
    "an extra metric": Setting(extra_metric=True),
    "TensorBoard": Setting(tensorboard=True),
    "validation every 2 epochs": Setting(val_every=2),
    "run folder and checkpoints": Setting(run_folder=True),
    "polluted global generators": Setting(polluted=True),
    "2 workers and all of it": Setting(
        workers=2, persistent=False, extra_metric=True, tensorboard=True, val_every=2, run_folder=True, polluted=True
    ),
}
QUICK = ("0 workers", "2 workers, not persistent", "2 workers and all of it")


def train(folder: Path, setting: Setting, epochs: int, out: Path) -> str:
    """Train in this process; return the digest of the final weights."""

    class Polluter(pl.Callback):
        """Draws from the global generators between the steps."""

        def on_train_batch_start(self, *_: Any) -> None:
            pollute()

        def on_train_epoch_start(self, *_: Any) -> None:
            pollute()

    if setting.polluted:
        pollute()
    data = ImageDataModule(
        folder, image_size=IMAGE_SIZE, num_workers=setting.workers, persistent_workers=setting.persistent, val_split=0.2
    )
    metrics = default_metrics(data.num_classes)
    if setting.extra_metric:
        params = {"task": "multiclass", "num_classes": data.num_classes}
        metrics.append(MetricConfig("kappa", "torchmetrics", "CohenKappa", params, log_on_step=True))
    model = ImageClassifier(BACKBONE, data.num_classes, pretrained=False, head_dropout=0.2, metrics=metrics)
    if setting.polluted:
        pollute()
    trainer = AutoTrainer(
        epochs, accelerator="cpu", run_dir=out / "run" if setting.run_folder else False, enable_progress_bar=False,
        enable_checkpointing=setting.run_folder, check_val_every_n_epoch=setting.val_every,
        logger=TensorBoardLogger(out) if setting.tensorboard else False,
        callbacks=[Polluter()] if setting.polluted else [],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return state_digest(model.network.state_dict())


def pollute() -> None:
    """Move every global generator on by a number of draws that is another each time."""
    draws = random.SystemRandom().randint(1, 1000)
    torch.rand(draws)
    np.random.rand(draws)
    random.randbytes(draws)


def in_a_fresh_process(name: str, folder: Path, options: Sequence[str]) -> str:
    """Train in a process of its own; return the digest that it prints last."""
    done = subprocess.run(
        [sys.executable, __file__, *options, "--data", str(folder), "--setting", name],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return str(json.loads(done.stdout.splitlines()[-1])["digest"])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="a folder of class folders")
    parser.add_argument("--setting", choices=SETTINGS, help="train only this one, in this process")
    options = parser.parse_args()
    epochs = 1 if options.quick else 3
    if options.setting:
        with tempfile.TemporaryDirectory() as out:
            print(json.dumps({"digest": train(options.data, SETTINGS[options.setting], epochs, Path(out))}))
        return
    names = QUICK if options.quick else tuple(SETTINGS)
    with data_folder(options, PHOTOS / "cls_sign_digits" / "Dataset", draw_classes) as folder:
        digests = {name: in_a_fresh_process(name, folder, sys.argv[1:]) for name in names}
    distinct = len(set(digests.values()))
    rows = [(name, digest[:16]) for name, digest in digests.items()]
    report("invariance", ("setting", "weights, sha256"), rows, epochs=epochs, distinct=distinct, digests=digests)
    print(f"\n{len(digests)} settings, {distinct} digest{'s' if distinct > 1 else ''}")
    sys.exit(distinct > 1)


if __name__ == "__main__":
    main()
