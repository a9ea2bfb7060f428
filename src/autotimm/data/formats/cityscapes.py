"""Cityscapes: ``leftImg8bit/`` and ``gtFine/``, with the 19 classes that everybody trains on."""

from __future__ import annotations

from pathlib import Path

from autotimm.data.annotations.masks import IGNORED, MaskCode
from autotimm.data.file_facts import mask_facts
from autotimm.data.formats.label_images import Reading, mask_tables
from autotimm.data.formats.mask_pairs import Pair
from autotimm.data.formats.object_records import Report
from autotimm.data.formats.split_layout import by_split, descend, images_below, ordered, relative
from autotimm.data.table import Table
from autotimm.errors import DataError

__all__ = ["is_cityscapes", "read_cityscapes"]

_CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
_OTHERS = tuple(value for value in range(34) if value not in _CLASSES)  # void, or too rare to be scored


def is_cityscapes(root: Path) -> bool:
    """Whether a folder is laid out like Cityscapes."""
    return (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir()


def read_cityscapes(folder: Path, notices: list[str], *, masks: bool = False, strict: bool = False) -> dict[str, Table]:
    """Read ``leftImg8bit/<split>/<city>/X_leftImg8bit.png`` with ``gtFine/<split>/<city>/X_gtFine_labelIds.png``.

    The 34 label ids become the 19 train ids of the benchmark; the others are unknown. ``labelTrainIds`` are read where
    there are no label ids. The test labels that can be downloaded are empty; such a split is left out.

    Args:
        folder: The folder.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Ignored: there are masks.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table for each split that there is.

    Raises:
        DataError: If the data cannot be used.

    See:
        Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016;
        cityscapesscripts/helpers/labels.py.
    """
    root, report = descend(folder), Report(strict)
    if not is_cityscapes(root):
        raise DataError(f"{folder} has no leftImg8bit/ and gtFine/. Give the folder that holds both.")
    files = {one.path for one in images_below(root / "gtFine")}
    trained = not any(path.name.endswith("_labelIds.png") for path in files)
    kind = "labelTrainIds" if trained else "labelIds"
    pairs = []
    labelled = [
        folder for folder in sorted((root / "leftImg8bit").iterdir()) if (root / "gtFine" / folder.name).is_dir()
    ]
    for image in (one.path for folder in labelled for one in images_below(folder)):
        stem = image.stem.removesuffix("_leftImg8bit")
        mask = root / "gtFine" / image.parent.relative_to(root / "leftImg8bit") / f"{stem}_gtFine_{kind}.png"
        if mask in files:
            pairs.append(Pair(image, mask, relative(image, root)))
        else:
            report.add("images without a mask", "left out", relative(image, root))
    # The parts of a path after the city may say anything: the split is the first folder.
    splits = ordered(by_split((pair.id.split("/")[1], pair) for pair in pairs))
    numbers, keys = tuple(range(len(_CLASSES))), tuple(_CLASSES)
    void = tuple(IGNORED for _ in _OTHERS)
    code = MaskCode(False, numbers, numbers) if trained else MaskCode(False, (*keys, *_OTHERS), (*numbers, *void))
    facts = mask_facts([pair.mask for found in splits.values() for pair in found])
    return mask_tables(splits, root, Reading(tuple(_CLASSES.values()), code), facts, notices, report)
