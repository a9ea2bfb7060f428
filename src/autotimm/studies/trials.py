"""The runs of a study: their plan, with the seeds of random streams, and the state of their folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotimm.config import FitConfig, read_yaml
from autotimm.config.value_types import Seeds, Whole, stream_seeds
from autotimm.constants import STREAMS
from autotimm.errors import ModelError, UsageError, require, require_choice, sentence
from autotimm.records.atomic import write_text
from autotimm.records.digest import config_digest
from autotimm.records.manifest import Manifest
from autotimm.records.readers import read_text
from autotimm.repro.seed import default_threads
from autotimm.runs.run import Run
from autotimm.serialization import read_json

__all__ = [
    "ALL",
    "VARIED",
    "Plan",
    "Trial",
    "finished",
    "has_test_data",
    "is_tested",
    "keep_config",
    "make_plan",
    "run_status",
]

ALL = "all"
VARIED = (ALL, *STREAMS[:-1])  # without `eval`, which affects only layers that are random in evaluation
_TRAINING = ("init", "order", "augment", "step")
# Options that are not part of the studied configuration: runs may differ in them, or the study sets them itself.
_NOT_STUDIED = {
    "out", "name", "progress", "num_workers", "cache", "cache_size", "check", "seed", "stream_seeds", "keep",
    "checkpoint_every", "loggers",
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One run of a study.

    Attributes:
        name: The name of its folder; equal names are the same run.
        config: Its configuration.
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
        seeds: The seeds, in order.
        threads: CPU threads per run.
        groups: The runs by configuration (``a`` or ``b``) and varied streams, one run per seed. A run may belong to
            several groups.
        changed: The options that differ between A and B, as ``name: (A's value, B's value)``.
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
        """The varied streams of the main group, which the table shows."""
        return [vary for arm, vary in self.groups if arm == "a"][-1]

    @property
    def single(self) -> list[str]:
        """The streams that are varied alone, to find their shares of the variance."""
        return [vary for arm, vary in self.groups if arm == "a"][:-1]


def make_plan(
    a: FitConfig, b: FitConfig | None, *, seeds: object, vary: Sequence[str], decompose: bool, jobs: int,
    out: str | Path, name: str | None,
) -> Plan:  # fmt: skip
    """Plan the runs of a study.

    Args:
        a: The configuration.
        b: Another configuration to compare with.
        seeds: Their number, or the seeds themselves; see :class:`autotimm.config.value_types.Seeds`.
        vary: Random streams that get the seeds, or ``all``.
        decompose: Also vary each of the streams alone.
        jobs: Number of runs that share the CPU.
        out: Parent folder of studies.
        name: Name of the study's folder; ``None`` derives it from the data's name and the configurations.

    Raises:
        UsageError: If there is nothing to vary, or nothing to compare.
    """
    require(a.seed is not None, "seed", "a study", "a whole number", "none", "Leave it out: a study gives the seeds.")
    if decompose and b is not None:
        raise UsageError("The `vs` of a study must be left out with `decompose`. Make two studies.")
    groups = _varied_groups(vary, decompose)
    changed = {} if b is None else _changes(a, b)
    if b is not None and not changed:
        raise UsageError("The `vs` of a study must change an option that is studied. It changes none: seeds, names and "
                         "places are not studied. Change for example `lr`.")  # fmt: skip
    configs = {"a": a} if b is None else {"a": a, "b": b}
    folder = Path(out) / (name or f"{_source(a)}-{_digest(configs.values())}")
    require(folder.name == (name or folder.name), "name", "a study", "a folder's name", name, "Give `out` for a path.")
    threads = a.threads or _recorded_threads(folder) or max(1, default_threads() // jobs)
    seed_list = _seed_list(seeds, a.seed or 0)
    trials = {
        (arm, "+".join(streams)): tuple(_trial(arm, config, streams, seed, folder, threads) for seed in seed_list)
        for arm, config in configs.items()
        for streams in groups
    }
    return Plan(folder, seed_list, threads, trials, changed)


def _seed_list(seeds: object, first: int) -> tuple[int, ...]:
    """The seeds that are given, or that are counted from the configuration's seed."""
    kind = Seeds()
    try:
        count_or_seeds = kind.read(seeds)
    except (TypeError, ValueError):
        raise UsageError(sentence("seeds", "a study", kind.must, seeds, "Give for example 5.")) from None
    if isinstance(count_or_seeds, tuple):
        return count_or_seeds
    return tuple((first + index) % 2**32 for index in range(count_or_seeds))


def _varied_groups(vary: Sequence[str], decompose: bool) -> list[tuple[str, ...]]:
    """The varied streams of each group of runs; the last group is the main one."""
    for stream in vary:
        require_choice("vary", "a study", stream, VARIED)
    require(vary == (ALL,) or ALL not in vary, "vary", "a study", "all, or single streams", vary, "Leave out `all`.")
    if not decompose:
        return [tuple(vary)]
    streams = VARIED[1:] if vary == (ALL,) else tuple(vary)
    several = len(streams) > 1
    require(several, "vary", "a study", "several streams to decompose", vary[0], f"Give {','.join(_TRAINING)}.")
    return [*((stream,) for stream in streams), streams]


def _trial(arm: str, config: FitConfig, streams: tuple[str, ...], seed: int, folder: Path, threads: int) -> Trial:
    root, own = config.seed, stream_seeds(config.stream_seeds)
    if streams == (ALL,):
        root, own = seed, {}
    else:
        own |= dict.fromkeys(streams, seed)
    # Streams with the root seed are left out: the run is the same, and must have the same name.
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
    return {
        name: (ours[name], others[name]) for name in ours if ours[name] != others[name] and name not in _NOT_STUDIED
    }


def _source(config: FitConfig) -> str:
    source = config.path or config.train_csv or config.dataset_name or "study"
    return Path(source).resolve().stem if Path(source).is_file() else Path(source).resolve().name


def _digest(configs: Iterable[FitConfig]) -> str:
    """A short digest for the folder's name, so that the same command resumes its study."""
    studied = [
        {name: value for name, value in config.as_dict().items() if name not in _NOT_STUDIED} for config in configs
    ]
    return config_digest(studied)[:6]


def _recorded_threads(folder: Path) -> int | None:
    """The threads of a resumed study: they change bits, so they must not follow the number of jobs or the machine."""
    file = folder / "study.json"
    if not file.exists():
        return None
    try:
        return int(Whole(1).read(read_json(file)["threads"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = str(error) or "it has no number of threads"
        raise ModelError(
            f"The file {file} must hold the record of the study. It is damaged ({why}). Give another `name`."
        ) from None


def keep_config(trial: Trial, folder: Path) -> Path:
    """Write the configuration file of a run; return its path.

    Raises:
        UsageError: If the study has a run of this name with another configuration.
    """
    file = folder / "configs" / f"{trial.name}.yaml"
    if file.exists():
        before = FitConfig.layered([(f"file {file}", read_yaml(str(file))[0])])
        changed = _changes(before, trial.config)
        if changed:
            first, (recorded, wanted) = next(iter(changed.items()))
            raise UsageError(f"The study {folder} was started with {first}: {recorded}. Got {wanted} instead. "
                             "Give another `name`, or none.")  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, trial.config.to_yaml())
    return file


def finished(folder: Path) -> bool:
    """Whether nothing is left to do for the run in a folder."""
    return run_status(folder) == "finished" and (not has_test_data(folder) or is_tested(folder))


def run_status(folder: Path) -> str | None:
    """The recorded status of the run in a folder; ``None`` if there is none, or its manifest is damaged."""
    try:
        return str(Manifest.load(folder / "manifest.json").results.get("status"))
    except ModelError:
        return None


def has_test_data(folder: Path) -> bool:
    """Whether the run in a folder has test images.

    Raises:
        ModelError: If its list of splits cannot be read.
    """
    text = read_text(folder / "splits.csv", "the list of splits")
    return any(line.rstrip().endswith(",test") for line in text.splitlines())


def is_tested(folder: Path) -> bool:
    """Whether the run in a folder has test metrics."""
    return any(name.startswith("test/") for name in Run(folder).metrics)
