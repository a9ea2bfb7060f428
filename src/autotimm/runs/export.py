"""Export of a run: which checkpoint, which images to compare on, and where the file goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autotimm.data.inference_loaders import labelled_table
from autotimm.data.module import DataModule
from autotimm.data.table import Table
from autotimm.errors import DataError, ModelError, require, require_choice
from autotimm.export.agreement_check import SAMPLE
from autotimm.export.export_result import Export
from autotimm.export.exporter import export_task
from autotimm.export.formats import CHECKS, FORMATS, PRECISIONS, SUFFIXES, require_new_files
from autotimm.export.hub_name import require_license, require_repository
from autotimm.export.onnx_file import require_onnx
from autotimm.export.openvino_file import require_openvino
from autotimm.export.timm_folder import export_timm
from autotimm.report.model_card import model_card
from autotimm.runs.hub_push import Push, push_folder
from autotimm.runs.predict import known_data
from autotimm.runs.restore import read_manifest
from autotimm.tasks import Task
from autotimm.train.progress import say
from autotimm.types import DataSpec

__all__ = ["export_run", "push_run"]

_OWNER = "export"


def export_run(
    folder: Path, checkpoint: Path, load: Callable[[], Task], load_data: Callable[[], DataModule],
    out: str | Path | None, *, to: str, precision: str, data: str | Path | None, check: str, tolerance: float | None,
    runner: bool, paste_masks: bool,
) -> Export:  # fmt: skip
    """Export a checkpoint of a run; see :meth:`autotimm.Run.export` for the arguments.

    Args:
        folder: The folder of the run.
        checkpoint: The checkpoint.
        load: Loads its task.
        load_data: Builds the data module of the run.
        out: The new file or folder.
        to: The format.
        precision: The numbers that the network computes with.
        data: Labelled images to compare on.
        check: Which images to compare on.
        tolerance: The largest allowed difference.
        runner: Whether to write a program beside the file.
        paste_masks: Whether the file pastes masks of objects into the image.
    """
    require_choice("to", _OWNER, to, FORMATS)
    require_choice("precision", _OWNER, precision, PRECISIONS)
    require_choice("check", _OWNER, check, CHECKS)
    seeded = check == "seeded"
    require(not (seeded and data is not None), "data", _OWNER, "left out where the check is on seeded images", data,
            "Leave one of the two out.")  # fmt: skip
    default = f"{checkpoint.stem if folder == checkpoint.parent else folder.resolve().name}{SUFFIXES[to] or '-timm'}"
    path = Path(default if out is None else out)
    require_new_files(str(path), to, runner, _OWNER)
    require(precision != "int8" or to in ("onnx", "openvino"), "precision", _OWNER, f"fp32 or fp16 for {to}", precision,
            "Export to onnx or openvino.")  # fmt: skip
    {"onnx": require_onnx, "openvino": require_openvino}.get(to, lambda: None)()  # before a minute is spent on data
    task = load()
    spec = known_data(task)
    origin = _origin(folder, checkpoint)
    if to == "timm":
        require(precision == "fp32", "precision", _OWNER, "fp32 for timm", precision, "timm converts it on loading.")
        require(not paste_masks, "paste_masks", _OWNER, "left out for timm", True, "A classifier has no masks.")
        card = _card(folder, checkpoint, spec, path.absolute().name)
        return export_timm(task, spec, path, origin, card)
    table = None if seeded else _labelled(task, data, load_data)
    training = _training(task, load_data) if precision == "int8" and not seeded else None
    most = None if check == "full" else SAMPLE
    return export_task(
        task, spec, path, to=to, precision=precision, origin=origin, table=table, training=training,
        most=most, tolerance=tolerance, runner=runner, paste_masks=paste_masks,
    )  # fmt: skip


def _origin(folder: Path, checkpoint: Path) -> dict[str, str]:
    """What an exported file says of its run."""
    if not (folder / "manifest.json").is_file():
        return {"checkpoint": checkpoint.name}
    manifest = read_manifest(folder)
    return {"checkpoint": checkpoint.name, "run_id": manifest.run_id, "run_digest": manifest.digest}


def push_run(
    folder: Path, checkpoint: Path, load: Callable[[], Task], repository: str, *, upload: bool, private: bool,
    license_id: str | None,
) -> Push:  # fmt: skip
    """Push a checkpoint of a run as a folder for timm; see :meth:`autotimm.Run.push` for the arguments.

    Args:
        folder: The folder of the run.
        checkpoint: The checkpoint.
        load: Loads its task.
        repository: The repository, as ``owner/name``.
        upload: Whether to send it.
        private: Whether only its owner may see the repository.
        license_id: The license of the model.
    """
    require_repository(repository, "push")
    require_license(license_id, "push")
    manifest = read_manifest(folder)

    def write(out: Path) -> None:
        task = load()
        spec = known_data(task)
        card = _card(folder, checkpoint, spec, repository, repository=repository, license_id=license_id)
        export_timm(task, spec, out, _origin(folder, checkpoint), card)

    message = f"Add the model of the autotimm run {manifest.run_id}"
    return push_folder(write, repository, upload=upload, private=private, message=message)


def _card(folder: Path, checkpoint: Path, spec: DataSpec, name: str, **more: str | None) -> str | None:
    """The model card of a classifier; ``None`` for a checkpoint without the record of its run."""
    if spec.kind != "classes" or not (folder / "manifest.json").is_file():
        return None
    place = (folder / "checkpoints").absolute()
    ckpt = checkpoint.stem if checkpoint.absolute() in (place / "best.ckpt", place / "last.ckpt") else "FILE"
    return model_card(folder, spec, name=name, ckpt=ckpt, **more)


def _labelled(task: Task, data: str | Path | None, load_data: Callable[[], DataModule]) -> Table:
    """The validation images that an export is compared on.

    Raises:
        DataError: If there are none on this machine.
    """
    notices: list[str] = []
    if data is not None:
        table = labelled_table(data, known_data(task), "val", notices)
        say(*notices)
        return table
    cure = "Give other labelled images with --data, or compare on images from a seed with --check seeded."
    purpose = "An export is compared with its run on the run's validation images."
    if (validation := _tables(task, load_data, purpose, cure).get("val")) is None:
        raise DataError(f"An export is compared with its run on validation images. The run has none. {cure}")
    return validation


def _training(task: Task, load_data: Callable[[], DataModule]) -> Table:
    """The training images that 8 bits are calibrated on.

    Raises:
        DataError: If they are not on this machine.
    """
    purpose = "Ranges for 8 bits are measured on the run's training images."
    return _tables(task, load_data, purpose, "Use --precision fp32 or fp16.")["train"]


def _tables(task: Task, load_data: Callable[[], DataModule], purpose: str, cure: str) -> dict[str, Table]:
    """The data of the run.

    Raises:
        DataError: If it is not on this machine, or has other classes.
    """
    try:
        module = load_data()
        module.setup("validate")
    except (DataError, ModelError) as error:
        raise DataError(f"{purpose} {error} {cure}") from None
    known = known_data(task).class_names
    if module.spec.class_names != known:
        raise DataError(
            f"The run's data must have the classes that its model has learned, {', '.join(known)}. It has "
            f"{', '.join(module.spec.class_names)}. {cure}"
        )
    return module.tables
