"""The preflight: trace one training step with fake CUDA tensors, on any machine, and name what is not deterministic.

Fake tensors have a shape, a type and a device, but no values. A step on them runs the same Python code and calls the
same operators as on a GPU. A trace on the CPU would not do: torch calls other operators there (``native_batch_norm``
instead of ``cudnn_batch_norm``), and so does autotimm
(:func:`~autotimm.models.layers.deterministic.region_align`). Steps that branch on values, such as those of detectors,
are traced again with fake tensors that carry values, see :mod:`autotimm.doctor.numbers`. No trace can see kernels that
are chosen by the model of the GPU, such as those of attention.

Experimental, because of the backward pass (:func:`backward`). torch's autograd engine asks the device for its context
and its stream first, and fails without a GPU ("hasPrimaryContext expects a valid device index"). The nodes of the graph
do not ask the device, so they are called one by one here; on CPU tensors the gradients equal those of the engine bit
for bit, as the tests check. But nodes, their metadata and their order are no public interface of torch, and a new
release may change them.

torch's own tracer of both passes, AOTAutograd's joint graph, does not reach as far (torch 2.14, tried on every
architecture of the tests). It calls the same engine, so that fake CUDA tensors fail without a GPU. On fake CPU tensors
it shows the operators of the CPU, decomposes the backward pass of bicubic and linear interpolation, so that two of the
sixteen raising operations in the tests are missed, and fails in each step that branches on values, as those of all
detectors do.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from autotimm.data.toy import draw_objects
from autotimm.doctor.documented import Entry, Operator, Rule, entries, rules
from autotimm.doctor.numbers import Numbers
from autotimm.errors import RunError
from autotimm.image_size import ImageSize, height_and_width
from autotimm.optim import build_optimizer, choose_recipe
from autotimm.repro.seed import preserve_switches, set_deterministic
from autotimm.repro.streams import scope
from autotimm.tasks import Task
from autotimm.types import Batch, Stage

__all__ = ["ModuleTracker", "OperatorRecorder", "Trace", "backward", "example_batch", "preflight", "quietly", "trace"]


_LEAF = "torch::autograd::AccumulateGrad"


def backward(loss: Tensor, before: Callable[[Node], None] = lambda node: None) -> None:
    """Set the ``grad`` of every leaf, as ``loss.backward()`` does. Hooks on tensors are not called.

    Args:
        loss: A scalar.
        before: Called with each node before it runs.
    """
    if loss.grad_fn is None:
        return
    waiting = _consumers(loss.grad_fn)
    arrived: dict[Node, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            before(node)
            outputs = _run(node, arrived.pop(node, {}))
            for output, (target, slot) in zip(outputs, node.next_functions, strict=False):
                if target is None:
                    continue
                if output is not None:
                    _add(arrived.setdefault(target, {}), slot, _fitted(output, target, slot))
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)


def _consumers(start: Node) -> dict[Node, int]:
    """The number of edges that lead to each node."""
    edges: dict[Node, int] = defaultdict(int)
    seen, stack = {start}, [start]
    while stack:
        for target, _ in stack.pop().next_functions:
            if target is not None:
                edges[target] += 1
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
    return edges


def _run(node: Node, gradients: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """Call a node with the gradients that have arrived; without any, it passes none on."""
    unchecked: Any = node
    if node.name() == _LEAF:
        if gradients:
            leaf = unchecked.variable
            leaf.grad = gradients[0] if leaf.grad is None else leaf.grad + gradients[0]
        return ()
    if not gradients:
        return (None,) * len(node.next_functions)
    arguments = [gradients.get(slot) for slot in range(len(unchecked._input_metadata))]
    # The node of a torch.autograd.Function is not callable; its `apply` runs the backward function.
    outputs = unchecked.apply(*arguments) if isinstance(unchecked, BackwardCFunction) else unchecked(*arguments)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _fitted(gradient: Tensor, target: Node, slot: int) -> Tensor:
    """Undo broadcasting and promotion, as the engine does between two nodes."""
    unchecked: Any = target
    expected = unchecked._input_metadata[slot]
    if gradient.shape != expected.shape:
        gradient = gradient.sum_to_size(expected.shape)
    return gradient if gradient.dtype == expected.dtype else gradient.to(expected.dtype)


def _add(gradients: dict[int, Tensor], slot: int, gradient: Tensor) -> None:
    gradients[slot] = gradients[slot] + gradient if slot in gradients else gradient


class OperatorRecorder(TorchDispatchMode):
    """Records the operators that are called, and the calling modules of those that torch documents.

    Args:
        modules: Knows which module is running.

    Attributes:
        seen: The names of all operators.
    """

    def __init__(self, modules: ModuleTracker) -> None:
        super().__init__()
        self.modules = modules
        self.seen: set[str] = set()
        self._rules: dict[str, list[tuple[Rule, Entry]]] = rules(entries())
        # Modules by operator and documented name; a dict without values, as an ordered set.
        self._callers: dict[tuple[str, str], dict[str, None]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        overload, name = func.name(), func._schema.name
        self.seen.add(name)
        for rule, entry in self._rules.get(overload, []) + (self._rules.get(name, []) if name != overload else []):
            names = [argument.name for argument in func._schema.arguments]
            if rule.applies(dict(zip(names, args, strict=False)) | kwargs):
                self._callers.setdefault((name, entry.name), {})[self.modules.current] = None
        return func(*args, **kwargs)

    def operators(self) -> list[Operator]:
        """The documented operators among those called, sorted by name."""
        return [Operator(*names, tuple(modules)) for names, modules in sorted(self._callers.items())]


class ModuleTracker:
    """Tracks which module of a network is running.

    torch numbers the nodes of the autograd graph in the order of their creation. A node whose number lies between the
    numbers at entry and at exit of a module was created by this module or by a submodule.

    Args:
        root: The module whose submodules are tracked.

    Attributes:
        current: The innermost module whose forward or backward pass is running, such as
            ``network.pool (AdaptiveAvgPool2d)``.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._open: list[tuple[str, int]] = []
        self._spans: list[tuple[int, int, str]] = []
        self.current = type(root).__name__

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Track a forward pass."""
        handles: list[RemovableHandle] = []
        for name, module in self._root.named_modules():
            shown = f"{name} ({type(module).__name__})"
            handles.append(module.register_forward_pre_hook(self._enter_hook(shown)))
            handles.append(module.register_forward_hook(self._leave_hook, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Set a name for calls that come from no module, such as those of the optimizer."""
        before, self.current = self.current, name
        try:
            yield
        finally:
            self.current = before

    def enter(self, node: Node) -> None:
        """Track a backward pass: ``node`` runs next."""
        unchecked: Any = node
        number = unchecked._sequence_nr()
        enclosing = [(end - start, name) for start, end, name in self._spans if start <= number < end]
        self.current = min(enclosing)[1] if enclosing else type(self._root).__name__

    def _enter_hook(self, name: str) -> Any:
        def enter(module: nn.Module, arguments: Any) -> None:
            self._open.append((name, _next_sequence_number()))
            self.current = name

        return enter

    def _leave_hook(self, module: nn.Module, arguments: Any, output: Any) -> None:
        name, start = self._open.pop()
        self._spans.append((start, _next_sequence_number(), name))
        self.current = self._open[-1][0] if self._open else type(self._root).__name__


def _next_sequence_number() -> int:
    number: int = torch._C._autograd._get_sequence_nr()
    return number


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


def preflight(
    task: Task, image_size: ImageSize = 224, batch_size: int = 32, *, batch: Batch | None = None
) -> list[Operator]:
    """List the operators of a training step that have no deterministic CUDA implementation, without a GPU.

    The task is copied, not changed. The step consists of forward pass, loss, backward pass and optimizer, under the
    switches of ``deterministic=True``, with which some operations choose a deterministic alternative.

    Experimental: the backward pass walks torch's graph by interfaces that are not public.

    Args:
        task: Any task.
        image_size: Size of the images, see :func:`example_batch`.
        batch_size: Number of images in the batch.
        batch: A batch of your own instead. Only its shapes and types matter, unless the step depends on values; it is
            then calculated on the CPU.

    Returns:
        The operators, sorted by name, according to the documentation of the installed torch; empty if there are none.

    Raises:
        RunError: If the step cannot be traced: torch was built without CUDA, or the step fails.
    """
    return trace(task, batch or example_batch(task, image_size, batch_size)).operators


def example_batch(task: Task, image_size: ImageSize, batch_size: int) -> Batch:
    """A batch to trace a step with, where there is no data: ``uint8`` (N, C, H, W), with targets for the task.

    Images are black, and all targets are of the first class. For detection and instance segmentation the batch has at
    most two drawn scenes, one with objects and one without: a detector branches on the number of objects, so that its
    step is calculated, and the number of images does not change its operators.

    Args:
        task: Any task.
        image_size: Size of the images in pixels: the side of a square, or height and width.
        batch_size: Number N of images.
    """
    channels = int(task.hparams.get("in_chans", 3))
    if task.kinds[0] in ("boxes", "instances"):
        scenes = _scenes(image_size, min(batch_size, 2), masks=task.kinds[0] == "instances")
        return scenes._replace(images=scenes.images[:, [channel % 3 for channel in range(channels)]])
    images = torch.zeros(batch_size, channels, *height_and_width(image_size), dtype=torch.uint8)
    if task.kinds[0] == "pixels":
        return Batch(images, torch.zeros(batch_size, *height_and_width(image_size), dtype=torch.int64))
    if task.hparams.get("multi_label"):
        return Batch(images, torch.zeros(batch_size, int(task.hparams["num_classes"])))
    return Batch(images, torch.zeros(batch_size, dtype=torch.int64))


def _scenes(image_size: ImageSize, count: int, masks: bool) -> Batch:
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
