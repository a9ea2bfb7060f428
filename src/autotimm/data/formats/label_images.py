"""Label images: a mask per image whose pixel values or colors give the class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.data.annotations.masks import IGNORED, MaskCode, MaskFacts, MaskTable, color_name
from autotimm.data.file_facts import Problem, image_sizes, mask_facts
from autotimm.data.formats.class_tables import class_table, find_class_table
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, ordered
from autotimm.data.formats.listing import Listing, relative
from autotimm.data.formats.mask_pairs import Pair, find_pairs
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["LabelImages", "MaskReading", "mask_tables", "read_label_images"]

_TWO_CLASSES = ("background", "foreground")
_LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
_NEARLY_ALL = 0.98  # of the pixels; the others are edges that were soft before, and compression artifacts
_MAX_VALUES = 200  # gray values without names: with more, masks are photographs or have soft edges


class LabelImages(Format):
    """Images with a mask each: ``X.jpg`` with ``X_mask.png``, or ``images/`` beside ``masks/`` (labels, ...).

    A file beside them (``_classes.csv``, ``class_dict.csv``, ``labelmap.txt``, ``classes.json``, ``classes.txt``), or
    ``colors``, says what the values mean. Without it values are class indices, those of a palette too; 0 and 255 alone
    are background and foreground, otherwise 255 is unknown. JPEG files do not keep values: without a table, those near
    0 and 255 are background and foreground, and anything else is refused. Where a table has colors, palettes are read
    by color, since programs number them as they like.

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
        for name in pairs.unlabelled:
            report.add("images without a mask", "left out", name)
        for name in pairs.alone:
            report.add("masks without an image", "left out", name)
        splits = {split: items for split, items in pairs.splits(root, notices, report).items() if items}
        splits = ordered(splits)
        facts = mask_facts([pair.mask for items in splits.values() for pair in items])
        readable = [fact for pair in splits["train"] if not isinstance(fact := facts[pair.mask], Problem)]
        jpegs = [pair.mask.name for pair in splits["train"] if pair.mask.suffix.lower() in _LOSSY]
        colors = Path(colors) if isinstance(colors, str) else colors
        reading = _reading(listing, readable, colors, notices, bool(jpegs))
        if jpegs:
            notices.append(f"{len(jpegs)} masks are JPEG files, which do not keep values exactly: {join_names(jpegs)}.")
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
    """

    class_names: tuple[str, ...]
    code: MaskCode


def _reading(
    listing: Listing, facts: Sequence[MaskFacts], colors: Mapping[str, Any] | Path | None, notices: list[str],
    lossy: bool,
) -> MaskReading:  # fmt: skip
    """How to read masks: by a table, in the way that gives more pixels a class, or by their values alone."""
    root = listing.root
    table = find_class_table(listing) if colors is None else class_table(colors)
    if table is None:
        return _by_values(root, facts, notices, lossy)

    def known_classes(code: MaskCode) -> int:
        return sum(len(code.classes_in(fact)[0]) for fact in facts)

    code = max(table.codes(), key=known_classes)
    if not known_classes(code):
        raise DataError(
            f"The masks in {root} have no value that {table.source} names: they have {_values(facts)}. Correct that "
            "file."
        )
    return MaskReading(table.names, code)


def _values(facts: Sequence[MaskFacts]) -> str:
    values = sorted({value for fact in facts for value in fact.values or ()})
    colors = sorted({color for fact in facts if fact.values is None for color in fact.colors})
    return join_names([str(value) for value in values] + [color_name(color) for color in colors], 10) or "no pixels"


def _by_values(root: Path, facts: Sequence[MaskFacts], notices: list[str], lossy: bool) -> MaskReading:
    if colored := [fact for fact in facts if fact.values is None]:
        raise DataError(
            f"The masks in {root} are colored, and no file says which color is which class: {_values(colored)}. Give "
            "`colors`, or add a labelmap.txt with a line like road:128,64,128."
        )
    values = sorted({value for fact in facts for value in fact.values or ()})
    if (values and set(values) <= {0, 1}) or values == [0, IGNORED]:
        return MaskReading(_TWO_CLASSES, MaskCode(False, (0, values[-1] or 1), (0, 1)))
    if lossy:
        return _by_brightness(root, facts, notices)
    if IGNORED in values:
        notices.append("Pixels of value 255 are treated as unknown, since no file names the classes.")
    classes = [value for value in values if value != IGNORED]
    if not 0 < len(classes) <= _MAX_VALUES:
        raise DataError(
            f"The masks in {root} have {len(classes)} values, and no file says which are classes. Add a _classes.csv, "
            "or write masks without soft edges."
        )
    return MaskReading(tuple(map(str, classes)), MaskCode(False, tuple(classes), tuple(range(len(classes)))))


def _by_brightness(root: Path, facts: Sequence[MaskFacts], notices: list[str]) -> MaskReading:
    """Background and foreground blurred by lossy compression: nearly all pixels are near 0 or 255."""
    pixels: Counter[int] = Counter()
    for fact in facts:
        pixels.update(dict(zip(fact.values or (), fact.counts, strict=True)))
    dark, bright = (sum(pixels[value] for value in values) for values in (range(64), range(192, 256)))
    if not bright or dark + bright < _NEARLY_ALL * sum(pixels.values()):
        raise DataError(
            f"The masks in {root} are JPEG files, which do not keep values exactly, and no file says which of their "
            f"{len(pixels)} values are classes. Export them again as PNG files."
        )
    notices.append("Pixels of JPEG masks count as foreground from value 128 on, and as background below.")
    return MaskReading(_TWO_CLASSES, MaskCode(False, tuple(range(256)), (0,) * 128 + (1,) * 128))


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
        present: dict[Pair, dict[int, int]] = {}
        for pair in pairs:
            fact, name = facts[pair.mask], relative(pair.mask, root)
            if isinstance(fact, Problem):
                report.add("masks that cannot be read", "left out with their images", f"{name} ({fact.reason})")
            elif _has_size(fact, name, sizes.get(pair.image), report):
                present[pair] = _classes(fact, name, reading.code, report)
        if any(present.values()):
            images, masks = [pair.image for pair in present], [pair.mask for pair in present]
            ids, classes = [pair.id for pair in present], list(present.values())
            tables[split] = MaskTable(images, masks, ids, reading.class_names, reading.code, classes)
        elif present:
            notices.append(f"{split}: left out, since none of its masks has a pixel of a class.")
    report.close(notices)
    if "train" not in tables:
        raise DataError(f"No mask to train on is left in {root}. {' '.join(notices)}".rstrip())
    return tables


def _classes(fact: MaskFacts, name: str, code: MaskCode, report: Report) -> dict[int, int]:
    classes, unknown = code.classes_in(fact)
    if unknown:
        values = join_names([color_name(value) if code.by_color else str(value) for value in unknown], 3)
        report.add("masks with values that stand for no class", "which are unknown there", f"{name} ({values})")
    return classes


def _has_size(fact: MaskFacts, name: str, size: tuple[int, int] | None, report: Report) -> bool:
    """Whether a mask has the size of its image, as far as that is known."""
    if size is not None and size != (fact.width, fact.height):
        sizes = f"{fact.width}x{fact.height}, the image {size[0]}x{size[1]}"
        report.add("masks of another size than their image", "left out with it", f"{name} ({sizes})")
        return False
    return True
