"""Images with objects in outlines."""

from __future__ import annotations

from autotimm.data.spatial_module import SpatialDataModule

__all__ = ["InstanceSegmentationDataModule"]


class InstanceSegmentationDataModule(SpatialDataModule):
    """Images with a mask for each object, from any of the usual formats.

    ``format`` is ``coco``, ``yolo`` or ``masks`` (a PNG file per object); ``auto`` looks which of them it is,
    and says so.

    All arguments are those of :class:`autotimm.data.spatial_module.SpatialDataModule`.

    Example:
        >>> import tempfile
        >>> from autotimm.data.toy_objects import write_toy_objects
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_toy_objects(folder, splits={"train": 8, "val": 2}, image_size=64)
        ...     data = InstanceSegmentationDataModule(folder, image_size=64, batch_size=2, num_workers=0)
        ...     batch = next(iter(data.train_dataloader()))
        >>> batch.targets[0]["masks"].shape[1:]
        torch.Size([64, 64])
    """

    kind = "instances"
