"""The cost of the manifest and the ledger of a run, as a share of the CPU time of training.

A normal run is trained, with a run folder. All functions that exist only for the manifest and the ledger are timed by
the CPU time of their thread: the digests of samples (in the data worker, here the main process), the recorder's hooks
with the digests of weights, and the creation of the manifest. Checkpoints and ``files.csv`` do not count: checkpoints
are also written without a ledger, and files are read once per run, not per step.

Target: under 1 % of a step for resnet18 at 64 px, batch 32, on a CPU.

    python benchmarks/ledger.py [--quick] [--threads 1]
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from _bench import arguments, report

from autotimm import AutoTrainer, ImageClassifier, ImageDataModule
from autotimm.data import loader
from autotimm.data.toy import write_toy_folder
from autotimm.train import trainer as trainer_module
from autotimm.train.callbacks.recorder import Recorder

HOOKS = ("on_train_start", "on_train_batch_start", "on_train_batch_end", "on_validation_start", "on_validation_end",
         "on_train_epoch_end", "on_train_end", "state_dict")  # fmt: skip
SPENT: Counter[str] = Counter()


def timed(owner: Any, name: str, what: str) -> None:
    """Add the CPU time of a function's calls to :data:`SPENT`."""
    original: Callable[..., Any] = getattr(owner, name)

    @wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.thread_time()
        try:
            return original(*args, **kwargs)
        finally:
            SPENT[what] += time.thread_time() - start

    setattr(owner, name, wrapper)


def main() -> None:
    """Train once and print the shares."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    epochs, images = (1, 320) if given.quick else (2, 3200)
    timed(loader, "with_fingerprints", "fingerprints of samples")
    for hook in HOOKS:
        timed(Recorder, hook, "ledger")
    timed(trainer_module, "declare", "of it: manifest at the start")
    with tempfile.TemporaryDirectory() as scratch:
        photos = write_toy_folder(Path(scratch) / "photos", n=images, num_classes=4, image_size=64, seed=0)
        data = ImageDataModule(photos, image_size=64, batch_size=32, num_workers=0, val_split=0.1)
        task = ImageClassifier("resnet18", 4, pretrained=False, image_size=64)
        trainer = AutoTrainer(epochs, threads=given.threads, run_dir=Path(scratch) / "run", enable_progress_bar=False)
        data.setup("fit")
        start = time.process_time()
        trainer.fit(task, datamodule=data)
        whole = time.process_time() - start
        steps = trainer.global_step
    rows = [(what, f"{1e3 * spent / steps:.3f}", f"{100 * spent / whole:.2f} %") for what, spent in SPENT.items()]
    both = SPENT["fingerprints of samples"] + SPENT["ledger"]
    rows.append(("fingerprints and ledger", f"{1e3 * both / steps:.3f}", f"{100 * both / whole:.2f} %"))
    rows.append(("the whole training", f"{1e3 * whole / steps:.1f}", "100 %"))
    columns = ("what", "CPU ms per step", "share of the training")
    report("ledger", columns, rows, steps=steps, threads=given.threads, share=round(both / whole, 5))


if __name__ == "__main__":
    main()
