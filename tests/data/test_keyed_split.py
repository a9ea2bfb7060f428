"""Splits: counts, stability, no empty side."""

import random

import pytest

from autotimm.data.keyed_split import keyed_split
from autotimm.errors import UsageError


def names(n: int, prefix: str = "a") -> list[str]:
    return [f"{prefix}/{i}.jpg" for i in range(n)]


def sides(ids: list[str], strata: list[int] | None, val: float, test: float, seed: int = 42) -> dict[str, str]:
    split = keyed_split(ids, strata, val, test, seed)
    assert sorted(i for side in split for i in side) == list(range(len(ids)))
    return {ids[i]: name for name, side in zip(("train", "val", "test"), split, strict=True) for i in side}


@pytest.mark.parametrize(
    ("size", "val", "test", "counts"),
    [
        (1, 0.1, 0.1, (1, 0, 0)),
        (2, 0.1, 0.0, (1, 1, 0)),
        (2, 0.1, 0.1, (1, 1, 0)),
        (2, 0.0, 0.1, (1, 0, 1)),
        (3, 0.1, 0.1, (1, 1, 1)),
        (3, 0.9, 0.05, (1, 2, 0)),
        (10, 0.1, 0.0, (9, 1, 0)),
        (15, 0.1, 0.0, (13, 2, 0)),
        (99, 0.1, 0.1, (79, 10, 10)),
        (50, 0.0, 0.0, (50, 0, 0)),
    ],
)
def test_small_classes_have_exact_counts(size: int, val: float, test: float, counts: tuple[int, int, int]) -> None:
    assert tuple(map(len, keyed_split(names(size), None, val, test, 42))) == counts


def test_listing_order_does_not_matter() -> None:
    ids = names(40) + names(150, "b")
    strata = [0] * 40 + [1] * 150
    both = list(zip(ids, strata, strict=True))
    random.Random(0).shuffle(both)
    shuffled = sides([i for i, _ in both], [s for _, s in both], 0.2, 0.1)
    assert shuffled == sides(ids, strata, 0.2, 0.1)


def test_every_class_is_on_every_side() -> None:
    ids, strata = names(7) + names(300, "b"), [0] * 7 + [1] * 300
    for side in keyed_split(ids, strata, 0.1, 0.1, 1):
        assert {strata[i] for i in side} == {0, 1}


def test_large_classes_never_move_a_sample() -> None:
    before, after = sides(names(100), None, 0.1, 0.1), sides(names(1000), None, 0.1, 0.1)
    assert {name: after[name] for name in before} == before
    counts = [list(after.values()).count(side) for side in ("val", "test")]
    assert all(70 <= count <= 130 for count in counts)


def test_tiny_share_of_a_large_class_is_not_empty() -> None:
    for seed in range(20):
        assert all(keyed_split(names(120), None, 0.001, 0.001, seed))


def test_a_class_does_not_care_for_others() -> None:
    alone = sides(names(30), None, 0.2, 0.0)
    beside = sides(names(30) + names(9, "b"), [0] * 30 + [1] * 9, 0.2, 0.0)
    assert {name: beside[name] for name in alone} == alone


def test_seed_matters() -> None:
    assert sides(names(50), None, 0.2, 0.0, seed=1) != sides(names(50), None, 0.2, 0.0, seed=2)


def test_golden() -> None:
    """The split of release 1: changing it would move samples between the sides of runs that were recorded."""
    assert keyed_split(names(20), None, 0.2, 0.1, 42)[1:] == GOLDEN


GOLDEN = ([11, 13, 17, 18], [4, 7])


@pytest.mark.parametrize(("val", "test"), [(1.0, 0), (-0.1, 0), (True, 0), ("0.1", 0), (0.1, 1.5), (0.6, 0.4)])
def test_shares_out_of_range(val: float, test: float) -> None:
    with pytest.raises(UsageError, match=r"The `(val|test)_split` of keyed_split must be"):
        keyed_split(names(5), None, val, test, 42)
