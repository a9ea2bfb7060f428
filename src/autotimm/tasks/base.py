"""The base of all tasks: a task says *what* is learned, its base does *how*.

What is long stands in modules of its own, as parts of the class: how a task is optimized
(:mod:`autotimm.tasks.optimization`), measured (:mod:`autotimm.tasks.measurement`) and stored
(:mod:`autotimm.tasks.checkpoint`).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Never

from autotimm.errors import UsageError, is_whole, number, refuse_unknown, require, require_flags
from autotimm.metrics import MetricConfig, build_metrics
from autotimm.models.backbone.weights import Weights
from autotimm.models.layers.deterministic import rows_alone
from autotimm.optim import OptimizerOptions, admit_optimizer
from autotimm.repro.portable_operators import portable_operators
from autotimm.repro.seed import root_seed, seed_everything, set_deterministic
from autotimm.repro.streams import reseed, scope
from autotimm.serialization import CapturesArguments
from autotimm.tasks.checkpoint import Stored
from autotimm.tasks.measurement import Measured
from autotimm.tasks.network_outputs import first_of, join
from autotimm.tasks.optimization import Optimized
from autotimm.tasks.start import frozen_parameters, network_digest
from autotimm.types import Batch, Calibration, DataSpec, ExplainedScore, Stage, Step

__all__ = ["Collects", "Task", "TaskOptions"]


class Collects(Protocol):
    """What is given every batch that a task evaluates, such as :class:`autotimm.evidence.EvidenceCollector`."""

    def add(self, batch: Batch, step: Step) -> None:
        """Take over a batch, and what the task made of it."""


class TaskOptions(TypedDict, total=False):
    """The options that all tasks share, for ``**options: Unpack[TaskOptions]``; see :class:`Task` for what they do.

    :class:`Task` states their defaults; a test compares the two.
    """

    seed: int | None
    deterministic: bool
    lr: float | None
    optimizer: str | type[torch.optim.Optimizer] | None
    weight_decay: float | None
    layer_decay: float | None
    schedule: str | None
    warmup_epochs: float | None
    gradient_clip: float | None
    backbone_scale: float | None
    freeze_backbone: bool
    ema_decay: float | None
    compile_model: bool
    metrics: Sequence[MetricConfig | Mapping[str, Any]] | None
    eval_batch_size: int


class Task(CapturesArguments, Optimized, Measured, Stored, ABC):
    """What is trained: a network, a loss, metrics and how to read the network's output.

    A concrete task passes a network factory to this constructor and defines three methods: :meth:`step`,
    :meth:`decode` and :meth:`default_metrics`. Everything else happens here, once: initial weights from named streams,
    the loops, logging of losses and metrics, optimizer and schedule, freezing, weight averaging, compilation,
    prediction and checkpoints.

    The keyword arguments, but for ``weights``, are the options that all tasks share. A concrete task takes them as
    ``**options``, or as ``**options: Unpack[TaskOptions]`` for type checkers, and passes them on.

    Args:
        network: Builds the network from a root seed. A network with a ``backbone`` attribute can be frozen and trained
            with layer-wise learning rates.
        weights: Where the network's pretrained weights come from; recorded in checkpoints.
        seed: Root seed of the initial weights, in [0, 2**32). ``None`` draws one from Python's ``random`` and records
            it. Constructing a task calls :func:`autotimm.seed_everything` unless it is ``None``.
        deterministic: Whether to require deterministic kernels.
        lr, optimizer, weight_decay, layer_decay, schedule, warmup_epochs, gradient_clip, backbone_scale: See
            :class:`autotimm.optim.OptimizerOptions`. The recipe for the backbone chooses what is left at ``None``.
        freeze_backbone: Train the head only; the backbone also stays in evaluation mode.
        ema_decay: Decay in (0, 1) of an exponential moving average of the weights, which then replaces them in
            validation, in checkpoints and at the end. ``None`` switches it off.
        compile_model: Compile the network with ``torch.compile``. Faster after a slow start; the bits depend on the
            version of the compiler.
        metrics: What to measure instead of the task's default metrics.
        eval_batch_size: Images per batch in evaluation and prediction. Logits depend on the batch size in the last
            bits, so batches are cut and padded to this size. A data module's own value replaces it.

    Raises:
        UsageError: If an argument is wrong.

    Attributes:
        network: The network; it takes RGB ``uint8``, or floats in [0, 1], and normalizes by itself.
        root_seed: The root of the ``init`` stream.
        run_seed: The root of the ``step`` and ``eval`` streams while an :class:`autotimm.AutoTrainer` runs.
        spec: What is known of the data, once a data module or a checkpoint has provided it.
        calibration: What was fitted on validation samples for predictions, once a checkpoint has provided it.
        collector: Is given every batch of an evaluation, if it is not ``None``.
        built_digest: The digest of the network as the constructor left it; ``None`` of a task that was loaded.
        built_frozen: The parameters that the constructor has frozen.
        keeps_statistics: Whether training leaves the statistics of batch normalization as they are, and uses them.
        shard: The shard of the batch that is being trained on, if it is cut into some.
        portable: Whether to evaluate with portable operators outside of the loops, while a portable trainer runs.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classes",)
    """The kinds of targets that the task learns from, see :class:`autotimm.types.DataSpec`."""

    cuts_tiles: ClassVar[bool] = False
    """Whether :meth:`step` and :meth:`output` cut images into tiles where a batch has a ``tiling``."""

    takes_calibration: ClassVar[bool] = False
    """Whether :meth:`decode` applies :attr:`temperature` and :meth:`least_scores`."""

    loss_over_batch: ClassVar[bool] = False
    """Whether the loss of an image depends on the others of its batch, as a contrastive one does."""

    threshold: float | None = None
    """Score from which on a label or an object is predicted; ``None`` where the likeliest class alone is predicted."""

    _shared_options: ClassVar[type] = TaskOptions  # the options that are recorded with their defaults
    built_digest: str | None
    built_frozen: frozenset[str]

    # `weights` is no keyword-only argument, since those are the options that subclasses pass on.
    def __init__(
        self,
        network: Callable[[int], nn.Module],
        weights: Weights | None = None,
        *,
        seed: int | None = 42,
        deterministic: bool = True,
        lr: float | None = None,
        optimizer: str | type[torch.optim.Optimizer] | None = None,
        weight_decay: float | None = None,
        layer_decay: float | None = None,
        schedule: str | None = None,
        warmup_epochs: float | None = None,
        gradient_clip: float | None = None,
        backbone_scale: float | None = None,
        freeze_backbone: bool = False,
        ema_decay: float | None = None,
        compile_model: bool = False,
        metrics: Sequence[MetricConfig | Mapping[str, Any]] | None = None,
        eval_batch_size: int = 16,
        **unknown: Never,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        refuse_unknown(unknown, owner, inspect.signature(type(self)).parameters)
        fine = ema_decay is None or 0 < number(ema_decay) < 1
        require(fine, "ema_decay", owner, "in (0, 1) or None", ema_decay, "Try 0.999.")
        whole = is_whole(eval_batch_size, 1)
        require(whole, "eval_batch_size", owner, "an integer of at least 1", eval_batch_size, "Give for example 16.")
        require_flags(owner, freeze_backbone=freeze_backbone, compile_model=compile_model)
        admit_optimizer(optimizer)
        self.optimizer_options = OptimizerOptions(
            lr, optimizer, weight_decay, layer_decay, schedule, warmup_epochs, gradient_clip, backbone_scale
        )
        self._save_arguments(self._captured_arguments(self._shared_options.__annotations__))
        if self.is_loading:
            seed = None  # weights and root seed come from the file, and no global generator is seeded
        self.root_seed = root_seed(seed, owner)
        self.run_seed: int | None = None
        if seed is None:
            set_deterministic(deterministic)
        else:
            seed_everything(seed, deterministic)
        self.deterministic, self.ema_decay, self.eval_batch_size = deterministic, ema_decay, eval_batch_size
        self.weights = weights or Weights()
        self.spec: DataSpec | None = None
        self.calibration: Calibration | None = None
        self.recipe = None
        with scope(self.root_seed, "init"):
            self.network = network(self.root_seed)
        self.freeze_backbone, self.keeps_statistics = freeze_backbone, False
        if freeze_backbone:
            self._frozen_part().requires_grad_(False)
        if compile_model:
            self.network.compile()
        self._metrics_given = None if metrics is None else [MetricConfig.of(metric) for metric in metrics]
        self.by_class, self.details = {}, set()
        self.collector: Collects | None = None
        self.parts = None
        self.shard: int | None = None
        self.portable = False
        self._padding = True

    def _constructed(self) -> None:
        """Choose the metrics: only now is a subclass complete, and can be asked for its default ones."""
        configs = self.default_metrics() if self._metrics_given is None else self._metrics_given
        self.metric_configs = configs
        self.metrics = nn.ModuleDict({f"{stage.value}_metrics": build_metrics(configs, stage) for stage in Stage})
        if "metrics" in self.hparams:
            self.hparams["metrics"] = [metric.to_dict() for metric in configs]
        # What a training begins with is compared with these: weights that a program has set are in no record.
        self.built_frozen = frozen_parameters(self.network)
        self.built_digest = None if self.is_loading else network_digest(self.network)

    # What a concrete task defines

    @abstractmethod
    def step(self, batch: Batch, stage: Stage) -> Step:
        """Run the network on a batch by :meth:`infer`, and compare the output with the targets."""

    @abstractmethod
    def decode(self, output: Any, batch: Batch) -> list[Any]:
        """Turn the output of :meth:`infer` for a batch of N images, which has ids, into N predictions."""

    @abstractmethod
    def default_metrics(self) -> list[MetricConfig]:
        """Return the metrics of a task that was given none; called once, when the task is constructed."""

    def check_data(self, spec: DataSpec) -> None:
        """Refuse data that the task cannot learn from, before the first step.

        Raises:
            UsageError: If the data does not fit.
        """

    def explained(self, batch: Batch, found: Any, label: str | None) -> ExplainedScore | None:
        """The score that an explanation of an image is about.

        Args:
            batch: One image, as evaluation sees it.
            found: What was predicted for it.
            label: The name of a class; ``None`` for what was predicted.

        Returns:
            The score, or ``None`` where nothing of the class was predicted.

        Raises:
            UsageError: If the task does not say what its score is.
        """
        name = type(self).__name__
        raise UsageError(f"{name} has no score to explain. Define its method `explained`, or use a task of autotimm.")

    # The network

    @property
    def backbone(self) -> nn.Module:
        """The part of the network with pretrained weights: ``network.backbone``. Read-only.

        Raises:
            AttributeError: If the network has no such part.
        """
        return self._part("backbone")

    @property
    def head(self) -> nn.Module:
        """The part of the network that turns features into predictions: ``network.head``. Read-only.

        Raises:
            AttributeError: If the network has no such part.
        """
        return self._part("head")

    def _part(self, name: str) -> nn.Module:
        own = self._modules.get(name)  # a task of a user's own may have a module of this name beside its network
        return self.network.get_submodule(name) if own is None else own

    def _frozen_part(self) -> nn.Module:
        backbone = getattr(self.network, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise UsageError(
                f"The `freeze_backbone` of {type(self).__name__} must be False for a network without `backbone`. "
                "Name that part of the network `backbone`."
            )
        return backbone

    def forward(self, images: Tensor) -> Any:
        """Run the network on (N, 3, H, W) images as they are: ``uint8``, or floats in [0, 1]."""
        return self.network(images)

    def infer(self, images: Tensor) -> Any:
        """Run the network; in evaluation in batches of one fixed shape, so that a sample's bits never depend on others.

        A last batch that is not full is padded with zeros, whose outputs are dropped.
        See :func:`autotimm.tasks.network_outputs.first_of` for what the network may return.
        """
        if self.training or not self._padding:
            return self.network(images)
        outputs = []
        for part in images.split(self.eval_batch_size):
            padding = part.new_zeros(self.eval_batch_size - len(part), *part.shape[1:])
            with rows_alone(part):
                output = self.network(torch.cat([part, padding]) if len(padding) else part)
            outputs.append(first_of(output, len(part), of=self.eval_batch_size))
        return join(outputs)

    def output(self, batch: Batch) -> Any:
        """What :meth:`decode` takes: the output of the network; a task that cuts images into tiles merges theirs."""
        return self.infer(batch.images)

    @contextmanager
    def padding(self, on: bool) -> Iterator[None]:
        """Switch the padding of evaluation batches off for a while: faster for few images, but less repeatable."""
        before, self._padding = self._padding, on
        try:
            yield
        finally:
            self._padding = before

    @property
    def temperature(self) -> float:
        """What logits are divided by in predictions: 1 unless something else was fitted."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    def least_scores(self, num_classes: int) -> tuple[float, ...] | None:
        """Score from which on each class is predicted; ``None`` where the likeliest class alone is predicted."""
        if self.threshold is None:
            return None
        fitted = () if self.calibration is None else self.calibration.thresholds
        return fitted or (self.threshold,) * num_classes

    @contextmanager
    def reporting_from(self, threshold: float | None, *, raw: bool = False) -> Iterator[None]:
        """Predict labels or objects from another score on for a while; ``None`` keeps the thresholds.

        Args:
            threshold: The score, of all classes.
            raw: Whether to leave out what was fitted on validation samples.

        Raises:
            UsageError: If it is not in (0, 1), or if the task predicts the likeliest class alone.
        """
        before, owner = (self.threshold, self.calibration), type(self).__name__
        if threshold is not None:
            do = "Leave it out: each image or pixel gets one class, the likeliest."
            require(self.threshold is not None, "threshold", owner, "left out", threshold, do)
            require(0 < number(threshold) < 1, "threshold", owner, "in (0, 1)", threshold, "Give for example 0.3.")
            self.threshold = threshold
            self.calibration = self.calibration and replace(self.calibration, thresholds=())
        if raw:
            self.calibration = None
        try:
            yield
        finally:
            self.threshold, self.calibration = before

    def train(self, mode: bool = True) -> Task:
        """Switch between training and evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if mode and self.freeze_backbone:
            self._frozen_part().eval()
        if mode and self.keeps_statistics:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    @property
    def learns_statistics(self) -> bool:
        """Whether batch normalization takes its statistics from training batches. Read-only."""
        kept = set(self._frozen_part().modules()) if self.freeze_backbone else set()
        layers = (module for module in self.network.modules() if isinstance(module, _BatchNorm) and module not in kept)
        return not self.keeps_statistics and any(True for _ in layers)

    # The loops

    def setup(self, stage: str) -> None:
        """Take over what is known of the trainer's data, and refuse data that does not fit."""
        if stage == "fit":
            # Lightning keeps the mode it finds: evaluation for a loaded task, training for a frozen backbone.
            self.train()
        if stage == "predict" or (data := self._data) is None:
            return
        self.check_data(data.spec)
        if data.spec.tiling is not None and not self.cuts_tiles:
            do = "Leave out `tile`, or use a task of autotimm."
            raise UsageError(f"{type(self).__name__} does not cut images into tiles, as the data expect it. {do}")
        if stage == "fit":
            self.spec, self.eval_batch_size = data.spec, data.spec.eval_batch_size
            self.calibration = None  # of other weights
        elif self.spec is not None and self.spec.class_names != data.spec.class_names:
            # As many classes, but not the same ones: every index would mean something else.
            raise UsageError(
                f"The classes of the data must be those that {type(self).__name__} has learned, "
                f"{', '.join(self.spec.class_names)}. They are {', '.join(data.spec.class_names)} instead. "
                "Give data with the same class names."
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Make one step on the stream ``(step, epoch, batch, rank)``; reseeded here, after the hooks of callbacks.

        Of a batch that is cut into shards it is called for each of them, whose number is then in place of the rank.
        """
        position = ("step", self.current_epoch, batch_idx, self.global_rank if self.shard is None else self.shard)
        reseed(self._streams_seed, *position, devices=[self.device])
        step = self._step(Batch.of(batch), Stage.TRAIN)
        self._log(step, Stage.TRAIN, len(Batch.of(batch).images))
        return step.loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure one batch of validation data, without touching the training's random numbers."""
        self._evaluate(batch, batch_idx, Stage.VAL)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measure one batch of test data, without touching the training's random numbers."""
        self._evaluate(batch, batch_idx, Stage.TEST)

    def predict_step(self, batch: Any, batch_idx: int) -> list[Any]:
        """Predict one batch."""
        batch = Batch.of(batch)
        with scope(self._streams_seed, "eval", "predict", batch_idx, devices=[self.device]):
            output = self.output(batch)
        numbered = tuple(str(index) for index in range(len(batch.images)))
        return self.decode(output, batch._replace(ids=batch.ids or numbered))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of several values; a subclass that overrides this calls it too."""
        self._log_scores(Stage.VAL)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of several values; a subclass that overrides this calls it too."""
        self._log_scores(Stage.TEST)

    def _evaluate(self, batch: Any, batch_idx: int, stage: Stage) -> None:
        batch = Batch.of(batch)
        with scope(self._streams_seed, "eval", stage.value, batch_idx, devices=[self.device]):
            step = self._step(batch, stage)
            self._log(step, stage, len(batch.images))
        if self.collector is not None:
            self.collector.add(batch, step)

    def evaluate(self, batch: Batch, batch_idx: int, stage: Stage) -> Step:
        """Evaluate one batch as the loops do, outside of them: nothing is logged, and no metric is updated."""
        with (
            scope(self._streams_seed, "eval", stage.value, batch_idx, devices=[self.device]),
            portable_operators(self.portable),
        ):
            return self._step(batch, stage)

    def _step(self, batch: Batch, stage: Stage) -> Step:
        step = self.step(batch, stage)
        if batch.targets is None and not step.losses:
            raise UsageError(
                f"The batches that {type(self).__name__} learns from or is measured on must be (images, targets). "
                "Got images alone instead. Give a loader of such pairs, or call `predict`."
            )
        return step

    @property
    def _streams_seed(self) -> int:
        """The trainer's seed; under a plain Lightning trainer the data module's, and without one the task's own."""
        if self.run_seed is not None:
            return self.run_seed
        return self.root_seed if self._data is None else self._data.run_seed
