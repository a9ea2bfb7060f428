"""Test accuracy from random weights: autotimm's defaults compared with a loop in torch, torchvision and timm.

Two sets of photographs, three seeds; backbone, image size, epochs, batch size and files are the same on both sides:

- ``clothing``: 6 classes; its own train, validation and test folders (276, 72 and 60 images).
- ``digits``: sign language, 10 classes; ``val.txt`` is the test set (100 images), every eighth file of each class in
  ``train.txt`` is used for validation (50; the first ones are from another camera), the rest for training (350).

autotimm's side is ``autotimm.fit`` with its defaults and without pretrained weights, then ``Run.test`` with the best
epoch on validation data. The loop is written with care: a timm model with random weights, AdamW at 1e-3 with weight
decay 0.05, one epoch of linear warm-up, then a cosine schedule to 0 per step, gradients clipped to norm 1, random crops
of 50 to 100 % of the area (torchvision's default of 8 to 100 % is a disadvantage with so few images), horizontal flips,
and validation after each epoch. The weights of the best epoch are tested. ``torch.manual_seed`` sets initial weights,
order and augmentation. One default of autotimm is kept although the loop lacks it: slight changes of brightness,
contrast and saturation, which make its training loss higher.

Target: autotimm's mean is not below the loop's by more than one pooled standard deviation.

    python benchmarks/from_scratch.py [--quick] [--dataset clothing] [--seeds 0 1 2] [--data FOLDER] [--threads 2]
"""

from __future__ import annotations

import copy
import csv
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from _bench import PHOTOS, Outcome, arguments, data_folder, median, report
from _drawn import draw_photos
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

import autotimm
from autotimm.repro.seed import default_threads

BACKBONE, IMAGE_SIZE, BATCH_SIZE, WORKERS = "resnet18", 64, 32, 2
EPOCHS = 15
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Photo(NamedTuple):
    """A file and its class."""

    path: Path
    label: str


Splits = dict[str, list[Photo]]


def clothing(root: Path) -> Splits:
    """The folders ``train``, ``validation`` and ``test``."""
    folders = {"train": "train", "val": "validation", "test": "test"}
    return {
        split: [Photo(path, path.parent.name) for path in sorted((root / "cls_clothing" / folder).glob("*/*.jpg"))]
        for split, folder in folders.items()
    }


def digits(root: Path) -> Splits:
    """The lists ``train.txt`` and ``val.txt``; the latter is the test set."""

    def listed(name: str) -> list[Photo]:
        lines = (root / "cls_sign_digits" / name).read_text().split("\n")
        pairs = [line.rsplit(" ", 1) for line in lines if line.strip()]
        return [Photo(root / "cls_sign_digits" / path, label) for path, label in pairs]

    seen: Counter[str] = Counter()
    splits: Splits = {"train": [], "val": [], "test": listed("val.txt")}
    for photo in listed("train.txt"):
        splits["train" if seen[photo.label] % 8 else "val"].append(photo)
        seen[photo.label] += 1
    return splits


DATASETS: dict[str, Callable[[Path], Splits]] = {"clothing": clothing, "digits": digits}


# autotimm


def with_autotimm(splits: Splits, epochs: int, seed: int, folder: Path) -> float:
    """Train with the defaults; return the test accuracy of the best epoch."""
    tables = {split: _write_csv(photos, folder / f"{split}.csv") for split, photos in splits.items()}
    run = autotimm.fit(
        train_csv=tables["train"], val_csv=tables["val"], test_csv=tables["test"], image_dir="/",
        backbone=BACKBONE, epochs=epochs, batch_size=BATCH_SIZE, image_size=IMAGE_SIZE, num_workers=WORKERS,
        pretrained=False, seed=seed, threads=torch.get_num_threads(), out=str(folder / "runs"),
    )  # fmt: skip
    return float(run.test()["test/accuracy"])


def _write_csv(photos: list[Photo], path: Path) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *((photo.path.resolve(), photo.label) for photo in photos)])
    return str(path)


# The loop


class Photos(Dataset[tuple[Tensor, int]]):
    """Files, decoded and transformed on access."""

    def __init__(self, photos: list[Photo], classes: list[str], transform: Callable[[Any], Tensor]) -> None:
        self.photos, self.classes, self.transform = photos, classes, transform

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.photos[index]
        return self.transform(default_loader(str(path))), self.classes.index(label)


def loaders(splits: Splits, classes: list[str]) -> dict[str, DataLoader[Any]]:
    """Loaders of the three splits."""
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    augment = v2.Compose([v2.RandomResizedCrop(IMAGE_SIZE, scale=(0.5, 1.0)), v2.RandomHorizontalFlip(), *last])
    plain = v2.Compose([v2.Resize(round(IMAGE_SIZE / 0.875)), v2.CenterCrop(IMAGE_SIZE), *last])
    options = {"batch_size": BATCH_SIZE, "num_workers": WORKERS, "persistent_workers": True}
    return {
        split: DataLoader(
            Photos(photos, classes, augment if split == "train" else plain), shuffle=split == "train", **options
        )
        for split, photos in splits.items()
    }


def train_epoch(model: nn.Module, batches: DataLoader[Any], optimizer: torch.optim.Optimizer, schedule: Any) -> float:
    """Train on every batch once; return the mean loss."""
    model.train()
    total = 0.0
    for images, targets in batches:
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
    return total / len(batches)


@torch.inference_mode()
def accuracy(model: nn.Module, batches: DataLoader[Any]) -> float:
    """The share of images that are classified correctly."""
    model.eval()
    right = [(model(images).argmax(1) == targets) for images, targets in batches]
    return float(torch.cat(right).float().mean())


def by_hand(splits: Splits, epochs: int, seed: int, folder: Path) -> float:
    """Train with the loop; return the test accuracy of the best epoch."""
    torch.manual_seed(seed)
    classes = sorted({photo.label for photo in splits["train"]})
    batches = loaders(splits, classes)
    model = timm.create_model(BACKBONE, num_classes=len(classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    warm_up, steps = len(batches["train"]), epochs * len(batches["train"])

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    best, weights = -1.0, model.state_dict()
    for epoch in range(epochs):
        loss, reached = train_epoch(model, batches["train"], optimizer, schedule), accuracy(model, batches["val"])
        print(f"epoch {epoch + 1}/{epochs}  train/loss {loss:.4g}  val/accuracy {reached:.4g}", file=sys.stderr)
        if reached > best:
            best, weights = reached, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return accuracy(model, batches["test"])


# Both


def compare(dataset: str, root: Path, seeds: list[int], epochs: int) -> dict[str, Outcome]:
    """Train both sides with each seed, alternately."""
    splits = DATASETS[dataset](root)
    print(f"{dataset}: " + ", ".join(f"{len(photos)} {split}" for split, photos in splits.items()), flush=True)
    found: dict[str, list[tuple[float, float]]] = {"autotimm": [], "by hand": []}
    for seed in seeds:
        for name, side in (("autotimm", with_autotimm), ("by hand", by_hand)):
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                reached = round(100 * side(splits, epochs, seed, Path(folder)), 2)
            found[name].append((reached, time.perf_counter() - start))
            print(f"  seed {seed}, {name}: {reached:.1f} % in {found[name][-1][1]:.0f} s", flush=True)
    return {
        name: Outcome([reached for reached, _ in pairs], round(median(took for _, took in pairs), 1))
        for name, pairs in found.items()
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, help="the folder that holds the data sets")
    parser.add_argument("--threads", type=int, default=default_threads(), help="CPU threads of both sides")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, figures = [], {}
    seeds, epochs = (options.seeds[:1], 1) if options.quick else (options.seeds, EPOCHS)
    with data_folder(options, PHOTOS, draw_photos) as folder:
        for dataset in options.dataset:
            outcomes = compare(dataset, folder, seeds, epochs)
            ours, theirs = outcomes["autotimm"], outcomes["by hand"]
            verdict = ours.against(theirs)
            rows.append((dataset, epochs, ours, theirs, verdict, f"{ours.seconds:.0f} / {theirs.seconds:.0f}"))
            figures[dataset] = {name: outcome._asdict() for name, outcome in outcomes.items()} | {"target": verdict}
    columns = ("data", "epochs", "autotimm, %", "by hand, %", "target", "seconds")
    report(
        "from_scratch",
        columns,
        rows,
        backbone=BACKBONE,
        image_size=IMAGE_SIZE,
        threads=options.threads,
        figures=figures,
    )


if __name__ == "__main__":
    main()
