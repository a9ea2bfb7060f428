"""Which mask belongs to which image, by the names of files and folders."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from autotimm.data.formats.data_format import Report, by_split, listed, read_lists
from autotimm.data.formats.listing import ListedFile, Listing, near_name
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


def _folder_pattern(words: str) -> re.Pattern[str]:
    """Matches a folder with one of some names, perhaps with that of a split before or behind it."""
    return re.compile(rf"(?:({_SPLIT})\d*[-_ ]?)?(?:{words})(?:[-_ ]?({_SPLIT})\d*)?", re.IGNORECASE)


_MASK_FOLDER, _IMAGE_FOLDER = _folder_pattern(_MASKS), _folder_pattern(_IMAGES)


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
    """The images and masks of a folder.

    Attributes:
        pairs: The pairs, in byte order of the images.
        unlabelled: Images without a mask.
        alone: Masks without an image.
        layout: How they are laid out, for people.
        duplicates: Two files each where one image or one mask is expected.
        differing: Masks of nearly the name of their image.
    """

    pairs: list[Pair]
    unlabelled: list[str]
    alone: list[str]
    layout: str
    duplicates: list[str]
    differing: list[str]

    def splits(self, root: Path, notices: list[str], report: Report) -> dict[str, list[Pair]]:
        """The pairs of each split: by ``ImageSets/Segmentation``, by lists, or by names of folders."""
        for name in self.differing:
            report.add("masks that their images write differently", "used all the same", name)
        lists = read_lists(root / "ImageSets" / "Segmentation") or read_lists(root)
        if lists:
            return listed({pair.id: pair for pair in self.pairs}, lists, notices, report)
        return by_split((pair.id.rpartition("/")[0], pair) for pair in self.pairs)


def find_pairs(listing: Listing) -> Pairs | None:
    """Find images and masks: ``X.jpg`` with ``X_mask.png``, or folders beside each other.

    Returns:
        ``None`` if there are none, or fewer pairs than masks without an image.

    Raises:
        DataError: If an image has two masks.
    """
    matches = [_match(listing.images_below(), key_of, layout) for key_of, layout in _LAYOUTS]
    best = max(matches, key=lambda match: len(match.pairs))
    if not best.pairs or len(best.pairs) < len(best.alone):
        return None
    if best.duplicates:
        raise DataError(
            f"{listing.root} has two files for one image or mask: {best.duplicates[0]}. Remove one of them."
        )
    return best


_Names = tuple[str, ...]  # what a file has in common with its partner
_Key = tuple[bool, _Names]  # whether a file is a mask, and these names


def _key_by_name(folder: str, stem: str) -> _Key:
    base = _SUFFIX.sub("", stem)
    return base != stem, (folder, base)


def _key_by_folders(folder: str, stem: str) -> _Key:
    is_mask, key = _folder_key(folder)
    return is_mask, (*key, _SUFFIX.sub("", stem) if is_mask else stem)


@functools.lru_cache(maxsize=1024)
def _folder_key(folder: str) -> _Key:
    """The folders without the words for masks and images; the names of splits are kept."""
    is_mask = False
    key: list[str] = []
    for part in folder.split("/"):
        mask, image = _MASK_FOLDER.fullmatch(part), _IMAGE_FOLDER.fullmatch(part)
        is_mask = is_mask or mask is not None
        match = mask or image
        key += [part] if match is None else [split.lower() for split in match.groups() if split]
    return is_mask, tuple(key)


_LAYOUTS: tuple[tuple[Callable[[str, str], _Key], str], ...] = (
    (_key_by_name, "masks beside their images"),
    (_key_by_folders, "masks in folders of their own"),
)


def _match(files: Sequence[ListedFile], key_of: Callable[[str, str], _Key], layout: str) -> Pairs:
    images: dict[_Names, ListedFile] = {}
    masks: dict[_Names, ListedFile] = {}
    duplicates: list[str] = []
    for file in files:
        folder, _, name = file.name.rpartition("/")
        if _NEITHER in folder.lower():
            continue
        is_mask, key = key_of(folder, os.path.splitext(name)[0])
        first = (masks if is_mask else images).setdefault(key, file)
        if first is not file:
            duplicates.append(f"{first.name} and {file.name}")
    differing = []
    for key, similar in _nearly_equal(images.keys() - masks.keys(), masks.keys() - images.keys()):
        masks[key] = masks.pop(similar)
        differing.append(f"{masks[key].name} ({images[key].name})")
    pairs = [Pair(image.path, masks[key].path, image.name) for key, image in images.items() if key in masks]
    unlabelled = [image.name for key, image in images.items() if key not in masks]
    alone = [mask.name for key, mask in masks.items() if key not in images]
    return Pairs(pairs, unlabelled, alone, layout, duplicates, sorted(differing))


def _nearly_equal(images: Iterable[_Names], masks: Iterable[_Names]) -> Iterator[tuple[_Names, _Names]]:
    """The keys of images and masks that differ only in how tools write names, where each has one partner."""
    by_name: dict[_Names, tuple[list[_Names], list[_Names]]] = {}
    for side, keys in enumerate((images, masks)):
        for key in keys:
            by_name.setdefault(tuple(map(near_name, key)), ([], []))[side].append(key)
    return ((first[0], second[0]) for first, second in by_name.values() if len(first) == len(second) == 1)
