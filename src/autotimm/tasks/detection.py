"""Detection: boxes, classes and scores of objects, and for instance segmentation their masks."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from autotimm.data.annotations.outlines import RunLengths
from autotimm.data.transforms.image_transforms import resize_masks
from autotimm.errors import number, require, require_choice
from autotimm.image_size import ImageSize
from autotimm.metrics import MetricConfig, mean_ap
from autotimm.models.backbone.weights import resolve_weights
from autotimm.models.detection.build_detector import build_detector, nms_threshold
from autotimm.models.detection.detector import Detector
from autotimm.models.detection.two_stage import TwoStageDetector
from autotimm.tasks.base import Task, TaskOptions
from autotimm.tasks.letterbox import encode, places, shown, to_original
from autotimm.tasks.spec_checks import check_num_classes, check_spec, names_of
from autotimm.tasks.tiles import Window, merge_objects, tile_windows, tiled
from autotimm.tasks.views import View, merged_objects, seen
from autotimm.types import Batch, DataSpec, ExplainedScore, ObjectPrediction, Placement, Stage, Step, Tiling

__all__ = ["InstanceSegmentor", "ObjectDetector", "ObjectOptions", "ObjectTask", "measurable"]


class ObjectOptions(TaskOptions, total=False):
    """The options that all tasks with objects share; see :class:`ObjectDetector` for what they do."""

    width: int
    pretrained: bool | str | None
    image_size: ImageSize | None
    in_chans: int
    drop_path_rate: float
    max_objects: int
    nms_iou: float | None


class ObjectTask(Task, ABC):
    """Detect objects with one of torchvision's detectors on any timm backbone with feature maps.

    Args:
        backbone: Name of a timm model.
        num_classes: Number of classes C, at least 1; the background is none of them.
        arch: The detector, one of :attr:`archs`.
        threshold: Score in (0, 1) from which on an object is predicted; metrics see all objects.
        width: Channels of pyramid and heads.
        pretrained: As for :class:`autotimm.ImageClassifier`; of the backbone alone.
        image_size: Size of the images, for backbones that need it.
        in_chans: Channels of the images; 3 is RGB. Pretrained weights are adapted to others.
        drop_path_rate: Probability of skipping a residual block.
        max_objects: Objects per image at most, those with the highest scores; also in metrics.
        nms_iou: Overlap of two boxes of one class from which the one with the lower score is dropped.
        options: The options that all tasks share.
    """

    cuts_tiles: ClassVar[bool] = True
    takes_calibration: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("boxes", "instances")
    archs: ClassVar[tuple[str, ...]]
    """The detectors to choose from."""

    _shared_options: ClassVar[type] = ObjectOptions
    threshold: float
    views: tuple[View, ...] = ()

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        arch: str,
        threshold: float,
        width: int = 256,
        pretrained: bool | str | None = None,
        image_size: ImageSize | None = None,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        max_objects: int = 100,
        nms_iou: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        owner = type(self).__name__
        require_choice("arch", owner, arch, self.archs)
        check_num_classes(num_classes, 1, owner)
        require(0 < number(threshold) < 1, "threshold", owner, "in (0, 1)", threshold, "Give for example 0.3.")
        self._num_classes, self.threshold, self._max_objects = num_classes, threshold, max_objects
        self._in_chans = in_chans
        self._nms_iou = nms_threshold(arch, nms_iou)
        weights = resolve_weights(backbone, False if self.is_loading else pretrained)

        def network(seed: int) -> nn.Module:
            return build_detector(
                arch, backbone, num_classes,
                weights=weights, seed=seed, image_size=image_size, width=width, drop_path_rate=drop_path_rate,
                max_objects=max_objects, nms_iou=nms_iou, in_chans=in_chans,
            )  # fmt: skip

        super().__init__(network, weights=weights, **options)

    @property
    def head(self) -> nn.Module:
        """The part of the detector that predicts objects from the maps of the pyramid. Read-only."""
        return self.network.get_submodule("heads" if isinstance(self.network, TwoStageDetector) else "model.head")

    def setup(self, stage: str) -> None:
        """As in the base class; report images with more objects than are ever found in one."""
        super().setup(stage)
        if stage == "fit" and (data := self._data) is not None:
            most = max(table.most_objects() for table in data.tables.values())
            notice = (
                f"An image has {most} objects, and at most {self._max_objects} are found in one: give a larger "
                "`max_objects`."
            )
            if most > self._max_objects and notice not in data.notices:
                data.notices.append(notice)

    def step(self, batch: Batch, stage: Stage) -> Step:
        """Named losses in training; else predicted and true objects, in pixels of the original image."""
        if stage is Stage.TRAIN:
            return Step(self.network(batch.images, [_without_crowds(target) for target in batch.targets or ()]))
        output = self.output(batch)
        if batch.targets is None:
            return Step({}, output)
        placements = places(batch)
        predicted = [measurable(objects, place) for objects, place in zip(output, placements, strict=True)]
        truths = batch.truths or [_truth(*each) for each in zip(batch.targets, placements, strict=True)]
        return Step({}, predicted, [_true(truth) for truth in truths])

    def output(self, batch: Batch) -> list[dict[str, Tensor]]:
        """The objects of each image, in pixels of the network's input; those of tiles, or of views, are merged."""
        if batch.tiling is None and self.views:
            of_views = [self.infer(seen(batch.images, view)) for view in self.views]
            of_images = zip(zip(*of_views, strict=True), places(batch), strict=True)
            merged = (
                merged_objects(found, self.views, place, self._nms_iou, self._max_objects) for found, place in of_images
            )
            return [{name: value.to(batch.images.device) for name, value in objects.items()} for objects in merged]
        if batch.tiling is None:
            detections: list[dict[str, Tensor]] = self.infer(batch.images)
            return detections
        return [self._objects_of_tiles(image, batch.tiling) for image in batch.images]

    def _objects_of_tiles(self, image: Tensor, tiling: Tiling) -> dict[str, Tensor]:
        height, width = image.shape[-2:]
        found: list[tuple[Window, dict[str, Tensor]]] = []
        windows = tile_windows(height, width, tiling)
        for batch, objects in tiled(image, windows, tiling, self.eval_batch_size, self.infer):
            found += zip(batch, objects, strict=True)
        merged = merge_objects(found, height, width, tiling, self._nms_iou, self._max_objects)
        return {name: value.to(image.device) for name, value in merged.items()}

    def decode(self, output: Sequence[dict[str, Tensor]], batch: Batch) -> list[ObjectPrediction]:
        """Objects whose score reaches the threshold of their class, in pixels of the original image."""
        images = zip(output, batch.ids, places(batch), strict=True)
        return [self._prediction(objects, id, place) for objects, id, place in images]

    def _prediction(self, objects: dict[str, Tensor], id: str, place: Placement) -> ObjectPrediction:
        least = torch.tensor(self.least_scores(self._num_classes), dtype=torch.float64)
        kept = objects["scores"].cpu() >= least[objects["labels"].cpu()]
        objects = {name: value.cpu()[kept] for name, value in objects.items()}
        boxes = to_original(objects["boxes"].float(), place)
        masks: tuple[str, ...] = ()
        if "masks" in objects:
            runs = encode(objects["masks"].float(), boxes, place.height, place.width)
            masks = tuple(counts.decode() for _, counts in runs)
        names = self.class_names
        return ObjectPrediction(
            id,
            tuple(names[label] for label in objects["labels"].tolist()),
            tuple(objects["scores"].tolist()),
            tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist()),
            (place.height, place.width),
            masks,
        )

    def explained(self, batch: Batch, found: ObjectPrediction, label: str | None) -> ExplainedScore | None:
        """The score of the object with the highest one, of a class or of all."""
        if not found.labels or (label is not None and label not in found.labels):
            return None
        (objects,) = self.output(batch)
        index = self.class_names.index(label or found.labels[0])
        at = int((objects["labels"] == index).nonzero()[0])  # the highest score comes first
        best = {name: value[at : at + 1] for name, value in objects.items()}
        (only,) = self.decode([best], batch)
        score = cast(Detector, self.network).object_score(batch.images, {name: each[0] for name, each in best.items()})
        return ExplainedScore(
            only.labels[0], only.scores[0], score.logit, score.probability, score.level, only.boxes[0]
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the labels; their numbers before the data is known."""
        return names_of(self.spec, self._num_classes)

    def check_data(self, spec: DataSpec) -> None:
        """Refuse data with another number of classes, or of another kind."""
        check_spec(spec, self.kinds, self._num_classes, type(self).__name__, self._in_chans)


class ObjectDetector(ObjectTask):
    """Detect objects with FCOS, RetinaNet or Faster R-CNN on any timm backbone with feature maps.

    Args:
        backbone: Name of a timm model, see :func:`autotimm.list_backbones`. Those with several strides get a feature
            pyramid (Lin et al., CVPR 2017), plain ViTs a simple one (Li et al., "Exploring plain vision transformer
            backbones for object detection", ECCV 2022).
        num_classes: Number of classes C, at least 1; the background is none of them.
        arch: ``fcos`` (Tian et al., ICCV 2019), ``retinanet`` (Lin et al., ICCV 2017) or ``faster_rcnn`` (Ren et al.,
            NeurIPS 2015), as torchvision has them.
        width: Channels of pyramid and heads, a multiple of 64, and for Faster R-CNN half the number of regions per
            image. 64 is small and fast.
        threshold: Score in (0, 1) from which on an object is predicted; metrics see all objects.
        pretrained: ``None`` loads pretrained weights of the backbone if they are available, ``True`` requires them,
            ``False`` never loads them; a path loads that file.
        image_size: Size of the images in pixels, the side of a square or height and width, for backbones that need it;
            ``None`` is their default.
        in_chans: Channels of the images; 3 is RGB. Pretrained weights are adapted to others.
        drop_path_rate: Probability of skipping a residual block.
        max_objects: Objects that are found in an image at most, those with the highest scores. Average precision is
            computed with as many; COCO's is that of 100, the default.
        nms_iou: Intersection over union in [0, 1] of two boxes of one class above which the one with the lower score is
            dropped; ``None`` is torchvision's value, 0.6 for FCOS and 0.5 for the others.
        options: The options that all tasks share, see :class:`autotimm.tasks.base.Task`.

    Shape:
        - images: (N, in_chans, H, W), RGB ``uint8``, or floats in [0, 1].
        - output in evaluation: N dictionaries of ``boxes`` (K, 4), ``scores`` (K,) and ``labels`` (K,).

    Raises:
        UsageError: If an argument is wrong.
        ModelError: If the backbone is unknown or has no feature maps.
        WeightsError: If pretrained weights are required and not available.

    Example:
        >>> import torch
        >>> from autotimm import ObjectDetector
        >>> model = ObjectDetector("test_resnet", num_classes=2, width=64, pretrained=False).eval()
        >>> sorted(model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0])
        ['boxes', 'labels', 'scores']
    """

    archs = ("fcos", "retinanet", "faster_rcnn")

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        arch: str = "fcos",
        threshold: float = 0.3,
        **options: Unpack[ObjectOptions],
    ) -> None:
        super().__init__(backbone, num_classes, arch=arch, threshold=threshold, **options)

    def default_metrics(self) -> list[MetricConfig]:
        """COCO's mean average precision of boxes."""
        return [mean_ap("mAP", self._num_classes, "bbox", self._max_objects)]


class InstanceSegmentor(ObjectTask):
    """Detect objects and their masks with Mask R-CNN on any timm backbone with feature maps.

    Args:
        backbone: Name of a timm model, as for :class:`autotimm.ObjectDetector`.
        num_classes: Number of classes C, at least 1; the background is none of them.
        arch: ``mask_rcnn`` (He et al., ICCV 2017), as torchvision has it.
        width: Channels of pyramid and heads, a multiple of 64, and half the number of regions per image. 64 is small
            and fast.
        threshold: Score in (0, 1) from which on an object is predicted; metrics see all objects.
        pretrained: ``None`` loads pretrained weights of the backbone if they are available, ``True`` requires them,
            ``False`` never loads them; a path loads that file.
        image_size: Size of the images in pixels, the side of a square or height and width, for backbones that need it;
            ``None`` is their default.
        in_chans: Channels of the images; 3 is RGB. Pretrained weights are adapted to others.
        drop_path_rate: Probability of skipping a residual block.
        max_objects: Objects that are found in an image at most, those with the highest scores. Average precision is
            computed with as many; COCO's is that of 100, the default.
        nms_iou: Intersection over union in [0, 1] of two boxes of one class above which the one with the lower score is
            dropped; ``None`` is torchvision's value, 0.6 for FCOS and 0.5 for the others.
        options: The options that all tasks share, see :class:`autotimm.tasks.base.Task`.

    Shape:
        - images: (N, in_chans, H, W), RGB ``uint8``, or floats in [0, 1].
        - output in evaluation: N dictionaries of ``boxes`` (K, 4), ``scores`` (K,), ``labels`` (K,) and ``masks``
          (K, 28, 28), probabilities within the boxes.

    Raises:
        UsageError: If an argument is wrong.
        ModelError: If the backbone is unknown or has no feature maps.
        WeightsError: If pretrained weights are required and not available.

    Example:
        >>> import torch
        >>> from autotimm import InstanceSegmentor
        >>> model = InstanceSegmentor("test_resnet", num_classes=2, width=64, pretrained=False).eval()
        >>> sorted(model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0])
        ['boxes', 'labels', 'masks', 'scores']
    """

    kinds = ("instances",)
    archs = ("mask_rcnn",)

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        arch: str = "mask_rcnn",
        threshold: float = 0.5,
        **options: Unpack[ObjectOptions],
    ) -> None:
        super().__init__(backbone, num_classes, arch=arch, threshold=threshold, **options)

    def default_metrics(self) -> list[MetricConfig]:
        """COCO's mean average precision of masks, and that of boxes."""
        most = self._max_objects
        return [mean_ap("mask_mAP", self._num_classes, "segm", most), mean_ap("mAP", self._num_classes, "bbox", most)]


def _without_crowds(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """The objects that a detector learns from: all but crowds."""
    keep = ~target["crowd"] if "crowd" in target else torch.ones_like(target["labels"], dtype=torch.bool)
    return {name: value[keep] for name, value in target.items() if name != "crowd"}


def measurable(objects: dict[str, Tensor], place: Placement) -> dict[str, Any]:
    """Predicted objects in pixels of the original image, under the names that torchmetrics expects."""
    moved: dict[str, Any] = {**objects, "boxes": to_original(objects["boxes"].float(), place)}
    if "masks" in objects:
        moved["masks"] = encode(objects["masks"].float(), moved["boxes"], place.height, place.width)
    return moved


def _truth(target: dict[str, Tensor], place: Placement) -> dict[str, Any]:
    """The truth of a sample from a loader of the caller's own: its target, in pixels of the original image."""
    truth: dict[str, Any] = {**target, "boxes": to_original(target["boxes"], place)}
    if "masks" in target:
        masks = resize_masks(shown(target["masks"], place), (place.height, place.width)).to(torch.uint8).cpu().numpy()
        truth["masks"] = [RunLengths.of_mask(mask).as_pair() for mask in masks]
    return truth


def _true(truth: dict[str, Any]) -> dict[str, Any]:
    """True objects under the names that torchmetrics expects."""
    true = {name: truth[name] for name in ("boxes", "labels", "area", "masks") if name in truth}
    return true | ({"iscrowd": truth["crowd"].to(torch.int64)} if "crowd" in truth else {})
