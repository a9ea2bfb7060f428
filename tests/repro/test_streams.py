"""Named streams. Recorded runs depend on the literals: changing one breaks every `verify`."""

import hashlib
import itertools
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

from autotimm.repro import generator, key, reseed, scope
from autotimm.repro.streams import preserve_generators
from autotimm.types import Stage


def states() -> tuple[object, ...]:
    """The states of the global generators, comparable with `==`."""
    name, words, *rest = np.random.get_state()
    return random.getstate(), (name, words.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


def draw() -> tuple[float, ...]:
    """Draw from all three global generators, also normal numbers: these come in pairs, of which one is cached."""
    return (
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        torch.rand(()).item(),
        torch.randn(()).item(),
    )


def pollute(amount: int) -> None:
    """Seed and advance the global generators, as an extra metric, logger or callback may."""
    random.seed(amount)
    np.random.seed(amount)
    torch.manual_seed(amount)
    for _ in range(amount):  # an odd amount leaves half a pair of normal numbers in the cache
        draw()


# --- key -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ((42, "order", 0), 12240284653100800787),
        ((42, "init", "head"), 10926857450009488139),
        ((0,), 16761416634304056927),
        ((2**64 - 1, "augment", 3, 17, "cats/ä b.png"), 9976886735208915473),
        ((-1, ""), 8730562505401076659),
    ],
)
def test_golden_keys(position, expected):
    assert key(*position) == expected


def test_key_is_blake2b_of_the_documented_encoding():
    text = b"i\x02\x00\x00\x0042" + b"s\x05\x00\x00\x00order" + b"i\x01\x00\x00\x000"
    assert key(42, "order", 0) == int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def splits_of(text: str) -> list[tuple[str, ...]]:
    """All ways to split a text into consecutive parts."""
    splits = []
    for cuts in itertools.product([False, True], repeat=len(text) - 1):
        bounds = [0, *(index + 1 for index, cut in enumerate(cuts) if cut), len(text)]
        splits.append(tuple(text[start:stop] for start, stop in itertools.pairwise(bounds)))
    return splits


@pytest.mark.parametrize("text", ["abcdefgh", "11111111", "i1s1i1s1", "\x00\x00\x00\x00\x01s\x01"])
def test_keys_differ_for_every_split_of_a_text(text):
    paths = splits_of(text)
    assert len({key(42, *path) for path in paths}) == len(paths)


def test_keys_distinguish_integers_from_strings():
    paths = [
        kinds
        for path in splits_of("123412")
        for kinds in itertools.product(*([part, int(part)] for part in path))  # every combination of types
    ]
    assert len({key(1, *path) for path in paths}) == len(paths)


def test_keys_of_random_paths_do_not_collide():
    alphabet = ["", "a", "b", "aa", "ab", "1", "11", "i", "s", "\x00", "ä", "犬", "/", 0, 1, 11, -1, 2**32, 2**64]
    paths = {
        tuple(alphabet[key(0, "part", n, k) % len(alphabet)] for k in range(key(0, "length", n) % 6))
        for n in range(20_000)
    }
    assert len(paths) > 9_000

    assert len({key(42, *path) for path in paths}) == len(paths)


def test_empty_parts_change_the_key():
    positions = [(42,), (42, ""), (42, "", ""), (42, "a"), (42, "a", ""), (42, "", "a"), (42, 0)]
    assert len({key(*position) for position in positions}) == len(positions)


def test_order_of_parts_changes_the_key():
    orders = list(itertools.permutations(["a", "b", 1, 2]))
    assert len({key(42, *order) for order in orders}) == len(orders)


@pytest.mark.parametrize("seed", [1, 2**32 - 1, 2**64, 0, -1])
def test_root_seeds_beyond_32_bits_have_their_own_keys(seed):
    # torch's CPU generator treats 1 and 1 + 2**32 as the same seed.
    twin = seed + 2**32
    a, b = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1 + 2**32)
    assert torch.equal(torch.rand(4, generator=a), torch.rand(4, generator=b))
    assert key(seed, "order", 0) != key(twin, "order", 0)
    first, second = generator(seed, "order", 0), generator(twin, "order", 0)
    assert not torch.equal(torch.rand(4, generator=first), torch.rand(4, generator=second))


def test_seed_and_epoch_are_not_summed():
    # DistributedSampler(seed=42) in epoch 1 equals seed=43 in epoch 0.
    keys = {key(root, "order", epoch) for root in range(100) for epoch in range(100)}
    assert len(keys) == 100 * 100


def test_streams_differ_by_name():
    names = ["init", "split", "order", "augment", "step", "eval"]
    assert len({key(42, name, 0) for name in names}) == len(names)


def test_every_bit_of_a_key_is_balanced():
    keys = [key(42, "augment", n) for n in range(10_000)]
    assert all(0 <= value < 2**64 for value in keys)
    for bit in range(64):  # 10,000 fair coins: standard deviation 50
        assert abs(sum(value >> bit & 1 for value in keys) - 5000) < 250


@pytest.mark.parametrize("integer", [1, np.int64(1), np.uint8(1)])
def test_numpy_integers_are_accepted(integer):
    assert key(integer, "order", integer) == key(1, "order", 1)


def test_stage_has_the_key_of_its_value():
    assert key(42, "eval", Stage.VAL, 0) == key(42, "eval", "val", 0)


@pytest.mark.parametrize("part", [None, b"a", (1, 2), 1j])
def test_parts_of_other_types_are_rejected(part):
    with pytest.raises((TypeError, ValueError)):
        key(42, "order", part)


@pytest.mark.parametrize("part", [1.5, 1.0, np.float32(0.9), torch.tensor(1.5)])
def test_floats_are_rejected(part):
    with pytest.raises(TypeError):
        key(42, "order", part)


def test_non_utf8_file_names_have_keys():
    # os.listdir returns names that are not UTF-8 in this form, and they may become sample ids.
    names = [os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"caf\xe8.png"), "café.png"]
    assert len({key(42, "split", name) for name in names}) == len(names)


# --- generator and reseed --------------------------------------------------------------------------------------------


def test_golden_numbers_of_generator():
    numbers = torch.randint(0, 2**31 - 1, (3,), generator=generator(42, "augment", 0, 1, "a.png"))
    assert numbers.tolist() == [1386801321, 1994545941, 1058975436]


def test_generator_neither_reads_nor_changes_global_generators():
    before = states()
    first = torch.rand(3, generator=generator(42, "order", 0))
    assert states() == before
    pollute(3)
    assert torch.equal(torch.rand(3, generator=generator(42, "order", 0)), first)


def test_generators_are_independent_of_each_other():
    first, second = generator(42, "order", 0), generator(42, "order", 0)
    torch.rand(10, generator=first)
    assert torch.equal(torch.rand(3, generator=second), torch.rand(3, generator=generator(42, "order", 0)))


@pytest.mark.parametrize("amount", [0, 1, 2, 5])
def test_reseed_sets_all_generators_regardless_of_history(amount):
    pollute(0)
    reseed(42, "step", 0, 3)
    expected = draw()
    pollute(amount)
    reseed(42, "step", 0, 3)
    assert draw() == expected


def test_reseed_at_another_position_changes_all_generators():
    reseed(42, "step", 0, 3)
    first = draw()
    reseed(42, "step", 0, 4)
    assert all(a != b for a, b in zip(first, draw(), strict=True))


def test_reseed_matches_generator():
    reseed(42, "step", 0, 3)
    assert torch.equal(torch.rand(5), torch.rand(5, generator=generator(42, "step", 0, 3)))


def test_reseed_torch_only_leaves_python_and_numpy_alone():
    python, numpy, torch_state = states()
    reseed(42, "step", 0, 3, torch_only=True)
    assert states()[:2] == (python, numpy)
    assert states()[2] != torch_state


def test_numpy_and_torch_do_not_draw_the_same_bits():
    reseed(42, "augment", 0)
    raw = np.random.randint(0, 2**32, 100, dtype=np.uint32)
    floats = torch.rand(100)  # made from the lower 24 bits of each raw number
    assert not np.allclose((raw & 0xFFFFFF) / 2**24, floats.numpy())


# --- scope -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0, 1, 2, 5])
def test_scope_does_not_depend_on_earlier_draws(amount):
    pollute(0)
    with scope(42, "augment", 1, 2, "a.png"):
        expected = draw()
    pollute(amount)
    with scope(42, "augment", 1, 2, "a.png"):
        assert draw() == expected


@pytest.mark.parametrize("amount", [0, 1, 2, 5])
def test_scope_does_not_affect_later_draws(amount):
    pollute(amount)
    expected = draw(), draw()
    pollute(amount)
    first = draw()
    with scope(42, "augment", 1, 2, "a.png"):
        pollute(amount + 1)
    assert (first, draw()) == expected


@pytest.mark.parametrize("context", [preserve_generators, lambda: scope(42, "eval", "val", 0)])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_generators_are_restored_after_an_exception(context, error):
    def fail() -> None:
        with context():
            draw()
            raise error

    before = states()
    with pytest.raises(error):
        fail()
    assert states() == before


def test_generators_are_unchanged_after_an_invalid_position():
    before = states()
    with pytest.raises(TypeError), scope(42, "eval", None):
        pytest.fail("the block must not run")
    assert states() == before


def test_generators_are_restored_when_a_suspended_block_is_closed():
    def iterate():
        with scope(42, "eval"):
            yield draw()

    before = states()
    iterator = iterate()
    next(iterator)
    assert states() != before
    iterator.close()
    assert states() == before


def test_scopes_nest():
    with scope(42, "a"):
        expected = draw(), draw()
    before = states()
    with scope(42, "a"):
        first = draw()
        with scope(42, "b"):
            inner = draw()
        assert (first, draw()) == expected
    assert inner not in expected
    assert states() == before


def test_scope_torch_only_neither_sets_nor_restores_the_others():
    before = states()
    with scope(42, "augment", torch_only=True):
        assert states()[:2] == before[:2]
        first = torch.rand(3)
        draw()
        inside = states()
    assert states()[:2] == inside[:2] != before[:2]
    assert states()[2] == before[2]
    assert torch.equal(first, torch.rand(3, generator=generator(42, "augment")))


def test_scope_is_a_reusable_decorator():
    decorated = scope(42, "init", "head")(draw)
    assert decorated() == decorated()


def test_dropout_and_initial_weights_follow_their_streams():
    # Dropout reads the global generator.
    def run() -> tuple[torch.Tensor, torch.Tensor]:
        with scope(42, "init", "head"):
            layer = nn.Linear(4, 4)
        with scope(42, "step", 0, 0, 0):
            return layer.weight, nn.functional.dropout2d(torch.ones(4, 8, 1, 1))

    pollute(1)
    weight, dropped = run()
    pollute(2)
    again, dropped_again = run()
    assert torch.equal(weight, again)
    assert torch.equal(dropped, dropped_again)
    assert 0 < dropped.count_nonzero() < dropped.numel()


def test_cpu_in_devices_changes_nothing():
    with scope(42, "step", 0):
        expected = draw()
    before = states()
    with scope(42, "step", 0, devices=iter([torch.device("cpu")])):
        assert draw() == expected
    assert states() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_generator_is_set_and_restored(name):
    device = torch.device(name)

    def on_device() -> list[float]:
        return torch.rand(4, device=device).tolist()

    torch.cuda.manual_seed_all(1)
    expected = on_device()
    torch.cuda.manual_seed_all(1)
    with scope(42, "step", 0, devices=[device]):
        first = on_device()
    assert on_device() == expected
    with scope(42, "step", 0, devices=iter([device])):
        assert on_device() == first
