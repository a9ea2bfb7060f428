"""What all tasks that tell classes apart ask of their arguments and their data."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.errors import UsageError, is_whole, require, sentence
from autotimm.types import DataSpec

__all__ = ["check_num_classes", "check_spec", "names_of"]


def check_num_classes(num_classes: object, least: int, owner: str) -> None:
    """Refuse a number of classes that is none, or too small.

    Raises:
        UsageError: If it is.
    """
    fine = is_whole(num_classes, least)
    do = "Give the number of classes of your data, `data.num_classes`."
    require(fine, "num_classes", owner, f"an integer of at least {least}", num_classes, do)


def check_spec(spec: DataSpec, kinds: Sequence[str], num_classes: int, owner: str) -> None:
    """Refuse data of another kind, or with another number of classes.

    Args:
        spec: What is known of the data.
        kinds: The kinds that will do, see :class:`autotimm.types.DataSpec`.
        num_classes: What the task was made for.
        owner: The task's name.

    Raises:
        UsageError: If the data does not fit.
    """
    if spec.kind not in kinds:
        raise UsageError(
            f"The data of {owner} must have {kinds[0]}. They have {spec.kind} instead. Use the task for these, or "
            "another data module."
        )
    found = len(spec.class_names)
    if found != num_classes:
        do = f"Give num_classes={found}; the classes are {', '.join(spec.class_names[:10])}."
        raise UsageError(sentence("num_classes", owner, f"{found}, as the data has", num_classes, do))


def names_of(spec: DataSpec | None, num_classes: int) -> tuple[str, ...]:
    """Names of the classes in the order of the logits; their numbers before the data is known."""
    return spec.class_names if spec else tuple(str(index) for index in range(num_classes))
