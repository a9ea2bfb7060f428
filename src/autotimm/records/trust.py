"""Whose run it is: which names outside of the libraries its records may have imported.

A run that this user made here is known by the files of :mod:`autotimm.records.user_state`, outside of its folder: the
digests of its manifest, of its ``config.yaml`` and of each of its checkpoints, and the names that it was made with. If
one of these files has changed, the run is a stranger's. ``--trust`` admits a stranger's names, too, but only those that
the manifest and ``config.yaml`` hold: a checkpoint that was put among the others cannot add one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autotimm.records.digest import file_digest
from autotimm.records.imports import Admission, admission, names_in
from autotimm.records.manifest import Manifest
from autotimm.records.user_state import read_state, write_state

__all__ = ["OfRun", "of_checkpoint", "of_record", "remember"]

_LIBRARIES = {
    "autotimm", "pytorch_lightning", "segmentation_models_pytorch", "timm", "torch", "torchmetrics", "torchvision"
}  # fmt: skip


def remember(run_id: str, digests: Iterable[str], names: Iterable[str] = ()) -> None:
    """Remember that files of a run were written here, by this user.

    Call it before a file appears: a process may be killed in between. Nothing is remembered of a run whose names are
    all of autotimm and its libraries, since it needs no trust.

    Args:
        run_id: The run's id.
        digests: The SHA-256 of each file.
        names: The names that the run is made with; they are given once, when it begins.

    Raises:
        OSError: If the user's state cannot be written.
    """
    known = read_state("made", run_id)
    names = {*known.get("names", ()), *filter(_is_own, names)}
    if names:
        write_state("made", run_id, {"files": sorted({*known.get("files", ()), *digests}), "names": sorted(names)})


def _is_own(name: str) -> bool:
    """Whether a name is of a module that this process has loaded, and that is none of the libraries."""
    package = name.partition(".")[0]
    return package in sys.modules and package not in _LIBRARIES


class OfRun:
    """The names that a run folder may have imported.

    Args:
        folder: The run's folder.
        trust: Whether its maker is trusted.
        cure: What to do about a name that is not admitted.
        given: Names that are the caller's own, beside those of the run.
    """

    def __init__(self, folder: Path, trust: bool, cure: str = "", given: Iterable[str] = ()) -> None:
        self._folder, self.trust, self._cure, self._given = folder, trust, cure or _CURE, frozenset(given)

    @property
    def folder(self) -> Path | None:
        """The run's folder."""
        return self._folder

    def refusal(self, path: str) -> str:
        """Why a name is not admitted; empty if it is."""
        if path in self._given or path in self._made:
            return ""
        if not self.trust:
            return f"{_ASK} {self._cure}"
        if path in self._recorded:
            return ""
        return (
            "Its manifest and config.yaml do not, so that trust does not extend to it. Use the checkpoint outside of "
            "the run's folder if you trust whoever made it."
        )

    @cached_property
    def _made(self) -> frozenset[str]:
        """The names of a run that this user made, as long as none of its files has changed."""
        manifest = self._folder / "manifest.json"
        if not manifest.is_file():
            return frozenset()
        known = read_state("made", Manifest.load(manifest).run_id)
        files = [manifest, self._folder / "config.yaml", *(self._folder / "checkpoints").glob("*.ckpt")]
        digests = known.get("files", ())
        own = bool(digests) and all(path.is_file() and file_digest(path) in digests for path in files)
        return frozenset(known["names"]) if own else frozenset()

    @cached_property
    def _recorded(self) -> frozenset[str]:
        manifest, config = self._folder / "manifest.json", self._folder / "config.yaml"
        names: set[str] = set()
        if manifest.is_file():
            names |= names_in(Manifest.load(manifest).inputs)
        if config.is_file():
            text = config.read_text(encoding="utf-8", errors="replace")
            names |= names_in(
                [word.strip("'\",[]{}") for word in text.split()]
            )  # the names, whatever else the file says
        return frozenset(names)


@dataclass(frozen=True)
class _OfCheckpoint:
    """The names that a checkpoint outside of a run folder may have imported."""

    names: frozenset[str]
    trust: bool
    folder: Path | None = None

    def refusal(self, path: str) -> str:
        return "" if self.trust and path in self.names else f"{_ASK} {_CURE}"


def of_record(folder: Path | None = None) -> Admission:
    """The names that a record may have imported where no context says: those of a run made here, or none at all."""
    if (outer := admission()) is not None:
        return outer
    return _OfCheckpoint(frozenset(), trust=False) if folder is None else OfRun(folder, trust=False)


def of_checkpoint(path: str | Path, recorded: Any, trust: bool) -> Admission:
    """The names that a checkpoint may have imported.

    Args:
        path: Its file; one in a run folder has the trust of its run.
        recorded: Its plain data that may hold names.
        trust: Whether its maker is trusted.
    """
    folder = Path(path).absolute().parent.parent
    outer = admission()
    if outer is not None and (outer.folder is None or _is_of(path, outer.folder)):
        return outer
    if _is_of(path, folder) and (folder / "manifest.json").is_file():
        return OfRun(folder, trust)
    # Nothing vouches for a checkpoint elsewhere, not even the run that it is used with.
    inside = Path(path).absolute().parent.name == "checkpoints"
    return _OfCheckpoint(frozenset(names_in(recorded)), trust, folder if inside else None)


def _is_of(path: str | Path, folder: Path) -> bool:
    """Whether a file is one of a run's checkpoints, whose digests are remembered."""
    file = Path(path)
    return file.suffix == ".ckpt" and file.absolute().parent.resolve() == (folder / "checkpoints").resolve()


_ASK = "It is none of autotimm's or its libraries', and importing it would run its code."
_CURE = "If you trust whoever made the run, give --trust (in Python trust=True)."
