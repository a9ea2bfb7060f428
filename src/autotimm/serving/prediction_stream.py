"""Predictions of images that come one by one, in batches of the evaluation's shape.

A server is a prediction that does not end: one call of the trainer's ``predict``, in a thread of its own, whose loader
waits for images. So seeds, switches, threads, precision and device are those of ``autotimm predict``, and since a batch
is padded to one fixed shape, an image has the same bits whatever came with it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback
from torchvision import tv_tensors

from autotimm.data.inference_loaders import evaluated_sample, evaluation_transform
from autotimm.data.loader import collate_samples
from autotimm.errors import AutotimmError, RunError
from autotimm.image_size import height_and_width
from autotimm.runs.predict import known_data
from autotimm.runs.run import Run
from autotimm.serving.request_limits import RefusedError
from autotimm.types import Batch, Sample

__all__ = ["PredictionStream"]

_GATHER = 0.004  # seconds that the first image of a batch waits for others
_ROOM = 2**28  # bytes of decoded images that wait; 100 KB that a client sends may be 200 MB of pixels
_MANY = 2**31  # the length of a loader that does not end; Lightning would read ahead, and wait, if it had none


class _Asked(NamedTuple):
    sample: Sample
    future: Future[Any]


class PredictionStream(AbstractContextManager["PredictionStream"]):
    """Predicts images as they come.

    Args:
        run: The run.
        ckpt: Which of its checkpoints.
        threshold: Score in (0, 1) from which on labels or objects are reported; ``None`` for the task's own.
        waiting: How many images may wait.

    Raises:
        ModelError: If the checkpoint cannot be used.
        UsageError: If the task has no threshold.

    Attributes:
        task: The task.
        spec: What it knows of its data.
        batches: The number of images of each batch so far, the last 1,000.
    """

    def __init__(self, run: Run, ckpt: str = "best", threshold: float | None = None, waiting: int = 256) -> None:
        self._names, self._threshold = run.names, threshold
        with run.names:
            self.task, self._trainer = run.open_for_prediction(ckpt)
            self.spec = known_data(self.task)
            self._transform = evaluation_transform(self.spec)
        with self.task.reporting_from(threshold):
            pass  # its error is one of the start
        # A whole image gives a batch of tiles.
        self._at_once = self.spec.eval_batch_size if self.spec.tiling is None else 1
        self._waiting: queue.Queue[_Asked | None] = queue.Queue(waiting)
        self._predicted: deque[list[_Asked]] = deque()
        self._failure: BaseException | None = None
        self._held, self._room = 0, threading.Condition()
        self._thread = threading.Thread(target=self._predict, name="prediction")
        self.batches: deque[int] = deque(maxlen=1000)

    def __enter__(self) -> PredictionStream:
        """Start, and predict a blank image, so that what cannot work fails now."""
        self._thread.start()
        height, width = height_and_width(self.spec.image_size)
        blank = tv_tensors.Image(torch.zeros(self.spec.in_chans, height, width, dtype=torch.uint8))
        try:
            self.submit(Sample(blank, None, "blank")).result()
        except BaseException:
            self._stop()
            raise
        self.batches.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Predict what waits, and stop."""
        self._stop()

    def _stop(self) -> None:
        if self.is_alive:
            self._waiting.put(None)
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether images are predicted."""
        return self._failure is None and self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many images wait."""
        return self._waiting.qsize()

    def submit(self, sample: Sample) -> Future[Any]:
        """Have an image predicted.

        Args:
            sample: The decoded image, with a name.

        Returns:
            Its prediction, of the kind of the task; it can be cancelled while it waits.

        Raises:
            RefusedError: If too many images wait.
            RunError: If the network failed.
        """
        if self._failure is not None:
            raise _stopped(self._failure)
        asked = _Asked(sample, Future())
        self._hold(sample.image.nbytes)
        try:
            self._waiting.put_nowait(asked)
        except queue.Full:
            self._hold(-sample.image.nbytes)
            raise RefusedError(503, "Too many images wait. Try again later.", Retry_After="1") from None
        if not self.is_alive:  # it has failed in between
            self._drop_waiting()
        return asked.future

    def wait_for_room(self) -> None:
        """Wait until the decoded images that wait leave room for another one, or nothing is predicted any more."""
        with self._room:
            while self._held >= _ROOM and self.is_alive:
                self._room.wait(0.1)

    def _hold(self, size: int) -> None:
        with self._room:
            self._held += size
            self._room.notify_all()

    # The loader

    def __len__(self) -> int:
        return _MANY

    def __iter__(self) -> Iterator[Batch]:
        for asked in self._gathered():
            try:
                batch = collate_samples([each.sample for each in asked]) if asked else None
            except AutotimmError as error:  # transforms of the user's own, which give images of several sizes
                _fail_all(asked, error)
                continue
            if batch is not None:
                self.batches.append(len(asked))
                self._predicted.append(asked)
                yield batch

    def _gathered(self) -> Iterator[list[_Asked]]:
        """Images that are predicted together, transformed: what waits, and what comes within moments."""
        asked = self._waiting.get()
        while asked is not None:
            gathered: list[_Asked | None] = []
            until = time.monotonic() + _GATHER
            while asked is not None:
                gathered.append(self._transformed(asked))  # at once: the pixels of the whole image are free then
                if len(gathered) == self._at_once:
                    break
                try:
                    asked = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
            ends, asked = asked is None, None
            yield [each for each in gathered if each is not None]
            if not ends:
                asked = self._waiting.get()

    def _transformed(self, asked: _Asked) -> _Asked | None:
        try:
            if not asked.future.set_running_or_notify_cancel():
                return None  # nobody waits for it any more; from here on it cannot be cancelled
            return asked._replace(sample=evaluated_sample(asked.sample, self._transform))
        except AutotimmError as error:  # of transforms of the user's own
            asked.future.set_exception(error)
            return None
        finally:
            self._hold(-asked.sample.image.nbytes)

    # The network

    def _predict(self) -> None:
        self._trainer.callbacks.append(_Deliver(self))  # type: ignore[attr-defined]  # set at run time
        try:
            with self._names, self.task.reporting_from(self._threshold):
                self._trainer.predict(self.task, self, return_predictions=False)
        except BaseException as error:
            self._fail(error)
            raise

    def deliver(self, predictions: Sequence[Any]) -> None:
        """Give the predictions of the oldest batch to those who wait for them."""
        for asked, prediction in zip(self._predicted[0], predictions, strict=True):
            asked.future.set_result(prediction)
        self._predicted.popleft()  # not before: what fails here must not leave anybody waiting

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        for batch in self._predicted:
            _fail_all(batch, _stopped(error))
        self._drop_waiting()

    def _drop_waiting(self) -> None:
        while True:
            try:
                asked = self._waiting.get_nowait()
            except queue.Empty:
                return
            if asked is not None:
                self._hold(-asked.sample.image.nbytes)
                _fail_all([asked], _stopped(self._failure))


def _fail_all(batch: Sequence[_Asked], error: AutotimmError) -> None:
    for future in (asked.future for asked in batch):
        if not future.done() and (future.running() or future.set_running_or_notify_cancel()):
            future.set_exception(error)


def _stopped(error: BaseException | None) -> RunError:
    return RunError(f"The prediction has stopped{f': {error}' if error else ''}. Start the server again.")


class _Deliver(Callback):
    """Hands over each batch of predictions when it is ready."""

    def __init__(self, stream: PredictionStream) -> None:
        self.stream = stream

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *batch: Any) -> None:
        """Called by Lightning."""
        self.stream.deliver(outputs)
