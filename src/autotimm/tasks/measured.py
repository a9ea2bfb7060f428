"""How tasks are measured: losses and metrics, logged the same for all of them."""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
from torch import nn
from torchmetrics import Metric

from autotimm.metrics import MetricConfig, Scores, table_of
from autotimm.tasks.classes import names_of
from autotimm.types import DataSpec, Stage, Step

__all__ = ["Measured"]


class Measured(pl.LightningModule):
    """The part of :class:`autotimm.tasks.base.Task` that logs; not for use on its own.

    Attributes:
        by_class: The values per class that the last evaluation found, by metric: a tensor (C,) for each.
        details: Logged names that are for tables, and not for the line of an epoch.
    """

    metric_configs: list[MetricConfig]
    metrics: nn.ModuleDict
    by_class: dict[str, Any]
    details: set[str]
    spec: DataSpec | None

    def _of_stage(self, stage: Stage) -> list[tuple[MetricConfig, Metric]]:
        made = cast(nn.ModuleDict, self.metrics[f"{stage.value}_metrics"])
        wanted = [config for config in self.metric_configs if stage.value in config.stages]
        return [(config, cast(Metric, made[config.name])) for config in wanted]

    def _log(self, step: Step, stage: Stage, size: int) -> None:
        train = stage is Stage.TRAIN
        losses = dict(step.losses) | {"loss": step.loss} if step.losses else {}
        if len(losses) > 2:  # the sum says it; what it is made of is in metrics.csv
            self.details |= {f"{stage.value}/{name}" for name in step.losses}
        for name, value in losses.items():
            shown: dict[str, Any] = {"prog_bar": name == "loss", "on_step": train, "on_epoch": True}
            over: Any = size if step.weight is None else step.weight  # Lightning multiplies and adds, also tensors
            self.log(f"{stage.value}/{name}", value.detach(), batch_size=over, sync_dist=not train, **shown)
        if step.targets is None:
            return
        for config, metric in self._of_stage(stage):
            # Only a call keeps the value of the batch, which is what Lightning logs for a step.
            (metric if config.log_on_step else metric.update)(step.predictions, step.targets)
            if isinstance(metric, Scores):
                continue  # Lightning logs metrics of one value; these wait for the end of the epoch
            when: dict[str, Any] = {"on_step": config.log_on_step, "on_epoch": config.log_on_epoch}
            self.log(f"{stage.value}/{config.name}", metric, prog_bar=config.prog_bar, batch_size=size, **when)

    def _log_scores(self, stage: Stage) -> None:
        """Compute and log the metrics of several values at the end of an epoch, the same on every process."""
        self.by_class = {}
        for config, metric in self._of_stage(stage):
            if isinstance(metric, Scores):
                for name, value in metric.compute().items():
                    behind = f"{config.name}_{name}" if metric.prefixed else name
                    key = config.name if name == "mean" else behind
                    if name not in metric.headline:
                        self.details.add(f"{stage.value}/{key}")
                    self.log(f"{stage.value}/{key}", value.to(self.device), prog_bar=config.prog_bar and name == "mean")
                self.by_class[config.name] = metric.by_class()
                metric.reset()

    @property
    def class_table(self) -> dict[str, dict[str, float]]:
        """What :attr:`by_class` says, a row per class and a column per metric; NaN where nothing was measured."""
        if not self.by_class:
            return {}
        measured = [*self._of_stage(Stage.VAL), *self._of_stage(Stage.TEST)]
        titles = {config.name: metric.per_class for config, metric in measured if isinstance(metric, Scores)}
        names = names_of(self.spec, max(map(len, self.by_class.values())))
        return table_of(self.by_class, titles, names)

    def on_validation_epoch_end(self) -> None:
        """Log what is known at the end only; a subclass that has an end of its own calls this too."""
        self._log_scores(Stage.VAL)

    def on_test_epoch_end(self) -> None:
        """Log what is known at the end only; a subclass that has an end of its own calls this too."""
        self._log_scores(Stage.TEST)
