"""The base of all tasks: a task says *what* is learned, its base does *how*.

:class:`Task` comes first, then what concrete tasks share: checks of arguments and data, and cutting and joining the
outputs of a network along the images of a batch.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from math import nan
from typing import Any, ClassVar, Protocol, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import Metric
from typing_extensions import Never

from autotimm.errors import UsageError, is_whole, number, refuse_unknown, require, require_flags, sentence
from autotimm.metrics import MetricConfig, Scores, build_metrics, table_of
from autotimm.models.backbone.weights import Weights
from autotimm.models.layers.deterministic import rows_alone
from autotimm.optim import OptimizerOptions, admit_optimizer
from autotimm.repro.portable_operators import portable_operators
from autotimm.repro.seed import root_seed, seed_everything, set_deterministic
from autotimm.repro.streams import reseed, scope
from autotimm.serialization import CapturesArguments
from autotimm.tasks.checkpoint import Stored
from autotimm.tasks.optimization import Optimized
from autotimm.tasks.parts import Parts, check_metrics, compute_alone, is_list_of_tensors, named_losses, of_one_size
from autotimm.tasks.start import frozen_parameters, network_digest
from autotimm.types import Batch, Calibration, DataSpec, ExplainedScore, Stage, Step

__all__ = [
    "Collects", "Task", "TaskOptions", "check_num_classes", "check_spec", "first_of", "join", "names_of", "of_one_size",
]  # fmt: skip


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


class Task(CapturesArguments, Optimized, Stored, ABC):
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
        by_class: The values per class of the last evaluation, by metric: a tensor (C,) for each.
        details: Logged names that belong in tables, and not in the one line of an epoch.
        collector: Is given every batch of an evaluation, if it is not ``None``.
        built_digest: The digest of the network as the constructor left it; ``None`` of a task that was loaded.
        built_frozen: The parameters that the constructor has frozen.
        keeps_statistics: Whether training leaves the statistics of batch normalization as they are, and uses them.
        parts: Collects losses and metrics of shards and batches while a trainer with ``shards`` runs; else ``None``.
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
    metrics: nn.ModuleDict
    by_class: dict[str, Any]
    details: set[str]
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
        self.parts: Parts | None = None
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
        :func:`autotimm.tasks.base.first_of` describes what the network may return.
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

    # Losses and metrics

    def _of_stage(self, stage: Stage) -> list[tuple[MetricConfig, Metric]]:
        metrics = cast(nn.ModuleDict, self.metrics[f"{stage.value}_metrics"])
        configs = [config for config in self.metric_configs if stage.value in config.stages]
        return [(config, cast(Metric, metrics[config.name])) for config in configs]

    def _log(self, step: Step, stage: Stage, size: int) -> None:
        train = stage is Stage.TRAIN
        losses = named_losses(step)
        self._note_details(losses, stage)
        if self.parts is not None:
            self.parts.add(step, size, stage, self._of_stage(stage))
            return
        for name, value in losses.items():
            if train and self._logged_again(f"train/{name}", value, size if step.weight is None else step.weight):
                continue
            shown: dict[str, Any] = {"prog_bar": name == "loss", "on_step": train, "on_epoch": True}
            weight: Any = size if step.weight is None else step.weight  # Lightning multiplies and adds, also tensors
            if not train and self.trainer.world_size > 1:
                # Lightning takes the mean of the weights of all processes, and rounds that of whole numbers down.
                weight = torch.as_tensor(weight, dtype=torch.get_default_dtype(), device=value.device)
            self.log(f"{stage.value}/{name}", value.detach(), batch_size=weight, sync_dist=not train, **shown)
        if step.targets is None:
            return
        for config, metric in self._of_stage(stage):
            # Only a call keeps the value of the batch, which is what Lightning logs for a step.
            add = metric if config.log_on_step else metric.update
            for predictions, targets in of_one_size(step, metric.device):
                add(predictions, targets)
            if isinstance(metric, Scores):
                continue  # Lightning logs metrics of one value; these wait for the end of the epoch
            when: dict[str, Any] = {"on_step": config.log_on_step, "on_epoch": config.log_on_epoch}
            # Told rather than searched: asking of every module whether it is a metric takes a quarter of a second.
            when["metric_attribute"] = f"metrics.{stage.value}_metrics.{config.name}"
            self.log(f"{stage.value}/{config.name}", metric, prog_bar=config.prog_bar, batch_size=size, **when)

    def _note_details(self, losses: Iterable[str], stage: Stage) -> None:
        """People see the sum of the losses; its terms are in metrics.csv."""
        names = {f"{stage.value}/{name}" for name in losses if name != "loss"}
        self.details |= names if len(names) > 1 else set()

    def log_whole(self, losses: Mapping[str, Tensor], size: int) -> None:
        """Log the losses of a training batch that was cut into shards.

        Args:
            losses: The losses over the whole batch, the same in every process.
            size: Number of its images.
        """
        self._note_details(losses, Stage.TRAIN)
        for name, value in losses.items():
            if not self._logged_again(f"train/{name}", value, size):
                shown: dict[str, Any] = {"prog_bar": name == "loss", "on_step": True, "on_epoch": True}
                self.log(f"train/{name}", value, batch_size=size, **shown)

    def merge_parts(self) -> None:
        """Add what was measured of single parts to the metrics; every process must take part."""
        assert self.parts is not None
        for stage in (Stage.TRAIN, Stage.VAL, Stage.TEST):
            self.parts.merge(stage, {config.name: metric for config, metric in self._of_stage(stage)})

    def log_parts(self, stage: Stage) -> None:
        """Log at the end of an epoch what was measured of its parts; nothing where there are none."""
        if self.parts is None:
            return
        self.parts.merge(stage, {config.name: metric for config, metric in self._of_stage(stage)})
        for name, mean in self.parts.take_sums().items():
            self.log(f"{stage.value}/{name}", torch.tensor(mean, device=self.device), prog_bar=name == "loss")
        for config, metric in self._of_stage(stage):
            if not isinstance(metric, Scores) and metric.update_called:
                self.log(f"{stage.value}/{config.name}", metric.compute(), prog_bar=config.prog_bar)
                metric.reset()

    def check_parts(self) -> None:
        """Refuse metrics that cannot be put together of parts.

        Raises:
            UsageError: If there is one.
        """
        for stage in (Stage.TRAIN, Stage.VAL, Stage.TEST):
            check_metrics(self._of_stage(stage))

    def _logged_again(self, name: str, value: Tensor, weight: Any) -> bool:
        """Add the loss of a step to those of the same epoch, as :meth:`log` would; whether there was one.

        Lightning checks every call anew, and copies what it knows of the value: 0.4 ms, a fiftieth of a small step.
        """
        results: Any = self.trainer._results  # private to Lightning, as in `train/callbacks/epoch_metrics.py`
        logged = None if results is None else results.get(f"{self._current_fx_name}.{name}")
        if logged is None or logged.has_reset or logged.value.device != value.device:
            return False
        logged.forward(value.detach(), weight)
        return True

    def _log_scores(self, stage: Stage) -> None:
        """Compute and log the metrics of several values at the end of an epoch, the same on every process."""
        self.log_parts(stage)
        self.by_class = {}
        for config, metric in self._of_stage(stage):
            if isinstance(metric, Scores):
                for name, key, value in _named(config, metric):
                    if name not in metric.headline:
                        self.details.add(f"{stage.value}/{key}")
                    self.log(f"{stage.value}/{key}", value.to(self.device), prog_bar=config.prog_bar and name == "mean")
                with portable_operators(self.portable):
                    self.by_class[config.name] = metric.by_class()
                metric.reset()

    def measure(self, evaluated: Iterable[tuple[Batch, Step]], stage: Stage) -> dict[str, float]:
        """Measure batches as an epoch of evaluation does, outside of the loops: nothing is logged.

        It is for one process alone, which has all of the samples: it never waits for others.

        Args:
            evaluated: Batches, each with the result of :meth:`evaluate`.
            stage: The stage that they are measured as.

        Returns:
            The losses and metrics by the names under which the loops log them; nothing without batches.
        """
        metrics = [(config, deepcopy(metric)) for config, metric in self._of_stage(stage)]
        sums: dict[str, tuple[float, float]] = {}
        for _, metric in metrics:
            compute_alone(metric)  # of several processes the others measure nothing
            metric.reset()
        empty = True
        for batch, step in evaluated:
            empty = False
            weight = float(len(batch.images) if step.weight is None else step.weight)
            for name, value in named_losses(step).items():
                total, weights = sums.get(name, (0.0, 0.0))
                sums[name] = total + weight * float(value), weights + weight
            for _, metric in metrics if step.targets is not None else ():
                for predictions, targets in of_one_size(step, metric.device):
                    metric.update(predictions, targets)
        measured = {name: total / weights if weights else nan for name, (total, weights) in sums.items()}
        for config, metric in () if empty else metrics:
            if isinstance(metric, Scores):
                measured |= {key: float(value) for _, key, value in _named(config, metric)}
            else:
                measured[config.name] = float(metric.compute())
        return {f"{stage.value}/{name}": value for name, value in measured.items()}

    @property
    def class_table(self) -> dict[str, dict[str, float]]:
        """The values of :attr:`by_class`, a row per class and a column per metric; NaN where nothing was measured."""
        if not self.by_class:
            return {}
        measured = [*self._of_stage(Stage.VAL), *self._of_stage(Stage.TEST)]
        titles = {config.name: metric.per_class for config, metric in measured if isinstance(metric, Scores)}
        names = names_of(self.spec, max(map(len, self.by_class.values())))
        return table_of(self.by_class, titles, names)


def _named(config: MetricConfig, metric: Scores) -> Iterator[tuple[str, str, Tensor]]:
    """The values of a metric that has several: the name of each, that under which it is logged, and the value."""
    for name, value in metric.compute().items():
        suffixed = f"{config.name}_{name}" if metric.prefixed else name
        yield name, config.name if name == "mean" else suffixed, value


# Checks and names that tasks with classes share


def check_num_classes(num_classes: object, least: int, owner: str) -> None:
    """Refuse a ``num_classes`` that is no integer, or too small.

    Raises:
        UsageError: If it is wrong.
    """
    fine = is_whole(num_classes, least)
    do = "Give the number of classes of your data, `data.num_classes`."
    require(fine, "num_classes", owner, f"an integer of at least {least}", num_classes, do)


def check_spec(spec: DataSpec, kinds: Sequence[str], num_classes: int, owner: str, in_chans: int = 3) -> None:
    """Refuse data with targets of another kind, or with another number of classes or channels.

    Args:
        spec: What is known of the data.
        kinds: The accepted kinds, see :class:`autotimm.types.DataSpec`.
        num_classes: The number of classes of the task.
        owner: The task's name.
        in_chans: The number of channels of the images that the task takes.

    Raises:
        UsageError: If the data does not fit.
    """
    if spec.kind not in kinds:
        raise UsageError(
            f"{owner} expects {kinds[0]}; got {spec.kind}. Use the task for {spec.kind}, or another data module."
        )
    present = len(spec.class_names)
    if present != num_classes:
        do = f"Give num_classes={present}; the classes are {', '.join(spec.class_names[:10])}."
        raise UsageError(sentence("num_classes", owner, f"{present}, as the data has", num_classes, do))
    must, do = f"{spec.in_chans}, as the data has", f"Give in_chans={spec.in_chans}, or data with another."
    require(spec.in_chans == in_chans, "in_chans", owner, must, in_chans, do)


def names_of(spec: DataSpec | None, num_classes: int) -> tuple[str, ...]:
    """Names of the classes in the order of the logits; their numbers before the data is known."""
    return spec.class_names if spec else tuple(str(index) for index in range(num_classes))


# Outputs of a network


def first_of(output: Any, number: int, of: int) -> Any:
    """Return the part of an output that belongs to the first images.

    An output is a tensor whose first dimension are the images; a mapping, a tuple or a list of such outputs; or a list
    of anything else with one entry per image, as torchvision's detectors return. A list of tensors is of the first
    kind.

    Args:
        output: The output of the network.
        number: How many images to keep.
        of: How many there were.

    Raises:
        UsageError: If it is none of these.

    Example:
        >>> first_of({"scores": torch.zeros(4, 2), "boxes": [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}]}, 2, of=4)
        {'scores': tensor([[0., 0.], [0., 0.]]), 'boxes': [{'n': 0}, {'n': 1}]}
    """
    if isinstance(output, Tensor) and output.shape[:1] == (of,):
        return output[:number]
    if isinstance(output, Mapping):
        return {name: first_of(part, number, of) for name, part in output.items()}
    if isinstance(output, tuple) or is_list_of_tensors(output):
        return _like(output, [first_of(part, number, of) for part in output])
    if isinstance(output, list) and len(output) == of:
        return output[:number]
    got = f"a {type(output).__name__}"
    got += f" of shape {tuple(output.shape)}" if isinstance(output, Tensor) else ""
    got += f" of {len(output)}" if isinstance(output, list) else ""
    raise UsageError(
        f"The output of the network must have one entry for each of {of} images: tensors whose first dimension they "
        f"are, a mapping or tuple of such, or a list. Got {got} instead. Return one of these."
    )


def join(outputs: Sequence[Any]) -> Any:
    """Concatenate outputs for some images each, as :func:`first_of` describes them, to one for all.

    Example:
        >>> join([(torch.zeros(2),), (torch.ones(1),)])
        (tensor([0., 0., 1.]),)
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, Mapping):
        return {name: join([output[name] for output in outputs]) for name in first}
    if isinstance(first, tuple) or is_list_of_tensors(first):
        return _like(first, [join(parts) for parts in zip(*outputs, strict=True)])
    return [entry for output in outputs for entry in output]


def _like(output: Any, parts: list[Any]) -> Any:
    """The parts as a list, a tuple, or the named tuple that the network returned."""
    return parts if isinstance(output, list) else getattr(type(output), "_make", tuple)(parts)
