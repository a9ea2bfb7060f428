"""Images that cannot be read, which are left out before training, and images that look odd, which are reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autotimm.data.doubt import Doubt
from autotimm.data.file_facts import Oddity, Problem
from autotimm.data.image_facts import MANY_BYTES, MANY_IMAGES, checks_fully, image_facts
from autotimm.data.table import Subset, Table
from autotimm.data.texts import Joined, file_names
from autotimm.errors import DataError, join_names

__all__ = ["leave_out_unreadable", "odd_image_notices"]


def leave_out_unreadable(
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
    names = {split: _checked_names(table) for split, table in tables.items()}
    total = sum(map(len, names.values()))
    full = checks_fully(check, Joined([*names.values()]))
    if not full:
        notices.append(_headers_notice(check, total))
    problems: dict[Path, Problem] = {}  # by file: several samples may have one
    broken: dict[str, list[int]] = {split: [] for split in tables}
    unreadable: list[str] = []
    oddities: dict[str, Oddity] = {}
    for split, findings in _findings(tables, names, full, progress).items():
        for place, finding in findings.items():
            id = tables[split].ids[place]
            if isinstance(finding, Oddity):
                oddities[id] = finding
                continue
            problems.setdefault(finding.path, finding)
            broken[split].append(place)
            unreadable.append(f"{id} ({finding.reason})")
    notices += odd_image_notices(oddities, total)
    if not problems:
        return dict(tables), []
    if strict or len(unreadable) == total:
        cure = "Replace or remove them" + (", or leave out `strict`." if strict else ".")
        raise DataError(f"{len(unreadable)} of {total} images cannot be read: {join_names(unreadable, 20)}. {cure}")
    text = f"{len(unreadable)} of {total} images cannot be read and are left out: {join_names(unreadable, 10)}."
    notices.append(Doubt(text, unreadable, check="unreadable", cure="Replace or remove them."))
    kept = dict(tables)
    for split, table in tables.items():
        if len(names[split]):
            kept[split] = Subset(table, _all_but(broken[split], len(table)))
    return kept, [*problems.values()]


def _checked_names(table: Table) -> Sequence[str]:
    """What there is to check of a table: its files, or the ids of a packed data set; nothing where there are none."""
    return file_names(table.files()) if table.packed() is None else table.ids


def _findings(
    tables: Mapping[str, Table], names: Mapping[str, Sequence[str]], full: bool, progress: bool
) -> dict[str, dict[int, Problem | Oddity]]:
    """What is wrong with images of each split, or odd about them, by their places."""
    findings: dict[str, dict[int, Problem | Oddity]] = {split: {} for split in tables}
    of_files = [split for split, table in tables.items() if table.packed() is None]
    # The files of all splits are looked up as one list, for one progress bar. `starts` says where each begins.
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


def _all_but(places: Sequence[int], size: int) -> NDArray[np.int64]:
    return np.delete(np.arange(size), places)


def _headers_notice(check: str, total: int) -> str:
    """What was not looked at, and for ``auto`` why."""
    why = ""
    if check == "auto":
        why = f" (auto: more than {MANY_IMAGES:,})" if total > MANY_IMAGES else f" (auto: over {MANY_BYTES / 1e9:g} GB)"
    return (
        f"The headers of {total:,} images were checked{why}. One that is damaged further on ends the training when it "
        "is met; --check full decodes all of them before."
    )


def odd_image_notices(oddities: Mapping[str, Oddity], total: int) -> list[str]:
    """A line about images whose numbers are not those of an image, and one about those that a decoder complains of.

    Args:
        oddities: What is odd about each, by its id.
        total: The number of all images.

    Example:
        >>> odd_image_notices({"a.tif": Oddity("0 to 1.2", "")}, 24)[0].partition(". ")[0]
        '1 of 24 images have values that fit neither [0, 1] nor [0, 255] nor 16 bits'
    """
    ranges = {id: f"{id} ({odd.range})" for id, odd in oddities.items() if odd.range}
    messages = {id: f"{id} ({odd.message})" for id, odd in oddities.items() if odd.message}
    lines: list[str] = []
    if ranges:
        text = (
            f"{len(ranges)} of {total} images have values that fit neither [0, 1] nor [0, 255] nor 16 bits. They are "
            f"clipped, or nearly black: {join_names([*ranges.values()])}. Scale them to [0, 1], or whole numbers to "
            "65535."
        )
        lines.append(Doubt(text, [*ranges], check="value_range", cure="Export them again in one of these ranges."))
    if messages:
        text = (
            f"{len(messages)} of {total} images may be damaged, as what reads them says: "
            f"{join_names([*messages.values()])}."
        )
        lines.append(Doubt(text, [*messages], check="damaged", cure="Look at them, and export them again."))
    return lines
