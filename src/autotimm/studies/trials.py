"""What a study consists of: which runs, with which seeds of which streams, in which folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotimm.config import FitConfig, read_yaml
from autotimm.config.value_types import Seeds, stream_seeds
from autotimm.constants import STREAMS
from autotimm.errors import UsageError, require, require_choice, sentence
from autotimm.records.atomic import write_text
from autotimm.records.digest import config_digest
from autotimm.repro.seed import default_threads

__all__ = ["ALL", "VARIED", "Plan", "Trial", "make_plan"]

ALL = "all"
VARIED = (ALL, *STREAMS[:-1])  # the last, `eval`, decides nothing of a run but random layers in its evaluation
_TRAINING = ("init", "order", "augment", "step")
# What runs of one study may differ in, or what is the study's own: it is no part of what is studied.
_OUTSIDE = {"out", "name", "progress", "num_workers", "seed", "stream_seeds", "keep", "checkpoint_every", "loggers"}


@dataclass(frozen=True)
class Trial:
    """One run of a study.

    Attributes:
        name: The name of its folder; equal names are one run.
        config: What it is trained with.
    """

    name: str
    config: FitConfig

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.out) / self.name


@dataclass(frozen=True)
class Plan:
    """All runs of a study.

    Attributes:
        folder: The study's folder.
        seeds: The seeds that are tried, in their order.
        threads: CPU threads per run.
        groups: The runs by configuration (``a`` or ``b``) and by what varies in them, one run per seed. A run may
            belong to several groups.
        changed: What B has in other ways than A, as ``name: (A's value, B's value)``.
    """

    folder: Path
    seeds: tuple[int, ...]
    threads: int
    groups: dict[tuple[str, str], tuple[Trial, ...]]
    changed: dict[str, tuple[Any, Any]]

    @property
    def trials(self) -> list[Trial]:
        """Every run once."""
        return [*{trial.name: trial for group in self.groups.values() for trial in group}.values()]

    @property
    def whole(self) -> str:
        """What varies in the runs that the table is about."""
        return [vary for arm, vary in self.groups if arm == "a"][-1]

    @property
    def single(self) -> list[str]:
        """The streams that were varied alone, to find their shares."""
        return [vary for arm, vary in self.groups if arm == "a"][:-1]


def make_plan(
    a: FitConfig, b: FitConfig | None, *, seeds: object, vary: Sequence[str], decompose: bool, jobs: int,
    out: str | Path, name: str | None,
) -> Plan:  # fmt: skip
    """Lay out a study.

    Args:
        a: The configuration.
        b: Another one to compare it with.
        seeds: How many, or which; see :class:`autotimm.config.value_types.Seeds`.
        vary: Streams that the seeds are given to, or ``all``.
        decompose: Vary each of the streams alone too.
        jobs: How many runs share the CPU.
        out: Where studies are.
        name: The study's folder there; ``None`` makes one from the data's name and the configurations.

    Raises:
        UsageError: If there is nothing to vary, or nothing to compare.
    """
    require(a.seed is not None, "seed", "a study", "a whole number", "none", "Leave it out: a study gives the seeds.")
    require(not (decompose and b), "vs", "a study", "left out with decompose", "a file", "Make two studies.")
    groups = _streams(vary, decompose)
    changed = {} if b is None else _changes(a, b)
    require(b is None or bool(changed), "vs", "a study", "another configuration", "an equal one", "Change an option.")
    configs = {"a": a} if b is None else {"a": a, "b": b}
    folder = Path(out) / (name or f"{_source(a)}-{_digest(configs.values())}")
    require(folder.name == (name or folder.name), "name", "a study", "a folder's name", name, "Give `out` for a path.")
    threads = a.threads or _recorded_threads(folder) or max(1, default_threads() // jobs)
    numbers = _numbers(seeds, a.seed or 0)
    made = {
        (arm, "+".join(streams)): tuple(_trial(arm, config, streams, seed, folder, threads) for seed in numbers)
        for arm, config in configs.items()
        for streams in groups
    }
    return Plan(folder, numbers, threads, made, changed)


def _numbers(seeds: object, first: int) -> tuple[int, ...]:
    """The seeds themselves: those given, or so many from the configuration's own on."""
    kind = Seeds()
    try:
        found = kind.read(seeds)
    except (TypeError, ValueError):
        raise UsageError(sentence("seeds", "a study", kind.must, seeds, "Give for example 5.")) from None
    return found if isinstance(found, tuple) else tuple((first + index) % 2**32 for index in range(found))


def _streams(vary: Sequence[str], decompose: bool) -> list[tuple[str, ...]]:
    """What varies in each group of runs; the last group is that of the table."""
    for one in vary:
        require_choice("vary", "a study", one, VARIED)
    require(vary == (ALL,) or ALL not in vary, "vary", "a study", "all, or single streams", vary, "Leave out `all`.")
    if not decompose:
        return [tuple(vary)]
    streams = VARIED[1:] if vary == (ALL,) else tuple(vary)
    fine = len(streams) > 1
    require(fine, "vary", "a study", "several streams to decompose", vary[0], f"Give {','.join(_TRAINING)}.")
    return [*((one,) for one in streams), streams]


def _trial(arm: str, config: FitConfig, streams: tuple[str, ...], seed: int, folder: Path, threads: int) -> Trial:
    root, own = config.seed, stream_seeds(config.stream_seeds)
    if streams == (ALL,):
        root, own = seed, {}
    else:
        own |= dict.fromkeys(streams, seed)
    # A stream whose seed is the root seed needs no word: it is the same run by another name.
    own = {stream: own[stream] for stream in STREAMS if own.get(stream, root) != root}
    by_seed: dict[int, list[str]] = {}
    for stream, number in own.items():
        by_seed.setdefault(number, []).append(stream)
    parts = [f"seed-{root}", *(f"{'-'.join(names)}-{number}" for number, names in by_seed.items())]
    name = "-".join(["vs", *parts] if arm == "b" else parts)
    values = {
        "seed": root,
        "stream_seeds": own or None,
        "threads": config.threads or threads,
        "out": str(folder / "runs"),
        "name": name,
        "progress": False,
    }
    return Trial(name, config.resolved(values, "study"))


def _changes(a: FitConfig, b: FitConfig) -> dict[str, tuple[Any, Any]]:
    ours, others = a.as_dict(), b.as_dict()
    return {name: (ours[name], others[name]) for name in ours if ours[name] != others[name] and name not in _OUTSIDE}


def _source(config: FitConfig) -> str:
    source = config.path or config.train_csv or config.dataset_name or "study"
    return Path(source).resolve().stem if Path(source).is_file() else Path(source).resolve().name


def _digest(configs: Iterable[FitConfig]) -> str:
    """A few digits for a folder's name: the same command finds its study again."""
    plain = [{name: value for name, value in one.as_dict().items() if name not in _OUTSIDE} for one in configs]
    return config_digest(plain)[:6]


def _recorded_threads(folder: Path) -> int | None:
    """The threads of a study that goes on: bits depend on them, and must not on the number of jobs or the machine."""
    file = folder / "study.json"
    return int(json.loads(file.read_text())["threads"]) if file.exists() else None


def keep_config(trial: Trial, folder: Path) -> Path:
    """Write the file that a run is made from; return it.

    Raises:
        UsageError: If the study has a run of that name with another configuration.
    """
    file = folder / "configs" / f"{trial.name}.yaml"
    if file.exists():
        before = FitConfig.layered([(f"file {file}", read_yaml(str(file))[0])])
        changed = _changes(before, trial.config)
        if changed:
            first, (recorded, wanted) = next(iter(changed.items()))
            raise UsageError(f"The study {folder} was made with {first}: {recorded}. Got {wanted} instead. "
                             "Give another `name`, or none.")  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, trial.config.to_yaml())
    return file
