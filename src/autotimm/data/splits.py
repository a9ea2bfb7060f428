"""The sides of a data set: validation, test and folds are split off where the data have no such images of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autotimm.data.doubt import Doubt
from autotimm.data.folds import Division, assign_folds, check_folds, grouped_split, groups_of
from autotimm.data.keyed_split import keyed_sides
from autotimm.data.table import Subset, Table
from autotimm.errors import join_names

__all__ = ["own_sides", "split_off"]

_WHOLE = Division()
_DEFAULT_SHARES = {"val": 0.1, "test": 0.0}  # of a data module


def split_off(
    tables: Mapping[str, Table],
    val: float,
    test: float,
    seed: int,
    notices: list[str],
    division: Division = _WHOLE,
    owner: str = "a data module",
) -> dict[str, Table]:
    """Split validation and test samples off the training samples where the data have none of their own.

    Args:
        tables: Tables by split; ``train`` is among them.
        val: Share of each class for validation; without effect where there are folds.
        test: Share of each class for test.
        seed: Root seed of the ``split`` stream.
        notices: Receives a line if a side stays empty, or a share has no effect.
        division: The folds, and what is kept together.
        owner: Who is given the division.

    Raises:
        UsageError: If groups cannot be told.
        DataError: If there are fewer samples or groups than folds, or a fold would be trained without a class.
    """
    tables = {split: table for split, table in tables.items() if len(table)}
    train = tables["train"]
    for split, share in (("val", val), ("test", test)):
        # A share that equals the default may not have been given at all, so it gets no notice.
        if split in tables and share not in (0, _DEFAULT_SHARES[split]):
            notices.append(f"`{split}_split` has no effect: the data have {split} images of their own.")
    groups = groups_of(train, division.group, owner)
    if groups is not None:
        _tell_groups(tables, groups, division, owner, notices)
    val = 0.0 if "val" in tables or division.folds is not None else val
    test = 0.0 if "test" in tables else test
    if not val and not test and division.folds is None:
        return tables
    sides = _sides(train, groups, val, test, seed)
    for split, share in (("val", val), ("test", test)):
        if share and not len(sides[split]):
            notices.append(f"There are too few images to split any off for {split}.")
    if division.folds is not None:
        # The test is split off first: it is the same for each fold, and no fold is trained on it.
        sides |= _fold_sides(train, sides["train"].tolist(), groups, seed, division, notices)
        if division.fold is not None and "val" in tables:
            notices.append("The validation images of the data are not used: the fold is validated on its own.")
    merged = {**tables, **{split: Subset(train, side) for split, side in sides.items() if len(side)}}
    return {split: merged[split] for split in ("train", "val", "test") if split in merged}


def own_sides(tables: Mapping[str, Table]) -> list[str]:
    """Which of ``val`` and ``test`` the data have themselves, after :func:`split_off`."""
    return [side for side in ("val", "test") if side in tables and not _same_source(tables["train"], tables[side])]


def _same_source(first: Table, second: Table) -> bool:
    """Whether two tables are parts of the same table."""
    return isinstance(first, Subset) and isinstance(second, Subset) and first.table is second.table


def _tell_groups(
    tables: Mapping[str, Table], groups: Sequence[str], division: Division, owner: str, notices: list[str]
) -> None:
    """Say how many groups there are, and which of them other splits of the data have too."""
    notices.append(f"{len(groups)} images are in {len({*groups})} groups, such as {join_names(sorted({*groups}), 3)}.")
    has_column = tables["train"].groups is not None
    for split in ("val", "test"):
        # Names of a column and what a regex finds in ids are not comparable.
        if split not in tables or (tables[split].groups is not None) != has_column:
            continue
        others = groups_of(tables[split], division.group, owner) or ()
        if shared := sorted({*groups} & {*others}):
            text = f"{len(shared)} groups are in train and in the data's own {split} images: {join_names(shared)}."
            cure = "Move each group to one side, or leave the split to autotimm."
            notices.append(Doubt(text, shared, check="shared_groups", cure=cure))


def _sides(
    train: Table, groups: Sequence[str] | None, val: float, test: float, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Indices of the training samples of each side, ascending."""
    sides: Sequence[NDArray[np.int64]]
    if groups is None:
        sides = keyed_sides(train.ids, train.strata, val, test, seed)
    else:
        grouped = grouped_split(train.ids, train.strata, groups, val, test, seed)
        sides = [np.array(side, np.int64) for side in grouped]
    return dict(zip(("train", "val", "test"), sides, strict=True))


def _fold_sides(
    train: Table, side: Sequence[int], groups: Sequence[str] | None, seed: int, division: Division, notices: list[str]
) -> dict[str, NDArray[np.int64]]:
    """Indices of the samples that a fold trains and validates on; all of them train where no fold is chosen."""
    assert division.folds is not None
    table = Subset(train, side)
    of_side = None if groups is None else [groups[index] for index in side]
    placed = assign_folds(table.ids, table.strata, division.folds, seed, names=table.class_names, groups=of_side)
    check_folds(table, placed, division.folds, notices, groups is not None)
    indices = np.array(side, np.int64)
    if division.fold is None:
        return {"train": indices}
    validates = np.array(placed) == division.fold
    return {"train": indices[~validates], "val": np.sort(indices[validates])}
