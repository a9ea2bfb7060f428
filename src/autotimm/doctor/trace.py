"""The preflight: one training step with fake CUDA tensors, on any machine.

Fake tensors have shapes, types and a device, and no numbers. A step on them runs the same Python and asks torch for the
same operators as on a GPU; a trace on the CPU would not do, since torch chooses others there (``native_batch_norm`` in
place of ``cudnn_batch_norm``). What it cannot see: branches that depend on numbers, and kernels that are chosen by the
model of the GPU, such as those of attention.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode

from autotimm.doctor.backward import backward
from autotimm.doctor.documented import Entry, Operator, Rule, entries, rules
from autotimm.doctor.places import Places
from autotimm.errors import RunError
from autotimm.optim import build_optimizer, choose_recipe
from autotimm.repro.seed import preserve_switches, set_deterministic
from autotimm.repro.streams import scope
from autotimm.tasks import Task
from autotimm.types import Batch, Stage

__all__ = ["Trace", "example_batch", "preflight", "quietly", "trace"]

# Numbers were asked for, which fake tensors do not have.
_UNKNOWABLE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
# What torch, timm and tasks raise where a step cannot be done at all; those above are RuntimeErrors too.
_FAILURES = (AssertionError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Trace:
    """What one training step asked for.

    Attributes:
        operators: Those that have no deterministic CUDA implementation.
        seen: The names of all operators, for whoever wants to look further.
        optimizer: Why the optimizer's step is not among them; empty if it is.
    """

    operators: list[Operator]
    seen: frozenset[str]
    optimizer: str = ""


def preflight(task: Task, image_size: int = 224, batch_size: int = 32, *, batch: Batch | None = None) -> list[Operator]:
    """List the operators of a training step that have no deterministic CUDA implementation, without a GPU.

    The task is copied, not changed. The step is made of forward pass, loss, backward pass and optimizer, under the
    switches of ``deterministic=True``, with which some operations choose a deterministic way around.

    Args:
        task: Any task.
        image_size: Side in pixels of the images, see :func:`example_batch`.
        batch_size: Images in the batch.
        batch: A batch of the task's own kind instead; its shapes and types count, its numbers do not.

    Returns:
        The operators, by name; nothing if all is well according to the documentation of the installed torch.

    Raises:
        RunError: If the step cannot be traced: torch was built without CUDA, or the step depends on numbers.
    """
    return trace(task, batch or example_batch(task, image_size, batch_size)).operators


def example_batch(task: Task, image_size: int, batch_size: int) -> Batch:
    """A black batch for a task of ours: RGB ``uint8`` (N, 3, S, S), and targets of its kind, all of the first class."""
    images = torch.zeros(batch_size, 3, image_size, image_size, dtype=torch.uint8)
    if task.kinds[0] == "pixels":
        return Batch(images, torch.zeros(batch_size, image_size, image_size, dtype=torch.int64))
    if task.kinds[0] in ("boxes", "instances"):
        corner = image_size / 2
        one = {"boxes": torch.tensor([[0.0, 0.0, corner, corner]]), "labels": torch.zeros(1, dtype=torch.int64)}
        if task.kinds[0] == "instances":
            one["masks"] = torch.zeros(1, image_size, image_size, dtype=torch.uint8)
            one["masks"][:, : int(corner), : int(corner)] = 1
        return Batch(images, [one] * batch_size)
    if task.hparams.get("multi_label"):
        return Batch(images, torch.zeros(batch_size, int(task.hparams["num_classes"])))
    return Batch(images, torch.zeros(batch_size, dtype=torch.int64))


def trace(task: Task, batch: Batch) -> Trace:
    """Trace one training step; see :func:`preflight`.

    Raises:
        RunError: If the forward or backward pass cannot be traced.
    """
    if not torch.backends.cuda.is_built():
        raise RunError("The training step cannot be traced: this torch is built without CUDA. Install a build with it.")
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with quietly(), preserve_switches(), scope(task.root_seed, "step", 0, 0, 0):
        set_deterministic(True)
        # torch's shape functions complain of some operators as its kernels do; the trace is to go on and find all.
        torch.use_deterministic_algorithms(True, warn_only=True)
        copied = _fake_copy(task, fake).train()
        recorder = _Recorder(Places(copied))
        try:
            with fake, recorder:
                _step(copied, apply_to_collection(batch, Tensor, _on_cuda), recorder.places)
        except _FAILURES as error:
            raise _explained(error, type(task).__name__) from error
        left_out = ""
        try:
            with fake, recorder, recorder.places.at("optimizer"):
                _optimize(copied, len(batch.images))
        except _FAILURES as error:
            left_out = _first_line(error)
    return Trace(recorder.operators(), frozenset(recorder.seen), left_out)


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


def _explained(error: BaseException, owner: str) -> RunError:
    if isinstance(error, _UNKNOWABLE):
        do = "Only a GPU can tell what raises there."
        return RunError(
            f"The training step of {owner} depends on numbers, which a trace has not ({_first_line(error)}). {do}"
        )
    do = "Check it with a real batch on the CPU first."
    return RunError(f"The training step of {owner} fails while it is traced ({_first_line(error)}). {do}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _on_cuda(tensor: Tensor) -> Tensor:
    """A fake CUDA tensor of the same shape, strides and type; inside of a fake mode."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


def _fake_copy(task: Task, fake: FakeTensorMode) -> Task:
    """Copy a task so that its parameters and buffers are fake CUDA tensors; it costs no memory."""
    copies: dict[int, Any] = {}
    with fake:
        for parameter in task.parameters():
            copies[id(parameter)] = nn.Parameter(_on_cuda(parameter), parameter.requires_grad)
        for buffer in task.buffers():
            copies[id(buffer)] = _on_cuda(buffer)
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


class _Recorder(TorchDispatchMode):
    """Notes which operators are called, and by which modules those that the documentation names."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places
        self.seen: set[str] = set()
        self._rules: dict[str, list[tuple[Rule, Entry]]] = rules(entries())
        self._found: dict[tuple[str, str], dict[str, None]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        overload, name = func.name(), func._schema.name
        self.seen.add(name)
        for rule, entry in self._rules.get(overload, []) + (self._rules.get(name, []) if name != overload else []):
            names = [argument.name for argument in func._schema.arguments]
            if rule.applies(dict(zip(names, args, strict=False)) | kwargs):
                self._found.setdefault((name, entry.name), {})[self.places.current] = None
        return func(*args, **kwargs)

    def operators(self) -> list[Operator]:
        """What was found, by name."""
        return [Operator(*names, tuple(modules)) for names, modules in sorted(self._found.items())]
