"""Checkpoints are written by a thread, from a copy of the state, while the training goes on.

The copy takes a fifteenth of the time: serializing, hashing and syncing the file to the disk are done in the
background. One checkpoint is in the making at most; whoever asks for a file waits for it. A process that is killed
meanwhile leaves the checkpoint before it unharmed, and the next process resumes from there.
"""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor

from autotimm.errors import RunError
from autotimm.records.checkpoint_store import CheckpointStore

__all__ = ["CheckpointWriter", "DirectCheckpointIO", "write_checkpoint"]


def _serialized(checkpoint: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()  # torch's own writer hides the reason when a disk is full
    torch.save(checkpoint, buffer)
    return buffer.getbuffer()


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint straight to a path."""
    content = _serialized(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _canonical(value: Any) -> Any:
    """A copy whose containers are all different objects, and whose equal strings are the same."""
    if type(value) is dict:
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_canonical, value))
    return sys.intern(value) if type(value) is str else value


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes straight to a path. Lightning writes to the system's folder for temporary files first, then moves.

    That folder may be small, or in memory, and our files are replaced atomically anyway.

    Args:
        canonical: Whether equal content gives equal bytes. Otherwise these tell which objects are the same and not only
            equal, as after a resume.
    """

    def __init__(self, canonical: bool = False) -> None:
        self.canonical = canonical
        self._kept: list[dict[str, Any]] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint, or keep it."""
        if self.canonical:
            checkpoint = _canonical(checkpoint)
        if self._kept is not None:
            self._kept.append(checkpoint)
        elif "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_checkpoint(checkpoint, Path(path))

    @contextmanager
    def keeping(self) -> Iterator[list[dict[str, Any]]]:
        """Put checkpoints in a list instead of writing them."""
        kept: list[dict[str, Any]] = []
        self._kept = kept
        try:
            yield kept
        finally:
            self._kept = None


@contextmanager
def _enough_space(path: Path) -> Iterator[None]:
    """Say of a full disk that earlier checkpoints are unharmed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise RunError(
            f"The checkpoint {path} could not be written: {error}. The one before it is unharmed. "
            "Free some space and resume the run, or start it again with another `--out`."
        ) from error


class CheckpointWriter:
    """Writes the checkpoints of a run, atomically and with their digests, one after the other."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def write(self, store: CheckpointStore, name: str, save: Callable[[Path], None]) -> None:
        """Write a checkpoint now.

        Args:
            store: Where it belongs.
            name: Its name.
            save: Writes it to a path.

        Raises:
            RunError: If the disk is full, or the folder is gone.
        """
        self.wait()
        with self._place(store, name) as temporary:
            save(temporary)

    def write_later(
        self, store: CheckpointStore, name: str, take: Callable[[Path], list[dict[str, Any]]], then: Callable[[], None],
    ) -> None:  # fmt: skip
        """Write a checkpoint in the background, after the one before it.

        Args:
            store: Where it belongs.
            name: Its name.
            take: Gets the path to write to, and returns the state to write; nothing if it has written it itself.
            then: Called when the file is there, by the thread that has written it.

        Raises:
            RunError: If the one before it could not be written.
        """
        self.wait()
        with ExitStack() as stack:
            temporary = stack.enter_context(self._place(store, name))
            taken = [_frozen(state) for state in take(temporary)]
            place = stack.pop_all()

        def finish() -> None:
            with place:
                for content in taken:
                    temporary.write_bytes(content())
            then()

        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="autotimm-checkpoint")
        self._pending = self._thread.submit(finish)

    def check(self) -> None:
        """Fail now if the last checkpoint could not be written: an epoch later more would be lost.

        Raises:
            RunError: As :meth:`wait`.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            RunError: If it could not be written: the disk is full, or the folder is gone.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Write what is to be written, and end the thread."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None

    @staticmethod
    @contextmanager
    def _place(store: CheckpointStore, name: str) -> Iterator[Path]:
        if not store.folder.is_dir():  # it would be made again, with this checkpoint alone
            raise RunError(f"The checkpoint {store.folder / name} could not be written: there is no such folder.")
        with _enough_space(store.folder / name), store.writing(name) as temporary:
            yield temporary


def _frozen(checkpoint: dict[str, Any]) -> Callable[[], memoryview]:
    """What serializes a checkpoint as it is now, also when its tensors have changed."""
    state = checkpoint.get("state_dict", {})
    if all(tensor.device.type == "cpu" for tensor in state.values() if isinstance(tensor, Tensor)):
        with suppress(RuntimeError):  # a tensor of a caller's own, with a graph behind it, cannot be copied
            return partial(_serialized, deepcopy(checkpoint))
    content = _serialized(checkpoint)  # a copy on the device would take its memory
    return lambda: content
