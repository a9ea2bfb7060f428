"""What a checkpoint holds beside weights, as plain data, and how it is read without unpickling anything."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from autotimm.errors import ModelError
from autotimm.plain import import_object, lost_objects

__all__ = [
    "TaskRecord",
    "drop_folder",
    "read_checkpoint",
    "require_objects",
    "task_class",
    "task_class_named",
]


@dataclass(frozen=True)
class TaskRecord:
    """The part of a checkpoint that lets a model be used without its run.

    Attributes:
        task: Import path of the task's class.
        root_seed: The root of the streams that the initial weights came from.
        weights: Where pretrained weights came from, see :class:`autotimm.models.weights.Weights`.
        spec: Class names, image size and evaluation shape, see :class:`autotimm.types.DataSpec`.
        eval_batch_size: The fixed shape of evaluation batches.
    """

    KEY: ClassVar[str] = "autotimm"

    task: str
    root_seed: int
    weights: dict[str, Any]
    spec: dict[str, Any] | None
    eval_batch_size: int

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], path: object) -> TaskRecord:
        """Read the record of a checkpoint.

        Raises:
            ModelError: If the checkpoint was not written by a task of autotimm, or by a later version.
        """
        try:
            return cls(**checkpoint[cls.KEY])
        except (KeyError, TypeError) as error:
            raise ModelError(
                f"The checkpoint {path} must hold a task of autotimm. Its record is missing or of another version "
                f"({error}). Give a checkpoint that this version of autotimm wrote."
            ) from None


def read_checkpoint(path: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``: tensors and plain data, never code.

    Raises:
        ModelError: If the file is missing, damaged, or would run code when unpickled.
    """
    if not Path(path).is_file():
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
    except (RuntimeError, EOFError, zipfile.BadZipFile, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"The checkpoint {path} must be readable. It is damaged or cut off ({reason}). Use another one of the run."
        ) from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ModelError(
            f"The checkpoint {path} must hold a `state_dict`. It does not. Give a checkpoint of a trainer."
        )
    return checkpoint


def drop_folder(checkpoint: dict[str, Any]) -> None:
    """Leave out the folder of pretrained weights: it is of this machine, and may hold a user's name."""
    hparams = checkpoint["hyper_parameters"]
    if isinstance(weights := hparams.get("pretrained"), (str, Path)):
        hparams["pretrained"] = Path(weights).name


def task_class_named(name: str) -> Any:
    """Import what a record names.

    Raises:
        ModelError: If it cannot be imported.
    """
    try:
        return import_object(name)
    except ImportError as error:
        raise ModelError(
            f"The task {name} must be importable. It is not ({error}). Install or import its module."
        ) from None


def task_class(record: TaskRecord, wanted: type[Any], path: object) -> type[Any]:
    """The class of a recorded task.

    Raises:
        ModelError: If it cannot be imported, or is none of the class that is wanted.
    """
    chosen = task_class_named(record.task)
    if not (isinstance(chosen, type) and issubclass(chosen, wanted)):
        raise ModelError(
            f"The checkpoint {path} must hold a {wanted.__name__}. It holds a {record.task} instead. "
            "Load it with that class, or with `Task.load_from_checkpoint`."
        )
    return chosen


def require_objects(hparams: Mapping[str, Any], task: type[Any]) -> None:
    """Refuse recorded arguments that were objects, and so must be given again.

    Raises:
        ModelError: If there is one.
    """
    if missing := lost_objects(hparams):
        raise ModelError(
            f"The {', '.join(f'`{name}`' for name in missing)} of {task.__name__} must be given again, since objects "
            f"are not stored in checkpoints. Call load_from_checkpoint(path, {missing[0]}=...)."
        )
