"""Which mask belongs to which image: told by names and folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from autotimm.data.formats.splits import by_split, images_below, listed, read_lists, relative
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

    def splits(self, root: Path, notices: list[str]) -> dict[str, list[Pair]]:
        """The pairs of each split: by ``ImageSets/Segmentation``, by lists, or by names of folders."""
        lists = read_lists(root / "ImageSets" / "Segmentation") or read_lists(root)
        if lists:
            return listed({pair.id: pair for pair in self.pairs}, lists, notices)
        return by_split((pair.id.rpartition("/")[0], pair) for pair in self.pairs)


def find_pairs(root: Path) -> Pairs | None:
    """Find images and masks below a folder: ``X.jpg`` with ``X_mask.png``, or folders beside each other.

    Returns:
        ``None`` if there are none, or they are the exception.

    Raises:
        DataError: If an image has two masks.
    """
    files = [path for path in images_below(root) if _NEITHER not in relative(path, root).lower()]
    found = [_match(files, root, key, layout) for key, layout in _LAYOUTS]
    best = max(found, key=lambda one: len(one.pairs))
    if not best.pairs or len(best.pairs) < len(best.alone):
        return None
    if best.twice:
        raise DataError(f"{root} has two files for one image or mask: {best.twice[0]}. Take one of them away.")
    return best


def _beside(path: Path, root: Path) -> tuple[bool, tuple[str, ...]]:
    """Whether a file is a mask by its name, and what it shares with its partner."""
    stem = _SUFFIX.sub("", path.stem)
    return stem != path.stem, (relative(path.parent, root), stem)


def _parallel(path: Path, root: Path) -> tuple[bool, tuple[str, ...]]:
    """The same by its folders: what says mask or image is left out of them, what says the split is kept."""
    is_mask = False
    key: list[str] = []
    for part in relative(path.parent, root).split("/"):
        mask, image = _MASK_FOLDER.fullmatch(part), _IMAGE_FOLDER.fullmatch(part)
        is_mask = is_mask or mask is not None
        said = mask or image
        key += [part] if said is None else [split.lower() for split in said.groups() if split]
    return is_mask, (*key, _SUFFIX.sub("", path.stem) if is_mask else path.stem)


_Key = Callable[[Path, Path], tuple[bool, tuple[str, ...]]]
_LAYOUTS: tuple[tuple[_Key, str], ...] = (
    (_beside, "masks beside their images"),
    (_parallel, "masks in folders of their own"),
)


def _match(files: Sequence[Path], root: Path, key_of: _Key, layout: str) -> Pairs:
    images: dict[tuple[str, ...], Path] = {}
    masks: dict[tuple[str, ...], Path] = {}
    twice: list[str] = []
    for path in files:
        is_mask, key = key_of(path, root)
        before = (masks if is_mask else images).setdefault(key, path)
        if before != path:
            twice.append(f"{relative(before, root)} and {relative(path, root)}")
    pairs = [Pair(path, masks[key], relative(path, root)) for key, path in images.items() if key in masks]
    unlabelled = [relative(path, root) for key, path in images.items() if key not in masks]
    alone = [relative(path, root) for key, path in masks.items() if key not in images]
    return Pairs(pairs, unlabelled, alone, layout, twice)
