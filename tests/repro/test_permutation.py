"""The keyed permutation: exact for every size, the same on every platform, and without a pattern that a test finds."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from autotimm.errors import UsageError
from autotimm.repro import key
from autotimm.repro.permutation import KeyedPermutation

LARGE = [10**9, 2**31, 2**32 - 1, 2**32 + 1, 10**12, 2**62]


def order(size, epoch=0):
    return KeyedPermutation(size, 42, "order", epoch).at(np.arange(size)).tolist()


def reference(size, seed, *path):
    """The same permutation in whole numbers without a limit, value by value."""
    rows = next(rows for rows in itertools.count(2, 2) if rows * rows >= size) if size > 1 else 2
    columns = -(-size // rows)

    def mixed(word):
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        return word ^ word >> 31

    def value(position):
        row, column = divmod(position, columns)
        for number in range(0, 24, 2):
            row = (row + mixed(column ^ key(seed, *path, number))) % rows
            column = (column + mixed(row ^ key(seed, *path, number + 1))) % columns
        cell = row * columns + column
        return cell if cell < size else value(cell)

    return [value(position) for position in range(size)]


# --- values ----------------------------------------------------------------------------------------------------------


def test_golden_values():
    assert order(10) == [7, 1, 6, 4, 3, 0, 5, 9, 2, 8]
    assert order(10, epoch=1) == [0, 6, 9, 1, 5, 3, 4, 2, 8, 7]


@pytest.mark.parametrize(
    ("size", "golden"),
    [
        (1000, [471, 194, 48, 637, 1]),
        (10**6, [455288, 80064, 24018, 631094, 164558]),
        (10**9, [309120329, 124251863, 786621320, 115262337, 318125659]),
        (2**32 + 1, [1408950993, 489886856, 4066081489, 4255908954, 1896532394]),
        (
            2**62,
            [4245915351597065109, 3223508724296801830, 654887809775231320, 2216769792697743670, 2095458642498103681],
        ),
    ],
)
def test_golden_values_of_large_sizes(size, golden):
    permutation = KeyedPermutation(size, 42, "order", 0)
    assert permutation.at(np.array([0, 1, size // 2, size - 2, size - 1])).tolist() == golden


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 100, 257, 1000])
def test_values_equal_those_of_whole_numbers_without_a_limit(size):
    assert order(size, epoch=3) == reference(size, 42, "order", 3)


def test_every_small_size_is_permuted_exactly():
    for size in range(1, 2049):
        assert np.array_equal(np.sort(order(size)), np.arange(size)), size


@pytest.mark.parametrize("size", [2**16 - 1, 2**16 + 1, 10**6, 1_018_081, 1_018_082])  # 1009 * 1009, and one more
def test_larger_sizes_are_permuted_exactly(size):
    assert np.array_equal(np.sort(order(size)), np.arange(size))


@pytest.mark.parametrize("size", LARGE)
def test_huge_sizes_have_distinct_values_in_range(size):
    permutation = KeyedPermutation(size, 42, "order", 0)
    positions = np.concatenate([np.arange(50_000), np.arange(size - 50_000, size)])
    values = permutation.at(positions)
    assert values.dtype == np.int64
    assert len(set(values.tolist())) == 100_000
    assert 0 <= values.min() < size // 100 < size - size // 100 < values.max() < size


def test_a_value_does_not_depend_on_the_positions_asked_with_it():
    permutation, positions = KeyedPermutation(1000, 42, "order", 0), np.arange(1000)
    whole = permutation.at(positions)
    assert [permutation.at(positions[n : n + 1]).item() for n in range(1000)] == whole.tolist()
    assert np.array_equal(permutation.at(positions[::-1]), whole[::-1])
    assert np.array_equal(permutation.at(positions.astype(np.int32)), whole)
    assert np.array_equal(positions, np.arange(1000))  # not changed in place


@pytest.mark.parametrize("size", [0, -1, 2**62 + 1])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(UsageError, match=r"The `size` of KeyedPermutation must be from 1 to 2\*\*62"):
        KeyedPermutation(size, 42, "order", 0)


# --- statistics, at fixed keys ---------------------------------------------------------------------------------------


def p_value(counts):
    """Of a chi-square test that all cells are equally likely."""
    return stats.chisquare(np.asarray(counts).ravel()).pvalue


@pytest.mark.parametrize("size", [2, 3, 5])
def test_all_orders_of_a_few_are_equally_frequent(size):
    counts = Counter(tuple(order(size, epoch)) for epoch in range(1200))
    assert p_value([counts[every] for every in itertools.permutations(range(size))]) > 1e-3


def test_orders_of_a_square_of_an_odd_number_are_even_and_odd():
    def odd(values):
        return sum(a > b for a, b in itertools.combinations(values, 2)) % 2

    assert p_value(np.bincount([odd(order(9, epoch)) for epoch in range(1000)], minlength=2)) > 1e-3


@pytest.fixture(scope="module", params=[12, 97])
def epochs(request):
    """The orders of 1,200 epochs, one per row."""
    return np.array([order(request.param, epoch) for epoch in range(1200)])


def test_every_value_is_equally_frequent_at_every_position(epochs):
    size = epochs.shape[1]
    counts = np.zeros((size, size))
    np.add.at(counts, (np.arange(size)[None], epochs), 1)
    # Rows and columns have fixed sums, so there are (size - 1)**2 degrees of freedom.
    statistic = ((counts - len(epochs) / size) ** 2).sum() / (len(epochs) / size)
    assert 1e-3 < stats.chi2.sf(statistic, (size - 1) ** 2) < 1 - 1e-3


@pytest.mark.parametrize("apart", [1, 2, 7])
def test_the_distance_of_neighbors_is_any_equally_often(epochs, apart):
    size = epochs.shape[1]
    distances = (epochs[:, ::apart][:, 1:3:2] - epochs[:, ::apart][:, 0:2:2]) % size
    assert p_value(np.bincount(distances.ravel(), minlength=size)[1:]) > 1e-3


def test_epochs_are_unrelated(epochs):
    equal = (epochs[1:] == epochs[:-1]).sum(axis=1)  # fixed points: one per pair on average, with variance 1
    assert abs(equal.mean() - 1) < 4 / np.sqrt(len(equal))
    assert abs(equal.var() - 1) < 0.2


@pytest.mark.parametrize("size", [10**6, 10**9, 2**40])
def test_stretches_of_a_large_order_are_spread_over_all_values(size):
    permutation = KeyedPermutation(size, 42, "order", 0)
    for first in (0, size // 2, size - 100_000):
        values = permutation.at(np.arange(first, first + 100_000))
        assert p_value(np.bincount(values // (size // 100), minlength=100)[:100]) > 1e-3
        steps = np.diff(values) % size
        assert p_value(np.bincount(steps // (size // 100), minlength=100)[:100]) > 1e-3
        pairs = values[:-1] // (size // 20) * 20 + values[1:] // (size // 20)
        assert p_value(np.bincount(pairs[::2], minlength=400)[:400]) > 1e-3
        assert p_value(np.bincount(values % 64, minlength=64)) > 1e-3
