"""The ``config.yaml`` of a run is a record: it holds what recipes and finders chose beside what somebody asked for.

It says so in its first field, ``record: 2``. The number is the version of the format. Version 1, of autotimm 0.1, had
no such field; its files are known by every option of that version, with a comment that names the source on each line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotimm.config import yaml
from autotimm.constants import TASKS
from autotimm.errors import UsageError

__all__ = ["RECORD", "VERSION", "completed", "header", "read_yaml", "said_sources", "split_record", "without_folders"]

RECORD = "record"
"""The field that makes a mapping of options a record."""

VERSION = 2
"""The version that is written."""

_OPTIONS_OF_VERSION_1 = {
    "path", "image_size", "batch_size", "val_split", "test_split", "augmentation", "num_workers",
    "balanced_sampling", "eval_batch_size", "format", "strict", "train_csv", "val_csv", "test_csv", "image_dir",
    "image_column", "label_column", "dataset_name", "download", "task", "backbone", "pretrained", "arch", "width",
    "multi_label", "threshold", "freeze_backbone", "head_dropout", "drop_path_rate", "compile", "epochs", "lr",
    "optimizer", "schedule", "warmup_epochs", "weight_decay", "layer_decay", "backbone_scale", "clip", "accumulate",
    "loss", "class_weights", "label_smoothing", "mixup_alpha", "cutmix_alpha", "ema_decay", "metrics", "monitor",
    "patience", "lr_find", "batch_size_find", "seed", "stream_seeds", "deterministic", "threads", "accelerator",
    "devices", "precision", "out", "name", "checkpoint_every", "keep", "loggers", "progress",
}  # fmt: skip
# What a record means by an option that it does not have, where that is not the default, and for which tasks.
_BEFORE = {
    "decode": ("full", ("classification",)), "evidence": ("false", TASKS), "recipe": ("plain", TASKS),
    "check": ("full", TASKS), "calibrate": ("none", ("classification", "detection", "instance")),
}  # fmt: skip
_LINE_OF_VERSION_1 = re.compile(r"\w+: .*  # \S.*")


def read_yaml(path: str) -> tuple[dict[str, Any], bool]:
    """Read a configuration file, and mark a record of version 1 as one.

    Args:
        path: The file.

    Returns:
        Its keys and values, and whether it is written in Lightning's style, see :func:`autotimm.config.yaml.read_yaml`.

    Raises:
        UsageError: If the file cannot be read, is not YAML, gives a key twice, or mixes both styles.
    """
    values, nested = yaml.read_yaml(path)
    if not nested and values.keys() == _OPTIONS_OF_VERSION_1:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        if all(map(_LINE_OF_VERSION_1.fullmatch, lines)):
            return {RECORD: "1", **values}, False
    return values, nested


def split_record(given: Mapping[str, object], owner: str) -> tuple[bool, dict[str, object]]:
    """Whether a mapping of options says that it is a record, and its options.

    Raises:
        UsageError: If it says so of a version that is not known.
    """
    values = dict(given)
    if RECORD not in values:
        return False, values
    for name, (word, tasks) in _BEFORE.items():
        if values.get("task") in tasks:
            values.setdefault(name, word)
    version = str(values.pop(RECORD))
    if version not in map(str, range(1, VERSION + 1)):
        raise UsageError(
            f"The `{RECORD}` of {owner} must be a version from 1 to {VERSION}. Got {version} instead. It marks the "
            "config.yaml of a run: upgrade autotimm if a later version wrote it, or remove the line if it is your own."
        )
    return True, values


def header() -> str:
    """The first line of a record, without its comment."""
    return f"{RECORD}: {VERSION}"


def completed(text: str, values: Mapping[str, object], source: str) -> str:
    r"""A record with some values in place of those that were left open; all other lines stay as they are.

    Args:
        text: The record.
        values: What to write, as plain data, by the names of the options.
        source: Who decided it.

    Example:
        >>> print(completed("lr: auto    # default\nseed: 42    # argument\n", {"lr": 0.1}, "recipe"), end="")
        lr: 0.1     # recipe
        seed: 42    # argument
    """
    lines = text.splitlines()
    width = min((line.rindex("  # ") for line in lines if "  # " in line), default=0)
    for index, line in enumerate(lines):
        name = line.partition(":")[0]
        if name in values:
            lines[index] = f"{f'{name}: {yaml.write_scalar(values[name])}':<{width}}  # {source}"
    return "".join(f"{line}\n" for line in lines)


def said_sources(text: str) -> dict[str, str]:
    r"""Who decided each value of a record, as its comments say; of a file only the name, as folders may be private.

    Args:
        text: The record.

    Example:
        >>> said_sources("lr: 0.1     # recipe\nseed: 42    # file /home/me/a.yaml\n")
        {'lr': 'recipe', 'seed': 'file a.yaml'}
    """
    lines = [line for line in text.splitlines() if ":" in line]
    return {line.partition(":")[0]: without_folders(line.rpartition("  # ")[2]) for line in lines}


def without_folders(source: str) -> str:
    """Who decided a value, with the name alone of a file."""
    kind, space, place = source.partition(" ")
    return f"{kind} {place.rpartition('/')[2]}" if kind in ("file", "record") and space else source
