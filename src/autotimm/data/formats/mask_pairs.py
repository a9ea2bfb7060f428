"""Which mask belongs to which image: told by names and folders."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from autotimm.data.formats.annotation_report import Report
from autotimm.data.formats.listing import Found
from autotimm.data.formats.split_layout import by_split, images_below, listed, read_lists
from autotimm.errors import DataError

__all__ = ["Pair", "Pairs", "find_pairs"]

_SPLIT = "train|training|val|valid|validation|test|testing"
_MASKS = (
    "masks?|labels?|annotations?|annots?|annotated|gt|groundtruth|ground_truth|segmentations?|seg|segmaps?|labelmaps?|"
    "targets?|segmentationclass(?:aug|png|raw)?|label_images|mask_images|png_masks|labelids"
)
_IMAGES = "images?|imgs?|jpegimages|jpgs?|photos?|pictures?|inputs?|originals?|rgb|frames?"
_SUFFIX = re.compile(r"[-_ ](?:masks?|labels?|seg|segmentation|gt|annotation|labelids|labeltrainids|l)$", re.IGNORECASE)
_NEITHER = "segmentationobject"  # VOC's masks of single objects


def _folder(words: str) -> re.Pattern[str]:
    """A folder with one of some names, perhaps with that of a split before or behind it."""
    return re.compile(rf"(?:({_SPLIT})\d*[-_ ]?)?(?:{words})(?:[-_ ]?({_SPLIT})\d*)?", re.IGNORECASE)


_MASK_FOLDER, _IMAGE_FOLDER = _folder(_MASKS), _folder(_IMAGES)


class Pair(NamedTuple):
    """An image and its mask.

    Attributes:
        image: The image.
        mask: The mask.
        id: The path of the image relative to the root.
    """

    image: Path
    mask: Path
    id: str


class Pairs(NamedTuple):
    """What was found.

    Attributes:
        pairs: The pairs, in byte order of the images.
        unlabelled: Images without a mask.
        alone: Masks without an image.
        layout: How they lie, for people.
        twice: Files where one image or one mask is expected.
    """

    pairs: list[Pair]
    unlabelled: list[str]
    alone: list[str]
    layout: str
    twice: list[str]

    def splits(self, root: Path, notices: list[str], report: Report) -> dict[str, list[Pair]]:
        """The pairs of each split: by ``ImageSets/Segmentation``, by lists, or by names of folders."""
        lists = read_lists(root / "ImageSets" / "Segmentation") or read_lists(root)
        if lists:
            return listed({pair.id: pair for pair in self.pairs}, lists, notices, report)
        return by_split((pair.id.rpartition("/")[0], pair) for pair in self.pairs)


def find_pairs(root: Path, files: Sequence[Found] | None = None) -> Pairs | None:
    """Find images and masks below a folder: ``X.jpg`` with ``X_mask.png``, or folders beside each other.

    Args:
        root: The folder.
        files: The images below it, if they were listed already.

    Returns:
        ``None`` if there are none, or they are the exception.

    Raises:
        DataError: If an image has two masks.
    """
    listed_files = images_below(root) if files is None else files
    found = [_match(listed_files, key, layout) for key, layout in _LAYOUTS]
    best = max(found, key=lambda one: len(one.pairs))
    if not best.pairs or len(best.pairs) < len(best.alone):
        return None
    if best.twice:
        raise DataError(f"{root} has two files for one image or mask: {best.twice[0]}. Take one of them away.")
    return best


_Keyed = tuple[bool, tuple[str, ...]]  # whether a file is a mask, and what it shares with its partner


def _beside(folder: str, stem: str) -> _Keyed:
    """By the name of the file."""
    base = _SUFFIX.sub("", stem)
    return base != stem, (folder, base)


def _parallel(folder: str, stem: str) -> _Keyed:
    """By the folders."""
    is_mask, key = _folders(folder)
    return is_mask, (*key, _SUFFIX.sub("", stem) if is_mask else stem)


@functools.lru_cache(maxsize=1024)
def _folders(folder: str) -> _Keyed:
    """What says mask or image is left out of the folders, what says the split is kept."""
    is_mask = False
    key: list[str] = []
    for part in folder.split("/"):
        mask, image = _MASK_FOLDER.fullmatch(part), _IMAGE_FOLDER.fullmatch(part)
        is_mask = is_mask or mask is not None
        said = mask or image
        key += [part] if said is None else [split.lower() for split in said.groups() if split]
    return is_mask, tuple(key)


_LAYOUTS: tuple[tuple[Callable[[str, str], _Keyed], str], ...] = (
    (_beside, "masks beside their images"),
    (_parallel, "masks in folders of their own"),
)


def _match(files: Sequence[Found], key_of: Callable[[str, str], _Keyed], layout: str) -> Pairs:
    images: dict[tuple[str, ...], Found] = {}
    masks: dict[tuple[str, ...], Found] = {}
    twice: list[str] = []
    for one in files:
        folder, _, name = one.name.rpartition("/")
        if _NEITHER in folder.lower():
            continue
        is_mask, key = key_of(folder, os.path.splitext(name)[0])
        before = (masks if is_mask else images).setdefault(key, one)
        if before is not one:
            twice.append(f"{before.name} and {one.name}")
    pairs = [Pair(one.path, masks[key].path, one.name) for key, one in images.items() if key in masks]
    unlabelled = [one.name for key, one in images.items() if key not in masks]
    alone = [one.name for key, one in masks.items() if key not in images]
    return Pairs(pairs, unlabelled, alone, layout, twice)
