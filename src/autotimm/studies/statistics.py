"""Statistics of a few values: their spread, a paired comparison, and shares of the variance.

SciPy provides the distributions and the permutation test. It is imported only when something is computed, since the
import takes a quarter of a second that a mistyped command should not cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotimm.errors import require

__all__ = ["Paired", "Share", "Summary", "compare_pairs", "least_p", "seeds_needed", "share_variance", "summarize"]

CONFIDENCE = 0.95
POWER = 0.8
_ALPHA = 1 - CONFIDENCE
_MOST_EXACT = 17  # seeds; 2**17 choices of signs take half a second
_RANDOM_SIGNS = 100_000
_MOST_SEEDS = 100_000
_ROUNDING = 2.0**-20  # of values: metrics are computed with 32 bits, so that equal differences differ in the last ones


@dataclass(frozen=True)
class Summary:
    """The spread of one metric over the seeds.

    Attributes:
        n: Number of seeds.
        mean: Their mean.
        sd: Their standard deviation, with n - 1 degrees of freedom.
        low: Lower end of the 95 % interval of the mean, by Student's t distribution.
        high: Its upper end.
        min: The smallest value.
        max: The largest.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    min: float
    max: float


def summarize(values: Sequence[float]) -> Summary:
    """Mean, standard deviation, 95 % interval of the mean, minimum and maximum.

    The interval (Student, "The probable error of a mean", Biometrika 1908) assumes roughly normally distributed values.
    It is the interval of the mean, and says little about the next single value.

    Args:
        values: The values of a metric, one per seed, in any unit; at least two.

    Raises:
        UsageError: If there are fewer than two, or if one is not finite.

    Example:
        >>> summary = summarize([0.80, 0.82, 0.84])
        >>> f"{summary.mean:.3f} ± {summary.sd:.3f}, {summary.low:.3f} to {summary.high:.3f}"
        '0.820 ± 0.020, 0.770 to 0.870'
    """
    from scipy import stats  # lazy, see above

    require(len(values) > 1, "values", "summarize", "at least two", len(values), "Train with another seed.")
    array = np.asarray(values, dtype=np.float64)
    finite = bool(np.isfinite(array).all())
    require(finite, "values", "summarize", "finite numbers", [*values], "Leave the metric out.")
    mean, sd = float(array.mean()), _sd(array)
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1)) * sd / math.sqrt(len(array))
    return Summary(len(array), mean, sd, mean - margin, mean + margin, float(array.min()), float(array.max()))


def _sd(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """The standard deviation; exactly 0 for equal values, whose mean may have a rounding error."""
    return 0.0 if (values == values[0]).all() else float(values.std(ddof=1))


@dataclass(frozen=True)
class Paired:
    """The comparison of B with A, seed by seed.

    Attributes:
        difference: The spread of B - A.
        p: The two-sided p-value: the probability of a mean difference at least as large if A and B were
            interchangeable.
        exact: Whether all choices of signs were counted, not a random sample of them.
        least_p: The smallest p-value that is possible with this number of seeds.
        needed: The number of seeds with which a difference of this size and spread would be detected four times out of
            five; ``None`` if the difference is 0, or if the number exceeds 100,000.
    """

    difference: Summary
    p: float
    exact: bool
    least_p: float
    needed: int | None


def compare_pairs(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Compare two configurations that were trained with the same seeds, by a permutation test on the signs.

    If A and B were interchangeable, each difference could as well have had the other sign. The test (Fisher, "The
    design of experiments", 1935, chapter 3) counts how many of the 2**n choices of signs give a mean at least as far
    from zero, where means that differ by no more than the rounding of 32-bit values are equally far. It assumes nothing
    about the distribution. With n seeds, p is at least 2 / 2**n: five seeds never reach 0.05. With more than 17 seeds,
    100,000 choices are drawn with a fixed seed.

    Args:
        a: The values of a metric with A, one per seed.
        b: The values with B, for the same seeds in the same order.

    Raises:
        UsageError: If the numbers of values differ, or are less than two, or if a value is not finite.

    Example:
        >>> comparison = compare_pairs([0.80, 0.81, 0.79, 0.80], [0.82, 0.83, 0.82, 0.81])
        >>> f"{comparison.difference.mean:+.3f}, p = {comparison.p:g}, at best {comparison.least_p:g}"
        '+0.020, p = 0.125, at best 0.125'
    """
    from scipy import stats  # lazy, see above

    require(len(a) == len(b), "b", "compare_pairs", "as many values as a", len(b), "Train both with the same seeds.")
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    gaps = second - first
    difference = summarize(gaps.tolist())
    exact = len(gaps) <= _MOST_EXACT
    observed, rounding = abs(difference.mean), _ROUNDING * float(np.abs([first, second]).max())

    def distance(signed: Any, axis: int = -1) -> Any:
        """The distance of the mean from zero; the observed one where only rounding tells it apart."""
        distances = np.abs(signed.mean(axis=axis))
        return np.where(np.abs(distances - observed) <= rounding, observed, distances)

    test = stats.permutation_test(
        (gaps,), distance, permutation_type="samples", vectorized=True, batch=2**14, alternative="greater",
        n_resamples=np.inf if exact else _RANDOM_SIGNS, rng=np.random.default_rng(0),
    )  # fmt: skip
    needed = seeds_needed(difference.mean, difference.sd)
    return Paired(difference, float(test.pvalue), exact, least_p(len(gaps)), needed)


def least_p(n: int) -> float:
    """The smallest p-value of the permutation test of n differences.

    Example:
        >>> least_p(5), least_p(6)
        (0.0625, 0.03125)
    """
    return max(2.0 ** (1 - n), 0.0 if n <= _MOST_EXACT else 1 / (_RANDOM_SIGNS + 1))


def seeds_needed(difference: float, sd: float) -> int | None:
    """The number of seeds that detect a paired difference with a power of 80 % at a significance level of 5 %.

    From the power of the paired t test (Cohen, "Statistical power analysis for the behavioral sciences", 1988). The
    result is as uncertain as ``sd``, which a few seeds estimate only roughly. It is at least 6: with fewer seeds the
    permutation test never reaches 0.05.

    Args:
        difference: The mean difference.
        sd: The standard deviation of the differences, in the same unit.

    Returns:
        The number of seeds; ``None`` if the difference is 0, or if the number exceeds 100,000.

    Example:
        >>> seeds_needed(0.5, 1.0), seeds_needed(0.8, 1.0)
        (34, 15)
    """
    least = 6
    if difference == 0 or not math.isfinite(difference) or not math.isfinite(sd):
        return None
    if sd == 0:
        return least
    effect = abs(difference) / sd
    if _power(_MOST_SEEDS, effect) < POWER:
        return None
    low, high = least, _MOST_SEEDS  # the power rises with n
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, effect) >= POWER else (middle + 1, high)
    return low


def _power(n: int, effect: float) -> float:
    """The power of the two-sided paired t test of n differences, for an effect in standard deviations."""
    from scipy import stats  # lazy, see above

    if effect * math.sqrt(n) > 30:
        return 1.0  # to all digits; SciPy's noncentral t is not reliable here
    bound, shift = stats.t.ppf(1 - _ALPHA / 2, n - 1), effect * math.sqrt(n)
    # The other tail, a significant difference of the wrong sign, is negligible.
    return float(stats.nct.sf(bound, n - 1, shift))


@dataclass(frozen=True)
class Share:
    """The share of a metric's variance that one stream causes alone.

    Attributes:
        n: Number of seeds for this stream.
        sd: The standard deviation with only this stream varied.
        share: Its variance divided by the variance with all streams varied together; ``None`` if that is 0.
        low: Lower end of the 95 % interval of the share.
        high: Its upper end.
    """

    n: int
    sd: float
    share: float | None
    low: float | None
    high: float | None


def share_variance(alone: Mapping[str, Sequence[float]], together: Sequence[float]) -> dict[str, Share]:
    """The variance with each stream varied alone, as a share of the variance with all of them varied together.

    The interval is that of the ratio of two variances of normally distributed values (Snedecor's F). With few seeds it
    is wide: with five seeds, from a tenth of the share to ten times the share. The shares need not sum to 1, since
    streams can strengthen or cancel each other.

    Args:
        alone: By stream, the values of a metric with only that stream varied.
        together: The values with all streams varied.

    Raises:
        UsageError: If there are fewer than two values of one of them.

    Example:
        >>> share = share_variance({"init": [1.0, 2.0, 3.0]}, [0.0, 2.0, 4.0])["init"]
        >>> f"{share.share:.0%}, {share.low:.1%} to {share.high:.0%}"
        '25%, 0.6% to 975%'
    """
    from scipy import stats  # lazy, see above

    whole = summarize(together).sd ** 2
    shares: dict[str, Share] = {}
    for name, values in alone.items():
        n, sd = len(values), summarize(values).sd
        if whole == 0:
            shares[name] = Share(n, sd, None, None, None)
            continue
        share, freedoms = sd**2 / whole, (n - 1, len(together) - 1)
        low, high = (float(stats.f.ppf(q, *freedoms)) for q in (_ALPHA / 2, 1 - _ALPHA / 2))
        shares[name] = Share(n, sd, share, share / high, share / low)
    return shares
