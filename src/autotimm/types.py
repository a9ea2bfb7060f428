"""The words that data, models, tasks and trainer share, with their shapes and units said once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from autotimm.errors import UsageError

__all__ = [
    "Batch",
    "DataSpec",
    "ObjectPrediction",
    "PixelPrediction",
    "Placement",
    "Prediction",
    "Sample",
    "Stage",
    "Step",
]


class Stage(str, Enum):
    """What a step is for. The value is the prefix of logged names (``val/accuracy``)."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    PREDICT = "predict"

    # Python 3.10 would print "train" in an f-string, 3.12 "Stage.TRAIN".
    __str__ = str.__str__


class Placement(NamedTuple):
    """Where an image lies in the square that the network sees, so that what is found there can be mapped back.

    Attributes:
        height: Of the original image in pixels, transposed as its EXIF tag says.
        width: The same.
        top: First row of the square that the image fills.
        left: First column.
        shown_height: Rows of the square that it fills.
        shown_width: Columns.
    """

    height: int
    width: int
    top: int
    left: int
    shown_height: int
    shown_width: int


class Sample(NamedTuple):
    """One image and what is known about it.

    Attributes:
        image: RGB ``uint8`` of shape (3, H, W), a ``torchvision.tv_tensors.Image``; transposed as its EXIF tag says.
        target: What the task learns, or ``None`` if unknown: a class index; a vector of zeros and ones; for objects a
            dictionary of ``boxes`` (K, 4) in pixels as x1, y1, x2, y2, ``labels`` (K,), ``crowd`` (K,) and, for
            instances, ``masks`` (K, H, W); for semantic segmentation class indices (H, W), 255 where unknown.
        id: Stable name of the sample within its data set, ``/``-separated; the position in every per-sample stream.
        placement: Where the original image lies in ``image``, if it was letterboxed.
    """

    image: Tensor
    target: Any
    id: str
    placement: Placement | None = None


class Batch(NamedTuple):
    """Several samples of one size.

    Attributes:
        images: RGB of shape (N, 3, H, W), ``uint8`` in [0, 255] or float in [0, 1]; the network normalizes.
        targets: ``int64`` (N,) class indices, ``float32`` (N, C) of zeros and ones for multi-label, ``int64`` (N, H, W)
            for semantic segmentation, a list of N dictionaries for objects (see :class:`Sample`), or ``None``.
        ids: The ids of the N samples, or nothing where a caller's own loader does not give them.
        fingerprints: 16 hexadecimal digits per sample, its image and target as they enter the network; written by the
            process that loaded them, so that the ledger of a run need not wait for a device.
        placements: ``int64`` (N, 6), one :class:`Placement` per image, or ``None`` if images were not letterboxed.
    """

    images: Tensor
    targets: Any = None
    ids: tuple[str, ...] = ()
    fingerprints: str = ""
    placements: Tensor | None = None

    @classmethod
    def of(cls, batch: Any) -> Batch:
        """Read a batch of ours, the ``(images, targets)`` of a caller's own loader, or images alone.

        Raises:
            UsageError: If it is none of these.
        """
        if isinstance(batch, Batch):
            return batch
        if isinstance(batch, Tensor):
            return cls(batch)
        if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor):
            return cls(batch[0], batch[1])
        raise UsageError(
            f"The batches of a data loader must be (images, targets) or images. Got {type(batch).__name__} instead. "
            "Give the loader a `collate_fn` that returns such a pair."
        )


@dataclass(frozen=True)
class Step:
    """What a task makes of one batch.

    Attributes:
        losses: Named scalar losses; their sum is minimized. Empty where there are no targets.
        predictions: What metrics and :meth:`Task.decode` read, first dimension N.
        targets: What metrics compare with, or ``None`` where metrics make no sense (mixed-up targets).
        weight: What the losses are a mean over, if not over the N samples: the sum of their weights. The mean over all
            batches is right only with it.
    """

    losses: Mapping[str, Tensor]
    predictions: Any = None
    targets: Any = None
    weight: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """The sum of all losses, a scalar."""
        return torch.stack(list(self.losses.values())).sum()


class Prediction(NamedTuple):
    """What a trained model says about one image.

    A tuple and not a frozen dataclass, since Lightning takes results apart and puts them together again.

    Attributes:
        id: Path or id of the image.
        labels: The predicted classes: one, or any number for multi-label.
        scores: Probability in [0, 1] per class name, in class order.
    """

    id: str
    labels: tuple[str, ...]
    scores: dict[str, float]


class ObjectPrediction(NamedTuple):
    """The objects that a trained model finds in one image, best first. Plain data.

    Attributes:
        id: Path or id of the image.
        labels: The class of each of the K objects.
        scores: How sure the model is of each, in [0, 1].
        boxes: x1, y1, x2, y2 of each, in pixels of the original image.
        size: Height and width of the original image in pixels.
        masks: The mask of each as COCO's compressed run lengths, which :meth:`mask` decodes; nothing for boxes alone.
    """

    id: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    size: tuple[int, int]
    masks: tuple[str, ...] = ()

    def mask(self, index: int) -> Tensor:
        """The mask of one object: bool (H, W) of the original image."""
        return torch.from_numpy(coco_mask.decode({"size": list(self.size), "counts": self.masks[index]})).bool()


class PixelPrediction(NamedTuple):
    """The class that a trained model gives to each pixel of one image.

    Attributes:
        id: Path or id of the image.
        labels: The classes that occur, the largest area first.
        scores: Share of the pixels in [0, 1] per class name, in class order.
        png: The class indices as a PNG file of 8 bits, in pixels of the original image; :meth:`mask` decodes it.
    """

    id: str
    labels: tuple[str, ...]
    scores: dict[str, float]
    png: bytes

    def mask(self) -> Tensor:
        """Class indices: ``uint8`` (H, W) of the original image."""
        with Image.open(BytesIO(self.png)) as image:
            return torch.from_numpy(np.array(image))


@dataclass(frozen=True)
class DataSpec:
    """What a model must remember of the data it was trained on. Plain data: it travels in the checkpoint.

    Attributes:
        class_names: Names of the classes, in the order of the logits.
        multi_label: Whether several classes may be right at once.
        image_size: Side in pixels of the square that the network sees.
        eval_batch_size: Images per batch in evaluation and prediction. Batches are padded to it, since logits depend on
            the batch size in the last bits.
        crop_pct: Share of the resized image that the central crop keeps in evaluation.
        interpolation: How images are resized, a name of ``torchvision.transforms.InterpolationMode``.
        eval_transforms: Transforms of the caller's own in place of resize and crop, as written by
            :func:`autotimm.serialization.plain_value`; ``None`` for the built-in ones.
        kind: What the targets are: ``classes`` of whole images, ``boxes`` of objects, ``instances`` (boxes and masks of
            objects) or ``pixels`` (a class for each). All but the first are letterboxed, never cropped in evaluation.
    """

    class_names: tuple[str, ...]
    multi_label: bool = False
    image_size: int = 224
    eval_batch_size: int = 16
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    eval_transforms: str | None = None
    kind: str = "classes"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a manifest."""
        return asdict(self) | {"class_names": list(self.class_names)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataSpec:
        """Undo :meth:`as_dict`."""
        return cls(**{**data, "class_names": tuple(data["class_names"])})
