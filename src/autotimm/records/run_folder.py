"""The run folder: its place and its files.

::

    runs/photos-001/
      config.yaml          every value the run was made with
      manifest.json        seeds, digests, versions, hardware, decisions, results: what a replay is compared with
      ledger.jsonl         a line per step: digests of samples, inputs and weights, the loss
      files.csv            id and SHA-256 of every sample
      splits.csv           id, class, split of every sample
      search.json          the trials of a search for rate and length, until the training has finished
      commitment.json      what a run was committed to before its first step, if it was
      initial.safetensors  the weights that it began from, for a run that trains on from another one
      metrics.csv          one line per epoch
      results.json         metrics of the best and the last epoch, and of the test if there was one, also per class and
                           of several views; what calibration is worth
      checkpoints/         best.ckpt, last.ckpt, and those of earlier epochs
      model.safetensors    the best weights, for other programs
      evidence/            predictions and features of held-out samples: val.safetensors, test.safetensors after a test
      report.html          what the files above say, for people; report/ has its numbers as tables
      fold-1/, fold-2/...  the runs of the folds, if it was cross-validated; evidence/folds.safetensors joins theirs
      seal.json            the SHA-256 of every file, once the run is sealed: nothing is written from then on
      model.sig            the signature of a run that is sealed with a key

Every file is written atomically, and paths in it are relative, so that a run can be moved.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autotimm.config.record import said_sources
from autotimm.config.value_types import path_problem
from autotimm.errors import ModelError, RunError, UnreadableSampleError, UsageError, nearest, sentence
from autotimm.records.atomic import refuse_sealed, sweep, write_text
from autotimm.records.digest import config_digest, file_digest, text_digest
from autotimm.records.ledger import read_ledger
from autotimm.records.manifest import SOURCES, Manifest
from autotimm.records.readers import EachOf, Fields, read_json, read_text, require_shape
from autotimm.records.sample_index import SampleIndex
from autotimm.records.trust import remember

__all__ = [
    "CALIBRATION", "DIGESTS", "FOLDS", "PER_CLASS", "RECIPE", "SEARCH", "VIEWED", "RunFolder", "name_of_weights",
    "read_results", "require_files", "require_run_folder", "write_results",
]  # fmt: skip

PER_CLASS = "per_class"
"""The group of ``results.json`` with a row per class and a column per metric; the others hold one value per metric."""

CALIBRATION = "calibration"
"""The group of ``results.json`` with what temperature and thresholds are worth, on samples they were not fitted to."""

VIEWED = "views"
"""The group of ``results.json`` with what a test of several views of each image has measured, by the name of the views:
``test`` and ``per_class`` of each, which are never taken for those of the plain test."""

DIGESTS = "evidence"
"""The group of ``results.json`` with the SHA-256 of evidence that a test has added, by its split."""

FOLDS = "folds"
"""The group of ``results.json`` with the metrics of each fold, their mean and standard deviation; the split of what
they predict."""

RECIPE = "recipe"
"""The group of ``results.json`` with what a run has chosen the best from, and how its head was fitted."""

SEARCH = "search.json"
"""The trials of a search for learning rate, length and regularization, until the training that follows has finished."""


def name_of_weights(epochs: Sequence[int]) -> str:
    """Words for weights that a run has kept: those after so many epochs, or the average of several such.

    Args:
        epochs: The numbers of epochs that were done; 0 is the fitted head that a recipe begins with.

    Example:
        >>> name_of_weights([3])
        'epoch 3'
        >>> name_of_weights([5, 0, 2])
        'the average of the fitted head and epochs 2, 5'
    """
    trained = sorted(number for number in epochs if number)
    names = ["the fitted head"] if 0 in epochs else []
    if trained:
        names.append(f"epoch{'s' if len(trained) > 1 else ''} {', '.join(map(str, trained))}")
    return " and ".join(names) if len(epochs) == 1 else f"the average of {' and '.join(names)}"


# The files written before the first checkpoint.
_EARLY = (
    ".lock", "config.yaml", "splits.csv", "files.csv", "initial.safetensors", "initial.ckpt", "manifest.json",
    "ledger.jsonl", "commitment.json", SEARCH,
)  # fmt: skip
_AT_END = ("metrics.csv", "results.json", "model.safetensors", "report.html")
_LOGS = ("tensorboard", "mlflow", "wandb")  # what loggers write from the start


def require_run_folder(path: str | Path, *, checkpoint: bool = False) -> None:
    """Refuse a path that is not the folder of a run.

    Args:
        path: What was given.
        checkpoint: Whether a file will do too, which may be a checkpoint.

    Raises:
        ModelError: If it is neither.
    """
    path, wanted = Path(path), "a run folder or a checkpoint" if checkpoint else "a run folder"
    if os.path.isfile(path):
        if checkpoint:
            return
        problem = "is a file"
        hint = f"Give its run, {path.parent.parent}." if path.parent.name == "checkpoints" else ""
    elif os.path.isdir(path / "checkpoints") or os.path.isfile(path / "config.yaml"):
        return
    else:
        problem = "is not a run folder" if os.path.isdir(path) else "does not exist"
        beside = path.parent.glob("*/checkpoints") if os.path.isdir(path.parent) else []
        hint = nearest(path.name, (checkpoints.parent.name for checkpoints in beside))
    hint = hint or "Give the folder that the last line of `autotimm fit` names."
    raise ModelError(f"{path} must be {wanted}. It {problem}. {hint}")


def require_files(folder: Path) -> None:
    """Refuse a run folder with a pipe or a device, whose reader may wait for ever, or with no file where one must be.

    Raises:
        ModelError: If there is one.
    """
    for place in (folder, folder / "checkpoints", folder / "evidence"):
        for path in place.iterdir() if place.is_dir() else ():
            if what := _no_file(path):
                raise ModelError(f"The run folder {folder} must hold files. {path} is {what}. Remove it.")


def _no_file(path: Path) -> str:
    """What an entry is that is neither a file nor a folder where one may be; empty if it is."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return "a link to itself" if error.errno == errno.ELOOP else ""
    if stat.S_ISDIR(mode):
        return "a folder" if path.name in (*_EARLY, *_AT_END) else ""
    return "" if stat.S_ISREG(mode) else "a pipe or a device"


@dataclass
class RunFolder:
    """A run's folder; it is created when a run is opened in it.

    Attributes:
        chosen: The folder, or ``None`` while it is not chosen yet.
        root: Where folders are numbered if none is given.
        enabled: Whether a run folder is written at all.
    """

    chosen: Path | None
    root: Path
    enabled: bool = True
    _lock: FileLock | None = field(default=None, repr=False)
    _created: list[Path] = field(default_factory=list, repr=False)  # by `open`, in this order
    _numbered: bool = False  # whether `open` chose the folder
    _made: list[Path] = field(default_factory=list, repr=False)  # by `create`: folders around it, the inner first

    @classmethod
    def choose(cls, run_dir: str | Path | bool | None, root: str | Path | None) -> RunFolder:
        """Read the argument ``run_dir`` of a trainer.

        Raises:
            UsageError: If it is ``True``.
        """
        if run_dir is True:
            raise UsageError(
                sentence("run_dir", "AutoTrainer", "a path, None or False", True, "Give None for runs/...")
            )
        chosen = Path(run_dir) if run_dir else None
        return cls(chosen, Path(root or ".") / "runs", enabled=run_dir is not False)

    @classmethod
    def create(cls, root: str | Path, name: str, exact: bool = False) -> RunFolder:
        """Create the folder ``root/name``, or the next free ``root/name-NNN`` unless ``exact``.

        Raises:
            UsageError: If ``exact`` and the folder exists and is not empty, or ``root`` lies in a sealed run.
            RunError: If it cannot be written to.
        """
        root = Path(root)
        if Path(name).name != name:
            raise UsageError(
                sentence("name", "the run", "a folder's name, without a path", name, "Give `--out` for that.")
            )
        if problem := path_problem(str(root / (name if exact else f"{name}-001"))):
            raise UsageError(sentence("name", "the run", "that of a folder", name, problem))
        refuse_sealed(root, "Give another `--out`.")
        made = [folder for folder in (root, *root.parents) if not folder.exists()]
        if root.exists() and not root.is_dir():
            raise UsageError(sentence("out", "the run", "a folder", str(root), "There is a file of that name."))
        try:
            root.mkdir(parents=True, exist_ok=True)
            if exact:
                path = root / name
                path.mkdir(exist_ok=True)
                if any(path.iterdir()):
                    raise UsageError(sentence("name", "the run", "that of a new or empty folder", str(path),
                                              "Give another name, or none for the next free number."))  # fmt: skip
                return cls(path, root, _made=made)
            for number in itertools.count(1):
                path = root / f"{name}-{number:03d}"
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path, root, _made=made)
        except OSError as error:
            raise RunError(
                f"The output folder {root} must be writable. It is not ({error.strerror}). Give another `--out`."
            ) from error
        raise AssertionError("unreachable: numbers do not end")

    @property
    def path(self) -> Path:
        """The folder."""
        assert self.chosen is not None, "the run has not been opened"
        return self.chosen

    @property
    def is_run(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / "config.yaml").exists()

    @property
    def begun(self) -> bool:
        """Whether a run in this folder has got as far as its first step."""
        return self.chosen is not None and self.manifest.exists()

    def unused_after(self, error: BaseException, steps: int) -> bool:
        """Whether nothing was trained before an error, or it is a wrong argument found in the first steps.

        Args:
            error: The error. An interruption is none: the run can be resumed. So can one that has met a file that
                cannot be read, without it.
            steps: Optimizer steps done in this process; in a run with spawned processes the ledger knows of them.
        """
        if isinstance(error, UnreadableSampleError):
            return False
        if not self.begun:
            return True
        if not isinstance(error, Exception) or [*self.checkpoints.glob("*.ckpt")]:
            return False
        trained = steps > 0 or any(line["kind"] == "step" for line in read_ledger(self.ledger).lines)
        return isinstance(error, UsageError) or not trained

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def write_config(self, text: str) -> None:
        """Write ``config.yaml``; nothing in a process that has no folder."""
        if self.chosen is not None:
            self.remember(text_digest(text))
            write_text(self.chosen / "config.yaml", text)

    def write_manifest(self, manifest: Manifest, names: Iterable[str] = ()) -> None:
        """Write the manifest, and remember that the run is made here.

        Args:
            manifest: The manifest.
            names: When a run begins: the names that it is made with.
        """
        config = self.path / "config.yaml"
        digests = [text_digest(manifest.text()), *([file_digest(config)] if config.exists() else [])]
        with suppress(OSError):  # of a run that is not remembered, its maker is asked to --trust it
            remember(manifest.run_id, digests, names)
        manifest.save(self.manifest)

    def bind_sources(self, before: str, after: str) -> None:
        """Write into the manifest a digest of who decided each option, which no replay can find out.

        Args:
            before: The options of the run as they were, which must fit what the manifest says of them, if it does.
            after: As they are now.
        """
        manifest = Manifest.load(self.manifest)
        if manifest.results.get(SOURCES) in (None, config_digest(said_sources(before))):
            digest = config_digest(said_sources(after))
            self.write_manifest(replace(manifest, results={**manifest.results, SOURCES: digest}))

    def remember(self, digest: str) -> None:
        """Remember the SHA-256 of a file that is about to be written; nothing before there is a manifest."""
        if self.chosen is not None and self.manifest.exists():
            with suppress(OSError, ModelError):  # the manifest may have been damaged meanwhile
                remember(Manifest.load(self.manifest).run_id, [digest])

    def discard(self) -> bool:
        """Remove the folder if it has no checkpoint, and those around it that were made for it.

        Returns:
            Whether it was removed.
        """
        if self.chosen is None or not self.path.is_dir():
            return False
        sweep(self.path)
        names = {path.name for path in self.path.iterdir()}
        unused = names <= {*_EARLY, "checkpoints", *_LOGS} and not [*self.path.glob("checkpoints/*")]
        if unused:
            shutil.rmtree(self.path, ignore_errors=True)
            for folder in self._made:
                with suppress(OSError):  # it holds another run by now
                    folder.rmdir()
        return unused

    def holds(self, path: object) -> bool:
        """Whether a path lies in the folder."""
        return isinstance(path, (str, Path)) and Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.path))

    @property
    def gone(self) -> bool:
        """Whether the folder was opened, and somebody has removed or renamed it since."""
        return self.opened and not self.path.is_dir()

    def open(self, name: str, config: str, *, resume: bool) -> None:
        """Create the folder, take its lock and write ``config.yaml``.

        Args:
            name: The stem of a numbered folder, if none was chosen.
            config: The text of ``config.yaml``; one that the command line has written is kept.
            resume: Whether the folder may already hold a run.

        Raises:
            UsageError: If the folder already holds a run, unless it is resumed, or one that is sealed.
            ModelError: If a file in it is a link to one elsewhere.
            RunError: If the folder cannot be written to, or another process writes to it.
        """
        self._numbered = self.chosen is None
        if self.chosen is not None:
            refuse_sealed(self.chosen, "Give another folder.")
        if self.chosen is None:
            self.chosen = self.create(self.root, name).path
        elif self.checkpoints.exists() and not resume:
            raise UsageError(sentence("run_dir", "AutoTrainer", "a folder without a run", str(self.path),
                                      "Give another folder, or resume the run with ckpt_path='last'."))  # fmt: skip
        self._require_no_links()
        places = (self.path, self.checkpoints, *(self.path / name for name in _EARLY))
        self._created = [place for place in places if not place.exists() or (self._numbered and place == self.path)]
        with self.writing():
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._acquire()
            for folder in (self.path, self.checkpoints, self.path / "evidence"):
                if folder.is_dir():
                    sweep(folder)
            present = self.path / "config.yaml"
            # The command line writes its own, with a comment per value.
            if not present.exists() or "class_path:" in read_text(present, "the options"):
                self.write_config(config)

    def _require_no_links(self) -> None:
        """Refuse to write through a link out of the folder: a run of somebody else could have any file changed.

        Raises:
            ModelError: If there is one.
        """
        folder = self.path.resolve()
        for place in (self.path, self.checkpoints, self.path / "evidence"):
            for path in place.iterdir() if place.is_dir() else ():
                if path.is_symlink() and not path.resolve().is_relative_to(folder):
                    raise ModelError(
                        f"The run folder {self.path} must hold its files itself. {path.relative_to(self.path)} is a "
                        f"link to {path.resolve()}, which would be written to. Put the file or folder in its place."
                    )

    def close_unused(self) -> None:
        """Release the lock and remove what :meth:`open` has created, and nothing else."""
        self.release()
        for path in reversed(self._created):
            with suppress(OSError):  # not empty, or missing
                path.rmdir() if path.is_dir() else path.unlink()
        if self._numbered:
            self.chosen = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an ``OSError`` into a :class:`RunError` that names the folder."""
        try:
            yield
        except OSError as error:
            raise RunError(f"The run folder {self.path} must be writable. It is not ({error.strerror}).") from error

    def _acquire(self) -> None:
        """Keep other processes from writing here; the system releases the lock of a process that died."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"The run folder {self.path} must have one writer. Another process is writing to it. "
                "Wait until it has finished, or give another folder."
            ) from None
        self._lock = lock  # only now: without the lock the files belong to another process

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here for a while.

        Raises:
            RunError: If another process writes to it, or nobody can.
        """
        with self.writing():
            self._acquire()
        try:
            yield
        finally:
            self.release()

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock: a process that Lightning spawns writes under the lock of its parent."""
        return {**vars(self), "_lock": None}

    @property
    def opened(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def samples(self) -> SampleIndex:
        """The tables of samples."""
        return SampleIndex(self.path)

    @property
    def manifest(self) -> Path:
        """The manifest's file."""
        return self.path / "manifest.json"

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.path / "ledger.jsonl"

    def add_results(self, **results: Mapping[str, Any]) -> None:
        """Add groups of metrics to ``results.json``."""
        write_results(self.path / "results.json", self.results() | results)

    def results(self) -> dict[str, dict[str, Any]]:
        """The groups of metrics written so far."""
        return read_results(self.path / "results.json")


_FOLD_ROWS = EachOf(EachOf(float))
_ROWS = EachOf(EachOf((float, type(None))))
_VIEWED = EachOf(Fields({"test": EachOf(float), PER_CLASS: _ROWS}, required=("test",)))
_CHOICE = Fields({"kept": str, "candidates": EachOf(EachOf(float)), "penalty": float, "losses": EachOf(float)})


def read_results(path: Path) -> dict[str, Any]:
    """The groups of metrics in a file; none if there is no file.

    Raises:
        ModelError: If it is damaged.
    """
    if not path.exists():
        return {}
    groups: dict[str, Any] = read_json(path, "the results")
    require_shape(groups, EachOf(dict), f"the results {path}")
    shapes: dict[str, Any] = {PER_CLASS: _ROWS, DIGESTS: EachOf(str), FOLDS: _FOLD_ROWS, RECIPE: _CHOICE,
                              VIEWED: _VIEWED}  # fmt: skip
    for name in groups:
        require_shape(groups, {name: shapes.get(name, EachOf(float))}, f"the results {path}")
    for measured in (groups, *groups.get(VIEWED, {}).values()):
        if PER_CLASS in measured:
            measured[PER_CLASS] = {
                name: _replaced(row, lambda metric: nan if metric is None else metric)
                for name, row in measured[PER_CLASS].items()
            }
    return dict(groups)


def write_results(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write groups of metrics, sorted by name; classes keep their order.

    Values per class that are NaN, since nothing was measured, become ``null``: JSON has no NaN.
    """
    write_text(path, json.dumps(_written(results), indent=2) + "\n")


def _written(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    groups = {name: dict(sorted(results[name].items())) for name in sorted(results) if name != PER_CLASS}
    if VIEWED in groups:
        groups[VIEWED] = {name: _written(measured) for name, measured in groups[VIEWED].items()}
    if table := results.get(PER_CLASS):
        groups[PER_CLASS] = {
            name: _replaced(row, lambda metric: None if isnan(metric) else metric) for name, row in table.items()
        }
    return groups


def _replaced(row: Mapping[str, Any], value: Callable[[Any], Any]) -> dict[str, Any]:
    return {title: value(metric) for title, metric in row.items()}
