"""The run that another one has begun with: whether it is what the record of that one says, where it can be found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from autotimm.errors import AutotimmError, join_names
from autotimm.records.digest import file_digest
from autotimm.records.manifest import Manifest
from autotimm.runs.restore import Rebuilt
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import TaskRecord, read_checkpoint, rebuilt_with
from autotimm.tasks.start import CHECKPOINT, INITIAL, WEIGHTS, network_weights, read_weights
from autotimm.train.run_description import surroundings
from autotimm.types import DataSpec

__all__ = ["ParentCheck", "check_parent", "depends_on_classes"]


class ParentCheck(NamedTuple):
    """What is known of the parent of a run.

    Attributes:
        problem: What is not as the record says, in a sentence; empty if nothing is.
        notes: What could not be checked, a line each.
    """

    problem: str = ""
    notes: tuple[str, ...] = ()


def check_parent(folder: Path, manifest: Manifest, rebuilt: Rebuilt | None = None) -> ParentCheck:
    """Compare what a run's record says of its parent with the parent, if that is where it was, or beside the run.

    Args:
        folder: The run's folder.
        manifest: Its manifest.
        rebuilt: Its objects, if it is replayed: they tell which weights may have begun anew, and how.
    """
    start = manifest.inputs.get("start")
    new = start.get("new") if isinstance(start, Mapping) else None
    if new and rebuilt is not None and (problem := _new_problem(new, folder, manifest, rebuilt)):
        return ParentCheck(problem)
    parent = start.get("parent") if isinstance(start, Mapping) else None
    if start is None or not isinstance(parent, Mapping) or start.get("kind") not in (WEIGHTS, CHECKPOINT):
        return ParentCheck()
    name = str(parent.get("checkpoint"))
    for place in _places(folder, manifest):
        found = _described(place, name)
        if not any(found.get(key) == value for key, value in parent.items() if key in ("run_id", "manifest", "sha256")):
            continue  # another run has this name
        for key, words in _WORDS.items():
            if key in parent and found.get(key) != parent[key]:
                return ParentCheck(f"The run began with {name} of {place}, but {words} is not what its record says.")
        file = _file(place, name)
        if file is not None and new and rebuilt is not None and _has_classes_of(rebuilt, file):
            return ParentCheck(f"The run has the classes of {file}, so that no weights begin anew. It names some.")
        return ParentCheck("" if file is None else _weights_problem(start, folder, file))
    which = f"the run {parent['run_id']}" if "run_id" in parent else "the checkpoint's file"
    return ParentCheck(
        notes=(f"not checked: {which}, whose {name} it began with, is not there; replayed from the copy of it here",)
    )


_WORDS = {
    "run_id": "the id of that run",
    "manifest": "the digest of its manifest.json",
    "sha256": "the SHA-256 of that checkpoint",
}


def _places(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Where the parent may be: where it was, and beside the run if both were moved."""
    recorded = manifest.volatile.get("parent")
    if isinstance(recorded, str) and recorded and "\0" not in recorded:
        yield Path(recorded)
        yield folder.absolute().parent / Path(recorded).name


def _described(place: Path, checkpoint: str) -> dict[str, Any]:
    """What a folder holds of what a record says of a parent; nothing of what cannot be read."""
    described: dict[str, Any] = {}
    if Path(checkpoint).name != checkpoint:
        return described
    try:
        if (place / "manifest.json").is_file():
            parent = Manifest.load(place / "manifest.json")
            described |= {"run_id": parent.run_id, "manifest": parent.digest}
        if (file := _file(place, checkpoint)) is not None:
            described["sha256"] = file_digest(file)
    except (AutotimmError, OSError):
        pass
    return described


def _file(place: Path, checkpoint: str) -> Path | None:
    """A checkpoint in the folder of a run, or beside others that stand alone."""
    files = (place / "checkpoints" / checkpoint, place / checkpoint)
    return next((file for file in files if file.is_file()), None)


def _weights_problem(start: Mapping[str, Any], folder: Path, checkpoint: Path) -> str:
    """How the weights that a run keeps of its parent differ from those in the parent's checkpoint, in a sentence."""
    if start["kind"] == CHECKPOINT:
        same = start.get("sha256") == start["parent"].get("sha256")
        return "" if same else f"{folder / INITIAL[CHECKPOINT]} is not the checkpoint that the record names."
    fresh = start.get("new", [])
    try:
        kept, theirs = read_weights(folder / INITIAL[WEIGHTS]), network_weights(checkpoint)
    except AutotimmError as error:
        return str(error)
    names = [name for name in kept if not (isinstance(fresh, list) and name in fresh)]
    differing = [name for name in names if name not in theirs or not _equal(kept[name], theirs[name])]
    if not differing:
        return ""
    return f"The run began with {checkpoint}, but {differing[0]} in {folder / INITIAL[WEIGHTS]} is not what that has."


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b.to(a.dtype))  # a checkpoint may have a lower precision


def _new_problem(new: object, folder: Path, manifest: Manifest, rebuilt: Rebuilt) -> str:
    """What is wrong with the weights that a record says have begun anew, in a sentence; empty if nothing is."""
    names, may_be_new = map(str, new if isinstance(new, list) else [new]), depends_on_classes(rebuilt.task)
    if others := [name for name in names if name not in may_be_new]:
        return f"The run says that {join_names(others)} began anew, which does not depend on the classes."
    now = surroundings(rebuilt.trainer)
    if rebuilt.drawn is None or any(_part(manifest.environment, name) != _part(now, name) for name in _DRAWN_BY):
        return ""
    kept = read_weights(folder / INITIAL[WEIGHTS])
    wrong = [name for name, drawn in rebuilt.drawn.items() if not torch.equal(kept[name], drawn.cpu())]
    return f"The run says that {join_names(wrong)} began anew, and it began with other values." if wrong else ""


_DRAWN_BY = ("versions", "hardware.instructions")  # what the last bits of random weights depend on


def _part(around: Mapping[str, Any], name: str) -> Any:
    section, _, inner = name.partition(".")
    value = around.get(section)
    return value.get(inner) if inner and isinstance(value, Mapping) else value


def _has_classes_of(rebuilt: Rebuilt, checkpoint: Path) -> bool:
    try:
        spec = TaskRecord.of(read_checkpoint(checkpoint), checkpoint).spec
    except AutotimmError:
        return False
    return spec is not None and DataSpec.from_dict(spec).class_names == rebuilt.data.class_names


def depends_on_classes(task: Task) -> set[str]:
    """The names of the weights whose shapes depend on the number of classes."""
    classes = task.hparams.get("num_classes")
    if not isinstance(classes, int):
        return set()
    more = rebuilt_with(task, num_classes=classes + 1, metrics=None, class_weights=None, pretrained=False)
    shapes = {name: value.shape for name, value in more.network.state_dict().items()}
    return {name for name, value in task.network.state_dict().items() if shapes.get(name) != value.shape}
