"""Image classification: one class per image, or any number of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from typing_extensions import Unpack

from autotimm.errors import UsageError, number, require, require_flags, sentence
from autotimm.image_size import ImageSize, height_and_width
from autotimm.losses.image_losses import build_loss
from autotimm.metrics import MetricConfig, default_metrics
from autotimm.models.backbone.pooled import PooledClassifier, build_classifier
from autotimm.models.backbone.weights import resolve_weights
from autotimm.tasks.base import Task, TaskOptions
from autotimm.tasks.spec_checks import check_num_classes, check_spec, names_of
from autotimm.tasks.views import View, seen
from autotimm.types import Batch, DataSpec, ExplainedScore, Prediction, Stage, Step

__all__ = ["ImageClassifier"]


class ImageClassifier(Task):
    """Classify images with any timm backbone that pools to a vector.

    Args:
        backbone: Name of a timm model, see :func:`autotimm.list_backbones`; ``hf-hub:owner/name`` works too.
        num_classes: Number of classes C, at least 2 (at least 1 for multi-label).
        multi_label: Whether an image may have any number of classes. Targets are then (N, C) zeros and ones.
        threshold: Probability in (0, 1) from which on a class is predicted, for multi-label.
        pretrained: ``None`` loads pretrained weights if the cache or, after one quick probe, the hub has them, and else
            starts from random ones; ``True`` requires them; ``False`` never loads them; a path loads that file.
        image_size: Size of the images in pixels, the side of a square or height and width, for backbones that need it;
            ``None`` is their default.
        in_chans: Channels of the images; 3 is RGB. Pretrained weights are adapted to others.
        head_dropout: Probability of dropping a feature before the head.
        drop_path_rate: Probability of skipping a residual block (Huang et al., "Deep networks with stochastic depth",
            ECCV 2016).
        label_smoothing: Share of the target spread over all classes (Szegedy et al., CVPR 2016).
        mixup_alpha: Beta parameter of mixup (Zhang et al., ICLR 2018); 0 is off.
        cutmix_alpha: Beta parameter of CutMix (Yun et al., ICCV 2019); 0 is off. With both on, each batch draws one.
        loss: Name, import path, module or function; ``None`` is cross-entropy, or binary cross-entropy for multi-label.
        class_weights: One positive weight per class.
        options: The options that all tasks share, see :class:`autotimm.tasks.base.Task`.

    Shape:
        - images: (N, in_chans, H, W), RGB ``uint8``, or floats in [0, 1].
        - logits: (N, C).

    Raises:
        UsageError: If an argument is wrong.
        ModelError: If the backbone is unknown or does not pool to a vector.
        WeightsError: If pretrained weights are required and not available.

    Example:
        >>> import torch
        >>> from autotimm import ImageClassifier
        >>> model = ImageClassifier("test_resnet", num_classes=3, pretrained=False)
        >>> model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 3])
    """

    takes_calibration = True
    views: tuple[View, ...] = ()

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        multi_label: bool = False,
        threshold: float = 0.5,
        pretrained: bool | str | None = None,
        image_size: ImageSize | None = None,
        in_chans: int = 3,
        head_dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        loss: str | Callable[[Tensor, Tensor], Tensor] | None = None,
        class_weights: Sequence[float] | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        self._check(num_classes, multi_label, threshold, mixup_alpha, cutmix_alpha)
        criterion = build_loss(
            loss,
            multi_label=multi_label,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            num_classes=num_classes,
            soft_targets=bool(mixup_alpha or cutmix_alpha),
        )
        learnable = [name for name, parameter in criterion.named_parameters() if parameter.requires_grad]
        do = "The optimizer trains the network alone; give a loss with fixed parameters."
        require(not learnable, "loss", "ImageClassifier", "without learnable parameters", learnable, do)
        weights = resolve_weights(backbone, False if self.is_loading else pretrained)
        self._num_classes, self._multi_label = num_classes, multi_label
        self.threshold = threshold if multi_label else None
        self._image_size, self._in_chans = image_size, in_chans

        def network(seed: int) -> nn.Module:
            return build_classifier(
                backbone, num_classes, weights=weights, seed=seed, image_size=image_size,
                head_dropout=head_dropout, drop_path_rate=drop_path_rate, in_chans=in_chans,
            )  # fmt: skip

        super().__init__(network, weights=weights, **options)
        self.criterion = criterion
        mixes: list[nn.Module] = []
        if mixup_alpha:
            mixes.append(v2.MixUp(alpha=float(mixup_alpha), num_classes=num_classes))
        if cutmix_alpha:
            mixes.append(v2.CutMix(alpha=float(cutmix_alpha), num_classes=num_classes))
        self.mix = v2.RandomChoice(mixes) if mixes else None

    @staticmethod
    def _check(num_classes: int, multi_label: bool, threshold: float, mixup: float, cutmix: float) -> None:
        owner, least = "ImageClassifier", 1 if multi_label else 2
        require_flags(owner, multi_label=multi_label)
        check_num_classes(num_classes, least, owner)
        require(0 < number(threshold) < 1, "threshold", owner, "in (0, 1)", threshold, "Give for example 0.5.")
        for name, value in (("mixup_alpha", mixup), ("cutmix_alpha", cutmix)):
            # A smaller one is 0 in the 32-bit floats that torch draws the shares with, and its distribution refuses 0.
            fine = number(value) == 0 or number(value) >= torch.finfo(torch.float32).tiny
            require(fine, name, owner, "0, or at least 1e-37", value, "Give 0 to switch it off, or for example 0.2.")

    def step(self, batch: Batch, stage: Stage) -> Step:
        """Logits and loss of one batch; metrics do not see mixed targets.

        Of several views there are probabilities for the metrics, and no loss, which is that of logits.
        """
        images, targets = batch.images, batch.targets
        if self.views and stage is not Stage.TRAIN:
            return Step({}, self._probabilities(self.output(batch)).to(images.device), targets)
        mixed = stage is Stage.TRAIN and self.mix is not None and len(images) > 1
        if mixed:
            images, targets = self._mixed(images, targets)
        logits = self.infer(images)
        if targets is None:
            return Step({}, logits)
        weight = None if mixed else self._weight(targets)
        return Step({"loss": self.criterion(logits, targets)}, logits, None if mixed else targets, weight)

    def _weight(self, targets: Tensor) -> Tensor | None:
        """The weight of a batch in an epoch's mean: torch's cross-entropy divides by the weights of its classes."""
        loss = self.criterion
        if not isinstance(loss, nn.CrossEntropyLoss) or loss.weight is None or loss.reduction != "mean":
            return None
        return loss.weight[targets[targets != loss.ignore_index]].sum() if targets.ndim == 1 else None

    def _mixed(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images = images if images.is_floating_point() else images.float().div(255)
        assert self.mix is not None
        mixed: tuple[Tensor, Tensor] = self.mix(images, targets)
        return mixed

    def output(self, batch: Batch) -> Tensor:
        """Logits (N, C); (K, N, C) with those of K views, while images are looked at more than once."""
        if not self.views:
            logits: Tensor = self.infer(batch.images)
            return logits
        return torch.stack([self.infer(seen(batch.images, view)) for view in self.views])

    def decode(self, output: Tensor, batch: Batch) -> list[Prediction]:
        """Probabilities and predicted classes of logits: (N, C), or (K, N, C) whose K probabilities are averaged."""
        probabilities = self._probabilities(output)
        names, least = self.class_names, self.least_scores(self._num_classes)
        predictions = []
        for id, row in zip(batch.ids, probabilities.tolist(), strict=True):
            scores = dict(zip(names, row, strict=True))
            if least is None:
                chosen = [max(names, key=scores.__getitem__)]
            else:
                chosen = [name for name, score, from_on in zip(names, row, least, strict=True) if score >= from_on]
            predictions.append(Prediction(id, tuple(chosen), scores))
        return predictions

    def _probabilities(self, output: Tensor) -> Tensor:
        """Probabilities (N, C) on the CPU of what :meth:`output` returns: those of each image, or means over views."""
        logits = output.float().cpu() / self.temperature
        probabilities = logits.sigmoid() if self._multi_label else logits.softmax(dim=-1)
        return probabilities.mean(dim=0) if output.ndim == 3 else probabilities

    def explained(self, batch: Batch, found: Prediction, label: str | None) -> ExplainedScore:
        """The logit and the probability of a class, by default the likeliest one."""
        label = max(found.scores, key=found.scores.__getitem__) if label is None else label
        index = self.class_names.index(label)

        def logit(images: Tensor) -> Tensor:
            return cast(Tensor, self.network(images))[:, index].float()

        def probability(images: Tensor) -> Tensor:
            logits = cast(Tensor, self.network(images)).float() / self.temperature
            return (logits.sigmoid() if self._multi_label else logits.softmax(dim=1))[:, index]

        return ExplainedScore(label, found.scores[label], logit, probability)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the logits; their numbers before the data is known."""
        return names_of(self.spec, self._num_classes)

    def default_metrics(self) -> list[MetricConfig]:
        """Accuracy, top-5 accuracy where it makes sense and macro F1; for multi-label mean average precision and F1."""
        return default_metrics(self._num_classes, multi_label=self._multi_label, threshold=self.threshold or 0.5)

    def check_data(self, spec: DataSpec) -> None:
        """Refuse data with another number of classes, or with several per image where the task expects one."""
        check_spec(spec, self.kinds, self._num_classes, "ImageClassifier", self._in_chans)
        if spec.multi_label != self._multi_label:
            raise UsageError(
                sentence("multi_label", "ImageClassifier", f"{spec.multi_label}, as the data is", self._multi_label,
                         f"Give multi_label={spec.multi_label}.")
            )  # fmt: skip

        self._check_size(spec.image_size)

    def _check_size(self, size: ImageSize) -> None:
        """Try one image of the data's size: some backbones accept one size only."""
        was_training = self.training
        try:
            with torch.no_grad():
                self.eval().network(self._black(size))
        except (AssertionError, RuntimeError, ValueError) as error:
            cure = f"Give image_size={size}, or data with another `image_size` ({str(error).splitlines()[0]})."
            raise UsageError(
                sentence("image_size", "ImageClassifier", f"{size}, as the data's", self._image_size, cure)
            ) from None
        finally:
            self.train(was_training)

    def _black(self, size: ImageSize) -> Tensor:
        return torch.zeros(1, self._in_chans, *height_and_width(size), dtype=torch.uint8, device=self.device)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return self._num_classes

    def features(self, images: Tensor) -> Tensor:
        """Pooled features of the backbone, (N, D), before the head."""
        return cast(PooledClassifier, self.network).features(images)
