"""Trains with operators whose bits are the same for every number of threads and every instruction set.

All that decides a bit of the run is computed by :mod:`autotimm.repro.portable_operators`: initial weights, forward and
backward passes, clipping, the steps of the optimizer, losses, evaluation and metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.precision import Precision
from torchmetrics import Metric

from autotimm.errors import UsageError, sentence
from autotimm.repro.portable_operators import portable_operators
from autotimm.repro.seed import preserve_switches
from autotimm.repro.streams import preserve_generators
from autotimm.tasks import Task
from autotimm.tasks.start import network_digest

__all__ = ["PortablePrecision", "check_trainer", "computing_portably", "draw_portably"]

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
        UsageError: If it is no classifier of images, or is compiled.
    """
    if not isinstance(model, Task) or "classes" not in model.kinds:
        must = "False for anything but classification, whose operators alone were tried"
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


def draw_portably(task: Task) -> None:
    """Draw the initial weights of a task anew, from integers of the same streams.

    Those of the constructor are of vectorized functions, which differ in the last bits. Weights from a file, or that a
    program has set, stay as they are.

    Raises:
        UsageError: If the task was constructed without a seed, or draws by an operator that is not portable.
    """
    if network_digest(task.network) != task.built_digest:
        return
    arguments = {**task.hparams}
    if arguments.get("seed", 0) is None:
        must = "a number in a portable run, which draws its weights anew"
        raise UsageError(sentence("seed", type(task).__name__, must, None, "Give for example 42."))
    arguments |= {"seed": task.root_seed} if "seed" in arguments else {}
    with preserve_switches(), preserve_generators(), portable_operators():
        drawn = type(task)(**arguments)
        task.network.load_state_dict(drawn.network.state_dict())
        task.built_digest = network_digest(task.network)
