"""Small sets of images for `accuracy.py` and `head_rate.py`: photographs, a few photographs, and drawings.

A set is a pool to learn from and images to test on, which nothing is chosen by. Each seed draws its own training and
validation images from the pool, as many of each class as far as that is possible.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["SETS", "Photo", "SmallSet", "Splits", "deal", "write_tables"]


class Photo(NamedTuple):
    """A file and its labels; one of several labels per image is 0 or 1."""

    path: Path
    labels: tuple[str, ...]


Splits = dict[str, list[Photo]]


class SmallSet(NamedTuple):
    """What one training learns from, and what it is tested on.

    Attributes:
        columns: ``label``, or the names of several labels per image.
        pool: For training and validation.
        test: For the figure that is published.
        train: How many images of the pool one training learns from.
        val: How many it validates on.
    """

    columns: tuple[str, ...]
    pool: list[Photo]
    test: list[Photo]
    train: int
    val: int

    @property
    def several(self) -> bool:
        """Whether an image has several labels."""
        return len(self.columns) > 1

    def drawn(self, seed: int) -> Splits:
        """The images of one seed."""
        train, val = deal(self.pool, (self.train, self.val), f"split {seed}")
        return {"train": train, "val": val, "test": self.test}

    def folded(self, fold: int) -> Splits:
        """A third of the pool as the test, and the rest to learn from and to validate on; :attr:`test` is not used."""
        third = len(self.pool) // 3
        thirds = deal(self.pool, (third, third, len(self.pool) - 2 * third), "folds")
        rest = [photo for number, photos in enumerate(thirds) if number != fold for photo in photos]
        held = len(rest) // 4
        train, val = deal(rest, (len(rest) - held, held), f"fold {fold}")
        return {"train": train, "val": val, "test": thirds[fold]}


def deal(photos: Sequence[Photo], sizes: Sequence[int], word: str) -> list[list[Photo]]:
    """Disjoint samples of these sizes, each with as many images of every class as far as that is possible.

    Images with several labels are dealt by their first one.
    """
    dice, decks = random.Random(word), dict[str, list[Photo]]()
    for photo in photos:
        decks.setdefault(photo.labels[0] if len(photo.labels) == 1 else str(photo.labels.index("1")), []).append(photo)
    for name in sorted(decks):
        dice.shuffle(decks[name])
    # In turn from every class, by the share of it that is dealt: the i-th of n stands at (i + 1/2) / n.
    shares = [
        ((place + 0.5) / len(deck), name, photo)
        for name, deck in sorted(decks.items())
        for place, photo in enumerate(deck)
    ]
    order = [photo for _, _, photo in sorted(shares, key=lambda share: share[:2])]
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [order[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def write_tables(splits: Splits, columns: Sequence[str], folder: Path) -> dict[str, str]:
    """Write one table per split, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {}
    for split, photos in splits.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("image", *columns), *((photo.path, *photo.labels) for photo in photos)])
        tables[split] = str(folder / f"{split}.csv")
    return tables


def clothing(root: Path, scratch: Path) -> SmallSet:
    """``cls_clothing``: 6 kinds of clothes; the folder ``test``."""
    folder = root / "cls_clothing"

    def photos(*splits: str) -> list[Photo]:
        return [
            Photo(file, (file.parent.name,)) for split in splits for file in sorted((folder / split).glob("*/*.jpg"))
        ]

    return SmallSet(("label",), photos("train", "validation"), photos("test"), 120, 60)


def digits(root: Path, scratch: Path) -> SmallSet:
    """``cls_sign_digits``: the digits 0 to 9 shown by hands; ``val.txt`` is tested on."""
    folder = root / "cls_sign_digits"

    def photos(name: str) -> list[Photo]:
        lines = (folder / name).read_text().split("\n")
        pairs = [line.rsplit(" ", 1) for line in lines if line.strip()]
        return [Photo(folder / path, (label,)) for path, label in pairs]

    return SmallSet(("label",), photos("train.txt"), photos("val.txt"), 120, 60)


def few_digits(root: Path, scratch: Path) -> SmallSet:
    """The same with 5 images of each digit to learn from, and 2 to validate on."""
    return digits(root, scratch)._replace(train=50, val=20)


def cards(root: Path, scratch: Path) -> SmallSet:
    """``multilabel_cards``: which of 6 playing cards a photograph shows."""
    folder = root / "multilabel_cards"

    def read(split: str) -> tuple[tuple[str, ...], list[Photo]]:
        with (folder / f"{split}_labels_multihot.csv").open() as file:
            header, *rows = csv.reader(file)
        return tuple(header[1:]), [Photo(folder / "images" / split / name, tuple(labels)) for name, *labels in rows]

    columns, pool = read("train")
    return SmallSet(columns, pool, read("test")[1], 56, 18)


SHAPES = ("cross", "pentagon", "ring", "square", "star", "triangle")


def shapes(root: Path, scratch: Path) -> SmallSet:
    """Drawings of 6 shapes in any color and place on noise, with lines across: 15 of each to learn from."""
    folder = scratch / "shapes"
    folder.mkdir(parents=True, exist_ok=True)
    photos = []
    for number in range(540):
        path, label = folder / f"{number:03d}.png", SHAPES[number % len(SHAPES)]
        if not path.exists():
            _draw_shape(label, number).save(path)
        photos.append(Photo(path, (label,)))
    return SmallSet(("label",), photos[:240], photos[240:], 90, 60)


def _draw_shape(label: str, number: int, size: int = 128) -> Image.Image:
    dice, noise = random.Random(f"{label} {number}"), np.random.default_rng(number)
    tint = np.array([dice.randint(60, 190) for _ in range(3)])
    slope = np.linspace(-40, 40, size)[:, None, None] * dice.uniform(-1, 1)
    pixels = (tint + slope + noise.normal(0, 25, (size, size, 3))).clip(0, 255)
    image = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    radius, turn = dice.uniform(14, 34), dice.uniform(0, 2 * math.pi)
    x, y = (dice.uniform(radius, size - radius) for _ in range(2))
    color = tuple(int(value) for value in (tint + dice.choice((-1, 1)) * dice.randint(35, 70)).clip(0, 255))

    def corners(lengths: Sequence[float]) -> list[tuple[float, float]]:
        angles = [turn + 2 * math.pi * place / len(lengths) for place in range(len(lengths))]
        return [
            (x + radius * length * math.cos(angle), y + radius * length * math.sin(angle))
            for length, angle in zip(lengths, angles, strict=True)
        ]

    if label == "ring":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=round(radius / 2.5))
    elif label == "cross":
        for arm in (corners([1.0] * 4)[:3:2], corners([1.0] * 4)[1::2]):
            pen.line(arm, fill=color, width=round(radius / 2))
    elif label == "star":
        pen.polygon(corners([1.0, 0.45] * 5), fill=color)
    else:
        pen.polygon(corners([1.0] * {"triangle": 3, "square": 4, "pentagon": 5}[label]), fill=color)
    for _ in range(4):
        ends = [dice.uniform(0, size) for _ in range(4)]
        pen.line(ends, fill=tuple(dice.randint(0, 255) for _ in range(3)), width=2)
    return image


SETS: dict[str, Callable[[Path, Path], SmallSet]] = {
    "clothing": clothing, "digits": digits, "few digits": few_digits, "cards": cards, "shapes": shapes,
}  # fmt: skip
"""By name: from the folder of the photographs and one for drawings to a set."""
