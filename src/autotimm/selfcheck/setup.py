"""The setup to check, as plain data for a child process, and how the child builds objects from it."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import autotimm
from autotimm.config import FitConfig
from autotimm.data.module import DataModule
from autotimm.errors import UsageError, sentence
from autotimm.records.imports import Kind, import_named
from autotimm.runs.factory import build_data, build_task, settle
from autotimm.runs.names_of_file import names_of_file
from autotimm.selfcheck.variations import Variation
from autotimm.serialization import import_object
from autotimm.tasks import Task
from autotimm.train import AutoTrainer

__all__ = ["TOY", "Objects", "Setup", "import_class", "make"]

# 7 images per class, 2 of them for validation: 3 batches, both for one process (8 images) and for two (4 each).
TOY = (28, 4, 32)  # images, classes, pixels
_BATCH, _BATCHES, _EPOCHS = 8, 3, 2
_DATA = {"image_size": 32, "eval_batch_size": 4, "val_split": 0.25}
# Dropout, so that the stream `step` draws random numbers too.
_MODEL = {"backbone": "test_resnet", "pretrained": False, "head_dropout": 0.1}
_TRAINER = {"max_epochs": _EPOCHS, "limit_train_batches": _BATCHES, "limit_val_batches": 2, "threads": 1, "devices": 1}
_TRAINER |= {"enable_progress_bar": False, "logger": False, "checkpoint_every": 1}
_SEED_OFFSET = 1_000_003  # added to a seed to get another one

Objects = tuple[Any, Any, AutoTrainer]


@dataclass(frozen=True)
class Setup:
    """The setup to check.

    Attributes:
        options: Options of ``fit`` from a file.
        nested: The content of a file in Lightning's style instead.
        builder: Import path of the function that builds model, data and trainer from ``nested`` and ``file``.
        file: The name of the file, for error messages.
        place: Its full path, since child processes work elsewhere: one in a run folder is a record of the run.
        model: Import path of a task class, instead of the model.
        data: Import path of a data module class, instead of the data.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    nested: Mapping[str, Any] = field(default_factory=dict)
    builder: str = ""
    file: str = ""
    place: str = ""
    model: str = ""
    data: str = ""

    @property
    def toy(self) -> bool:
        """Whether the check uses toy images."""
        own = any(self.options.get(name) for name in ("path", "train_csv", "dataset_name"))
        return bool(self.data) or not (self.nested or own)

    def config(self, toy: Path) -> FitConfig:
        """The options of the short trainings.

        Raises:
            UsageError: If an option is wrong.
        """
        small: dict[str, Any] = {**_MODEL, **_DATA} if not self.options else {}
        path = {"path": str(toy)} if self.toy else {}
        config = settle(FitConfig.layered([("selfcheck", {**path, **small}), (f"file {self.file}", self.options)]))
        seed = 42 if config.seed is None else config.seed
        return config.resolved({"batch_size": _small_even(config.batch_size), "seed": seed}, "selfcheck")


def make(setup: Setup, variation: Variation, toy: Path, run_dir: Path) -> Objects:
    """Make the model, the data module and the trainer of one short training.

    Raises:
        UsageError: If a class cannot be found, has the wrong base class, or needs an argument that is not available.
    """
    with names_of_file(setup.place or None):
        return _make(setup, variation, toy, run_dir)


def _make(setup: Setup, variation: Variation, toy: Path, run_dir: Path) -> Objects:
    loading = {"num_workers": 0, **variation.data}
    training = {**_TRAINER, "run_dir": str(run_dir), **variation.trainer}
    if variation.processes > 1:
        # Forking where possible saves loading the libraries again. On the CPU, which every machine has.
        strategy = "ddp_fork" if "fork" in multiprocessing.get_all_start_methods() else "ddp_spawn"
        training |= {"devices": variation.processes, "accelerator": "cpu", "strategy": strategy}
    seeded = {name for name, stream in (("model", "init"), ("data", "split")) if variation.stream == stream}
    if setup.nested:
        return _from_file(setup, loading, training, seeded, variation.processes)
    config = setup.config(toy)
    other = config.resolved({"seed": _another(config.seed)}, "selfcheck")
    data = _make_data(setup, other if "data" in seeded else config, loading, variation.processes, toy)
    task = _make_task(setup, other if "model" in seeded else config, data)
    options = {"accelerator": config.accelerator, "precision": config.precision, "seed": config.seed}
    options |= {"deterministic": config.deterministic, "accumulate_grad_batches": config.accumulate}
    return task, data, AutoTrainer(**{**options, **training})


def _small_even(batch: int) -> int:
    """A small batch size that two processes can share."""
    return max(2, min(int(batch), _BATCH) // 2 * 2)


def _another(seed: int | None) -> int:
    return int((42 if seed is None else seed) + _SEED_OFFSET) % 2**32


def _make_data(setup: Setup, config: FitConfig, loading: Mapping[str, Any], processes: int, toy: Path) -> DataModule:
    batch = config.batch_size // processes
    if not setup.data:
        data = build_data(config.resolved({"batch_size": batch, "num_workers": loading["num_workers"]}, "selfcheck"))
        data.persistent_workers = loading.get("persistent_workers", True)
        return data
    chosen = import_class(setup.data, "--data", DataModule)
    offered = {**_DATA, **loading, "batch_size": batch, "seed": config.seed, "data_dir": toy}
    module: DataModule = _construct(chosen, offered, "--data")
    return module


def _make_task(setup: Setup, config: FitConfig, data: DataModule) -> Task:
    if not setup.model:
        return build_task(config, data)
    chosen = import_class(setup.model, "--model", Task)
    offered: dict[str, Any] = {
        "num_classes": len(data.class_names),
        "pretrained": False,
        "image_size": config.image_size,
    }
    offered |= {"seed": config.seed, "deterministic": config.deterministic}
    if _needs(chosen, "backbone") or setup.options:
        offered["backbone"] = config.backbone
    task: Task = _construct(chosen, offered, "--model")
    return task


def import_class(path: str, flag: str, base: type) -> type[Any]:
    """Import a class that was named on the command line.

    Raises:
        UsageError: If it cannot be imported, or is no concrete subclass of ``base``.
    """
    imported = _imported(path, f"`{flag}`", base)
    if inspect.isabstract(imported):
        do = f"Name a class that inherits from autotimm.{base.__name__}."
        raise UsageError(sentence(flag, "selfcheck", f"a subclass of {base.__name__}", path, do))
    return imported


def _imported(path: str, noun: str, base: type) -> type[Any]:
    """Import a class by its dotted path; a public class of autotimm also by its name alone."""
    module, _, name = path.rpartition(".")
    public = module in ("", "autotimm") and name in dir(autotimm)
    imported: type = import_named(
        f"autotimm.{name}" if public else path, Kind(noun, f"a subclass of {base.__name__}", base, ("autotimm",))
    )
    return imported


def _parameters(chosen: type[Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(chosen).parameters


def _needs(chosen: type[Any], name: str) -> bool:
    parameter = _parameters(chosen).get(name)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _construct(chosen: type[Any], offered: Mapping[str, Any], flag: str) -> Any:
    """Call a class with those of the offered arguments that it takes."""
    known = _parameters(chosen)
    rest = {name for name, one in known.items() if one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
    taken = {name: value for name, value in offered.items() if name in known}
    own = inspect.signature(chosen.__init__).parameters.values()  # as it is written, where the class shows all options
    passes_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own)
    if passes_on and issubclass(chosen, autotimm.ImageDataModule):
        taken["data_dir"] = offered["data_dir"]
    if missing := [name for name in known if _needs(chosen, name) and name not in {*taken} | rest]:
        raise UsageError(
            f"The class {chosen.__name__} of `{flag}` needs the argument `{missing[0]}`, which selfcheck cannot give. "
            "Write it into a file in Lightning's style, and give that as --config."
        )
    return chosen(**taken)


def _from_file(
    setup: Setup, loading: Mapping[str, Any], training: Mapping[str, Any], seeded: set[str], processes: int
) -> Objects:
    """The objects of a file in Lightning's style, with the arguments that make a training short."""
    nested: dict[str, Any] = copy.deepcopy(dict(setup.nested))
    trainer = nested.get("trainer") or {}
    trainer = trainer if "class_path" in trainer else {"class_path": "AutoTrainer", "init_args": trainer}
    kept = {
        name: value for name, value in (trainer.get("init_args") or {}).items() if name not in ("tuner", "max_steps")
    }
    nested["trainer"] = {**trainer, "init_args": _with_seed({**kept, **training})}
    for key in ("model", "data"):
        section = nested.get(key)
        if not isinstance(section, dict) or "class_path" not in section:
            continue  # the builder reports it
        arguments = _with_seed(dict(section.get("init_args") or {}))
        if key == "data":
            known = {**loading, "batch_size": _small_even(arguments.get("batch_size", _BATCH)) // processes}
            arguments |= {name: value for name, value in known.items() if _takes(str(section["class_path"]), name)}
        if key in seeded and _takes(str(section["class_path"]), "seed"):
            arguments["seed"] = _another(arguments.get("seed"))
        nested[key] = {**section, "init_args": arguments}
    model, data, built_trainer = import_object(setup.builder)(nested, setup.file)
    if not isinstance(built_trainer, AutoTrainer):
        do = "Leave its `class_path` out."
        raise UsageError(
            sentence("trainer", setup.file, "an AutoTrainer, which keeps records", type(built_trainer).__name__, do)
        )
    return model, data, built_trainer


def _with_seed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replace ``seed: null``: trainings with seeds drawn at random would differ by design."""
    return {**arguments, "seed": 42} if "seed" in arguments and arguments["seed"] is None else arguments


def _takes(path: str, name: str) -> bool:
    chosen = _imported(path, "class", object)
    known = _parameters(chosen)
    return name in known or (issubclass(chosen, DataModule) and any(p.kind is p.VAR_KEYWORD for p in known.values()))
