"""What autotimm changes about Lightning: arguments from the environment, messages, errors, and keyed steps."""

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
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from autotimm.data.loading_processes import killed_process
from autotimm.data.module import DataModule
from autotimm.errors import ModelError, RunError, UsageError
from autotimm.repro.streams import preserve_generators, reseed
from autotimm.tasks import Task
from autotimm.train.callbacks.step_hooks import without_idle_step_hooks

__all__ = [
    "of_first_process",
    "KeyedSteps",
    "NoProfiler",
    "attached",
    "clear_failures",
    "clear_misuse",
    "defaults_from_environment",
    "on_streams_of",
    "quiet",
    "seeded_devices",
]


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_Init = TypeVar("_Init", bound=Callable[..., None])
_Value = TypeVar("_Value")


@contextmanager
def attached(trainer: pl.Trainer, callback: Callback) -> Iterator[None]:
    """Let a trainer call a callback within the block, after those that it has."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning
    callbacks.append(callback)
    try:
        yield
    finally:
        callbacks.remove(callback)


def defaults_from_environment(init: _Init) -> _Init:
    """Fill arguments that were not given from ``PL_TRAINER_<NAME>`` and ``PL_AUTOTRAINER_<NAME>``; the latter wins.

    Lightning reads the variables of the class's own name only, so that a subclass would ignore ``PL_TRAINER_*``. The
    signature that is shown has the arguments of Lightning's trainer in place of ``**kwargs``.
    """
    signature = inspect.signature(init)
    names = [*[*signature.parameters][1:-1], *inspect.signature(pl.Trainer).parameters]

    @wraps(init)
    def with_environment(self: Any, *args: Any, **kwargs: Any) -> None:
        signature.bind(self, *args, **kwargs)  # Python's own error for an argument too many, or given twice
        kwargs |= dict(zip(names, args, strict=False))
        for prefix in ("PL_AUTOTRAINER_", "PL_TRAINER_"):  # the first that has a value wins
            for name in names:
                if (text := os.environ.get(prefix + name.upper())) and name not in kwargs:
                    kwargs[name] = _literal(text)
        if kwargs.get("max_steps", -1) != -1 or kwargs.get("max_time") is not None:
            kwargs.setdefault("max_epochs", None)  # the default of ten epochs must not end such a run early
        init(self, **kwargs)

    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    others = inspect.signature(pl.Trainer).parameters
    merged = [*own, *(others[name] for name in others if name not in signature.parameters)]
    with_environment.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    return cast(_Init, with_environment)


_WORDS = {"true": True, "false": False, "none": None, "null": None}


def _literal(text: str) -> Any:
    """The value of a variable; shells and YAML files have other words for true, false and none than Python."""
    if text.strip().lower() in _WORDS:
        return _WORDS[text.strip().lower()]
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Lightning's tips, device lines and guesses; other warnings are shown."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            # Training without validation data is a choice, val_split=0.
            warnings.filterwarnings("ignore", message="Total length of .* across ranks is zero.*")
            # Lightning 2.6 calls torch's tree utilities in a way that newer releases of torch deprecate.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=DeprecationWarning)
            # Outside of a fit only the averaged weights are needed, which are those in a checkpoint.
            warnings.filterwarnings("ignore", message=".*WeightAveraging callback, but loading a checkpoint outside")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def clear_misuse() -> Iterator[None]:
    """Raise a :class:`UsageError` for what Lightning refuses, such as a device that this machine lacks."""
    try:
        yield
    # TypeError: a value of another type, which Lightning passes on. ModuleNotFoundError: the library of a device.
    except (MisconfigurationException, ValueError, TypeError, ModuleNotFoundError) as error:
        raise UsageError(f"The trainer's arguments must fit this machine and each other. {error}") from None


# torch has no exception classes for these.
_ONE_VALUE = "Expected more than 1 value per channel when training"
_OVERFLOW = "value cannot be converted to type float without overflow"


def _no_memory(error: Exception) -> str | None:
    """The message of an error about a device's memory; ``None`` for any other error.

    torch has an exception class for CUDA alone: errors of CPUs and Apple's devices are recognized by their messages.
    """
    pattern = re.compile(
        "(?:DefaultCPUAllocator: |MPS backend )?(?:can't allocate memory|not enough memory|out of memory).*"
    )
    if match := pattern.search(str(error)):
        if not isinstance(error, torch.OutOfMemoryError):
            return match.group().rstrip(". ")
    elif not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return None
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def clear_failures() -> Iterator[None]:
    """Restore Ctrl-C, and turn failures of the machine, or of a step that could not work, into errors of ours."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            # Lightning exits with 1 and leaves Ctrl-C switched off for the rest of the process.
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
        raise
    except (RuntimeError, MemoryError, ValueError) as error:
        if _ONE_VALUE in str(error):
            raise UsageError(
                "A training batch of one image is too small for batch normalization: at this image size the network's "
                "last features have one pixel, and no variance. Give a larger `batch_size` or `image_size`."
            ) from error
        if _OVERFLOW in str(error):
            raise UsageError(
                "A number of the optimizer is too large for the 32-bit floats of the weights. Lower `lr`, "
                "`weight_decay` or the number that you have given."
            ) from error
        if (killed := killed_process(error)) is not None:
            earlier = error.__context__
            if isinstance(earlier, RunError):  # of one that was killed before, which says what became of the run
                raise earlier from None
            raise killed from error
        if isinstance(error, ValueError) or (reason := _no_memory(error)) is None:
            raise
        raise RunError(
            f"The device ran out of memory ({reason}). Lower `batch_size` or `image_size`, or use precision bf16-mixed."
        ) from error
    except pickle.UnpicklingError as error:
        blocked = re.search(r"Trying to load unsupported GLOBAL \S+|Unsupported \w+ \S+", str(error))
        reason = (blocked.group() if blocked else str(error).splitlines()[0]).rstrip(".")
        raise ModelError(
            "The checkpoint to resume from must hold tensors and plain data only. It is refused, since reading it "
            f"could run code or it is damaged ({reason}). Use another one of the run."
        ) from None
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise RunError(f"The disk is full: {error}. What was written before is unharmed. Free some space.") from error


def seeded_devices(trainer: pl.Trainer) -> list[torch.device]:
    """The devices in this process whose generators a trainer's steps set.

    None where processes that this one forks or spawns do the training: a device must not be opened before a fork.
    """
    starts_processes = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
    return [] if starts_processes else [trainer.strategy.root_device]


@contextmanager
def on_streams_of(part: Task | DataModule, seed: int) -> Iterator[None]:
    """Let a task or a data module draw from a trainer's streams while it runs."""
    before, part.run_seed = part.run_seed, seed
    try:
        yield
    finally:
        part.run_seed = before


def of_first_process(find: Callable[[], _Value]) -> _Value:
    """What the first of the processes that have trained together finds; every one of them must ask."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not together or torch.distributed.get_world_size() == 1:
        return find()
    shared: list[Any] = [find() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(shared)
    first: _Value = shared[0]
    return first


_NOTHING = nullcontext("")


class NoProfiler(PassThroughProfiler):
    """Profiles nothing, as Lightning's default does, in less time: Lightning enters it fifty times per step."""

    def profile(self, action_name: str) -> AbstractContextManager[str]:  # type: ignore[override]  # no generator
        """Return a context that does nothing."""
        return _NOTHING


@without_idle_step_hooks
class KeyedSteps(Callback):
    """Puts each step of a caller's own ``LightningModule`` on the run's streams; a :class:`Task` does so by itself.

    Args:
        seed: Root seed of the ``step`` stream.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._before_validation = ExitStack()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Reseed by epoch, batch and rank."""
        if not isinstance(pl_module, Task):
            position = ("step", trainer.current_epoch, batch_idx, trainer.global_rank)
            reseed(self.seed, *position, devices=[pl_module.device])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the generators before validation draws from them."""
        if not isinstance(pl_module, Task):
            self._before_validation.enter_context(preserve_generators([torch.device(pl_module.device)]))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the generators."""
        self._before_validation.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the generators also if validation has failed."""
        self._before_validation.close()
