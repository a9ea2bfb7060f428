"""Which mask belongs to which image, by the names of files and folders."""

from __future__ import annotations

import functools
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from autotimm.data.formats.data_format import Report, by_split, listed, read_lists
from autotimm.data.formats.listing import ListedFile, Listing, near_name
from autotimm.errors import DataError

__all__ = ["Pair", "Pairs", "find_pairs", "is_image_folder", "is_mask_folder", "without_suffix"]

_SPLIT = "train|training|val|valid|validation|test|testing"
_MASKS = (
    "masks?|labels?|annotations?|annots?|annotated|gt|groundtruth|ground_truth|segmentations?|seg|segmaps?|labelmaps?|"
    "targets?|segmentationclass(?:aug|png|raw)?|label_images|mask_images|png_masks|labelids"
)
_IMAGES = "images?|imgs?|jpegimages|jpgs?|photos?|pictures?|inputs?|originals?|rgb|frames?"
_SUFFIX = re.compile(
    r"(?:[-_ ](?:cp|seg|inst|instance|gt))?"  # Cellpose writes X_cp_masks.png, StarDist's examples X_inst_labels.tif
    r"[-_ ](?:masks?|labels?|seg|segmentation|gt|annotation|labelids|labeltrainids|instances?|inst|l)$",
    re.IGNORECASE,
)
_MASK_NAME = re.compile(r"^(?:mask|label|seg|gt)(?:[-_ ]|(?=\d))", re.IGNORECASE)  # mask_1.png
_IMAGE_NAME = re.compile(  # image_1.png, or 000_img.png beside 000_masks.png, as Cellpose's own set has them
    r"^(?:image|img|photo|frame|rgb)(?:[-_ ]|(?=\d))|[-_ ](?:image|img|photo|rgb|input)$", re.IGNORECASE
)
_IN_NAMES = ("mask", "label", "anno", "gt", "ground", "seg", "target", "inst", "_l.", "-l.", " l.")
"""What is in the path of each mask that has a layout below."""
_OBJECTS = "segmentationobject"  # VOC's masks of single objects
_MASK_WORDS = {"mask", "masks", "label", "labels", "annotation", "annotations", "annots", "segmentations", "labelmaps"}
_IMAGE_WORDS = {"image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "frame", "frames"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # PedMasks, ped_masks and PNGImages are two words each


def _folder_pattern(words: str) -> re.Pattern[str]:
    """Matches a folder with one of some names, perhaps with that of a split before or behind it."""
    return re.compile(rf"(?:({_SPLIT})\d*[-_ ]?)?(?:{words})(?:[-_ ]?({_SPLIT})\d*)?", re.IGNORECASE)


_MASK_FOLDER, _IMAGE_FOLDER = _folder_pattern(_MASKS), _folder_pattern(_IMAGES)


def is_mask_folder(name: str) -> bool:
    """Whether a folder holds masks or annotations, whatever they show, and is no class.

    The plural counts: ``mask`` and ``with_mask`` are classes of a well-known data set.

    Example:
        >>> [is_mask_folder(name) for name in ("masks", "PedMasks", "train_labels", "Annotations", "with_mask")]
        [True, True, True, True, False]
    """
    words = _words(name)
    return bool(words) and words[-1] in _MASK_WORDS and words[-1].endswith("s")


def is_image_folder(name: str) -> bool:
    """Whether a folder is named after what images are, as ``images`` or ``PNGImages``, and not what they show."""
    words = _words(name)
    return bool(words) and words[-1] in _IMAGE_WORDS


def without_suffix(stem: str) -> str:
    """The name of a mask without an ending that says that it is one.

    Example:
        >>> without_suffix("a_mask"), without_suffix("a_cp_masks"), without_suffix("a_1")
        ('a', 'a', 'a_1')
    """
    return _SUFFIX.sub("", stem)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


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

    @property
    def of_objects(self) -> bool:
        """Whether the masks are those of VOC's objects."""
        return any(_OBJECTS in pair.mask.parent.name.lower() for pair in self.pairs)

    def used(self, root: Path, notices: list[str], report: Report) -> dict[str, list[Pair]]:
        """The splits that have pairs; what has no partner is reported."""
        for name in self.unlabelled:
            report.add("images without a mask", "left out", name)
        for name in self.alone:
            report.add("masks without an image", "left out", name)
        return {split: pairs for split, pairs in self.splits(root, notices, report).items() if pairs}


def find_pairs(listing: Listing, objects: bool = False) -> Pairs | None:
    """Find images and masks: ``X.jpg`` with ``X_mask.png``, or folders beside each other.

    Args:
        listing: The listing.
        objects: Whether to find VOC's masks of objects instead of those of classes, where there are both.

    Returns:
        ``None`` if there are none, or fewer pairs than masks without an image.

    Raises:
        DataError: If an image has two masks.
    """
    found = _FOUND.setdefault(listing, {})
    if objects not in found:
        found[objects] = _find_pairs(listing, objects)
    return found[objects]


_FOUND: weakref.WeakKeyDictionary[Listing, dict[bool, Pairs | None]] = weakref.WeakKeyDictionary()


def _find_pairs(listing: Listing, objects: bool) -> Pairs | None:
    listed = listing.images_below()
    if not any(part in name.lower() for name in listed.names for part in _IN_NAMES):
        return None  # a million photographs in class folders are not worth four attempts
    if objects and any(_is_of_objects(file) for file in listed):
        files = [file for file in listed if "segmentationclass" not in file.name.lower()]
    else:
        files = [file for file in listed if not _is_of_objects(file)]
    best = Pairs([], [], [], "", [], [])
    for key_of, layout in _LAYOUTS:
        match = _match(files, key_of, layout)
        best = match if len(match.pairs) > len(best.pairs) else best
        if best.pairs and not best.unlabelled and not best.alone:
            break
    if not best.pairs or len(best.pairs) < len(best.alone):
        return None
    if best.duplicates:
        raise DataError(
            f"{listing.root} has two files for one image or mask: {best.duplicates[0]}. Remove one of them."
        )
    return best


def _is_of_objects(file: ListedFile) -> bool:
    return _OBJECTS in file.name.rpartition("/")[0].lower()


_Names = tuple[str, ...]  # what a file has in common with its partner
_Key = tuple[bool, _Names]  # whether a file is a mask, and these names


def _key_by_name(folder: str, stem: str) -> _Key:
    base = without_suffix(stem)
    return base != stem, (folder, base)


def _key_by_folders(folder: str, stem: str) -> _Key:
    is_mask, key = _folder_key(folder)
    return is_mask, (*key, without_suffix(stem) if is_mask else stem)


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


def _key_by_words(folder: str, stem: str) -> _Key:
    """As by folders, for names of several words such as PNGImages and PedMasks."""
    is_mask, key = _folder_key_by_words(folder)
    return is_mask, (*key, without_suffix(stem) if is_mask else stem)


@functools.lru_cache(maxsize=1024)
def _folder_key_by_words(folder: str) -> _Key:
    is_mask = False
    key: list[str] = []
    for part in folder.split("/"):
        words = set(_words(part))
        is_mask = is_mask or bool(words & _MASK_WORDS) or _OBJECTS in part.lower()
        if words & (_MASK_WORDS | _IMAGE_WORDS) or _OBJECTS in part.lower():
            key += [word for word in sorted(words) if re.fullmatch(_SPLIT, word)]
        else:
            key.append(part)
    return is_mask, tuple(key)


def _key_by_all_words(folder: str, stem: str) -> _Key:
    """As by words, also in the names of files, of images as well: img_1.png and mask_1.png."""
    is_mask, key = _folder_key_by_words(folder)
    base = _MASK_NAME.sub("", without_suffix(stem))
    is_mask = is_mask or base != stem
    return is_mask, (*key, _IMAGE_NAME.sub("", base))


_LAYOUTS: tuple[tuple[Callable[[str, str], _Key], str], ...] = (
    (_key_by_name, "masks beside their images"),
    (_key_by_folders, "masks in folders of their own"),
    (_key_by_words, "masks in folders of their own"),
    (_key_by_all_words, "masks with names of their own"),
)


def _match(files: Sequence[ListedFile], key_of: Callable[[str, str], _Key], layout: str) -> Pairs:
    images: dict[_Names, ListedFile] = {}
    masks: dict[_Names, ListedFile] = {}
    duplicates: list[str] = []
    for file in files:
        folder, _, name = file.name.rpartition("/")
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
