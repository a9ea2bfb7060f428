"""Configuration of torchmetrics metrics by plain data, validated when it is created."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, get_origin

import torchmetrics
import torchmetrics.classification
import torchmetrics.regression
import torchmetrics.segmentation
from torch import nn
from torchmetrics import Metric

from autotimm.errors import UsageError, nearest, require, require_choice, sentence
from autotimm.metrics.class_counts import linear
from autotimm.metrics.scores import Scores
from autotimm.records.imports import Kind, import_named

__all__ = ["MetricConfig", "build_metrics"]

BACKENDS = ("torchmetrics", "custom")
STAGES = ("train", "val", "test")
_PARTS = ("aggregation", "classification", "clustering", "detection", "nominal", "regression", "segmentation")
METRIC = Kind(
    "`metric_class`",
    "a subclass of torchmetrics.Metric",
    base=Metric,
    # Not all of torchmetrics: metrics of texts and of image pairs load further models, by names that they are given.
    libraries=("autotimm.metrics", *(f"torchmetrics.{part}" for part in _PARTS)),
    modules=("torchmetrics",),
)
_SOURCES = (torchmetrics, torchmetrics.classification, torchmetrics.regression, torchmetrics.segmentation)


@dataclass(frozen=True)
class MetricConfig:
    """Configuration of one metric: its class, its parameters, and when it is logged.

    It consists of plain data, so that a checkpoint that contains it loads with ``weights_only=True``. All fields are
    validated on creation, by building the metric once.

    Args:
        name: Name of the metric in logs, after the stage: ``"accuracy"`` is logged as ``val/accuracy``. Letters,
            digits, ``_`` and ``-``, starting with a letter.
        backend: ``"torchmetrics"``, or ``"custom"`` for a class of your own.
        metric_class: Name of a torchmetrics class (``"Accuracy"``, ``"MulticlassF1Score"``); for ``"custom"`` the
            import path of a subclass of ``torchmetrics.Metric``.
        params: Arguments of the class: numbers, strings, booleans, ``None``, and lists and dictionaries of these.
        stages: One or several of ``"train"``, ``"val"``, ``"test"``.
        log_on_step: Whether to log the value of each step.
        log_on_epoch: Whether to log the value of each epoch.
        prog_bar: Whether to show the metric in the progress bar.

    Raises:
        UsageError: If a field is invalid. For unknown classes and parameters, the message suggests similar names.

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
        """Validate and normalize the fields, and build the metric once."""
        well_formed = re.fullmatch(r"[A-Za-z][\w-]*", str(self.name)) is not None
        # build_metrics returns an nn.ModuleDict, whose keys must differ from its attributes.
        available = well_formed and self.name not in dir(nn.ModuleDict()) and self.name != "loss"
        must = "letters, digits, _ and -, starting with a letter, and not a reserved name"
        self._require(available, "name", must, "Give for example 'accuracy'.")
        self._require_choice("backend", self.backend, BACKENDS)
        stages = [self.stages] if isinstance(self.stages, str) else self.stages
        not_empty = isinstance(stages, (list, tuple)) and len(stages) > 0
        self._require(not_empty, "stages", f"a list of some of {', '.join(STAGES)}", "Give for example ['val'].")
        for stage in stages:
            self._require_choice("stages", getattr(stage, "value", stage), STAGES)
        for flag in ("log_on_step", "log_on_epoch", "prog_bar"):
            self._require(isinstance(getattr(self, flag), bool), flag, "True or False", "Give one of them.")
        logged = self.log_on_step or self.log_on_epoch
        do = "Log the metric per step or per epoch, or leave it out."
        self._require(logged, "log_on_epoch", "True if log_on_step is False", do)
        do = "Give numbers, strings, and lists of them."
        self._require(_is_plain_mapping(self.params), "params", "a dictionary of plain data", do)
        object.__setattr__(self, "stages", tuple(str(getattr(stage, "value", stage)) for stage in stages))
        object.__setattr__(self, "params", dict(self.params))
        self.build()

    def _require(self, condition: bool, option: str, must: str, do: str) -> None:
        owner = f"the MetricConfig {self.name!r}" if option != "name" else "a MetricConfig"
        require(condition, option, owner, must, getattr(self, option), do)

    def _require_choice(self, option: str, value: object, options: Iterable[str]) -> None:
        require_choice(option, f"the MetricConfig {self.name!r}", value, options)

    def build(self) -> Metric:
        """Create the metric.

        Raises:
            UsageError: If the class is unknown or does not accept the parameters.
        """
        metric_class = _find_class(self)
        try:
            metric: Metric = metric_class(**self.params)
        except (TypeError, ValueError, AssertionError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            accepted = _parameter_names(metric_class, self.params)
            unknown = [name for name in self.params if name not in accepted]
            hints = [nearest(name, accepted) for name in unknown if f"`{name}`" in str(error)]
            must = f"what torchmetrics' {metric_class.__name__} takes ({reason})"
            do = " ".join([hint for hint in hints if hint] or [f"See the documentation of {metric_class.__name__}."])
            raise UsageError(sentence("params", f"the MetricConfig {self.name!r}", must, self.params, do)) from None
        self._require_single_value(metric)
        return linear(metric)

    def _require_single_value(self, metric: Metric) -> None:
        """Reject curves and dictionaries now, since Lightning could not log them at the end of the first epoch."""
        returned = inspect.signature(type(metric).compute).return_annotation
        several = (get_origin(returned) or returned) in (dict, list, tuple)
        must = "a metric that returns a single number"
        do = "Choose one that does, or write a subclass of autotimm.metrics.Scores."
        owner = f"the MetricConfig {self.name!r}"
        require(not several or isinstance(metric, Scores), "metric_class", owner, must, type(metric).__name__, do)

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary of plain data, for a checkpoint or a configuration file."""
        return asdict(self) | {"stages": list(self.stages), "params": dict(self.params)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MetricConfig:
        """Create a configuration from the result of :meth:`to_dict`; only ``name`` is required.

        Raises:
            UsageError: If a key is unknown or a value is invalid.
        """
        known = list(cls.__dataclass_fields__)
        for key in data:
            require_choice("keys", "a metric", key, known)
        require("name" in data, "name", "a metric", "given", None, "Give for example name: accuracy.")
        return cls(**data)

    @classmethod
    def of(cls, metric: MetricConfig | Mapping[str, Any]) -> MetricConfig:
        """Return a configuration as it is, and create one from a dictionary of plain data."""
        return metric if isinstance(metric, MetricConfig) else cls.from_dict(metric)


def _is_plain_mapping(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) and _is_plain(item) for key, item in value.items())


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return _is_plain_mapping(value)
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


@cache
def _known_classes() -> dict[str, type[Metric]]:
    """Return all metrics of torchmetrics by name. The modules that come first in ``_SOURCES`` take precedence."""
    classes: dict[str, type[Metric]] = {}
    for module in _SOURCES:
        for name in module.__all__:
            value = getattr(module, name, None)
            if isinstance(value, type) and issubclass(value, Metric):
                classes.setdefault(name, value)
    return classes


def _find_class(config: MetricConfig) -> type[Metric]:
    owner, path = f"the MetricConfig {config.name!r}", config.metric_class
    require(isinstance(path, str), "metric_class", owner, "a name", path, "Give for example 'Accuracy'.")
    if config.backend == "torchmetrics" and "." not in path:
        known = _known_classes()
        if path in known:  # first, since the search for similar names takes longer than building the metric
            return known[path]
        suggestion = nearest(path, known) or "Use backend='custom' with an import path for a metric of your own."
        raise UsageError(sentence("metric_class", owner, "a metric of torchmetrics", path, suggestion))
    metric: type[Metric] = import_named(path, METRIC)
    return metric


def _parameter_names(metric_class: type[Metric], params: Mapping[str, Any]) -> list[str]:
    """Return the argument names of a metric, also of the class that a torchmetrics wrapper selects by ``task``."""
    classes = [metric_class]
    if isinstance(params.get("task"), str):
        selected = f"{params['task'].capitalize()}{metric_class.__name__}"
        classes += [known for name, known in _known_classes().items() if name == selected]
    signatures = [inspect.signature(method).parameters for cls in classes for method in (cls.__init__, cls.__new__)]
    return sorted({name for parameters in signatures for name in parameters} - {"self", "cls", "args", "kwargs"})


def build_metrics(configs: Iterable[MetricConfig], stage: str) -> nn.ModuleDict:
    """Create the metrics of one stage.

    Args:
        configs: All metric configurations of a task.
        stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``, or a :class:`autotimm.types.Stage`. Prediction has
            no metrics.

    Returns:
        The metrics by name.

    Raises:
        UsageError: If two metrics of the stage have the same name.
    """
    selected = [config for config in configs if str(getattr(stage, "value", stage)) in config.stages]
    names = [config.name for config in selected]
    for name in names:
        do = "Give each metric of a stage a different name."
        require(names.count(name) == 1, "name", "the metrics of one stage", "unique", name, do)
    return nn.ModuleDict({config.name: config.build() for config in selected})
