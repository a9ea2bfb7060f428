"""What happens to tables once, between reading and training: broken images out, classes checked, sides split off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from autotimm.data.file_facts import Problem, scan
from autotimm.data.split import keyed_split
from autotimm.data.table import Subset, Table
from autotimm.errors import DataError, join_names

__all__ = ["balanced_weights", "check_classes", "own_sides", "readable", "split_off"]

_USUAL = {"val": 0.1, "test": 0.0}  # the shares that a data module has by default


def readable(
    tables: Mapping[str, Table], notices: list[str], strict: bool = False, progress: bool = True
) -> tuple[dict[str, Table], list[Problem]]:
    """Leave out the images that cannot be decoded, and report them once.

    Args:
        tables: Tables by split.
        notices: Receives the report, one line.
        strict: Refuse them instead.
        progress: Whether a progress bar may appear.

    Returns:
        The tables without them, and the problems.

    Raises:
        DataError: With ``strict`` if there is any, and always if there is nothing else.
    """
    files = {split: table.files() for split, table in tables.items()}
    problems = scan([file for listed in files.values() for file in listed], progress)
    reasons = {problem.path: problem.reason for problem in problems}
    if not reasons:
        return dict(tables), problems
    total = sum(map(len, files.values()))
    bad = [
        f"{table.ids[index]} ({reasons[file]})"
        for split, table in tables.items()
        for index, file in enumerate(files[split])
        if file in reasons
    ]
    if strict or len(bad) == total:
        cure = "Replace or remove them" + (", or leave out `strict`." if strict else ".")
        raise DataError(f"{len(bad)} of {total} images cannot be read: {join_names(bad, 20)}. {cure}")
    notices.append(f"{len(bad)} of {total} images cannot be read and are left out: {join_names(bad, 10)}.")
    kept: dict[str, Table] = {
        split: Subset(table, [index for index, file in enumerate(files[split]) if file not in reasons])
        for split, table in tables.items()
        if files[split]
    }
    return {split: kept.get(split, table) for split, table in tables.items()}, problems


def check_classes(train: Table, notices: list[str]) -> None:
    """Refuse what no classifier can learn from, and point out what it will hardly learn from.

    Raises:
        DataError: If there is no image, one class only, or (with one label per image) a class without images.
    """
    counts = dict(zip(train.class_names, train.counts(), strict=True))
    several = train.multi_label or train.kind != "classes"
    if not len(train):
        raise DataError("There is no image to train on. Add readable images.")
    if not several and len(counts) == 1:
        only = next(iter(counts))
        raise DataError(f"There is one class only, {only!r}; telling apart takes two. Add a second class.")
    if empty := [name for name, count in counts.items() if not count]:
        if not several:
            raise DataError(
                f"Classes without a readable training image: {join_names(empty)}. Add images or remove the class."
            )
        notices.append(f"Classes that no training image has: {join_names(empty)}.")
    if single := [name for name, count in counts.items() if count == 1]:
        where = "may be on either side of a split" if several else "stays in training"
        notices.append(f"Classes with one single image, which {where}: {join_names(single)}.")


def split_off(tables: Mapping[str, Table], val: float, test: float, seed: int, notices: list[str]) -> dict[str, Table]:
    """Split validation and test off the training samples where there is none of their own.

    Args:
        tables: Tables by split; ``train`` is among them.
        val: Share of each class for validation.
        test: Share of each class for test.
        seed: Root seed of the ``split`` stream.
        notices: Receives a line if a side stays empty, or if a share has no effect.
    """
    tables = {split: table for split, table in tables.items() if len(table)}
    for split, share in (("val", val), ("test", test)):
        if split in tables and share not in (0, _USUAL[split]):
            notices.append(f"`{split}_split` has no effect: there are {split} images already.")
    val, test = (0.0 if "val" in tables else val), (0.0 if "test" in tables else test)
    if not val and not test:
        return tables
    train = tables["train"]
    sides = keyed_split(train.ids, train.strata, val, test, seed)
    parts = {split: Subset(train, side) for split, side in zip(("train", "val", "test"), sides, strict=True) if side}
    for split, share in (("val", val), ("test", test)):
        if share and split not in parts:
            notices.append(f"There are too few images to split off any for {split}.")
    both = {**tables, **parts}
    return {split: both[split] for split in ("train", "val", "test") if split in both}


def own_sides(tables: Mapping[str, Table]) -> list[str]:
    """Which of ``val`` and ``test`` the data had itself, after :func:`split_off`."""
    return [side for side in ("val", "test") if side in tables and not _same(tables["train"], tables[side])]


def _same(one: Table, other: Table) -> bool:
    """Whether two tables are parts of the same."""
    return isinstance(one, Subset) and isinstance(other, Subset) and one.table is other.table


def balanced_weights(table: Table) -> list[float] | None:
    """One over the size of each sample's class: every class is drawn equally often. ``None`` without classes."""
    if table.strata is None:
        return None
    sizes = Counter(table.strata)
    return [1 / sizes[stratum] for stratum in table.strata]
