"""Shared data types: stages, samples, batches, steps, predictions and the description of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from autotimm.errors import UsageError, sentence
from autotimm.image_size import ImageSize, height_and_width, read_image_size

__all__ = [
    "Batch",
    "Calibration",
    "DataSpec",
    "ExplainedScore",
    "Neighbour",
    "ObjectPrediction",
    "PixelPrediction",
    "Placement",
    "Prediction",
    "Sample",
    "Stage",
    "Step",
    "Tiling",
    "check_image_size",
]


def check_image_size(value: object, owner: str, name: str = "image_size") -> ImageSize:
    """Convert the size of images that Python code or a record gives.

    Args:
        value: A whole number, or a pair of them.
        owner: Who was given it.
        name: The argument.

    Raises:
        UsageError: If it is no size.
    """
    try:
        if isinstance(value, str):
            raise TypeError
        return read_image_size(value)
    except (TypeError, ValueError):
        must = "a whole number, 1 or more, or a pair of them, height and width"
        raise UsageError(sentence(name, owner, must, value, "Give for example 224, or (480, 640).")) from None


class Stage(str, Enum):
    """The stage of a run that a step belongs to. The value is the prefix of logged names (``val/accuracy``)."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    PREDICT = "predict"

    # In an f-string, Python 3.10 prints "train" and Python 3.12 "Stage.TRAIN" without this line.
    __str__ = str.__str__


class Placement(NamedTuple):
    """Position of a letterboxed image within the network input, to map predictions back.

    Attributes:
        height: Height of the original image in pixels, after its EXIF orientation is applied.
        width: Width of the original image in pixels, after its EXIF orientation is applied.
        top: First row of the input that the image covers.
        left: First column of the input that the image covers.
        shown_height: Number of rows of the input that the image covers.
        shown_width: Number of columns of the input that the image covers.
    """

    height: int
    width: int
    top: int
    left: int
    shown_height: int
    shown_width: int


class Tiling(NamedTuple):
    """How an image is cut into overlapping tiles, each as large as the network's input.

    Attributes:
        height: Height of a tile in pixels.
        width: Width of a tile in pixels.
        overlap: Share of its sides that a tile has in common with the next one at least, in [0, 1).
    """

    height: int
    width: int
    overlap: float


class Sample(NamedTuple):
    """One image with its target and its id.

    Attributes:
        image: RGB ``uint8`` of shape (3, H, W), or (C, H, W) of data with other channels; a
            ``torchvision.tv_tensors.Image``, with its EXIF orientation applied unless that is ignored.
        target: The target, or ``None`` if there is none. For classification a class index, or a vector of zeros and
            ones; for detection a dictionary of ``boxes`` (K, 4) in pixels as x1, y1, x2, y2, ``labels`` (K,), ``crowd``
            (K,) and, for instance segmentation, ``masks`` (K, H, W); for semantic segmentation class indices (H, W),
            255 where unlabeled.
        id: Stable name of the sample within its data set, ``/``-separated; its position in every per-sample stream.
        placement: Position of the original image within ``image`` if it was letterboxed, otherwise ``None``.
        truth: What metrics compare predictions with, where that is not the target: in pixels of the original image, and
            with all objects. For detection a dictionary of ``boxes`` (K, 4), ``labels`` (K,), ``crowd`` (K,), ``area``
            (K,), 0 where it follows from box or mask, and, for instance segmentation, ``masks``, K run lengths of COCO
            as ``((height, width), counts)``; for semantic segmentation class indices (H, W).
        tiling: How the task cuts the image, which is then the whole original; ``None`` if the network sees it at once.
    """

    image: Tensor
    target: Any
    id: str
    placement: Placement | None = None
    truth: Any = None
    tiling: Tiling | None = None


class Batch(NamedTuple):
    """A batch of samples with images of equal size.

    Attributes:
        images: RGB of shape (N, 3, H, W), or (N, C, H, W) of data with other channels; ``uint8`` in [0, 255] or float
            in [0, 1]. The network normalizes them.
        targets: ``int64`` (N,) class indices; ``float32`` (N, C) of zeros and ones for multi-label classification;
            ``int64`` (N, H, W) for semantic segmentation; a list of N dictionaries for detection (see
            :class:`Sample`); or ``None``.
        ids: The ids of the N samples; empty if a user's own loader does not provide them.
        fingerprints: 16 hexadecimal digits per sample, a digest of its image and target as they enter the network. It
            is computed by the process that loads them, so that the ledger need not wait for a device.
        placements: ``int64`` (N, 6), one :class:`Placement` per image, or ``None`` if images are not letterboxed.
        truths: In evaluation, the truth of each of the N samples (see :class:`Sample`); ``None`` if it is the target.
        tiling: How the task cuts the images, which are then whole originals of any size; ``None`` for images that the
            network sees at once.
    """

    images: Tensor
    targets: Any = None
    ids: tuple[str, ...] = ()
    fingerprints: str = ""
    placements: Tensor | None = None
    truths: tuple[Any, ...] | None = None
    tiling: Tiling | None = None

    @classmethod
    def of(cls, batch: Any) -> Batch:
        """Convert what a data loader returns to a batch.

        Args:
            batch: A :class:`Batch`, which is returned as it is, a pair ``(images, targets)``, or images alone.

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

    def part(self, first: int, end: int) -> Batch:
        """Return some of the samples, in memory of their own.

        The bits of a step could depend on where in memory its images begin.

        Args:
            first: The first sample.
            end: The sample after the last.
        """
        own = slice(first, end)
        targets = self.targets
        return self._replace(
            images=self.images[own].clone(),
            targets=targets[own].clone() if isinstance(targets, Tensor) else targets and targets[own],
            ids=self.ids[own],
            fingerprints=self.fingerprints[16 * first : 16 * end],
            placements=None if self.placements is None else self.placements[own].clone(),
            truths=None if self.truths is None else self.truths[own],
        )


@dataclass(frozen=True)
class Step:
    """The result of a task's step on one batch.

    Attributes:
        losses: Named scalar losses, whose sum is minimized. Empty for a batch without targets.
        predictions: Input of the metrics and of :meth:`Task.decode`, first dimension N; or a list of N tensors, which
            metrics receive one at a time, if they differ in size.
        targets: Targets of the metrics, or ``None`` if metrics are not meaningful, as with mixup.
        weight: The divisor of the losses if it is not N: the sum of the samples' weights, a scalar. The mean over all
            batches is computed with it.
    """

    losses: Mapping[str, Tensor]
    predictions: Any = None
    targets: Any = None
    weight: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """Sum of all losses, a scalar."""
        return torch.stack(list(self.losses.values())).sum()


class Neighbour(NamedTuple):
    """A training image that is like a predicted one.

    Attributes:
        id: Its id.
        labels: The names of its classes.
        similarity: Cosine similarity of the features of both, in [-1, 1].
    """

    id: str
    labels: tuple[str, ...]
    similarity: float

    def as_plain(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return {"id": self.id, "labels": list(self.labels), "similarity": self.similarity}


class Prediction(NamedTuple):
    """Classification of one image.

    A named tuple rather than a frozen dataclass, since Lightning rebuilds the collections that it moves.

    Attributes:
        id: Path or id of the image.
        labels: Names of the predicted classes: one, or any number for multi-label classification.
        scores: Probability in [0, 1] per class name, in class order.
        members: Names of the classes in a set that contains the true one with a given probability, the likeliest first;
            empty if none was asked for.
        neighbours: The most similar training images, the nearest first; empty if none were asked for.
        novelty: Share of the validation images, in [0, 1), that are nearer to the training images than this one;
            ``None`` if it was not asked for.
    """

    id: str
    labels: tuple[str, ...]
    scores: dict[str, float]
    members: tuple[str, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    novelty: float | None = None


class ObjectPrediction(NamedTuple):
    """Objects detected in one image, highest score first.

    Attributes:
        id: Path or id of the image.
        labels: Class name of each of the K objects.
        scores: Score of each object, in [0, 1].
        boxes: x1, y1, x2, y2 of each object, in pixels of the original image.
        size: Height and width of the original image in pixels.
        masks: Mask of each object as COCO compressed run-length encoding, which :meth:`mask` decodes. Empty for models
            that predict boxes alone.
        neighbours: The most similar training images, the nearest first; empty if none were asked for.
        novelty: Share of the validation images, in [0, 1), that are nearer to the training images than this one;
            ``None`` if it was not asked for.
    """

    id: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    size: tuple[int, int]
    masks: tuple[str, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    novelty: float | None = None

    def mask(self, index: int) -> Tensor:
        """Decode the mask of one object.

        Args:
            index: Index of the object, from 0.

        Returns:
            bool (H, W), in the size of the original image.
        """
        return torch.from_numpy(coco_mask.decode({"size": list(self.size), "counts": self.masks[index]})).bool()


class PixelPrediction(NamedTuple):
    """Semantic segmentation of one image.

    Attributes:
        id: Path or id of the image.
        labels: Names of the classes that occur, largest area first.
        scores: Share of the pixels in [0, 1] per class name, in class order.
        png: Class indices as an 8-bit PNG file in the size of the original image, which :meth:`mask` decodes.
        neighbours: The most similar training images, the nearest first; empty if none were asked for.
        novelty: Share of the validation images, in [0, 1), that are nearer to the training images than this one;
            ``None`` if it was not asked for.
    """

    id: str
    labels: tuple[str, ...]
    scores: dict[str, float]
    png: bytes
    neighbours: tuple[Neighbour, ...] = ()
    novelty: float | None = None

    def mask(self) -> Tensor:
        """Decode the class indices.

        Returns:
            ``uint8`` (H, W), in the size of the original image.
        """
        with Image.open(BytesIO(self.png)) as image:
            return torch.from_numpy(np.array(image))


class ExplainedScore(NamedTuple):
    """A score of one image as a function of its pixels, see :meth:`autotimm.tasks.base.Task.explained`.

    Both functions take images (N, C, H, W), floats in [0, 1] of the size of the network's input, and return (N,).

    Attributes:
        label: The name of the class.
        score: The score, in [0, 1], as predictions have it.
        logit: What is differentiated: the number that becomes the score.
        probability: The score of other images, in [0, 1].
        level: The feature map that the score is computed from, an index into the maps of a network with several; -1 is
            the coarsest.
        box: x1, y1, x2, y2 of an object, in pixels of the original image; ``None`` for whole images and regions.
    """

    label: str
    score: float
    logit: Callable[[Tensor], Tensor]
    probability: Callable[[Tensor], Tensor]
    level: int = -1
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Calibration:
    """What was fitted on validation samples for the predictions of a model; stored in its checkpoint.

    Attributes:
        temperature: What logits are divided by before they become probabilities; 1 changes nothing.
        thresholds: Score in (0, 1) from which on each class is predicted, in class order; empty: the run's.
        aim: What the thresholds were chosen for: ``f1``, or a precision as ``precision 0.9``.
        samples: Number of samples that they were fitted on.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    aim: str = "f1"
    samples: int = 0

    @property
    def changes_nothing(self) -> bool:
        """Whether predictions are the same without it."""
        return self.temperature == 1 and not self.thresholds

    def as_dict(self) -> dict[str, Any]:
        """Convert to a dictionary of built-in types, for a checkpoint or a ledger."""
        return asdict(self) | {"thresholds": list(self.thresholds)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Create a calibration from the result of :meth:`as_dict`; further entries are ignored."""
        return cls(float(data["temperature"]), tuple(data["thresholds"]), data["aim"], data["samples"])


@dataclass(frozen=True)
class DataSpec:
    """The properties of the training data that a model needs for prediction. They are stored in its checkpoint.

    Attributes:
        class_names: Names of the classes, in the order of the logits.
        multi_label: Whether an image may have several classes.
        image_size: Size of the network input in pixels: the side of a square, or height and width.
        eval_batch_size: Images per batch in evaluation and prediction. Batches are padded to it, since logits depend on
            the batch size in the last bits.
        crop_pct: Side of the central crop in evaluation, as a share in (0, 1] of the resized shorter side.
        interpolation: Interpolation of the resize, a value of ``torchvision.transforms.InterpolationMode``.
        eval_transforms: The user's own transforms in place of resize and crop, serialized by
            :func:`autotimm.serialization.plain_value`; ``None`` for the built-in ones.
        kind: Kind of the targets: ``classes`` (of whole images), ``boxes``, ``instances`` (boxes and masks) or
            ``pixels`` (a class per pixel). Images are letterboxed in evaluation for all kinds but ``classes``.
        category_ids: The numbers that the COCO file gave the classes, in their order; empty if there was none.
        in_chans: Channels of the images; 3 is RGB.
        ignore_exif: Whether images are read as they are stored, without the turn that an EXIF tag asks for.
        overlap: Share of their sides that tiles have in common, in [0, 1), if images are cut into tiles of
            ``image_size`` in evaluation; ``None`` if they are not.
        decode: How much of a JPEG is decoded: ``full``, or ``reduced`` for what evaluation needs.
    """

    class_names: tuple[str, ...]
    multi_label: bool = False
    image_size: ImageSize = 224
    eval_batch_size: int = 16
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    eval_transforms: str | None = None
    kind: str = "classes"
    category_ids: tuple[int, ...] = ()
    in_chans: int = 3
    ignore_exif: bool = False
    overlap: float | None = None
    decode: str = "full"

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut in evaluation; ``None`` if they are not."""
        return None if self.overlap is None else Tiling(*height_and_width(self.image_size), self.overlap)

    def as_dict(self) -> dict[str, Any]:
        """Convert to a dictionary of built-in types, for a checkpoint or a manifest."""
        data = asdict(self) | {"class_names": list(self.class_names), "category_ids": list(self.category_ids)}
        data["image_size"] = [*self.image_size] if isinstance(self.image_size, tuple) else self.image_size
        defaults = {"category_ids": [], "in_chans": 3, "ignore_exif": False, "overlap": None, "decode": "full"}
        # Those are left out: records are as those of versions that did not know them.
        return {name: value for name, value in data.items() if name not in defaults or value != defaults[name]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataSpec:
        """Create a spec from the result of :meth:`as_dict`. Missing entries get their defaults."""
        tuples = {name: tuple(data[name]) for name in ("class_names", "category_ids") if name in data}
        size = {"image_size": check_image_size(data["image_size"], "the checkpoint")} if "image_size" in data else {}
        return cls(**{**data, **tuples, **size})
