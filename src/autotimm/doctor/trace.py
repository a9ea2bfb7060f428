"""The preflight: one training step with fake CUDA tensors, on any machine. Experimental, see autotimm.doctor.backward.

Fake tensors have shapes, types and a device, and no numbers. A step on them runs the same Python and asks torch for the
same operators as on a GPU; a trace on the CPU would not do, since torch chooses others there (``native_batch_norm`` in
place of ``cudnn_batch_norm``), and so do we (:func:`~autotimm.models.layers.deterministic.region_align`). Steps that
branch on numbers, such as those of detectors, are traced again with fake tensors that carry some, see
:mod:`autotimm.doctor.numbers`. What no trace can see: kernels that are chosen by the model of the GPU, such as those of
attention.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autotimm.doctor.backward import backward
from autotimm.doctor.documented import Operator
from autotimm.doctor.example import example_batch
from autotimm.doctor.numbers import Numbers
from autotimm.doctor.operator_recorder import Recorder
from autotimm.doctor.places import Places
from autotimm.errors import RunError
from autotimm.optim import build_optimizer, choose_recipe
from autotimm.repro.seed import preserve_switches, set_deterministic
from autotimm.repro.streams import scope
from autotimm.tasks import Task
from autotimm.types import Batch, Stage

__all__ = ["Trace", "preflight", "quietly", "trace"]

# What torch, timm and tasks raise where a step cannot be done: for want of numbers, of a private name, or at all.
_FAILURES = (AssertionError, AttributeError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Trace:
    """What one training step asked for.

    Attributes:
        operators: Those that have no deterministic CUDA implementation.
        seen: The names of all operators, for whoever wants to look further.
        optimizer: Why the optimizer's step is not among them; empty if it is.
        calculated: Whether the step asks for numbers, so that it was calculated on the CPU.
    """

    operators: list[Operator]
    seen: frozenset[str]
    optimizer: str = ""
    calculated: bool = False


def preflight(task: Task, image_size: int = 224, batch_size: int = 32, *, batch: Batch | None = None) -> list[Operator]:
    """List the operators of a training step that have no deterministic CUDA implementation, without a GPU.

    The task is copied, not changed. The step is made of forward pass, loss, backward pass and optimizer, under the
    switches of ``deterministic=True``, with which some operations choose a deterministic way around.

    Experimental: the backward pass walks torch's graph by interfaces that are not public.

    Args:
        task: Any task.
        image_size: Side in pixels of the images, see :func:`example_batch`.
        batch_size: Images in the batch.
        batch: A batch of the task's own kind instead. Its shapes and types count, and its numbers only where the step
            asks for them, which then is calculated on the CPU.

    Returns:
        The operators, by name; nothing if all is well according to the documentation of the installed torch.

    Raises:
        RunError: If the step cannot be traced: torch was built without CUDA, or the step fails.
    """
    return trace(task, batch or example_batch(task, image_size, batch_size)).operators


def trace(task: Task, batch: Batch) -> Trace:
    """Trace one training step; see :func:`preflight`.

    Raises:
        RunError: If torch was built without CUDA, or the forward or backward pass fails.
    """
    if not torch.backends.cuda.is_built():
        raise RunError("The training step cannot be traced: this torch is built without CUDA. Install a build with it.")
    with quietly(), preserve_switches():
        set_deterministic(True)
        # torch's shape functions complain of some operators as its kernels do; the trace is to go on and find all.
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            return _traced(task, batch, _Shapes())
        except _FAILURES:
            pass  # mostly because the step asked for a number
        try:
            return _traced(task, batch, Numbers())
        except _FAILURES as error:
            do = "Check it with a real batch on the CPU first."
            raise RunError(
                f"The training step of {type(task).__name__} fails while it is traced ({_first_line(error)}). {do}"
            ) from error


def _traced(task: Task, batch: Batch, fakes: _Shapes | Numbers) -> Trace:
    with scope(task.root_seed, "step", 0, 0, 0):
        copied = _fake_copy(task, fakes).train()
        recorder, left_out = Recorder(Places(copied)), ""
        with fakes.mode():
            there = apply_to_collection(batch, Tensor, fakes.stand_in)
            with recorder:
                _step(copied, there, recorder.places)
        try:
            with fakes.mode(), recorder, recorder.places.at("optimizer"):
                _optimize(copied, len(batch.images))
        except _FAILURES as error:
            left_out = _first_line(error)
    return Trace(recorder.operators(), frozenset(recorder.seen), left_out, isinstance(fakes, Numbers))


@contextmanager
def quietly() -> Iterator[None]:
    """Hold back warnings and log lines: whoever asks the doctor wants its answer, not torch's."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # logs a traceback of what is raised anyway
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Shapes:
    """Fake CUDA tensors without numbers, which cost neither memory nor time."""

    def __init__(self) -> None:
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def mode(self) -> AbstractContextManager[Any]:
        """Where they can be calculated with."""
        return self._fake

    def stand_in(self, tensor: Tensor) -> Tensor:
        """One of the same shape, strides and type; inside of the mode."""
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


def _fake_copy(task: Task, fakes: _Shapes | Numbers) -> Task:
    """Copy a task so that its parameters and buffers are fake CUDA tensors."""
    copies: dict[int, Any] = {}
    with fakes.mode():
        for parameter in task.parameters():
            copies[id(parameter)] = nn.Parameter(fakes.stand_in(parameter), parameter.requires_grad)
        for buffer in task.buffers():
            copies[id(buffer)] = fakes.stand_in(buffer)
    # The memo of deepcopy says what has been copied already: the tensors.
    return copy.deepcopy(task, copies)


def _step(task: Task, batch: Batch, places: Places) -> None:
    with places.watching():
        loss = task.step(batch, Stage.TRAIN).loss
    backward(loss, before=places.enter)


def _optimize(task: Task, batch_size: int) -> None:
    options, pretrained = task.optimizer_options, task.weights.pretrained
    recipe = choose_recipe(
        task.network, pretrained=pretrained, batch_size=batch_size, options=options, kind=task.kinds[0]
    )
    build_optimizer(task.network, recipe).step()
