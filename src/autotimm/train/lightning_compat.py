"""What surrounds a trainer while it runs: variables of the environment, quiet, and failures in plain words.

Keyed steps for models that are not ours.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
import pickle
import re
import signal
import warnings
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from pytorch_lightning.utilities.exceptions import SIGTERMException

from autotimm.data.module import DataModule
from autotimm.errors import ModelError, RunError, UsageError
from autotimm.repro.streams import preserve_generators, reseed
from autotimm.tasks import Task

__all__ = [
    "KeyedSteps",
    "clear_failures",
    "clear_misuse",
    "defaults_from_environment",
    "on_streams_of",
    "quiet",
    "seeded_devices",
]


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def defaults_from_environment(init: Callable[..., None]) -> Callable[..., None]:
    """Fill arguments that were not given from ``PL_TRAINER_<NAME>`` and ``PL_AUTOTRAINER_<NAME>``; the latter wins.

    Lightning reads the variables of the class's own name only, so that ``PL_TRAINER_*`` would be lost on a subclass.
    """
    signature = inspect.signature(init)
    names = [*[*signature.parameters][1:-1], *inspect.signature(pl.Trainer).parameters]

    @wraps(init)
    def with_environment(self: Any, *args: Any, **kwargs: Any) -> None:
        signature.bind(self, *args, **kwargs)  # Python's own words for an argument too many, or given twice
        kwargs |= dict(zip(names, args, strict=False))
        for prefix in ("PL_AUTOTRAINER_", "PL_TRAINER_"):  # the first that has a value wins
            for name in names:
                if (text := os.environ.get(prefix + name.upper())) and name not in kwargs:
                    kwargs[name] = _literal(text)
        if kwargs.get("max_steps", -1) != -1 or kwargs.get("max_time") is not None:
            kwargs.setdefault("max_epochs", None)  # the default of ten epochs must not end such a run early
        init(self, **kwargs)

    # All arguments by name, for help(), editors and configuration files.
    own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    others = inspect.signature(pl.Trainer).parameters
    merged = [*own, *(others[name] for name in others if name not in signature.parameters)]
    with_environment.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    return with_environment


_WORDS = {"true": True, "false": False, "none": None, "null": None}


def _literal(text: str) -> Any:
    """What a variable says; shells and YAML files write words for true, false and nothing that Python does not know."""
    if text.strip().lower() in _WORDS:
        return _WORDS[text.strip().lower()]
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back tips, device lines and guesses of Lightning's; real warnings come through."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            # Training without validation data is a choice, val_split=0.
            warnings.filterwarnings("ignore", message="Total length of .* across ranks is zero.*")
            # Lightning 2.6 still asks torch's tree utilities in a way that newer torch calls deprecated.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=DeprecationWarning)
            # Outside of a fit only the averaged weights matter, which are what a checkpoint holds.
            warnings.filterwarnings("ignore", message=".*WeightAveraging callback, but loading a checkpoint outside")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def clear_misuse() -> Iterator[None]:
    """Say what Lightning refuses, such as a device that this machine lacks, as an error of usage."""
    try:
        yield
    except (MisconfigurationException, ValueError) as error:
        raise UsageError(f"The trainer's arguments must fit this machine and each other. {error}") from None


def _no_memory(error: Exception) -> str | None:
    """What a device says of its memory; ``None`` if the error is about something else.

    torch has an exception of its own for CUDA alone: CPUs and Apple's devices are known by their words.
    """
    words = re.compile(
        "(?:DefaultCPUAllocator: |MPS backend )?(?:can't allocate memory|not enough memory|out of memory).*"
    )
    if found := words.search(str(error)):
        if not isinstance(error, torch.OutOfMemoryError):
            return found.group().rstrip(". ")
    elif not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return None
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def clear_failures() -> Iterator[None]:
    """Turn what Lightning makes of Ctrl-C, and what the system says of full disks and memories, into plain words."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            # Lightning exits with 1 and leaves Ctrl-C switched off for the rest of the process.
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
        raise
    except (RuntimeError, MemoryError) as error:
        if (found := _no_memory(error)) is None:
            raise
        raise RunError(
            f"The device ran out of memory ({found}). Lower `batch_size` or `image_size`, or use precision bf16-mixed."
        ) from error
    except pickle.UnpicklingError as error:
        blocked = re.search(r"Trying to load unsupported GLOBAL \S+|Unsupported \w+ \S+", str(error))
        found = (blocked.group() if blocked else str(error).splitlines()[0]).rstrip(".")
        raise ModelError(
            "The checkpoint to go on from must hold tensors and plain data only. It is refused, since reading it could "
            f"run code or it is damaged ({found}). Use another one of the run."
        ) from None
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise RunError(f"The disk is full: {error}. What was written before is unharmed. Free some space.") from error


def seeded_devices(trainer: pl.Trainer) -> list[torch.device]:
    """The devices in this process whose generators a trainer's steps set.

    None where the training is done by processes that are started from this one: to look at a device here would open it,
    which a forked process cannot bear.
    """
    forks = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
    return [] if forks else [trainer.strategy.root_device]


@contextmanager
def on_streams_of(part: Task | DataModule, seed: int) -> Iterator[None]:
    """Let a task or a data module draw from a trainer's streams for as long as it runs."""
    before, part.run_seed = part.run_seed, seed
    try:
        yield
    finally:
        part.run_seed = before


class KeyedSteps(Callback):
    """Puts each step of a caller's own ``LightningModule`` on the run's streams; a :class:`Task` does it by itself.

    Args:
        seed: Root seed of the ``step`` stream.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._found = ExitStack()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Reseed by epoch, batch and rank."""
        if not isinstance(pl_module, Task):
            where = ("step", trainer.current_epoch, batch_idx, trainer.global_rank)
            reseed(self.seed, *where, devices=[pl_module.device])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the generators before validation draws from them."""
        if not isinstance(pl_module, Task):
            self._found.enter_context(preserve_generators([torch.device(pl_module.device)]))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the generators back as they were."""
        self._found.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give them back also if validation failed."""
        self._found.close()
