"""How a fit ends, whichever way it does: what is written then, and what is taken away again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autotimm.train.progress import say
from autotimm.train.record import conclude, level_line

__all__ = ["ending"]


@contextmanager
def ending(trainer: Any, *, resume: bool) -> Iterator[None]:
    """Open a run and train in this block; its folder is concluded and given back at the end.

    A run that fails before its first step leaves nothing: a folder without one would stand in the way of another try.
    """
    folder = trainer.run_folder
    try:
        yield
        folder.finish(trainer)
        _conclude(trainer, "finished")
        if folder.opened and trainer.shows_progress and trainer.listener is None:
            say(level_line(folder))
    except BaseException as error:
        if folder.opened and not resume and not folder.begun:
            folder.close_unused()
        _conclude(trainer, "interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed")
        raise
    finally:
        folder.release()


def _conclude(trainer: Any, status: str) -> None:
    if trainer.run_folder.opened and trainer.is_global_zero:
        conclude(trainer.run_folder, status, steps=trainer.global_step)
