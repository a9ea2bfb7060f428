"""How tasks are optimized: recipe, optimizer, schedule, gradient clipping and weight averaging."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging
from torch import nn

from autotimm.data.module import DataModule
from autotimm.metrics import MetricConfig, Monitor, choose_monitor
from autotimm.models.backbone.weights import Weights
from autotimm.optim import OptimizerOptions, Recipe, build_optimizer, build_schedulers, choose_recipe

__all__ = ["Optimized"]


class Optimized(pl.LightningModule):
    """The part of :class:`autotimm.tasks.base.Task` that Lightning asks for optimizers; not for use on its own."""

    kinds: ClassVar[tuple[str, ...]]
    network: nn.Module
    weights: Weights
    optimizer_options: OptimizerOptions
    metric_configs: list[MetricConfig]
    recipe: Recipe | None
    decided: Recipe | None = None  # that of a recorded run, which is not chosen a second time
    ema_decay: float | None

    @property
    def _data(self) -> DataModule | None:
        """The trainer's data module, if it is one of ours."""
        data = getattr(self.trainer, "datamodule", None)  # Lightning sets it on demand
        return data if isinstance(data, DataModule) else None

    @property
    def monitor(self) -> Monitor:
        """The logged value that selects the best checkpoint: the first validation metric, or the validation loss."""
        return choose_monitor(self.metric_configs)

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule from the recipe; the schedule asks for the number of steps when it steps."""
        self.recipe = self.decided or self.choose_recipe()
        optimizer = build_optimizer(self.network, self.recipe)
        measured = self.trainer.enable_validation and (self._data is None or "val" in self._data.tables)
        monitor = self.monitor if measured else Monitor("train/loss", "min")
        schedulers = build_schedulers(
            optimizer, self.recipe, lambda: self.trainer.estimated_stepping_batches, self._steps_per_epoch,
            monitor=monitor.name, mode=monitor.mode, every=(measured and self.trainer.check_val_every_n_epoch) or 1,
        )  # fmt: skip
        return [optimizer], schedulers

    def choose_recipe(self) -> Recipe:
        """The recipe for this backbone and batch size, with the options that were given in place of its own."""
        images = self._data.batch_size if self._data else 32  # a caller's own loader must not be built yet
        if getattr(self.trainer, "shards", None) is None:  # Lightning's trainer has none
            images *= self.trainer.world_size
        return choose_recipe(
            self.network,
            pretrained=self.weights.pretrained,
            batch_size=images * self.trainer.accumulate_grad_batches,
            options=self.optimizer_options,
            kind=self.kinds[0],
            head_fitted=getattr(self.trainer, "recipe", "plain") != "plain",  # Lightning's trainer has no recipe
        )

    def set_lr(self, lr: float) -> None:
        """Replace the learning rate, as a learning-rate finder does before training."""
        self.optimizer_options = replace(self.optimizer_options, lr=lr)
        self.decided = self.decided and replace(self.decided, lr=lr)
        if "lr" in self.hparams:  # not of a task that fixes it
            self.hparams["lr"] = lr

    def _steps_per_epoch(self) -> float:
        # Infinite for loaders without a length.
        steps: float = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        return math.ceil(steps) if math.isfinite(steps) else steps

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to the trainer's ``gradient_clip_val`` if it has one, else to the recipe's norm."""
        clip = self.recipe.gradient_clip if gradient_clip_val is None and self.recipe else gradient_clip_val
        self.clip_gradients(optimizer, clip or None, gradient_clip_algorithm)

    def configure_callbacks(self) -> list[Callback]:
        """Average the weights if ``ema_decay`` is given."""
        return [] if self.ema_decay is None else [EMAWeightAveraging(decay=self.ema_decay)]

    def on_fit_end(self) -> None:
        """Remove the average: it would replace the weights of whatever this trainer validates next."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        kept = [callback for callback in callbacks if not isinstance(callback, EMAWeightAveraging)]
        self.trainer.callbacks = kept  # type: ignore[attr-defined]
