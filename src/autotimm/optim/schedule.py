"""Learning-rate schedules as pure functions of the step, so that a resumed run continues at the same rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from autotimm.errors import UsageError
from autotimm.optim.recipe import SCHEDULES, Recipe

__all__ = ["SCHEDULES", "WARMUP_SHARE", "ProgressLR", "build_schedulers", "factor"]

# Adam's second moment is a poor estimate in the first steps, where full steps may spoil pretrained weights or make a
# transformer diverge (Ma & Yarats, "On the adequacy of untuned warmup for adaptive optimization", AAAI 2021). Their
# 2 / (1 - beta2) = 2000 steps are more than a short run has; fine-tuning recipes of ViT and ConvNeXt use about 5 %.
WARMUP_SHARE = 0.05
# The first factor must not depend on the number of steps, which is not known when a schedule is created.
_START = 0.01
_ONE_CYCLE_START, _ONE_CYCLE_RISE, _ONE_CYCLE_END = 1 / 25, 0.3, 1e-4 / 25


def factor(schedule: str, step: int, total: float, warmup: float = 0.0) -> float:
    """Return the factor of a schedule on the learning rate at an optimizer step.

    Args:
        schedule: ``constant``; ``cosine`` to 0 (Loshchilov & Hutter, "SGDR", ICLR 2017); ``linear`` to 0; ``step``: a
            tenth after each third of the run (He et al., CVPR 2016); ``onecycle``: cosines up and down with the
            defaults of torch's ``OneCycleLR``, without its change of momentum (Smith & Topin, "Super-convergence",
            2018); ``plateau``: constant, since torch's ``ReduceLROnPlateau`` reduces the rate.
        step: Number of optimizer steps done, from 0.
        total: Number of optimizer steps of the whole run. Not used at step 0.
        warmup: Number of steps over which the rate rises linearly at first. For ``onecycle`` the length of its rise;
            0 stands for 30 % of the run.

    Returns:
        A factor in [0, 1].

    Example:
        >>> [round(factor("cosine", step, total=4), 3) for step in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
        >>> factor("linear", 2, total=10, warmup=2)
        1.0
    """
    if schedule == "onecycle":
        return _one_cycle(step, total, warmup)
    if step < warmup:
        return _START + (1 - _START) * step / warmup
    if step == 0:
        return 1.0
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    if schedule == "step":
        return float(0.1 ** min(2, math.floor(3 * progress)))
    return 1.0


def _one_cycle(step: int, total: float, rise: float) -> float:
    if step == 0:
        return _ONE_CYCLE_START
    rise = rise or _ONE_CYCLE_RISE * total
    rising = step < rise
    progress = step / rise if rising else min(1.0, (step - rise) / max(1.0, total - rise))
    start, end = (_ONE_CYCLE_START, 1.0) if rising else (1.0, _ONE_CYCLE_END)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


class ProgressLR(LRScheduler):
    """Scheduler that sets each group's learning rate to its initial rate times :func:`factor`.

    The length of the run is queried at the first step, not on creation: Lightning's ``estimated_stepping_batches``
    builds the data loader, which must not happen before a checkpoint is restored.

    Args:
        optimizer: The optimizer, whose groups have the learning rates of the recipe.
        schedule: One of :data:`SCHEDULES`.
        total: Returns the number of optimizer steps of the whole run.
        warmup: Returns the number of warm-up steps. ``None`` is 5 % of the run and at least one step (30 % for
            ``onecycle``).
        warms_up: Whether there is a warm-up.

    Raises:
        UsageError: When stepping, if the schedule needs a run of known length and the run is endless.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: str,
        total: Callable[[], float],
        warmup: Callable[[], float] | None = None,
        warms_up: bool = True,
    ) -> None:
        self.schedule, self._total, self._warmup, self._warms_up = schedule, total, warmup, warms_up
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Return the learning rates of the groups after ``last_epoch`` optimizer steps."""
        current = self._factor(self.last_epoch)
        if self.schedule == "plateau" and self.last_epoch > 0:
            # Relative to the previous rate, to keep the reductions of ReduceLROnPlateau.
            ratio = current / self._factor(self.last_epoch - 1)
            return [group["lr"] * ratio for group in self.optimizer.param_groups]
        return [rate * current for rate in self.base_lrs]

    def _factor(self, step: int) -> float:
        if step == 0:
            return factor(self.schedule, 0, total=math.nan, warmup=float(self._warms_up))
        return factor(self.schedule, step, *self._lengths())

    def _lengths(self) -> tuple[float, float]:
        total = float(self._total())
        if not math.isfinite(total):
            if self.schedule in ("constant", "plateau") and (self._warmup or not self._warms_up):
                return total, self._warmup() if self._warmup else 0.0
            raise UsageError(
                f"The schedule {self.schedule!r} needs a run of known length. This one is endless. Give `max_epochs` "
                "or `max_steps`, or use schedule='constant' with `warmup_epochs`."
            )
        if not self._warms_up:
            return total, 0.0
        if self._warmup is not None:
            return total, self._warmup()
        return total, 0.0 if self.schedule == "onecycle" else max(1.0, round(WARMUP_SHARE * total))

    def state_dict(self) -> dict[str, Any]:
        """Return plain data, which loads with ``weights_only=True``. The callables are left out."""
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "base_lrs": [float(rate) for rate in self.base_lrs],
            "_last_lr": [float(rate) for rate in self._last_lr],
        }


def build_schedulers(
    optimizer: Optimizer,
    recipe: Recipe,
    total: Callable[[], float],
    steps_per_epoch: Callable[[], float],
    *,
    monitor: str = "val/loss",
    mode: str = "min",
    every: int = 1,
) -> list[dict[str, Any]]:
    """Create the schedulers of a recipe, for automatic optimization in Lightning.

    Args:
        optimizer: The optimizer of the recipe.
        recipe: The recipe, for the schedule and the warm-up.
        total: Returns the number of optimizer steps of the run. Called at the first step, not here.
        steps_per_epoch: Returns the number of optimizer steps of an epoch. Called at the first step, not here.
        monitor: The logged value that ``plateau`` monitors.
        mode: ``"min"`` or ``"max"``: whether smaller or larger values are better.
        every: Number of epochs between two such values.

    Returns:
        Scheduler configurations, the second list that ``configure_optimizers`` may return.
    """
    epochs = recipe.warmup_epochs
    warmup = None if epochs is None else lambda: epochs * steps_per_epoch()
    progress = ProgressLR(optimizer, recipe.schedule, total, warmup, warms_up=epochs is None or epochs > 0)
    schedulers: list[dict[str, Any]] = [{"scheduler": progress, "interval": "step", "name": "lr"}]
    if recipe.schedule == "plateau":
        # torch's default patience of ten epochs is as long as a default run.
        plateau = ReduceLROnPlateau(optimizer, mode="max" if mode == "max" else "min", factor=0.1, patience=3)
        schedulers.append(
            {"scheduler": plateau, "interval": "epoch", "frequency": every, "monitor": monitor, "name": "plateau"}
        )
    return schedulers
