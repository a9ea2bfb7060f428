"""How a training is asked to stop: by Ctrl-C, or by the SIGTERM of a scheduler.

The first signal within a training epoch is noted, and honored directly after an optimizer step, where a checkpoint
loses nothing. All processes of a run stop after the same step, also if only one of them was asked.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from pytorch_lightning.trainer.states import TrainerFn

__all__ = ["SharedSignals", "StopRequest"]


class StopRequest:
    """Whether a training was asked to stop.

    A signal is noted while the request is armed, which it is between training batches. A second Ctrl-C, and a signal at
    any other time, stops at once: validation can be long, and stopping in it loses nothing. SIGTERM always waits where
    several processes train.

    Attributes:
        signal: The number of the signal that asked for it; 0 for none.
        armed: Whether somebody looks at the request soon.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.armed = False

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal."""
        if number == self.signal == signal.SIGTERM:
            return  # a scheduler sends it to all processes, and process 0 passes it on to the others once more
        at_once = bool(self.signal) or not self.armed
        self.signal = number
        if at_once:
            self.obey(number)

    def agreed(self, trainer: pl.Trainer) -> int:
        """The signal that any process of a run was asked to stop by; 0 for none. All must ask together."""
        if trainer.world_size == 1:
            return self.signal
        noted = torch.tensor(self.signal, device=trainer.strategy.root_device)
        highest = trainer.strategy.reduce(noted, reduce_op="max")
        assert isinstance(highest, torch.Tensor)
        return int(highest)

    @staticmethod
    def obey(number: int) -> None:
        """Stop, with the exception that belongs to a signal."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for Ctrl-C, in the main thread, and unless the caller ignores or handles it."""
        self.signal, self.armed = 0, False
        default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if threading.current_thread() is not threading.main_thread() or not default:
            yield
            return
        signal.signal(signal.SIGINT, self.note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class SharedSignals(_SignalConnector):
    """Notes SIGTERM in a trainer's :class:`StopRequest`.

    Lightning's handler starts a collective operation wherever a process happens to be. When every process of a run gets
    the signal, their operations match no more, and all of them wait for ever.
    """

    def __init__(self, trainer: pl.Trainer, stop: StopRequest) -> None:
        super().__init__(trainer)
        self.stop = stop

    def register_signal_handlers(self) -> None:
        """Called by Lightning whenever it begins to train, validate, test or predict."""
        self.stop.signal = 0
        super().register_signal_handlers()

    def _sigterm_notifier_fn(self, signum: int, frame: FrameType | None) -> None:
        launcher = self.trainer.strategy.launcher
        if launcher is not None and self.stop.signal != signum:
            launcher.kill(signum)
        if self.trainer.world_size > 1 and self.trainer.state.fn == TrainerFn.FITTING:
            # In validation too: where one process leaves alone, the others wait for it, and fail.
            self.stop.signal = self.stop.signal or signum
        else:
            self.stop.note(signum, frame)
