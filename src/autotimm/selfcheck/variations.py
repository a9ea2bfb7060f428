"""What is varied between trainings: their arguments, the environment of their processes, and the list of checks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CHECKS", "Check", "Variation", "World", "available_cores"]


@dataclass(frozen=True)
class Variation:
    """How one training differs from the reference training.

    Attributes:
        data: Arguments of the data module.
        trainer: Arguments of the trainer.
        pollute: Change the state of the global generators before each object is made, and before training.
        draws: Add a callback that draws from every global generator.
        metric: Compute one metric twice.
        prefetch: Batches that a worker prepares in advance; 0 for torch's default.
        killed: Send SIGKILL to the process in the second epoch.
        resumed: Resume in the run folder of the killed training.
        stream: The random stream that gets another seed.
        processes: Number of training processes.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    pollute: bool = False
    draws: bool = False
    metric: bool = False
    prefetch: int = 0
    killed: bool = False
    resumed: bool = False
    stream: str = ""
    processes: int = 1


@dataclass(frozen=True)
class World:
    """The environment of a process.

    Attributes:
        hash_seed: ``PYTHONHASHSEED``, which decides the iteration order of sets of strings.
        locale: Whether the locale is ``C``, without UTF-8 mode.
        zone: Whether the time zone is another.
        elsewhere: Whether the working directory is another, with links to the files of the caller's.
        moved: Whether the toy images are in another folder.
        touched: Whether the toy images have other file times.
        one_core: Whether the process may use one core only.
    """

    hash_seed: int = 0
    locale: bool = False
    zone: bool = False
    elsewhere: bool = False
    moved: bool = False
    touched: bool = False
    one_core: bool = False


@dataclass(frozen=True, eq=False)
class Check:
    """One line of the report: two trainings that must leave the same ledger.

    Attributes:
        name: What is varied, in words.
        level: The reproducibility level that it belongs to.
        trained: Name of the training that varies it, see :data:`autotimm.selfcheck.processes.PLAN`.
        variation: The variation, for another training that varies nothing else.
        world: The part of the environment that is varied.
        hint: The usual cause of a difference, as a sentence; if empty, it is derived from ledgers and manifests.
        against: Name of the training to compare with.
        unread: The cause instead of ``hint`` if the same samples have other pixels.
        metrics: Whether metrics are compared too; not where the validation differs by design.
    """

    name: str
    level: str
    trained: str
    variation: Variation = Variation()
    world: World = World()
    hint: str = ""
    unread: str = ""
    against: str = "reference"
    metrics: bool = True


_OWN_GENERATOR = (
    "A data set or a transform keeps a generator or a counter of its own, of which each worker has a copy. Draw from "
    "torch, numpy.random or random inside it: they are seeded for each sample there."
)
_UNSEEDED_DRAW = (
    "Something draws from a global generator where it is not seeded, such as before the base class's constructor runs. "
    "Initialize weights in the network's factory, and draw in `step` or in a transform."
)
_SHARED_STATE = "State in a module or a class survives into the next training: keep it in the object."
_SIDE_EFFECT = "It draws from a global generator, or changes what it observes."
_UNSAVED_STATE = "Training depends on state that is in no checkpoint: keep it in a buffer, or in `on_save_checkpoint`."
_SET_ORDER = "Something depends on the order of a set or on a hash, such as class names: sort what you iterate over."
_LOCALE = "Text is read, sorted or written by the locale: give encoding='utf-8'."
_CORE_COUNT = "Something depends on the number of available cores: fix that number."


def _without_validation() -> Variation:
    return Variation(trainer={"limit_val_batches": 0, "num_sanity_val_steps": 0})


def _workers(number: int, persistent: bool = True, prefetch: int = 0) -> Variation:
    return Variation(data={"num_workers": number, "persistent_workers": persistent}, prefetch=prefetch)


def available_cores() -> int:
    """The number of cores this process may use; 1 on systems where a process cannot choose its cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else 1


_TWO_THREADS = Variation(trainer={"threads": 2})

CHECKS: tuple[Check, ...] = (
    Check("another process", "R1", "restart"),
    Check("once more in one process", "R1", "again", hint=_SHARED_STATE),
    Check("SIGKILL in the second epoch, and resume", "R2", "resumed", Variation(resumed=True), hint=_UNSAVED_STATE,
          unread=_OWN_GENERATOR),
    Check("1 worker", "R3", "workers1", _workers(1), hint=_OWN_GENERATOR),
    Check("2 workers", "R3", "workers2", _workers(2), hint=_OWN_GENERATOR),
    Check("2 non-persistent workers", "R3", "leaving", _workers(2, persistent=False), hint=_OWN_GENERATOR),
    Check("2 workers that prefetch 5 batches", "R3", "prefetch", _workers(2, prefetch=5), hint=_OWN_GENERATOR),
    Check("no validation", "R3", "unvalidated", _without_validation(), metrics=False, hint=_SIDE_EFFECT),
    Check("one more metric", "R3", "metric", Variation(metric=True), metrics=False, hint=_SIDE_EFFECT),
    Check("a callback that draws random numbers", "R3", "callback", Variation(draws=True), hint=_UNSEEDED_DRAW),
    Check("polluted generators", "R3", "polluted", Variation(pollute=True), hint=_UNSEEDED_DRAW),
    Check("PYTHONHASHSEED 1", "R3", "surrounded", world=World(hash_seed=1), hint=_SET_ORDER),
    Check("PYTHONHASHSEED 2", "R3", "hash", world=World(hash_seed=2), hint=_SET_ORDER),
    Check("another working directory", "R3", "surrounded", world=World(elsewhere=True),
          hint="Something depends on the name of the working directory, or on a path relative to it."),
    Check("the locale C", "R3", "surrounded", world=World(locale=True), hint=_LOCALE),
    Check("another time zone", "R3", "surrounded", world=World(zone=True), hint="Something depends on the clock."),
    Check("images in another folder", "R3", "surrounded", world=World(moved=True),
          hint="Something depends on the full path of an image: make ids relative to the folder."),
    Check("other file times", "R3", "surrounded", world=World(touched=True),
          hint="Something depends on file times, such as an order: sort by name."),
    Check("one free core, 2 threads", "R3", "cores", _TWO_THREADS, World(one_core=True), hint=_CORE_COUNT,
          against="threads"),
)  # fmt: skip
"""What must not matter, in the order of the report."""
