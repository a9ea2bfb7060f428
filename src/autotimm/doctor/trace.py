"""The preflight: trace one training step with fake CUDA tensors, on any machine (experimental, see ``backward``).

Fake tensors have a shape, a type and a device, but no values. A step on them runs the same Python code and calls the
same operators as on a GPU. A trace on the CPU would not do: torch calls other operators there (``native_batch_norm``
instead of ``cudnn_batch_norm``), and so does autotimm
(:func:`~autotimm.models.layers.deterministic.region_align`). Steps that branch on values, such as those of detectors,
are traced again with fake tensors that carry values, see :mod:`autotimm.doctor.numbers`. No trace can see kernels that
are chosen by the model of the GPU, such as those of attention.
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

from autotimm.data.toy import draw_objects
from autotimm.doctor.backward import backward
from autotimm.doctor.documented import Operator
from autotimm.doctor.numbers import Numbers
from autotimm.doctor.operators_called import ModuleTracker, OperatorRecorder
from autotimm.errors import RunError
from autotimm.optim import build_optimizer, choose_recipe
from autotimm.repro.seed import preserve_switches, set_deterministic
from autotimm.repro.streams import scope
from autotimm.tasks import Task
from autotimm.types import Batch, Stage

__all__ = ["Trace", "example_batch", "preflight", "quietly", "trace"]

# What torch, timm and tasks raise if a step fails, for lack of values, of a private name, or for another reason.
_FAILURES = (AssertionError, AttributeError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Trace:
    """The operators that one training step called.

    Attributes:
        operators: Those without a deterministic CUDA implementation.
        seen: The names of all operators.
        optimizer: Why the optimizer's step could not be traced; empty if it was.
        calculated: Whether the step depends on values, so that it was calculated on the CPU.
    """

    operators: list[Operator]
    seen: frozenset[str]
    optimizer: str = ""
    calculated: bool = False


def preflight(task: Task, image_size: int = 224, batch_size: int = 32, *, batch: Batch | None = None) -> list[Operator]:
    """List the operators of a training step that have no deterministic CUDA implementation, without a GPU.

    The task is copied, not changed. The step consists of forward pass, loss, backward pass and optimizer, under the
    switches of ``deterministic=True``, with which some operations choose a deterministic alternative.

    Experimental: the backward pass walks torch's graph by interfaces that are not public.

    Args:
        task: Any task.
        image_size: Side in pixels of the images, see :func:`example_batch`.
        batch_size: Number of images in the batch.
        batch: A batch of your own instead. Only its shapes and types matter, unless the step depends on values; it is
            then calculated on the CPU.

    Returns:
        The operators, sorted by name, according to the documentation of the installed torch; empty if there are none.

    Raises:
        RunError: If the step cannot be traced: torch was built without CUDA, or the step fails.
    """
    return trace(task, batch or example_batch(task, image_size, batch_size)).operators


def example_batch(task: Task, image_size: int, batch_size: int) -> Batch:
    """A batch to trace a step with, where there is no data: RGB ``uint8`` (N, 3, S, S), with targets for the task.

    Images are black, and all targets are of the first class. For detection and instance segmentation the batch has at
    most two drawn scenes, one with objects and one without: a detector branches on the number of objects, so that its
    step is calculated, and the number of images does not change its operators.

    Args:
        task: Any task.
        image_size: Side S of the images in pixels.
        batch_size: Number N of images.
    """
    if task.kinds[0] in ("boxes", "instances"):
        return _scenes(image_size, min(batch_size, 2), masks=task.kinds[0] == "instances")
    images = torch.zeros(batch_size, 3, image_size, image_size, dtype=torch.uint8)
    if task.kinds[0] == "pixels":
        return Batch(images, torch.zeros(batch_size, image_size, image_size, dtype=torch.int64))
    if task.hparams.get("multi_label"):
        return Batch(images, torch.zeros(batch_size, int(task.hparams["num_classes"])))
    return Batch(images, torch.zeros(batch_size, dtype=torch.int64))


def _scenes(image_size: int, count: int, masks: bool) -> Batch:
    scenes = [draw_objects(f"doctor/{index}", image_size, num_classes=1) for index in range(count)]
    targets: list[dict[str, Tensor]] = []
    for index, scene in enumerate(scenes):
        n = 0 if index else len(scene.labels)
        target = {"boxes": torch.tensor(scene.boxes)[:n].float(), "labels": torch.zeros(n, dtype=torch.int64)}
        targets.append(target | ({"masks": scene.masks[:n].to(torch.uint8)} if masks else {}))
    return Batch(torch.stack([scene.image for scene in scenes]), targets)


def trace(task: Task, batch: Batch) -> Trace:
    """Trace one training step; see :func:`preflight`.

    Raises:
        RunError: If torch was built without CUDA, or the forward or backward pass fails.
    """
    if not torch.backends.cuda.is_built():
        raise RunError("The training step cannot be traced: this torch is built without CUDA. Install a CUDA build.")
    with quietly(), preserve_switches():
        set_deterministic(True)
        # torch's shape functions raise for some operators as its kernels do; warnings let the trace find all of them.
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            return _traced(task, batch, _Shapes())
        except _FAILURES:
            pass  # usually because the step depends on values
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
        recorder, left_out = OperatorRecorder(ModuleTracker(copied)), ""
        with fakes.mode():
            there = apply_to_collection(batch, Tensor, fakes.stand_in)
            with recorder:
                _step(copied, there, recorder.modules)
        try:
            with fakes.mode(), recorder, recorder.modules.at("optimizer"):
                _optimize(copied, len(batch.images))
        except _FAILURES as error:
            left_out = _first_line(error)
    return Trace(recorder.operators(), frozenset(recorder.seen), left_out, isinstance(fakes, Numbers))


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress the warnings and log lines of torch."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # logs a traceback of errors that are raised anyway
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
    """Fake CUDA tensors without values, which cost neither memory nor time."""

    def __init__(self) -> None:
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def mode(self) -> AbstractContextManager[Any]:
        """Context in which they can be used."""
        return self._fake

    def stand_in(self, tensor: Tensor) -> Tensor:
        """A fake tensor of the same shape, strides and type; call it inside the mode."""
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


def _fake_copy(task: Task, fakes: _Shapes | Numbers) -> Task:
    """Copy a task so that its parameters and buffers are fake CUDA tensors."""
    copies: dict[int, Any] = {}
    with fakes.mode():
        for parameter in task.parameters():
            copies[id(parameter)] = nn.Parameter(fakes.stand_in(parameter), parameter.requires_grad)
        for buffer in task.buffers():
            copies[id(buffer)] = fakes.stand_in(buffer)
    # deepcopy takes the tensors from its memo instead of copying them.
    return copy.deepcopy(task, copies)


def _step(task: Task, batch: Batch, modules: ModuleTracker) -> None:
    with modules.watching():
        loss = task.step(batch, Stage.TRAIN).loss
    backward(loss, before=modules.enter)


def _optimize(task: Task, batch_size: int) -> None:
    options, pretrained = task.optimizer_options, task.weights.pretrained
    recipe = choose_recipe(
        task.network, pretrained=pretrained, batch_size=batch_size, options=options, kind=task.kinds[0]
    )
    build_optimizer(task.network, recipe).step()
