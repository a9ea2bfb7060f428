"""What can be computed of every step of a run without training: which samples it had, and its learning rate.

Also what a checkpoint says beside tensors. A replay takes over the optimizer's settings from the checkpoint that it
begins at, so they are compared with those that the options give: otherwise a run that was trained with another weight
decay would replay with it, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from torch import nn

from autotimm.data.loader import KeyedLoader
from autotimm.optim.schedule import ProgressLR
from autotimm.records.digest import state_digest
from autotimm.records.ledger import Line, digest16
from autotimm.records.ledger_diff import Difference
from autotimm.tasks import Task

__all__ = ["Settings", "checkpoint_findings", "every_step", "settings_of"]

_RATE = 1e-12  # of a rate: the last bits of a cosine depend on the C library


@dataclass(frozen=True)
class Settings:
    """What the options of a run give for its training, taken from objects that were built anew.

    Attributes:
        groups: The settings of each parameter group of the optimizer, without its current rate; empty if the optimizer
            is not one of ours.
        rates: The rates of the groups before the schedule.
        schedule: The schedule; ``None`` if the rates do not follow from the step alone.
        batches: The number of batches of an epoch.
        accumulated: The number of batches of an optimizer step.
        parameters: The names of the parameters of the network.
    """

    groups: Sequence[Mapping[str, Any]]
    rates: Sequence[float]
    schedule: ProgressLR | None
    batches: int
    accumulated: int
    parameters: frozenset[str]

    def rate(self, step: int) -> float | None:
        """The largest rate of the groups after a number of optimizer steps; ``None`` if it cannot be known."""
        if self.schedule is None or self.schedule.schedule == "plateau":
            return None
        factor = self.schedule._factor(step)
        return max(rate * factor for rate in self.rates)


def settings_of(trainer: pl.Trainer, module: pl.LightningModule) -> Settings:
    """Take the settings of a training before its first step; the trainer's own optimizer may be a checkpoint's."""
    batches, accumulated = int(trainer.num_training_batches), int(trainer.accumulate_grad_batches)
    network = module.network if isinstance(module, Task) else nn.Module()
    names = frozenset(name for name, _ in network.named_parameters())
    if not isinstance(module, Task) or type(module).configure_optimizers is not Task.configure_optimizers:
        return Settings((), (), None, batches, accumulated, names)
    optimizers, schedulers = module.configure_optimizers()
    first = schedulers[0]["scheduler"]
    groups = [_settings(group) for group in optimizers[0].param_groups]
    schedule = first if isinstance(first, ProgressLR) else None
    rates = [float(rate) for rate in schedule.base_lrs] if schedule is not None else []
    return Settings(groups, rates, schedule, batches, accumulated, names)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "lr")}


# The ledger


def every_step(lines: Sequence[Line], settings: Settings, trainer: pl.Trainer, first: int) -> Difference | None:
    """The first step of a ledger that is out of place, has other samples, or another learning rate.

    Args:
        lines: The lines of the ledger.
        settings: The settings of the run.
        trainer: A trainer of the run, of which the loader is asked for the order of the samples.
        first: The number of optimizer steps before the first line.
    """
    steps = [line for line in lines if line["kind"] == "step"]
    gaps = any(line["kind"] == "gap" for line in lines)
    found = [*_places(steps, settings, first)] if not gaps else []
    found += _rates(steps, settings, first) if not gaps else []
    found += _orders(steps, trainer)
    at = {id(line): index for index, line in enumerate(steps)}
    ranked = sorted(found, key=lambda pair: at[id(pair[0])])
    return ranked[0][1] if ranked else None


_Found = Iterator[tuple[Line, Difference]]


def _differs(line: Line, stage: str, field: str, recorded: Any, found: Any) -> tuple[Line, Difference]:
    return line, Difference(stage, line["epoch"], line["batch"], line["step"], field, recorded, found)


def _places(steps: Sequence[Line], settings: Settings, first: int) -> _Found:
    """The first line that is not where the lines before it lead: one is missing, or one too many."""
    epoch, batch, step = steps[0]["epoch"], steps[0]["batch"], first
    for line in steps:
        steps_now = (batch + 1) % settings.accumulated == 0 or batch + 1 == settings.batches
        expected = {"epoch": epoch, "batch": batch, "step": step + steps_now}
        wrong = next((name for name, value in expected.items() if line[name] != value), None)
        if wrong is not None:
            yield _differs(line, "length", wrong, line[wrong], expected[wrong])
            return
        step = expected["step"]
        epoch, batch = (epoch, batch + 1) if batch + 1 < settings.batches else (epoch + 1, 0)


def _rates(steps: Sequence[Line], settings: Settings, first: int) -> _Found:
    done = first
    for line in steps:
        expected, recorded = settings.rate(done), float.fromhex(line["lr"])
        done = line["step"]
        if expected is not None and not math.isclose(expected, recorded, rel_tol=_RATE, abs_tol=1e-300):
            yield _differs(line, "rate", "lr", line["lr"], expected.hex())
            return


def _orders(steps: Sequence[Line], trainer: pl.Trainer) -> _Found:
    loader = trainer.train_dataloader
    if not isinstance(loader, KeyedLoader) or trainer.world_size > 1:
        return
    sampler, ids = loader.batch_sampler, getattr(loader.dataset.source, "ids", None)
    if ids is None:
        return
    before = sampler.epoch, sampler.start
    expected: list[str] = []
    try:
        drawn = None
        for line in steps:
            if line["epoch"] != drawn:
                drawn = line["epoch"]
                sampler.epoch, sampler.start = drawn, 0
                expected = [digest16("\n".join(ids[draw.index] for draw in batch)) for batch in sampler]
            found = expected[line["batch"]] if line["batch"] < len(expected) else None
            if line["ids"] is not None and found != line["ids"]:
                yield _differs(line, "order", "ids", line["ids"], found)
                return
    finally:
        sampler.epoch, sampler.start = before


# Checkpoints


def checkpoint_findings(
    name: str, checkpoint: Mapping[str, Any], step: int, settings: Settings, lines: Sequence[Line]
) -> Iterator[str]:
    """What a checkpoint says that its run cannot have written, in words.

    Args:
        name: Its file.
        checkpoint: Its content.
        step: The number of optimizer steps by its name.
        settings: The settings of the run.
        lines: The lines of the ledger, with digests of what was trained at the end of each epoch.
    """
    where = f"checkpoints/{name}"
    if checkpoint.get("global_step") != step:
        yield f"{where}: it has {checkpoint.get('global_step')} steps"
    yield from (f"{where}: {text}" for text in _optimizer(checkpoint, step, settings))
    end = [line for line in lines if line["kind"] == "epoch" and line["step"] == step]
    if end and name.startswith("epoch-") and end[-1]["epoch"] + 1 == int(name[6:10]):
        wrong = [part for part, digest in _digests(checkpoint, settings).items() if digest != end[-1].get(part)]
        yield from (f"{where}: the ledger has another digest of its {part} for this epoch" for part in wrong)


def _optimizer(checkpoint: Mapping[str, Any], step: int, settings: Settings) -> Iterator[str]:
    states = checkpoint.get("optimizer_states") or [{}]
    groups = states[0].get("param_groups") or []
    if not settings.groups:
        return
    if len(groups) != len(settings.groups):
        yield f"its optimizer has {len(groups)} groups of parameters instead of {len(settings.groups)}"
        return
    scheduled = (checkpoint.get("lr_schedulers") or [{}])[0]
    if settings.schedule is not None and [*scheduled.get("base_lrs", ())] != [*settings.rates]:
        yield f"its schedule has the rates {scheduled.get('base_lrs')} instead of {[*settings.rates]}"
    if settings.schedule is not None and scheduled.get("last_epoch") != step:
        yield f"its schedule is at step {scheduled.get('last_epoch')}"
    known = settings.schedule is not None and settings.rate(0) is not None
    factor = settings.schedule._factor(step) if known and settings.schedule is not None else None
    for number, (group, expected) in enumerate(zip(groups, settings.groups, strict=True)):
        recorded = _settings(group)
        for setting in sorted(recorded.keys() | expected.keys()):
            if _plain(recorded.get(setting)) != _plain(expected.get(setting)):
                a, b = recorded.get(setting), expected.get(setting)
                yield f"`{setting}` of group {number} of its optimizer is {a}, and the options give {b}"
        if factor is not None:
            rate = settings.rates[number] * factor
            if not math.isclose(float(group.get("lr", math.nan)), rate, rel_tol=_RATE, abs_tol=1e-300):
                yield f"the learning rate of group {number} of its optimizer is {group.get('lr')} instead of {rate}"


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _digests(checkpoint: Mapping[str, Any], settings: Settings) -> dict[str, str | None]:
    """The digests that the ledger has at the end of an epoch, of what the checkpoint holds."""
    trained = checkpoint.get("current_model_state") or checkpoint["state_dict"]
    state = {name.removeprefix("network."): each for name, each in trained.items() if name.startswith("network.")}
    if not settings.parameters or not state:
        return {}
    optimizers = {str(number): state for number, state in enumerate(checkpoint.get("optimizer_states", []))}
    parts: dict[str, Any] = {
        "weights": {name: tensor for name, tensor in state.items() if name in settings.parameters},
        "buffers": {name: tensor for name, tensor in state.items() if name not in settings.parameters},
        "optimizer": optimizers,
    }
    return {name: state_digest(part)[:16] for name, part in parts.items()}
