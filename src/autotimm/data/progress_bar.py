"""A progress bar for work before training, which appears only if it takes long."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["ProgressBar"]

_PATIENCE = 2.0  # seconds before it appears


class ProgressBar:
    """A bar on the standard error output, if that is a terminal, once it has taken 2 seconds.

    Args:
        total: What there is to do.
        wanted: Whether it may appear.
        title: What is being done.
    """

    def __init__(self, total: int, wanted: bool, title: str) -> None:
        self._total, self._title, self._done = total, title, 0
        self._wanted, self._started = wanted and sys.stderr.isatty(), time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def advance(self, number: int = 1) -> None:
        """Note that something is done."""
        self._done += number
        if self._bar is None and self._wanted and time.monotonic() - self._started > _PATIENCE:
            self._show()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)

    def _show(self) -> None:
        # Late: most work is done before it would appear.
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(self._title, total=self._total)
        if self._bar.console.is_terminal:
            self._bar.start()
        else:
            self._wanted, self._bar = False, None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
