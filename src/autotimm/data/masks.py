"""Images with a mask each, whose pixels say the class: semantic segmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torchvision import tv_tensors

from autotimm.data.maskcode import MaskCode, read_pixels
from autotimm.data.read import BROKEN, read_image, reason
from autotimm.data.table import Table, rarest_labels
from autotimm.errors import DataError
from autotimm.repro.digest import file_digest
from autotimm.types import Sample

__all__ = ["MaskTable"]


class MaskTable(Table):
    """Image files and their masks.

    Args:
        paths: One image per sample.
        masks: Its mask.
        ids: One id per sample.
        class_names: Names of the classes.
        code: Which class a pixel value stands for.
        present: The class indices in each mask with their numbers of pixels, for stratified splits and counts.
    """

    draws_random = False
    kind = "pixels"

    def __init__(
        self,
        paths: Sequence[str | Path],
        masks: Sequence[str | Path],
        ids: Sequence[str],
        class_names: Sequence[str],
        code: MaskCode,
        present: Sequence[Mapping[int, int]],
    ) -> None:
        self.paths, self.mask_paths = tuple(map(str, paths)), tuple(map(str, masks))
        self.ids, self.class_names, self.code = tuple(ids), tuple(class_names), code
        self._present = tuple(map(dict, present))
        bits = torch.zeros(len(self.ids), len(self.class_names), dtype=torch.uint8)
        for row, classes in enumerate(self._present):
            bits[row, list(classes)] = 1
        self.strata = rarest_labels(bits)

    def load(self, index: int) -> Sample:
        """Decode one image and its mask: a ``tv_tensors.Mask`` ``uint8`` (H, W) of class indices, 255 where unknown.

        Raises:
            DataError: If one of them cannot be read, or they differ in size.
        """
        image, path = read_image(self.paths[index]), self.mask_paths[index]
        try:
            pixels = read_pixels(path)
        except BROKEN as error:
            raise DataError(f"{path} cannot be read as a mask: {reason(path, error)}. Replace it.") from error
        classes = torch.from_numpy(self.code.decode(pixels))
        if classes.shape != image.shape[-2:]:
            sizes = [f"{width}x{height}" for height, width in (classes.shape, image.shape[-2:])]
            raise DataError(f"{path} is {sizes[0]} pixels, its image {sizes[1]}. Make them equal.")
        return Sample(image, tv_tensors.Mask(classes), self.ids[index])

    def files(self) -> tuple[Path, ...]:
        """The image files."""
        return tuple(Path(path) for path in self.paths)

    def labels(self, index: int) -> tuple[str, ...]:
        """Names of the classes in a mask, in class order."""
        return tuple(self.class_names[found] for found in self._present[index])

    def amounts(self, index: int) -> dict[str, int]:
        """How many pixels of a mask are of each class that it holds."""
        return {self.class_names[found]: pixels for found, pixels in self._present[index].items()}

    def target_digest(self, index: int) -> str:
        """SHA-256 of a mask file, and of what its values stand for."""
        meaning = repr((self.code, self.class_names)).encode("utf-8", "surrogatepass")
        return hashlib.sha256(file_digest(self.mask_paths[index]).encode() + meaning).hexdigest()
