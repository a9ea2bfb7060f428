import itertools
import json
import os
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import warm
from autotimm.errors import UsageError
from autotimm.repro import KeyedBatchSampler, config_digest, key, seed_everything, state_digest
from autotimm.repro.seed import (
    check_seed,
    default_threads,
    fixed_threads,
    preserve_switches,
    root_seed,
    set_deterministic,
)

CUBLAS, HASH = "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED"
INVALID_SEEDS = [True, False, -1, 2**32, 2**64, 42.0, float("nan"), "42", None, [42], 1j, np.bool_(True), np.float64(1)]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in (CUBLAS, HASH):
        monkeypatch.setenv(name, "")  # registers the variable, so that its value is restored after the test
        monkeypatch.delenv(name)


def generators() -> tuple[object, ...]:
    """The states of the global generators, comparable with `==`."""
    name, words, *rest = np.random.get_state()
    return random.getstate(), (name, words.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


def switches() -> dict[str, object]:
    return {
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        CUBLAS: os.environ.get(CUBLAS),
    }


def process_state() -> tuple[object, ...]:
    return generators(), switches(), dict(os.environ), torch.get_num_threads()


def draw() -> tuple[float, ...]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


# --- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1, np.int64(7), np.uint32(2**32 - 1)])
def test_valid_seeds_are_returned_as_python_integers(seed):
    for given in (check_seed(seed), seed_everything(seed), root_seed(seed, "Task")):
        assert given == int(seed)
        assert type(given) is int


@pytest.mark.parametrize("seed", INVALID_SEEDS, ids=repr)
@pytest.mark.parametrize("deterministic", [True, False])
def test_invalid_seed_changes_nothing(seed, deterministic):
    set_deterministic(not deterministic)
    before = process_state()
    with pytest.raises(UsageError) as caught:
        seed_everything(seed, deterministic)
    assert process_state() == before
    assert str(caught.value) == (
        f"The `seed` of seed_everything must be an integer in [0, 2**32). Got {seed!r} instead. Give for example 42."
    )


@pytest.mark.parametrize("deterministic", ["warn", 1, 0, None, "true"])
def test_invalid_deterministic_changes_nothing(deterministic):
    before = process_state()
    with pytest.raises(UsageError, match="The `deterministic` of seed_everything must be a bool"):
        seed_everything(42, deterministic)
    assert process_state() == before


@pytest.mark.parametrize("seed", [seed for seed in INVALID_SEEDS if seed is not None], ids=repr)
def test_invalid_root_seed_names_its_owner(seed):
    before = process_state()
    with pytest.raises(UsageError, match="The `seed` of AutoTrainer must be"):
        root_seed(seed, "AutoTrainer")
    assert process_state() == before


@pytest.mark.parametrize("deterministic", [True, False])
def test_generators_repeat_and_differ_by_seed(deterministic):
    seed_everything(42, deterministic)
    first = draw()
    state = generators()
    seed_everything(42, deterministic)
    assert draw() == first
    assert generators() == state
    seed_everything(43, deterministic)
    assert all(a != b for a, b in zip(first, draw(), strict=True))


def test_deterministic_does_not_change_the_numbers():
    seed_everything(42, True)
    first = draw()
    seed_everything(42, False)
    assert draw() == first


def test_global_generators_match_generators_with_that_seed():
    seed_everything(42)
    assert random.random() == random.Random(42).random()
    assert np.random.rand() == np.random.RandomState(42).rand()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(42)))


def test_defaults_are_42_and_deterministic():
    assert seed_everything() == 42
    assert os.environ[HASH] == "42"
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_devices_are_seeded():
    numbers = []
    for _ in range(2):
        seed_everything(42)
        numbers.append([torch.rand(3, device=f"cuda:{n}").tolist() for n in range(torch.cuda.device_count())])
    assert numbers[0] == numbers[1]


# --- variables for child processes -----------------------------------------------------------------------------------


def child_hash() -> str:
    code = "print(hash('autotimm'), list({'a', 'b', 'c', 'd', 'e'}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_hash_seed_affects_child_processes_only():
    own = hash("autotimm")
    seed_everything(7)
    assert os.environ[HASH] == "7"
    assert hash("autotimm") == own
    first = child_hash()
    assert child_hash() == first
    seed_everything(8)
    assert child_hash() != first


def test_largest_seed_is_a_valid_hash_seed():
    seed_everything(2**32 - 1)
    assert child_hash() == child_hash()


def test_deterministic_sets_the_cublas_workspace():
    seed_everything(42)
    assert os.environ[CUBLAS] == ":4096:8"


@pytest.mark.parametrize("deterministic", [True, False])
def test_existing_cublas_workspace_is_kept(deterministic):
    os.environ[CUBLAS] = ":16:8"
    seed_everything(42, deterministic)
    assert os.environ[CUBLAS] == ":16:8"


def test_fast_mode_sets_no_cublas_workspace():
    seed_everything(42, deterministic=False)
    assert CUBLAS not in os.environ


# --- switches --------------------------------------------------------------------------------------------------------

STARTS = [  # cudnn.deterministic, cudnn.benchmark, algorithms, warn_only, fill
    (False, False, False, False, True),
    (True, True, True, False, True),
    (True, False, True, True, False),
    (False, True, False, False, False),
]


def start_from(state: tuple[bool, ...]) -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = state[:2]
    torch.use_deterministic_algorithms(state[2], warn_only=state[3])
    torch.utils.deterministic.fill_uninitialized_memory = state[4]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("deterministic", [True, False])
def test_switches_do_not_depend_on_their_previous_values(start, deterministic):
    start_from(start)
    seed_everything(42, deterministic)
    result = switches()
    result.pop(CUBLAS)
    assert result == {
        "cudnn.deterministic": deterministic,
        "cudnn.benchmark": not deterministic,
        "algorithms": deterministic,
        "warn_only": False,
        "fill": False,
    }


def test_set_deterministic_leaves_generators_and_hash_seed_alone():
    before = generators()
    for deterministic in (True, False, True):
        set_deterministic(deterministic)
    assert generators() == before
    assert HASH not in os.environ


def test_set_deterministic_reaches_torch_kernels():
    def nondeterministic() -> None:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))

    set_deterministic(True)
    with pytest.raises(RuntimeError, match="deterministic"):
        nondeterministic()
    set_deterministic(False)
    nondeterministic()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("workspace", [None, ":16:8"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_preserve_switches_restores_every_switch(start, workspace, deterministic):
    start_from(start)
    if workspace is not None:
        os.environ[CUBLAS] = workspace
    before = switches()
    with preserve_switches():
        set_deterministic(deterministic)
        os.environ[CUBLAS] = ":0:0"
        torch.utils.deterministic.fill_uninitialized_memory = not start[4]
    assert switches() == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_preserve_switches_restores_after_an_exception(error):
    start_from(STARTS[2])
    before = switches()

    def fail() -> None:
        with preserve_switches():
            set_deterministic(False)
            raise error

    with pytest.raises(error):
        fail()
    assert switches() == before


def test_preserve_switches_nests_and_restores_a_removed_variable():
    os.environ[CUBLAS] = ":16:8"
    set_deterministic(True)
    outer = switches()
    with preserve_switches():
        set_deterministic(False)
        inner = switches()
        with preserve_switches():
            set_deterministic(True)
            del os.environ[CUBLAS]
        assert switches() == inner
    assert switches() == outer


def test_preserve_switches_leaves_generators_alone():
    before = generators()
    with preserve_switches():
        inside = draw()
    assert generators() != before
    assert draw() != inside


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_fixed_threads_sets_and_restores(threads):
    before = torch.get_num_threads()
    with fixed_threads(threads):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product([None, 1, 2], repeat=2)))
def test_fixed_threads_nests_and_survives_exceptions(outer, inner):
    def fail() -> None:
        with fixed_threads(outer):
            between = torch.get_num_threads()
            with fixed_threads(inner):
                assert torch.get_num_threads() == (inner or between)
            assert torch.get_num_threads() == between
            raise RuntimeError

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        fail()
    assert torch.get_num_threads() == before


def test_fixed_threads_restores_a_count_changed_inside():
    before = torch.get_num_threads()
    with fixed_threads(None):
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before


def test_default_threads_is_at_most_eight_and_independent_of_torch():
    expected = default_threads()
    assert 1 <= expected <= 8
    with fixed_threads(3):
        assert default_threads() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_default_threads_does_not_depend_on_cpu_affinity():
    result = {}

    def on_one_core() -> None:  # the affinity belongs to the thread, which ends here
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        result["threads"] = default_threads()

    thread = threading.Thread(target=on_one_core)
    thread.start()
    thread.join()
    assert result["threads"] == default_threads()


# --- root seeds ------------------------------------------------------------------------------------------------------


def test_given_root_seed_draws_nothing():
    before = generators()
    assert root_seed(42, "Task") == 42
    assert generators() == before


def test_missing_root_seed_is_one_draw_from_python_random():
    random.seed(1)
    twin = random.Random(1)
    _, numpy, torch_state = generators()
    assert root_seed(None, "Task") == twin.getrandbits(64)
    assert random.getstate() == twin.getstate()
    assert generators()[1:] == (numpy, torch_state)


def test_drawn_root_seeds_differ_and_repeat_after_seeding():
    seed_everything(42)
    first = root_seed(None, "Task"), root_seed(None, "AutoTrainer")
    assert first[0] != first[1]
    seed_everything(42)
    assert (root_seed(None, "Task"), root_seed(None, "AutoTrainer")) == first
    seed_everything(43)
    assert root_seed(None, "Task") != first[0]


def test_drawn_root_seeds_use_all_64_bits():
    random.seed(1)
    drawn = [root_seed(None, "Task") for _ in range(200)]
    assert len(set(drawn)) == 200
    assert all(0 <= seed < 2**64 for seed in drawn)
    assert all(0 < sum(seed >> bit & 1 for seed in drawn) < 200 for bit in range(64))


SCRIPT = """
import json
import torch
from autotimm.repro import KeyedBatchSampler, config_digest, key, seed_everything, state_digest
from autotimm.repro.seed import root_seed

fresh = [root_seed(None, "Task"), root_seed(None, "AutoTrainer")]
seed_everything(42)
seeded = [root_seed(None, "Task"), root_seed(None, "AutoTrainer")]
fixed = [
    key(42, "augment", 1, 2, "a.png"),
    KeyedBatchSampler(20, 4, 42).order(1),
    config_digest({"b": 1, "a": [1.5]}),
    state_digest({"b": torch.arange(3), "a": {"y": 1, "x": 2}}),
]
print(json.dumps({"fresh": fresh, "seeded": seeded, "fixed": fixed, "hash": hash("autotimm")}))
"""


@pytest.fixture(scope="module")
def two_processes():
    """The reports of two processes with different hash seeds, one of them that of the warm interpreter."""
    other = {HASH: "2" if os.environ.get(HASH) == "1" else "1"}
    first = subprocess.run([sys.executable, "-c", SCRIPT], env=os.environ | other, stdout=subprocess.PIPE)
    second = warm.run(["-c", SCRIPT])
    assert [first.returncode, second.returncode] == [0, 0], second.stderr
    return [json.loads(first.stdout), json.loads(second.stdout)]


def test_unseeded_processes_differ(two_processes):
    first, second = (process["fresh"] for process in two_processes)
    assert len({*first, *second}) == 4


def test_seeded_processes_draw_equal_root_seeds(two_processes):
    first, second = (process["seeded"] for process in two_processes)
    assert first == second
    assert first[0] != first[1]
    seed_everything(42)
    assert [root_seed(None, "Task"), root_seed(None, "AutoTrainer")] == first


def test_keys_orders_and_digests_do_not_depend_on_the_process(two_processes):
    assert two_processes[0]["hash"] != two_processes[1]["hash"]
    here = [
        key(42, "augment", 1, 2, "a.png"),
        KeyedBatchSampler(20, 4, 42).order(1),
        config_digest({"b": 1, "a": [1.5]}),
        state_digest({"b": torch.arange(3), "a": {"y": 1, "x": 2}}),
    ]
    assert [process["fixed"] for process in two_processes] == [here, here]
