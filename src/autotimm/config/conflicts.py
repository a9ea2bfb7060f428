"""What would have no effect beside another option of ``fit``; where it was asked for, that is a usage error.

What the tasks of ``fit`` have of their own: defaults, and options that would have no effect on others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["SHADOWED", "is_table", "options_of_others", "task_defaults"]


_NO_RATES = "which leaves the backbone without a rate"

SHADOWED: tuple[tuple[str, str, tuple[Any, ...], str], ...] = (
    ("lr", "lr_find", (None,), "which searches for one"),
    ("batch_size", "batch_size_find", (), "which searches for one"),
    ("layer_decay", "freeze_backbone", (None, 1.0), _NO_RATES),
    ("backbone_scale", "freeze_backbone", (None, 1.0), _NO_RATES),
    ("drop_path_rate", "freeze_backbone", (0.0,), "which keeps the backbone as it is in evaluation"),
)
"""An option, the one that replaces it, its values that ask for nothing, and why it has no effect."""


def is_table(path: str | None) -> bool:
    """Whether a path is by its name that of a table."""
    return path is not None and path.lower().endswith((".csv", ".tsv"))


_DENSE = {"image_size": 512, "batch_size": 8, "eval_batch_size": 4}
_DEFAULTS: dict[str, Mapping[str, Any]] = {
    "classification": {},
    "detection": {**_DENSE, "arch": "fcos", "threshold": 0.3},
    "instance": {**_DENSE, "arch": "mask_rcnn"},
    "segmentation": {**_DENSE, "arch": "fpn"},
}

_WHOLE_IMAGES = ("classification",)
_OBJECTS = ("detection", "instance")
_DENSE_TASKS = (*_OBJECTS, "segmentation")
_ONLY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("multi_label", "head_dropout", "label_smoothing", "mixup_alpha", "cutmix_alpha", "train_csv", "val_csv",
         "test_csv", "image_dir", "image_column", "label_column", "dataset_name", "download"),
        _WHOLE_IMAGES,
    ),
    **dict.fromkeys(("format", "arch", "width"), _DENSE_TASKS),
    "threshold": (*_WHOLE_IMAGES, *_OBJECTS),
    "loss": (*_WHOLE_IMAGES, "segmentation"),
    "class_weights": (*_WHOLE_IMAGES, "segmentation"),
    "metrics": _WHOLE_IMAGES,
}  # fmt: skip


def task_defaults(task: str) -> Mapping[str, Any]:
    """Defaults of a task in place of those that all options have."""
    return _DEFAULTS[task]


def options_of_others(task: str) -> list[str]:
    """Options that have no effect on a task."""
    return [name for name, tasks in _ONLY.items() if task not in tasks]
