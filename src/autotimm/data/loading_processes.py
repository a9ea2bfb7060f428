"""Processes that load samples: how they start, which signals they obey, and what is said where one was killed."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, resource_sharer
from multiprocessing.context import BaseContext
from pathlib import Path
from types import TracebackType
from typing import Any

from autotimm.data.table import Table
from autotimm.errors import RunError, UsageError

if sys.platform != "win32":
    from multiprocessing.context import ForkContext, ForkProcess
    from multiprocessing.popen_fork import Popen

__all__ = ["deaths_unnoticed", "killed_process", "leave_signals_to_training", "loading_context", "sigterm_blocked"]

# torch has no exception class for it.
_KILLED = re.compile(r"DataLoader worker \(pid.*?\) (?:is killed by signal|exited unexpectedly)")


def killed_process(error: BaseException) -> RunError | None:
    """What to raise if an error is that of a loading process that was killed; ``None`` for any other error.

    torch raises it in a signal handler: wherever the program happens to be, or when it waits for the next batch. Who is
    just asking the process for the memory of a batch finds nobody there instead.
    """
    died = isinstance(error, RuntimeError) and _KILLED.search(str(error)) is not None
    if not died and not (isinstance(error, (OSError, EOFError)) and _is_of_shared_memory(error)):
        return None
    return RunError(
        "A loading process was killed, most often by the system for want of memory. Lower `num_workers`, `batch_size` "
        "or `image_size`, or free memory, and try again."
    )


@contextmanager
def deaths_unnoticed() -> Iterator[None]:
    """Let a block end that must, whichever loading processes die meanwhile: torch raises in the handler of a signal."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, lambda *_: None)  # not SIG_IGN, with which the system forgets children
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def _is_of_shared_memory(error: BaseException) -> bool:
    """Whether an error comes from handing memory over between processes, and not from a file or a network."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") == resource_sharer.__name__ for frame in frames)


def _start_method(source: object) -> str:
    """How loading processes start: as Python starts processes, unless what they read does not survive a fork."""
    usual = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    packed = source.packed() if isinstance(source, Table) else None
    if usual != "fork" or packed is None or packed.rows.may_fork:
        return usual
    # A server that has imported torch once forks all of them.
    multiprocessing.set_forkserver_preload(["__main__", "autotimm.data.loader"])
    return "forkserver"


def _require_guard(method: str) -> None:
    """Refuse to start loading processes that would begin the program again.

    Where processes are not forked, each of them imports the file that the program began with. Without a guard it would
    train, too, and fail with a traceback of multiprocessing in the middle of the caller's own.

    Raises:
        UsageError: If that file has no guard.
    """
    file = getattr(sys.modules.get("__main__"), "__file__", None)  # none in a notebook or an interpreter
    if method == "fork" or file is None or not file.endswith(".py"):
        return
    try:
        guarded = "__main__" in Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    if not guarded:
        raise UsageError(
            f'{file} must run its code below a line `if __name__ == "__main__":`. There is none, and each loading '
            f"process would run the file again, since processes start by {method} here. Add the line, or give "
            "num_workers=0."
        )


def loading_context(source: object) -> BaseContext:
    """Make what starts the loading processes of a data set.

    Raises:
        UsageError: If each process would begin the program again, see :func:`_require_guard`.
    """
    method = _start_method(source)
    _require_guard(method)
    if method == "fork" and sys.version_info < (3, 12):
        return PatientForkContext()
    return multiprocessing.get_context(method)


if sys.platform != "win32":

    class PatientForkContext(ForkContext):
        """Forks processes as Python does, and forks again where one does not begin.

        Before Python 3.10.15, 3.11.10 and 3.12, a process that is forked while another thread enters Python may wait
        for a lock of that thread for ever (gh-112275). Gloo has such threads, so that trainings in several processes
        stood still now and then. A process that does not begin has done nothing yet, and is replaced.
        """

        class Process(ForkProcess):
            """A process that says when it begins."""

            begins: int

            @staticmethod
            def _Popen(process_obj: Any) -> Any:  # noqa: N802 - the name that multiprocessing calls
                return PatientPopen(process_obj)

            def _bootstrap(self, *arguments: Any, **options: Any) -> Any:
                os.write(self.begins, b".")
                os.close(self.begins)
                return super()._bootstrap(*arguments, **options)  # type: ignore[misc]

    class PatientPopen(Popen):
        """Starts a process, again if need be."""

        patience = 10.0  # seconds; a process that was only slow is replaced too, which costs its start

        def _launch(self, process_obj: Any) -> None:
            patience, said = self.patience, False
            while not said:
                begun, process_obj.begins = os.pipe()
                try:
                    super()._launch(process_obj)  # type: ignore[misc]
                finally:
                    os.close(process_obj.begins)
                try:
                    said = bool(connection.wait([begun], patience))
                finally:
                    os.close(begun)
                    if not said:
                        self.kill()
                        self.wait()
                        self.close()
                self.returncode, patience = None, 2 * patience


def leave_signals_to_training(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which a terminal or a scheduler sends to all processes of a run.

    The training process stops after a step, for which it needs batches, and then ends its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _say_unless_training_ended
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_training, daemon=True).start()


def _say_unless_training_ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an error that nobody has caught, but not that the training process was gone when it should take a batch."""
    if not (isinstance(error, (OSError, EOFError)) and _is_of_shared_memory(error)):
        sys.__excepthook__(kind, error, trace)


@contextmanager
def sigterm_blocked() -> Iterator[None]:
    """Start processes in this block that leave SIGTERM alone from the beginning, in all of their threads.

    Where torch computes with several threads, a forked process begins with threads of its own, and one that does not
    block the signal would end the process.
    """
    if sys.platform != "linux":  # others do not tell who sent a signal
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey_training() -> None:
    """Wait for the SIGTERM by which multiprocessing ends the workers that are left when a program exits."""
    training = multiprocessing.parent_process()  # not the process that has forked this one, which may be a server
    while training is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != training.pid:
        pass
    os._exit(0)
