"""The options of ``fit``: names, meaning, defaults, what each becomes, and where each value came from.

:class:`FitConfig` is the single list of options. The command line, YAML files, :func:`autotimm.fit`, replay and the
docs are derived from it. Values come in layers, of which later ones win: defaults, then a YAML file, then the command
line or arguments in Python. An unknown key is an error. Nothing here imports torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import partial
from typing import Any

from autotimm.config.option import Option, Shadow, To, meant, option
from autotimm.config.record import header, split_record
from autotimm.config.value_types import (
    Bytes,
    Choice,
    Either,
    Flag,
    Name,
    Number,
    Path,
    Size,
    StreamSeeds,
    Text,
    Times,
    Whole,
    Words,
)  # fmt: skip
from autotimm.config.yaml import write_scalar
from autotimm.constants import CACHES, CHECKS, DECODINGS, RECIPES, TASKS
from autotimm.errors import UsageError, sentence

__all__ = ["COMMAND_LINE", "NETWORK_OPTIONS", "FitConfig", "defaults", "options"]

COMMAND_LINE = "command line"
NETWORK_OPTIONS = ("task", "backbone", "pretrained", "arch", "width", "multi_label", "in_chans")
"""The options that decide the network: a run that trains on from another one has those of that run."""

_SCHEDULES = ("auto", "constant", "cosine", "linear", "onecycle", "plateau", "step")
_AUGMENTATIONS = ("none", "light", "default", "strong", "randaugment", "trivialaugment", "autoaugment")
_PRECISIONS = ("32", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64")
_NONE_SPLIT = "Give 0 to train on everything."

_WEIGHTS = Either((Flag(), Path()), "true, false, a weights file", "true|false|FILE")
_EVERY = Either((Whole(1), Text()), "a number of optimizer steps, or a time such as 10min", "N|TIME")
_KEEP = Either((Whole(1), Choice(("auto", "last", "epochs"))), "auto, last, epochs or a number", "auto|last|epochs|N")
_SHARE = Number(0, 1, high_open=True)
_AIM = Either((Number(0, 1, low_open=True, high_open=True), Choice(("f1",))), "f1 or a precision in (0, 1)", "f1|P")

_CLASSIFICATION = ("classification",)
_DENSE = ("detection", "instance", "segmentation")
_WITH_LOSS = ("classification", "segmentation")
_OBJECTS = ("detection", "instance")
_WITH_SCORES = ("classification", "detection", "instance")
_DATA_AND_MODEL = (To("data"), To("model"))
_SEED = tuple(To(part, "seed", converter="seed") for part in ("data", "model", "trainer"))
_TUNER = (To("trainer", "tuner", converter="tuner"),)
_RUN_DIR = (To("trainer", "run_dir", converter="run_dir"),)
_DRAWS = ("start", "order", "inputs", "forward")
_NO_RATES = "which leaves the backbone without a rate"

_data = partial(option, group="Data", to=(To("data"),))
_tables = partial(option, group="Data from tables and torchvision", to=(To("data"),), tasks=_CLASSIFICATION)
_model = partial(option, group="Model", to=(To("model"),))
_training = partial(option, group="Training", to=(To("model"),))
_repro = partial(option, group="Reproducibility")
_device = partial(option, group="Device", to=(To("trainer"),))
_output = partial(option, group="Output", to=(To("trainer"),))


@dataclass(frozen=True)
class FitConfig:
    """The resolved options of one ``fit``: immutable plain data, validated when it is created.

    ``autotimm fit --help-all`` prints every field with its meaning and default; :func:`options` returns them as data.
    ``sources`` says for each field where its value came from: ``"default"``, ``"file photos.yaml"``,
    ``"command line"``, ``"argument"``, ``"record runs/a/config.yaml"`` for the file of a run, or whatever
    :meth:`resolved` was told, such as ``"recipe"``.

    Raises:
        UsageError: If a value is wrong, or if an option is given that would have no effect.

    Example:
        >>> config = FitConfig.from_options("photos", {"epochs": 3, "lr": "1e-3"})
        >>> config.epochs, config.lr, config.backbone
        (3, 0.001, 'resnet18')
        >>> config.sources["epochs"], config.sources["backbone"]
        ('argument', 'default')
    """

    # fmt: off
    path: str | None = _data(
        None, Path(), "folder of class folders, or of train/ and val/; or a table", none="none",
        to=(To("data", "data_dir"),), stages=("order", "inputs"), recorded="data",
    )
    image_size: int | tuple[int, int] = _data(
        224, Size(), "side of the square input image in pixels, or its height x width", common=True,
        to=_DATA_AND_MODEL, stages=("inputs", "start", "forward"), by_task=dict.fromkeys(_DENSE, 512),
    )
    tile: int | tuple[int, int] | None = _data(
        None, Size(), "cut large images into tiles of this size, seen at full resolution", none="none",
        stages=("inputs", "start", "forward"), tasks=_DENSE,
        shadows=(Shadow("image_size", "which is the size of the network's input"),),
    )
    overlap: float = _data(
        0.2, Number(0, 0.9), "share of their sides that tiles have in common in evaluation", needs="tile",
        stages=("validation",), tasks=_DENSE,
    )
    batch_size: int = _data(
        32, Whole(1), "images per training step", common=True,
        stages=("order", "length", "rate"), recipe="reads", by_task=dict.fromkeys(_DENSE, 8),
    )
    val_split: float = _data(
        0.1, _SHARE, "fraction held out for validation if there is no val/", cure=_NONE_SPLIT, common=True,
        stages=("order", "validation"),
    )
    test_split: float = _data(
        0.0, _SHARE, "fraction held out for testing if there is no test/", cure=_NONE_SPLIT, common=True,
        stages=("order",),
    )
    group: str | None = _data(
        None, Text(), "keep images together that belong together: a column of a table, or a regex on ids whose first "
        "group names it", none="none", stages=("order", "validation"),
    )
    folds: int | None = _data(
        None, Whole(2), "cross-validate in this many folds, then train on all images", none="none", common=True,
        cure="Give for example 5.", stages=("order", "validation"),
        shadows=(Shadow("val_split", "which validates on each fold in turn"),),
    )
    fold: int | None = _data(
        None, Whole(1), "train one of the folds alone, counted from 1", none="none", needs="folds",
        cure="Give a number from 1 to `folds`.", stages=("order", "validation"),
    )
    augmentation: str = _data(
        "default", Choice(_AUGMENTATIONS), "augmentation of the training images", common=True, stages=("inputs",)
    )
    num_workers: int | None = _data(
        None, Whole(), "data loading processes; never changes results", none="auto", common=True
    )
    balanced_sampling: bool = _data(False, Flag(), "sample every class equally often", stages=("order",))
    eval_batch_size: int = _data(
        16, Whole(1), "images per batch in validation, test and prediction",
        to=_DATA_AND_MODEL, stages=("validation",), by_task=dict.fromkeys(_DENSE, 4),
    )
    format: str = _data(
        "auto", Name(), "annotation format: coco, voc, yolo, csv, labelme, cvat, jsonl, masks, ids, lance, "
        "litdata, cityscapes",
        stages=("order", "inputs"), tasks=_DENSE,
    )
    class_levels: int | None = _data(
        None, Whole(1), "levels of folders that make a class; 2 if flower/daisy is one", none="auto",
        stages=("order", "inputs", "start"), tasks=_CLASSIFICATION,
    )
    in_chans: int = _data(
        3, Whole(1), "channels of the images: 3 is RGB, 1 gray, 4 RGBA; others from TIFF pages or .npy arrays",
        to=_DATA_AND_MODEL, stages=("inputs", "start", "forward"),
    )
    ignore_exif: bool = _data(
        False, Flag(), "read images as stored; for annotations made without the turn of an EXIF tag",
        stages=("inputs", "validation"),
    )
    decode: str = _data(
        "reduced", Choice(DECODINGS), "decode large JPEGs at the scale that the network needs, or in full",
        tasks=_CLASSIFICATION, stages=("inputs", "validation"),
    )
    cache: str = _data(
        "off", Choice(CACHES), "keep decoded images for later epochs and runs: on disk, in ram, or auto; same bits"
    )
    cache_size: int = _data(
        20 * 10**9, Bytes(), "most that the decoded images of all data sets take", needs="cache"
    )
    check: str = _data(
        "auto", Choice(CHECKS), "decode all images before training, or look at headers; auto: full up to 20,000 images"
    )
    strict: bool = _data(False, Flag(), "refuse doubtful data instead of repairing it with a notice")
    train_csv: str | None = _tables(
        None, Path(), "table of training images", none="none", stages=("order", "inputs"), recorded="data"
    )
    val_csv: str | None = _tables(
        None, Path(), "table of validation images", none="none", needs="train_csv",
        stages=("order", "validation"), recorded="data",
    )
    test_csv: str | None = _tables(
        None, Path(), "table of test images", none="none", needs="train_csv", stages=("order",), recorded="data"
    )
    image_dir: str | None = _tables(
        None, Path(), "folder that paths in the tables are relative to", none="auto", needs="train_csv",
        stages=("order", "inputs"), recorded="data",
    )
    image_column: str | None = _tables(
        None, Text(), "column with the image paths", none="auto", needs="train_csv", stages=("order", "inputs")
    )
    label_column: tuple[str, ...] | None = _tables(
        None, Words(), "column with the class; several columns make it multi-label", none="auto", needs="train_csv",
        stages=("inputs", "start", "order"),
    )
    label_separator: str | None = _tables(
        None, Text(), "what separates several labels in a cell, such as '|'", none="none", needs="train_csv",
        stages=("inputs", "start", "order"),
    )
    dataset_name: str | None = _tables(
        None, Text(), "a torchvision data set, such as CIFAR10", none="none", stages=("order", "inputs")
    )
    download: bool = _tables(False, Flag(), "download that data set if it is missing", needs="dataset_name")

    task: str = _model(
        "auto", Choice(("auto", *TASKS)), "task; auto detects it from the data", common=True,
        to=(), stages=("start", "inputs", "forward"), recipe="reads",
    )
    backbone: str = _model(
        "resnet18", Text(), "any timm model; see autotimm backbones", common=True,
        stages=("start", "forward"), recipe="reads",
    )
    pretrained: bool | str | None = _model(
        None, _WEIGHTS, "pretrained weights; auto uses them where they are available", none="auto", common=True,
        stages=("start",), recorded="decisions.weights", recipe="reads",
    )
    arch: str = _model(
        "auto", Name(), "detector (fcos, retinanet, faster_rcnn), or decoder (fpn, unet, ..., a path)",
        stages=("start", "forward"), recipe="reads", tasks=_DENSE,
        by_task={"detection": "fcos", "instance": "mask_rcnn", "segmentation": "fpn"},
    )
    width: int = _model(
        256, Whole(1), "channels of pyramid and heads; 64 is small and fast", stages=("start", "forward"), tasks=_DENSE
    )
    multi_label: bool | None = _model(
        None, Flag(), "an image may have several classes", none="auto",
        to=(To("model", converter="multi_label"),), stages=("forward", "validation"), tasks=_CLASSIFICATION,
    )
    threshold: float = _model(
        0.5, Number(0, 1), "score from which labels (multi-label) or objects are reported",
        stages=("validation",), tasks=_WITH_SCORES, by_task={"detection": 0.3},
    )
    max_objects: int = _model(
        100, Whole(1), "objects found in an image at most, those with the highest scores", stages=("validation",),
        tasks=_OBJECTS,
    )
    nms_iou: float | None = _model(
        None, Number(0, 1), "overlap (IoU) of two boxes of a class above which the one with the lower score is dropped",
        none="auto", stages=("validation",), tasks=_OBJECTS,
    )
    freeze_backbone: bool = _model(
        False, Flag(), "train the head only", stages=("update", "forward"), recipe="reads",
        shadows=(
            Shadow("layer_decay", _NO_RATES, harmless=(None, 1.0)),
            Shadow("backbone_scale", _NO_RATES, harmless=(None, 1.0)),
            Shadow("drop_path_rate", "which keeps the backbone as it is in evaluation", harmless=(0.0,)),
        ),
    )
    head_dropout: float = _model(
        0.0, _SHARE, "dropout before the head", stages=("forward", "start"), tasks=_CLASSIFICATION
    )
    drop_path_rate: float = _model(0.0, _SHARE, "stochastic depth rate", stages=("forward", "start"))
    compile: bool = _model(
        False, Flag(), "compile the network with torch.compile",
        to=(To("model", "compile_model"),), stages=("forward", "update"),
    )

    recipe: str = _training(
        "auto", Choice(RECIPES), "auto begins with a head fitted to pretrained features; probe ends with it",
        common=True, to=(To("trainer"),), stages=("start", "length", "rate", "update"),
    )
    epochs: int = _training(
        10, Whole(1), "training epochs; small sets get up to 40", common=True,
        to=(To("trainer", "max_epochs"),), stages=("rate", "length"),
    )
    lr: float | None = _training(
        None, Number(low_open=True), "learning rate; auto follows a recipe for the backbone", none="auto", common=True,
        stages=("rate", "update"), recipe="decides", words="the learning rate",
    )
    search_budget: float = _training(
        0.0, Times(), "choose length, learning rate and regularization by short trainings on folds of the training "
        "images, of so many times the steps of the training; 0x is off", common=True, to=(),
        stages=("rate", "length", "update"),
        shadows=(
            Shadow("lr_find", "which searches for a rate by itself", harmless=(False,)),
            Shadow("batch_size_find", "which needs the batch size first", harmless=(False,)),
        ),
    )
    optimizer: str = _training(
        "auto", Name(), "any optimizer of timm or torch, or a class path", common=True,
        to=(To("model", default_word="auto"),), stages=("update",), recipe="decides",
    )
    schedule: str = _training(
        "auto", Choice(_SCHEDULES), "learning rate schedule", common=True,
        to=(To("model", default_word="auto"),), stages=("rate",), recipe="decides",
    )
    warmup_epochs: float | None = _training(
        None, Number(), "epochs of learning rate warm-up", none="auto", stages=("rate",), recipe="decides"
    )
    weight_decay: float | None = _training(
        None, Number(), "weight decay", none="auto", stages=("update",), recipe="decides"
    )
    layer_decay: float | None = _training(
        None, Number(0, 1, low_open=True), "layer-wise decay of the learning rate; 1 is off", none="auto",
        stages=("update",), recipe="decides",
    )
    backbone_scale: float | None = _training(
        None, Number(0, 1, low_open=True), "factor on the backbone's learning rate; 1 is off", none="auto",
        stages=("update",), recipe="decides",
    )
    clip: float | None = _training(
        None, Number(), "norm that gradients are clipped to; 0 is off", none="auto",
        to=(To("model", "gradient_clip"),), stages=("update",), recipe="decides",
    )
    accumulate: int = _training(
        1, Whole(1), "batches accumulated per optimizer step",
        to=(To("trainer", "accumulate_grad_batches"),), stages=("update", "rate", "length"), recipe="reads",
    )
    loss: str = _training(
        "auto", Name(), "a loss of torch, timm or torchvision, or a class path",
        to=(To("model", default_word="auto"),), stages=("forward",), tasks=_WITH_LOSS,
    )
    class_weights: str = _training(
        "none", Choice(("none", "balanced")), "weight of each class in the loss",
        to=(To("model", converter="class_weights"),), stages=("forward",), tasks=_WITH_LOSS,
    )
    label_smoothing: float = _training(
        0.0, _SHARE, "label smoothing factor", stages=("forward",), tasks=_CLASSIFICATION
    )
    mixup_alpha: float = _training(
        0.0, Number(), "mixup alpha; 0 is off", stages=("inputs", "forward"), tasks=_CLASSIFICATION
    )
    cutmix_alpha: float = _training(
        0.0, Number(), "CutMix alpha; 0 is off", stages=("inputs", "forward"), tasks=_CLASSIFICATION
    )
    ema_decay: float | None = _training(
        None, _SHARE, "decay of a moving average of the weights, such as 0.999", none="none",
        stages=("update", "validation"),
    )
    metrics: tuple[str, ...] | None = _training(
        None, Words(), "torchmetrics metrics, such as Accuracy,CohenKappa", none="auto",
        to=(To("model", converter="metrics"),), stages=("validation",), tasks=_CLASSIFICATION,
    )
    monitor: str = _training(
        "auto", Text(), "metric that selects the best checkpoint",
        to=(To("trainer", default_word="auto"),), stages=("length",),
    )
    patience: int | None = _training(
        None, Whole(1), "epochs without improvement before training stops", none="none",
        to=(To("trainer", "callbacks", converter="early_stopping"),), stages=("length",),
    )
    lr_find: bool = _training(
        False, Flag(), "search for a learning rate first",
        to=_TUNER, stages=("rate", "update"), finds="lr",
        shadows=(Shadow("lr", "which searches for one", harmless=(None,)),),
    )
    batch_size_find: bool = _training(
        False, Flag(), "search for the largest batch that fits first",
        to=_TUNER, stages=("order", "length", "rate"), finds="batch_size",
        shadows=(Shadow("batch_size", "which searches for one"),),
    )

    seed: int | None = _repro(
        42, Whole(0, bits=32), "root seed; none draws one and records it", none="none", common=True,
        to=_SEED, stages=_DRAWS, recorded="seeds",
    )
    stream_seeds: tuple[str, ...] | None = _repro(
        None, StreamSeeds(), "seeds of single random streams, to vary one source of randomness", none="none",
        to=_SEED, stages=_DRAWS, recorded="seeds",
    )
    deterministic: bool = _repro(
        True, Flag(), "deterministic kernels only; false may be faster", common=True,
        to=(To("model"), To("trainer")), stages=("forward", "update"),
    )
    threads: int | None = _repro(
        None, Whole(1), "CPU threads of torch; can change the last bits of results", none="auto", common=True,
        to=(To("trainer"),), stages=("forward", "update"), recorded="environment.threads",
    )
    accelerator: str = _device(
        "auto", Choice(("auto", "cpu", "gpu", "cuda", "mps", "tpu")), "type of device to train on",
        stages=("forward", "update"),
    )
    # Not "auto": a result should not depend on how many devices the machine happens to have.
    devices: int = _device(
        1, Whole(1), "number of devices or processes", stages=("order", "forward", "update"), recipe="reads"
    )
    shards: int | None = _device(
        None, Whole(1), "parts that each batch is cut into, so that no bit depends on the number of devices",
        none="none", stages=("order", "forward", "update"), recipe="reads",
    )
    portable: bool = _device(
        False, Flag(), "the same bits on every processor and with any number of threads; slower",
        stages=("start", "forward", "update", "validation"),
    )
    precision: str = _device("32", Choice(_PRECISIONS), "floating point precision", stages=("forward", "update"))
    out: str = _output("runs", Path(), "folder in which run folders are created", common=True, to=_RUN_DIR)
    name: str | None = _output(None, Text(), "name of the run folder", none="auto", common=True, to=_RUN_DIR)
    checkpoint_every: int | str | None = _output(
        None, _EVERY, "also write a checkpoint every N steps or TIME", none="none"
    )
    keep: int | str = _output("auto", _KEEP, "checkpoints to keep; auto keeps every epoch's up to 2 GB")
    evidence: bool = _output(
        True, Flag(), "keep predictions and features of the validation images, for reports and for verify"
    )
    calibrate: float | str | None = _output(
        "f1", _AIM, "fit temperature and thresholds on the validation images: f1, or a precision to reach", none="none",
        needs="evidence", stages=("validation",), tasks=_WITH_SCORES,
    )
    loggers: tuple[str, ...] | None = _output(
        None, Words(("tensorboard", "wandb", "mlflow")), "further loggers; a CSV file is always written", none="none",
        to=(To("trainer", "logger", converter="loggers"),),
    )
    progress: bool = _output(True, Flag(), "show progress", to=(To("trainer", "enable_progress_bar"),))
    # fmt: on
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check each value by itself, then those that depend on each other."""
        values = self._read({name: getattr(self, name) for name in options(type(self))})
        self._set(values, self.sources)
        self._check_together()

    @classmethod
    def _read(cls, values: Mapping[str, object]) -> dict[str, Any]:
        """Convert and check values that Python code gives, each by itself."""
        known, default = options(cls), defaults(cls)
        return {name: known[name].read(value, name, "FitConfig", default[name], True) for name, value in values.items()}

    def _set(self, values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        """Take over values that have been checked."""
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "sources", {name: sources.get(name, "default") for name in options(type(self))})

    def _check_together(self) -> None:
        if self.path is None and self.train_csv is None and self.dataset_name is None:
            raise UsageError(
                "There is no data. Give the path of a folder of images, a `train_csv` or a `dataset_name`."
            )
        if self.val_split + self.test_split >= 1:
            got = f"Got {self.val_split:g} and {self.test_split:g} instead. Leave some images to train on."
            raise UsageError(f"The `val_split` and `test_split` of fit must sum to less than 1. {got}")
        if self.folds is not None and self.fold is not None and self.fold > self.folds:
            must, cure = f"a whole number from 1 to {self.folds}, as `folds` says", "Folds are counted from 1."
            raise UsageError(sentence("fold", "fit", must, self.fold, cure))
        if _is_table(self.path) and self.train_csv is not None:
            raise UsageError(f"fit takes one table to train on. Got {self.path} and `train_csv` instead. Give one.")
        has = {**self.as_dict(), "train_csv": self.path if _is_table(self.path) else self.train_csv}
        known, default = options(type(self)), defaults(type(self))
        for name, declared in known.items():
            needed = has[declared.needs] if declared.needs else True
            useless = not needed if isinstance(needed, bool) else needed == default[declared.needs]
            if useless and getattr(self, name) not in (default[name], None):
                cure = "Give that too, or neither."
                raise UsageError(f"The `{name}` of fit has no effect without `{declared.needs}`. {cure}")
        if self.recipe == "probe" and _is_asked(self.sources["epochs"]):
            cure = "Leave `epochs` out, or give recipe auto."
            raise UsageError(f"The `epochs` of fit has no effect with recipe probe, which trains for none. {cure}")
        on = {name: declared.shadows for name, declared in known.items() if declared.shadows and getattr(self, name)}
        for by, shadow in ((by, shadow) for by, shadows in on.items() for shadow in shadows):
            name = shadow.name
            if _is_asked(self.sources[name]) and getattr(self, name) not in shadow.harmless:
                cure = f"Leave `{name}` or `{by}` at its default."
                raise UsageError(f"The `{name}` of fit has no effect with `{by}`, {shadow.why}. {cure}")

    def given(self, name: str) -> bool:
        """Whether somebody asked for the value; of a record, which has every option, for what is not the default."""
        recorded = self.sources[name].startswith("record ")
        return _is_asked(self.sources[name]) or (recorded and getattr(self, name) != defaults(type(self))[name])

    @classmethod
    def from_options(cls, path: object, options: Mapping[str, object], source: str = "argument") -> FitConfig:
        """Make a configuration from Python's arguments.

        Args:
            path: The folder of images, or ``None``.
            options: Any other fields by name. A value may be the thing itself or the text that stands for it.
            source: What :attr:`sources` says of them.
        """
        return cls.layered([(source, {**({} if path is None else {"path": path}), **options})])

    @classmethod
    def layered(cls, layers: Iterable[tuple[str, Mapping[str, object]]]) -> FitConfig:
        """Make a configuration from several sources, of which the later wins.

        Args:
            layers: Pairs of the source's name (``"file photos.yaml"``, ``"command line"``, ``"argument"``) and its
                values. Keys may be written with dashes or underscores, but not both.

        Raises:
            UsageError: If a key is unknown or given twice, or if a value is wrong; it names the source.
        """
        values = defaults(cls)
        sources: dict[str, str] = {}
        for source, given in layers:
            # A record holds what recipes and finders chose too, which nobody asked for.
            is_record, given = split_record(given, _owner(source))
            read = _read_layer(cls, source, given)
            values |= read
            sources |= dict.fromkeys(read, f"record {source.removeprefix('file ')}" if is_record else source)
        config = cls.__new__(cls)
        config._set(values, sources)
        config._check_together()
        return config

    def resolved(self, values: Mapping[str, object], source: str) -> FitConfig:
        """Replace values that were left open, such as the learning rate that a recipe chose, and say who decided.

        Example:
            >>> FitConfig(path="photos").resolved({"lr": 5e-4}, "recipe").sources["lr"]
            'recipe'
        """
        resolved = copy.copy(self)
        resolved._set(self._read(values), {**self.sources, **dict.fromkeys(values, source)})
        if _is_asked(source):
            resolved._check_together()  # what the program decides contradicts nothing
        return resolved

    def for_task(self, task: str) -> FitConfig:
        """Settle the task, with its own defaults for what was left open.

        Raises:
            UsageError: If an option was given that has no effect on the task.

        Example:
            >>> FitConfig(path="photos").for_task("detection").image_size
            512
        """
        known, default = options(type(self)), defaults(type(self))
        for name in _options_of_others(known, task):
            if getattr(self, name) != default[name]:
                raise UsageError(f"The `{name}` of fit has no effect on {task}. Leave it out.")
        own = {name: value for name, value in _task_defaults(known, task).items() if self.sources[name] == "default"}
        decided = {} if self.task == task else {"task": task}
        of_tile = {} if self.tile is None else {"image_size": self.tile}
        return self.resolved(own, f"task {task}").resolved(decided, "data").resolved(of_tile, "tile")

    def as_dict(self) -> dict[str, Any]:
        """Every option as plain data, ``None`` as itself; without the sources."""
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in options(type(self))}

    def to_yaml(self) -> str:
        """Write the record of a run: every option, with the source of its value as a comment.

        ``--config`` reads it back. Its first field, ``record``, says that it holds what nobody asked for too.
        """
        known = options(type(self))
        lines = [header(), *(f"{name}: {write_scalar(known[name].word(getattr(self, name)))}" for name in known)]
        width = min(max(map(len, lines)), 40)
        said = zip(lines, ["every option of a run, and who decided it", *self.sources.values()], strict=True)
        return "".join(f"{line:<{width}}  # {source}\n" for line, source in said)


def options(of: type[FitConfig] = FitConfig) -> dict[str, Option]:
    """Every option of ``fit`` by name, in the order of the help.

    Args:
        of: A subclass that declares more.
    """
    return {name: declared.metadata["option"] for name, declared in _fields(of).items()}


def defaults(of: type[FitConfig] = FitConfig) -> dict[str, Any]:
    """The default of every option of ``fit`` by name.

    Args:
        of: A subclass that declares more.
    """
    return {name: declared.default for name, declared in _fields(of).items()}


def _fields(of: type[FitConfig]) -> dict[str, Field[Any]]:
    return {declared.name: declared for declared in fields(of) if "option" in declared.metadata}


def _is_asked(source: str) -> bool:
    """Whether a source is somebody who asked for a value, rather than a default, a recipe or a record."""
    return source in (COMMAND_LINE, "argument") or source.startswith("file ")


def _owner(source: str) -> str:
    """Whom an error about a value from a source names."""
    return {COMMAND_LINE: "autotimm fit", "argument": "autotimm.fit"}.get(source, source.removeprefix("file "))


def _read_layer(cls: type[FitConfig], source: str, given: Mapping[str, object]) -> dict[str, Any]:
    """Check the keys of one source and convert its values; errors name the key as it is written there."""
    values: dict[str, Any] = {}
    known, default, owner = options(cls), defaults(cls), _owner(source)
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in known:
            hint = meant(name, known) or "See autotimm fit --help-all."
            raise UsageError(f"{owner} has no option `{key}`. {hint}")
        if name in values:
            raise UsageError(f"{owner} gives `{name}` twice, with a dash and with an underscore. Keep one.")
        shown = f"--{key.replace('_', '-')}" if source == COMMAND_LINE and key != "path" else key
        values[name] = known[name].read(value, shown, owner, default[name], python=source == "argument")
    return values


def _is_table(path: str | None) -> bool:
    return path is not None and path.lower().endswith((".csv", ".tsv"))


def _task_defaults(options: Mapping[str, Option], task: str) -> dict[str, Any]:
    """Defaults of a task in place of those that all options have."""
    return {name: option.by_task[task] for name, option in options.items() if task in option.by_task}


def _options_of_others(options: Mapping[str, Option], task: str) -> list[str]:
    """Options that have no effect on a task."""
    return [name for name, option in options.items() if task not in option.tasks]
