"""Seeds of single streams, as they are written: ``init=7,order=3``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotimm.config.kinds import Kind, Whole
from autotimm.errors import nearest

__all__ = ["STREAMS", "Seeds", "StreamSeeds", "stream_seeds"]

# Every named stream that decides something of a run, in the order in which a run first draws from it.
STREAMS = ("split", "init", "order", "augment", "step", "eval")
_BITS = 32


@dataclass(frozen=True)
class StreamSeeds(Kind):
    """Pairs of a stream and its seed: text, a list of such pairs, or a mapping. Read into words like ``init=7``."""

    must: str = f"pairs such as init=7,order=3 with {', '.join(STREAMS[:-1])} or {STREAMS[-1]}"
    metavar: str = "init=N,..."

    def read(self, value: object) -> tuple[str, ...]:
        """Split, check and sort the pairs, so that equal choices are written alike."""
        found: dict[str, int] = {}
        for name, text in _pairs(value):
            number = int(text) if isinstance(text, str) else text
            if name not in STREAMS or name in found or isinstance(number, bool) or not isinstance(number, int):
                raise ValueError
            if number < 0 or number.bit_length() > _BITS:
                raise ValueError
            found[name] = number
        if not found:
            raise ValueError
        return tuple(f"{name}={found[name]}" for name in STREAMS if name in found)

    def suggest(self, value: object) -> str:
        """Name the streams nearest to the first unknown one."""
        names = [name for name, _ in _pairs(value) if name not in STREAMS]
        return nearest(names[0], STREAMS) if names else "Seeds are whole numbers in [0, 2**32), one per stream."


@dataclass(frozen=True)
class Seeds(Kind):
    """How many seeds, or which: ``5``, or ``1,2,3``."""

    must: str = "a number of seeds, 2 or more, or different seeds such as 1,2,3"
    metavar: str = "N|A,B,..."

    def read(self, value: object) -> int | tuple[int, ...]:
        """Convert a number, text with commas, or a list of numbers."""
        if isinstance(value, str) and "," in value:
            value = [int(word) for word in value.split(",") if word.strip()]
        if isinstance(value, (list, tuple, range)):
            one = Whole(bits=_BITS)
            seeds = tuple(one.read(seed) for seed in value)
            if len(seeds) < 2 or len({*seeds}) < len(seeds):
                raise ValueError
            return seeds
        return Whole(2).read(value)


def _pairs(value: object) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(name), number) for name, number in value.items()]
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        return []  # no pairs at all, which is refused
    parts = [word.partition("=") for word in words]
    return [(name.strip(), number.strip()) for name, _, number in parts]


def stream_seeds(words: tuple[str, ...] | None) -> dict[str, int]:
    """The seed of each stream that has one of its own.

    Example:
        >>> stream_seeds(("init=7", "order=3"))
        {'init': 7, 'order': 3}
    """
    return {name: int(number) for name, _, number in (word.partition("=") for word in words or ())}
