"""The base of data modules whose targets move with the pixels: boxes, masks, regions.

Images with objects in boxes.

Images with objects in outlines.

Images with a class for each pixel.
"""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from autotimm.constants import IGNORE_INDEX
from autotimm.data.formats.recognize import read_spatial
from autotimm.data.module import DataModule
from autotimm.data.table import Table
from autotimm.data.transforms.image_transforms import SampleTransform
from autotimm.data.transforms.spatial_transforms import SpatialTransform, spatial_augmentation
from autotimm.errors import require

__all__ = ["DetectionDataModule", "InstanceSegmentationDataModule", "SegmentationDataModule", "SpatialDataModule"]


_NO_CROP = "Images are letterboxed, so that what is found can be mapped back to their pixels."
_WITHOUT = {
    "eval_transforms": f"{_NO_CROP} Leave it out, or change the files.",
    "crop_pct": f"{_NO_CROP} Leave it out.",
    "interpolation": "Images are resized bilinearly, and masks to the nearest pixel. Leave it out.",
}


class SpatialDataModule(DataModule, ABC):
    """Images with boxes, masks or regions, letterboxed to a square.

    Args:
        data_dir: The folder.
        format: Name of a format, ``auto``, or import path of a reader: called with the folder and a list for notices,
            it gives a :class:`autotimm.data.table.Table` per split.
        image_size: Side in pixels of the square that the network sees.
        batch_size: Training samples per step and process.
        eval_batch_size: Samples per batch in validation, test and prediction.
        augmentation: See :func:`autotimm.data.transforms.spatial_transforms.spatial_augmentation`.
        train_transforms: A callable from (image, target) to the same, in place of the augmentation, such as a
            ``v2.Compose`` of torchvision; see :class:`autotimm.data.transforms.spatial_transforms.SpatialTransform`.
        common: The other arguments of :class:`DataModule`, but for those that would crop in evaluation.

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
        image_size: int = 512,
        batch_size: int = 8,
        eval_batch_size: int = 4,
        augmentation: str = "default",
        train_transforms: Callable[[Any, Any], Any] | None = None,
        **common: Any,
    ) -> None:
        owner = type(self).__name__
        for name, do in _WITHOUT.items():
            default = inspect.signature(DataModule.__init__).parameters[name].default
            given = common.get(name, default)
            require(given == default, name, owner, "left out", given, do)
        super().__init__(
            image_size=image_size, batch_size=batch_size, eval_batch_size=eval_batch_size, augmentation=augmentation,
            train_transforms=train_transforms, **{name: one for name, one in common.items() if name not in _WITHOUT},
        )  # fmt: skip
        self.data_dir, self.format = Path(data_dir).expanduser(), format
        self._found: Mapping[str, Table] = {}
        self._reading: dict[str, Any] = {}

    def sample_transform(self, given: Callable[..., Any] | None, name: str) -> SampleTransform:
        """The caller's transform of image and target or the built-in one, and a letterbox; in evaluation that alone."""
        owner = type(self).__name__
        if given is None and name == "train_transforms":
            outside = IGNORE_INDEX if self.kind == "pixels" else 0
            given = spatial_augmentation(self.augmentation, self.image_size, owner, outside)
        return SpatialTransform(given, self.image_size, name, owner)

    def read(self, split: str) -> Table | None:
        """Return the samples of a split, or ``None``."""
        if split == "train":
            recognized, self.recognized = self.recognized, None
            self._found = read_spatial(
                self.data_dir, self.format, self.kind, self.notices, strict=self.strict, recognized=recognized,
                **self._reading,
            )  # fmt: skip
        return self._found.get(split)


class DetectionDataModule(SpatialDataModule):
    """Images with objects in boxes, from any of the usual formats.

    ``format`` is ``coco``, ``voc``, ``yolo`` or ``csv``; ``auto`` looks which of them the folder holds, and says so.
    Masks, where there are any, are not read.

    All arguments are those of :class:`autotimm.data.dense.SpatialDataModule`.

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

    ``format`` is ``coco``, ``yolo`` or ``masks`` (a PNG file per object); ``auto`` looks which of them it is,
    and says so.

    All arguments are those of :class:`autotimm.data.dense.SpatialDataModule`.

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

    ``format`` is ``masks`` (label images by index, palette or table of colors) or ``cityscapes``; ``auto`` looks which
    of them the folder holds, and says so.

    Args:
        data_dir: The folder.
        colors: What the values of label images mean, where no file beside them says it: class names with an index or a
            color each, or such a file; see :func:`autotimm.data.formats.label_images.read_label_images`.
        common: Every argument of :class:`autotimm.data.dense.SpatialDataModule`.

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
        self, data_dir: str | Path, *, colors: Mapping[str, Any] | str | Path | None = None, **common: Any
    ) -> None:
        super().__init__(data_dir, **common)
        if colors is not None:
            self._reading["colors"] = colors
