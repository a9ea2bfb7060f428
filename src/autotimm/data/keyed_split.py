"""Splits by key: the side of a sample depends on its id, its class and the seed, never on the order of a listing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autotimm.errors import number, require
from autotimm.repro.streams import keys

__all__ = ["LARGE_CLASS", "check_shares", "keyed_sides", "keyed_split"]

LARGE_CLASS = 100
"""Classes of at least this many samples are split by threshold, smaller ones by exact counts."""


def check_shares(val: float, test: float, owner: str) -> None:
    """Refuse shares that are not in [0, 1), or that leave nothing to train on.

    Raises:
        UsageError: If a share is out of range.
    """
    for name, share, effect in (("val_split", val, "to train on everything"), ("test_split", test, "to test nothing")):
        require(0 <= number(share) < 1, name, owner, "a number in [0, 1)", share, f"Give 0 {effect}.")
    require(val + test < 1, "test_split", owner, f"below {1 - val:g}, what `val_split` leaves", test, "Give less.")


def keyed_split(
    ids: Sequence[str], strata: Sequence[int] | None, val: float, test: float, seed: int
) -> tuple[list[int], list[int], list[int]]:
    """Split samples into train, validation and test, each class by itself.

    Every sample has the number ``key(seed, "split", id)``. In a class, the lowest numbers go to validation, the next
    to test, the rest to training. How many depends on the size of the class:

    - below 100: exact counts, ``round(share * size)`` and at least one each, as long as one is left to train on. Ten
      images give exactly one for validation; but adding images may move a few others to another side.
    - from 100 on: everything below a threshold. The size of a side may be off by some percent (with 10 % of 1,000:
      100 ± 9), but a sample *never* changes side because others were added.

    Args:
        ids: The samples' ids, unique, in any order.
        strata: The class of each sample; ``None`` treats all as one class.
        val: Share for validation, in [0, 1).
        test: Share for test, in [0, 1).
        seed: Root seed of the ``split`` stream.

    Returns:
        Indices into ``ids`` for train, validation and test, each ascending.

    Raises:
        UsageError: If a share is out of range.

    Example:
        >>> ids = [f"cat/{number}.jpg" for number in range(10)]
        >>> train, val, test = keyed_split(ids, None, 0.2, 0.1, seed=42)
        >>> len(train), len(val), len(test)
        (7, 2, 1)
        >>> flipped = keyed_split(ids[::-1], None, 0.2, 0.1, seed=42)
        >>> [ids[::-1][index] for index in flipped[1][::-1]] == [ids[index] for index in val]
        True
    """
    train, validation, tested = keyed_sides(ids, strata, val, test, seed)
    return train.tolist(), validation.tolist(), tested.tolist()


def keyed_sides(
    ids: Sequence[str], strata: Sequence[int] | None, val: float, test: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """As :func:`keyed_split`, in arrays."""
    check_shares(val, test, "keyed_split")
    if not len(ids):
        none = np.zeros(0, np.int64)
        return none, none, none
    drawn = keys(seed, "split", ids)
    classes = np.zeros(len(ids), np.int64) if strata is None else np.asarray(strata, np.int64)
    order = _by_class_and_key(ids, drawn, classes)
    train: list[NDArray[np.int64]] = []
    validation: list[NDArray[np.int64]] = []
    tested: list[NDArray[np.int64]] = []
    next_class = np.flatnonzero(np.diff(classes[order])) + 1
    for members in np.split(order, next_class):
        n_val, n_test = _share_out(drawn[members], val, test)
        of_val, of_test, of_train = np.split(members, [n_val, n_val + n_test])
        validation.append(of_val)
        tested.append(of_test)
        train.append(of_train)
    return _ascending(train), _ascending(validation), _ascending(tested)


def _by_class_and_key(ids: Sequence[str], drawn: NDArray[np.uint64], strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """The samples by class, then by key; ties between equal keys are broken by id, not by the order of the listing."""
    order = np.lexsort((drawn, strata))
    equal = (np.diff(drawn[order]) == 0) & (np.diff(strata[order]) == 0)
    if equal.any():
        rows = sorted(order.tolist(), key=lambda row: (strata[row], drawn[row], ids[row]))
        return np.array(rows, np.int64)
    return order


def _share_out(drawn: NDArray[np.uint64], val: float, test: float) -> tuple[int, int]:
    """How many of one class go to validation and to test, by their keys in ascending order."""
    size = len(drawn)
    if size < LARGE_CLASS:
        n_val = max(int(size * val + 0.5), 1) if val and size >= 2 else 0
        n_test = max(int(size * test + 0.5), 1) if test and size >= (3 if val else 2) else 0
    else:
        n_val = int(np.searchsorted(drawn, np.uint64(int(val * 2**64))))
        n_test = int(np.searchsorted(drawn, np.uint64(int((val + test) * 2**64)))) - n_val
        # A side with a tiny share may be empty by chance; the lowest keys fill it.
        n_val, n_test = max(n_val, int(val > 0)), max(n_test, int(test > 0))
    # Training keeps at least one sample: large shares of a small class are reduced, test before validation.
    n_val = min(n_val, size - 1)
    return n_val, min(n_test, size - 1 - n_val)


def _ascending(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.sort(np.concatenate(parts))
