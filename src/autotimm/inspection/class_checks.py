"""Checks of classes: how often each occurs, in which splits, and whether mirroring turns one into another."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torchvision.transforms import v2

from autotimm.data.module import DataModule
from autotimm.data.table import Table
from autotimm.data.transforms.image_transforms import RandomView
from autotimm.errors import join_names
from autotimm.inspection.data_finding import Case, Finding, finding_of
from autotimm.report.class_colors import is_background

__all__ = ["amounts_of", "check_balance", "check_mirrored_classes", "check_splits", "mirror_name"]

_UNEQUAL = 10  # times as many of the most frequent class as of the rarest
_UNEQUAL_PIXELS = 100  # a class of small things has few pixels in each of many images
_SIDES = {"left": "right", "links": "rechts", "gauche": "droite", "izquierda": "derecha", "sinistra": "destra"}
_OTHER_SIDE = {**_SIDES, **{right: left for left, right in _SIDES.items()}}
_LETTERS = {"b": "d", "d": "b", "p": "q", "q": "p"}


def amounts_of(table: Table) -> tuple[dict[str, int], str]:
    """How much there is of each class, in class order, and of what: images, objects or pixels."""
    totals = dict.fromkeys(table.class_names, 0)
    unit = {"classes": "images", "pixels": "pixels"}.get(table.kind, "objects")
    for index in range(len(table)):
        objects = table.objects(index)
        if objects is not None:
            for label in objects.labels[~objects.crowd].tolist():
                totals[table.class_names[label]] += 1
        else:
            for name, amount in table.amounts(index).items():
                totals[name] += amount
    return totals, unit if unit != "objects" or table.most_objects() else "images"


def check_balance(train: Table) -> list[Finding]:
    """Note classes, the background left out, that are ten times rarer than the most frequent one; pixels a hundred."""
    amounts, unit = amounts_of(train)
    present = {name: amount for name, amount in amounts.items() if amount and not is_background(name)}
    limit = _UNEQUAL_PIXELS if unit == "pixels" else _UNEQUAL
    if len(present) < 2:
        return []
    most = max(present, key=present.__getitem__)
    rare = sorted((name for name in present if present[name] * limit <= present[most]), key=present.__getitem__)
    named = join_names([f"{name} ({present[name]:,})" for name in rare])
    sentence = f"Classes that are at least {limit} times rarer than {most} ({present[most]:,} {unit}): {named}."
    option = "--class-weights balanced" if train.kind == "pixels" else "--balanced-sampling"
    cure = f"Add images of them, or give {option}."
    return finding_of("class_imbalance", "note", sentence, cure, [Case(name) for name in rare])


def check_splits(tables: Mapping[str, Table]) -> list[Finding]:
    """Note classes that training images have and validation or test images have not, and the reverse."""
    counts = {split: dict(zip(table.class_names, table.counts(), strict=True)) for split, table in tables.items()}
    findings = []
    for split in (split for split in ("val", "test") if split in tables):
        unseen = [name for name, count in counts["train"].items() if count and not counts[split].get(name)]
        unknown = [name for name, count in counts[split].items() if count and not counts["train"].get(name)]
        sentence = f"Classes that no {split} image has: {join_names(unseen)}."
        cure = "Their figures will be undefined: add images of them, or hold out a larger share."
        findings += finding_of(f"missing_in_{split}", "note", sentence, cure, [Case(name) for name in unseen])
        sentence = f"Classes that {split} images have and no training image has: {join_names(unknown)}."
        cure = "They cannot be learned: add training images of them."
        findings += finding_of(f"only_in_{split}", "warning", sentence, cure, [Case(name) for name in unknown])
    return findings


def check_mirrored_classes(data: DataModule) -> list[Finding]:
    """Find classes whose mirror image is another class by their names, while training mirrors images."""
    names = set(data.class_names)
    pairs = sorted({tuple(sorted((name, other))) for name in names if (other := mirror_name(name)) in names - {name}})
    if not pairs or not _mirrors(data.transforms["train"].transform):
        return []
    named = join_names([f"{first} and {second}" for first, second in pairs])
    sentence = f"Training mirrors images, which turns classes into each other: {named}."
    cure = "Give --augmentation light, which does not mirror."
    return finding_of("mirrored_classes", "warning", sentence, cure, [Case(" / ".join(pair)) for pair in pairs])


def mirror_name(name: str) -> str:
    """The name of what a mirror shows of a class: left for right, b for d; the same name for all others.

    Example:
        >>> mirror_name("turn_Left"), mirror_name("leftover"), mirror_name("b")
        ('turn_Right', 'leftover', 'd')
    """
    if name.lower() in _LETTERS:
        # Only lower-case letters mirror each other: the mirror image of B is no letter.
        return _LETTERS.get(name, name)
    words: Sequence[str] = re.split(r"([^\W\d_]+)", re.sub(r"(?<=[a-z])(?=[A-Z])", "\0", name))
    return "".join(map(_mirrored, words)).replace("\0", "")


def _mirrored(word: str) -> str:
    other = _OTHER_SIDE.get(word.lower())
    if other is None:
        return word
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _mirrors(transform: object) -> bool:
    """Whether a transform mirrors, as our random view and torchvision's flip do; nobody knows that of others."""
    if isinstance(transform, (v2.Compose, v2.RandomApply, v2.RandomChoice, v2.RandomOrder)):
        return any(map(_mirrors, transform.transforms))
    return isinstance(transform, (RandomView, v2.RandomHorizontalFlip))
