"""What would have no effect beside another option of ``fit``; where it was asked for, that is a usage error."""

from __future__ import annotations

from typing import Any

__all__ = ["SHADOWED", "is_table"]

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
