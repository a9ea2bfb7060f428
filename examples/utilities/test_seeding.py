"""Check on your own machine that seeding works.

pytest examples/utilities/test_seeding.py
"""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from autotimm import AutoTrainer, ImageClassifier, seed_everything
from autotimm.repro import key, state_digest


def draws() -> tuple[float, float, list[float]]:
    """One draw from each generator that a library may read."""
    return random.random(), float(np.random.rand()), torch.rand(3).tolist()


def initial_weights(**options) -> str:
    model = ImageClassifier("test_resnet", num_classes=3, pretrained=False, **options)
    return state_digest(model.state_dict())


def test_the_same_seed_gives_the_same_numbers() -> None:
    seed_everything(42)
    first = draws()
    seed_everything(42)
    assert draws() == first


def test_another_seed_gives_other_numbers() -> None:
    seed_everything(42)
    first = draws()
    seed_everything(123)
    second = draws()
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_the_seed_is_returned() -> None:
    assert seed_everything(7) == 7


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "42", True])
def test_a_wrong_seed_is_refused_before_anything_changes(seed: object) -> None:
    seed_everything(42)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="seed"):
        seed_everything(seed)
    assert torch.equal(torch.get_rng_state(), state)


def test_deterministic_sets_the_switches() -> None:
    seed_everything(42, deterministic=True)
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert torch.are_deterministic_algorithms_enabled()
    seed_everything(42, deterministic=False)
    assert not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


def test_child_processes_inherit_the_hash_seed() -> None:
    seed_everything(42)
    assert os.environ["PYTHONHASHSEED"] == "42"
    command = [sys.executable, "-c", "print(hash('autotimm'))"]
    hashes = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(hashes) == 1


def test_models_with_one_seed_are_equal() -> None:
    assert initial_weights(seed=42) == initial_weights(seed=42)
    assert initial_weights(seed=42) != initial_weights(seed=43)


def test_what_was_drawn_before_makes_no_difference() -> None:
    first = initial_weights(seed=42)
    torch.rand(17)
    random.seed(5)
    assert initial_weights(seed=42) == first


def test_seeding_by_hand_reaches_a_model_without_a_seed() -> None:
    seed_everything(42)
    first = initial_weights(seed=None)
    seed_everything(42)
    assert initial_weights(seed=None) == first
    assert initial_weights(seed=None) != first  # the next draw


def test_the_trainer_takes_the_default_seed() -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    assert AutoTrainer(max_epochs=1, **quiet).root_seed == AutoTrainer(max_epochs=1, seed=42, **quiet).root_seed == 42


def test_streams_are_functions_of_their_name_and_position() -> None:
    assert key(42, "order", 3) == key(42, "order", 3)
    assert len({key(42, "order", 3), key(42, "order", 4), key(42, "augment", 3), key(43, "order", 3)}) == 4
