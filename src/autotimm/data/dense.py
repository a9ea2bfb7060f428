"""Data modules whose targets move with the pixels: boxes, masks of objects, and a class per pixel."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torchvision.transforms import v2
from typing_extensions import Unpack

from autotimm.constants import IGNORE_INDEX
from autotimm.data.formats.recognize import READER, read_spatial
from autotimm.data.learnable import check_object_sizes
from autotimm.data.module import CommonDataOptions, DataModule, DataOptions
from autotimm.data.table import Table
from autotimm.data.transforms.image_transforms import SampleTransform
from autotimm.data.transforms.spatial_transforms import SpatialTransform, spatial_augmentation
from autotimm.data.transforms.tile_transforms import TileCrop, WholeImage, tile_augmentation
from autotimm.errors import number, require
from autotimm.image_size import ImageSize, height_and_width, written_size
from autotimm.records.imports import require_admitted
from autotimm.types import Tiling, check_image_size

__all__ = [
    "DetectionDataModule",
    "InstanceSegmentationDataModule",
    "SegmentationDataModule",
    "SpatialDataModule",
    "SpatialOptions",
]

_MOST_OVERLAP = 0.9  # ten tiles along each side see a pixel
_NO_CROP = "Images are letterboxed, so that predictions can be mapped back to their pixels."
_WITHOUT = {
    "eval_transforms": f"{_NO_CROP} Leave it out, or change the files.",
    "crop_pct": f"{_NO_CROP} Leave it out.",
    "interpolation": "Images are resized bilinearly, and masks to the nearest pixel. Leave it out.",
}


class SpatialOptions(DataOptions, total=False):
    """The options of :class:`SpatialDataModule`, which says what they do and states their defaults."""

    format: str
    tile: ImageSize | None
    overlap: float


class SpatialDataModule(DataModule, ABC):
    """Images with boxes, masks or regions, letterboxed to one size.

    Args:
        data_dir: The folder.
        format: Name of a format, ``auto``, or import path of a reader: called with the folder and a list for notices,
            it returns a :class:`autotimm.data.table.Table` per split.
        image_size: Size in pixels of what the network sees: the side of a square, or height and width.
        batch_size: Training samples per step and process.
        eval_batch_size: Samples per batch in validation, test and prediction.
        augmentation: See :func:`autotimm.data.transforms.spatial_transforms.spatial_augmentation`.
        train_transforms: A callable from (image, target) to the same, in place of the augmentation, such as a
            ``v2.Compose`` of torchvision; see :class:`autotimm.data.transforms.spatial_transforms.SpatialTransform`.
            With tiles it gets a random tile.
        tile: Size of the tiles that large images are cut into, and so of what the network sees, at full resolution:
            the side of a square, or height and width. In training a tile is a random crop, see
            :class:`autotimm.data.transforms.tile_transforms.TileCrop`. ``None`` shows images whole.
        overlap: Share of its sides, from 0 to 0.9, that a tile has in common with the next one in evaluation.
        common: The other options of :class:`DataModule`. Those that would crop in evaluation, ``eval_transforms``,
            ``crop_pct`` and ``interpolation``, must be left at their defaults.

    Raises:
        UsageError: If an argument is wrong.
    """

    kind: ClassVar[str]
    """What the targets are, see :class:`autotimm.types.DataSpec`."""

    def __init__(
        self,
        data_dir: str | Path,
        *,
        format: str = "auto",
        image_size: ImageSize = 512,
        batch_size: int = 8,
        eval_batch_size: int = 4,
        augmentation: str = "default",
        train_transforms: Callable[[Any, Any], Any] | None = None,
        tile: ImageSize | None = None,
        overlap: float = 0.2,
        **common: Unpack[CommonDataOptions],
    ) -> None:
        owner = type(self).__name__
        self.tile = None if tile is None else check_image_size(tile, owner, "tile")
        must = "a number from 0 to 0.9"
        require(0 <= number(overlap) <= _MOST_OVERLAP, "overlap", owner, must, overlap, "Give for example 0.2.")
        self.overlap = None if tile is None else overlap
        if self.tile is not None:
            image_size = self._size_of_tiles(image_size)
        for name, do in _WITHOUT.items():
            default = inspect.signature(DataModule).parameters[name].default
            given = common.get(name, default)  # a run's record holds the defaults too
            require(given == default, name, owner, "left out", given, do)
        super().__init__(
            image_size=image_size, batch_size=batch_size, eval_batch_size=eval_batch_size, augmentation=augmentation,
            train_transforms=train_transforms, **common,
        )  # fmt: skip
        if "." in format:
            require_admitted(format, READER)  # it is imported when the data is read
        self.data_dir, self.format = Path(data_dir).expanduser(), format
        self._splits: Mapping[str, Table] = {}
        self._reader_options: dict[str, Any] = {}

    def _size_of_tiles(self, image_size: ImageSize) -> ImageSize:
        """The size of the network's input, which is that of a tile."""
        owner, default = type(self).__name__, inspect.signature(SpatialDataModule).parameters["image_size"].default
        assert self.tile is not None
        fits = image_size == default or check_image_size(image_size, owner) == self.tile
        do = "It is the size of a tile. Leave it out."
        require(fits, "image_size", owner, f"{written_size(self.tile)}, as `tile`", image_size, do)
        return self.tile

    def sample_transform(self, given: Callable[..., Any] | None, name: str) -> SampleTransform:
        """The caller's or the built-in transform of image and target, then a letterbox; in evaluation a letterbox."""
        owner = type(self).__name__
        if self.tile is not None and self.overlap is not None and name == "eval_transforms":
            return WholeImage(Tiling(*height_and_width(self.tile), self.overlap), name, owner)
        if name == "train_transforms":
            given = self._augmentation(given)
        keep_all = name == "eval_transforms"
        return SpatialTransform(given, self.image_size, name, owner, keep_all=keep_all, channels=self.in_chans)

    def _augmentation(self, given: Any) -> Any:
        """The caller's or the built-in augmentation, of a random tile where images are cut into tiles."""
        owner = type(self).__name__
        outside = IGNORE_INDEX if self.kind == "pixels" else 0  # what pixels beside the image are
        if self.tile is None:
            if given is not None:
                return given
            return spatial_augmentation(self.augmentation, self.image_size, owner, outside, self.in_chans)
        if given is None:
            return tile_augmentation(self.augmentation, self.tile, owner, outside, self.in_chans)
        # What cannot be called is refused by SpatialTransform.
        return v2.Compose([TileCrop(self.tile, outside=outside), given]) if callable(given) else given

    def read(self, split: str) -> Table | None:
        """Return the samples of a split, or ``None``."""
        if split == "train":
            recognized, self.recognized = self.recognized, None
            self._splits = read_spatial(
                self.data_dir, self.format, self.kind, self.notices, strict=self.strict, recognized=recognized,
                group=self.division.group, **self._reader_options,
            )  # fmt: skip
            check_object_sizes(self._splits, self.image_size, self.notices, tiled=self.tile is not None)
        return self._splits.get(split)


class DetectionDataModule(SpatialDataModule):
    """Images with objects in boxes, from any of the usual formats.

    ``format`` is a name of :data:`autotimm.data.formats.FORMATS`, such as ``coco``, ``voc`` or ``yolo``; ``auto``
    recognizes it by the folder's contents. Masks, where there are any, are not read.

    The arguments are those of :class:`autotimm.data.dense.SpatialDataModule`.

    Example:
        >>> import tempfile
        >>> from autotimm.data.toy import write_toy_objects
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_toy_objects(folder, splits={"train": 8, "val": 2}, image_size=64)
        ...     data = DetectionDataModule(folder, image_size=64, batch_size=2, num_workers=0)
        ...     batch = next(iter(data.train_dataloader()))
        >>> batch.images.shape, sorted(batch.targets[0])
        (torch.Size([2, 3, 64, 64]), ['boxes', 'crowd', 'labels'])
    """

    kind = "boxes"


class InstanceSegmentationDataModule(SpatialDataModule):
    """Images with a mask for each object, from any of the usual formats.

    ``format`` is a name of :data:`autotimm.data.formats.FORMATS`, such as ``coco``, ``masks`` (a PNG file per object)
    or ``ids`` (a label image with ids of objects); ``auto`` recognizes it by the folder's contents.

    The arguments are those of :class:`autotimm.data.dense.SpatialDataModule`.

    Example:
        >>> import tempfile
        >>> from autotimm.data.toy import write_toy_objects
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_toy_objects(folder, splits={"train": 8, "val": 2}, image_size=64)
        ...     data = InstanceSegmentationDataModule(folder, image_size=64, batch_size=2, num_workers=0)
        ...     batch = next(iter(data.train_dataloader()))
        >>> batch.targets[0]["masks"].shape[1:]
        torch.Size([64, 64])
    """

    kind = "instances"


class SegmentationDataModule(SpatialDataModule):
    """Images with a class for each pixel, from label images of any of the usual kinds.

    ``format`` is ``masks`` (label images by index, palette or table of colors) or ``cityscapes``; ``auto``
    recognizes it by the folder's contents.

    Args:
        data_dir: The folder.
        colors: The meaning of the values of label images, where no file beside them states it: class names with an
            index or a color each, or such a file; see :func:`autotimm.data.formats.label_images.read_label_images`.
        common: The other arguments of :class:`autotimm.data.dense.SpatialDataModule`.

    Example:
        >>> import tempfile
        >>> from autotimm.data.toy import write_toy_segmentation
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_toy_segmentation(folder, splits={"train": 8, "val": 2}, image_size=64)
        ...     data = SegmentationDataModule(folder, image_size=64, batch_size=2, num_workers=0)
        ...     batch = next(iter(data.train_dataloader()))
        >>> batch.targets.shape, batch.targets.dtype
        (torch.Size([2, 64, 64]), torch.int64)
    """

    kind = "pixels"

    def __init__(
        self,
        data_dir: str | Path,
        *,
        colors: Mapping[str, Any] | str | Path | None = None,
        **common: Unpack[SpatialOptions],
    ) -> None:
        super().__init__(data_dir, **common)
        if colors is not None:
            self._reader_options["colors"] = colors
