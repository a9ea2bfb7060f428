"""One metric of torchmetrics, configured by plain data and checked when it is configured."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_origin

import torchmetrics
import torchmetrics.classification
import torchmetrics.regression
import torchmetrics.segmentation
from torch import nn
from torchmetrics import Metric

from autotimm.errors import UsageError, nearest, require, require_choice, sentence
from autotimm.metrics.scores import Scores
from autotimm.serialization import import_object

__all__ = ["MetricConfig", "build_metrics"]

BACKENDS = ("torchmetrics", "custom")
STAGES = ("train", "val", "test")
_SOURCES = (torchmetrics, torchmetrics.classification, torchmetrics.regression, torchmetrics.segmentation)


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
        self._require_one_number(made)
        return made

    def _require_one_number(self, made: Metric) -> None:
        """Refuse curves and dictionaries before the first epoch, after which Lightning could not log them."""
        returned = inspect.signature(type(made).compute).return_annotation
        plural = (get_origin(returned) or returned) in (dict, list, tuple)
        must, do = "a metric that gives one number", "Give one that does, or a subclass of autotimm.metrics.Scores."
        owner = f"the MetricConfig {self.name!r}"
        require(not plural or isinstance(made, Scores), "metric_class", owner, must, type(made).__name__, do)

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
        if path in known:  # before a cure is looked for among two hundred names, which takes longer than the metric
            return known[path]
        cure = nearest(path, known) or "Use backend='custom' with an import path for a metric of your own."
        raise UsageError(sentence("metric_class", owner, "a metric of torchmetrics", path, cure))
    try:
        found = import_object(path)
    except ImportError:
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
