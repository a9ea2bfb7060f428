"""The cost of ``deterministic=True``, and the cost of a seed.

Deterministic mode, for one backbone per family: a training step (forward, backward, AdamW) of autotimm's network with
``set_deterministic(True)`` and with ``set_deterministic(False)``, alternating on the same batch in one process. The
figure is the median over the turns of the time with deterministic mode divided by the time without. It is measured on
the CPU and, if available, on a CUDA device. Without deterministic mode cuDNN may choose its kernels by timing them,
which happens in the warm-up steps. On a CUDA device wall-clock time is always used.

Seeds: the time of ``fit`` with ``seed=42`` and with ``seed=None``, alternating, from files through augmentation to
``AutoTrainer``. With both, random numbers come from named streams, so neither should be faster. The cost of the streams
themselves is given in microseconds per sample and per step.

    python benchmarks/determinism.py [--quick] [--device cpu cuda] [--threads 2] [--clock wall]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from _bench import CLOCKS, Turns, arguments, median, report, seconds, take_turns
from torch import nn

from autotimm import AutoTrainer, ImageClassifier, ImageDataModule
from autotimm.data.toy import write_toy_folder
from autotimm.models import build_classifier
from autotimm.repro import generator, reseed
from autotimm.repro.seed import default_threads, set_deterministic

FAMILIES = {
    "ResNet": "resnet18",
    "MobileNet": "mobilenetv3_small_100",
    "EfficientNet": "efficientnet_b0",
    "ConvNeXt": "convnext_atto",
    "ViT": "vit_tiny_patch16_224",
    "Swin": "swin_tiny_patch4_window7_224",
    "CoAtNet (hybrid)": "coatnet_pico_rw_224",
}
CLASSES = 10


def training_step(backbone: str, device: torch.device, batch_size: int, image_size: int) -> Callable[[], None]:
    """A function that runs one training step and waits until it is finished."""
    network = build_classifier(backbone, CLASSES, image_size=image_size).to(device).train()
    optimizer, criterion = torch.optim.AdamW(network.parameters(), lr=1e-4), nn.CrossEntropyLoss()
    stream = generator(0, "benchmark")
    shape = (batch_size, 3, image_size, image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream).to(device)
    targets = torch.randint(0, CLASSES, (batch_size,), generator=stream).to(device)

    def step() -> None:
        optimizer.zero_grad()
        criterion(network(images), targets).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def cost_of_determinism(step: Callable[[], None], turns: int, clock: str) -> Turns:
    """Time a step with and without deterministic mode, alternately."""

    def timed(deterministic: bool) -> float:
        set_deterministic(deterministic)
        return seconds(step, clock)

    return take_turns(lambda: timed(True), lambda: timed(False), turns, warm_up=3)


def families(device: torch.device, quick: bool, clock: str) -> list[tuple[str, dict[str, Any]]]:
    """The cost of deterministic mode for each family on a device."""
    on_gpu = device.type == "cuda"
    batch_size, image_size, turns = (64, 224, 60) if on_gpu else (8, 224, 15)
    if quick:
        batch_size, image_size, turns = 2, 224, 2
    clock = "wall" if on_gpu else clock
    found = []
    for family, backbone in FAMILIES.items():
        took = cost_of_determinism(training_step(backbone, device, batch_size, image_size), turns, clock)
        figures = {
            "batch": batch_size,
            "off_ms": round(median(took.theirs) * 1e3, 1),
            "on_ms": round(median(took.ours) * 1e3, 1),
            "ratio": round(took.ratio, 3),
            "quartiles": took.quartiles,
        }
        found.append((f"{family}: {backbone}", {"device": device.type, **figures}))
    return found


def cost_of_seed(quick: bool, threads: int, clock: str) -> Turns:
    """Time ``fit`` with and without a seed, alternately."""
    with tempfile.TemporaryDirectory() as folder:
        write_toy_folder(folder, n=64 if quick else 640, image_size=64, num_classes=4, seed=0)

        def fit(seed: int | None) -> float:
            data = ImageDataModule(folder, image_size=64, num_workers=0, seed=seed)
            model = ImageClassifier("test_resnet", 4, pretrained=False, seed=seed)
            trainer = AutoTrainer(
                2, seed=seed, threads=threads, run_dir=False, accelerator="cpu",
                enable_progress_bar=False, enable_checkpointing=False,
            )  # fmt: skip
            return seconds(lambda: trainer.fit(model, datamodule=data), clock)

        return take_turns(lambda: fit(42), lambda: fit(None), 1 if quick else 15)


def cost_of_keys(count: int = 5000) -> dict[str, float]:
    """The microseconds needed to set the stream of one sample, and that of one training step."""

    def each(enter: Callable[[int], None]) -> float:
        return round(seconds(lambda: [enter(index) for index in range(count)]) / count * 1e6, 1)

    return {
        "sample": each(lambda index: reseed(42, "augment", 3, index, "cat/IMG_0001.jpg", torch_only=True)),
        "step": each(lambda index: reseed(42, "step", 3, index, 0)),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", nargs="+", choices=("cpu", "cuda"), help="by default all that there are")
    parser.add_argument("--threads", type=int, default=default_threads(), help="CPU threads")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="CPU time is steadier on a busy machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    devices = options.device or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = [row for device in devices for row in families(torch.device(device), options.quick, options.clock)]
    columns = ("backbone, 224 px", "device", "batch", "off, ms", "on, ms", "on / off", "quartiles")
    rows = [(name, *figures.values()) for name, figures in found]
    report("determinism", columns, rows, threads=options.threads, clock=options.clock, figures=dict(found))

    took, keys = cost_of_seed(options.quick, options.threads, options.clock), cost_of_keys()
    row = (round(took.ratio, 3), took.quartiles, keys["sample"], keys["step"])
    columns = ("fit: seed=42 / seed=None", "quartiles", "key of a sample, µs", "key of a step, µs")
    report("seed", columns, [row], ratio=row[0], quartiles=row[1], keys_us=keys)


if __name__ == "__main__":
    main()
