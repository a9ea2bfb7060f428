"""Replaying a run up to the line in which it differs from another one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from autotimm.confirm.factors import Setup, switched
from autotimm.confirm.operators import Operator, OperatorLog
from autotimm.errors import AutotimmError
from autotimm.rebuild import Rebuilt, rebuild
from autotimm.replay import EnoughError, changed_files, play
from autotimm.repro.compare import Comparer, Difference
from autotimm.repro.digest import state_digest
from autotimm.repro.ledger import Line
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.train.declare import surroundings
from autotimm.train.folder import RunFolder
from autotimm.train.recorder import Recorder, weight_digests
from autotimm.train.store import CheckpointStore

__all__ = ["Case", "Played", "Start", "nearest_start", "now", "replay_up_to"]

_Place = tuple[int, int]  # epoch and batch, both from 0


class Start(NamedTuple):
    """Where a replay begins.

    Attributes:
        lines: How many lines of the ledger were written before.
        checkpoint: The file; ``None`` for the start of the run.
    """

    lines: int
    checkpoint: Path | None

    def __str__(self) -> str:
        return f"from {self.checkpoint.name}" if self.checkpoint is not None else "from the start"


@dataclass(frozen=True)
class Case:
    """Which run is replayed, and what it is compared with.

    Attributes:
        replayed: The run's folder.
        other: The folder of the run whose bits are to come back; the same one for a verification.
        recorded: The ledger of the other one.
        goal: The line of it that differs, from 0.
        data: Where the data is now, if it was moved.
        workers: Loading processes instead of the recorded number.
    """

    replayed: Path
    other: Path
    recorded: Sequence[Line]
    goal: int
    data: str | Path | None = None
    workers: int | None = None


@dataclass
class Played:
    """What came of a replay.

    Attributes:
        difference: Its first difference from the other run; ``None`` if it has the other's bits.
        problem: Why it could not be made; empty if it was.
        states: The digest of weights and buffers before each step.
        operators: The operators of the step that was asked for.
    """

    difference: Difference | None = None
    problem: str = ""
    states: dict[_Place, str] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)

    @property
    def restored(self) -> bool:
        """Whether it has the bits of the other run."""
        return self.difference is None and not self.problem


class _Listener:
    """Compares each line with the other run's, and ends the replay at the goal or at the first difference."""

    def __init__(self, case: Case, start: Start) -> None:
        self.comparer, self.at, self.goal = Comparer(case.recorded), start.lines, case.goal
        self.difference: Difference | None = None
        self.over = False

    def __call__(self, line: Line) -> None:
        if self.over:
            return
        self.difference = self.comparer.take(line)
        self.at += line["kind"] != "gap"  # with which a ledger begins that goes on from a checkpoint
        self.over = self.difference is not None or self.at > self.goal
        if self.over:
            raise EnoughError

    def finish(self) -> Difference | None:
        return self.difference if self.over else self.comparer.finish()


class _Watch(Callback):
    """Has every line written as soon as it can be, notes the weights, and records the operators of one step."""

    def __init__(self, played: Played, traced: _Place | None) -> None:
        self.played, self.traced = played, traced
        self._log, self._open = OperatorLog(), ExitStack()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
        for one in callbacks:
            if isinstance(one, Recorder):
                one.look()  # it waits for 32 steps otherwise; raises at the goal
        place = trainer.current_epoch, batch_idx
        self.played.states[place] = state_digest(weight_digests(pl_module))
        if place == self.traced:
            self._log.phase = "forward"
            self._open.enter_context(self._log.recording())

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Any) -> None:
        self._log.phase = "backward"

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self._log.phase = "optimizer"

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        self._open.close()
        self.played.operators = self._log.operators


def replay_up_to(case: Case, setup: Setup, start: Start, traced: _Place | None = None) -> Played:
    """Make a run again in a scratch folder, up to the goal or to its first difference from the other one.

    Args:
        case: Which run, and what to compare it with.
        setup: With which options and switches.
        start: Where to begin.
        traced: Epoch and batch of the step whose operators are recorded.
    """
    played = Played()
    with tempfile.TemporaryDirectory(prefix="autotimm-explain-") as scratch, switched(setup.switches):
        try:
            made = _make(case, setup, Path(scratch), start)
            moved = {"path", "data.data_dir"} & setup.options.keys()
            if found := [] if moved else changed_files(case.replayed, made):
                played.problem = f"The data is not what it was: {'; '.join(found[:3])}."
                return played
            listener = _Listener(case, start)
            # The first of them: the step is over before others look at it, which is no part of it.
            made.trainer.callbacks.insert(0, _Watch(played, traced))  # type: ignore[attr-defined]  # set at run time
            play(made, listener, start.checkpoint)
        except (AutotimmError, RuntimeError) as error:  # RuntimeError: torch, of a kernel that it lacks
            played.problem = str(error)
            return played
    played.difference = listener.finish()
    return played


def _make(case: Case, setup: Setup, scratch: Path, start: Start) -> Rebuilt:
    place = RunFolder(scratch / "replay", scratch)
    return rebuild(
        case.replayed, place, data=case.data, workers=case.workers, weights_needed=start.checkpoint is None,
        changes=setup.options,
    )  # fmt: skip


def now(case: Case) -> dict[str, Any]:
    """Versions, hardware, threads and switches that a replay of the run meets here.

    Raises:
        AutotimmError: If the run cannot be rebuilt.
    """
    with tempfile.TemporaryDirectory(prefix="autotimm-explain-") as scratch:
        return surroundings(_make(case, Setup({}, {}), Path(scratch), Start(0, None)).trainer)


def nearest_start(case: Case) -> Start:
    """The last checkpoint of the replayed run before which both runs were certainly equal, or the start.

    At the end of an epoch the ledger has digests of all that a checkpoint holds. In the middle of one it has not: there
    the checkpoints of both runs are compared.
    """
    store = CheckpointStore(case.replayed / "checkpoints")
    ends = {*store.epochs().values()}
    for path in reversed(store.files()):
        twin = case.other / "checkpoints" / path.name
        if not store.whole(path) or (path not in ends and not twin.is_file()):
            continue
        checkpoint = read_checkpoint(path)
        lines = checkpoint.get("callbacks", {}).get(Recorder.__qualname__, {}).get("lines")
        if lines is None or lines > case.goal:
            continue
        if path in ends or twin == path or _state(checkpoint) == _state(read_checkpoint(twin)):
            return Start(lines, path)
    return Start(0, None)


def _state(checkpoint: dict[str, Any]) -> str:
    optimizers = {str(number): one for number, one in enumerate(checkpoint.get("optimizer_states", []))}
    return state_digest({"weights": checkpoint["state_dict"], "optimizers": optimizers})
