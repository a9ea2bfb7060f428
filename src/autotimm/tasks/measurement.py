"""How tasks are measured: losses and metrics of steps and epochs, for the log and for whoever asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from math import nan
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from autotimm.metrics import MetricConfig, Scores, table_of
from autotimm.repro.portable_operators import portable_operators
from autotimm.tasks.parts import Parts, check_metrics, compute_alone, named_losses, of_one_size
from autotimm.tasks.spec_checks import names_of
from autotimm.types import Batch, DataSpec, Stage, Step

__all__ = ["Measured"]


class Measured(pl.LightningModule):
    """The part of :class:`autotimm.tasks.base.Task` that logs losses and metrics; not for use on its own.

    Attributes:
        metric_configs: What is measured.
        metrics: The metrics of each stage, by name.
        by_class: The values per class of the last evaluation, by metric: a tensor (C,) for each.
        details: Logged names that belong in tables, and not in the one line of an epoch.
        parts: Collects losses and metrics of shards and batches while a trainer with ``shards`` runs; else ``None``.
    """

    metric_configs: list[MetricConfig]
    metrics: nn.ModuleDict
    by_class: dict[str, Any]
    details: set[str]
    parts: Parts | None
    spec: DataSpec | None
    portable: bool

    def _of_stage(self, stage: Stage) -> list[tuple[MetricConfig, Metric]]:
        metrics = cast(nn.ModuleDict, self.metrics[f"{stage.value}_metrics"])
        configs = [config for config in self.metric_configs if stage.value in config.stages]
        return [(config, cast(Metric, metrics[config.name])) for config in configs]

    def _log(self, step: Step, stage: Stage, size: int) -> None:
        train = stage is Stage.TRAIN
        losses = named_losses(step)
        self._note_details(losses, stage)
        if self.parts is not None:
            self.parts.add(step, size, stage, self._of_stage(stage))
            return
        for name, value in losses.items():
            if train and self._logged_again(f"train/{name}", value, size if step.weight is None else step.weight):
                continue
            shown: dict[str, Any] = {"prog_bar": name == "loss", "on_step": train, "on_epoch": True}
            weight: Any = size if step.weight is None else step.weight  # Lightning multiplies and adds, also tensors
            if not train and self.trainer.world_size > 1:
                # Lightning takes the mean of the weights of all processes, and rounds that of whole numbers down.
                weight = torch.as_tensor(weight, dtype=torch.get_default_dtype(), device=value.device)
            self.log(f"{stage.value}/{name}", value.detach(), batch_size=weight, sync_dist=not train, **shown)
        if step.targets is None:
            return
        for config, metric in self._of_stage(stage):
            # Only a call keeps the value of the batch, which is what Lightning logs for a step.
            add = metric if config.log_on_step else metric.update
            for predictions, targets in of_one_size(step, metric.device):
                add(predictions, targets)
            if isinstance(metric, Scores):
                continue  # Lightning logs metrics of one value; these wait for the end of the epoch
            when: dict[str, Any] = {"on_step": config.log_on_step, "on_epoch": config.log_on_epoch}
            # Told rather than searched: asking of every module whether it is a metric takes a quarter of a second.
            when["metric_attribute"] = f"metrics.{stage.value}_metrics.{config.name}"
            self.log(f"{stage.value}/{config.name}", metric, prog_bar=config.prog_bar, batch_size=size, **when)

    def _note_details(self, losses: Iterable[str], stage: Stage) -> None:
        """People see the sum of the losses; its terms are in metrics.csv."""
        names = {f"{stage.value}/{name}" for name in losses if name != "loss"}
        self.details |= names if len(names) > 1 else set()

    def log_whole(self, losses: Mapping[str, Tensor], size: int) -> None:
        """Log the losses of a training batch that was cut into shards.

        Args:
            losses: The losses over the whole batch, the same in every process.
            size: Number of its images.
        """
        self._note_details(losses, Stage.TRAIN)
        for name, value in losses.items():
            if not self._logged_again(f"train/{name}", value, size):
                shown: dict[str, Any] = {"prog_bar": name == "loss", "on_step": True, "on_epoch": True}
                self.log(f"train/{name}", value, batch_size=size, **shown)

    def merge_parts(self) -> None:
        """Add what was measured of single parts to the metrics; every process must take part."""
        assert self.parts is not None
        for stage in (Stage.TRAIN, Stage.VAL, Stage.TEST):
            self.parts.merge(stage, {config.name: metric for config, metric in self._of_stage(stage)})

    def log_parts(self, stage: Stage) -> None:
        """Log at the end of an epoch what was measured of its parts; nothing where there are none."""
        if self.parts is None:
            return
        self.parts.merge(stage, {config.name: metric for config, metric in self._of_stage(stage)})
        for name, mean in self.parts.take_sums().items():
            self.log(f"{stage.value}/{name}", torch.tensor(mean, device=self.device), prog_bar=name == "loss")
        for config, metric in self._of_stage(stage):
            if not isinstance(metric, Scores) and metric.update_called:
                self.log(f"{stage.value}/{config.name}", metric.compute(), prog_bar=config.prog_bar)
                metric.reset()

    def check_parts(self) -> None:
        """Refuse metrics that cannot be put together of parts.

        Raises:
            UsageError: If there is one.
        """
        for stage in (Stage.TRAIN, Stage.VAL, Stage.TEST):
            check_metrics(self._of_stage(stage))

    def _logged_again(self, name: str, value: Tensor, weight: Any) -> bool:
        """Add the loss of a step to those of the same epoch, as :meth:`log` would; whether there was one.

        Lightning checks every call anew, and copies what it knows of the value: 0.4 ms, a fiftieth of a small step.
        """
        results: Any = self.trainer._results  # private to Lightning, as in `train/callbacks/epoch_metrics.py`
        logged = None if results is None else results.get(f"{self._current_fx_name}.{name}")
        if logged is None or logged.has_reset or logged.value.device != value.device:
            return False
        logged.forward(value.detach(), weight)
        return True

    def _log_scores(self, stage: Stage) -> None:
        """Compute and log the metrics of several values at the end of an epoch, the same on every process."""
        self.log_parts(stage)
        self.by_class = {}
        for config, metric in self._of_stage(stage):
            if isinstance(metric, Scores):
                for name, key, value in _named(config, metric):
                    if name not in metric.headline:
                        self.details.add(f"{stage.value}/{key}")
                    self.log(f"{stage.value}/{key}", value.to(self.device), prog_bar=config.prog_bar and name == "mean")
                with portable_operators(self.portable):
                    self.by_class[config.name] = metric.by_class()
                metric.reset()

    def measure(self, evaluated: Iterable[tuple[Batch, Step]], stage: Stage) -> dict[str, float]:
        """Measure batches as an epoch of evaluation does, outside of the loops: nothing is logged.

        It is for one process alone, which has all of the samples: it never waits for others.

        Args:
            evaluated: Batches, each with the result of :meth:`evaluate`.
            stage: The stage that they are measured as.

        Returns:
            The losses and metrics by the names under which the loops log them; nothing without batches.
        """
        metrics = [(config, deepcopy(metric)) for config, metric in self._of_stage(stage)]
        sums: dict[str, tuple[float, float]] = {}
        for _, metric in metrics:
            compute_alone(metric)  # of several processes the others measure nothing
            metric.reset()
        empty = True
        for batch, step in evaluated:
            empty = False
            weight = float(len(batch.images) if step.weight is None else step.weight)
            for name, value in named_losses(step).items():
                total, weights = sums.get(name, (0.0, 0.0))
                sums[name] = total + weight * float(value), weights + weight
            for _, metric in metrics if step.targets is not None else ():
                for predictions, targets in of_one_size(step, metric.device):
                    metric.update(predictions, targets)
        measured = {name: total / weights if weights else nan for name, (total, weights) in sums.items()}
        for config, metric in () if empty else metrics:
            if isinstance(metric, Scores):
                measured |= {key: float(value) for _, key, value in _named(config, metric)}
            else:
                measured[config.name] = float(metric.compute())
        return {f"{stage.value}/{name}": value for name, value in measured.items()}

    @property
    def class_table(self) -> dict[str, dict[str, float]]:
        """The values of :attr:`by_class`, a row per class and a column per metric; NaN where nothing was measured."""
        if not self.by_class:
            return {}
        measured = [*self._of_stage(Stage.VAL), *self._of_stage(Stage.TEST)]
        titles = {config.name: metric.per_class for config, metric in measured if isinstance(metric, Scores)}
        names = names_of(self.spec, max(map(len, self.by_class.values())))
        return table_of(self.by_class, titles, names)


def _named(config: MetricConfig, metric: Scores) -> Iterator[tuple[str, str, Tensor]]:
    """The values of a metric that has several: the name of each, that under which it is logged, and the value."""
    for name, value in metric.compute().items():
        suffixed = f"{config.name}_{name}" if metric.prefixed else name
        yield name, config.name if name == "mean" else suffixed, value
