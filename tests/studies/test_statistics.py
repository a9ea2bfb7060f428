"""The statistics of a study, compared with published results and with brute force."""

import itertools
import math

import numpy as np
import pytest

from autotimm.errors import UsageError
from autotimm.studies.statistics import compare_pairs, least_p, seeds_needed, share_variance, summarize

# Student's own data, 1908: hours of sleep gained with two drugs (R's `sleep`).
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_interval_equals_that_of_r():
    difference = compare_pairs(DRUG_1, DRUG_2).difference  # t.test(drug_2, drug_1, paired = TRUE)
    assert difference.mean == pytest.approx(1.58)
    assert (difference.low, difference.high) == pytest.approx((0.7001142, 2.4598858))
    assert difference.sd == pytest.approx(1.229995)
    assert (difference.min, difference.max, difference.n) == (0.0, pytest.approx(4.6), 10)


def test_equal_values_have_no_spread():
    summary = summarize([0.1 + 0.2] * 3)
    assert (summary.sd, summary.low, summary.high) == (0.0, summary.mean, summary.mean)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_permutation_test_counts_all_signs(n):
    generator = np.random.default_rng(n)
    a, b = generator.integers(0, 9, n), generator.integers(0, 9, n)  # integers, for ties and no rounding errors
    gaps = b - a
    sums = [abs(sum(sign * gap for sign, gap in zip(signs, gaps, strict=True)))
            for signs in itertools.product((1, -1), repeat=n)]  # fmt: skip
    counted = sum(total >= abs(gaps.sum()) for total in sums) / 2**n
    comparison = compare_pairs(a.tolist(), b.tolist())
    assert comparison.p == pytest.approx(counted)
    assert comparison.exact


def test_equal_differences_of_32_bits_are_equally_far():
    """Accuracies of 60 images: as numbers of 32 bits, equal differences of them are not quite equal."""
    generator = np.random.default_rng(1)
    for _ in range(40):
        a = generator.integers(40, 55, 6)
        b = a + generator.integers(-2, 4, 6)
        small = [(values.astype(np.float32) / np.float32(60)).tolist() for values in (a, b)]
        assert compare_pairs(*small).p == compare_pairs(a.tolist(), b.tolist()).p


def test_least_p_of_few_seeds():
    assert compare_pairs([1, 2, 3, 4, 5], [2, 3, 4, 5, 6]).p == least_p(5) == 2 / 2**5
    assert compare_pairs([1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7]).p == least_p(6) < 0.05


def test_no_difference_at_all():
    comparison = compare_pairs([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (comparison.p, comparison.needed) == (1.0, None)


def test_many_seeds_are_sampled_reproducibly():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=30).tolist(), generator.normal(0.3, size=30).tolist()
    comparison = compare_pairs(a, b)
    assert not comparison.exact
    assert comparison == compare_pairs(a, b)
    assert comparison.p >= comparison.least_p == least_p(30) > 0
    assert compare_pairs([0.0] * 30, [1.0] * 30).p == least_p(30)


# G*Power 3.1, "difference between two dependent means", two-sided, alpha 0.05, power 0.8.
@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.3, 90), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed(effect, n):
    assert seeds_needed(effect * 3, 3.0) == seeds_needed(-effect, 1.0) == n


def test_seeds_needed_at_the_limits():
    assert seeds_needed(1.0, 0.0) == seeds_needed(100.0, 1.0) == 6  # fewer never reach 0.05
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-6, 1.0) is None
    assert seeds_needed(math.nan, 1.0) is None


def test_shares_of_known_variances():
    generator = np.random.default_rng(1)
    init, order = generator.normal(0, 3, 4000), generator.normal(0, 1, 4000)
    shares = share_variance({"init": init.tolist(), "order": order.tolist()}, (init + order).tolist())
    assert shares["init"].share == pytest.approx(0.9, abs=0.05)
    assert shares["order"].share == pytest.approx(0.1, abs=0.02)
    assert shares["init"].low < shares["init"].share < shares["init"].high


def test_interval_of_a_share_covers_it():
    """In about 95 of 100 studies with five seeds."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        alone, together = generator.normal(0, 1, 5), generator.normal(0, 2, 5)
        share = share_variance({"init": alone.tolist()}, together.tolist())["init"]
        covered += share.low <= 0.25 <= share.high
    assert 0.92 <= covered / 400 <= 0.98


def test_share_without_variance():
    share = share_variance({"init": [1.0, 1.0]}, [1.0, 1.0])["init"]
    assert (share.share, share.low, share.high, share.sd) == (None, None, None, 0.0)


def test_too_few_values_are_refused():
    with pytest.raises(UsageError, match=r"must be at least two\. Got 1"):
        summarize([1.0])
    with pytest.raises(UsageError, match="as many values as a"):
        compare_pairs([1.0, 2.0], [1.0])
    with pytest.raises(UsageError, match="must be finite numbers"):
        compare_pairs([1.0, 2.0, 3.0], [1.0, math.nan, 3.0])  # comparisons with NaN would count as a p of 0
