"""What all tasks that tell classes apart ask of their arguments and their data.

What a network may give for N images, and how it is cut and joined along them.

How tasks are measured: losses and metrics, logged the same for all of them.

The base of all tasks: a task says *what* is learned, this file says *how*.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from autotimm.errors import UsageError, is_whole, number, refuse_unknown, require, require_flags, sentence
from autotimm.metrics import MetricConfig, Scores, build_metrics, table_of
from autotimm.models.backbone.weights import Weights
from autotimm.optim import OptimizerOptions
from autotimm.repro.seed import root_seed, seed_everything, set_deterministic
from autotimm.repro.streams import reseed, scope
from autotimm.tasks.checkpoint import Stored, note_defaults, show_shared_options
from autotimm.tasks.optimization import Optimized
from autotimm.types import Batch, DataSpec, Stage, Step

__all__ = ["Measured", "Task", "check_num_classes", "check_spec", "first_of", "join", "names_of"]


def check_num_classes(num_classes: object, least: int, owner: str) -> None:
    """Refuse a number of classes that is none, or too small.

    Raises:
        UsageError: If it is.
    """
    fine = is_whole(num_classes, least)
    do = "Give the number of classes of your data, `data.num_classes`."
    require(fine, "num_classes", owner, f"an integer of at least {least}", num_classes, do)


def check_spec(spec: DataSpec, kinds: Sequence[str], num_classes: int, owner: str) -> None:
    """Refuse data of another kind, or with another number of classes.

    Args:
        spec: What is known of the data.
        kinds: The kinds that will do, see :class:`autotimm.types.DataSpec`.
        num_classes: What the task was made for.
        owner: The task's name.

    Raises:
        UsageError: If the data does not fit.
    """
    if spec.kind not in kinds:
        raise UsageError(
            f"The data of {owner} must have {kinds[0]}. They have {spec.kind} instead. Use the task for these, or "
            "another data module."
        )
    found = len(spec.class_names)
    if found != num_classes:
        do = f"Give num_classes={found}; the classes are {', '.join(spec.class_names[:10])}."
        raise UsageError(sentence("num_classes", owner, f"{found}, as the data has", num_classes, do))


def names_of(spec: DataSpec | None, num_classes: int) -> tuple[str, ...]:
    """Names of the classes in the order of the logits; their numbers before the data is known."""
    return spec.class_names if spec else tuple(str(index) for index in range(num_classes))


def first_of(output: Any, number: int, of: int) -> Any:
    """The part of an output that belongs to the first images.

    An output is a tensor whose first dimension are the images; a mapping, a tuple or a list of such outputs; or a list
    of anything else with one entry per image, as torchvision's detectors give. A list of tensors is of the first kind.

    Args:
        output: What the network gave.
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
        return {name: first_of(one, number, of) for name, one in output.items()}
    if isinstance(output, tuple) or _of_tensors(output):
        return _like(output, [first_of(one, number, of) for one in output])
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
    """Put outputs for some images each, as :func:`first_of` describes them, together to one for all.

    Example:
        >>> join([(torch.zeros(2),), (torch.ones(1),)])
        (tensor([0., 0., 1.]),)
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, Mapping):
        return {name: join([output[name] for output in outputs]) for name in first}
    if isinstance(first, tuple) or _of_tensors(first):
        return _like(first, [join(parts) for parts in zip(*outputs, strict=True)])
    return [one for output in outputs for one in output]


def _of_tensors(output: Any) -> bool:
    return isinstance(output, list) and bool(output) and all(isinstance(one, Tensor) for one in output)


def _like(output: Any, parts: list[Any]) -> Any:
    """The parts as a list, a tuple, or the named tuple that the network gave."""
    return parts if isinstance(output, list) else getattr(type(output), "_make", tuple)(parts)


class Measured(pl.LightningModule):
    """The part of :class:`autotimm.tasks.base.Task` that logs; not for use on its own.

    Attributes:
        by_class: The values per class that the last evaluation found, by metric: a tensor (C,) for each.
        details: Logged names that are for tables, and not for the line of an epoch.
    """

    metric_configs: list[MetricConfig]
    metrics: nn.ModuleDict
    by_class: dict[str, Any]
    details: set[str]
    spec: DataSpec | None

    def _of_stage(self, stage: Stage) -> list[tuple[MetricConfig, Metric]]:
        made = cast(nn.ModuleDict, self.metrics[f"{stage.value}_metrics"])
        wanted = [config for config in self.metric_configs if stage.value in config.stages]
        return [(config, cast(Metric, made[config.name])) for config in wanted]

    def _log(self, step: Step, stage: Stage, size: int) -> None:
        train = stage is Stage.TRAIN
        losses = dict(step.losses) | {"loss": step.loss} if step.losses else {}
        if len(losses) > 2:  # the sum says it; what it is made of is in metrics.csv
            self.details |= {f"{stage.value}/{name}" for name in step.losses}
        for name, value in losses.items():
            shown: dict[str, Any] = {"prog_bar": name == "loss", "on_step": train, "on_epoch": True}
            over: Any = size if step.weight is None else step.weight  # Lightning multiplies and adds, also tensors
            self.log(f"{stage.value}/{name}", value.detach(), batch_size=over, sync_dist=not train, **shown)
        if step.targets is None:
            return
        for config, metric in self._of_stage(stage):
            # Only a call keeps the value of the batch, which is what Lightning logs for a step.
            (metric if config.log_on_step else metric.update)(step.predictions, step.targets)
            if isinstance(metric, Scores):
                continue  # Lightning logs metrics of one value; these wait for the end of the epoch
            when: dict[str, Any] = {"on_step": config.log_on_step, "on_epoch": config.log_on_epoch}
            self.log(f"{stage.value}/{config.name}", metric, prog_bar=config.prog_bar, batch_size=size, **when)

    def _log_scores(self, stage: Stage) -> None:
        """Compute and log the metrics of several values at the end of an epoch, the same on every process."""
        self.by_class = {}
        for config, metric in self._of_stage(stage):
            if isinstance(metric, Scores):
                for name, value in metric.compute().items():
                    behind = f"{config.name}_{name}" if metric.prefixed else name
                    key = config.name if name == "mean" else behind
                    if name not in metric.headline:
                        self.details.add(f"{stage.value}/{key}")
                    self.log(f"{stage.value}/{key}", value.to(self.device), prog_bar=config.prog_bar and name == "mean")
                self.by_class[config.name] = metric.by_class()
                metric.reset()

    @property
    def class_table(self) -> dict[str, dict[str, float]]:
        """What :attr:`by_class` says, a row per class and a column per metric; NaN where nothing was measured."""
        if not self.by_class:
            return {}
        measured = [*self._of_stage(Stage.VAL), *self._of_stage(Stage.TEST)]
        titles = {config.name: metric.per_class for config, metric in measured if isinstance(metric, Scores)}
        names = names_of(self.spec, max(map(len, self.by_class.values())))
        return table_of(self.by_class, titles, names)

    def on_validation_epoch_end(self) -> None:
        """Log what is known at the end only; a subclass that has an end of its own calls this too."""
        self._log_scores(Stage.VAL)

    def on_test_epoch_end(self) -> None:
        """Log what is known at the end only; a subclass that has an end of its own calls this too."""
        self._log_scores(Stage.TEST)


class Task(Optimized, Measured, Stored, ABC):
    """What is trained: a network, a loss, metrics and how to read the network's output.

    A concrete task passes a network factory to this constructor and says three things: :meth:`step`, :meth:`decode` and
    :meth:`default_metrics`. Everything else happens here, once: initial weights from named streams, the loops, loss and
    metric logging, optimizer and schedule, freezing, averaging, compiling, prediction and checkpoints.

    Its keyword arguments are the options that all tasks share. A concrete task takes them as ``**options``.

    Args:
        network: Makes the network from a root seed. A network with a ``backbone`` attribute can be frozen and trained
            with layer-wise learning rates.
        weights: Where the network's pretrained weights come from, recorded in checkpoints.
        seed: Root seed of the initial weights, in [0, 2**32). ``None`` draws one from Python's ``random`` and records
            it. Constructing a task calls :func:`autotimm.seed_everything` unless it is ``None``.
        deterministic: Whether to insist on kernels that give the same bits every time.
        options: How to optimize, see :class:`autotimm.optim.OptimizerOptions`; each field may be given as a keyword
            argument of its own.
        freeze_backbone: Train the head only; the backbone also stays in evaluation mode.
        ema_decay: Decay in (0, 1) of an exponential moving average of the weights, which then replaces them in
            validation, in checkpoints and at the end. ``None`` switches it off.
        compile_model: Compile the network with ``torch.compile``. Faster after a slow start; bits change with the
            compiler's version.
        metrics: What to measure instead of the task's default metrics.
        eval_batch_size: Images per batch in evaluation and prediction. Logits depend on the batch size in the last
            bits, so batches are cut and padded to this size; a data module's own value replaces it.
        lr, optimizer, weight_decay, layer_decay, schedule, warmup_epochs, gradient_clip, backbone_scale: See
            :class:`autotimm.optim.OptimizerOptions`. Whatever is not given comes from the recipe for the backbone.

    Raises:
        UsageError: If an argument is wrong.

    Attributes:
        network: The network; it takes RGB ``uint8``, or floats in [0, 1], and normalizes by itself.
        root_seed: The root of the ``init`` stream.
        run_seed: The root of the ``step`` and ``eval`` streams while an :class:`autotimm.AutoTrainer` runs.
        spec: What is known of the data, once a data module or a checkpoint has told.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classes",)
    """What the targets of the data may be, see :class:`autotimm.types.DataSpec`."""

    threshold: float | None = None
    """Score from which on a prediction reports a label or an object; ``None`` where it reports the likeliest alone."""

    @note_defaults
    def __init__(
        self,
        network: Callable[[int], nn.Module],
        *,
        weights: Weights | None = None,
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
        **unknown: Any,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        refuse_unknown(unknown, owner, inspect.signature(type(self)).parameters)
        fine = ema_decay is None or 0 < number(ema_decay) < 1
        require(fine, "ema_decay", owner, "in (0, 1) or None", ema_decay, "Try 0.999.")
        whole = is_whole(eval_batch_size, 1)
        require(whole, "eval_batch_size", owner, "an integer of at least 1", eval_batch_size, "Give for example 16.")
        require_flags(owner, freeze_backbone=freeze_backbone, compile_model=compile_model)
        self.optimizer_options = OptimizerOptions(
            lr, optimizer, weight_decay, layer_decay, schedule, warmup_epochs, gradient_clip, backbone_scale
        )
        self._record_arguments()
        if self.is_loading:
            seed = None  # nothing global is seeded, on no device; weights and root seed come from the file
        self.root_seed = root_seed(seed, owner)
        self.run_seed: int | None = None
        if seed is None:
            set_deterministic(deterministic)
        else:
            seed_everything(seed, deterministic)
        self.deterministic, self.ema_decay, self.eval_batch_size = deterministic, ema_decay, eval_batch_size
        self.weights = weights or Weights()
        self.spec: DataSpec | None = None
        self.recipe = None
        with scope(self.root_seed, "init"):
            self.network = network(self.root_seed)
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            self._backbone().requires_grad_(False)
        if compile_model:
            self.network.compile()
        given = [MetricConfig.of(metric) for metric in metrics] if metrics is not None else self.default_metrics()
        self.metric_configs = given
        self.metrics = nn.ModuleDict({f"{stage.value}_metrics": build_metrics(given, stage) for stage in Stage})
        self.by_class, self.details = {}, set()
        self._padding = True
        if "metrics" in self.hparams:
            self.hparams["metrics"] = [metric.to_dict() for metric in given]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the shared options in the signature of a task that takes them as ``**options``."""
        super().__init_subclass__(**kwargs)
        show_shared_options(cls, Task.__init__)

    # What a concrete task says

    @abstractmethod
    def step(self, batch: Batch, stage: Stage) -> Step:
        """Run the network on a batch by :meth:`infer` and compare with the targets."""

    @abstractmethod
    def decode(self, output: Any, batch: Batch) -> list[Any]:
        """Turn what :meth:`infer` gave for a batch of N images, which has ids, into N predictions."""

    @abstractmethod
    def default_metrics(self) -> list[MetricConfig]:
        """What to measure when nothing was asked for."""

    def check_data(self, spec: DataSpec) -> None:
        """Refuse data that the task cannot learn from, before the first step.

        Raises:
            UsageError: If the data does not fit.
        """

    # Running the network

    def forward(self, images: Tensor) -> Any:
        """Run the network on (N, 3, H, W) images as they are: ``uint8``, or floats in [0, 1]."""
        return self.network(images)

    def infer(self, images: Tensor) -> Any:
        """Run the network; in evaluation in batches of one fixed shape, so that a sample's bits never depend on others.

        A last batch that is not full is padded with zeros, whose outputs are dropped. What the network may give is
        said at :func:`autotimm.tasks.base.first_of`.
        """
        if self.training or not self._padding:
            return self.network(images)
        outputs = []
        for part in images.split(self.eval_batch_size):
            padding = part.new_zeros(self.eval_batch_size - len(part), *part.shape[1:])
            output = self.network(torch.cat([part, padding]) if len(padding) else part)
            outputs.append(first_of(output, len(part), of=self.eval_batch_size))
        return join(outputs)

    @contextmanager
    def padding(self, on: bool) -> Iterator[None]:
        """Switch the padding of evaluation batches off for a while: faster for few images, and less repeatable."""
        before, self._padding = self._padding, on
        try:
            yield
        finally:
            self._padding = before

    @contextmanager
    def reporting_from(self, threshold: float | None) -> Iterator[None]:
        """Report labels or objects from another score on for a while; ``None`` leaves it as it is.

        Raises:
            UsageError: If it is not in (0, 1), or if the task reports the likeliest class alone.
        """
        before, owner = self.threshold, type(self).__name__
        if threshold is not None:
            do = "Leave it out: there is one class for each image, or pixel, the likeliest."
            require(before is not None, "threshold", owner, "left out", threshold, do)
            require(0 < number(threshold) < 1, "threshold", owner, "in (0, 1)", threshold, "Give for example 0.3.")
            self.threshold = threshold
        try:
            yield
        finally:
            self.threshold = before

    def train(self, mode: bool = True) -> Task:
        """Switch between training and evaluation mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if mode and self.freeze_backbone:
            self._backbone().eval()
        return self

    def _backbone(self) -> nn.Module:
        backbone = getattr(self.network, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise UsageError(
                f"The `freeze_backbone` of {type(self).__name__} must be False for a network without `backbone`. "
                "Name that part of the network `backbone`."
            )
        return backbone

    # The loops

    def setup(self, stage: str) -> None:
        """Learn from the trainer's data module what the data looks like, and refuse what does not fit."""
        if stage == "fit":
            # Lightning keeps the mode it finds: evaluation for a loaded task, training for a frozen backbone.
            self.train()
        if stage == "predict" or (data := self._data) is None:
            return
        self.check_data(data.spec)
        if stage == "fit":
            self.spec, self.eval_batch_size = data.spec, data.spec.eval_batch_size
        elif self.spec is not None and self.spec.class_names != data.spec.class_names:
            # Of the same number, but others, or one missing and one too many: every index would mean something else.
            raise UsageError(
                f"The classes of the data must be those that {type(self).__name__} has learned, "
                f"{', '.join(self.spec.class_names)}. They are {', '.join(data.spec.class_names)} instead. "
                "Give data with the same class names."
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step on the stream ``(step, epoch, batch, rank)``; entered here, after all hooks of callbacks."""
        where = ("step", self.current_epoch, batch_idx, self.global_rank)
        reseed(self._streams_seed, *where, devices=[self.device])
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
            output = self.infer(batch.images)
        numbered = tuple(str(index) for index in range(len(batch.images)))
        return self.decode(output, batch._replace(ids=batch.ids or numbered))

    def _evaluate(self, batch: Any, batch_idx: int, stage: Stage) -> None:
        batch = Batch.of(batch)
        with scope(self._streams_seed, "eval", stage.value, batch_idx, devices=[self.device]):
            self._log(self._step(batch, stage), stage, len(batch.images))

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
