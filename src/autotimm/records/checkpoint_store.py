"""The checkpoints of a run as files: their names, their digests, which are kept and which is the newest intact one.

::

    checkpoints/
      epoch-0002-step-00000090.ckpt   the end of an epoch: after 2 epochs, 90 optimizer steps
      step-00000120.ckpt              in the middle of an epoch
      epoch-0000-step-00000000.ckpt   before the first step, with a head that was fitted to features
      average.ckpt                    the mean of several epochs, if that is the best
      last.ckpt, best.ckpt            second names of two of them; best.ckpt is a file of its own once it is calibrated
      sha256.txt                      a digest per file, in the format of `sha256sum`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autotimm.errors import require
from autotimm.records.atomic import atomic_path, link_or_copy, sweep, write_text
from autotimm.records.digest import file_digest
from autotimm.records.readers import read_text

__all__ = ["AVERAGE", "CheckpointStore", "check_keep"]

AVERAGE = "average.ckpt"
"""The mean of the weights of several epochs, if that is the best of a run. No run is resumed from it."""

BUDGET = 2 * 1024**3  # bytes of checkpoints that a run keeps without being asked
_NAME = re.compile(r"(?:epoch-(?P<epoch>\d+)-)?step-(?P<step>\d+)\.ckpt")
_DIGESTS = "sha256.txt"


def check_keep(keep: str | int) -> str | int:
    """Return what to keep: ``"auto"``, ``"last"``, ``"epochs"`` or a number.

    Raises:
        UsageError: If it is none of these.
    """
    number = int(keep) if isinstance(keep, str) and keep.isdecimal() else keep
    fine = number in ("auto", "last", "epochs") or (
        isinstance(number, int) and not isinstance(number, bool) and number >= 1
    )
    must = "auto, last, epochs or a number of at least 1"
    require(fine, "keep", "AutoTrainer", must, keep, "Give auto to keep every epoch up to 2 GB.")
    return number


class CheckpointStore:
    """The folder of a run's checkpoints.

    Args:
        folder: The folder.
        keep: ``"epochs"`` keeps the end of every epoch, a number N those of the last N epochs, ``"last"`` only the
            newest two; ``"auto"`` keeps every epoch while they take less than 2 GB, then every second, every fourth and
            so on. The best and the newest two are always kept.
        remember: Called with the SHA-256 of each checkpoint before it appears.
    """

    def __init__(
        self, folder: Path, keep: str | int = "auto", remember: Callable[[str], None] = lambda digest: None
    ) -> None:
        self.folder, self.keep, self.remember = folder, check_keep(keep), remember

    @staticmethod
    def name(step: int, epochs: int | None = None) -> str:
        """The name of a checkpoint by its number of optimizer steps, and of epochs at the end of an epoch.

        Example:
            >>> CheckpointStore.name(90, epochs=2), CheckpointStore.name(120)
            ('epoch-0002-step-00000090.ckpt', 'step-00000120.ckpt')
        """
        return f"step-{step:08d}.ckpt" if epochs is None else f"epoch-{epochs:04d}-step-{step:08d}.ckpt"

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a path to write a checkpoint to; it is renamed when it is complete and its digest is listed.

        The digest is listed first: a file without a digest was not finished, one with another digest is damaged.
        """
        with atomic_path(self.folder / name) as temporary:
            yield temporary
            digest = file_digest(temporary)
            self.remember(digest)
            self._list_digest(name, digest)

    def _list_digest(self, name: str, digest: str) -> None:
        line = f"{digest}  {name}"
        # The file itself is not there yet.
        self._write_lines([*(other for other in self._present() if other != line), line])

    def _present(self) -> list[str]:
        """The lines about files that are there."""
        return [line for line in self._lines() if (self.folder / line[66:]).exists()]

    def _write_lines(self, lines: Iterable[str]) -> None:
        write_text(self.folder / _DIGESTS, "".join(f"{line}\n" for line in lines))

    def _lines(self) -> list[str]:
        path = self.folder / _DIGESTS
        return read_text(path, "the list of digests").splitlines() if path.exists() else []

    def problem(self, path: Path) -> str | None:
        """Why a file may differ from what was written, as a part of a sentence; ``None`` if it is intact."""
        if not self.lists_digests:
            return f"the list of digests {_DIGESTS} is missing"
        known = {line[:64] for line in self._lines() if line[66:] == path.name}
        if not known:
            return f"{_DIGESTS} has no digest of it"
        return None if file_digest(path) in known else "it was damaged since it was written"

    def whole(self, path: Path) -> bool:
        """Whether a file has exactly the bytes that were written."""
        return self.problem(path) is None

    @property
    def lists_digests(self) -> bool:
        """Whether the list of digests exists: a partial copy of a run may lack it."""
        return (self.folder / _DIGESTS).exists()

    def holds(self, path: Path) -> bool:
        """Whether a file is one of these checkpoints, or an exact copy of one."""
        if path.parent.exists() and self.folder.exists() and path.parent.samefile(self.folder):
            return True
        listed = {line[:64] for line in self._lines()}
        return bool(listed) and file_digest(path) in listed

    def sweep(self) -> None:
        """Remove temporary files of a process that was killed while writing; only call it while no other can write."""
        sweep(self.folder)

    def link(self, name: str, second: str) -> None:
        """Give a checkpoint a second name: a hard link where the file system has them, else a copy."""
        with atomic_path(self.folder / second) as temporary:
            link_or_copy(self.folder / name, temporary)

    def link_once(self, path: Path, second: str) -> None:
        """Give a checkpoint its second name where a killed process did not."""
        other = self.folder / second
        if not (other.exists() and path.samefile(other)):
            self.link(path.name, second)

    @property
    def average(self) -> Path | None:
        """The average, if there is one."""
        return path if (path := self.folder / AVERAGE).is_file() else None

    @property
    def last(self) -> Path | None:
        """The newest checkpoint, by its own name if a process was killed before it gave it the second one."""
        second = self.folder / "last.ckpt"
        return second if second.is_file() else next(reversed(self.files()), None)

    def files(self) -> list[Path]:
        """All checkpoints without second names, the oldest first."""
        # Not a folder: some of Lightning's strategies would unpickle what is in it.
        files = (path for path in self.folder.glob("*.ckpt") if path.is_file())
        named = [(match, path) for path in files if (match := _NAME.fullmatch(path.name))]
        # At the same step the end of the epoch comes after its last batch.
        named.sort(key=lambda pair: (int(pair[0]["step"]), pair[0]["epoch"] or ""))
        return [path for _, path in named]

    def with_digests(self) -> list[Path]:
        """What has a digest of its own: all but second names, and so ``best.ckpt`` where it is calibrated.

        That one may be missing; the others are there.
        """
        best, listed = self.folder / "best.ckpt", {line[66:] for line in self._lines()}
        own = [best] if best.name in listed else []
        return [*self.files(), *([self.average] if self.average is not None else []), *own]

    def epochs(self) -> dict[int, Path]:
        """The checkpoints at the ends of epochs, by the number of epochs done."""
        matches = ((_NAME.fullmatch(path.name), path) for path in self.files())
        return {int(match["epoch"]): path for match, path in matches if match and match["epoch"]}

    def newest(self) -> tuple[Path | None, list[Path]]:
        """The newest intact checkpoint, or ``None``, and the damaged ones that are newer."""
        damaged: list[Path] = []
        for path in reversed(self.files()):
            if self.whole(path):
                return path, damaged
            damaged.append(path)
        return None, damaged

    def thin(self, pinned: Container[int] = ()) -> None:
        """Remove the checkpoints that ``keep`` does not ask for, but for the epochs that are ``pinned``."""
        files, ends = self.files(), self.epochs()
        chosen = self._chosen(ends)
        kept = {*files[-2:], *(path for number, path in ends.items() if number in chosen or number in pinned)}
        removed = [path for path in files if path not in kept]
        for path in removed:
            path.unlink()
        if removed and self.lists_digests:
            self._write_lines(self._present())

    def _chosen(self, ends: dict[int, Path]) -> set[int]:
        numbers = sorted(ends)
        if self.keep == "last":
            return set()
        if isinstance(self.keep, int):
            return set(numbers[-self.keep :])
        stride = 1
        if self.keep == "auto" and numbers:
            room = max(BUDGET // max(ends[numbers[-1]].stat().st_size, 1), 1)
            while len([number for number in numbers if number % stride == 0]) > room:
                stride *= 2
        return {number for number in numbers if number % stride == 0}
