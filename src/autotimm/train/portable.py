"""Trains with operators whose bits are the same for every number of threads and every instruction set.

All that decides a bit of the run is computed by :mod:`autotimm.repro.portable_operators`: initial weights, forward and
backward passes, clipping, the steps of the optimizer, losses, evaluation and metrics.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from torch import Tensor, nn
from torchmetrics import Metric

from autotimm.errors import UsageError, sentence
from autotimm.models.backbone.weights import as_recorded
from autotimm.repro.portable_operators import portable_operators
from autotimm.repro.seed import preserve_switches
from autotimm.repro.streams import preserve_generators
from autotimm.serialization import lost_objects
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import rebuilt_with
from autotimm.tasks.start import network_digest

__all__ = ["PortablePrecision", "build_portably", "check_trainer", "computing_portably"]

_WHY = {
    "accelerator": "a GPU has other rules for rounding; give 'cpu'",
    "devices": "torch adds up gradients of processes in an order of its own; give 1",
    "num_nodes": "torch adds up gradients of processes in an order of its own; give 1",
    "strategy": "a strategy may add up gradients in an order of its own",
    "shards": "both are new, and were not tried together",
    "plugins": "they change what is computed",
    "precision": "the products of fewer bits are those of a processor; give 32",
    "deterministic": "kernels that are not deterministic have no fixed bits; give True",
    "recipe": "the fit of a head to features uses other operators; give 'plain'",
    "sync_batchnorm": "its statistics are those of several processes",
}


def check_trainer(given: Mapping[str, Any]) -> None:
    """Refuse arguments of a trainer that a portable run cannot have.

    Raises:
        UsageError: If there is one.
    """
    right: dict[str, tuple[Any, ...]] = {
        "accelerator": (None, "auto", "cpu"), "devices": (None, "auto", 1), "num_nodes": (None, 1),
        "strategy": (None, "auto"), "shards": (None,), "plugins": (None,), "deterministic": (True,),
        "precision": (None, 32, "32", "32-true"), "recipe": ("plain",), "sync_batchnorm": (None, False),
    }  # fmt: skip
    for name, values in right.items():
        if name in given and given[name] not in values:
            must = f"{'left out or ' if None in values else ''}another value with portable=True, since {_WHY[name]}"
            raise UsageError(sentence(name, "AutoTrainer", must, given[name], "Change it, or leave `portable` out."))


def check_task(model: pl.LightningModule) -> None:
    """Refuse what cannot be trained portably.

    Raises:
        UsageError: If it is of a kind of its own, or compiled.
    """
    if not isinstance(model, Task) or not {"classes", "pixels", "boxes", "instances"} & {*model.kinds}:
        must = "False for anything but classification, detection and segmentation, whose operators alone were tried"
        raise UsageError(sentence("portable", "AutoTrainer", must, True, "Leave it out."))
    if model.hparams.get("compile_model"):
        must = "left out in a portable run, since a compiler fuses operators"
        raise UsageError(sentence("compile_model", type(model).__name__, must, True, "Leave it out."))


class PortablePrecision(Precision):
    """Makes Lightning compute all steps with portable operators; numbers are stored as float32."""

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """The context of a training, validation, test or prediction step."""
        with portable_operators():
            yield

    def backward(self, *args: Any, **kwargs: Any) -> None:
        """Make the backward pass."""
        with portable_operators():
            super().backward(*args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        """Make a step of the optimizer, with what Lightning does within it: forward and backward pass, clipping."""
        with portable_operators():
            return super().optimizer_step(*args, **kwargs)


@contextmanager
def computing_portably(model: Any) -> Iterator[None]:
    """Let a task compute portably what Lightning's steps do not contain: metrics, and evaluation outside of loops."""
    if not isinstance(model, Task):
        yield
        return
    check_task(model)
    with ExitStack() as stack:
        for metric in (module for module in model.modules() if isinstance(module, Metric)):
            stack.callback(setattr, metric, "compute", metric.compute)
            setattr(metric, "compute", _portable(metric.compute))  # noqa: B010  # torchmetrics sets it for each object, too
        before, model.portable = model.portable, True
        stack.callback(setattr, model, "portable", before)
        yield


def _portable(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def compute(*args: Any, **kwargs: Any) -> Any:
        with portable_operators():
            return function(*args, **kwargs)

    return compute


def build_portably(task: Task, *, draw: bool) -> None:
    """Compute anew what the constructor of a task has computed: it knew nothing of portable operators.

    Its numbers come from vectorized functions, which differ in the last bits. Initial weights are drawn from integers
    of the same streams, unless they come from a file or a program has set them. Rates of stochastic depth, and buffers
    that no checkpoint contains, are those of portable operators too.

    Args:
        task: The task.
        draw: Whether it begins with the weights of its constructor; not if it is resumed, or starts from a run.

    Raises:
        UsageError: If the task was constructed without a seed, or uses an operator that is not portable.
    """
    draw = draw and network_digest(task.network) == task.built_digest
    needed = draw and task.weights.source != "run"  # those of another run are loaded afterwards
    with (
        as_recorded(task.weights, file_needed=needed), preserve_switches(), preserve_generators(), portable_operators()
    ):  # fmt: skip
        built = type(task)(**_arguments(task)) if draw else rebuilt_with(task)
    if draw:
        task.network.load_state_dict(built.network.state_dict())
    _take_constants(task.network, built.network)
    if draw:
        task.built_digest = network_digest(task.network)


def _arguments(task: Task) -> dict[str, Any]:
    """What a task was constructed with, and the seed that it has drawn its weights with."""
    arguments = {**task.hparams}
    if arguments.get("seed", 0) is None:
        must = "a number in a portable run, which draws its weights anew"
        raise UsageError(sentence("seed", type(task).__name__, must, None, "Give for example 42."))
    defaults = {name: parameter.default for name, parameter in inspect.signature(type(task)).parameters.items()}
    arguments |= {name: defaults[name] for name in lost_objects(arguments) if name in defaults}
    return arguments | ({"seed": task.root_seed} if "seed" in arguments else {})


def _take_constants(network: nn.Module, built: nn.Module) -> None:
    """Take over numbers and buffers outside of checkpoints where they differ in rounding alone."""
    others = dict(built.named_modules())
    for name, module in network.named_modules():
        if (other := others.get(name)) is None or type(other) is not type(module):
            continue
        for key, value in vars(module).items():
            number = vars(other).get(key)
            if type(value) is float and type(number) is float and math.isclose(value, number, rel_tol=1e-5):
                setattr(module, key, number)
        for key in module._non_persistent_buffers_set:  # private to torch, which has no other list of them
            ours, theirs = module._buffers.get(key), other._buffers.get(key)
            if ours is not None and theirs is not None and _nearly_equal(ours, theirs):
                ours.copy_(theirs)


def _nearly_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=0)
