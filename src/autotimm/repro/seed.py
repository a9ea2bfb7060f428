"""Seed the global generators, choose deterministic or fast kernels, and fix the number of CPU threads."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import torch

from autotimm.errors import UsageError, require, sentence
from autotimm.repro.streams import RootSeed

__all__ = [
    "as_drawn",
    "check_seed",
    "default_threads",
    "fixed_threads",
    "most_on_cpu",
    "preserve_switches",
    "root_seed",
    "seed_everything",
    "set_deterministic",
]

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_DRAWN_BITS = 64
_DRAWN: ContextVar[int | None] = ContextVar("drawn", default=None)


def check_seed(seed: object, owner: str = "seed_everything") -> int:
    """Return ``seed`` as a Python integer if every global generator accepts it.

    Args:
        seed: The value to check. A :class:`~autotimm.repro.RootSeed` is returned as it is.
        owner: The class or function that takes the seed, for the message.

    Raises:
        UsageError: If it is a bool or not an integer in [0, 2**32), the range of NumPy's generator.
    """
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) < 2**32:
        raise UsageError(sentence("seed", owner, "an integer in [0, 2**32)", seed, "Give for example 42."))
    return seed if isinstance(seed, RootSeed) else int(seed)


def seed_everything(seed: int = 42, deterministic: bool = True) -> int:
    """Seed every global generator and choose between deterministic and fast kernels.

    Seeds Python's ``random``, NumPy's global generator, and torch's generators on the CPU and on every CUDA, MPS and
    XPU device. autotimm itself draws from named streams (see :mod:`autotimm.repro.streams`), not from these generators;
    seeding them makes your own code repeatable as well.

    Also sets ``PYTHONHASHSEED``, for child processes: Python reads the variable only at startup, so the iteration order
    of sets of strings in the running process does not change. If your code depends on that order, set the variable
    before you start Python.

    Args:
        seed: An integer in [0, 2**32).
        deterministic: Whether to use deterministic kernels; see :func:`autotimm.repro.seed.set_deterministic`.

    Returns:
        The seed.

    Raises:
        UsageError: If ``seed`` is not an integer in [0, 2**32), or ``deterministic`` is not a bool. Nothing is changed
            then.

    Example:
        >>> seed_everything(42)
        42
        >>> first = torch.randn(5)
        >>> _ = seed_everything(42)
        >>> torch.equal(first, torch.randn(5))
        True
    """
    seed = check_seed(seed)
    require(isinstance(deterministic, bool), "deterministic", "seed_everything", "a bool", deterministic, "Give True.")
    os.environ["PYTHONHASHSEED"] = str(seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # the CPU, and MPS and XPU devices
    torch.cuda.manual_seed_all(seed)  # deferred until CUDA is initialized
    set_deterministic(deterministic)
    return seed


def set_deterministic(deterministic: bool) -> None:
    """Choose between deterministic kernels, which give the same bits every time, and the fastest ones.

    ========================================  ========  =========  =====================================================
    switch                                    ``True``  ``False``  reason
    ========================================  ========  =========  =====================================================
    ``torch.backends.cudnn.deterministic``    True      False      cuDNN's fastest convolutions sum in a varying order
    ``torch.backends.cudnn.benchmark``        False     True       timing may select another kernel in the next run
    ``torch.use_deterministic_algorithms``    True      False      the same for torch's kernels; raises if there is none
    ``fill_uninitialized_memory``             False     False      a debugging aid that costs time, changes no result
    ``CUBLAS_WORKSPACE_CONFIG``               :4096:8   unchanged  cuBLAS results vary without a fixed workspace
    ========================================  ========  =========  =====================================================

    ``CUBLAS_WORKSPACE_CONFIG`` is read when CUDA is initialized. A value that is already set is kept.

    Args:
        deterministic: Which of the two columns to apply.
    """
    if deterministic:
        os.environ.setdefault(_CUBLAS, ":4096:8")
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    _set_fill(False)


def _set_fill(fill: bool) -> None:
    # fill_uninitialized_memory is a property of the module's class, which type checkers do not see.
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextmanager
def preserve_switches() -> Iterator[None]:
    """Restore on exit every switch that :func:`set_deterministic` sets."""
    cudnn_switches = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    cublas = os.environ.get(_CUBLAS)
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn_switches
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        _set_fill(fill)
        if cublas is None:
            os.environ.pop(_CUBLAS, None)
        else:
            os.environ[_CUBLAS] = cublas


def root_seed(seed: int | None, owner: str) -> int:
    """Return the root seed of an object's streams: its ``seed``, or a draw from Python's ``random`` for ``None``.

    In a fresh process ``random`` is seeded by the operating system, so results vary from run to run; after
    :func:`seed_everything` the draw repeats. The caller records the draw, so that even such a run can be replayed.

    Args:
        seed: An integer in [0, 2**32), or ``None`` to draw one of 64 bits.
        owner: The class that takes the seed, for messages.

    Raises:
        UsageError: If the seed is neither ``None`` nor an integer in [0, 2**32).
    """
    if seed is not None:
        return check_seed(seed, owner)
    recorded = _DRAWN.get()
    return random.getrandbits(_DRAWN_BITS) if recorded is None else recorded


@contextmanager
def as_drawn(recorded: object) -> Iterator[None]:
    """Give an object of a recorded run, made in this block with ``seed=None``, the root seed that it has drawn.

    Args:
        recorded: The root seed in the manifest. What cannot have been drawn, as in a damaged one, is left alone.
    """
    drawn = recorded if isinstance(recorded, int) and not isinstance(recorded, bool) else None
    token = _DRAWN.set(drawn if drawn is not None and 0 <= drawn < 2**_DRAWN_BITS else None)
    try:
        yield
    finally:
        _DRAWN.reset(token)


def default_threads() -> int:
    """Return the default number of CPU threads: the number of physical cores, at most 8.

    The number of threads decides the order of summation and thereby the last bits of a result. It must therefore not
    depend on a container's CPU limit, on the process's affinity or on the load of the machine. More than 8 threads
    hardly speed up small batches.
    """
    siblings = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    physical = len({path.read_text() for path in siblings})
    return min(physical or os.cpu_count() or 1, 8)


def most_on_cpu() -> int:
    """Return the maximum number of threads, or of loading processes: 4 per CPU core of this machine, at least 8.

    More are slower in any case, and some ten thousand make the system refuse to start them. At least 8, so that any
    run that was made with the default number of threads can be replayed.
    """
    return max(4 * (os.cpu_count() or 1), 8)


@contextmanager
def fixed_threads(threads: int | None) -> Iterator[None]:
    """Set the number of torch's CPU threads for a block, and restore it on exit.

    Args:
        threads: Number of threads; ``None`` keeps the current one.
    """
    before = torch.get_num_threads()
    if threads is not None and threads != before:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
