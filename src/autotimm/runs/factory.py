"""From a configuration to objects: each option becomes the constructor argument that is declared beside it.

What cannot be passed on as it is, such as balanced class weights, goes through a converter that the declaration names.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from autotimm.config import FitConfig, defaults, options
from autotimm.config.value_types import stream_seeds
from autotimm.data.dense import DetectionDataModule, InstanceSegmentationDataModule, SegmentationDataModule
from autotimm.data.formats.recognize import Recognized, recognize
from autotimm.data.image import ImageDataModule
from autotimm.data.image_reading import ImageReading, reading_as
from autotimm.data.module import DataModule
from autotimm.errors import UsageError, missing_extra
from autotimm.losses.image_losses import balanced_weights
from autotimm.metrics import MetricConfig, Monitor, choose_monitor, named_metric
from autotimm.records.run_folder import RunFolder
from autotimm.repro.streams import RootSeed
from autotimm.tasks import ImageClassifier, InstanceSegmentor, ObjectDetector, SemanticSegmentor, Task
from autotimm.train import AutoTrainer, TunerConfig
from autotimm.train.callbacks.candidates import why_no_head

__all__ = ["build_data", "build_task", "build_trainer", "least_epochs", "settle", "settle_data", "settle_recipe"]

_LEAST_STEPS = 200  # optimizer steps of a training whose length nobody has given, as long as that is not ...
_MOST_EPOCHS = 40  # ... more epochs than these


# An argument that a class does not take is refused by its constructor.
_DATA: dict[str, Callable[..., DataModule]] = {
    "classification": ImageDataModule,
    "detection": DetectionDataModule,
    "instance": InstanceSegmentationDataModule,
    "segmentation": SegmentationDataModule,
}
_TASKS: dict[str, Callable[..., Task]] = {
    "classification": ImageClassifier,
    "detection": ObjectDetector,
    "instance": InstanceSegmentor,
    "segmentation": SemanticSegmentor,
}
_Converters = Mapping[str, Callable[[], Any]]


def _arguments(
    part: str, config: FitConfig, constructor: Callable[..., Any], converters: _Converters
) -> dict[str, Any]:
    """The arguments of one part: what every option that has an effect on the task becomes there.

    Args:
        part: ``data``, ``model`` or ``trainer``.
        config: The options, with the task settled.
        constructor: The class that is given them.
        converters: What makes an argument that is not the option's value itself, by the names in the declarations.
    """
    arguments: dict[str, Any] = {}
    for name, option in options(type(config)).items():
        for to in option.to if config.task in option.tasks else ():
            argument, value = to.name or name, getattr(config, name)
            if to.part != part or argument in arguments:
                continue
            if to.converter:
                value = converters[to.converter]()
            elif to.default_word and value == to.default_word:
                value = _default(constructor, argument)
            arguments[argument] = value
    return arguments


def _default(constructor: Any, argument: str) -> Any:
    """The default of an argument, which a class may take from its bases as one of ``**options``."""
    for base in inspect.getmro(constructor):
        known = inspect.signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
        if argument in known:
            return known[argument].default
    raise TypeError(f"{constructor.__name__} has no argument {argument}")


def settle(config: FitConfig) -> FitConfig:
    """Resolve the task of a configuration, from the data if the task was left open.

    Raises:
        UsageError: If an option was given that has no effect on the task.
        DataError: If the task cannot be detected from the data.
    """
    recognized = _recognized(config)
    return _with_task(config, recognized)


def settle_data(config: FitConfig) -> tuple[FitConfig, DataModule]:
    """Settle the task and build the data module, so that the data are recognized and their folder is listed once.

    Raises:
        UsageError: If an option was given that has no effect on the task.
        DataError: If the task cannot be detected from the data.
    """
    recognized = _recognized(config)
    config = _with_task(config, recognized)
    data = build_data(config)
    data.recognized = recognized
    return config, data


def _recognized(config: FitConfig) -> Recognized | None:
    """What the data are, if the task is left open and a path decides it; a missing path is the data module's error."""
    if config.task != "auto" or config.path is None or config.train_csv or config.dataset_name:
        return None
    path = Path(config.path).expanduser()
    with reading_as(ImageReading(config.in_chans, not config.ignore_exif)):
        return recognize(path) if os.path.exists(path) else None


def _with_task(config: FitConfig, recognized: Recognized | None) -> FitConfig:
    if config.task != "auto":
        return config.for_task(config.task)
    return config.for_task("classification" if recognized is None else recognized.task)


def build_data(config: FitConfig) -> DataModule:
    """The data module of a configuration whose task is settled."""
    constructor = _DATA[config.task]
    return constructor(**_arguments("data", config, constructor, {"seed": partial(_seed, config)}))


def build_task(config: FitConfig, data: DataModule) -> Task:
    """The task of a configuration whose task is settled, for data that has been set up.

    Raises:
        UsageError: If the configuration says another kind of labels than the data has.
    """
    if config.task == "classification":
        _check_labels(config, data)
    constructor = _TASKS[config.task]
    converters: _Converters = {
        "seed": partial(_seed, config),
        "multi_label": lambda: data.multi_label,
        "class_weights": partial(_class_weights, config, data),
        "metrics": partial(_metrics, config, data),
    }
    return constructor(num_classes=data.num_classes, **_arguments("model", config, constructor, converters))


def _check_labels(config: FitConfig, data: DataModule) -> None:
    if config.multi_label is not None and config.multi_label != data.multi_label:
        raise UsageError(
            f"The `multi_label` of fit must be {data.multi_label}, as the data is. Got {config.multi_label} instead. "
            "Leave it out."
        )
    if not data.multi_label and config.threshold != defaults()["threshold"]:
        raise UsageError("The `threshold` of fit has no effect on images of one class each. Leave it out.")


def _class_weights(config: FitConfig, data: DataModule) -> list[float] | None:
    if config.class_weights != "balanced":
        return None
    amounts = data.class_amounts("train")
    # A class without pixels gets the weight of the rarest class: a huge weight would dominate one-vs-all losses.
    rarest = min((amount for amount in amounts if amount), default=1)
    absent = rarest if config.task == "segmentation" else 0
    return balanced_weights([amount or absent for amount in amounts])


def _seed(config: FitConfig) -> int | None:
    """The seed, with the seeds of single streams; each part of a run uses those of its own streams."""
    own = stream_seeds(config.stream_seeds)
    return config.seed if config.seed is None or not own else RootSeed(config.seed, own)


def _metrics(config: FitConfig, data: DataModule) -> list[MetricConfig] | None:
    if config.metrics is None:
        return None
    spec = data.spec
    return [named_metric(name, len(spec.class_names), multi_label=spec.multi_label) for name in config.metrics]


def settle_recipe(config: FitConfig, task: Task, data: DataModule) -> tuple[FitConfig, str]:
    """Resolve what ``auto`` means for a task and its data: the recipe, and the epochs that were left open.

    Epochs of few images have few steps: a small set is trained for more of them than a large one.

    Returns:
        The configuration, and a line that says what was decided.

    Raises:
        UsageError: If ``probe`` was asked for and no head can be fitted.
    """
    if config.recipe == "plain":
        return config, ""
    portable = "a portable run fits no head to features" if config.portable else None
    if reason := portable or why_no_head(task):
        if config.recipe == "probe":
            raise UsageError(f"The `recipe` of fit must be plain or auto here, since {reason}. Got probe instead.")
        config, said = config.resolved({"recipe": "plain"}, f"auto, as {reason}"), f"recipe: plain, as {reason}"
    else:
        said = f"recipe: {config.recipe}, beginning with a head that is fitted to the pretrained features"
    if config.recipe == "probe" or config.given("epochs") or config.sources["epochs"] == "folds":
        return config, said
    batches = config.accumulate * (config.devices if config.shards is None else 1)
    steps = math.ceil(len(data.tables["train"]) / (data.batch_size * batches))
    epochs = least_epochs(config.epochs, steps)
    if epochs == config.epochs:
        return config, said
    return config.resolved({"epochs": epochs}, "recipe"), f"{said}; {epochs} epochs, since there are few images"


def least_epochs(epochs: int, steps: int) -> int:
    """Epochs of a training on few images: enough for 200 optimizer steps, as long as these are not more than 40.

    Args:
        epochs: The least number.
        steps: Optimizer steps of an epoch.

    Example:
        >>> least_epochs(10, 8), least_epochs(10, 2), least_epochs(10, 500)
        (25, 40, 10)
    """
    return max(epochs, min(math.ceil(_LEAST_STEPS / steps), _MOST_EPOCHS))


def build_trainer(
    config: FitConfig, folder: RunFolder, task: Task, data: DataModule, recorded: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
) -> AutoTrainer:  # fmt: skip
    """The trainer of a configuration, writing to a folder.

    Args:
        config: The options.
        folder: Where it writes.
        task: What is trained.
        data: What it is trained on.
        recorded: Arguments of the recorded trainer. They hold where no option becomes the argument, as for those that
            came from environment variables.
        own: Arguments that hold in place of those that options become.

    Raises:
        UsageError: If a validation metric is to stop the training and there is no validation data.
    """
    monitor = None if config.monitor == "auto" else config.monitor
    watched = choose_monitor(task.metric_configs, monitor)  # refuses an unknown name before the run begins
    converters: _Converters = {
        "seed": partial(_seed, config),
        "run_dir": lambda: folder.chosen,
        "tuner": partial(_tuner, config),
        "early_stopping": partial(_early_stopping, config, watched, data),
        "loggers": lambda: _loggers(config.loggers or (), folder) or False,
    }
    return AutoTrainer(**{**(recorded or {}), **_arguments("trainer", config, AutoTrainer, converters), **(own or {})})


def _tuner(config: FitConfig) -> TunerConfig | None:
    finder = TunerConfig(lr=config.lr_find, batch_size=config.batch_size_find)
    return finder if finder.lr or finder.batch_size else None


def _early_stopping(config: FitConfig, watched: Monitor, data: DataModule) -> list[Callback]:
    if config.patience is None:
        return []
    if watched.name.startswith("val/") and "val" not in data.tables:
        raise UsageError(
            f"The `patience` of fit must be left out without validation data, which {watched.name} needs. "
            "Give a `val_split` above 0, or monitor train/loss."
        )
    return [EarlyStopping(watched.name, mode=watched.mode, patience=config.patience)]


def _loggers(names: Sequence[str], run: RunFolder) -> list[Logger]:
    folder = run.chosen or run.root  # only the first process has a folder, and only its loggers write
    constructors = {
        "tensorboard": lambda: TensorBoardLogger(folder, name="tensorboard", version=""),
        "wandb": lambda: WandbLogger(save_dir=folder, name=folder.name),
        "mlflow": lambda: MLFlowLogger(
            experiment_name="autotimm", run_name=folder.name, tracking_uri=f"file:{folder}/mlflow"
        ),
    }
    loggers: list[Logger] = []
    for name in names:
        try:
            loggers.append(constructors[name]())
        except ModuleNotFoundError:
            raise missing_extra(f"The logger {name}", name) from None
    return loggers
