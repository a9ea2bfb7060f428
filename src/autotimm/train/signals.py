"""Ctrl-C during a fit: the step that is being made is finished and written down first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest"]


class StopRequest:
    """Whether somebody has asked a training to stop.

    The first Ctrl-C within a training epoch sets a flag, which is honored directly after the next optimizer step, where
    a checkpoint loses nothing. The second one, and one anywhere else, stops at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self.armed = False  # only while training batches run is there somebody who looks at the flag

    def obey(self) -> None:
        """Stop, now that everything is written down. SIGTERM is left to Lightning, which stops after this batch."""
        if self.requested:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested or not self.armed:
            raise KeyboardInterrupt
        self.requested = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for Ctrl-C; only the main thread may, and nobody who has it ignored or handled is overruled."""
        self.requested = False
        default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if threading.current_thread() is not threading.main_thread() or not default:
            yield
            return
        signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
