"""The process's global seeds and switches: each one named, with its reason."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from autotimm.errors import UsageError, require, sentence
from autotimm.repro.streams import RootSeed

__all__ = [
    "check_seed",
    "default_threads",
    "fixed_threads",
    "preserve_switches",
    "root_seed",
    "seed_everything",
    "set_deterministic",
]

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def check_seed(seed: object, owner: str = "seed_everything") -> int:
    """Return ``seed`` if every generator can take it.

    Raises:
        UsageError: If it is not an integer in [0, 2**32), the range that NumPy accepts, or is a bool.
    """
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) < 2**32:
        raise UsageError(
            sentence("seed", owner, "an integer in [0, 2**32)", seed, "Give such a number, for example 42.")
        )
    return seed if isinstance(seed, RootSeed) else int(seed)


def seed_everything(seed: int = 42, deterministic: bool = True) -> int:
    """Seed every global generator and choose between reproducible and fast kernels.

    Seeds Python's ``random``, NumPy's global generator and torch on the CPU and on every CUDA, MPS and XPU device.
    Nothing of autotimm's own reads these generators afterwards (see :mod:`autotimm.repro.streams`); code of yours that
    does is repeatable thanks to this function.

    It also sets ``PYTHONHASHSEED``. Python reads that variable when it starts, so it acts on *child* processes only:
    the hash order of sets of strings in the running process stays what it was. Start Python with the variable set if
    your own code depends on it.

    Args:
        seed: An integer in [0, 2**32).
        deterministic: Passed to :func:`set_deterministic`.

    Returns:
        The seed.

    Raises:
        UsageError: If the seed is out of range or not an integer. Nothing has been changed then.

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
    torch.cuda.manual_seed_all(seed)  # queued until CUDA starts, if it has not
    set_deterministic(deterministic)
    return seed


def set_deterministic(deterministic: bool) -> None:
    """Choose between kernels that give the same bits every time and those that are fastest.

    ========================================  =======  =======  ====================================================
    switch                                    ``True`` ``False`` why
    ========================================  =======  =======  ====================================================
    ``torch.backends.cudnn.deterministic``    True     False    cuDNN's fastest convolutions add in a varying order
    ``torch.backends.cudnn.benchmark``        False    True     timing picks another kernel on another day
    ``torch.use_deterministic_algorithms``    True     False    the same for torch's own CUDA kernels; raises if none
    ``fill_uninitialized_memory``             False    False    a debugging aid that costs time and changes no result
    ``CUBLAS_WORKSPACE_CONFIG``               :4096:8  as found cuBLAS varies without a fixed workspace
    ========================================  =======  =======  ====================================================

    The variable is read when CUDA starts; one that is already set is left as it is.
    """
    if deterministic:
        os.environ.setdefault(_CUBLAS, ":4096:8")
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    _set_fill(False)


def _set_fill(fill: bool) -> None:
    # A property of the module's class, which type checkers cannot see.
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextmanager
def preserve_switches() -> Iterator[None]:
    """Restore on leaving every switch that :func:`set_deterministic` sets."""
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    cublas = os.environ.get(_CUBLAS)
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        _set_fill(fill)
        if cublas is None:
            os.environ.pop(_CUBLAS, None)
        else:
            os.environ[_CUBLAS] = cublas


def root_seed(seed: int | None, owner: str) -> int:
    """The root of an object's streams: its seed, or for ``None`` one draw of 64 bits from Python's ``random``.

    ``random`` is seeded by the system in a fresh process, so that results vary, and fixed after
    :func:`seed_everything`, so that seeding by hand works. The draw is recorded by whoever asks for it.
    """
    return random.getrandbits(64) if seed is None else check_seed(seed, owner)


def default_threads() -> int:
    """The number of physical cores, at most 8.

    CPU results depend on the number of threads that add up a sum, so it must not follow a container's limit or the load
    of the machine. Beyond 8, small batches hardly gain.
    """
    siblings = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    physical = len({path.read_text() for path in siblings})
    return min(physical or os.cpu_count() or 1, 8)


@contextmanager
def fixed_threads(threads: int | None) -> Iterator[None]:
    """Compute with this many CPU threads inside, and as before outside; ``None`` changes nothing."""
    before = torch.get_num_threads()
    if threads is not None and threads != before:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
