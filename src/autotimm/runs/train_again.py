"""Train a recorded run again: to its end, if it was interrupted, or once more from its first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autotimm.errors import AutotimmError, require
from autotimm.records.atomic import refuse_sealed
from autotimm.records.run_folder import RunFolder
from autotimm.runs.cross_validation import folds_begun, resume_folds
from autotimm.runs.fit import new_folder, resume_run, train
from autotimm.runs.restore import read_manifest, rebuild
from autotimm.train.progress import say

__all__ = ["reproduce", "resume"]


def resume(
    folder: RunFolder, *, data: str | Path | None, workers: int | None, devices: int | None, threads: int | None,
    drop: str | Sequence[str],
) -> Path:  # fmt: skip
    """Resume an interrupted run, see :meth:`autotimm.Run.resume`; one that is finished stays as it is."""
    refuse_sealed(folder.path, "Train on from it with `autotimm extend`, as a new run.")
    if folder.manifest.exists() and read_manifest(folder.path).results.get("status") == "finished":
        require(not drop, "drop", "resume", "left out of a finished run", drop, "Test it on a folder without them.")
        say(f"{folder.path} is finished: there is nothing to resume")
        return folder.path
    if not folds_begun(folder.path):
        return resume_run(folder, data=data, workers=workers, devices=devices, threads=threads, drop=drop)
    for name, given, do in (
        ("devices", devices, "They are trained on one."),
        ("threads", threads, "They are trained with the recorded number."),
    ):
        require(given is None, name, "resume", "left out with folds", given, do)
    return resume_folds(folder, data=data, workers=workers, drop=drop)


def reproduce(recorded: Path, out: str | Path | None, *, data: str | Path | None) -> Path:
    """Train a run again in a folder of its own, see :meth:`autotimm.Run.reproduce`."""
    place = recorded.with_name(f"{recorded.name}-again") if out is None else Path(out)
    folder = new_folder(place.parent, place.name, exact=out is not None)
    try:
        rebuilt = rebuild(recorded, folder, data=data, loggers=True)
    except AutotimmError:
        folder.discard()
        raise
    if rebuilt.config is not None:
        folder.write_config(rebuilt.config.to_yaml())
    rebuilt.trainer.hashes_anew = True
    return train(rebuilt, folder, ckpt_path=rebuilt.checkpoint)
