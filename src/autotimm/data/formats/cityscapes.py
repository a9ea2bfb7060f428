"""Cityscapes: ``leftImg8bit/`` and ``gtFine/``, with the 19 classes of the benchmark."""

from __future__ import annotations

import os
from pathlib import Path

from autotimm.data.annotations.masks import IGNORED, MaskCode
from autotimm.data.file_facts import mask_facts
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, by_split, ordered
from autotimm.data.formats.instance_ids import InstanceIds
from autotimm.data.formats.instance_masks import InstanceMasks
from autotimm.data.formats.label_images import LabelImages, MaskReading, mask_tables
from autotimm.data.formats.listing import Listing, relative
from autotimm.data.formats.mask_pairs import Pair
from autotimm.data.table import Table
from autotimm.errors import DataError, UsageError

__all__ = ["Cityscapes", "read_cityscapes"]

_IMAGES, _MASKS = "leftImg8bit", "gtFine"
_CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
_OTHERS = tuple(value for value in range(34) if value not in _CLASSES)  # void, or too rare to be scored


class Cityscapes(Format):
    """``leftImg8bit/<split>/<city>/X_leftImg8bit.png`` with ``gtFine/<split>/<city>/X_gtFine_labelIds.png``.

    The 34 label ids become the 19 train ids of the benchmark; the others are unknown. ``labelTrainIds`` are read where
    there are no label ids. The test labels that can be downloaded are empty; such a split is left out.

    See:
        Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016;
        cityscapesscripts/helpers/labels.py.
    """

    name = "cityscapes"
    tasks = ("segmentation",)
    covers = (InstanceMasks, InstanceIds, LabelImages)

    def see(self, listing: Listing) -> Sighting | None:
        """Both folders."""
        there = listing.file is None and _is_cityscapes(listing.root)
        return Sighting("the folders of Cityscapes", self.tasks) if there else None

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, Table]:
        """Read the label images; see the base class."""
        if options.colors is not None:
            raise UsageError("The `colors` have no effect on Cityscapes, whose classes are fixed. Leave them out.")
        root, report = listing.root, Report(options.strict)
        if not _is_cityscapes(root):
            raise DataError(f"{listing.path} has no leftImg8bit/ and gtFine/. Give the folder that holds both.")
        masks = {image.path for image in listing.images_below(root / _MASKS)}
        has_train_ids = not any(path.name.endswith("_labelIds.png") for path in masks)
        kind = "labelTrainIds" if has_train_ids else "labelIds"
        pairs = []
        for folder in listing.folders(root / _IMAGES):
            labelled = listing.images_below(folder) if os.path.isdir(root / _MASKS / folder.name) else []
            for image in (file.path for file in labelled):
                stem = image.stem.removesuffix("_leftImg8bit")
                mask = root / _MASKS / image.parent.relative_to(root / _IMAGES) / f"{stem}_gtFine_{kind}.png"
                if mask in masks:
                    pairs.append(Pair(image, mask, relative(image, root)))
                else:
                    report.add("images without a mask", "left out", relative(image, root))
        # The folders below may be called anything: the split is the first of them.
        splits = ordered(by_split((pair.id.split("/")[1], pair) for pair in pairs))
        facts = mask_facts([pair.mask for split_pairs in splits.values() for pair in split_pairs])
        return mask_tables(splits, root, _reading(has_train_ids), facts, notices, report)


def read_cityscapes(folder: Path, notices: list[str], *, masks: bool = False, strict: bool = False) -> dict[str, Table]:
    """Read Cityscapes, see :class:`Cityscapes`.

    Args:
        folder: The folder.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Ignored: there are masks.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table per split.

    Raises:
        DataError: If the data cannot be used.
    """
    return Cityscapes().read(Listing(folder), notices, ReadOptions(masks, strict))


def _is_cityscapes(root: Path) -> bool:
    return os.path.isdir(root / _IMAGES) and os.path.isdir(root / _MASKS)


def _reading(has_train_ids: bool) -> MaskReading:
    train_ids = tuple(range(len(_CLASSES)))
    if has_train_ids:
        code = MaskCode(False, train_ids, train_ids)
    else:
        code = MaskCode(False, (*_CLASSES, *_OTHERS), (*train_ids, *(IGNORED for _ in _OTHERS)))
    return MaskReading(tuple(_CLASSES.values()), code)
