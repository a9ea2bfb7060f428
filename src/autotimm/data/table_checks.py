"""Checks of tables between reading and training: unreadable images are left out, classes checked, sides split off."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.doubt import Doubt
from autotimm.data.file_facts import Oddity, Problem, image_sizes
from autotimm.data.folds import Division, assign_folds, check_folds, grouped_split, groups_of
from autotimm.data.image_facts import MANY_BYTES, MANY_IMAGES, checks_fully, image_facts
from autotimm.data.table import Subset, Table, keyed_sides
from autotimm.data.texts import Joined, file_names
from autotimm.errors import DataError, join_names
from autotimm.image_size import ImageSize, height_and_width, written_size

__all__ = [
    "balanced_weights",
    "check_classes",
    "check_object_sizes",
    "odd_images",
    "own_sides",
    "readable",
    "split_off",
    "workers_for_whole_images",
]

_SHARED_BYTES = 2**30  # of all images that wait for the network
_PREFETCHED = 2  # images that wait for each loading process, which is torch's default
_WHOLE = Division()
_DEFAULT_SHARES = {"val": 0.1, "test": 0.0}  # of a data module


def readable(
    tables: Mapping[str, Table], notices: list[str], strict: bool = False, progress: bool = True, check: str = "full"
) -> tuple[dict[str, Table], list[Problem]]:
    """Leave out the images that cannot be read, and report them once.

    Args:
        tables: Tables by split.
        notices: Receives the report, one line.
        strict: Refuse them instead.
        progress: Whether a progress bar may appear.
        check: How they are checked, see :func:`autotimm.data.image_facts.checks_fully`.

    Returns:
        The tables without them, and the problems.

    Raises:
        DataError: With ``strict`` if there is any, and always if no image is left.
    """
    names = {split: _names(table) for split, table in tables.items()}
    total = sum(map(len, names.values()))
    full = checks_fully(check, Joined([*names.values()]))
    if not full:
        notices.append(_HEADERS.format(total=f"{total:,}", why=_why_headers(check, total)))
    oddities: dict[str, Oddity] = {}
    problems: dict[Path, Problem] = {}
    broken: dict[str, dict[int, str]] = {split: {} for split in tables}
    for split, findings in _findings(tables, names, full, progress).items():
        for place, finding in findings.items():
            if isinstance(finding, Problem):
                problems.setdefault(finding.path, finding)
                broken[split][place] = finding.reason
            else:
                oddities[tables[split].ids[place]] = finding
    notices += odd_images(oddities, total)
    if not problems:
        return dict(tables), []
    unreadable = [
        f"{tables[split].ids[place]} ({why})" for split, of_split in broken.items() for place, why in of_split.items()
    ]
    if strict or len(unreadable) == total:
        cure = "Replace or remove them" + (", or leave out `strict`." if strict else ".")
        raise DataError(f"{len(unreadable)} of {total} images cannot be read: {join_names(unreadable, 20)}. {cure}")
    text = f"{len(unreadable)} of {total} images cannot be read and are left out: {join_names(unreadable, 10)}."
    notices.append(Doubt(text, unreadable, check="unreadable", cure="Replace or remove them."))
    kept: dict[str, Table] = {
        split: Subset(table, np.delete(np.arange(len(table)), [*broken[split]]))
        for split, table in tables.items()
        if len(names[split])
    }
    return {split: kept.get(split, table) for split, table in tables.items()}, [*problems.values()]


def _findings(
    tables: Mapping[str, Table], names: Mapping[str, Sequence[str]], full: bool, progress: bool
) -> dict[str, dict[int, Problem | Oddity]]:
    """What is wrong with images of each split, or odd about them, by their places."""
    findings: dict[str, dict[int, Problem | Oddity]] = {split: {} for split in tables}
    of_files = [split for split, table in tables.items() if table.packed() is None]
    starts = np.cumsum([0, *(len(names[split]) for split in of_files)])
    for facts in image_facts(Joined([names[split] for split in of_files]), full=full, progress=progress):
        odd: dict[int, Problem | Oddity] = {place: Oddity(*note) for place, note in facts.known.notes.items()}
        odd |= facts.problems
        for place in sorted(odd):
            number = int(np.searchsorted(starts, facts.start + place, side="right")) - 1
            findings[of_files[number]][facts.start + place - int(starts[number])] = odd[place]
    for split, table in tables.items():
        if (packed := table.packed()) is not None:
            checked = packed.rows.check(packed.places, full=full, progress=progress)
            for place, fact in enumerate(checked):
                if isinstance(fact, Problem):
                    findings[split][place] = fact
                elif fact.range or fact.message:
                    findings[split][place] = Oddity(fact.range, fact.message)
    return findings


def _names(table: Table) -> Sequence[str]:
    """What there is to check of a table: its files, or the ids of a packed data set; nothing where there are none."""
    return file_names(table.files()) if table.packed() is None else table.ids


_HEADERS = (
    "The headers of {total} images were checked{why}. One that is damaged further on ends the training when it is met; "
    "--check full decodes all of them before."
)


def _why_headers(check: str, total: int) -> str:
    if check != "auto":
        return ""
    return f" (auto: more than {MANY_IMAGES:,})" if total > MANY_IMAGES else f" (auto: over {MANY_BYTES / 1e9:g} GB)"


def odd_images(oddities: Mapping[str, Oddity], total: int) -> list[str]:
    """A line about images whose numbers are not those of an image, and one about those that a decoder complains of.

    Args:
        oddities: What is odd about each, by its id.
        total: The number of all images.

    Example:
        >>> odd_images({"a.tif": Oddity("0 to 1.2", "")}, 24)[0].partition(". ")[0]
        '1 of 24 images have values that fit neither [0, 1] nor [0, 255] nor 16 bits'
    """
    ranges = [f"{name} ({odd.range})" for name, odd in oddities.items() if odd.range]
    messages = [f"{name} ({odd.message})" for name, odd in oddities.items() if odd.message]
    lines: list[str] = []
    if ranges:
        text = (
            f"{len(ranges)} of {total} images have values that fit neither [0, 1] nor [0, 255] nor 16 bits. They are "
            f"clipped, or nearly black: {join_names(ranges)}. Scale them to [0, 1], or whole numbers to 65535."
        )
        names, cure = [name for name, odd in oddities.items() if odd.range], "Export them again in one of these ranges."
        lines.append(Doubt(text, names, check="value_range", cure=cure))
    if messages:
        text = f"{len(messages)} of {total} images may be damaged, as what reads them says: {join_names(messages)}."
        names = [name for name, odd in oddities.items() if odd.message]
        lines.append(Doubt(text, names, check="damaged", cure="Look at them, and export them again."))
    return lines


def check_classes(train: Table, notices: list[str]) -> None:
    """Refuse data that no model can learn from, and report classes with hardly any image.

    Raises:
        DataError: If there is no image, one class only, or (with one label per image) a class without images.
    """
    counts = dict(zip(train.class_names, train.counts(), strict=True))
    several = train.multi_label or train.kind != "classes"
    if not len(train):
        raise DataError("There is no image to train on. Add readable images.")
    if not several and len(counts) == 1:
        only = next(iter(counts))
        raise DataError(f"There is only one class, {only!r}, and classification needs two. Add a second class.")
    if empty := [name for name, count in counts.items() if not count]:
        if not several:
            raise DataError(
                f"Classes without a readable training image: {join_names(empty)}. Add images or remove the class."
            )
        notices.append(f"Classes that no training image has: {join_names(empty)}.")
    if rare := [name for name, count in counts.items() if count == 1]:
        where = "may be on either side of a split" if several else "stays in training"
        notices.append(f"Classes with a single image, which {where}: {join_names(rare)}.")
    if alike := _alike(train.class_names):
        pairs = [" and ".join(map(repr, names)) for names in alike]
        text = f"Classes whose names differ in case, spaces, dashes or underscores alone: {join_names(pairs)}."
        cure = "Give them one name if they are the same class."
        notices.append(Doubt(text, pairs, check="alike_classes", cure=cure))


def _alike(names: Sequence[str]) -> list[list[str]]:
    """Names that people take for one; single characters may be classes of an alphabet.

    Example:
        >>> _alike(["T-shirt", "hat", "tshirt", "hat ", "A", "a"])
        [['T-shirt', 'tshirt'], ['hat', 'hat ']]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        if len(key := re.sub(r"[\s_-]", "", name).casefold()) > 1:
            groups.setdefault(key, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def check_object_sizes(
    tables: Mapping[str, Table], image_size: ImageSize, notices: list[str], tiled: bool = False
) -> None:
    """Report objects that are too small for the network's input, which no training can find.

    Args:
        tables: Tables by split; those without boxes are skipped.
        image_size: Size in pixels of the network's input, into which each image is fitted.
        notices: Receives the report, one line.
        tiled: Whether images are cut into tiles of that size instead.

    Raises:
        DataError: If no object of the training images is as large as a pixel.
    """
    size = None if tiled else image_size
    sides = {split: _sides(table, size) for split, table in tables.items() if isinstance(table, ObjectTable)}
    cure = "in the images themselves: are their boxes in pixels?" if tiled else (
        f"at image_size {written_size(image_size)}: give a larger --image-size, or --tile."
    )  # fmt: skip
    train = sides.get("train", np.zeros(0))
    if len(train) and (train < 1).all():
        raise DataError(f"All {len(train)} objects of the training images are under 1 px {cure}")
    total, under = (
        sum(map(len, sides.values())),
        [sum(int((part < px).sum()) for part in sides.values()) for px in (1, 2)],
    )
    if under[0]:
        lost = "They are counted in evaluation, and not learned in training."
        text = f"{under[0]} of {total} objects are under 1 px ({under[1]} under 2 px) {cure} {lost}"
        do = "Give the network more pixels, or remove boxes that are mistakes."
        notices.append(Doubt(text, check="tiny_boxes", total=under[0], cure=do))
    elif under[1]:
        notices.append(f"{under[1]} of {total} objects are under 2 px {cure}")


def _sides(table: ObjectTable, image_size: ImageSize | None) -> NDArray[np.float64]:
    """The shorter side of each object in pixels of the network's input; NaN where its image cannot be read.

    Without a size, the network sees the pixels of the images.
    """
    if image_size is None:
        return table.shorter_sides(np.ones(len(table)))
    height, width = height_and_width(image_size)
    shrunk = [np.nan if size is None else max(size[0] / height, size[1] / width) for size in _sizes(table)]
    return table.shorter_sides(np.array(shrunk, np.float64))


def _sizes(table: Table) -> list[tuple[int, int] | None]:
    """Width and height of each image; ``None`` for one that cannot be read, and nothing where samples are no files."""
    if (packed := table.packed()) is not None:
        return [packed.rows.size(place) for place in packed.places.tolist()]
    sizes = image_sizes(table.files())
    return [sizes.get(file) for file in table.files()]


def workers_for_whole_images(table: Table, most: int, shared_bytes: int = _SHARED_BYTES) -> int:
    """How many processes may load whole images, which they hand over through shared memory: none if they are huge.

    Args:
        table: The images.
        most: The number of processes otherwise.
        shared_bytes: Memory for the images that wait for the network.
    """
    largest = max((size[0] * size[1] for size in _sizes(table) if size is not None), default=1)
    return min(most, shared_bytes // (3 * largest * _PREFETCHED))


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
    for split, share in (("val", val), ("test", test)):
        if split in tables and share not in (0, _DEFAULT_SHARES[split]):
            notices.append(f"`{split}_split` has no effect: the data have {split} images of their own.")
    groups = groups_of(tables["train"], division.group, owner)
    if groups is not None:
        _tell_groups(tables, groups, division, owner, notices)
    val = 0.0 if "val" in tables or division.folds is not None else val
    test = 0.0 if "test" in tables else test
    if not val and not test and division.folds is None:
        return tables
    train = tables["train"]
    sides: Sequence[NDArray[np.int64]] = keyed_sides(train.ids, train.strata, val, test, seed)
    if groups is not None:
        grouped = grouped_split(train.ids, train.strata, groups, val, test, seed)
        sides = [np.array(side, np.int64) for side in grouped]
    parts = dict(zip(("train", "val", "test"), sides, strict=True))
    for split, share in (("val", val), ("test", test)):
        if share and not len(parts[split]):
            notices.append(f"There are too few images to split any off for {split}.")
    if division.folds is not None:
        parts |= _fold_sides(train, parts["train"].tolist(), groups, seed, division, notices)
        if division.fold is not None and "val" in tables:
            notices.append("The validation images of the data are not used: the fold is validated on its own.")
    merged = {**tables, **{split: Subset(train, side) for split, side in parts.items() if len(side)}}
    return {split: merged[split] for split in ("train", "val", "test") if split in merged}


def _fold_sides(
    train: Table, side: Sequence[int], groups: Sequence[str] | None, seed: int, division: Division, notices: list[str]
) -> dict[str, NDArray[np.int64]]:
    """Indices of the samples that a fold trains and validates on; all of them train where no fold is chosen."""
    assert division.folds is not None
    table = Subset(train, side)
    of_side = None if groups is None else [groups[index] for index in side]
    placed = assign_folds(table.ids, table.strata, division.folds, seed, names=table.class_names, groups=of_side)
    check_folds(table, placed, division.folds, notices, groups is not None)
    if division.fold is None:
        return {"train": np.array(side, np.int64)}
    indices, chosen = np.array(side, np.int64), np.array(placed) == division.fold
    return {"train": indices[~chosen], "val": np.sort(indices[chosen])}


def _tell_groups(
    tables: Mapping[str, Table], groups: Sequence[str], division: Division, owner: str, notices: list[str]
) -> None:
    """Say how many groups there are, and which of them other splits of the data have too."""
    notices.append(f"{len(groups)} images are in {len({*groups})} groups, such as {join_names(sorted({*groups}), 3)}.")
    for split in ("val", "test"):
        alike = split in tables and (tables[split].groups is None) == (tables["train"].groups is None)
        others = groups_of(tables[split], division.group, owner) if alike else None
        if shared := sorted({*groups} & {*(others or ())}):
            text = f"{len(shared)} groups are in train and in the data's own {split} images: {join_names(shared)}."
            cure = "Move each group to one side, or leave the split to autotimm."
            notices.append(Doubt(text, shared, check="shared_groups", cure=cure))


def own_sides(tables: Mapping[str, Table]) -> list[str]:
    """Which of ``val`` and ``test`` the data have themselves, after :func:`split_off`."""
    return [side for side in ("val", "test") if side in tables and not _same_source(tables["train"], tables[side])]


def _same_source(first: Table, second: Table) -> bool:
    """Whether two tables are parts of the same table."""
    return isinstance(first, Subset) and isinstance(second, Subset) and first.table is second.table


def balanced_weights(table: Table) -> list[float] | None:
    """Weights that draw every class equally often: the inverse of each class's size; ``None`` without classes."""
    if table.strata is None:
        return None
    _, own, sizes = np.unique(np.asarray(table.strata, np.int64), return_inverse=True, return_counts=True)
    weights: list[float] = (1 / sizes)[own].tolist()
    return weights
