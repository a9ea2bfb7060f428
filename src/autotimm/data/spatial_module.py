"""The base of data modules whose targets move with the pixels: boxes, masks, regions."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from autotimm.data.formats.spatial import read_spatial
from autotimm.data.module import DataModule
from autotimm.data.spatial import UNKNOWN, SpatialTransform, spatial_augmentation
from autotimm.data.table import Table
from autotimm.data.transforms import SampleTransform
from autotimm.errors import require

__all__ = ["SpatialDataModule"]

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
        augmentation: See :func:`autotimm.data.spatial.spatial_augmentation`.
        train_transforms: A callable from (image, target) to the same, in place of the augmentation, such as a
            ``v2.Compose`` of torchvision; see :class:`autotimm.data.spatial.SpatialTransform`.
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
            outside = UNKNOWN if self.kind == "pixels" else 0
            given = spatial_augmentation(self.augmentation, self.image_size, owner, outside)
        return SpatialTransform(given, self.image_size, name, owner)

    def read(self, split: str) -> Table | None:
        """Return the samples of a split, or ``None``."""
        if split == "train":
            self._found = read_spatial(
                self.data_dir, self.format, self.kind, self.notices, strict=self.strict, **self._reading
            )
        return self._found.get(split)
