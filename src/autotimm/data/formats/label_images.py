"""Label images: a mask per image whose pixel values or colors say the class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.data.annotations.masks import IGNORED, MaskCode, MaskFacts, MaskTable, color_name
from autotimm.data.file_facts import Problem, image_sizes, mask_facts
from autotimm.data.formats.class_tables import class_table, find_class_table
from autotimm.data.formats.mask_pairs import Pair, find_pairs
from autotimm.data.formats.object_records import Report
from autotimm.data.formats.split_layout import descend, ordered, relative
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["Reading", "mask_tables", "read_label_images"]

_TWO = ("background", "foreground")
_LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
_NEARLY = 0.98  # of the pixels: between both ends lie edges that were soft before, and what compression did to them
_MOST = 200  # gray values without names: beyond, masks are photographs or have soft edges


class Reading(NamedTuple):
    """How masks are read.

    Attributes:
        class_names: The classes.
        code: Which pixel value is which.
    """

    class_names: tuple[str, ...]
    code: MaskCode


def read_label_images(
    folder: Path,
    notices: list[str],
    *,
    masks: bool = False,
    strict: bool = False,
    colors: Mapping[str, Any] | str | Path | None = None,
) -> dict[str, Table]:
    """Read images with a mask each: ``X.jpg`` with ``X_mask.png``, or ``images/`` beside ``masks/`` (labels, ...).

    What the values mean is said by a file beside them (``_classes.csv``, ``class_dict.csv``, ``labelmap.txt``,
    ``classes.json``, ``classes.txt``), or by ``colors``. Without it values are class indices, those of a palette too;
    0 and 255 alone are background and foreground, otherwise 255 is unknown. JPEG files do not keep values: without a
    table, those near 0 and 255 are background and foreground, and anything else is refused. Where there are colors in a
    table, a palette is looked up, since programs number it as they like.

    The split comes from ``ImageSets/Segmentation/*.txt``, ``train.txt`` and ``val.txt``, or names of folders.

    Args:
        folder: The folder.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Ignored: there are masks.
        strict: Refuse what is wrong instead of leaving it out.
        colors: Color, as red, green and blue or as #rrggbb, or pixel value of each class; or the path of such a file.

    Returns:
        A table for each split that there is.

    Raises:
        DataError: If the data cannot be used.
    """
    root = descend(folder)
    pairs = find_pairs(root)
    if pairs is None:
        raise DataError(
            f"There are no images with masks in {folder}. Name masks like X_mask.png beside X.jpg, or put them in "
            "masks/ beside images/."
        )
    report = Report(strict)
    for name in pairs.unlabelled:
        report.add("images without a mask", "left out", name)
    for name in pairs.alone:
        report.add("masks without an image", "left out", name)
    splits = ordered({split: found for split, found in pairs.splits(root, notices, report).items() if found})
    facts = mask_facts([pair.mask for found in splits.values() for pair in found])
    readable = [fact for pair in splits["train"] if not isinstance(fact := facts[pair.mask], Problem)]
    jpegs = [pair.mask.name for pair in splits["train"] if pair.mask.suffix.lower() in _LOSSY]
    reading = _reading(root, readable, Path(colors) if isinstance(colors, str) else colors, notices, bool(jpegs))
    if jpegs:
        notices.append(f"{len(jpegs)} masks are JPEG files, which do not keep values exactly: {join_names(jpegs)}.")
    return mask_tables(splits, root, reading, facts, notices, report)


def _reading(
    root: Path, facts: Sequence[MaskFacts], colors: Mapping[str, Any] | Path | None, notices: list[str], lossy: bool
) -> Reading:
    """How to read masks: by a table in the way that knows more of what is there, or by their values alone."""
    table = find_class_table(root) if colors is None else class_table(colors)
    if table is None:
        return _by_values(root, facts, notices, lossy)

    def known(code: MaskCode) -> int:
        return sum(len(found) for one in facts for found in [code.classes_in(one)[0]])

    code = max(table.codes(), key=known)
    if not known(code):
        raise DataError(f"The masks in {root} hold nothing that {table.source} names: {_shown(facts)}. Correct it.")
    return Reading(table.names, code)


def _shown(facts: Sequence[MaskFacts]) -> str:
    values = sorted({value for one in facts for value in one.values or ()})
    colors = sorted({color for one in facts if one.values is None for color in one.colors})
    return (
        join_names([str(value) for value in values] + [color_name(color) for color in colors], 10) or "nothing at all"
    )


def _by_values(root: Path, facts: Sequence[MaskFacts], notices: list[str], lossy: bool) -> Reading:
    if any(one.values is None for one in facts):
        colored = [one for one in facts if one.values is None]
        raise DataError(
            f"The masks in {root} are in colors, and no file says which is which: {_shown(colored)}. Give `colors`, or "
            "put a labelmap.txt with a line like road:128,64,128 there."
        )
    values = sorted({value for one in facts for value in one.values or ()})
    if (values and set(values) <= {0, 1}) or values == [0, IGNORED]:
        return Reading(_TWO, MaskCode(False, (0, values[-1] or 1), (0, 1)))
    if lossy:
        return _by_ends(root, facts, notices)
    if IGNORED in values:
        notices.append("Pixels of value 255 are taken for unknown, since no file names the classes.")
    named = [value for value in values if value != IGNORED]
    if not 0 < len(named) <= _MOST:
        raise DataError(
            f"The masks in {root} have {len(named)} values, and no file says which are classes. Add a _classes.csv, or "
            "write masks without soft edges."
        )
    return Reading(tuple(map(str, named)), MaskCode(False, tuple(named), tuple(range(len(named)))))


def _by_ends(root: Path, facts: Sequence[MaskFacts], notices: list[str]) -> Reading:
    """Background and foreground that lossy compression has smeared: nearly all pixels are near 0 or 255."""
    pixels: Counter[int] = Counter()
    for one in facts:
        pixels.update(dict(zip(one.values or (), one.counts, strict=True)))
    dark, bright = (sum(pixels[value] for value in ends) for ends in (range(64), range(192, 256)))
    if not bright or dark + bright < _NEARLY * sum(pixels.values()):
        raise DataError(
            f"The masks in {root} are JPEG files, which do not keep values exactly, and no file says which of their "
            f"{len(pixels)} values are classes. Write them as PNG files from where they come from."
        )
    notices.append("Pixels of JPEG masks are taken for foreground from value 128 on, and below for background.")
    return Reading(_TWO, MaskCode(False, tuple(range(256)), (0,) * 128 + (1,) * 128))


def mask_tables(
    splits: Mapping[str, Sequence[Pair]],
    root: Path,
    reading: Reading,
    facts: Mapping[Path, MaskFacts | Problem],
    notices: list[str],
    report: Report,
) -> dict[str, Table]:
    """Check masks against their images, report it, and make tables.

    Masks that cannot be read or differ in size from their image are left out with it; values that mean nothing are
    unknown pixels. A split without any known pixel, as the public test data of some benchmarks, is left out.

    Raises:
        DataError: If there is nothing to train on, or with ``report.strict`` if anything is wrong.
    """
    sizes = image_sizes([pair.image for found in splits.values() for pair in found])
    tables: dict[str, Table] = {}
    for split, found in splits.items():
        present: dict[Pair, dict[int, int]] = {}
        for pair in found:
            fact, name = facts[pair.mask], relative(pair.mask, root)
            if isinstance(fact, Problem):
                report.add("masks that cannot be read", "left out with their images", f"{name} ({fact.reason})")
            elif _fits(fact, name, sizes.get(pair.image), report):
                present[pair] = _classes(fact, name, reading.code, report)
        if any(present.values()):
            images, paths = [pair.image for pair in present], [pair.mask for pair in present]
            ids, classes = [pair.id for pair in present], list(present.values())
            tables[split] = MaskTable(images, paths, ids, reading.class_names, reading.code, classes)
        elif present:
            notices.append(f"{split}: left out, since no mask of it has a pixel of a class.")
    report.close(notices)
    if "train" not in tables:
        raise DataError(f"No mask to train on is left in {root}. {' '.join(notices)}".rstrip())
    return tables


def _classes(fact: MaskFacts, name: str, code: MaskCode, report: Report) -> dict[int, int]:
    classes, unknown = code.classes_in(fact)
    if unknown:
        shown = join_names([color_name(one) if code.by_color else str(one) for one in unknown], 3)
        report.add("masks with values that stand for no class", "which are unknown there", f"{name} ({shown})")
    return classes


def _fits(fact: MaskFacts, name: str, size: tuple[int, int] | None, report: Report) -> bool:
    if size is not None and size != (fact.width, fact.height):
        sizes = f"{fact.width}x{fact.height}, the image {size[0]}x{size[1]}"
        report.add("masks of another size than their image", "left out with it", f"{name} ({sizes})")
        return False
    return True
