"""Cross-validation: train a run for each fold, join what they predict, and train one model on all images.

The folds are runs of their own in the folder of the run, ``fold-1`` to ``fold-K``: each can be verified, and a finished
one is not trained again when the whole is resumed. The run itself is the training on all images. It has no validation
images, unless the data have some of their own: it trains for the epochs that were best in the median of the folds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from autotimm.config import FitConfig
from autotimm.data.data_facts import content
from autotimm.data.dropped import recorded_drops
from autotimm.data.module import DataModule
from autotimm.data.splits import own_sides
from autotimm.errors import DataError, ModelError, RunError, UsageError, sentence
from autotimm.evidence import Evidence, evidence_bytes, evidence_path, join_folds, read_evidence, write_evidence
from autotimm.records.ledger import read_ledger
from autotimm.records.run_folder import DIGESTS, FOLDS, RECIPE, RunFolder
from autotimm.runs.factory import build_task, settle_data, settle_recipe
from autotimm.runs.file_contents import Finding
from autotimm.runs.fit import launch_in, new_folder, prepared, refuse_unused_shares, resume_run
from autotimm.runs.restore import read_config, read_manifest
from autotimm.runs.this_machine import affordable, asking_for_moved_data, name_of_place
from autotimm.train.progress import say

__all__ = ["fold_findings", "folds_begun", "folds_of", "launch_folds", "resume_folds"]

_SOURCE = "folds"


def launch_folds(config: FitConfig) -> Path:
    """Train the folds of a configuration, and then a model on all images, in a new run folder.

    Raises:
        UsageError: If several processes are asked for.
    """
    if config.devices > 1:
        cure = "Give 1: a program with several processes trains one run. Or train each `fold` by itself."
        raise UsageError(sentence("devices", "fit", "1 with `folds`", config.devices, cure))
    config = prepared(config)
    config, data = settle_data(config)
    folder = new_folder(config.out, config.name or data.source_name, exact=config.name is not None)
    try:
        data.setup("fit")
        refuse_unused_shares(config, data, config.given)
        # Once for all folds, whose sizes differ a little.
        config, _ = settle_recipe(config, build_task(config, data), data)
        folder.write_config(config.to_yaml())
    except BaseException:
        folder.discard()  # nothing was trained
        raise
    return _finish(config, folder, data)


def folds_begun(folder: Path) -> bool:
    """Whether a run folder is that of folds, of which not all have been trained."""
    if (folder / "manifest.json").exists() or not (folder / "config.yaml").exists():
        return False
    return folds_of(folder) is not None


def folds_of(folder: Path) -> int | None:
    """The number of folds of a run that has trained each of them; ``None`` for any other, also that of one fold."""
    config = read_config(folder)
    return config.folds if isinstance(config, FitConfig) and config.fold is None else None


def resume_folds(
    folder: RunFolder, *, data: str | Path | None = None, workers: int | None = None, drop: str | Sequence[str] = ()
) -> Path:
    """Train the folds that are not finished, and then the model on all images.

    Args:
        folder: The folder of the run.
        data: Where the data is now, if it was moved.
        workers: Number of loading processes in place of the recorded one.
        drop: Ids of samples to drop besides those that folds have dropped, see :meth:`DataModule.drop`.

    Raises:
        UsageError: If a sample cannot be dropped.
        DataError: If the data is not what it was.
    """
    config = affordable(read_config(folder.path))
    assert isinstance(config, FitConfig)
    moved = {} if data is None else {name_of_place(config): str(data)}
    config = config.resolved(moved, "moved data")
    if workers is not None:
        config = config.resolved({"num_workers": workers}, "argument")
    with asking_for_moved_data(config, data):
        config, module = settle_data(config)
        module.setup("fit")
    module.drop(_dropped_in_folds(folder.path, config.folds or 0), recorded=True)
    module.drop(drop)
    return _finish(config, folder, module)


def _dropped_in_folds(folder: Path, folds: int) -> list[str]:
    """The ids of the samples that folds which have begun have dropped: all folds have the same samples."""
    places = [folder / f"fold-{number}" for number in range(1, folds + 1)]
    begun = [place for place in places if (place / "manifest.json").is_file() and not place.is_symlink()]
    return sorted({id for place in begun for id in recorded_drops(read_manifest(place))})


def _finish(config: FitConfig, folder: RunFolder, data: DataModule) -> Path:
    """Train what is left to train; a folder in which no fold has begun is removed if that fails."""
    folds = config.folds or 0
    # Said to be settled: in a fold, and when the folds are resumed, nobody settles it again.
    config = config.resolved({"epochs": config.epochs}, _SOURCE)
    try:
        for number in range(1, folds + 1):
            _train_fold(config, folder, number, data)
        kept = _keep_results(folder, folds)
        say(folds_said(kept))
    except BaseException:
        folder.discard()
        raise
    return launch_in(folder, _of_all(config, data, kept), data)


def _train_fold(config: FitConfig, whole: RunFolder, number: int, data: DataModule) -> None:
    place = whole.path / f"fold-{number}"
    if place.is_symlink():
        raise ModelError(f"The run folder {whole.path} must hold its folds itself. {place.name} is a link. Remove it.")
    said = f"fold {number} of {config.folds}"
    fold = RunFolder(place, whole.path)
    if place.is_dir():
        fold.samples.require_same(content(table for split, table in data.tables.items() if _in_folds(split, data)))
    if fold.begun and read_manifest(place).results.get("status") == "finished":
        say(f"{said}: {place} is finished")
        return
    say(said)
    dropped = [id for ids in data.dropped.values() for id in ids]
    if fold.begun:
        place_now = getattr(config, name_of_place(config))  # it may have been moved
        resume_run(fold, data=place_now, workers=config.num_workers, whole=whole.path, drop=dropped)
        return
    if place.is_dir():
        fold.discard()  # it was interrupted before its first step
    own = {"fold": number, "out": str(whole.path), "name": place.name}
    own_config, own_data = settle_data(config.resolved(own, _SOURCE))
    own_data.drop(dropped, recorded=True)
    launch_in(new_folder(whole.path, place.name, exact=True), own_config, own_data, whole=whole.path)


def _in_folds(split: str, data: DataModule) -> bool:
    """Whether the samples of a split are those of a fold's run too: validation samples of the data's own are not."""
    return split != "val" or split not in own_sides(data.tables)


def _of_all(config: FitConfig, data: DataModule, kept: Mapping[str, Mapping[str, float]]) -> FitConfig:
    """The options of the model that is trained on all images."""
    if "val" in data.tables:  # it is validated, as every training is
        return config
    epochs = sorted(int(row["epoch"]) for name, row in kept.items() if name.startswith("fold-"))
    best = epochs[len(epochs) // 2]
    # Without validation there is nothing to wait for, and no value to choose an epoch by.
    own: dict[str, Any] = {"patience": None, "monitor": "auto"}
    own |= {"epochs": best} if best else {"recipe": "probe"}  # no epoch was better than the head that was fitted
    return config.resolved({name: value for name, value in own.items() if getattr(config, name) != value}, _SOURCE)


# What the folds have measured and predicted


def fold_folders(folder: Path, folds: int) -> list[Path]:
    """The folders of the folds, in their order; a link may lead anywhere and is no fold.

    Raises:
        ModelError: If one is missing.
    """
    places = [folder / f"fold-{number}" for number in range(1, folds + 1)]
    if missing := [place.name for place in places if place.is_symlink() or not place.is_dir()]:
        raise ModelError(f"The run {folder} must have its folds to be compared with them. There is no {missing[0]}.")
    return places


def measured_folds(folder: Path, folds: int) -> dict[str, dict[str, float]]:
    """The validation metrics of each fold, with its best epoch and its images; their mean and standard deviation.

    Epoch 0 is the head that a recipe has fitted before the training; of an average of epochs it is the last. The
    standard deviation is that of a sample, with K - 1.

    Raises:
        ModelError: If a fold is missing or damaged.
    """
    rows: dict[str, dict[str, float]] = {}
    for place in fold_folders(folder, folds):
        fold = RunFolder(place, folder)
        best = fold.results().get("best", {})
        found = {name: value for name, value in best.items() if name.startswith("val/") and math.isfinite(value)}
        rows[place.name] = {**found, "epoch": _best_epoch(fold), "images": len(fold.samples.content_of("val"))}
    shared = set.intersection(*({*row} for row in rows.values())) - {"epoch", "images"}
    columns = {name: [row[name] for row in rows.values()] for name in sorted(shared)}
    rows["mean"] = {name: mean(values) for name, values in columns.items()}
    rows["std"] = {name: stdev(values) for name, values in columns.items()}
    return rows


def _best_epoch(fold: RunFolder) -> int:
    """The epoch whose weights a fold has kept, counted from 1."""
    results = fold.results()
    if kept := results.get(RECIPE, {}).get("kept"):
        return max(int(number) for number in kept.split("+"))
    best, lines = results.get("best", {}), read_ledger(fold.ledger).lines
    epochs = [line for line in lines if line["kind"] == "epoch"]
    for line in epochs:
        if {name: float.fromhex(value) for name, value in line["metrics"].items()} == best:
            return int(line["epoch"]) + 1
    raise ModelError(f"The run {fold.path} must have the metrics of its best epoch. Its results are damaged.")


def joined_evidence(folder: Path, folds: int) -> Evidence | None:
    """What the folds predict for the samples that they are validated on; ``None`` if one has kept no evidence.

    Raises:
        ModelError: If a fold is missing or damaged.
    """
    paths = [evidence_path(place, "val") for place in fold_folders(folder, folds)]
    return join_folds([*map(read_evidence, paths)]) if all(path.exists() for path in paths) else None


def _keep_results(folder: RunFolder, folds: int) -> dict[str, dict[str, float]]:
    """Write what the folds have measured and predicted into the folder of the whole."""
    data = [read_manifest(place).inputs["data"] for place in fold_folders(folder.path, folds)]
    if any(each != data[0] for each in data):
        raise DataError(
            f"The folds of {folder.path} must be of the same images. They are not: images changed in between. "
            "Begin another run."
        )
    kept, evidence = measured_folds(folder.path, folds), joined_evidence(folder.path, folds)
    groups: dict[str, Mapping[str, Any]] = {FOLDS: kept}
    if evidence is not None:
        groups[DIGESTS] = {FOLDS: write_evidence(folder.path, evidence)}
    with folder.writing():
        folder.add_results(**groups)
    return kept


def folds_said(kept: Mapping[str, Mapping[str, float]]) -> str:
    """Mean and standard deviation of the metrics in a line."""
    figures = [f"{name} {value:.4f} ± {kept['std'][name]:.4f}" for name, value in kept["mean"].items()]
    return f"{len(kept) - 2} folds: {', '.join(figures)}"


def fold_findings(folder: Path, folds: int, results: Mapping[str, Any]) -> Iterator[Finding | str]:
    """What of the joined results is not what the folds say; text names what cannot be told.

    Args:
        folder: The folder of the run.
        folds: The number of folds.
        results: Its ``results.json``.
    """
    path = evidence_path(folder, FOLDS)
    try:
        kept, evidence = measured_folds(folder, folds), joined_evidence(folder, folds)
    except (ModelError, RunError) as error:
        yield f"results.json: {FOLDS} ({error})"
        if path.exists():
            yield f"evidence/{path.name}"
        return
    if results.get(FOLDS) != kept:
        yield Finding(f"results.json: {FOLDS}", "its values are not those of the folds")
    if path.exists() and (evidence is None or evidence_bytes(evidence) != path.read_bytes()):
        yield Finding(f"evidence/{path.name}", "it is not what the folds predict")
