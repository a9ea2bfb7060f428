"""Losses and metrics of the parts of an epoch, added up in one order, whatever the number of processes.

A part is a shard of a training batch, or a batch of evaluation. Each process measures parts of its own; the sums and
the states of metrics of single parts are then gathered, and added up by all processes in the order of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_min, dim_zero_sum

from autotimm.errors import UsageError
from autotimm.metrics import MetricConfig, Scores
from autotimm.tasks.network_outputs import is_list_of_tensors
from autotimm.types import Stage, Step

__all__ = ["Parts", "check_metrics", "compute_alone", "named_losses", "of_one_size"]

_States = list[dict[str, Any]]


def named_losses(step: Step) -> dict[str, Tensor]:
    """The losses of a step, and their sum as ``loss``; none of a batch without targets."""
    return dict(step.losses) | {"loss": step.loss} if step.losses else {}


def of_one_size(step: Step, device: torch.device) -> Iterator[tuple[Any, Any]]:
    """Predictions and targets as metrics take them: a batch at a time, or an image where images differ in size."""
    if not is_list_of_tensors(step.predictions):
        yield step.predictions, step.targets
        return
    for predicted, true in zip(step.predictions, step.targets, strict=True):
        yield predicted[None].to(device), true[None].to(device)


class Parts:
    """What was measured of single parts since the last :meth:`merge`.

    Args:
        processes: The number of processes, of which each must take part in a merge.

    Attributes:
        position: The part that is measured now, such as its batch and shard.
        losses: The losses of that part.
        sums: For each loss the sum of loss times weight over the merged parts of an evaluation, and that of weights.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.position: tuple[int, ...] = ()
        self.losses: dict[str, Tensor] = {}
        self.sums: dict[str, tuple[float, float]] = {}
        self._pending: dict[Stage, list[tuple[Any, ...]]] = {}

    def add(self, step: Step, size: int, stage: Stage, metrics: Iterable[tuple[MetricConfig, Metric]]) -> None:
        """Measure a part."""
        self.losses = {name: value.detach() for name, value in named_losses(step).items()}
        states: dict[str, _States] = {}
        for config, metric in metrics:
            if step.targets is None or (stage is Stage.TRAIN and isinstance(metric, Scores)):
                continue  # metrics of several values are not logged in training
            states[config.name] = _measured_alone(metric, step)
        evaluates = stage is not Stage.TRAIN
        weight = size if step.weight is None else step.weight
        if states or evaluates:
            losses = self.losses if evaluates else {}
            self._pending.setdefault(stage, []).append((self.position, losses, weight, states))

    def merge(self, stage: Stage, metrics: Mapping[str, Metric]) -> None:
        """Gather what was measured in a stage, and add it to sums and metrics; every process must take part."""
        ours = self._pending.pop(stage, [])
        gathered: list[Any] = [ours]
        if self.processes > 1:
            gathered, ours = [None] * self.processes, move_data_to_device(ours, torch.device("cpu"))
            torch.distributed.all_gather_object(gathered, ours)
        in_order = sorted((part for parts in gathered for part in parts), key=lambda part: part[0])
        for _, losses, weight, states in in_order:
            for name, value in losses.items():
                total, weights = self.sums.get(name, (0.0, 0.0))
                self.sums[name] = total + float(weight) * float(value), weights + float(weight)
            for name, part in states.items():
                _add(metrics[name], part)

    def take_sums(self) -> dict[str, float]:
        """Return the mean of each loss, and begin anew."""
        sums, self.sums = self.sums, {}
        return {name: total / weights if weights else float("nan") for name, (total, weights) in sums.items()}


def _inner(metric: Metric) -> list[Metric]:
    """A metric, and those that it is made of, which hold the states."""
    return [module for module in metric.modules() if isinstance(module, Metric)]


def _measured_alone(metric: Metric, step: Step) -> _States:
    """The states of a metric after one part alone; those that it has are kept."""
    kept = [_states(each) for each in _inner(metric)]
    for each in _inner(metric):
        for name, default in each._defaults.items():
            setattr(each, name, default.detach().clone().to(each.device) if isinstance(default, Tensor) else [])
        each._update_count = 0
    for predictions, targets in of_one_size(step, metric.device):
        metric.update(predictions, targets)
    measured = []
    for each, before in zip(_inner(metric), kept, strict=True):
        measured.append(_states(each))
        _set(each, before)
    return measured


def _states(metric: Metric) -> dict[str, Any]:
    """The states of one metric, and under an empty name how many updates they have."""
    return {**{name: getattr(metric, name) for name in metric._defaults}, "": metric._update_count}


def _set(metric: Metric, states: Mapping[str, Any]) -> None:
    for name in metric._defaults:
        setattr(metric, name, states[name])
    metric._update_count = states[""]
    metric._computed = None


_MERGES: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    dim_zero_sum: torch.add,
    dim_zero_max: torch.maximum,
    dim_zero_min: torch.minimum,
}


def _add(metric: Metric, part: _States) -> None:
    """Add the states of a part to those of the parts before it."""
    for each, states in zip(_inner(metric), part, strict=True):
        states = move_data_to_device(states, each.device)
        merged = {name: _merged(each, name, states[name]) for name in each._defaults}
        _set(each, {**merged, "": each._update_count + states[""]})


def _merged(metric: Metric, name: str, state: Any) -> Any:
    before = getattr(metric, name)
    return [*before, *state] if isinstance(before, list) else _MERGES[metric._reductions[name]](before, state)


def _never() -> bool:
    return False


def compute_alone(module: nn.Module) -> Callable[[], None]:
    """Let the metrics of a module compute from what this process has: others may not be asked, and would not answer.

    Returns:
        What undoes it.
    """
    before = [(each, each.distributed_available_fn) for each in module.modules() if isinstance(each, Metric)]
    for metric, _ in before:
        metric.distributed_available_fn = _never

    def undo() -> None:
        for metric, available in before:
            metric.distributed_available_fn = available

    return undo


def check_metrics(metrics: Iterable[tuple[MetricConfig, Metric]]) -> None:
    """Refuse metrics whose parts cannot be added up.

    Raises:
        UsageError: If there is one.
    """
    for config, metric in metrics:
        for each in _inner(metric):
            for name, default in each._defaults.items():
                reduction = each._reductions[name]
                lists = not isinstance(default, Tensor) and reduction in (None, dim_zero_cat)
                if not lists and reduction not in _MERGES:
                    raise UsageError(
                        f"The metric {config.name!r} cannot be measured with `shards`: {type(each).__name__} has a way "
                        "of its own to put together what several processes have measured. Choose another metric."
                    )
        if config.log_on_step:
            raise UsageError(
                f"The `log_on_step` of the metric {config.name!r} must be False with `shards`: processes put metrics "
                "together at the end of an epoch. Leave it out."
            )
