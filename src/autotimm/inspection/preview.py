"""A grid of augmented training samples, with the very pixels that training sees."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from autotimm.constants import IGNORE_INDEX
from autotimm.data.module import DataModule
from autotimm.image_size import height_and_width
from autotimm.report.class_colors import class_colors, is_background
from autotimm.runs.output_paths import require_new_file
from autotimm.types import Batch

__all__ = ["preview_of", "write_preview"]

_MOST_PIXELS = 2100  # of a side of the grid
_MOST_ALONG = 6  # images along a side
_GAP = 4
_PAPER = 255


def write_preview(data: DataModule, path: str | Path) -> Path:
    """Write the first augmented training samples as a PNG file.

    Args:
        data: The data.
        path: A new file.

    Raises:
        UsageError: If there is a file already, or no folder for it.
    """
    require_new_file(str(path), "preview", "inspect")
    Image.fromarray(preview_of(data).permute(1, 2, 0).numpy()).save(path, "PNG")
    return Path(path)


def preview_of(data: DataModule) -> Tensor:
    """The first samples of the first epoch in a grid, in the order in which training sees them.

    They come from the data module's own loader, so that their pixels are those of a training with the same seed and
    batch size, before what a task does with whole batches (mixup, CutMix). Objects and regions are drawn in a copy of
    their image to its right, which leaves the image as it is.

    Returns:
        RGB ``uint8`` (3, H, W).
    """
    height, width = height_and_width(data.image_size)
    copies = 1 if data.spec.kind == "classes" else 2
    columns, rows = (min(max(1, _MOST_PIXELS // side), _MOST_ALONG) for side in (copies * width, height))
    samples = [*islice(_samples(data), columns * rows)]
    columns, rows = min(columns, len(samples)), -(-len(samples) // columns)
    grid = torch.full((3, rows * (height + _GAP) + _GAP, columns * (copies * width + _GAP) + _GAP), _PAPER).byte()
    for number, (image, target) in enumerate(samples):
        top = _GAP + number // columns * (height + _GAP)
        left = _GAP + number % columns * (copies * width + _GAP)
        shown = [image] if copies == 1 else [image, _drawn(image, target, data)]
        for copy, pixels in enumerate(shown):
            grid[:, top : top + height, left + copy * width : left + (copy + 1) * width] = pixels
    return grid


def _samples(data: DataModule) -> Any:
    """Images as ``uint8`` (3, H, W) and targets of the training loader, one by one."""
    loader = data.train_dataloader()
    try:
        for batch in loader:
            yield from _of_batch(batch)
    finally:
        loader.close()


def _of_batch(batch: Batch) -> Any:
    images = batch.images
    if images.is_floating_point():  # of transforms that end in floats: a PNG holds bytes
        images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    for index, image in enumerate(images):
        yield image, None if batch.targets is None else batch.targets[index]


def _drawn(image: Tensor, target: Any, data: DataModule) -> Tensor:
    """A copy of an image with its objects or regions in the colors of their classes."""
    colors = class_colors(data.class_names)
    if isinstance(target, Tensor):
        present = [at for at in range(len(colors)) if bool((target == at).any())]
        shown = [at for at in present if not is_background(data.class_names[at])]
        masks = [target == at for at in shown]
        chosen = [colors[at] for at in shown]
        if bool((unknown := target == IGNORE_INDEX).any()):
            masks, chosen = [*masks, unknown], [*chosen, (128, 128, 128)]
        if masks:
            image = draw_segmentation_masks(image, torch.stack(masks), alpha=0.5, colors=chosen)
        return image
    chosen = [colors[label] for label in target["labels"].tolist()]
    if not chosen:
        return image
    if "masks" in target:
        image = draw_segmentation_masks(image, target["masks"].as_subclass(Tensor).bool(), alpha=0.5, colors=chosen)
    drawn: Tensor = draw_bounding_boxes(image, target["boxes"].as_subclass(Tensor), colors=chosen, width=2)
    return drawn
