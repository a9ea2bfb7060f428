"""The keyed sampler. Recorded runs depend on the literals: changing one breaks every `verify`."""

import itertools
import math
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from autotimm.errors import UsageError
from autotimm.repro import Draw, KeyedBatchSampler

SIZES = [*range(1, 28), 64, 97]
BATCH_SIZES = [1, 2, 3, 4, 8]
WORLD_SIZES = [1, 2, 3, 4]


def ranks(size: int, batch_size: int, world_size: int, **options: object) -> list[KeyedBatchSampler]:
    return [
        KeyedBatchSampler(size, batch_size, 42, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def grid(world_size: int, options: dict[str, bool]) -> list[tuple[int, int]]:
    """Sizes and batch sizes. In training, every process needs a sample; in evaluation, some may have none."""
    minimum = world_size if options.get("shuffle", True) else 1
    return [(size, batch_size) for size in SIZES if size >= minimum for batch_size in BATCH_SIZES]


def merge_batches(shares: list[list[list[Draw]]], step: int) -> dict[int, list[Draw]]:
    """Merge the batches of all processes into global batches."""
    merged: dict[int, list[Draw]] = {}
    for batch in itertools.chain.from_iterable(shares):
        assert len({draw.position // step for draw in batch}) == 1  # a batch lies within one global batch
        merged.setdefault(batch[0].position // step, []).extend(batch)
    return {number: sorted(batch) for number, batch in sorted(merged.items())}


# --- the order -------------------------------------------------------------------------------------------------------


def test_golden_orders():
    sampler = KeyedBatchSampler(10, 4, 42)
    assert sampler.order(0) == [7, 1, 6, 4, 3, 0, 5, 9, 2, 8]
    assert sampler.order(1) == [0, 6, 9, 1, 5, 3, 4, 2, 8, 7]


def test_golden_weighted_order():
    # Powers of two, so that no sum is rounded.
    sampler = KeyedBatchSampler(8, 4, 42, weights=[1, 2, 4, 8, 1, 2, 4, 8])
    assert sampler.order(0) == [7, 6, 2, 2, 3, 7, 6, 2]


def test_every_epoch_and_seed_has_its_own_order():
    orders = {tuple(KeyedBatchSampler(50, 4, seed).order(epoch)) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 20 * 20  # with seed + epoch there would be 39


def test_seeds_beyond_32_bits_have_their_own_order():
    assert KeyedBatchSampler(50, 4, 1).order(0) != KeyedBatchSampler(50, 4, 1 + 2**32).order(0)


def test_order_depends_on_seed_and_epoch_only():
    expected = KeyedBatchSampler(97, 4, 42).order(5)
    assert sorted(expected) == list(range(97))
    for batch_size, world_size, drop_last in itertools.product(BATCH_SIZES, WORLD_SIZES, [False, True]):
        for sampler in ranks(97, batch_size, world_size, drop_last=drop_last):
            assert sampler.order(5) == expected


def test_iteration_neither_reads_nor_changes_global_generators():
    torch.manual_seed(1)
    first = list(KeyedBatchSampler(20, 4, 42))
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    assert list(KeyedBatchSampler(20, 4, 42)) == first
    list(KeyedBatchSampler(20, 4, 42, weights=[1.0] * 20))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_evaluation_keeps_the_data_set_order():
    sampler = KeyedBatchSampler(5, 2, 42, shuffle=False)
    sampler.set_epoch(7)
    assert list(sampler) == [
        [Draw(7, 0, 0), Draw(7, 1, 1)],
        [Draw(7, 2, 2), Draw(7, 3, 3)],
        [Draw(7, 4, 4)],
    ]


# --- batches of an epoch ---------------------------------------------------------------------------------------------

MODES = {
    "train": {},
    "train-drop-last": {"drop_last": True},
    "eval": {"shuffle": False},
    "eval-drop-last": {"shuffle": False, "drop_last": True},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_len_counts_batches_and_none_is_empty(world_size, mode):
    for size, batch_size in grid(world_size, MODES[mode]):
        for sampler in ranks(size, batch_size, world_size, **MODES[mode]):
            batches = list(sampler)
            assert len(sampler) == len(batches)
            larger = 0 if MODES[mode].get("shuffle", True) else 1  # in evaluation, for a few that are left over
            assert all(1 <= len(batch) <= batch_size + larger for batch in batches)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_positions_are_distributed_once_and_match_the_order(world_size, mode):
    for size, batch_size in grid(world_size, MODES[mode]):
        samplers = ranks(size, batch_size, world_size, **MODES[mode])
        draws = sorted(itertools.chain.from_iterable(itertools.chain.from_iterable(samplers)))
        assert [draw.position for draw in draws] == list(range(len(draws)))
        assert [draw.index for draw in draws] == samplers[0].order(0)[: len(draws)]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_evaluation_draws_every_sample_exactly_once(world_size):
    for size, batch_size in grid(world_size, MODES["eval"]):
        samplers = ranks(size, batch_size, world_size, shuffle=False)
        counts = Counter(draw.index for sampler in samplers for batch in sampler for draw in batch)
        assert counts == Counter(range(size))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_processes_share_the_batches_of_a_single_process(world_size, mode):
    options = MODES[mode]
    for size, batch_size in grid(world_size, options):
        step = batch_size * world_size
        if not options.get("shuffle", True) and 0 < size % step < world_size <= size and size > step:
            continue  # a few that are left over are added to the last batch
        single = merge_batches([list(KeyedBatchSampler(size, step, 42, **options))], step)
        shared = merge_batches([list(sampler) for sampler in ranks(size, batch_size, world_size, **options)], step)
        if shared != single:
            # The only exception is a last training batch that is too small for so many processes.
            assert mode == "train"
            assert size % step < 2 * world_size
            assert single.popitem()[0] == size // step
            assert shared == single


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_process_has_a_batch_in_every_step(world_size, mode):
    # Otherwise the others wait for it forever, in evaluation too.
    for size, batch_size in grid(world_size, MODES[mode]):
        if size < world_size:
            continue
        shares = [list(sampler) for sampler in ranks(size, batch_size, world_size, **MODES[mode])]
        assert len({len(share) for share in shares}) == 1
        assert len(shares[0]) >= 1
        for batches in zip(*shares, strict=True):
            if mode.startswith("train"):
                assert len({batch[0].position // (batch_size * world_size) for batch in batches}) == 1
            sizes = [len(batch) for batch in batches]
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("size", "world_size"), [(1, 2), (2, 3), (1, 4)])
def test_training_with_fewer_samples_than_processes_is_rejected(size, world_size):
    with pytest.raises(UsageError):
        ranks(size, 4, world_size)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_last_training_batch_of_one_sample_is_dropped(batch_size, weighted):
    # Batch normalization cannot be trained on one value.
    size = 3 * batch_size + 1
    weights = [1.0] * size if weighted else None
    batches = list(KeyedBatchSampler(size, batch_size, 42, weights=weights))
    assert [len(batch) for batch in batches] == [batch_size] * 3
    assert [len(batch) for batch in KeyedBatchSampler(size + 1, batch_size, 42)] == [batch_size] * 3 + [2]


def test_single_sample_batches_that_are_kept():
    assert [len(batch) for batch in KeyedBatchSampler(1, 8, 42)] == [1]
    assert [len(batch) for batch in KeyedBatchSampler(5, 1, 42)] == [1] * 5
    assert [len(batch) for batch in KeyedBatchSampler(9, 8, 42, shuffle=False)] == [8, 1]


@pytest.mark.parametrize(("world_size", "rest"), [(2, 2), (2, 3), (3, 5), (4, 7)])
def test_no_process_trains_on_a_single_sample(world_size, rest):
    shares = [list(sampler) for sampler in ranks(2 * 8 * world_size + rest, 8, world_size)]
    assert all(len(batch) > 1 for share in shares for batch in share)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_drop_last_keeps_full_batches_only_unless_there_is_none(world_size, shuffle):
    for size, batch_size in grid(world_size, {"shuffle": shuffle}):
        step = batch_size * world_size
        samplers = ranks(size, batch_size, world_size, shuffle=shuffle, drop_last=True)
        lengths = {len(batch) for sampler in samplers for batch in sampler}
        if size >= step:
            assert lengths == {batch_size}
            assert [len(sampler) for sampler in samplers] == [size // step] * world_size
        else:
            assert sum(len(batch) for sampler in samplers for batch in sampler) == size


# --- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_start_skips_batches_of_the_epoch(world_size, mode):
    for size, batch_size in itertools.product([4, 7, 16, 25], [1, 3, 4]):
        for sampler in ranks(size, batch_size, world_size, **MODES[mode]):
            sampler.set_epoch(3)
            whole = list(sampler)
            for start in range(len(whole) + 2):
                sampler.start = start
                assert list(sampler) == whole[start:]
                assert len(sampler) == len(whole)  # the length of the epoch, not of the rest


def test_only_a_new_epoch_resets_start():
    sampler = KeyedBatchSampler(12, 4, 42)
    whole = list(sampler)
    sampler.start = 2
    sampler.set_epoch(0)  # Lightning sets the epoch once more after a restart
    assert list(sampler) == whole[2:]
    sampler.set_epoch(1)
    assert sampler.start == 0
    assert len(list(sampler)) == 3
    sampler.set_epoch(0)
    assert list(sampler) == whole


def test_epoch_and_start_can_be_set_until_the_first_batch():
    # On resume, Lightning creates the iterator before it sets the epoch.
    sampler = KeyedBatchSampler(12, 4, 42)
    iterator = iter(sampler)
    sampler.set_epoch(2)
    sampler.start = 1
    fresh = KeyedBatchSampler(12, 4, 42)
    fresh.set_epoch(2)
    assert list(iterator) == list(fresh)[1:]


def test_running_iteration_keeps_its_epoch():
    # A loader prefetches; the next epoch may be set before the last batch is delivered.
    sampler = KeyedBatchSampler(12, 4, 42)
    whole = list(sampler)
    running = iter(sampler)
    first = next(running)
    sampler.set_epoch(1)
    assert [first, *running] == whole


def test_pickled_sampler_draws_the_same():
    sampler = KeyedBatchSampler(12, 4, 42, weights=[1.0] * 12)
    sampler.set_epoch(2)
    sampler.start = 1
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)


class Echo(Dataset):
    """Return the request that reached the worker."""

    def __getitem__(self, draw: Draw) -> Draw:
        return draw


def test_draws_reach_persistent_workers():
    sampler = KeyedBatchSampler(10, 3, 42)
    loader = DataLoader(Echo(), batch_sampler=sampler, num_workers=2, persistent_workers=True, collate_fn=list)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        assert list(loader) == list(sampler)
        assert {draw.epoch for batch in loader for draw in batch} == {epoch}


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_balance_classes_within_sampling_error():
    classes = [0] * 1700 + [1] * 250 + [2] * 50
    counts = Counter(classes)
    sampler = KeyedBatchSampler(2000, 32, 42, weights=[1 / counts[label] for label in classes])
    drawn = Counter(classes[index] for epoch in range(5) for index in sampler.order(epoch))
    n, share = 5 * 2000, 1 / 3
    assert sum(drawn.values()) == n
    for label in range(3):
        assert abs(drawn[label] - n * share) < 4 * math.sqrt(n * share * (1 - share))


def test_samples_are_drawn_in_proportion_to_their_weights():
    sampler = KeyedBatchSampler(4000, 32, 42, weights=[0.0, 1.0, 3.0, 0.0] * 1000)
    drawn = Counter(index % 4 for index in sampler.order(0))
    assert drawn.keys() == {1, 2}
    assert abs(drawn[1] - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75)


def test_weighted_epochs_are_drawn_with_replacement_and_differ():
    sampler = KeyedBatchSampler(100, 7, 42, weights=[1.0] * 100)
    first, second = sampler.order(0), sampler.order(1)
    assert len(first) == len(second) == 100
    assert len(set(first)) < 100
    assert first != second
    assert sampler.order(0) == first


def test_sample_drawn_twice_has_two_positions():
    sampler = KeyedBatchSampler(20, 5, 42, weights=[1.0, *[0.0] * 19])
    draws = [draw for batch in sampler for draw in batch]
    assert {draw.index for draw in draws} == {0}
    assert [draw.position for draw in draws] == list(range(20))


def test_weighted_draws_are_shared_among_processes():
    options = {"weights": [1.0 + n % 3 for n in range(40)]}
    single = merge_batches([list(KeyedBatchSampler(40, 8, 42, **options))], 8)
    assert merge_batches([list(sampler) for sampler in ranks(40, 4, 2, **options)], 8) == single


def test_scale_of_the_weights_does_not_matter():
    small = KeyedBatchSampler(8, 4, 42, weights=[1, 2, 4, 8, 1, 2, 4, 8])
    large = KeyedBatchSampler(8, 4, 42, weights=tuple(1024 * w for w in [1, 2, 4, 8, 1, 2, 4, 8]))
    assert small.order(0) == large.order(0)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_weights_may_be_an_array_or_a_tensor(make):
    weights = [1.0, 2.0, 4.0, 1.0]
    expected = KeyedBatchSampler(4, 2, 42, weights=weights).order(0)
    assert KeyedBatchSampler(4, 2, 42, weights=make(weights)).order(0) == expected


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"size": 0}, "size"),
        ({"size": -1}, "size"),
        ({"batch_size": 0}, "batch_size"),
        ({"rank": 1}, "rank"),
        ({"rank": -1}, "rank"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"world_size": 0}, "rank"),
        ({"weights": []}, "weights"),
        ({"weights": [1.0, 1.0]}, "weights"),
    ],
)
def test_arguments_out_of_range_are_rejected(options, name):
    with pytest.raises(UsageError, match=rf"^The `{name}` of KeyedBatchSampler must be .+\. Got .+ instead\. .+\.$"):
        KeyedBatchSampler(**{"size": 4, "batch_size": 2, "seed": 42, **options})


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_invalid_weights_are_rejected_at_construction(weights):
    with pytest.raises(UsageError, match=r"weights.*not all 0\. Got (\[(-1\.0|nan|inf)\]|'only zeros')"):
        KeyedBatchSampler(2, 1, 42, weights=weights)
