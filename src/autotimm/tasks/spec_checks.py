"""Checks of what tasks with classes are told, and of the data that they learn from."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.errors import UsageError, is_whole, require, sentence
from autotimm.types import DataSpec

__all__ = ["check_num_classes", "check_spec", "names_of"]


def check_num_classes(num_classes: object, least: int, owner: str) -> None:
    """Refuse a ``num_classes`` that is no integer, or too small.

    Raises:
        UsageError: If it is wrong.
    """
    fine = is_whole(num_classes, least)
    do = "Give the number of classes of your data, `data.num_classes`."
    require(fine, "num_classes", owner, f"an integer of at least {least}", num_classes, do)


def check_spec(spec: DataSpec, kinds: Sequence[str], num_classes: int, owner: str, in_chans: int = 3) -> None:
    """Refuse data with targets of another kind, or with another number of classes or channels.

    Args:
        spec: What is known of the data.
        kinds: The accepted kinds, see :class:`autotimm.types.DataSpec`.
        num_classes: The number of classes of the task.
        owner: The task's name.
        in_chans: The number of channels of the images that the task takes.

    Raises:
        UsageError: If the data does not fit.
    """
    if spec.kind not in kinds:
        raise UsageError(
            f"{owner} expects {kinds[0]}; got {spec.kind}. Use the task for {spec.kind}, or another data module."
        )
    present = len(spec.class_names)
    if present != num_classes:
        do = f"Give num_classes={present}; the classes are {', '.join(spec.class_names[:10])}."
        raise UsageError(sentence("num_classes", owner, f"{present}, as the data has", num_classes, do))
    must, do = f"{spec.in_chans}, as the data has", f"Give in_chans={spec.in_chans}, or data with another."
    require(spec.in_chans == in_chans, "in_chans", owner, must, in_chans, do)


def names_of(spec: DataSpec | None, num_classes: int) -> tuple[str, ...]:
    """Names of the classes in the order of the logits; their numbers before the data is known."""
    return spec.class_names if spec else tuple(str(index) for index in range(num_classes))
