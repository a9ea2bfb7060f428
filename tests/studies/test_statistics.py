"""The statistics of a study, compared with textbooks and with counting by hand."""

import itertools
import math

import numpy as np
import pytest

from autotimm.errors import UsageError
from autotimm.studies.statistics import compare_pairs, least_p, seeds_needed, share_variance, summarize

# Student's own data, 1908: hours of sleep gained with two drugs (R's `sleep`).
ONE = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
TWO = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_the_interval_is_the_one_that_r_gives():
    found = compare_pairs(ONE, TWO).difference  # t.test(two, one, paired = TRUE)
    assert found.mean == pytest.approx(1.58)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858))
    assert found.sd == pytest.approx(1.229995)
    assert (found.min, found.max, found.n) == (0.0, pytest.approx(4.6), 10)


def test_equal_values_do_not_scatter():
    found = summarize([0.1 + 0.2] * 3)
    assert (found.sd, found.low, found.high) == (0.0, found.mean, found.mean)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_the_permutation_test_counts_all_signs(n):
    drawn = np.random.default_rng(n)
    a, b = drawn.integers(0, 9, n), drawn.integers(0, 9, n)  # whole numbers: ties, and no rounding
    gaps = b - a
    sums = [abs(sum(sign * gap for sign, gap in zip(signs, gaps, strict=True)))
            for signs in itertools.product((1, -1), repeat=n)]  # fmt: skip
    by_hand = sum(one >= abs(gaps.sum()) for one in sums) / 2**n
    found = compare_pairs(a.tolist(), b.tolist())
    assert found.p == pytest.approx(by_hand)
    assert found.exact


def test_few_seeds_cannot_show_much():
    assert compare_pairs([1, 2, 3, 4, 5], [2, 3, 4, 5, 6]).p == least_p(5) == 2 / 2**5
    assert compare_pairs([1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7]).p == least_p(6) < 0.05


def test_no_difference_at_all():
    found = compare_pairs([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (found.p, found.needed) == (1.0, None)


def test_many_seeds_are_sampled_and_repeat():
    drawn = np.random.default_rng(0)
    a, b = drawn.normal(size=30).tolist(), drawn.normal(0.3, size=30).tolist()
    found = compare_pairs(a, b)
    assert not found.exact
    assert found == compare_pairs(a, b)
    assert found.p >= found.least_p == least_p(30) > 0


# G*Power 3.1, "difference between two dependent means", two-sided, alpha 0.05, power 0.8.
@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.3, 90), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed(effect, n):
    assert seeds_needed(effect * 3, 3.0) == seeds_needed(-effect, 1.0) == n


def test_seeds_needed_at_the_ends():
    assert seeds_needed(1.0, 0.0) == seeds_needed(100.0, 1.0) == 6  # fewer never reach 0.05
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-6, 1.0) is None
    assert seeds_needed(math.nan, 1.0) is None


def test_shares_of_known_variances():
    drawn = np.random.default_rng(1)
    init, order = drawn.normal(0, 3, 4000), drawn.normal(0, 1, 4000)
    found = share_variance({"init": init.tolist(), "order": order.tolist()}, (init + order).tolist())
    assert found["init"].share == pytest.approx(0.9, abs=0.05)
    assert found["order"].share == pytest.approx(0.1, abs=0.02)
    assert found["init"].low < found["init"].share < found["init"].high


def test_the_interval_of_a_share_covers_it():
    """In 95 of 100 studies with five seeds, give or take what chance allows."""
    drawn = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        found = share_variance({"init": drawn.normal(0, 1, 5).tolist()}, drawn.normal(0, 2, 5).tolist())["init"]
        covered += found.low <= 0.25 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_nothing_varies():
    found = share_variance({"init": [1.0, 1.0]}, [1.0, 1.0])["init"]
    assert (found.share, found.low, found.high, found.sd) == (None, None, None, 0.0)


def test_too_few_values_are_refused():
    with pytest.raises(UsageError, match=r"must be at least two\. Got 1"):
        summarize([1.0])
    with pytest.raises(UsageError, match="as many values as a"):
        compare_pairs([1.0, 2.0], [1.0])
