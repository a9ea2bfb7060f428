"""Which checkpoint a trainer resumes from, or measures."""

from __future__ import annotations

from typing import Any

from autotimm.errors import ModelError
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.records.manifest import Manifest
from autotimm.records.replay_versions import require_replayable
from autotimm.train.callbacks.run_checkpoint import RunCheckpoint
from autotimm.train.progress import say

__all__ = ["checkpoint_file", "resume_from"]


def checkpoint_file(trainer: Any, ckpt_path: Any) -> Any:
    """Return the file that ``"best"`` or ``"last"`` means in the run folder; Lightning asks its own callback alone.

    Raises:
        ModelError: If there is none: starting over, or measuring random weights, would not be what the caller wants.
    """
    callback, folder = trainer.checkpoint_callback, trainer.run_folder
    if ckpt_path not in ("best", "last") or not isinstance(callback, RunCheckpoint):
        return ckpt_path
    if folder.enabled and folder.chosen is not None:
        callback.folder = folder.checkpoints
    if path := callback.best_model_path if ckpt_path == "best" else callback.last_model_path:
        return path
    raise ModelError(
        f"The run must have a {ckpt_path}.ckpt. There is none in {folder.chosen or 'a new run folder'}. "
        "Give the `run_dir` of the run, or leave `ckpt_path` out."
    )


def resume_from(trainer: Any, ckpt_path: Any) -> Any:
    """Return the checkpoint to resume from: for ``"last"`` the newest that is whole, with a line about damaged ones.

    Returns:
        The file, or ``None`` for a run that was interrupted before its first checkpoint and starts over.

    Raises:
        ModelError: If there is no such run, if this version would continue it by other rules, or if all of its
            checkpoints are damaged or cannot be checked.
    """
    folder = trainer.run_folder
    if ckpt_path != "last" or not folder.enabled or folder.chosen is None:
        return checkpoint_file(trainer, ckpt_path)
    if folder.is_run and not [*folder.checkpoints.glob("*.ckpt")]:
        if trainer.is_global_zero:
            say("the run was interrupted before its first checkpoint; it starts over")
        return None
    if folder.begun:
        require_replayable(Manifest.load(folder.manifest).environment, folder.path)
    last = checkpoint_file(trainer, ckpt_path)
    store = CheckpointStore(folder.checkpoints)
    if store.files() and not store.lists_digests:
        raise ModelError(
            f"The run {folder.path} must have digests of its checkpoints. The list checkpoints/sha256.txt is missing. "
            "Copy it too, or, if you trust the checkpoints, write it in their folder: sha256sum *.ckpt > sha256.txt."
        )
    newest, damaged = store.newest()
    if damaged and trainer.is_global_zero:
        names = ", ".join(path.name for path in damaged)
        say(f"{names}: damaged since it was written" + (f"; resuming from {newest.name}" if newest else ""))
    if damaged and newest is None:
        raise ModelError(
            f"The run {folder.path} must have a checkpoint that is whole. All of them are damaged. "
            "Start it again in another folder."
        )
    return newest or last
