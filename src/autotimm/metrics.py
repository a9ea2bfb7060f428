"""Metrics of torchmetrics, configured by plain data, and which of them tells the best checkpoint."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torchmetrics
import torchmetrics.classification
import torchmetrics.regression
import torchmetrics.segmentation
from torch import nn
from torchmetrics import Metric

from autotimm.errors import UsageError, nearest, require, require_choice, sentence

__all__ = ["MetricConfig", "Monitor", "build_metrics", "choose_monitor", "default_metrics", "default_monitor"]

BACKENDS = ("torchmetrics", "custom")
STAGES = ("train", "val", "test")
_SOURCES = (torchmetrics, torchmetrics.classification, torchmetrics.regression, torchmetrics.segmentation)
_TOP_K = 5


class Monitor(NamedTuple):
    """The logged value that tells the best checkpoint.

    Attributes:
        name: As it is logged, such as ``"val/accuracy"``.
        mode: ``"max"`` if larger is better, else ``"min"``.
    """

    name: str
    mode: str


@dataclass(frozen=True)
class MetricConfig:
    """One metric: which, with what parameters, and when.

    Plain data, so that a checkpoint that holds it loads with ``weights_only=True``. Everything is checked when it is
    made, by building the metric once.

    Args:
        name: What it is logged as, behind the stage: ``"accuracy"`` becomes ``val/accuracy``. Letters, digits, ``_``
            and ``-``, starting with a letter.
        backend: ``"torchmetrics"``, or ``"custom"`` for a class of your own.
        metric_class: A class of torchmetrics (``"Accuracy"``, ``"MulticlassF1Score"``); for ``"custom"`` the import
            path of a subclass of ``torchmetrics.Metric``.
        params: Arguments of the class. Numbers, strings, booleans, ``None``, and lists and dictionaries of these.
        stages: Some of ``"train"``, ``"val"``, ``"test"``.
        log_on_step: Whether to log each step's value.
        log_on_epoch: Whether to log each epoch's value.
        prog_bar: Whether to show it in the progress bar.

    Raises:
        UsageError: If a field is wrong; unknown classes and parameters get the nearest names.

    Example:
        >>> config = MetricConfig("kappa", metric_class="CohenKappa", params={"task": "multiclass", "num_classes": 3})
        >>> MetricConfig.from_dict(config.to_dict()) == config
        True
    """

    name: str
    backend: str = "torchmetrics"
    metric_class: str = "Accuracy"
    params: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[str] = STAGES
    log_on_step: bool = False
    log_on_epoch: bool = True
    prog_bar: bool = False

    def __post_init__(self) -> None:
        """Check every field, and that the metric can be made."""
        named = re.fullmatch(r"[A-Za-z][\w-]*", str(self.name)) is not None
        # A module that holds others cannot have a child called like one of its own attributes.
        free = named and self.name not in dir(nn.ModuleDict()) and self.name != "loss"
        must = "letters, digits, _ and -, from a letter on, and not a word that is taken"
        self._require(free, "name", must, "Give for example 'accuracy'.")
        self._choose("backend", self.backend, BACKENDS)
        stages = [self.stages] if isinstance(self.stages, str) else self.stages
        some = isinstance(stages, (list, tuple)) and len(stages) > 0
        self._require(some, "stages", f"a list of some of {', '.join(STAGES)}", "Give for example ['val'].")
        for stage in stages:
            self._choose("stages", getattr(stage, "value", stage), STAGES)
        for flag in ("log_on_step", "log_on_epoch", "prog_bar"):
            self._require(isinstance(getattr(self, flag), bool), flag, "True or False", "Give one of them.")
        logged = self.log_on_step or self.log_on_epoch
        self._require(logged, "log_on_epoch", "True if log_on_step is False", "Log it somewhere, or leave it out.")
        self._require(
            _is_plain_mapping(self.params),
            "params",
            "a dictionary of plain data",
            "Give numbers, strings, and lists of them.",
        )
        # Frozen, but every way of saying the same is stored as one.
        object.__setattr__(self, "stages", tuple(str(getattr(stage, "value", stage)) for stage in stages))
        object.__setattr__(self, "params", dict(self.params))
        self.build()

    def _require(self, condition: bool, option: str, must: str, do: str) -> None:
        owner = f"the MetricConfig {self.name!r}" if option != "name" else "a MetricConfig"
        require(condition, option, owner, must, getattr(self, option), do)

    def _choose(self, option: str, value: object, options: Iterable[str]) -> None:
        require_choice(option, f"the MetricConfig {self.name!r}", value, options)

    def build(self) -> Metric:
        """Make the metric.

        Raises:
            UsageError: If the class is unknown or does not take the parameters.
        """
        metric = _find_class(self)
        try:
            made: Metric = metric(**self.params)
        except (TypeError, ValueError, AssertionError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            wrong = [name for name in self.params if name not in _parameters(metric, self.params)]
            hints = [nearest(name, _parameters(metric, self.params)) for name in wrong if f"`{name}`" in str(error)]
            do = " ".join([hint for hint in hints if hint] or [f"See the documentation of {metric.__name__}."])
            raise UsageError(
                sentence(
                    "params",
                    f"the MetricConfig {self.name!r}",
                    f"what torchmetrics' {metric.__name__} takes ({reason})",
                    self.params,
                    do,
                )
            ) from None
        return made

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a configuration file."""
        return asdict(self) | {"stages": list(self.stages), "params": dict(self.params)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MetricConfig:
        """Undo :meth:`to_dict`.

        Raises:
            UsageError: If a key is unknown or a value is wrong.
        """
        known = list(cls.__dataclass_fields__)
        for key in data:
            require_choice("keys", "a metric", key, known)
        require("name" in data, "name", "a metric", "given", None, "Give for example name: accuracy.")
        return cls(**data)

    @classmethod
    def of(cls, metric: MetricConfig | Mapping[str, Any]) -> MetricConfig:
        """Accept a configuration, or the plain data of one."""
        return metric if isinstance(metric, MetricConfig) else cls.from_dict(metric)


def _is_plain_mapping(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) and _is_plain(item) for key, item in value.items())


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return _is_plain_mapping(value)
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _known_classes() -> dict[str, type[Metric]]:
    """All metrics by name; where two modules use a name, the first in ``_SOURCES`` has it."""
    found: dict[str, type[Metric]] = {}
    for module in _SOURCES:
        for name in module.__all__:
            value = getattr(module, name, None)
            if isinstance(value, type) and issubclass(value, Metric):
                found.setdefault(name, value)
    return found


def _find_class(config: MetricConfig) -> type[Metric]:
    owner, path = f"the MetricConfig {config.name!r}", config.metric_class
    require(isinstance(path, str), "metric_class", owner, "a name", path, "Give for example 'Accuracy'.")
    if config.backend == "torchmetrics" and "." not in path:
        known = _known_classes()
        cure = nearest(path, known) or "Use backend='custom' with an import path for a metric of your own."
        require(path in known, "metric_class", owner, "a metric of torchmetrics", path, cure)
        return known[path]
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute) if module else None
    except (ImportError, AttributeError):
        found = None
    if not (isinstance(found, type) and issubclass(found, Metric)):
        must = "the import path of a subclass of torchmetrics.Metric"
        raise UsageError(sentence("metric_class", owner, must, path, "Give for example 'my_package.metrics.MyMetric'."))
    return found


def _parameters(metric: type[Metric], params: Mapping[str, Any]) -> list[str]:
    """Names of the arguments of a metric; torchmetrics' wrappers choose another class by ``task``."""
    classes = [metric]
    if isinstance(params.get("task"), str):
        task = params["task"].capitalize()
        classes += [found for name, found in _known_classes().items() if name == f"{task}{metric.__name__}"]
    names = [inspect.signature(method).parameters for cls in classes for method in (cls.__init__, cls.__new__)]
    return sorted({name for parameters in names for name in parameters} - {"self", "cls", "args", "kwargs"})


def build_metrics(configs: Iterable[MetricConfig], stage: str) -> nn.ModuleDict:
    """Make the metrics of one stage, under their names.

    Args:
        configs: All configurations of a task.
        stage: ``"train"``, ``"val"``, ``"test"``, or ``"predict"``, which has none; a :class:`autotimm.types.Stage`
            will do too.

    Raises:
        UsageError: If two metrics of the stage have one name.
    """
    wanted = [config for config in configs if str(getattr(stage, "value", stage)) in config.stages]
    names = [config.name for config in wanted]
    for name in names:
        do = "Give each metric of a stage a name of its own."
        require(names.count(name) == 1, "name", "the metrics of one stage", "unique", name, do)
    return nn.ModuleDict({config.name: config.build() for config in wanted})


def default_metrics(num_classes: int, *, multi_label: bool = False, threshold: float = 0.5) -> list[MetricConfig]:
    """What a classifier measures in validation and test when nothing was asked for.

    Single label: accuracy, top-5 accuracy with more than five classes, and macro F1. Multi-label: mean average
    precision over the classes, and macro F1 at the threshold. Training is watched by its loss alone:
    metrics of augmented images say little and cost time in every step.

    Args:
        num_classes: Number of classes C.
        multi_label: Whether targets are (N, C) zeros and ones.
        threshold: Probability from which on a label counts, for multi-label.

    Example:
        >>> [config.name for config in default_metrics(10)]
        ['accuracy', 'top5_accuracy', 'f1']
    """

    def metric(name: str, metric_class: str, **params: Any) -> MetricConfig:
        # Without validation: the loss has seen the same targets, and a look at every batch makes a GPU wait.
        params |= {"validate_args": False}
        shown = name == default_monitor(multi_label=multi_label).name.removeprefix("val/")
        return MetricConfig(name, metric_class=metric_class, params=params, stages=("val", "test"), prog_bar=shown)

    if multi_label:
        return [
            metric("mAP", "MultilabelAveragePrecision", num_labels=num_classes, average="macro"),
            metric("f1", "MultilabelF1Score", num_labels=num_classes, average="macro", threshold=threshold),
        ]
    found = [metric("accuracy", "MulticlassAccuracy", num_classes=num_classes, average="micro")]
    if num_classes > _TOP_K:
        name = f"top{_TOP_K}_accuracy"
        found.append(metric(name, "MulticlassAccuracy", num_classes=num_classes, average="micro", top_k=_TOP_K))
    return [*found, metric("f1", "MulticlassF1Score", num_classes=num_classes, average="macro")]


def named_metric(metric_class: str, num_classes: int, *, multi_label: bool = False) -> MetricConfig:
    """Configure a classification metric of torchmetrics by its name alone.

    Args:
        metric_class: One of the classes that choose by ``task``, such as ``"Accuracy"`` or ``"CohenKappa"``.
        num_classes: Number of classes C.
        multi_label: Whether targets are (N, C) zeros and ones.

    Raises:
        UsageError: If there is no such metric, or it needs more than the number of classes.

    Example:
        >>> named_metric("CohenKappa", 3).name
        'cohen_kappa'
    """
    kind = (
        {"task": "multilabel", "num_labels": num_classes}
        if multi_label
        else {"task": "multiclass", "num_classes": num_classes}
    )
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", metric_class).lower()
    return MetricConfig(name, metric_class=metric_class, params=kind, stages=("val", "test"))


def default_monitor(*, multi_label: bool = False) -> Monitor:
    """What tells the best checkpoint of a classifier with the default metrics."""
    return Monitor("val/mAP" if multi_label else "val/accuracy", "max")


def choose_monitor(configs: Iterable[MetricConfig], name: str | None = None) -> Monitor:
    """Choose what tells the best checkpoint: the first validation metric that knows its direction, or the loss.

    Args:
        configs: The metrics of a task.
        name: A logged value that was asked for, such as ``"val/f1"``; a name that contains ``loss`` is minimized.

    Raises:
        UsageError: If there is no such metric, or its direction is not known.

    Example:
        >>> choose_monitor(default_metrics(10)), choose_monitor([])
        (Monitor(name='val/accuracy', mode='max'), Monitor(name='val/loss', mode='min'))
    """
    metrics = {f"val/{config.name}": config.build().higher_is_better for config in configs if "val" in config.stages}
    known = [Monitor(key, "max" if higher else "min") for key, higher in metrics.items() if higher is not None]
    if name is None:
        return known[0] if known else Monitor("val/loss", "min")
    if "loss" in name:
        return Monitor(name, "min")
    require_choice("monitor", "a task", name, [*(monitor.name for monitor in known), "val/loss"])
    return next(monitor for monitor in known if monitor.name == name)
