"""Writes the ledger of a run, and checks in groups that losses are finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from autotimm.data.loader import KeyedLoader
from autotimm.data.module import DataModule
from autotimm.errors import LossError
from autotimm.records.digest import state_digest
from autotimm.records.ledger import Ledger, Line, digest16
from autotimm.tasks import Task
from autotimm.train.callbacks.epoch_metrics import EpochMetrics
from autotimm.train.callbacks.step_hooks import without_idle_step_hooks
from autotimm.train.callbacks.validation_evidence import keep_evidence
from autotimm.train.progress import show_notices
from autotimm.types import Batch

__all__ = ["EnoughError", "Recorder", "weight_digests"]

GROUP = 32  # steps whose losses are fetched together: every fetch waits for the device
DIGEST_EVERY = 100  # optimizer steps between two digests of the weights within an epoch


class EnoughError(Exception):
    """Raised by a listener: ends a replay that has come as far as it was asked to."""


class _Step(NamedTuple):
    epoch: int
    batch: int
    step: int
    ids: tuple[str, ...]
    fingerprints: str
    lr: float
    loss: Tensor | None


def weight_digests(module: pl.LightningModule) -> dict[str, str]:
    """Return digests of weights and of buffers, 16 hexadecimal digits each; metrics are left out."""
    part = module.network if isinstance(module, Task) else module
    return {
        "weights": state_digest(dict(part.named_parameters()))[:16],
        "buffers": state_digest(dict(part.named_buffers()))[:16],
    }


def _without_record(initial: str) -> str:
    return ""


def _keep_best_epoch(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """A recipe without a fitted head has no other candidates."""


@without_idle_step_hooks
class Recorder(Callback):
    """Writes the ledger: a line per step, validation and epoch, see :mod:`autotimm.records.ledger`.

    Losses stay on the device and are fetched in groups of 32, before every validation and before anything is saved.
    A loss that is not finite ends the run there, so that its weights cannot replace good ones.

    Args:
        epochs: Knows the metrics of each epoch.
    """

    def __init__(self, epochs: EpochMetrics) -> None:
        self.epochs = epochs
        self.ledger = Ledger(None)
        # Functions, since processes that are spawned receive this object, and a lambda cannot be pickled.
        self.declare: Callable[[str], str] = _without_record  # writes the manifest and returns the run's id
        self.choose_best: Callable[[pl.Trainer, pl.LightningModule], None] = _keep_best_epoch
        self.begins = False  # whether a run begins at a checkpoint of another one, whose ledger it does not continue
        self.gap = ""  # why a resumed run could not continue its ledger
        self._position: dict[str, Any] | None = None
        self._steps: list[_Step] = []
        self._loader: Any = None  # of the training samples, if some of them are dropped
        self._rate, self._seen = math.nan, 0
        self._distributed, self._sharded, self._read = False, False, True
        self.followed = False  # whether a listener may end the training, in all processes together
        self._enough: EnoughError | None = None

    def write_to(self, path: Path | None, listener: Any = None) -> None:
        """Begin a ledger in a file, or in none; ``listener`` is called with every line."""
        self.ledger = Ledger(path, None if listener is None else partial(self._tell, listener))

    def _tell(self, listener: Any, line: Line) -> None:
        """Pass a line on; of several processes the others must hear first that it is the last."""
        if self._enough is not None:
            return
        try:
            listener(line)
        except EnoughError as enough:
            if not self._distributed:
                raise
            self._enough = enough

    def _end_together(self) -> None:
        """End the training in every process where the listener in the first has had enough."""
        if not (self.followed and self._distributed):
            return
        heard: list[Any] = [self._enough]
        torch.distributed.broadcast_object_list(heard)
        if heard[0] is not None:
            raise heard[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the ledger, with all lines up to here on the disk."""
        self.look()
        self.ledger.flush(sync=True)
        return dict(self.ledger.position)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the position of the checkpoint, to cut the ledger back to it."""
        self._position = dict(state_dict)

    def note(self, kind: str, **fields: Any) -> None:
        """Add a line of another callback."""
        self.ledger.add(kind, **fields)
        self.ledger.flush()
        self._end_together()

    # Hooks, in the order in which they are called

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the ledger, or continue it from the checkpoint."""
        self._distributed = trainer.world_size > 1
        # Of shards each process knows the loss of the whole, and their number stands for that of the processes.
        shards: int | None = getattr(trainer, "shards", None)  # Lightning's trainer has none
        self._sharded = shards is not None
        # Of several processes the first may have a reader, and needs the samples of all.
        self._read = self._distributed or self.ledger.is_read
        if not trainer.is_global_zero:
            self.ledger = Ledger(None)
        show_notices(trainer)
        loader = trainer.train_dataloader
        drops = isinstance(loader, KeyedLoader) and len(loader.batch_sampler.dropped) > 0
        self._loader = loader if drops else None
        self._steps.clear()
        self._seen = trainer.global_step
        weights = weight_digests(pl_module)["weights"]
        run = self.declare(weights)
        if self._position is None or self.begins:
            self._position, self.begins = None, False
            self.ledger.rewind({"bytes": 0, "last": "", "lines": 0})  # of an interrupted run without checkpoint
            self.ledger.add("start", run=run, weights=weights, world_size=shards or trainer.world_size)
        else:
            self._go_back(trainer, self._position)
        self.ledger.flush()
        self._end_together()

    def _go_back(self, trainer: pl.Trainer, position: dict[str, Any]) -> None:
        """Cut the ledger back to the checkpoint; note a gap where it does not reach that far."""
        self._position = None
        if not self.ledger.rewind(position):
            self.gap = "its ledger does not hold what the checkpoint was written with"
            self.ledger.add("gap", step=trainer.global_step, reason=self.gap)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate of this step."""
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        # Some optimizers keep it as a tensor; on a device, reading that would make every step wait.
        fixed = [rate for rate in rates if not isinstance(rate, Tensor)]
        self._rate = float(max(fixed)) if fixed else math.nan

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the samples and the loss of the step."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        loss = loss.detach() if isinstance(loss, Tensor) and loss.numel() == 1 else None
        ids, fingerprints = _identify(batch) if self._read else ((), "")
        done = trainer.global_step
        self._steps.append(_Step(trainer.current_epoch, batch_idx, done, ids, fingerprints, self._rate, loss))
        due = done != self._seen and (done == 1 or done % DIGEST_EVERY == 0)
        self._seen = done  # gradient accumulation leaves the number of steps unchanged
        if due or len(self._steps) >= GROUP:
            self.look()
        if due and self._read:
            self.ledger.add("weights", step=done, **weight_digests(pl_module))
        self._end_together()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the losses first: there is no use in validating weights that are not finite."""
        self.look()
        self._end_together()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the validation metrics."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            metrics = self.epochs.validation(trainer)
            self._tell_left_out(trainer)
            self.ledger.add("val", epoch=trainer.current_epoch, step=trainer.global_step, metrics=metrics)
            self._end_together()

    def _tell_left_out(self, trainer: pl.Trainer) -> None:
        """Note the validation samples that are dropped."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
        ids = data.dropped.get("val") if isinstance(data, DataModule) else None
        if ids:
            at = {"epoch": trainer.current_epoch, "step": trainer.global_step, "batch": None}
            self.ledger.add("dropped", **at, split="val", ids=ids, by=[])

    def _tell_replaced(self, step: _Step) -> None:
        """Note the training samples that are dropped from a batch, and those in their place."""
        loader = self._loader
        if loader is None or not (pairs := loader.batch_sampler.replaced(step.epoch, step.batch)):
            return
        ids = loader.dataset.source.ids
        dropped, others = ([ids[index] for index in column] for column in zip(*pairs, strict=True))
        at = {"epoch": step.epoch, "step": step.step, "batch": step.batch}
        self.ledger.add("dropped", **at, split="train", ids=dropped, by=others)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the metrics and digests at the end of an epoch."""
        self.look()
        if not self._read:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
        averaged = next(
            (callback for callback in callbacks if isinstance(callback, pl.callbacks.WeightAveraging)), None
        )
        model = getattr(averaged, "_average_model", None)  # private to Lightning: where the average is
        self.ledger.add(
            "epoch",
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            metrics=self.epochs.of(trainer),
            **weight_digests(pl_module),
            optimizer=state_digest({str(i): each.state_dict() for i, each in enumerate(trainer.optimizers)})[:16],
            averaged=None if model is None else state_digest(model.state_dict())[:16],
        )
        self.ledger.flush()
        self._end_together()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the evidence of the best weights, and note that the run is finished."""
        self.look()
        self.choose_best(trainer, pl_module)
        self.ledger.add("end", step=trainer.global_step, **keep_evidence(trainer, pl_module))
        self.ledger.flush(sync=True)
        self._end_together()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note it also for a run that was interrupted after its last epoch: its resume calls no other hook."""
        position, path = self._position, self.ledger.path
        if position is not None and path is not None and path.exists():
            self._go_back(trainer, position)
            self.on_train_end(trainer, pl_module)

    def look(self) -> None:
        """Fetch the losses of the steps since the last call, and write their lines.

        Raises:
            LossError: If one of them is infinite or not a number; it names the first such step.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        losses = _fetch([step.loss for step in steps])
        shares = [[(step.ids, step.fingerprints, loss) for step, loss in zip(steps, losses, strict=True)]]
        if self._distributed:
            shares = _gather(shares[0])
        for number, step in enumerate(steps):
            parts = [share[number] for share in shares]
            known = [loss for _, _, loss in parts if loss is not None]
            loss = known[0] if self._sharded else sum(known) / len(known) if known else None
            ids = [name for names, _, _ in parts for name in names]
            inputs = "".join(text for _, text, _ in parts)
            self._tell_replaced(step)
            self.ledger.add(
                "step", epoch=step.epoch, batch=step.batch, step=step.step, lr=step.lr, loss=loss,
                ids=digest16("\n".join(ids)) if ids else None, inputs=digest16(inputs) if inputs else None,
            )  # fmt: skip
            if loss is not None and not math.isfinite(loss):
                self.ledger.flush()
                raise LossError(
                    f"The loss must be a finite number. Got {loss} at epoch {step.epoch + 1}, batch {step.batch + 1} "
                    "instead. Lower `lr`, or use precision 32 if it is lower."
                )
        self.ledger.flush()


def _fetch(losses: list[Tensor | None]) -> list[float | None]:
    """Fetch losses from their device, all at once."""
    tensors = [loss.reshape(()).double() for loss in losses if loss is not None]
    values = iter(torch.stack(tensors).tolist() if tensors else [])
    return [None if loss is None else next(values) for loss in losses]


def _gather(share: list[Any]) -> list[list[Any]]:
    """Gather the steps of all processes, in the order of their ranks."""
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, share)
    return shares


def _identify(batch: Any) -> tuple[tuple[str, ...], str]:
    """Ids and fingerprints of a batch; of a batch that is not ours a digest of its tensors, if they are on the CPU.

    Tensors on a device are not read, since that would make every step wait.
    """
    if isinstance(batch, Batch) and (batch.fingerprints or not len(batch.images)):
        return batch.ids, batch.fingerprints
    tensors: dict[str, Tensor] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, Mapping):
            for key, child in value.items():
                visit(f"{name}.{key}", child)
        elif isinstance(value, (list, tuple)):
            for index, child in enumerate(value):
                visit(f"{name}.{index}", child)

    visit("", batch)
    on_cpu = bool(tensors) and all(tensor.device.type == "cpu" for tensor in tensors.values())
    return (), state_digest(tensors)[:16] if on_cpu else ""
