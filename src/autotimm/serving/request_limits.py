"""What a client may ask of a server: how much, how fast, and how long it may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Limits", "RateLimit", "RefusedError"]

_MOST_CLIENTS = 10_000  # whose rates are remembered


@dataclass(frozen=True)
class Limits:
    """The limits of a server. Those on pixels and on memory while decoding are in :mod:`autotimm.data.image_io`.

    Attributes:
        max_bytes: Bytes of a request.
        max_images: Images of a request.
        rate: Requests of one address per second, on average; twice as many may come at once.
        patience: Seconds that a client may take to send a request.
        waiting: Images that may wait for the network.
        connections: Connections at the same time.
    """

    max_bytes: int = 20 * 2**20
    max_images: int = 32
    rate: float = 100.0
    patience: float = 30.0
    waiting: int = 256
    connections: int = 64


class RefusedError(Exception):
    """A request that gets no prediction.

    Attributes:
        status: The HTTP status.
        text: Why, as a sentence.
        headers: Headers of the answer.
    """

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class RateLimit:
    """Allows each address a number of requests per second: a bucket of tokens, which fills at that rate.

    Args:
        rate: Tokens per second; a bucket holds twice as many, and at least one.
        now: The clock, in seconds.

    Example:
        >>> seconds = iter([0.0, 0.0, 0.0, 0.5])
        >>> limit = RateLimit(1.0, lambda: next(seconds))
        >>> [limit.wait_of("::1") for _ in range(4)]
        [0.0, 0.0, 1.0, 0.5]
    """

    def __init__(self, rate: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._now = rate, now
        self._most = max(1.0, 2 * rate)
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def wait_of(self, address: str) -> float:
        """Take a token, and return 0; or return after how many seconds there will be one."""
        now = self._now()
        tokens, counted = self._buckets.pop(address, (self._most, now))
        tokens = min(self._most, tokens + (now - counted) * self._rate)
        allowed = tokens >= 1
        self._buckets[address] = (tokens - allowed, now)
        if len(self._buckets) > _MOST_CLIENTS:
            del self._buckets[next(iter(self._buckets))]  # the one that has asked for nothing the longest
        return 0.0 if allowed else (1 - tokens) / self._rate
