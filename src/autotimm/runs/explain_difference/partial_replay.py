"""Replay a run, with options, threads and switches set back, up to the line in which it differs from another run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from autotimm.config import FitConfig, options, silent_names
from autotimm.errors import AutotimmError
from autotimm.records.bit_factors import FACTORS, Place
from autotimm.records.causes import ManifestDifference, differences
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.records.digest import state_digest
from autotimm.records.ledger import Line
from autotimm.records.ledger_diff import Comparer, Difference
from autotimm.records.manifest import Manifest
from autotimm.records.replay_versions import require_replayable
from autotimm.records.run_folder import RunFolder
from autotimm.runs.explain_difference.operators import Operator, OperatorLog
from autotimm.runs.replaying import play
from autotimm.runs.restore import Rebuilt, read_config, read_manifest, rebuild
from autotimm.runs.verify import changed_files
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.train.callbacks.recorder import EnoughError, Recorder, weight_digests
from autotimm.train.lightning_compat import of_first_process
from autotimm.train.run_description import surroundings

__all__ = [
    "Case",
    "Factor",
    "Played",
    "Setup",
    "Start",
    "nearest_start",
    "now",
    "options_apart",
    "recorded_switches",
    "replay_up_to",
    "surroundings_apart",
    "switched",
    "unsettable",
]


class Factor(NamedTuple):
    """A difference of two runs that a replay can set to either value.

    Attributes:
        name: Its name in words.
        here: Its value in the replayed run.
        there: Its value in the other run.
        option: What :func:`autotimm.runs.restore.rebuild` calls it; empty for a switch.
        switch: Its name among the switches of the manifest; empty for an option.
    """

    name: str
    here: Any
    there: Any
    option: str = ""
    switch: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({_shown(self.there)} instead of {_shown(self.here)})"


class Setup(NamedTuple):
    """How a replay is made.

    Attributes:
        options: Options to replace by other values than recorded.
        switches: Switches to set, by their names in the manifest.
    """

    options: Mapping[str, Any]
    switches: Mapping[str, Any]

    def with_(self, factors: Iterable[Factor]) -> Setup:
        """This setup with factors set back."""
        factors = list(factors)
        options = {factor.option: factor.there for factor in factors if factor.option}
        switches = {factor.switch: factor.there for factor in factors if factor.switch}
        return Setup({**self.options, **options}, {**self.switches, **switches})


def options_apart(replayed: Path, other: Path, manifests: tuple[Manifest, Manifest]) -> list[Factor]:
    """The options in which two runs differ; none if only one of them was made from options."""
    here, there = (_options(read_config(folder)) for folder in (replayed, other))
    same_data = manifests[0].inputs.get("data") == manifests[1].inputs.get("data")
    silent = silent_names(same_data=same_data)
    factors = []
    for key in here:
        name = key.rpartition(".")[2]
        if key in there and name not in silent and here[key] != there[key]:
            declared = options().get(key)
            # An argument of an object is called what it is there, an option what it is on the command line.
            words = _words("inputs", f"config.{key}", here[key], there[key])
            words = words if declared is None else declared.words or f"the option `{key}`"
            factors.append(Factor(words, here[key], there[key], key))
    for name in ("lr", "batch_size"):  # found by a search, which no option tells
        a, b = (manifest.decisions.get(name) for manifest in manifests)
        known = any(factor.option.rpartition(".")[2] in (name, "data_dir", "path") for factor in factors)
        if a != b and None not in (a, b) and not known:
            factors.append(Factor(_words("decisions", name, a, b), a, b, name))
    return factors


def _options(config: FitConfig | dict[str, Any]) -> dict[str, Any]:
    """Options by name; the arguments of objects with their part, as ``model.lr``."""
    if isinstance(config, FitConfig):
        return config.as_dict()
    parts = {name: config[name] for name in ("model", "data", "trainer") if name in config}
    return {
        f"{part}.{name}": value
        for part, given in parts.items()
        for name, value in ((given if part == "trainer" else given.get("init_args")) or {}).items()
    }


def _words(section: str, name: str, here: Any, there: Any) -> str:
    return ManifestDifference(section, name, here, there).words.partition(": ")[0]


def _shown(value: Any) -> str:
    words = {None: "none", True: "on", False: "off"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# The switches that a process may set at any time. Those of `deterministic` are not here: the option decides them.
_RESTORABLE = {factor.name: factor for factor in FACTORS if factor.section == "switches" and factor.restore is not None}
_RESTORABLE_KEYS = {factor.key for factor in _RESTORABLE.values()}


def recorded_switches(manifest: Manifest) -> dict[str, Any]:
    """The switches of a run that a replay can set."""
    recorded: dict[str, Any] = manifest.environment.get("switches", {})
    return {name: recorded[name] for name in _RESTORABLE if recorded.get(name) is not None}


def surroundings_apart(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Factor]:
    """Threads and switches in which two recorded environments differ."""
    factors = []
    a, b = here.get("threads"), there.get("threads")
    if a != b and b is not None:
        factors.append(Factor(_words("environment", "threads", a, b), a, b, "threads"))
    for name, switch in _RESTORABLE.items():
        a, b = (environment.get("switches", {}).get(name) for environment in (here, there))
        if a != b and None not in (a, b):
            factors.append(Factor(switch.words, a, b, switch=name))
    return factors


@contextmanager
def switched(values: Mapping[str, Any]) -> Iterator[None]:
    """Set switches inside, and give them back outside."""
    # In the order of the table: some switches set others, which come after them.
    before = {name: _read(name) for name in _RESTORABLE}
    try:
        _restore({name: value for name, value in values.items() if before[name] is not None})
        yield
    finally:
        _restore({name: value for name, value in before.items() if value is not None})


def _read(name: str) -> Any:
    return _RESTORABLE[name].read(Place(1, []))


def _restore(values: Mapping[str, Any]) -> None:
    for name, factor in _RESTORABLE.items():
        if factor.restore is not None and name in values and _read(name) != values[name]:
            factor.restore(values[name])


# Nor can code, callbacks and the rules of another version.
_FIXED_SECTIONS = ("versions", "libraries", "variables", "hardware")
_FIXED = (
    "inputs.code",
    "environment.package",
    "environment.git",
    "environment.callbacks",
    "environment.replay_versions",
)


def unsettable(here: Manifest, there: Manifest) -> list[str]:
    """What differs and cannot be set back while Python runs: versions, variables, hardware and code."""
    names = []
    for difference in differences(here, there):
        factor = difference.factor
        # A variable whose switch can be set back is as good as set back itself.
        fixed = (
            factor is not None and factor.section in _FIXED_SECTIONS and not _RESTORABLE_KEYS.intersection(factor.sets)
        )
        if fixed or difference.path.startswith(_FIXED):
            names.append(difference.words.partition(": ")[0])
    return list(dict.fromkeys(names))


_Place = tuple[int, int]  # epoch and batch, both from 0


class Start(NamedTuple):
    """Where a replay begins.

    Attributes:
        lines: The number of lines of the ledger before it.
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
        other: The folder of the run whose bits are to be restored; the same folder for a verification.
        recorded: The ledger of the other run.
        goal: The number of its line that differs, from 0.
        data: The folder of the data, if it was moved.
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
    """The result of a replay.

    Attributes:
        difference: Its first difference from the other run; ``None`` if it has the same bits.
        problem: Why the replay failed; empty if it did not.
        states: The digest of weights and buffers before each step.
        operators: The operators of the traced step.
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
        self.at += line["kind"] != "gap"  # the first line of a ledger that continues from a checkpoint
        self.over = self.difference is not None or self.at > self.goal
        if self.over:
            raise EnoughError

    def finish(self) -> Difference | None:
        return self.difference if self.over else self.comparer.finish()


class _Watch(Callback):
    """Lets every line be written at once, keeps digests of the weights, and records the operators of one step."""

    def __init__(self, played: Played, traced: _Place | None) -> None:
        self.played, self.traced = played, traced
        self._log, self._open = OperatorLog(), ExitStack()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
        for callback in callbacks:
            if isinstance(callback, Recorder):
                callback.look()  # it waits for 32 steps otherwise; raises at the goal
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
    """Replay a run in a temporary folder, up to the goal or to its first difference from the other run.

    Args:
        case: The run, and what to compare it with.
        setup: The options and switches to set.
        start: Where to begin.
        traced: Epoch and batch, from 0, of the step whose operators are recorded.
    """
    played = Played()
    with tempfile.TemporaryDirectory(prefix="autotimm-explain-") as scratch, switched(setup.switches):
        try:
            rebuilt = _rebuild(case, setup, Path(scratch), start)
            moved = {"path", "data.data_dir"} & setup.options.keys()
            if changed := [] if moved else changed_files(case.replayed, rebuilt):
                played.problem = f"The data is not what it was: {'; '.join(changed[:3])}."
                return played
            listener = _Listener(case, start)
            # In front of the others: what they do after a step is no part of it.
            rebuilt.trainer.callbacks.insert(0, _Watch(played, traced))  # type: ignore[attr-defined]  # set at run time
            play(rebuilt, listener, start.checkpoint)
        except (AutotimmError, RuntimeError) as error:  # RuntimeError: torch lacks a kernel
            played.problem = str(error)
            return played
    played.difference = listener.finish()
    return of_first_process(lambda: played)


def _rebuild(case: Case, setup: Setup, scratch: Path, start: Start) -> Rebuilt:
    require_replayable(read_manifest(case.replayed).environment, case.replayed)
    place = RunFolder(scratch / "replay", scratch)
    return rebuild(
        case.replayed, place, data=case.data, workers=case.workers, weights_needed=start.checkpoint is None,
        changes=setup.options,
    )  # fmt: skip


def now(case: Case) -> dict[str, Any]:
    """The surroundings of a replay of the run in this process.

    Raises:
        AutotimmError: If the run cannot be rebuilt.
    """
    with tempfile.TemporaryDirectory(prefix="autotimm-explain-") as scratch:
        return surroundings(_rebuild(case, Setup({}, {}), Path(scratch), Start(0, None)).trainer)


def nearest_start(case: Case) -> Start:
    """The last checkpoint of the replayed run up to which both runs were certainly equal, or the start.

    At the end of an epoch the ledger has digests of everything in a checkpoint. In the middle of an epoch it has not:
    there the checkpoints of both runs are compared.
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
    optimizers = {str(number): state for number, state in enumerate(checkpoint.get("optimizer_states", []))}
    return state_digest({"weights": checkpoint["state_dict"], "optimizers": optimizers})
