"""Images with objects in boxes."""

from __future__ import annotations

from autotimm.data.spatial_module import SpatialDataModule

__all__ = ["DetectionDataModule"]


class DetectionDataModule(SpatialDataModule):
    """Images with objects in boxes, from any of the usual formats.

    ``format`` is ``coco``, ``voc``, ``yolo`` or ``csv``; ``auto`` looks which of them the folder holds, and says so.
    Masks, where there are any, are not read.

    All arguments are those of :class:`autotimm.data.spatial_module.SpatialDataModule`.

    Example:
        >>> import tempfile
        >>> from autotimm.data.toy_objects import write_toy_objects
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_toy_objects(folder, splits={"train": 8, "val": 2}, image_size=64)
        ...     data = DetectionDataModule(folder, image_size=64, batch_size=2, num_workers=0)
        ...     batch = next(iter(data.train_dataloader()))
        >>> batch.images.shape, sorted(batch.targets[0])
        (torch.Size([2, 3, 64, 64]), ['boxes', 'crowd', 'labels'])
    """

    kind = "boxes"
