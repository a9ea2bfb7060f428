"""Samples that are dropped from a run because their files cannot be read.

A complete check before training leaves such files out. Where only headers were checked, the loaders meet them: the run
ends with the name of the sample, and is resumed without it. Split, order and length of the epochs stay what they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotimm.data.table import Subset, Table
from autotimm.errors import DataError, ModelError, UsageError, join_names, nearest, sentence
from autotimm.records.manifest import Manifest

__all__ = ["DROPPED", "chosen_ids", "dropped_notices", "is_readable", "recorded_drops", "refuse_readable", "without"]

DROPPED = "dropped"
"""The decision in a manifest."""


def recorded_drops(manifest: Manifest | None) -> tuple[str, ...]:
    """The ids of the samples that a run has dropped.

    Raises:
        ModelError: If the record is damaged.
    """
    ids: Any = () if manifest is None else manifest.decisions.get(DROPPED, ())
    if not isinstance(ids, (list, tuple)) or not all(isinstance(id, str) for id in ids):
        raise ModelError("The `dropped` of a manifest's decisions must be a list of ids. The record is damaged.")
    return tuple(ids)


def chosen_ids(given: str | Sequence[str], tables: Mapping[str, Table], *, recorded: bool = False) -> list[str]:
    """The ids that were given: one, several with commas between them, or a list.

    Args:
        given: What was given. A text that is an id as a whole is not divided at its commas.
        tables: The tables by split.
        recorded: Whether they are those of a record: then ids that the data no longer have are left out, which the
            comparison of the data names.

    Raises:
        UsageError: If there is no such sample.
    """
    known = {id for table in tables.values() for id in table.ids}
    ids = [*given]
    if isinstance(given, str):
        ids = [given] if given in known else given.split(",")
    if recorded:
        return [id for id in ids if id in known]
    for id in ids:
        if id not in known:
            cure = nearest(str(id), known) or "Give the id that the error has named, as in the run's files.csv."
            raise UsageError(sentence("drop", "resume", "ids of samples of the run", id, cure))
    return ids


def is_readable(id: str, tables: Sequence[Table]) -> bool:
    """Whether a sample can be read.

    Args:
        id: The id of the sample.
        tables: Tables that may have it, as each of the loaders reads them.
    """
    for table in tables:
        if id in table.ids:
            try:
                table.load(table.ids.index(id))
            except DataError:
                return False
    return True


def refuse_readable(id: str, tables: Sequence[Table]) -> None:
    """Refuse to drop a sample that can be read: earlier steps may have been trained on it, and no replay could tell.

    Args:
        id: The id of the sample.
        tables: Tables that may have it, as each of the loaders reads them.

    Raises:
        UsageError: If none of them fails to load it.
    """
    if is_readable(id, tables):
        raise UsageError(
            sentence("drop", "resume", "ids of samples whose files cannot be read", id, "Resume without it: it can be.")
        )


def without(table: Table, dropped: frozenset[str]) -> Table:
    """The samples of a table that are not dropped; the table itself if none is.

    Raises:
        DataError: If none is left.
    """
    kept = [index for index, id in enumerate(table.ids) if id not in dropped]
    if not kept:
        raise DataError(f"All {len(table)} samples of a split cannot be read. Replace the files, and train again.")
    return table if len(kept) == len(table) else Subset(table, kept)


def dropped_notices(dropped: Mapping[str, Sequence[str]], tables: Mapping[str, Table]) -> list[str]:
    """A line for each split that has dropped samples.

    Example:
        >>> from autotimm.data.table import ImageTable
        >>> dropped_notices({"val": ["a.jpg"]}, {"val": ImageTable(["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"])})
        ['1 of 2 val images cannot be read and is dropped: a.jpg. Metrics are those of the others.']
    """
    lines = []
    for split, ids in dropped.items():
        effect = "Metrics are those of the others."
        if split == "train":
            effect = "In each epoch the next image takes its place."
        are = "is" if len(ids) == 1 else "are"
        lines.append(
            f"{len(ids)} of {len(tables[split])} {split} images cannot be read and {are} dropped: "
            f"{join_names(ids)}. {effect}"
        )
    return lines
