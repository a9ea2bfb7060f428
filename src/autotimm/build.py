"""From a configuration to objects: which option goes to which constructor is said here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from autotimm.config import FitConfig, defaults
from autotimm.config.seeds import stream_seeds
from autotimm.data.detection import DetectionDataModule
from autotimm.data.formats.recognize import recognize
from autotimm.data.image import ImageDataModule
from autotimm.data.instance import InstanceSegmentationDataModule
from autotimm.data.module import DataModule
from autotimm.data.segmentation import SegmentationDataModule
from autotimm.data.spatial_module import SpatialDataModule
from autotimm.errors import UsageError, missing_extra
from autotimm.losses import balanced_weights
from autotimm.metrics import MetricConfig, choose_monitor, named_metric
from autotimm.repro.streams import RootSeed
from autotimm.tasks import ImageClassifier, InstanceSegmentor, ObjectDetector, SemanticSegmentor, Task
from autotimm.train import AutoTrainer, TunerConfig
from autotimm.train.folder import RunFolder

__all__ = ["build_data", "build_task", "build_trainer", "settle"]


_DATA: dict[str, type[SpatialDataModule]] = {
    "detection": DetectionDataModule,
    "instance": InstanceSegmentationDataModule,
    "segmentation": SegmentationDataModule,
}
_OBJECTS: dict[str, type[ObjectDetector] | type[InstanceSegmentor]] = {
    "detection": ObjectDetector,
    "instance": InstanceSegmentor,
}


def settle(config: FitConfig) -> FitConfig:
    """The configuration with its task settled, by looking at the data if it was left open.

    Raises:
        UsageError: If an option was given that has no effect on the task.
        DataError: If nothing says what the data is for.
    """
    task = config.task
    if task == "auto":
        listed = config.train_csv or config.dataset_name
        # What is not there is the data module's to say.
        look = config.path is not None and not listed and Path(config.path).expanduser().exists()
        task = recognize(Path(str(config.path)).expanduser()).task if look else "classification"
    return config.for_task(task)


def build_data(config: FitConfig) -> DataModule:
    """The data module of a configuration whose task is settled."""
    shared: dict[str, Any] = {
        "image_size": config.image_size, "batch_size": config.batch_size, "eval_batch_size": config.eval_batch_size,
        "num_workers": config.num_workers, "val_split": config.val_split, "test_split": config.test_split,
        "seed": _seed(config), "augmentation": config.augmentation, "balanced_sampling": config.balanced_sampling,
        "strict": config.strict,
    }  # fmt: skip
    if config.task in _DATA:
        return _DATA[config.task](str(config.path), format=config.format, **shared)
    return ImageDataModule(
        config.path,
        train_csv=config.train_csv, val_csv=config.val_csv, test_csv=config.test_csv,
        image_dir=config.image_dir, image_column=config.image_column, label_column=config.label_column,
        dataset_name=config.dataset_name, download=config.download, **shared,
    )  # fmt: skip


def build_task(config: FitConfig, data: DataModule) -> Task:
    """The task of a configuration whose task is settled, for data that has been set up.

    Raises:
        UsageError: If the configuration says another kind of labels than the data has.
    """
    if config.task in _OBJECTS:
        return _OBJECTS[config.task](
            config.backbone, data.num_classes, arch=config.arch, width=config.width, threshold=config.threshold,
            **_shared(config),
        )  # fmt: skip
    if config.task == "segmentation":
        return SemanticSegmentor(
            config.backbone, data.num_classes, arch=config.arch, width=config.width,
            loss=_open(config.loss) or "ce", class_weights=_class_weights(config, data), **_shared(config),
        )  # fmt: skip
    return _classifier(config, data)


def _classifier(config: FitConfig, data: DataModule) -> ImageClassifier:
    spec = data.spec
    if config.multi_label is not None and config.multi_label != spec.multi_label:
        raise UsageError(
            f"The `multi_label` of fit must be {spec.multi_label}, as the data is. Got {config.multi_label} instead. "
            "Leave it out."
        )
    if not spec.multi_label and config.threshold != defaults()["threshold"]:
        raise UsageError("The `threshold` of fit has no effect on images of one class each. Leave it out.")
    return ImageClassifier(
        config.backbone, len(spec.class_names),
        multi_label=spec.multi_label, threshold=config.threshold, head_dropout=config.head_dropout,
        label_smoothing=config.label_smoothing, mixup_alpha=config.mixup_alpha, cutmix_alpha=config.cutmix_alpha,
        loss=_open(config.loss), class_weights=_class_weights(config, data), metrics=_metrics(config, data),
        **_shared(config),
    )  # fmt: skip


def _shared(config: FitConfig) -> dict[str, Any]:
    """What all tasks are given."""
    return {
        "pretrained": config.pretrained, "image_size": config.image_size, "drop_path_rate": config.drop_path_rate,
        "seed": _seed(config), "deterministic": config.deterministic, "lr": config.lr,
        "optimizer": _open(config.optimizer), "weight_decay": config.weight_decay, "layer_decay": config.layer_decay,
        "backbone_scale": config.backbone_scale,
        "schedule": _open(config.schedule), "warmup_epochs": config.warmup_epochs, "gradient_clip": config.clip,
        "freeze_backbone": config.freeze_backbone, "ema_decay": config.ema_decay, "compile_model": config.compile,
        "eval_batch_size": config.eval_batch_size,
    }  # fmt: skip


def _open(word: str) -> str | None:
    """What the word for a value left open stands for."""
    return None if word == "auto" else word


def _class_weights(config: FitConfig, data: DataModule) -> list[float] | None:
    if config.class_weights != "balanced":
        return None
    amounts = data.class_amounts("train")
    # A class without a pixel weighs as much as the rarest: millions would drown the others in losses of one vs. all.
    rarest = min((amount for amount in amounts if amount), default=1)
    absent = rarest if config.task == "segmentation" else 0
    return balanced_weights([amount or absent for amount in amounts])


def _seed(config: FitConfig) -> int | None:
    """The seed, with those of single streams; each part of a run takes from it what it is the root of."""
    own = stream_seeds(config.stream_seeds)
    return config.seed if config.seed is None or not own else RootSeed(config.seed, own)


def _metrics(config: FitConfig, data: DataModule) -> list[MetricConfig] | None:
    if config.metrics is None:
        return None
    spec = data.spec
    return [named_metric(name, len(spec.class_names), multi_label=spec.multi_label) for name in config.metrics]


def build_trainer(
    config: FitConfig, folder: RunFolder, task: Task, data: DataModule, recorded: Mapping[str, Any] | None = None
) -> AutoTrainer:
    """The trainer of a configuration, writing to a folder.

    Args:
        config: The options.
        folder: Where it writes.
        task: What is trained.
        data: What it is trained on.
        recorded: Arguments that a trainer was once given, for those that no option stands for: such as came from
            variables of the environment.

    Raises:
        UsageError: If a validation metric is to stop the training and there is no validation data.
    """
    callbacks = []
    monitor = None if config.monitor == "auto" else config.monitor
    watched = choose_monitor(task.metric_configs, monitor)  # an unknown name is refused here, before the run begins
    if config.patience is not None:
        if watched.name.startswith("val/") and "val" not in data.tables:
            raise UsageError(
                f"The `patience` of fit must be left out without validation data, which {watched.name} needs. "
                "Give a `val_split` above 0, or monitor train/loss."
            )
        callbacks.append(EarlyStopping(watched.name, mode=watched.mode, patience=config.patience))
    finder = TunerConfig(lr=config.lr_find, batch_size=config.batch_size_find)
    own: dict[str, Any] = {
        "max_epochs": config.epochs, "seed": _seed(config), "deterministic": config.deterministic,
        "threads": config.threads, "run_dir": folder.chosen, "monitor": monitor,
        "checkpoint_every": config.checkpoint_every, "keep": config.keep,
        "tuner": finder if finder.lr or finder.batch_size else None,
        "accelerator": config.accelerator, "devices": config.devices, "precision": config.precision,
        "accumulate_grad_batches": config.accumulate, "logger": _loggers(config.loggers or (), folder) or False,
        "callbacks": callbacks, "enable_progress_bar": config.progress,
    }  # fmt: skip
    return AutoTrainer(**{**(recorded or {}), **own})


def _loggers(names: Sequence[str], run: RunFolder) -> list[Logger]:
    folder = run.chosen or run.root  # loggers write on the first process only, which has a folder
    makers = {
        "tensorboard": lambda: TensorBoardLogger(folder, name="tensorboard", version=""),
        "wandb": lambda: WandbLogger(save_dir=folder, name=folder.name),
        "mlflow": lambda: MLFlowLogger(
            experiment_name="autotimm", run_name=folder.name, tracking_uri=f"file:{folder}/mlflow"
        ),
    }
    loggers: list[Logger] = []
    for name in names:
        try:
            loggers.append(makers[name]())
        except ModuleNotFoundError:
            raise missing_extra(f"The logger {name}", name) from None
    return loggers
