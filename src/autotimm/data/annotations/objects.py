"""Tables of images with objects: boxes, classes and, for instances, masks."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from autotimm.data.annotations.outlines import MaskFile, Outline, Outlines
from autotimm.data.image_reading import current_reading
from autotimm.data.table import Objects, Packed, Table, packed_at, rarest_labels
from autotimm.records.digest import file_digest
from autotimm.types import Sample

__all__ = ["Annotation", "ObjectTable"]


class Annotation(NamedTuple):
    """One object of an image.

    Attributes:
        label: Name of its class.
        box: x1, y1, x2, y2 in pixels from the corner of the upright image; x2 and y2 are just outside.
        crowd: Whether it is neither trained on nor counted, right or wrong: COCO's ``iscrowd``, VOC's ``difficult``.
        outline: Its outline, if it is known.
        area: Its area in square pixels as the annotation states it, by which metrics tell small objects from large
            ones; 0 if it does not.
        stated: The box as the annotation states it, if that reaches beyond the image: programs that read the annotation
            compare with it, and so do our metrics.
    """

    label: str
    box: tuple[float, float, float, float]
    crowd: bool = False
    outline: Outline | None = None
    area: float = 0.0
    stated: tuple[float, float, float, float] | None = None


class ObjectTable(Table):
    """Image files and the objects in them; small, and cheap to hand to worker processes.

    Args:
        paths: One file per image.
        ids: One id per image.
        class_names: Names of the classes.
        annotations: The objects of each image; none is fine. Their labels are among ``class_names``.
        with_masks: Whether samples have masks. Every object needs an outline then.
    """

    draws_random = False

    def __init__(
        self,
        paths: Sequence[str | Path],
        ids: Sequence[str],
        class_names: Sequence[str],
        annotations: Sequence[Sequence[Annotation]],
        with_masks: bool = False,
    ) -> None:
        self.paths = tuple(str(path) for path in paths)
        self.ids, self.class_names, self.with_masks = tuple(ids), tuple(class_names), with_masks
        self.kind, self.reading = "instances" if with_masks else "boxes", current_reading()
        number = {name: index for index, name in enumerate(self.class_names)}
        objects = [annotation for of_image in annotations for annotation in of_image]
        # A few arrays, not a list per image: fast to pickle, and never copied by a forked process that only reads.
        self._starts = np.array([0, *itertools.accumulate(map(len, annotations))], np.int64)
        self._boxes = np.array([annotation.box for annotation in objects], np.float32).reshape(-1, 4)
        self._stated = np.array([annotation.stated or annotation.box for annotation in objects], np.float32).reshape(
            -1, 4
        )
        self._labels = np.array([number[annotation.label] for annotation in objects], np.int64)
        self._crowd = np.array([annotation.crowd for annotation in objects], bool)
        self._areas = np.array([annotation.area for annotation in objects], np.float32)
        self._outlines = Outlines(annotation.outline for annotation in objects) if with_masks else None
        self.strata = rarest_labels(self._presence())

    def _presence(self) -> torch.Tensor:
        """Zeros and ones (N, C): which classes an image shows; crowds do not count."""
        owners = np.repeat(np.arange(len(self.ids)), np.diff(self._starts))
        present = np.zeros((len(self.ids), len(self.class_names)), np.uint8)
        present[owners[~self._crowd], self._labels[~self._crowd]] = 1
        return torch.from_numpy(present)

    def _of(self, index: int) -> slice:
        return slice(int(self._starts[index]), int(self._starts[index + 1]))

    def load(self, index: int) -> Sample:
        """Decode one image with its objects.

        The target has ``boxes`` (``tv_tensors.BoundingBoxes`` (K, 4), ``float32`` x1, y1, x2, y2 in pixels, within the
        image), ``labels`` (``int64`` (K,)), ``crowd`` (``bool`` (K,)) and, with masks, ``masks`` (``tv_tensors.Mask``
        (K, H, W), ``uint8`` zeros and ones). K is 0 for an image without objects. The truth has all but the masks, the
        boxes as they were stated, and ``area`` (``float32`` (K,)).
        """
        image = self.picture(self.paths[index])
        height, width = image.shape[-2:]
        objects = self._of(index)
        boxes = np.clip(self._boxes[objects], 0, np.array([width, height, width, height], np.float32))
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=(height, width)),
            "labels": torch.from_numpy(self._labels[objects].copy()),
            "crowd": torch.from_numpy(self._crowd[objects].copy()),
        }
        if self._outlines is not None:
            masks = np.zeros((len(boxes), height, width), np.uint8)
            for row, number in enumerate(range(objects.start, objects.stop)):
                outline = self._outlines[number]
                if isinstance(outline, MaskFile) and self.packed_rows is not None:
                    masks[row] = outline.mask(height, width, io.BytesIO(self.mask_content(index, outline)))
                else:
                    masks[row] = (
                        _rectangle(boxes[row], height, width) if outline is None else outline.mask(height, width)
                    )
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        truth = {
            "boxes": torch.from_numpy(self._stated[objects].copy()),
            "labels": target["labels"],
            "crowd": target["crowd"],
            "area": torch.from_numpy(self._areas[objects].copy()),
        }
        return Sample(image, target, self.ids[index], truth=truth)

    def files(self) -> tuple[Path, ...]:
        """The image files."""
        return tuple(Path(path) for path in self.paths) if self.packed_rows is None else ()

    def packed(self) -> Packed | None:
        """The rows that hold the images and masks of a packed data set."""
        return packed_at(self)

    def labels(self, index: int) -> tuple[str, ...]:
        """Names of the classes that an image shows, in class order; crowds do not count."""
        objects = self._of(index)
        present = np.unique(self._labels[objects][~self._crowd[objects]])
        return tuple(self.class_names[label] for label in present)

    def objects(self, index: int) -> Objects:
        """The objects of an image, crowds included."""
        objects = self._of(index)
        return Objects(self._boxes[objects], self._labels[objects], self._crowd[objects])

    def most_objects(self) -> int:
        """Objects of the image with most of them, crowds included."""
        return int(np.diff(self._starts).max(initial=0))

    def object_counts(self) -> tuple[int, ...]:
        """Objects per class, in class order; crowds do not count."""
        return tuple(np.bincount(self._labels[~self._crowd], minlength=len(self.class_names)).tolist())

    def shorter_sides(self, shrunk: NDArray[np.float64]) -> NDArray[np.float64]:
        """The shorter side of the box of each object in pixels of the network's input; without crowds.

        Args:
            shrunk: By how much each image is shrunk (N,); objects of an image with NaN have NaN.
        """
        sides = (self._boxes[:, 2:] - self._boxes[:, :2]).min(1)
        lengths: NDArray[np.float64] = sides / np.repeat(shrunk, np.diff(self._starts))
        learned: NDArray[np.float64] = lengths[~self._crowd]
        return learned

    def target_digest(self, index: int) -> str:
        """SHA-256 of the annotations of an image: names of classes, boxes, crowds and outlines, in their order.

        The digest of the image file does not cover them.
        """
        digest = hashlib.sha256()
        for number in range(self._starts[index], self._starts[index + 1]):
            outline = b"" if self._outlines is None else self._outline_bytes(index, self._outlines, number)
            name = self.class_names[self._labels[number]].encode("utf-8", "surrogatepass")
            for part in (name, self._boxes[number].tobytes(), self._crowd[number].tobytes(), outline):
                digest.update(b"%d:" % len(part) + part)
        return digest.hexdigest()

    def target_files(self, index: int) -> tuple[Path, ...]:
        """The mask files of the objects; outlines of other kinds were read once and are kept in memory."""
        objects = self._of(index)
        if self._outlines is None or self.packed_rows is not None:
            return ()
        return tuple(self._outlines.files(objects.start, objects.stop))

    def annotations(self, index: int) -> list[Annotation]:
        """The objects of an image as the constructor takes them."""
        return [self._annotation(number) for number in range(self._starts[index], self._starts[index + 1])]

    def _annotation(self, number: int) -> Annotation:
        name, crowd = self.class_names[self._labels[number]], bool(self._crowd[number])
        box, stated = tuple(self._boxes[number].tolist()), tuple(self._stated[number].tolist())
        outline = None if self._outlines is None else self._outlines[number]
        return Annotation(name, box, crowd, outline, float(self._areas[number]), None if stated == box else stated)

    def mask_content(self, index: int, outline: MaskFile) -> bytes:
        """The content of a mask file of a sample, from its folder or from its row in a packed data set."""
        if self.packed_rows is None:
            return Path(outline.path).read_bytes()
        begin, end = map(int, outline.path.split(":"))
        return self.packed_rows.row(int(self.paths[index])).masks[begin:end]

    def _outline_bytes(self, index: int, outlines: Outlines, number: int) -> bytes:
        outline = outlines[number]
        if not isinstance(outline, MaskFile):
            return outlines.packed(number)
        # The content of a file, not its path: a data set that was moved is the same.
        if self.packed_rows is None:
            return file_digest(outline.path).encode()
        return hashlib.sha256(self.mask_content(index, outline)).hexdigest().encode()


def _rectangle(box: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    """The pixels whose centers are in a box: the mask of a crowd without an outline."""
    x1, y1, x2, y2 = box.tolist()
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    mask = np.zeros((height, width), np.uint8)
    mask[np.ix_((rows >= y1) & (rows < y2), (columns >= x1) & (columns < x2))] = 1
    return mask
