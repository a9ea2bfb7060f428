"""Images with a class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotimm.data.spatial_module import SpatialDataModule

__all__ = ["SegmentationDataModule"]


class SegmentationDataModule(SpatialDataModule):
    """Images with a class for each pixel, from label images of any of the usual kinds.

    ``format`` is ``masks`` (label images by index, palette or table of colors) or ``cityscapes``; ``auto`` looks which
    of them the folder holds, and says so.

    Args:
        data_dir: The folder.
        colors: What the values of label images mean, where no file beside them says it: class names with an index or a
            color each, or such a file; see :func:`autotimm.data.formats.label_images.read_label_images`.
        common: Every argument of :class:`autotimm.data.spatial_module.SpatialDataModule`.

    Example:
        >>> import tempfile
        >>> from autotimm.data.toy_objects import write_toy_segmentation
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
