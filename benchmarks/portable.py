"""Which backbones give the same bits for every number of threads and every instruction set with ``portable``.

A backbone of each family is trained for three steps and validated, and so are detectors on one of them, in processes
with other threads and other instruction sets of torch, oneDNN, MKL and NumPy. It holds if the ledgers and the weights
are byte-equal in all. The factor is the time of a step against one of the same run without ``portable``, in one thread
with the widest instructions, by CPU time.

    python benchmarks/portable.py [--quick] [--backbones NAME ...] [--detectors ARCH:NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from _bench import arguments, report
from timm.models import is_model_in_modules, list_modules

from autotimm import (
    AutoTrainer,
    DetectionDataModule,
    ImageClassifier,
    ImageDataModule,
    InstanceSegmentationDataModule,
    InstanceSegmentor,
    ObjectDetector,
)
from autotimm.data.toy import write_toy_folder, write_toy_objects
from autotimm.errors import AutotimmError
from autotimm.records.digest import file_digest

_AVX512 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
PLACES: dict[str, tuple[int, dict[str, str]]] = {
    "AVX-512, 1 thread": (1, {}),
    "AVX2, 2 threads": (2, {
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2", "NPY_DISABLE_CPU_FEATURES": _AVX512,
    }),
    "AVX2, MKL without, 4 threads": (4, {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"}),
}  # fmt: skip
"""Threads and variables of each process."""
BACKBONES = (
    "resnet18", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050", "regnety_002", "efficientnet_lite0",
    "swin_tiny_patch4_window7_224", "densenet121", "repvgg_a0", "deit_tiny_patch16_224", "mixer_s32_224",
    "poolformer_s12", "mobilevit_xxs", "edgenext_xx_small", "inception_next_atto", "resnetv2_50", "ghostnet_050",
    "rexnet_100", "dla34", "levit_128s", "xcit_nano_12_p16_224", "eva02_tiny_patch14_224", "tiny_vit_5m_224",
    "fastvit_t8", "hgnet_tiny", "starnet_s1",
)  # fmt: skip
DETECTORS = ("fcos:resnet18", "retinanet:resnet18", "faster_rcnn:resnet18", "mask_rcnn:resnet18")


class _Clock(pl.Callback):
    """CPU seconds of each training step."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.begun = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps.append(time.process_time() - self.begun)


def parts(name: str, folder: Path) -> tuple[Any, Any]:
    """A task and its data, of a backbone or of a detector on one."""
    arch, _, backbone = name.rpartition(":")
    loading = {"batch_size": 4, "num_workers": 0}
    options: dict[str, Any] = {"num_classes": 3, "pretrained": False, "lr": 1e-3}
    if not arch:
        task = ImageClassifier(backbone, image_size=64, head_dropout=0.1, **options)
        return task, ImageDataModule(folder / "toy", image_size=64, **loading)
    masks = arch == "mask_rcnn"
    detector = (InstanceSegmentor if masks else ObjectDetector)(backbone, arch=arch, image_size=128, **options)
    return detector, (InstanceSegmentationDataModule if masks else DetectionDataModule)(
        folder / "scenes", image_size=128, **loading
    )


def train(name: str, folder: Path, threads: int, *, portable: bool) -> tuple[str, float]:
    """Train a network for three steps; the digest of the run, and the seconds of its fastest step."""
    clock = _Clock()
    task, data = parts(name, folder)
    trainer = AutoTrainer(
        max_epochs=1, threads=threads, accelerator="cpu", portable=portable, run_dir=folder / "run",
        enable_progress_bar=False, callbacks=[clock], limit_val_batches=1, evidence=True,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    digests = [file_digest(folder / "run" / file) for file in ("ledger.jsonl", "model.safetensors")]
    return " ".join(each[:16] for each in digests), min(clock.steps)


def child(names: list[str], threads: int, *, timed: bool) -> None:
    """Train backbones in this process, and print a line for each."""
    for name in names:
        found: dict[str, Any] = {"name": name}
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_toy_folder(folder / "toy", splits={"train": 12, "val": 6}, num_classes=3)
            write_toy_objects(folder / "scenes", splits={"train": 12, "val": 6}, image_size=128, num_classes=3)
            try:
                found["digest"], found["seconds"] = train(name, folder, threads, portable=True)
                if timed:
                    (folder / "run").rename(folder / "portable")
                    found["ordinary"] = train(name, folder, threads, portable=False)[1]
            except AutotimmError as error:
                found["error"] = str(error)
            except Exception as error:
                found["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(found), flush=True)


def run_place(names: list[str], place: str) -> dict[str, dict[str, Any]]:
    """Train backbones in a process of a place."""
    threads, variables = PLACES[place]
    words = [sys.executable, __file__, "--child", place, "--backbones", *names]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", **variables}
    found = {}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        for line in (each for each in started.stdout if each.startswith("{")):
            print(place, line, end="", file=sys.stderr, flush=True)
            said = json.loads(line)
            found[said["name"]] = said
    if started.returncode:
        raise SystemExit(started.returncode)
    return found


def family(name: str) -> str:
    """The module of timm that a backbone is in."""
    return next(module for module in list_modules() if is_model_in_modules(name, [module]))


def main() -> None:
    """Train in all places, and compare."""
    parser = arguments(__doc__)
    parser.add_argument("--backbones", nargs="*", default=list(BACKBONES))
    parser.add_argument("--detectors", nargs="*", default=list(DETECTORS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    small = ["test_resnet", "test_vit", "fcos:test_resnet"]
    names = small if options.quick else [*options.backbones, *options.detectors]
    if options.child:
        child(options.backbones, PLACES[options.child][0], timed=options.child == next(iter(PLACES)))
        return
    rows, found = [], {place: run_place(names, place) for place in PLACES}
    first = found[next(iter(PLACES))]
    held: dict[str, bool] = {}
    for name in names:
        digests = {results[name].get("digest", "none") for results in found.values()}
        error = first[name].get("error")
        held[name] = error is None and len(digests) == 1
        factor = first[name]["seconds"] / first[name]["ordinary"] if "ordinary" in first[name] else None
        says = "yes" if held[name] else error or f"no, {len(digests)} results"
        of = family(name) if ":" not in name else "detector"
        rows.append((of, name, says, "" if factor is None else f"{factor:.1f}"))
    report("portable", ("family", "backbone", "the same bits in all", "factor of CPU time"), rows, held=held)


if __name__ == "__main__":
    main()
