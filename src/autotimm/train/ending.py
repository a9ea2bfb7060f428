"""How a fit ends, whichever way it does: what is written then, and what is taken away again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autotimm.train.folder import RunFolder
from autotimm.train.progress import say
from autotimm.train.record import conclude, level_lines

__all__ = ["ending"]


@contextmanager
def ending(trainer: Any, *, resume: bool) -> Iterator[None]:
    """Open a run and train in this block; its folder is concluded and given back at the end.

    A run that fails before its first step leaves nothing: a folder without one would stand in the way of another try.
    """
    folder = trainer.run_folder
    before = _stamp(folder)
    try:
        yield
        folder.finish(trainer)
        _conclude(trainer, "finished")
        if folder.opened and trainer.shows_progress and trainer.listener is None:
            say(*level_lines(folder))
    except BaseException as error:
        if folder.opened and not resume and folder.unused_after(error):
            folder.close_unused()
        if _stamp(folder) != before:  # else the manifest speaks of an earlier fit, which may have come to its end
            _conclude(trainer, "interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed")
        raise
    finally:
        folder.release()


def _stamp(folder: RunFolder) -> tuple[int, int] | None:
    """What tells the manifest that a fit has declared from one that was there: on the disk, for spawned processes."""
    if folder.chosen is None or not folder.manifest.exists():
        return None
    found = folder.manifest.stat()
    return found.st_ino, found.st_mtime_ns


def _conclude(trainer: Any, status: str) -> None:
    if trainer.run_folder.opened and trainer.is_global_zero:
        conclude(trainer.run_folder, status, steps=trainer.global_step)
