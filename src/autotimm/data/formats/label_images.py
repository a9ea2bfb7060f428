"""Label images: a mask per image whose pixel values or colors give the class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.data.annotations.masks import IGNORED, MaskCode, MaskFacts, MaskTable, color_name
from autotimm.data.file_facts import Problem, image_sizes, mask_facts
from autotimm.data.formats.class_tables import ClassTable, class_table, find_class_table
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, ordered
from autotimm.data.formats.listing import Listing, relative
from autotimm.data.formats.mask_pairs import Pair, find_pairs
from autotimm.data.formats.mask_values import (
    MaskValues,
    SoftCode,
    areas_among,
    is_stretched,
    palettes_differ,
    with_soft_edges,
)
from autotimm.data.image_io import UNTURNED, is_turned
from autotimm.data.image_reading import current_reading
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["LabelImages", "MaskReading", "mask_reading", "mask_tables", "read_label_images"]

_TWO_CLASSES = ("background", "foreground")
_LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
_FEW = 0.02  # of the pixels
_FEWEST = 0.002
_MAX_VALUES = 200  # gray values without names: with more, masks are photographs or have soft edges


class LabelImages(Format):
    """Images with a mask each: ``X.jpg`` with ``X_mask.png``, or ``images/`` beside ``masks/`` (labels, ...).

    A file beside them (``_classes.csv``, ``class_dict.csv``, ``labelmap.txt``, ``classes.json``, ``classes.txt``), or
    ``colors``, says what the values mean. Without it values are class indices, those of a palette too; 0 and 255 alone
    are background and foreground, otherwise 255 is unknown. Where a table has colors, palettes are read by color, since
    programs number them as they like, and the order of its lines is no number; a table that does not fit is refused.

    Where nearly all pixels lie on few values that make areas, as in masks that were resized with smoothing and in JPEG
    files, the others are soft edges and count as the nearest of these, which is reported.

    The split comes from ``ImageSets/Segmentation/*.txt``, ``train.txt`` and ``val.txt``, or names of folders.
    """

    name = "masks"
    tasks = ("segmentation",)

    def see(self, listing: Listing) -> Sighting | None:
        """Images and masks that can be paired by their names."""
        pairs = None if listing.file is not None else find_pairs(listing)
        return None if pairs is None else Sighting(f"{len(pairs.pairs)} {pairs.layout}", self.tasks)

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, Table]:
        """Read the pairs; see the base class."""
        root, colors = listing.root, options.colors
        pairs = find_pairs(listing)
        if pairs is None:
            raise DataError(
                f"There are no images with masks in {listing.path}. Name masks like X_mask.png beside X.jpg, or put "
                "them in masks/ beside images/."
            )
        report = Report(options.strict)
        splits = ordered(pairs.used(root, notices, report))
        facts = mask_facts([pair.mask for items in splits.values() for pair in items])
        colors = Path(colors) if isinstance(colors, str) else colors
        table = find_class_table(listing, notices) if colors is None else class_table(colors)
        reading = mask_reading(root, splits, facts, table, notices, report)
        return mask_tables(splits, root, reading, facts, notices, report)


def read_label_images(
    folder: Path,
    notices: list[str],
    *,
    masks: bool = False,
    strict: bool = False,
    colors: Mapping[str, Any] | str | Path | None = None,
) -> dict[str, Table]:
    """Read images with a mask each, see :class:`LabelImages`.

    Args:
        folder: The folder.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Ignored: there are masks.
        strict: Refuse what is wrong instead of leaving it out.
        colors: Color, as red, green and blue or as #rrggbb, or pixel value of each class; or the path of such a file.

    Returns:
        A table per split.

    Raises:
        DataError: If the data cannot be used.
    """
    return LabelImages().read(Listing(folder), notices, ReadOptions(masks, strict, colors))


class MaskReading(NamedTuple):
    """How masks are read.

    Attributes:
        class_names: The classes.
        code: Which pixel value is which.
        unknown: Values of areas that stand for no class although other values count as the nearest.
    """

    class_names: tuple[str, ...]
    code: MaskCode
    unknown: frozenset[int] = frozenset()


class _Masks(NamedTuple):
    """The masks of a folder, and whether some of those to train on are files that do not keep values."""

    root: Path
    splits: Mapping[str, Sequence[Pair]]
    facts: Mapping[Path, MaskFacts | Problem]
    lossy: bool

    def readable(self, *splits: str) -> list[MaskFacts]:
        """What is known of the masks of some splits, by default of all."""
        pairs = [pair for split in splits or self.splits for pair in self.splits[split]]
        return [fact for pair in pairs if not isinstance(fact := self.facts[pair.mask], Problem)]


def mask_reading(
    root: Path,
    splits: Mapping[str, Sequence[Pair]],
    facts: Mapping[Path, MaskFacts | Problem],
    table: ClassTable | None,
    notices: list[str],
    report: Report,
) -> MaskReading:
    """How to read masks, by a class table or by their values alone.

    Raises:
        DataError: If it cannot be told, or the table does not fit the masks.
    """
    jpegs = [pair.mask.name for pair in splits["train"] if pair.mask.suffix.lower() in _LOSSY]
    masks = _Masks(root, splits, facts, bool(jpegs))
    if not masks.readable("train"):
        problems = [
            f"{relative(pair.mask, root)} ({fact.reason})"
            for pair in splits["train"]
            if isinstance(fact := facts[pair.mask], Problem)
        ]
        raise DataError(
            f"None of the masks in {root} can be read: {join_names(problems)}. Export them again as PNG files of whole "
            "numbers."
        )
    reading = _by_values(masks, notices) if table is None else _by_table(masks, table, notices)
    _report_edges(masks, reading, report)
    if jpegs:
        notices.append(f"{len(jpegs)} masks are JPEG files, which do not keep values exactly: {join_names(jpegs)}.")
    return reading


def _by_table(masks: _Masks, table: ClassTable, notices: list[str]) -> MaskReading:
    """How to read masks by a table, in the way that gives more pixels a class."""
    train, everything = masks.readable("train"), masks.readable()
    highest = max((value for fact in everything for value in fact.values or () if value != IGNORED), default=0)
    if table.counts_from_one(highest):
        notices.append(f"{table.source} has a line for each of the values 1 to {len(table.rows)}; 0 is unknown.")
        table = table.from_one()
    codes = table.codes()
    if palettes_differ(everything):
        if codes[0].by_color:
            codes = codes[:1]
        elif not table.has_values:
            found = MaskValues.of(train, by_color=True).described()
            raise DataError(
                f"The masks in {masks.root} have palettes that differ, so that their colors count, and {table.source} "
                f"has none. They have {found}. Give the color of each class there, or its `value` if indices count."
            )
        else:
            notices.append(
                f"The masks have different palettes. Their indices are read as {table.source} says, and colors are not."
            )

    def known_classes(code: MaskCode) -> int:
        return sum(len(code.classes_in(fact)[0]) for fact in train)

    code = max(codes, key=known_classes)
    values = MaskValues.of(everything, code.by_color)
    soft = with_soft_edges(code, values, masks.lossy)
    _check_fit(masks, table, code, soft, train)
    return MaskReading(table.names, *soft)


def _check_fit(masks: _Masks, table: ClassTable, code: MaskCode, soft: SoftCode, train: Sequence[MaskFacts]) -> None:
    """Refuse a table that does not belong to the masks: they show none of its classes, or one and something else.

    A class that is black in every table is found in nearly all masks, and tells nothing.
    """
    pixels: Counter[int] = Counter()
    for fact in train:
        pixels.update(soft.code.classes_in(fact)[0])
    values = MaskValues.of(train, code.by_color)
    # An edge may have the color of a class that is nowhere.
    fewest = _FEWEST * values.total if soft.code.nearest else 0
    found = {index for index, count in pixels.items() if count > fewest}
    others = {value for value in values.pixels if value >= 0 and value not in code.keys}
    if soft.code.nearest:
        others &= set(soft.code.keys)  # without the edges
    unnamed = sum(values.pixels[value] for value in others)
    if found and (len(found) >= min(2, len(table.names)) or unnamed <= _FEW * values.total):
        return
    seen = MaskValues.of(train, code.by_color or any(fact.values is None or fact.palette for fact in train))
    named = [color_name(row.color) for row in table.rows if row.color is not None] or list(map(str, code.keys))
    what = "colors" if table.has_colors else "values"
    few = "no other than" if found else "none"
    only = f" {join_names([table.names[index] for index in sorted(found)])}" if found else ""
    are_indices = table.has_colors and not table.has_values and all(fact.values is not None for fact in train)
    raise DataError(
        f"The masks in {masks.root} do not fit {table.source}: of its {what} ({join_names(named, 8)}) they have "
        f"{few}{only}. They have {seen.described()}. Name the class of each of these in that file, or in `colors`."
        + (" If the masks hold class indices, give each class its `value` there." if are_indices else "")
    )


def _by_values(masks: _Masks, notices: list[str]) -> MaskReading:
    """How to read masks without a table: values are classes, except where edges are soft."""
    root, train = masks.root, masks.readable("train")
    colored = [fact for fact in train if fact.values is None]
    if colored or palettes_differ(masks.readable()):
        what = "are colored" if colored else "have palettes that differ, so that their colors count"
        found = MaskValues.of(colored or train, by_color=True).described()
        raise DataError(
            f"The masks in {root} {what}, and no file says which color is which class: {found}. Give `colors`, or add "
            "a labelmap.txt with a line like road:128,64,128 for each."
        )
    values = MaskValues.of(train, by_color=False)
    areas = areas_among(values, masks.lossy) if values.pixels.keys() - {0, 1} else None
    if areas == [] and masks.lossy:
        raise DataError(
            f"The masks in {root} are JPEG files, which do not keep values exactly, and no file says which of their "
            f"{len(values.pixels)} values are classes. Export them again as PNG files."
        )
    classes = _classes_of(sorted(values.pixels) if areas is None else areas, areas is not None, notices)
    if areas == [] or not 0 < len(classes) <= _MAX_VALUES:
        raise DataError(
            f"The masks in {root} have {len(values.pixels.keys() - {IGNORED})} values, and no file says which are "
            f"classes: {values.described(5)}. Add a _classes.csv, or write masks without soft edges."
        )
    if values.pixels.keys() <= {0, 1}:
        classes = [0, 1]
    is_object = classes == [0, IGNORED] or values.pixels.keys() <= {0, 1} or (areas is not None and len(classes) == 2)
    names = _TWO_CLASSES if is_object else tuple(map(str, classes))
    return MaskReading(names, MaskCode(False, tuple(classes), tuple(range(len(classes))), nearest=areas is not None))


def _classes_of(values: Sequence[int], painted: bool, notices: list[str]) -> list[int]:
    """The values that are classes; negative ones are none.

    255 is unknown beside indices, and a class where no two others are left or grays were painted to be seen: those
    spread evenly, and those far apart with soft edges.
    """
    if any(value < 0 for value in values):
        notices.append("Pixels of negative values are treated as unknown, since no file names the classes.")
        values = [value for value in values if value >= 0]
    others = [value for value in values if value != IGNORED]
    if len(others) == len(values) or len(others) == 1:
        return list(values)
    if painted or is_stretched(values):
        listed = join_names(list(map(str, values)))
        notices.append(
            f"Pixels of value 255 are a class, since the values seem to be painted as grays, not as indices: {listed}. "
            "If they are unknown, name the classes in a _classes.csv."
        )
        return list(values)
    notices.append("Pixels of value 255 are treated as unknown, since no file names the classes.")
    return others


def _report_edges(masks: _Masks, reading: MaskReading, report: Report) -> None:
    """Report masks with values between those of classes."""
    code = reading.code
    if not code.nearest:
        return
    name = color_name if code.by_color else str
    listed = join_names([name(key) for key in code.keys if key not in reading.unknown], 8)
    consequence = f"whose other pixels count as the nearest of {listed}"
    for pair in (pair for pairs in masks.splits.values() for pair in pairs):
        fact = masks.facts[pair.mask]
        if isinstance(fact, Problem):
            continue
        keys = fact.colors if code.by_color else fact.values or ()
        if fact.many or any(key not in code.keys for key in keys):
            report.add("masks with soft edges", consequence, relative(pair.mask, masks.root))
        if unknown := [name(key) for key in keys if key in reading.unknown]:
            detail = f"{relative(pair.mask, masks.root)} ({join_names(unknown, 3)})"
            report.add("masks with values that stand for no class", "which are unknown there", detail)


def mask_tables(
    splits: Mapping[str, Sequence[Pair]],
    root: Path,
    reading: MaskReading,
    facts: Mapping[Path, MaskFacts | Problem],
    notices: list[str],
    report: Report,
) -> dict[str, Table]:
    """Check masks against their images, report what is wrong, and make tables.

    Masks that cannot be read or differ in size from their image are left out with it; values that stand for no class
    are unknown pixels. A split without any known pixel, as the public test data of some benchmarks, is left out.

    Raises:
        DataError: If there is nothing to train on, or with ``report.strict`` if anything is wrong.
    """
    sizes = image_sizes([pair.image for pairs in splits.values() for pair in pairs])
    tables: dict[str, Table] = {}
    for split, pairs in splits.items():
        seen: dict[Pair, _Seen] = {}
        for pair in pairs:
            fact, name = facts[pair.mask], relative(pair.mask, root)
            if isinstance(fact, Problem):
                report.add("masks that cannot be read", "left out with their images", f"{name} ({fact.reason})")
            elif _has_size(fact, pair.image, name, sizes.get(pair.image), report):
                seen[pair] = _Seen(*reading.code.classes_in(fact))
        kept = {pair: classes for pair, (classes, _) in seen.items() if classes}
        for pair, (classes, unknown) in seen.items():
            _report_unknown(relative(pair.mask, root), classes, unknown, bool(kept), reading.code, report)
        if kept:
            images, masks = [pair.image for pair in kept], [pair.mask for pair in kept]
            ids, present = [pair.id for pair in kept], list(kept.values())
            tables[split] = MaskTable(images, masks, ids, reading.class_names, reading.code, present)
        elif seen:
            notices.append(f"{split}: left out, since none of its masks has a pixel of a class.")
    report.close(notices)
    if "train" not in tables:
        raise DataError(f"No mask to train on is left in {root}. {' '.join(notices)}".rstrip())
    return tables


class _Seen(NamedTuple):
    """What a mask shows: the pixels of each class, and the values that stand for none."""

    classes: dict[int, int]
    unknown: list[int]


def _report_unknown(
    name: str, classes: Mapping[int, int], unknown: Sequence[int], others: bool, code: MaskCode, report: Report
) -> None:
    """Report a mask with values that stand for no class, or with nothing else where others of its split have more."""
    values = join_names([color_name(value) if code.by_color else str(value) for value in unknown], 3)
    what = f"{name} ({values})" if unknown else name
    if not classes and others:
        report.add("masks without a pixel of a class", "left out with their images", what)
    elif unknown:
        report.add("masks with values that stand for no class", "which are unknown there", what)


def _has_size(fact: MaskFacts, image: Path, name: str, size: tuple[int, int] | None, report: Report) -> bool:
    """Whether a mask has the size of its image, as far as that is known."""
    if (
        size == (fact.height, fact.width) != (fact.width, fact.height)
        and current_reading().upright
        and is_turned(image)
    ):
        report.add("masks of images that an EXIF tag turns, and which are not turned", UNTURNED, name)
        return False
    if size is not None and size != (fact.width, fact.height):
        sizes = f"{fact.width}x{fact.height}, the image {size[0]}x{size[1]}"
        report.add("masks of another size than their image", "left out with it", f"{name} ({sizes})")
        return False
    return True
