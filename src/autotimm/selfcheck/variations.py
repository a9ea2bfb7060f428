"""What is varied: the trainings, what their processes are given, and the checks that are read off them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CHECKS", "Check", "Variation", "World", "available_cores"]


@dataclass(frozen=True)
class Variation:
    """How one training differs from the plain one.

    Attributes:
        data: Arguments of the data module.
        trainer: Arguments of the trainer.
        pollute: Move the global generators somewhere else before each object is made, and before training.
        draws: Add a callback that draws from every global generator.
        metric: Measure one metric twice.
        prefetch: Batches that a worker prepares; 0 is torch's default.
        killed: Send SIGKILL to the process in the second epoch.
        resumed: Go on in the folder of the training that was killed.
        stream: The stream that gets another seed.
        processes: How many train together.
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
    """What surrounds a process.

    Attributes:
        hash_seed: ``PYTHONHASHSEED``, which decides the order of sets of strings.
        locale: Whether it runs in the locale ``C``, without UTF-8 mode.
        zone: Whether it runs in another time zone.
        elsewhere: Whether its working directory has another name, with links to what is in the caller's.
        moved: Whether the toy images lie in another folder.
        touched: Whether their times are others, and the order in which they were made.
        one_core: Whether it may use one core only.
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
    """One line of the table: two trainings that must leave the same ledger.

    Attributes:
        name: What is varied, in words.
        level: Which level of reproducibility it belongs to.
        trained: The training it is read off, see :data:`autotimm.selfcheck.processes.PLAN`.
        variation: The variation, for training it once more by itself.
        world: The one thing of the surroundings that is varied.
        hint: What is most often behind a difference, as a sentence; without one the ledgers and manifests say.
        against: The training that it is compared with.
        unread: What is behind it instead if the same samples have other pixels.
        metrics: Whether metrics are compared too; they are others where validation is.
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


_OWN = (
    "A data set or a transform keeps a generator or a counter of its own, of which each worker has a copy. Draw from "
    "torch, numpy.random or random inside of it: there they stand on the stream of the sample."
)
_GLOBAL = (
    "Something draws from a global generator where it stands on no stream, as before the constructor of the base or in "
    "a constructor of its own. Make weights in the network's factory, and draw in `step` or in a transform."
)
_ALIVE = "Something is kept in a module or a class and goes on with the next training: keep it in the object."
_ADDED = "It draws from a global generator, or changes what it looks at."
_STATE = "Something that training depends on is in no checkpoint: keep it in a buffer, or in `on_save_checkpoint`."
_SETS = "The order of a set or a hash decides something, as of class names: sort what you iterate over."
_LOCALE = "Text is read, sorted or written by the locale: give encoding='utf-8'."
_CORES = "Something is shared out by the number of free cores: fix that number."


def _without_validation() -> Variation:
    return Variation(trainer={"limit_val_batches": 0, "num_sanity_val_steps": 0})


def _workers(number: int, persistent: bool = True, prefetch: int = 0) -> Variation:
    return Variation(data={"num_workers": number, "persistent_workers": persistent}, prefetch=prefetch)


def available_cores() -> int:
    """How many cores this process may use; 1 where the system does not let a process choose."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else 1


_TWO = Variation(trainer={"threads": 2})

CHECKS: tuple[Check, ...] = (
    Check("another process", "R1", "restart"),
    Check("once more in one process", "R1", "again", hint=_ALIVE),
    Check("SIGKILL in the second epoch, and resume", "R2", "resumed", Variation(resumed=True), hint=_STATE,
          unread=_OWN),
    Check("1 worker", "R3", "workers1", _workers(1), hint=_OWN),
    Check("2 workers", "R3", "workers2", _workers(2), hint=_OWN),
    Check("2 workers that do not persist", "R3", "leaving", _workers(2, persistent=False), hint=_OWN),
    Check("2 workers that prefetch 5 batches", "R3", "prefetch", _workers(2, prefetch=5), hint=_OWN),
    Check("no validation", "R3", "unvalidated", _without_validation(), metrics=False, hint=_ADDED),
    Check("one more metric", "R3", "metric", Variation(metric=True), metrics=False, hint=_ADDED),
    Check("a callback that draws random numbers", "R3", "callback", Variation(draws=True), hint=_GLOBAL),
    Check("polluted generators", "R3", "polluted", Variation(pollute=True), hint=_GLOBAL),
    Check("PYTHONHASHSEED 1", "R3", "surrounded", world=World(hash_seed=1), hint=_SETS),
    Check("PYTHONHASHSEED 2", "R3", "hash", world=World(hash_seed=2), hint=_SETS),
    Check("another working directory", "R3", "surrounded", world=World(elsewhere=True),
          hint="The name of the working directory, or a path relative to it, decides something."),
    Check("the locale C", "R3", "surrounded", world=World(locale=True), hint=_LOCALE),
    Check("another time zone", "R3", "surrounded", world=World(zone=True), hint="The clock decides something."),
    Check("images in another folder", "R3", "surrounded", world=World(moved=True),
          hint="The full path of an image decides something: let ids be relative to the folder."),
    Check("other file times", "R3", "surrounded", world=World(touched=True),
          hint="The time of a file decides something, as an order: sort by name."),
    Check("one free core, 2 threads", "R3", "cores", _TWO, World(one_core=True), _CORES, against="threads"),
)  # fmt: skip
"""What must not matter, in the order of the table."""
