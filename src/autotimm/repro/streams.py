"""Named streams: every random number is a function of (root seed, stream name, position).

A global generator gives the n-th number to whoever asks n-th, so one more metric, one more worker or a restart moves
everybody else's numbers. A stream has a name and a position instead, and its numbers depend on nothing else::

    key(42, "augment", epoch, position, sample_id)

The idea is that of counter-based generators (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
and of JAX's ``fold_in``; the hash is BLAKE2b, so neighboring positions give unrelated numbers.
"""

from __future__ import annotations

import operator
import random
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from autotimm.constants import STREAMS
from autotimm.errors import require_choice

__all__ = ["RootSeed", "generator", "key", "own_streams", "preserve_generators", "reseed", "scope"]


class RootSeed(int):
    """A root seed with seeds of their own for single streams: to vary one source of chance and keep the others.

    It goes wherever a seed does, and is its plain number for everybody but :func:`key`. A configuration in Lightning's
    style keeps the number alone; ``stream_seeds`` of :class:`autotimm.FitConfig` keeps all, and so does a manifest.

    Args:
        seed: The root of all other streams.
        streams: Root seeds by stream: ``split``, ``init``, ``order``, ``augment``, ``step`` or ``eval``.

    Raises:
        UsageError: If there is no such stream: its seed would change nothing.

    Example:
        >>> seed = RootSeed(42, {"init": 7})
        >>> key(seed, "init") == key(7, "init"), key(seed, "order", 0) == key(42, "order", 0)
        (True, True)
    """

    streams: dict[str, int]

    def __new__(cls, seed: int, streams: Mapping[str, int] | None = None) -> RootSeed:
        """Make the number, and let it carry the others."""
        made = super().__new__(cls, seed)
        for name in streams or {}:
            require_choice("streams", "RootSeed", name, STREAMS)
        made.streams = {name: operator.index(number) for name, number in (streams or {}).items()}
        return made


def key(seed: int, *path: int | str) -> int:
    """Hash a root seed and a position to 64 bits.

    The encoding is unambiguous (each part carries its type and length), so ``("a", "bc")`` and ``("ab", "c")``, or
    ``1`` and ``"1"``, are different positions. Never add seeds and counters: seed 42 in epoch 1 would be seed 43 in
    epoch 0.

    torch's CPU generator reads 32 of the 64 bits, so that among a hundred thousand samples about one pair shares its
    numbers by chance (the birthday problem). That is harmless for training.

    Args:
        seed: The root seed, any integer; a :class:`RootSeed` may have another one for the stream.
        path: The stream's name, then the position in it.

    Returns:
        An integer in [0, 2**64).

    Example:
        >>> key(42, "order", 0) == key(42, "order", 0)
        True
        >>> key(42, "order", 1) == key(43, "order", 0)
        False
    """
    if isinstance(seed, RootSeed) and path:
        seed = seed.streams.get(str(path[0]), int(seed))
    digest = blake2b(digest_size=8)
    for part in (seed, *path):
        # surrogatepass: file names need not be UTF-8. index: refuses fractions, which int() would cut off.
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else b"%d" % operator.index(part)
        digest.update((b"s" if isinstance(part, str) else b"i") + struct.pack("<I", len(data)) + data)
    return int.from_bytes(digest.digest(), "little")


# Whose root seed a stream starts from; all others start from the trainer's.
_OWNERS = {"init": "task", "split": "data"}


def own_streams(**roots: int) -> dict[str, int]:
    """The streams with seeds of their own, for a manifest.

    Args:
        roots: Root seeds of ``trainer``, ``task`` and ``data``, as far as there are such.

    Example:
        >>> own_streams(trainer=42, task=RootSeed(42, {"init": 7, "order": 3}))
        {'init': 7}
    """
    found = {name: roots.get(_OWNERS.get(name, "trainer")) for name in STREAMS}
    return {name: one.streams[name] for name, one in found.items() if isinstance(one, RootSeed) and name in one.streams}


def generator(seed: int, *path: int | str) -> torch.Generator:
    """Make a torch CPU generator that stands at a position of a stream.

    Example:
        >>> order = torch.randperm(4, generator=generator(42, "order", 0))
        >>> order.tolist() == torch.randperm(4, generator=generator(42, "order", 0)).tolist()
        True
    """
    return torch.Generator().manual_seed(key(seed, *path))


def _device_generator(device: torch.device) -> torch.Generator | None:
    """The default generator of an accelerator, or ``None`` for the CPU and for devices that have none."""
    if device.type == "cuda":
        torch.cuda.init()
        index: int | None = device.index  # None for plain "cuda", which torch's annotation hides
        return torch.cuda.default_generators[torch.cuda.current_device() if index is None else index]
    if device.type == "xpu":
        torch.xpu.init()
        return torch.xpu.default_generators[device.index or 0]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return None


def _device_generators(devices: Iterable[torch.device]) -> list[torch.Generator]:
    return [found for device in devices if (found := _device_generator(device)) is not None]


def reseed(seed: int, *path: int | str, devices: Iterable[torch.device] = (), torch_only: bool = False) -> None:
    """Put the global generators at a position of a stream.

    Code that reads a global generator (dropout, a decoder, a user's own augmentation) thereby reads a named stream.

    Args:
        seed: The root seed.
        path: The stream's name, then the position in it.
        devices: Devices whose default generators are set too: CUDA dropout reads that of its device.
        torch_only: Leave ``random`` and NumPy alone, which saves most of the time.
    """
    number = key(seed, *path)
    # 3 µs; torch.manual_seed takes 130 µs, because it visits every kind of device.
    torch.default_generator.manual_seed(number)
    for found in _device_generators(devices):
        found.manual_seed(number)
    if not torch_only:
        random.seed(number)
        # torch reads the lower half. NumPy's generator is the same Mersenne twister: with the same half it would draw
        # the very same bits as torch.
        np.random.seed(number >> 32)


@contextmanager
def preserve_generators(devices: Iterable[torch.device] = (), torch_only: bool = False) -> Iterator[None]:
    """Restore the global generators on leaving, whatever was drawn inside."""
    generators = [torch.default_generator, *_device_generators(devices)]
    states = [found.get_state() for found in generators]
    python_state: Any = None if torch_only else random.getstate()
    numpy_state: Any = None if torch_only else np.random.get_state()
    try:
        yield
    finally:
        for found, state in zip(generators, states, strict=True):
            found.set_state(state)
        if not torch_only:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def scope(
    seed: int, *path: int | str, devices: Iterable[torch.device] = (), torch_only: bool = False
) -> Iterator[None]:
    """Run a block on a stream, and give the global generators back as they were found.

    Example:
        >>> with scope(42, "init", "head"):
        ...     a = torch.rand(2)
        >>> with scope(42, "init", "head"):
        ...     torch.equal(a, torch.rand(2))
        True
    """
    devices = list(devices)
    with preserve_generators(devices, torch_only):
        reseed(seed, *path, devices=devices, torch_only=torch_only)
        yield
