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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save

from autotimm.data.content import Content
from autotimm.data.module import DataModule
from autotimm.errors import ModelError, RunError, UsageError, sentence
from autotimm.repro.files import atomic_path, write_text
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.train.declare import describe
from autotimm.train.epochs import MetricsTable
from autotimm.train.listed import Listed
from autotimm.train.progress import say
from autotimm.train.results import read_results, write_results

__all__ = ["RunFolder"]

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

    def open(self, model: pl.LightningModule, data: DataModule | None, trainer: Any, *, resume: bool) -> None:
        """Make the folder and write what is known before the first step.

        Raises:
            UsageError: If the folder already holds a run, unless it is resumed.
            DataError: If the data cannot be used, or is not what the run began with.
            RunError: If the folder cannot be written to.
        """
        self._numbered = self.chosen is None
        if self.chosen is None:
            self.chosen = self.create(self.root, data.source_name if data is not None else "run").path
        elif self.checkpoints.exists() and not resume:
            raise UsageError(sentence("run_dir", "AutoTrainer", "a folder without a run", str(self.path),
                                      "Give another folder, or resume the run with ckpt_path='last'."))  # fmt: skip
        places = (self.path, self.checkpoints, *(self.path / name for name in _EARLY))
        self._made = [one for one in places if not one.exists() or (self._numbered and one == self.path)]
        with self._writing():
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._acquire()
            config = self.path / "config.yaml"
            # One in the style of the command line is written by whoever read the command.
            if not config.exists() or "class_path:" in config.read_text():
                self.write_config(yaml.safe_dump(describe(model, data, trainer), sort_keys=False))
        if data is None:
            return
        listed = Listed(self.path)
        found = listed.read(data, trainer.shows_progress)
        with self._writing():
            listed.write(data, found)
        data.notices += [line for line in listed.overlaps() if line not in data.notices]

    def close_unused(self) -> None:
        """Give back and remove what :meth:`open` has made, and nothing that was there before."""
        self.release()
        for one in reversed(self._made):
            with suppress(OSError):  # not empty, or not there
                one.rmdir() if one.is_dir() else one.unlink()
        if self._numbered:
            self.chosen = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
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

    def content(self) -> Content | None:
        """The digests of the samples that the run was made with, or ``None`` if it was made from loaders."""
        return Listed(self.path).content()

    def content_of(self, split: str) -> Mapping[str, str]:
        """The digests of the samples of one split by id; nothing if the run was made from loaders."""
        return Listed(self.path).content_of(split)

    @property
    def manifest(self) -> Path:
        """The manifest's file."""
        return self.path / "manifest.json"

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.path / "ledger.jsonl"

    def finish(self, trainer: Any) -> None:
        """Write the best weights and the results of a fit that came to its end."""
        callback = trainer.checkpoint_callback
        best = getattr(callback, "best_model_path", "")
        if not self.enabled or not trainer.is_global_zero or not best:
            return
        self.add_results(best=getattr(callback, "best", {}).get("metrics", {}), last=self._last(trainer))
        try:
            state = read_checkpoint(best)["state_dict"]
        except ModelError:
            if isinstance(trainer.lightning_module, Task):
                raise
            # A caller's own module may keep objects in its checkpoints; that is no reason to lose a finished run.
            say("model.safetensors is not written: the checkpoint holds more than tensors and plain data.")
            return
        with atomic_path(self.path / "model.safetensors") as temporary:
            # No metadata: safetensors writes it in random order, and equal runs must give equal bytes.
            # Copies: it refuses tensors that share memory, as tied weights do.
            try:
                tensors = {name: tensor.clone().contiguous() for name, tensor in state.items()}
                temporary.write_bytes(save(tensors))  # its own writer would leave a file that only its owner may read
            except SafetensorError as error:
                raise RunError(f"The file {self.path}/model.safetensors could not be written: {error}. "
                               "The checkpoints are unharmed. Free some space.") from error  # fmt: skip

    @staticmethod
    def _last(trainer: Any) -> dict[str, float]:
        rows = next((one.rows for one in trainer.callbacks if isinstance(one, MetricsTable)), [])
        return {name: value for name, value in rows[-1].items() if name not in ("epoch", "step", "lr")} if rows else {}

    def add_results(self, **results: Mapping[str, Any]) -> None:
        """Add groups of metrics to ``results.json``."""
        write_results(self.path / "results.json", self.results() | results)

    def results(self) -> dict[str, dict[str, Any]]:
        """The groups of metrics written so far."""
        return read_results(self.path / "results.json")
