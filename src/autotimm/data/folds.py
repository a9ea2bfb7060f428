"""Folds for cross-validation, and groups of samples that stay together, also in a plain split.

Which fold a sample is in depends on its id, its class and the seed, never on the order of a listing.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from autotimm.data.keyed_split import LARGE_CLASS, keyed_split
from autotimm.data.table import Table
from autotimm.errors import DataError, UsageError, is_whole, join_names, require, sentence
from autotimm.repro.streams import key

__all__ = ["Division", "assign_folds", "check_division", "check_folds", "grouped_split", "groups_of"]


class Division(NamedTuple):
    """How training samples are divided, besides the shares that are split off.

    Attributes:
        group: A column of a table, or a regex on ids whose first group is the group; ``None`` keeps nothing together.
        folds: The number of folds, each of which validates once; ``None`` for none.
        fold: The fold that validates, counted from 1; ``None`` trains on all of them.
    """

    group: str | None = None
    folds: int | None = None
    fold: int | None = None


def check_division(division: Division, owner: str) -> None:
    """Refuse a division that means nothing.

    Raises:
        UsageError: If an argument is out of range.
    """
    group, folds, fold = (getattr(division, name) for name in Division._fields)  # of any type: Python code gives them
    require(
        folds is None or is_whole(folds, 2), "folds", owner, "a whole number, 2 or more, or None", folds,
        "Give for example 5.",
    )  # fmt: skip
    require(
        fold is None or (folds is not None and is_whole(fold, 1) and fold <= folds), "fold", owner,
        f"a whole number from 1 to {folds}" if folds else "left out without `folds`", fold, "Give None for all folds.",
    )  # fmt: skip
    require(
        group is None or (isinstance(group, str) and group != ""), "group", owner, "a text, or None", group,
        "Give a regex or a column.",
    )  # fmt: skip


def groups_of(table: Table, group: str | None, owner: str) -> list[str] | None:
    """The group of each sample: from the column that the table was read with, or else from its id.

    Args:
        table: The samples.
        group: The option; ``None`` for samples that are groups of their own.
        owner: Whose option it is.

    Raises:
        UsageError: If it is neither a column nor a regex with a group, or an id does not match.
    """
    if group is None:
        return None
    if table.groups is not None:
        return list(table.groups)
    must = "a column of the table, or a regex with a group in parentheses"
    try:
        pattern = re.compile(group)
    except re.error as error:
        cure = f"It is no column, and as a regex it is wrong: {error}. Give for example '^([^_]+)_'."
        raise UsageError(sentence("group", owner, must, group, cure)) from None
    if not pattern.groups:
        cure = "Give for example '^([^_]+)_'. Only tables of classes and of boxes have columns."
        raise UsageError(sentence("group", owner, must, group, cure))
    found = [match[1] if (match := pattern.search(id)) else None for id in table.ids]
    if missed := [id for id, name in zip(table.ids, found, strict=True) if name is None]:
        cure = f"It finds no group in {len(missed)} of {len(found)} ids, such as {join_names(missed)}."
        raise UsageError(sentence("group", owner, f"{must}, which every id matches", group, cure))
    return [str(name) for name in found]


def _units(ids: Sequence[str], groups: Sequence[str] | None) -> dict[str, list[int]]:
    """What is divided: groups, or samples alone, each with its indices."""
    units: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(ids if groups is None else groups):
        units[name].append(index)
    return dict(units)


def _strata_of(units: Sequence[Sequence[int]], strata: Sequence[int] | None) -> list[int] | None:
    """The most frequent class of each unit, of equally frequent ones the first."""
    if strata is None:
        return None
    counted = [Counter(strata[index] for index in indices) for indices in units]
    return [min(counts, key=lambda stratum: (-counts[stratum], stratum)) for counts in counted]


def grouped_split(
    ids: Sequence[str], strata: Sequence[int] | None, groups: Sequence[str] | None, val: float, test: float, seed: int
) -> tuple[list[int], list[int], list[int]]:
    """Split as :func:`autotimm.data.keyed_split.keyed_split` does, groups in place of samples.

    Groups are split by their names and most frequent classes, and shares are those of groups.

    Example:
        >>> ids = [f"{patient}-{number}" for patient in "abcd" for number in range(3)]
        >>> train, val, _ = grouped_split(ids, None, [id[0] for id in ids], 0.25, 0, seed=42)
        >>> len(train), len(val), {ids[index][0] for index in train} & {ids[index][0] for index in val}
        (9, 3, set())
    """
    units = _units(ids, groups)
    members = list(units.values())
    sides = keyed_split([*units], _strata_of(members, strata), val, test, seed)
    train, val_side, test_side = (sorted(index for unit in side for index in members[unit]) for side in sides)
    return train, val_side, test_side


def assign_folds(
    ids: Sequence[str],
    strata: Sequence[int] | None,
    folds: int,
    seed: int,
    *,
    names: Sequence[str] = (),
    groups: Sequence[str] | None = None,
) -> list[int]:
    """Assign each sample to a fold, each class by itself.

    Every sample, or every group, has the number ``key(seed, "split", "fold", id)``. What becomes of it depends on the
    size of its class, as in :func:`autotimm.data.keyed_split.keyed_split`:

    - below 100: the samples of a class, sorted by number, are cut into equal parts. A sample that is added moves at
      most one other across each cut.
    - from 100 on: the range of the numbers is cut, so that a sample *never* changes its fold because others were added.

    Where classes are so small that a fold would have no sample, all classes are cut together.

    Args:
        ids: The samples' ids, unique, in any order.
        strata: The class of each sample; ``None`` treats all as one class.
        folds: The number of folds.
        seed: Root seed of the ``split`` stream.
        names: The names of the classes, by which the remainders of small classes go to different folds.
        groups: The group of each sample, by whose names and most frequent classes groups are assigned as a whole.

    Returns:
        The fold of each sample, from 1 on.

    Raises:
        DataError: If there are fewer samples, or groups, than folds.

    Example:
        >>> ids = [f"cat/{number}.jpg" for number in range(10)]
        >>> folds = assign_folds(ids, None, 5, seed=42)
        >>> [folds.count(fold) for fold in range(1, 6)]
        [2, 2, 2, 2, 2]
        >>> assign_folds(ids[::-1], None, 5, seed=42) == folds[::-1]
        True
    """
    units = _units(ids, groups)
    if len(units) < folds:
        what = "images" if groups is None else "groups"
        raise DataError(f"There are {len(units)} {what} to train on, fewer than the {folds} folds. Give less `folds`.")
    members = list(units.values())
    of_units = _strata_of(members, strata)
    placed = _placed([*units], of_units, folds, seed, names)
    if len({*placed}) < folds:
        placed = _placed([*units], None, folds, seed, names)
    found = [0] * len(ids)
    for indices, fold in zip(members, placed, strict=True):
        for index in indices:
            found[index] = fold + 1
    return found


def _placed(
    units: Sequence[str], strata: Sequence[int] | None, folds: int, seed: int, names: Sequence[str]
) -> list[int]:
    classes: dict[int, list[tuple[int, str, int]]] = defaultdict(list)
    for at, name in enumerate(units):
        classes[0 if strata is None else strata[at]].append((key(seed, "split", "fold", name), name, at))
    placed = [0] * len(units)
    for stratum, of_class in classes.items():
        title = names[stratum] if strata is not None and stratum < len(names) else ""
        first = key(seed, "split", "first fold", title) % folds  # else all remainders would be in the same folds
        for rank, (number, _, at) in enumerate(sorted(of_class)):
            if len(of_class) < LARGE_CLASS:
                placed[at] = (rank * folds // len(of_class) + first) % folds
            else:
                placed[at] = number * folds >> 64
    if len({*placed}) < folds and strata is None and len(units) >= folds:
        # By chance, with many folds: cut them by rank too.
        order = sorted(range(len(units)), key=lambda at: (key(seed, "split", "fold", units[at]), units[at]))
        for rank, at in enumerate(order):
            placed[at] = rank * folds // len(units)
    return placed


def check_folds(table: Table, placed: Sequence[int], folds: int, notices: list[str], grouped: bool) -> None:
    """Refuse folds that train without a class, and report those that validate without one.

    Args:
        table: The samples.
        placed: The fold of each.
        folds: The number of folds.
        notices: Receives the report, one line.
        grouped: Whether groups were kept together.

    Raises:
        DataError: If all samples of a class are in the same fold, with one class per image: a network that has never
            seen a class cannot be validated on it.
    """
    homes: dict[str, set[int]] = {name: set() for name in table.class_names}
    for index, fold in enumerate(placed):
        for name in table.labels(index):
            homes[name].add(fold)
    alone = [name for name, of_class in homes.items() if len(of_class) == 1]
    if alone and not table.multi_label and table.kind == "classes":
        why = "whose images are all in one group" if grouped else "with a single image"
        raise DataError(
            f"Classes {why}, so that a fold would be trained without them: {join_names(alone)}. Add images of others, "
            "or remove the class."
        )
    if few := [name for name, of_class in homes.items() if 0 < len(of_class) < folds]:
        notices.append(f"Classes that not each of the {folds} folds has, so that some are validated without: "
                       f"{join_names(few)}.")  # fmt: skip
