"""The networks that a run with the recipe ``auto`` or ``probe`` chooses from: whatever validates best is kept.

The first is the pretrained backbone with a head that is fitted to its features (a linear probe), called epoch 0: the
training starts from it. Others are the ends of the epochs, and averages of the best of these: a greedy soup (Wortsman
et al., "Model soups", ICML 2022). Fitting the head first keeps pretrained features from being distorted by a random one
(Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from torch import Tensor, nn

from autotimm.data.module import DataModule
from autotimm.data.table import Subset
from autotimm.errors import UsageError
from autotimm.evidence import EvidenceCollector
from autotimm.models.backbone.pooled import PooledClassifier
from autotimm.optim.linear_head import fit_linear_head
from autotimm.records.digest import state_digest
from autotimm.records.ledger import Line
from autotimm.repro.streams import key
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.train.callbacks.epoch_metrics import EpochMetrics
from autotimm.train.callbacks.held_out import evaluated, with_weights
from autotimm.train.callbacks.recorder import Recorder, weight_digests
from autotimm.train.callbacks.run_checkpoint import RunCheckpoint
from autotimm.train.progress import duration, metrics_text, show
from autotimm.types import Stage

__all__ = ["Candidates", "average", "choice_of", "why_no_head"]

_MOST_IMAGES = 20_000  # that a head is fitted to; for more, the training does the rest
_MOST = 5  # networks that an average may be made of, and whose checkpoints are kept until the end


def why_no_head(model: pl.LightningModule) -> str:
    """Why no head can be fitted to the features of a task, as a part of a sentence; empty if one can."""
    network = model.network if isinstance(model, Task) else None
    if not isinstance(network, PooledClassifier) or not isinstance(network.head, nn.Linear):
        return "only the head of a classifier can be fitted to features"
    assert isinstance(model, Task)
    if not model.weights.pretrained:
        return "the weights are random"
    return "the network is compiled" if model.hparams.get("compile_model") else ""


class Candidates(Callback):
    """Begins a run with a fitted head, and chooses at its end among that, the epochs and their averages.

    Args:
        recipe: ``auto``, or ``probe`` to stop after the head.
        epochs: Knows the metrics of each epoch.
        recorder: Writes the ledger.
    """

    def __init__(self, recipe: str, epochs: EpochMetrics, recorder: Recorder) -> None:
        self.recipe, self.epochs, self.recorder = recipe, epochs, recorder
        self.head: dict[str, Any] = {}  # how it was fitted
        self.scores: list[dict[str, Any]] = []  # of the best networks so far: epochs done and metrics, the best first

    def state_dict(self) -> dict[str, Any]:
        """Return how the head was fitted, and the best networks so far."""
        return {"head": self.head, "scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.head, self.scores = dict(state_dict["head"]), list(state_dict["scores"])

    def require_head(self, model: pl.LightningModule, data: object) -> None:
        """Refuse a task, or data, for which the recipe means nothing.

        Raises:
            UsageError: If no head can be fitted.
        """
        reason = why_no_head(model) if isinstance(data, DataModule) else "the data is a loader of your own"
        if reason:
            raise UsageError(f"The `recipe` of AutoTrainer must be plain here: {reason}. Got {self.recipe} instead.")

    def members(self) -> set[int]:
        """The numbers of epochs whose checkpoints may become a part of the average."""
        return {score["epochs"] for score in self.scores}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep the statistics of batch normalization: with those of single batches the features would be others."""
        if isinstance(pl_module, Task):
            pl_module.keeps_statistics = stage == "fit"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fit the head, unless the run is resumed: its checkpoint has it."""
        assert isinstance(pl_module, Task)
        checkpoints = _checkpoints(trainer)
        if trainer.ckpt_path is None:
            self._begin(trainer, pl_module)
        elif trainer.listener is None and checkpoints.folder is not None:  # type: ignore[attr-defined]
            # In another folder the earlier checkpoints are missing. A replay does not get to the choice.
            self.scores = [score for score in self.scores if score["epochs"] in checkpoints.store.epochs()]
        if self.recipe == "probe":
            trainer.should_stop = True

    def _begin(self, trainer: Any, task: Task) -> None:
        began = time.monotonic()
        # Process 0 computes, since sums over processes would depend on their number.
        found = _fit(trainer, task) if trainer.is_global_zero else None
        weight, bias, self.head = trainer.strategy.broadcast(found)
        head = task.head
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        for callback in trainer.callbacks:  # the moving average begins with the same head
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                callback._average_model.module.load_state_dict(task.state_dict())
        metrics = trainer.strategy.broadcast(_measure(trainer, task) if trainer.is_global_zero else None)
        self._note(trainer, 0, metrics)
        self.recorder.note("head", **self.head, weights=weight_digests(task)["weights"], metrics=metrics)
        _checkpoints(trainer).save_head(trainer, metrics)
        if trainer.shows_progress:
            took, said = duration(time.monotonic() - began), metrics_text(metrics, task)
            show(trainer, f"head: fitted to {len(trainer.datamodule.tables['train'])} images in {took}  {said}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the epoch if it is one of the best."""
        self._note(trainer, trainer.current_epoch + 1, self.epochs.validation(trainer))

    def _note(self, trainer: Any, epochs: int, metrics: Mapping[str, float]) -> None:
        checkpoints = _checkpoints(trainer)
        if checkpoints.monitor not in metrics:
            return  # not validated
        scores = [*self.scores, {"epochs": epochs, "metrics": dict(metrics)}]
        # Stable: of equals the earlier comes first.
        self.scores = sorted(scores, key=lambda score: checkpoints.rank(score["metrics"]), reverse=True)[:_MOST]

    def choose(self, trainer: Any, task: pl.LightningModule) -> None:
        """Average the best networks as long as that helps, and keep what validates best; called at the end of a run.

        Networks are added in the order of their scores. One stays in the average if that then scores higher.
        """
        if not self.scores or _checkpoints(trainer).folder is None:
            return  # nothing was validated, or nothing is kept
        assert isinstance(task, Task)
        chosen = self._average_best(trainer, task) if trainer.is_global_zero else None
        kept, metrics, tried = trainer.strategy.broadcast(chosen)
        if len(kept) > 1:
            checkpoints = _checkpoints(trainer)
            checkpoints.best = {**checkpoints.best, "metrics": metrics, "averaged": kept}
        self.recorder.note("choice", step=trainer.global_step, epochs=kept, metrics=metrics, tried=tried)

    def _average_best(self, trainer: Any, task: Task) -> tuple[list[int], dict[str, float], dict[str, Any]]:
        """The epochs that are kept, what their average scores, and what all averages that were tried score."""
        checkpoints = _checkpoints(trainer)
        files = checkpoints.store.epochs()
        kept, metrics, state = [self.scores[0]["epochs"]], self.scores[0]["metrics"], {}
        tried: dict[str, Any] = {str(score["epochs"]): score["metrics"] for score in self.scores}
        for number in (score["epochs"] for score in self.scores[1:]):
            together = sorted([*kept, number])
            averaged = average([read_checkpoint(files[each])["state_dict"] for each in together])
            measured = _measure(trainer, task, averaged)
            tried["+".join(map(str, together))] = measured
            if checkpoints.rank(measured) > checkpoints.rank(metrics):
                kept, metrics, state = together, measured, averaged
        if len(kept) > 1:
            checkpoints.save_average(files[self.scores[0]["epochs"]], state)
        elif not checkpoints.best_model_path:
            checkpoints.keep_best(kept[0], metrics)
        return kept, metrics, tried


def _checkpoints(trainer: Any) -> RunCheckpoint:
    callback = trainer.checkpoint_callback
    assert isinstance(callback, RunCheckpoint)
    return callback


def _measure(trainer: Any, task: Task, weights: Mapping[str, Tensor] | None = None) -> dict[str, float]:
    """What validation measures, with other weights if some are given; nothing without validation samples."""
    table = trainer.datamodule.tables.get("val")
    if table is None:
        return {}
    with with_weights(task, weights):
        return task.measure(evaluated(trainer, task, table, trainer.limit_val_batches), Stage.VAL)


def _fit(trainer: Any, task: Task) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Weight and bias of a head that is fitted to the features of the training images, and how it was fitted."""
    data: DataModule = trainer.datamodule
    table = data.without_dropped(data.tables["train"])
    if len(table) > _MOST_IMAGES:
        chosen = sorted(range(len(table)), key=lambda index: key(data.data_seed, "split", "head", table.ids[index]))
        table = Subset(table, sorted(chosen[:_MOST_IMAGES]))
    collector = EvidenceCollector(task, "train")
    with with_weights(task), collector.watching():
        for batch, step in evaluated(trainer, task, table):
            collector.add(batch, step)
    evidence = collector.evidence()
    assert evidence is not None
    assert table.strata is not None
    features, targets = (torch.from_numpy(evidence.arrays[name]) for name in ("features", "targets"))
    fitted = fit_linear_head(
        features, targets, evidence.ids, table.strata, data.data_seed, num_classes=len(data.class_names)
    )
    how = {
        "features": state_digest({"features": features})[:16],
        "penalty": fitted.penalty,
        "losses": {f"{penalty:.3g}": loss for penalty, loss in fitted.losses.items()},
    }
    return fitted.weight.float(), fitted.bias.float(), how


def choice_of(lines: Sequence[Line]) -> dict[str, Any]:
    """What a run with such a recipe chose from, for ``results.json``, out of its ledger; empty for any other run.

    ``candidates`` has the metrics of the best epochs and of the averages that were tried, such as ``2+5``, and ``kept``
    names one of them; epoch 0 is the fitted head. ``losses`` are those of held-out training samples by penalty, of
    which ``penalty`` was chosen for the head.
    """
    chosen: dict[str, Any] = {}
    for line in lines:
        if line["kind"] == "head":
            chosen |= {name: _numbers(line[name]) for name in ("penalty", "losses")}
        elif line["kind"] == "choice":
            chosen |= {"kept": "+".join(map(str, line["epochs"])), "candidates": _numbers(line["tried"])}
    return chosen


def _numbers(value: Any) -> Any:
    """Numbers that a ledger holds as hexadecimal text."""
    if isinstance(value, Mapping):
        return {name: _numbers(item) for name, item in value.items()}
    return float.fromhex(value)


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several states of a network, computed in ``float64``; whole numbers are those of the first.

    Example:
        >>> average([{"weight": torch.tensor([1.0, 2.0])}, {"weight": torch.tensor([3.0, 2.0])}])
        {'weight': tensor([2., 2.])}
    """
    mean: dict[str, Tensor] = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            mean[name] = torch.stack([state[name].double() for state in states]).mean(dim=0).to(first.dtype)
        else:
            mean[name] = first.clone()
    return mean
