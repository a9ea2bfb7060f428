"""Bootstrap intervals, keyed: the same run gives the same interval on every machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotimm.repro.streams import key

__all__ = ["Estimate", "bootstrap", "bootstrap_share", "resampled"]

_LEVEL = 0.95


class Estimate(NamedTuple):
    """A figure with its interval.

    Attributes:
        value: The figure of all samples.
        low: The lower end of its 95 % interval.
        high: The upper end.
        resamples: How many resamples the interval is made of; 0 if they say nothing.
    """

    value: float
    low: float
    high: float
    resamples: int

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval: of samples that are all alike, resamples are all the same."""
        return self.resamples > 0 or self.low < self.high

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]" if self.has_interval else f"{self.value:.3f}"


def resampled(samples: int, resamples: int, random: np.random.Generator) -> NDArray[np.int64]:
    """How often each sample is drawn in each resample, ``int64`` (R, N): as many draws as samples, with replacement.

    Args:
        samples: Number of samples N.
        resamples: Number of resamples R.
        random: Where the draws come from.
    """
    draws = random.integers(0, samples, (resamples, samples))
    draws += np.arange(resamples)[:, None] * samples
    return np.bincount(draws.ravel(), minlength=resamples * samples).reshape(resamples, samples)


def bootstrap(
    figure: Callable[[NDArray[Any]], NDArray[Any]], samples: int, seed: int, *path: str, resamples: int = 1000
) -> Estimate:
    """Estimate a figure and its 95 % percentile interval over resampled images (Efron, "Bootstrap methods", 1979).

    Args:
        figure: Computes the figure (R,) from weights (R, N), how often each sample counts.
        samples: Number of samples N, at least 1.
        seed: Root seed.
        path: The position in the stream.
        resamples: Number of resamples.

    Returns:
        The estimate; without an interval if all resamples give the same figure.

    Example:
        >>> correct = np.array([1, 1, 1, 0])
        >>> bootstrap(lambda weights: weights @ correct / 4, 4, 42, "val").value
        0.75
    """
    value = float(figure(np.ones((1, samples), np.int64))[0])
    random = np.random.default_rng(key(seed, "bootstrap", *path))
    at_once = max(1, (1 << 22) // samples)  # the size of a block decides no draw: they are made one after the other
    blocks = [min(at_once, resamples - at) for at in range(0, resamples, at_once)]
    values = np.concatenate([figure(resampled(samples, block, random)) for block in blocks])
    values = values[np.isfinite(values)]
    if not len(values) or values.min() == values.max():
        return Estimate(value, value, value, 0)
    low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]).tolist()
    return Estimate(value, low, high, resamples)


def bootstrap_share(right: NDArray[Any], seed: int, *path: str) -> Estimate:
    """Estimate the share of samples that are right.

    Where all of them are, or none, no resample differs, and the interval is the exact one (Clopper and Pearson, "The
    use of confidence or fiducial limits", Biometrika 1934).

    Args:
        right: Whether each sample is right, zeros and ones (N,).
        seed: Root seed.
        path: The position in the stream.

    Example:
        >>> print(bootstrap_share(np.ones(4), 42, "val"))
        1.000 [0.398, 1.000]
    """
    samples = len(right)
    figure = bootstrap(lambda weights: weights @ right / samples, samples, seed, *path)
    width = 1 - ((1 - _LEVEL) / 2) ** (1 / samples)
    if figure.value == 1:
        return figure._replace(low=1 - width)
    return figure._replace(high=width) if figure.value == 0 else figure
