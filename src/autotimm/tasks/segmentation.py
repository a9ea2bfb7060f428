"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Unpack

from autotimm.constants import IGNORE_INDEX
from autotimm.errors import require
from autotimm.image_size import ImageSize
from autotimm.losses.pixel_losses import build_dense_loss
from autotimm.metrics import MetricConfig, region_scores
from autotimm.models.backbone.weights import resolve_weights
from autotimm.models.segmentation.segmenter import build_segmenter
from autotimm.tasks.base import Task, TaskOptions
from autotimm.tasks.letterbox import likeliest, places, shown
from autotimm.tasks.spec_checks import check_num_classes, check_spec, names_of
from autotimm.tasks.tiles import TileLabels, column_blocks, cut_targets, tile_windows, tiled
from autotimm.tasks.views import View, mean_probabilities, seen
from autotimm.types import Batch, DataSpec, ExplainedScore, PixelPrediction, Placement, Stage, Step, Tiling

__all__ = ["SemanticSegmentor"]

_MOST = 256  # classes that fit into a byte


class _OfTiles(NamedTuple):
    """What the tiles of an image make: the class of each pixel, the sum of losses, and of how many known pixels."""

    labels: Tensor
    loss: Tensor
    known: Tensor


class SemanticSegmentor(Task):
    """Classify every pixel, with a decoder of segmentation-models-pytorch on any timm backbone with feature maps.

    Args:
        backbone: Name of a timm model, see :func:`autotimm.list_backbones`. Plain ViTs get a simple pyramid (Li et al.,
            ECCV 2022).
        num_classes: Number of classes C, from 2 to 256.
        arch: ``fpn`` (Kirillov et al., CVPR 2019), ``unet`` (Ronneberger et al., MICCAI 2015), ``deeplabv3plus`` (Chen
            et al., ECCV 2018), ``upernet`` (Xiao et al., ECCV 2018), ``segformer`` (Xie et al., NeurIPS 2021), or a
            callable or the import path of one, see :func:`autotimm.models.segmentation.build_segmenter`.
        width: Channels of the decoder. 64 is small and fast.
        loss: ``ce``, ``dice``, ``focal``, or several joined with ``+``, see
            :func:`autotimm.losses.pixel_losses.build_dense_loss`.
        class_weights: One positive weight per class, for losses with a name.
        ignore_index: Class index of pixels that losses and metrics ignore. They always ignore 255 too, which is what
            the data modules use.
        pretrained: ``None`` loads pretrained weights of the backbone if they are available, ``True`` requires them,
            ``False`` never loads them; a path loads that file.
        image_size: Size of the images in pixels, the side of a square or height and width, for backbones that need it;
            ``None`` is their default.
        in_chans: Channels of the images; 3 is RGB. Pretrained weights are adapted to others.
        drop_path_rate: Probability of skipping a residual block.
        options: The options that all tasks share, see :class:`autotimm.tasks.base.Task`.

    Shape:
        - images: (N, in_chans, H, W), RGB ``uint8``, or floats in [0, 1].
        - logits: (N, C, H, W).

    Raises:
        UsageError: If an argument is wrong.
        ModelError: If the backbone is unknown, or does not fit the decoder.
        WeightsError: If pretrained weights are required and not available.

    Example:
        >>> import torch
        >>> from autotimm import SemanticSegmentor
        >>> model = SemanticSegmentor("test_resnet", num_classes=2, width=64, pretrained=False).eval()
        >>> model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([1, 2, 64, 64])
    """

    cuts_tiles = True
    views: tuple[View, ...] = ()
    kinds = ("pixels",)

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        arch: str | Callable[..., nn.Module] = "fpn",
        width: int = 256,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "ce",
        class_weights: Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        pretrained: bool | str | None = None,
        image_size: ImageSize | None = None,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **options: Unpack[TaskOptions],
    ) -> None:
        owner = type(self).__name__
        check_num_classes(num_classes, 2, owner)
        few = "Merge some: predictions are label images of 8 bits."
        require(num_classes <= _MOST, "num_classes", owner, f"at most {_MOST}", num_classes, few)
        criterion = build_dense_loss(
            loss, num_classes=num_classes, class_weights=class_weights, ignore_index=ignore_index
        )
        weights = resolve_weights(backbone, False if self.is_loading else pretrained)
        self._num_classes, self._ignore_index, self._in_chans = num_classes, ignore_index, in_chans

        def network(seed: int) -> nn.Module:
            return build_segmenter(
                arch, backbone, num_classes,
                weights=weights, seed=seed, image_size=image_size, width=width, drop_path_rate=drop_path_rate,
                in_chans=in_chans,
            )  # fmt: skip

        super().__init__(network, weights=weights, **options)
        self.criterion = criterion

    def step(self, batch: Batch, stage: Stage) -> Step:
        """Loss of one batch, with logits in training, and in evaluation the classes of the original images' pixels.

        The loss is a mean over the pixels of the network's square that are not ignored. Of several views there is none:
        it is one of logits.
        """
        if batch.tiling is not None and batch.targets is not None:
            return self._step_of_tiles(batch, batch.tiling)
        if batch.tiling is None and self.views and stage is not Stage.TRAIN:
            return self._step_of_views(batch)
        logits = self.output(batch)
        if batch.targets is None:
            return Step({}, logits)
        targets = self._with_ignored(batch.targets)
        known = (targets != self._ignore_index).sum().to(logits.dtype)
        losses = {"loss": self.criterion(logits, targets)}
        if batch.truths is None:
            return Step(losses, logits, targets, known)
        predicted = [self.original_labels(each, place) for each, place in zip(logits, places(batch), strict=True)]
        return Step(losses, predicted, [self._with_ignored(truth) for truth in batch.truths], known)

    def _step_of_views(self, batch: Batch) -> Step:
        """The classes that :meth:`decode` gives the pixels of the original images; without losses."""
        means = self.output(batch)
        if batch.targets is None:
            return Step({}, means)
        if batch.truths is None:
            return Step({}, torch.stack(means).to(batch.images.device), self._with_ignored(batch.targets))
        predicted = [self.original_labels(each, place) for each, place in zip(means, places(batch), strict=True)]
        return Step({}, predicted, [self._with_ignored(truth) for truth in batch.truths])

    def _step_of_tiles(self, batch: Batch, tiling: Tiling) -> Step:
        """The classes of whole images, and the mean loss over the pixels of their tiles."""
        targets = self._with_ignored(batch.targets)
        parts = [self._tiles(image, tiling, target) for image, target in zip(batch.images, targets, strict=True)]
        known = torch.stack([part.known for part in parts]).sum()
        loss = torch.stack([part.loss for part in parts]).sum() / known.clamp(min=1)
        return Step({"loss": loss}, [part.labels for part in parts], list(targets), known)

    def output(self, batch: Batch) -> Any:
        """Logits; of whole images in tiles the likeliest class of each pixel, a list of ``uint8`` (H, W).

        While images are looked at more than once, the mean probabilities, a list of (C, H, W).
        """
        if batch.tiling is None and self.views:
            return mean_probabilities([self.infer(seen(batch.images, view)) for view in self.views], self.views)
        if batch.tiling is None:
            return self.infer(batch.images)
        return [self._tiles(image, batch.tiling).labels for image in batch.images]

    def _tiles(self, image: Tensor, tiling: Tiling, target: Tensor | None = None) -> _OfTiles:
        """Predict the tiles of an image, and measure the loss if its classes are known."""
        height, width = image.shape[-2:]
        windows, labels = tile_windows(height, width, tiling), torch.zeros(height, width, dtype=torch.uint8)
        loss = known = torch.zeros((), device=image.device)
        for left, right in column_blocks(width, self._num_classes, tiling):
            block = TileLabels(labels, left, right, self._num_classes, tiling)
            within = [window for window in windows if window.left < right and window.left + window.width > left]
            for batch, logits in tiled(image, within, tiling, self.eval_batch_size, self.infer):
                for window, of_tile in zip(batch, logits, strict=True):
                    block.add(window, of_tile)
                    if target is not None and window.left >= left:  # once, where two parts of the image share it
                        truth = cut_targets(target, window, tiling, self._ignore_index)[None]
                        number = (truth != self._ignore_index).sum().to(loss.dtype)
                        known = known + number
                        loss = loss + (self.criterion(of_tile[None], truth) * number if number else 0)
            block.finish()
        return _OfTiles(labels, loss, known)

    def original_labels(self, logits: Tensor, place: Placement) -> Tensor:
        """The likeliest class of each pixel of an original image, ``uint8`` (H, W), on the CPU."""
        return likeliest(shown(logits.float().cpu(), place), place.height, place.width)

    def _with_ignored(self, targets: Tensor) -> Tensor:
        """Targets with ``ignore_index`` in place of 255, which is what data modules write for unknown pixels."""
        # With 256 classes, 255 is a class, in a loader of the caller's own.
        if self._ignore_index == IGNORE_INDEX or self._num_classes > IGNORE_INDEX:
            return targets
        targets = targets.long()  # bytes cannot hold -1
        return targets.masked_fill(targets == IGNORE_INDEX, self._ignore_index)

    def decode(self, output: Any, batch: Batch) -> list[PixelPrediction]:
        """The likeliest class of each pixel of the original images."""
        if batch.tiling is None:
            output = [self.original_labels(logits, place) for logits, place in zip(output, places(batch), strict=True)]
        return [self._prediction(labels, id) for labels, id in zip(output, batch.ids, strict=True)]

    def _prediction(self, labels: Tensor, id: str) -> PixelPrediction:
        shares = torch.bincount(labels.flatten(), minlength=self._num_classes).double() / labels.numel()
        scores = dict(zip(self.class_names, shares.tolist(), strict=True))
        occurring = sorted((name for name, share in scores.items() if share), key=lambda name: -scores[name])
        file = BytesIO()
        Image.fromarray(labels.numpy()).save(file, "png")
        return PixelPrediction(id, tuple(occurring), scores, file.getvalue())

    def explained(self, batch: Batch, found: PixelPrediction, label: str | None) -> ExplainedScore | None:
        """The mean logit and probability of a class over its region, by default of the class with the largest."""
        label = found.labels[0] if label is None else label
        index, (place,) = self.class_names.index(label), places(batch)
        region = torch.zeros(batch.images.shape[-2:], dtype=torch.bool, device=batch.images.device)
        shown(region, place).copy_(shown(self.infer(batch.images)[0].argmax(0) == index, place))
        if not region.any():
            return None

        def logit(images: Tensor) -> Tensor:
            return cast(Tensor, self.network(images))[:, index][:, region].mean(dim=1)

        def probability(images: Tensor) -> Tensor:
            return cast(Tensor, self.network(images)).softmax(dim=1)[:, index][:, region].mean(dim=1)

        with torch.no_grad():
            score = float(probability(batch.images))
        return ExplainedScore(label, score, logit, probability)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the logits; their numbers before the data is known."""
        return names_of(self.spec, self._num_classes)

    def default_metrics(self) -> list[MetricConfig]:
        """Mean intersection over union, with Dice and pixel accuracy."""
        return [region_scores("mIoU", self._num_classes, self._ignore_index)]

    def check_data(self, spec: DataSpec) -> None:
        """Refuse data with another number of classes, or of another kind."""
        check_spec(spec, self.kinds, self._num_classes, "SemanticSegmentor", self._in_chans)
