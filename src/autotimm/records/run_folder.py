"""The run folder: where it is, and what lies in it.

::

    runs/photos-001/
      config.yaml          every value the run was made with
      manifest.json        seeds, digests, versions, hardware, decisions, results: what a replay is judged by
      ledger.jsonl         what happened, a line per step
      files.csv            id and SHA-256 of every sample
      splits.csv           id, class, split of every sample
      metrics.csv          one line per epoch
      results.json         metrics of the best and the last epoch, and of the test if there was one, also per class
      checkpoints/         best.ckpt, last.ckpt, and those of earlier epochs
      model.safetensors    the best weights, for any other program

Every file is written atomically, and names in it are relative, so that a moved run stays whole.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autotimm.errors import RunError, UsageError, sentence
from autotimm.records.atomic import write_text
from autotimm.records.sample_index import SampleIndex

__all__ = ["PER_CLASS", "RunFolder", "read_results", "write_results"]

PER_CLASS = "per_class"
"""The group of ``results.json`` with a row per class and a column per metric; the others hold one value per metric."""

# What is written before the first checkpoint.
_EARLY = (".lock", "config.yaml", "splits.csv", "files.csv", "manifest.json", "ledger.jsonl")


@dataclass
class RunFolder:
    """A run's folder; it comes into being when a run is opened in it.

    Attributes:
        path: The folder, or ``None`` while it is not chosen yet.
        root: Where folders are numbered if none was named.
        enabled: Whether anything is to be left at all.
    """

    chosen: Path | None
    root: Path
    enabled: bool = True
    _lock: FileLock | None = field(default=None, repr=False)
    _made: list[Path] = field(default_factory=list, repr=False)  # by `open`, in this order
    _numbered: bool = False  # whether `open` chose the folder

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
        named = Path(run_dir) if run_dir else None
        return cls(named, Path(root or ".") / "runs", enabled=run_dir is not False)

    @classmethod
    def create(cls, root: str | Path, name: str, exact: bool = False) -> RunFolder:
        """Make the folder ``root/name``, or the next free ``root/name-NNN`` unless ``exact``.

        Raises:
            UsageError: If ``exact`` and the folder exists and is not empty.
            RunError: If it cannot be written to.
        """
        root = Path(root)
        if Path(name).name != name:
            raise UsageError(
                sentence("name", "the run", "a folder's name, without a path", name, "Give `--out` for that.")
            )
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
                return cls(path, root)
            for number in itertools.count(1):
                path = root / f"{name}-{number:03d}"
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path, root)
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
        """Whether a first step was about to be made here."""
        return self.chosen is not None and self.manifest.exists()

    def unused_after(self, error: BaseException) -> bool:
        """Whether an error came before a first step, or in it because of a wrong argument."""
        kept = self.begun and [*self.checkpoints.glob("*.ckpt")]
        return not self.begun or (isinstance(error, UsageError) and not kept)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def write_config(self, text: str) -> None:
        """Write ``config.yaml``; on processes that have no folder, nothing."""
        if self.chosen is not None:
            write_text(self.chosen / "config.yaml", text)

    def discard(self) -> bool:
        """Remove the folder if no epoch has ended in it; say whether it was removed."""
        if self.chosen is None:
            return False
        found = {one.name for one in self.path.iterdir()}
        unused = found <= {*_EARLY, "checkpoints"} and not [*self.path.glob("checkpoints/*")]
        if unused:
            for name in _EARLY:
                (self.path / name).unlink(missing_ok=True)
            for folder in (self.checkpoints, self.path):
                if folder.exists():
                    folder.rmdir()
        return unused

    def open(self, name: str, config: str, *, resume: bool) -> None:
        """Make the folder, take its lock and write ``config.yaml``.

        Args:
            name: The stem of a numbered folder, if none was chosen.
            config: The text of ``config.yaml``; one in the style of the command line stays.
            resume: Whether a run may lie in the folder already.

        Raises:
            UsageError: If the folder already holds a run, unless it is resumed.
            RunError: If the folder cannot be written to, or another process writes to it.
        """
        self._numbered = self.chosen is None
        if self.chosen is None:
            self.chosen = self.create(self.root, name).path
        elif self.checkpoints.exists() and not resume:
            raise UsageError(sentence("run_dir", "AutoTrainer", "a folder without a run", str(self.path),
                                      "Give another folder, or resume the run with ckpt_path='last'."))  # fmt: skip
        places = (self.path, self.checkpoints, *(self.path / name for name in _EARLY))
        self._made = [place for place in places if not place.exists() or (self._numbered and place == self.path)]
        with self.writing():
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._acquire()
            present = self.path / "config.yaml"
            # The command line has written its own, with a comment per value.
            if not present.exists() or "class_path:" in present.read_text():
                self.write_config(config)

    def close_unused(self) -> None:
        """Give back and remove what :meth:`open` has made, and nothing that was there before."""
        self.release()
        for one in reversed(self._made):
            with suppress(OSError):  # not empty, or not there
                one.rmdir() if one.is_dir() else one.unlink()
        if self._numbered:
            self.chosen = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an operating system's error into a :class:`RunError` that names the folder."""
        try:
            yield
        except OSError as error:
            raise RunError(f"The run folder {self.path} must be writable. It is not ({error.strerror}).") from error

    def _acquire(self) -> None:
        """Keep other processes from writing here; the system lets the lock of a dead process go."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"The run folder {self.path} must have one writer. Another process is writing to it. "
                "Wait until it is done, or give another folder."
            ) from None
        self._lock = lock  # not before: without it the files are another's to conclude or to remove

    def __getstate__(self) -> dict[str, Any]:
        """A copy in a process that Lightning spawns writes under the lock of the one that spawned it."""
        return {**vars(self), "_lock": None}

    @property
    def opened(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def release(self) -> None:
        """Let others write."""
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


def read_results(path: Path) -> dict[str, Any]:
    """The groups of metrics in a file; none if it is not there."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if PER_CLASS in found:
        found[PER_CLASS] = {
            name: _replaced(row, lambda one: nan if one is None else one) for name, row in found[PER_CLASS].items()
        }
    return found


def write_results(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write groups of metrics, in the order of their names; classes stay in theirs.

    Values per class that are NaN, since nothing was measured, become ``null``: JSON has no NaN.
    """
    groups = {name: dict(sorted(results[name].items())) for name in sorted(results) if name != PER_CLASS}
    if table := results.get(PER_CLASS):
        groups[PER_CLASS] = {
            name: _replaced(row, lambda one: None if isnan(one) else one) for name, row in table.items()
        }
    write_text(path, json.dumps(groups, indent=2) + "\n")


def _replaced(row: Mapping[str, Any], value: Callable[[Any], Any]) -> dict[str, Any]:
    return {title: value(one) for title, one in row.items()}
