"""What can be said of a few numbers: their spread, a paired difference, and where the spread comes from.

SciPy has the distributions and the permutation test; it is imported when something is computed, because it takes a
quarter of a second that a command with a mistake in it should not cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotimm.errors import require

__all__ = ["Paired", "Share", "Summary", "compare_pairs", "least_p", "seeds_needed", "share_variance", "summarize"]

CONFIDENCE = 0.95
POWER = 0.8
_ALPHA = 1 - CONFIDENCE
_MOST_EXACT = 17  # 2**17 choices of signs take half a second
_DRAWN = 100_000
_MOST_SEEDS = 100_000


@dataclass(frozen=True)
class Summary:
    """The spread of one metric over the seeds.

    Attributes:
        n: Number of seeds.
        mean: Their mean.
        sd: Their standard deviation, with n - 1.
        low: Lower end of the 95 % interval of the mean, by Student's t.
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
    """Mean, standard deviation, 95 % interval of the mean, and the ends.

    The interval (Student, "The probable error of a mean", Biometrika 1908) holds for values that scatter roughly like a
    normal distribution. It is one of the mean, and says little about where the next single value will lie.

    Args:
        values: The values of a metric, one per seed, in any unit; at least two.

    Raises:
        UsageError: If there are fewer than two.

    Example:
        >>> found = summarize([0.80, 0.82, 0.84])
        >>> f"{found.mean:.3f} ± {found.sd:.3f}, {found.low:.3f} to {found.high:.3f}"
        '0.820 ± 0.020, 0.770 to 0.870'
    """
    from scipy import stats  # lazy, see above

    require(len(values) > 1, "values", "summarize", "at least two", len(values), "Train with another seed.")
    found = np.asarray(values, dtype=np.float64)
    mean, sd = float(found.mean()), _sd(found)
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1)) * sd / math.sqrt(len(found))
    return Summary(len(found), mean, sd, mean - margin, mean + margin, float(found.min()), float(found.max()))


def _sd(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """The standard deviation; 0 for equal values, whose mean may be off by a rounding."""
    return 0.0 if (values == values[0]).all() else float(values.std(ddof=1))


@dataclass(frozen=True)
class Paired:
    """What B does differently from A, seed by seed.

    Attributes:
        difference: The spread of B - A.
        p: The two-sided probability of a mean difference at least as large, if A and B were interchangeable.
        exact: Whether all signs were tried, and not a sample of them.
        least_p: The smallest probability that so few seeds can give.
        needed: Seeds with which a difference of this size, in this spread, would be seen four times out of five;
            ``None`` if there is no difference to see, or if they are more than 100,000.
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
    from zero. It assumes nothing about the distribution. With n seeds it cannot give less than 2 / 2**n: five seeds
    never reach 0.05. Above 17 seeds 100,000 of the choices are drawn, always the same.

    Args:
        a: The values of a metric with A, one per seed.
        b: Those with B, for the same seeds in the same order.

    Raises:
        UsageError: If they are not equally many, or fewer than two.

    Example:
        >>> found = compare_pairs([0.80, 0.81, 0.79, 0.80], [0.82, 0.83, 0.82, 0.81])
        >>> f"{found.difference.mean:+.3f}, p = {found.p:g}, at best {found.least_p:g}"
        '+0.020, p = 0.125, at best 0.125'
    """
    from scipy import stats  # lazy, see above

    require(len(a) == len(b), "b", "compare_pairs", "as many values as a", len(b), "Train both with the same seeds.")
    gaps = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    difference = summarize(gaps.tolist())
    exact = len(gaps) <= _MOST_EXACT
    found = stats.permutation_test(
        (gaps,), np.mean, permutation_type="samples", vectorized=True, batch=2**14,
        n_resamples=np.inf if exact else _DRAWN, rng=np.random.default_rng(0),
    )  # fmt: skip
    needed = seeds_needed(difference.mean, difference.sd)
    return Paired(difference, float(found.pvalue), exact, least_p(len(gaps)), needed)


def least_p(n: int) -> float:
    """The smallest probability that the permutation test of n differences can give.

    Example:
        >>> least_p(5), least_p(6)
        (0.0625, 0.03125)
    """
    return max(2.0 ** (1 - n), 0.0 if n <= _MOST_EXACT else 1 / (_DRAWN + 1))


def seeds_needed(difference: float, sd: float) -> int | None:
    """How many seeds would show a paired difference four times out of five, with a 5 % chance of a false alarm.

    From the power of the paired t test (Cohen, "Statistical power analysis for the behavioral sciences", 1988). The
    answer is as uncertain as ``sd``, which a few seeds tell only roughly. It is at least 6: fewer never reach 0.05 in
    the permutation test.

    Args:
        difference: The mean difference.
        sd: The standard deviation of the differences, in the same unit.

    Returns:
        The number of seeds; ``None`` if the difference is 0, or if it takes more than 100,000.

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
    """The chance that the two-sided paired t test of n differences sees an effect, in standard deviations."""
    from scipy import stats  # lazy, see above

    if effect * math.sqrt(n) > 30:
        return 1.0  # where SciPy's noncentral t is not computed reliably, and 1 to all digits
    bound, shift = stats.t.ppf(1 - _ALPHA / 2, n - 1), effect * math.sqrt(n)
    # The chance to see it with the wrong sign is left out, as it is far below the first for all that matters here.
    return float(stats.nct.sf(bound, n - 1, shift))


@dataclass(frozen=True)
class Share:
    """How much of the variance of a metric one stream makes alone.

    Attributes:
        n: Number of seeds that were tried for this stream.
        sd: The standard deviation while only this stream varied.
        share: Its variance divided by that with all streams varied together; ``None`` if that is 0.
        low: Lower end of the 95 % interval of the share.
        high: Its upper end.
    """

    n: int
    sd: float
    share: float | None
    low: float | None
    high: float | None


def share_variance(alone: Mapping[str, Sequence[float]], together: Sequence[float]) -> dict[str, Share]:
    """The variance with one stream varied, as a share of that with all of them varied together.

    The interval is that of a ratio of two variances of normal values (Snedecor's F). With few seeds it is wide: with
    five of them, from a tenth of the share to ten times the share. The shares need not sum to 1, since streams can
    strengthen or cancel each other.

    Args:
        alone: By stream, the values of a metric with only that stream varied.
        together: The values with all streams varied.

    Raises:
        UsageError: If there are fewer than two values of one of them.

    Example:
        >>> found = share_variance({"init": [1.0, 2.0, 3.0]}, [0.0, 2.0, 4.0])["init"]
        >>> f"{found.share:.0%}, {found.low:.1%} to {found.high:.0%}"
        '25%, 0.6% to 975%'
    """
    from scipy import stats  # lazy, see above

    whole = summarize(together).sd ** 2
    found: dict[str, Share] = {}
    for name, values in alone.items():
        n, sd = len(values), summarize(values).sd
        if whole == 0:
            found[name] = Share(n, sd, None, None, None)
            continue
        share, freedoms = sd**2 / whole, (n - 1, len(together) - 1)
        low, high = (float(stats.f.ppf(q, *freedoms)) for q in (_ALPHA / 2, 1 - _ALPHA / 2))
        found[name] = Share(n, sd, share, share / high, share / low)
    return found
