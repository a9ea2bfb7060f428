"""How tasks are stored in checkpoints and read back, without unpickling anything.

Beside weights a checkpoint holds plain data only: the arguments of the task, and a :class:`TaskRecord`.
"""

from __future__ import annotations

import inspect
import math
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.mixins.hparams_mixin import _given_hyperparameters_context

from autotimm.data.inference_loaders import TRANSFORM
from autotimm.errors import ModelError
from autotimm.models.backbone.architectures import remember_architecture
from autotimm.models.backbone.hub import avoid_hub
from autotimm.models.backbone.weights import Weights
from autotimm.records.imports import Kind, RecordedNames, import_named, require_admitted
from autotimm.records.readers import Fields, require_shape
from autotimm.records.trust import of_checkpoint
from autotimm.repro.seed import preserve_switches
from autotimm.repro.streams import preserve_generators
from autotimm.serialization import construct, import_name, is_object, lost_objects, plain_value
from autotimm.types import Calibration, DataSpec

__all__ = ["Stored", "TaskRecord", "drop_folder", "read_checkpoint", "rebuilt_with", "task_class_named"]

TASK = Kind("task", "a subclass of pytorch_lightning.LightningModule", pl.LightningModule, ("autotimm",))
_LOADING: ContextVar[bool] = ContextVar("autotimm_loading", default=False)


@contextmanager
def _loading() -> Iterator[None]:
    """Tasks that are constructed meanwhile get their weights from a file: see :attr:`Stored.is_loading`."""
    before = _LOADING.set(True)
    try:
        yield
    finally:
        _LOADING.reset(before)


class Stored(pl.LightningModule):
    """The part of :class:`autotimm.tasks.base.Task` that writes and reads checkpoints; not for use on its own."""

    root_seed: int
    weights: Weights
    spec: DataSpec | None
    calibration: Calibration | None
    eval_batch_size: int
    loaded_from: Path | None = None  # the checkpoint, so that a training that begins with its weights can say so

    @property
    def is_loading(self) -> bool:
        """Whether the constructor runs for a checkpoint, so that neither seeds nor pretrained weights matter."""
        return _LOADING.get()

    def _save_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Keep as ``hparams`` the arguments with which the class can be called again, defaults included."""
        # Without given hyperparameters Lightning would search the calling frames for a name of this dictionary.
        with _given_hyperparameters_context({}, ""):
            self.save_hyperparameters(plain_value(arguments))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to use the model without its run: plain data only."""
        drop_folder(checkpoint)
        checkpoint[TaskRecord.KEY] = self.record().as_dict()

    def record(self) -> TaskRecord:
        """Return what a checkpoint says of this task beside weights and arguments."""
        return TaskRecord(
            task=import_name(type(self)),
            root_seed=int(self.root_seed),  # a plain integer: the seeds of single streams are the run's
            weights=self.weights.as_dict(),
            spec=self.spec.as_dict() if self.spec else None,
            eval_batch_size=self.eval_batch_size,
            calibration=self.calibration.as_dict() if self.calibration else None,
        )

    def restore(self, record: TaskRecord) -> None:
        """Undo :meth:`record` on a freshly constructed task."""
        self.root_seed, self.eval_batch_size = record.root_seed, record.eval_batch_size
        self.weights = Weights.from_dict(record.weights)
        self.spec = DataSpec.from_dict(record.spec) if record.spec else None
        self.calibration = None if record.calibration is None else _calibration(record)
        transforms = self.spec.eval_transforms if self.spec else None
        if transforms is not None and not is_object(transforms):
            require_admitted(transforms, TRANSFORM)  # they are imported when the model predicts

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # less freedom on purpose: never unpickles
        cls, checkpoint_path: Any, map_location: Any = None, *, trust: bool = False, **overrides: Any
    ) -> Any:
        """Load a task from a checkpoint: never unpickles, never contacts a hub, leaves seeds and switches alone.

        On :class:`Task` itself it loads whichever task the checkpoint names.

        Args:
            checkpoint_path: A file that a trainer wrote.
            map_location: Where to put the weights; by default the CPU.
            trust: Whether classes and functions that the checkpoint names may be imported, which runs their code. Those
                of autotimm and its libraries need no trust, nor does a run that you made on this machine, nor the
                class on which this method is called.
            overrides: Constructor arguments that replace the recorded ones.

        Returns:
            The task, in evaluation mode.

        Raises:
            ModelError: If the file is damaged, is no checkpoint of this task, or holds more than plain data; or if it
                names classes or functions that are not trusted.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        record = TaskRecord.of(checkpoint, checkpoint_path)
        recorded = checkpoint["hyper_parameters"]
        _require_objects({**recorded, **overrides}, record.task)
        if record.weights.get("architecture"):
            remember_architecture(record.weights["architecture"])
        replaced = {"pretrained": False} if "pretrained" in recorded else {}  # a task of a user's own may ask a hub
        with RecordedNames(of_checkpoint(checkpoint_path, [recorded, asdict(record)], trust)):
            task_class = _task_class(record, cls, checkpoint_path)
            with _loading(), avoid_hub(), preserve_switches(), preserve_generators():
                task = construct(task_class, {**recorded, **overrides, **replaced})
            task.hparams.update(plain_value({**recorded, **overrides}))
            task.restore(record)
        _load_state(task, checkpoint["state_dict"], checkpoint_path)
        task.loaded_from = Path(checkpoint_path).absolute()
        return task.eval()


_WEIGHTS = {"source": str, "sha256": (str, type(None)), "note": str, "architecture": (dict, type(None))}
_SPEC = {
    "class_names": [str], "multi_label": bool, "image_size": (int, [int]), "eval_batch_size": int, "crop_pct": float,
    "interpolation": str, "eval_transforms": (str, type(None)), "kind": str, "category_ids": [int],
    "in_chans": int, "ignore_exif": bool,
    "overlap": (float, type(None)), "decode": str,
}  # fmt: skip
_CALIBRATION = {"temperature": float, "thresholds": [float], "aim": str, "samples": int}
_RECORD = {
    "task": str, "root_seed": int, "weights": Fields(_WEIGHTS, ("source",)),
    "spec": (Fields(_SPEC, ("class_names",)), type(None)), "eval_batch_size": int,
    "calibration": (Fields(_CALIBRATION, tuple(_CALIBRATION)), type(None)),
}  # fmt: skip
_SHAPE = Fields({"state_dict": dict, "hyper_parameters": dict, "autotimm": Fields(_RECORD)}, ("hyper_parameters",))


def _calibration(record: TaskRecord) -> Calibration:
    """The calibration of a record.

    Raises:
        ModelError: If its numbers have no meaning.
    """
    fitted = Calibration.from_dict(record.calibration or {})
    classes = len(record.spec["class_names"]) if record.spec else 0
    fine = 0 < fitted.temperature < math.inf and all(0 < least < 1 for least in fitted.thresholds)
    if not (fine and len(fitted.thresholds) in (0, classes)):
        raise ModelError(
            "The calibration of a checkpoint must be a positive temperature and a threshold in (0, 1) for each class. "
            f"It is {record.calibration} instead. Use another checkpoint of the run."
        )
    return fitted


def rebuilt_with(task: Stored, **changes: Any) -> Any:
    """A task of the same class with other arguments, for the shapes of its weights.

    Arguments that it does not take are left out, and one that was an object, as a loss may be, has its default.
    """
    arguments = {**task.hparams}
    defaults = {name: parameter.default for name, parameter in inspect.signature(type(task)).parameters.items()}
    arguments |= {name: defaults[name] for name in lost_objects(arguments) if name in defaults}
    arguments |= {name: value for name, value in changes.items() if name in arguments}
    with _loading(), preserve_switches(), preserve_generators():
        return construct(type(task), arguments)


@dataclass(frozen=True)
class TaskRecord:
    """The part of a checkpoint that lets a model be used without its run.

    Attributes:
        task: Import path of the task's class.
        root_seed: The root of the streams that the initial weights came from.
        weights: Where pretrained weights came from, see :class:`autotimm.models.backbone.weights.Weights`.
        spec: Class names, image size and evaluation shape, see :class:`autotimm.types.DataSpec`.
        eval_batch_size: The fixed shape of evaluation batches.
        calibration: What was fitted on validation samples, see :class:`autotimm.types.Calibration`.
    """

    KEY: ClassVar[str] = "autotimm"

    task: str
    root_seed: int
    weights: dict[str, Any]
    spec: dict[str, Any] | None
    eval_batch_size: int
    calibration: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint; without what most have not, as earlier versions wrote it."""
        return {name: value for name, value in asdict(self).items() if name != "calibration" or value is not None}

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], path: object) -> TaskRecord:
        """Read the record of a checkpoint.

        Raises:
            ModelError: If the checkpoint was not written by a task of autotimm, or by a later version.
        """
        require_shape(dict(checkpoint), _SHAPE, f"the checkpoint {path}")
        try:
            return cls(**checkpoint[cls.KEY])
        except (KeyError, TypeError) as error:
            raise ModelError(
                f"The checkpoint {path} must hold a task of autotimm. Its record is missing or of another version "
                f"({error}). Give a checkpoint that this version of autotimm wrote."
            ) from None


# The unpickler reads whatever it finds in a damaged file: also text that is none, and marks without a beginning.
_DAMAGED = (
    RuntimeError, EOFError, zipfile.BadZipFile, OSError, ValueError, LookupError, TypeError, AttributeError
)  # fmt: skip


def read_checkpoint(path: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``: tensors and plain data, never code.

    Raises:
        ModelError: If the file is missing, damaged, or would run code when unpickled.
    """
    if not os.path.isfile(path):
        raise ModelError(
            f"The checkpoint {path} must be a file. There is none. Check the path, or give the run's folder."
        )
    if not zipfile.is_zipfile(path):  # of anything else the unpickler would complain in many ways
        raise ModelError(
            f"The checkpoint {path} must be a file that a trainer wrote. It is damaged, cut off or something else. "
            "Use another one of the run."
        )
    try:
        checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"The checkpoint {path} must hold tensors and plain data only. It is refused, since reading it could run "
            f"code or it is damaged ({str(error).splitlines()[0]}). Use a file that you trust and that is whole."
        ) from None
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"The checkpoint {path} must be readable. It is damaged or cut off ({reason}). Use another one of the run."
        ) from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ModelError(
            f"The checkpoint {path} must hold a `state_dict`. It does not. Give a checkpoint of a trainer."
        )
    return checkpoint


def _load_state(task: pl.LightningModule, state: Mapping[str, Any], path: object) -> None:
    try:
        task.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:  # other names or shapes; what is no tensor
        reason = " ".join(str(error).split())
        raise ModelError(
            f"The checkpoint {path} must hold the weights of its task. It does not ({reason[:300]}). Use another one "
            "of the run."
        ) from None


def drop_folder(checkpoint: dict[str, Any]) -> None:
    """Leave out the folder of pretrained weights: it is of this machine, and may hold a user's name."""
    hparams = checkpoint["hyper_parameters"]
    if isinstance(weights := hparams.get("pretrained"), (str, Path)):
        hparams["pretrained"] = Path(weights).name


def task_class_named(name: str) -> type[pl.LightningModule]:
    """Import the task that a record names.

    Raises:
        ModelError: If there is none of that name, or if the record's names are not admitted.
    """
    task: type[pl.LightningModule] = import_named(name, TASK)
    return task


def _task_class(record: TaskRecord, wanted: type[Any], path: object) -> type[Any]:
    """The class of a recorded task.

    Raises:
        ModelError: If it cannot be imported, or is none of the class that is wanted.
    """
    if record.task == import_name(wanted):
        return wanted  # the caller has imported it
    chosen = task_class_named(record.task)
    if not issubclass(chosen, wanted):
        raise ModelError(
            f"The checkpoint {path} must hold a {wanted.__name__}. It holds a {record.task} instead. "
            "Load it with that class, or with `Task.load_from_checkpoint`."
        )
    return chosen


def _require_objects(hparams: Mapping[str, Any], task: str) -> None:
    """Refuse recorded arguments that were objects, and so must be given again.

    Raises:
        ModelError: If there is one.
    """
    if missing := lost_objects(hparams):
        names, owner = ", ".join(f"`{name}`" for name in missing), task.rpartition(".")[2]
        raise ModelError(
            f"The {names} of {owner} must be given again, since objects are not stored in checkpoints. Call "
            f"load_from_checkpoint(path, {missing[0]}=...)."
        )
