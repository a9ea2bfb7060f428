"""The loader: the same bits from any number of workers, an exact place, and nothing of the caller's touched."""

import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import time
import tracemalloc
from itertools import islice
from multiprocessing import reduction
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from autotimm.data import ImageDataModule, KeyedDataset, KeyedLoader, loading_processes
from autotimm.data.formats import read_folder
from autotimm.data.loading_processes import killed_process
from autotimm.data.transforms import ImageTransform, train_transform
from autotimm.errors import DataError, UsageError
from autotimm.repro import KeyedBatchSampler, config_digest, tensor_digest
from autotimm.repro.permutation import KeyedPermutation


def draws_everywhere(image: Tensor) -> Tensor:
    """A user's own augmentation that reads all three global generators."""
    noise = torch.randn(3, 32, 32) + random.random() + np.random.rand()
    return (image.float() / 255 + 0.1 * noise).clamp(0, 1)


def loader(root: Path, workers: int = 0, persistent: bool = True, transform: Any = None, **options: Any) -> KeyedLoader:
    table = read_folder(root, [])["train"]
    apply = ImageTransform(transform or train_transform("strong", 32), "train_transforms")
    dataset = KeyedDataset(table, apply, seed=options.get("seed", 42))
    batches = KeyedBatchSampler(len(table), 5, options.get("seed", 42))
    return KeyedLoader(dataset, batches, num_workers=workers, persistent_workers=persistent)


def digests(source: Any) -> list[str]:
    return [config_digest([tensor_digest(b.images), tensor_digest(b.targets), b.ids]) for b in source]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("transform", [None, draws_everywhere], ids=["v2", "own"])
def test_any_number_of_workers_gives_the_same_bits(toy: Path, transform: Any) -> None:
    threads = torch.get_num_threads()
    reference = loader(toy, transform=transform)
    expected = [digests(reference) for _ in range(3)]
    assert len({digest for epoch in expected for digest in epoch}) == 15  # 24 samples, 5 a batch
    for workers, persistent in ((1, True), (2, True), (2, False), (3, True)):
        other = loader(toy, workers, persistent, transform)
        random.seed(workers)
        torch.manual_seed(workers)
        torch.set_num_threads(1 + workers % 2)
        assert [digests(other) for _ in range(3)] == expected, (workers, persistent)
        other.close()
    torch.set_num_threads(threads)


def test_other_seeds_differ(toy: Path) -> None:
    assert digests(loader(toy)) != digests(loader(toy, seed=43))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_callers_generators_and_threads_are_left_alone(toy: Path, workers: int) -> None:
    torch.set_num_threads(2)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    source = loader(toy, workers, transform=draws_everywhere)
    digests(source)
    source.close()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()  # type: ignore[index]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_place_can_be_saved_after_every_batch(toy: Path, workers: int) -> None:
    reference = loader(toy)
    epochs = [digests(reference) for _ in range(3)]
    running = loader(toy, workers)
    resumed = loader(toy, workers)
    for epoch in range(2):
        for number, _ in enumerate(running, 1):
            state = running.state_dict()
            assert state == {"epoch": epoch, "batch": number}  # what workers prepared in advance does not count
            if number in (2, 5):
                resumed.load_state_dict(state)
                resumed.sampler.set_epoch(epoch)  # as Lightning does after loading; the place is kept
                assert digests(resumed) == epochs[epoch][number:]
                assert digests(resumed) == epochs[epoch + 1]
    running.close()
    resumed.close()


def test_state_loaded_or_epoch_set_after_iter_still_counts(toy: Path) -> None:
    source = loader(toy)
    epochs = [digests(source) for _ in range(4)]
    iterator = iter(source)
    source.load_state_dict({"epoch": 2, "batch": 3})
    assert digests(iterator) == epochs[2][3:]
    iterator = iter(source)
    source.sampler.set_epoch(1)
    assert digests(iterator) == epochs[1]


def test_another_epoch_drops_the_place(toy: Path) -> None:
    source = loader(toy)
    epochs = [digests(source) for _ in range(3)]
    source.load_state_dict({"epoch": 0, "batch": 5})
    source.sampler.set_epoch(1)
    assert source.state_dict() == {"epoch": 1, "batch": 0}
    assert digests(source) == epochs[1]
    source.load_state_dict({"epoch": 1, "batch": 5})  # saved after the last batch: nothing of that epoch is left
    assert digests(source) == []
    assert digests(source) == epochs[2]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_an_epoch_left_early_is_followed_by_the_next_one(toy: Path, workers: int, persistent: bool) -> None:
    reference = loader(toy)
    epochs = [digests(reference) for _ in range(3)]
    source = loader(toy, workers, persistent)
    for epoch in epochs:
        assert digests(islice(source, 2)) == epoch[:2]
        assert source.state_dict()["batch"] == 2
    source.close()


def test_length_and_names(toy: Path) -> None:
    source = loader(toy)
    assert len(source) == 5
    assert source.batch_size == 5
    assert len(source.dataset) == len(source.sampler) == 24
    assert sorted(source.sampler) == list(range(24))


def test_two_loops_at_once_are_refused(toy: Path) -> None:
    source = loader(toy)
    first = iter(source)
    next(first)
    next(iter(source))
    with pytest.raises(UsageError, match="one loop at a time"):
        next(first)


@pytest.mark.skipif(sys.platform != "linux", reason="others do not tell who sent a signal")
def test_workers_leave_sigterm_to_the_training(toy: Path) -> None:
    """A scheduler sends it to all processes of a run; with two threads of torch, a forked worker has more than one."""
    expected, threads = digests(loader(toy)), torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(512, 512) @ torch.ones(512, 512)  # begins the threads
    read = loader(toy, 2)
    batches = iter(read)
    first = next(batches)
    workers = multiprocessing.active_children()
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in workers)], check=True)
    assert digests([first, *batches]) == expected
    assert all(worker.is_alive() for worker in workers)
    read.close()
    torch.set_num_threads(threads)


HANGS: list[Path] = []


def hang_once() -> None:
    for path in HANGS:
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        time.sleep(600)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_process_that_does_not_begin_is_forked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python before 3.12 may leave a forked process waiting for a lock, in the place of this handler."""
    monkeypatch.setattr(loading_processes.PatientPopen, "patience", 0.5)
    context = loading_processes.PatientForkContext()
    path = tmp_path / "hangs"
    path.touch()
    os.register_at_fork(after_in_child=hang_once)
    HANGS.append(path)
    queue = context.SimpleQueue()
    process = context.Process(target=queue.put, args=("begun",))
    process.start()
    HANGS.clear()
    assert not path.exists()
    assert queue.get() == "begun"
    process.join()
    assert process.exitcode == 0


class Own(Dataset[Any]):
    """A user's own data set: it knows nothing of keys."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert type(index) is int
        return torch.full((2,), np.random.rand()) + torch.rand(2), index


def test_own_dataset_gets_an_integer_and_a_stream() -> None:
    def batches(workers: int) -> list[Any]:
        source = KeyedLoader(KeyedDataset(Own(), seed=1), KeyedBatchSampler(7, 3, 1), num_workers=workers)
        return [(values.tolist(), index.tolist()) for _ in range(2) for values, index in source]

    assert batches(0) == batches(2)
    assert sorted(index for _, indices in batches(0)[:2] for index in indices) != list(range(7))  # one left over
    assert len({str(values) for values, _ in batches(0)}) == len(batches(0))


def test_a_file_that_goes_missing_is_named(toy: Path) -> None:
    for workers in (0, 2):
        source = loader(toy, workers)
        path = sorted(toy.rglob("*.png"))[workers]
        path.unlink()
        with pytest.raises(DataError, match=rf"{path.name} cannot be read as an image: there is no such file") as error:
            digests(source)
        assert "Traceback" not in str(error.value)
        source.close()


def different_sizes(image: Tensor) -> Tensor:
    side = 20 + int(image.sum()) % 7
    return image[:, :side, :side]


@pytest.mark.parametrize("workers", [0, 2])
def test_sizes_that_differ_are_said_plainly(toy: Path, workers: int) -> None:
    data = ImageDataModule(toy, train_transforms=different_sizes, num_workers=workers)
    with pytest.raises(UsageError, match=r"^The `train_transforms` must give images of one size"):
        list(data.train_dataloader())
    data.teardown()


def test_eval_stream_depends_on_the_id_alone(toy: Path) -> None:
    table = read_folder(toy, [])["train"]
    noisy = ImageTransform(draws_everywhere, "eval_transforms")

    def images(size: int, epoch: int) -> dict[str, str]:
        source = KeyedLoader(
            KeyedDataset(table, noisy, seed=3, stream="eval"), KeyedBatchSampler(len(table), size, 3, shuffle=False)
        )
        source.sampler.set_epoch(epoch)
        return {name: tensor_digest(one) for b in source for name, one in zip(b.ids, b.images, strict=True)}

    assert images(4, 0) == images(7, 5)


def test_torch_only_is_found_out(toy: Path) -> None:
    table = read_folder(toy, [])["train"]
    assert KeyedDataset(table, ImageTransform(v2.RandomHorizontalFlip(), "t"), seed=1).torch_only
    assert not KeyedDataset(table, ImageTransform(draws_everywhere, "t"), seed=1).torch_only
    assert not KeyedDataset(Own(), seed=1).torch_only


def test_a_billion_samples_start_and_resume_at_once() -> None:
    size, batch = 10**9, 20_000_000
    source = KeyedLoader(KeyedDataset(range(size), seed=42), KeyedBatchSampler(size, 32, 42))
    expected = KeyedPermutation(size, 42, "order", 3).at(np.arange(32 * batch, 32 * batch + 32))
    tracemalloc.start()
    try:
        source.load_state_dict({"epoch": 3, "batch": batch})
        resumed = next(iter(source))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # a list would have 8 GB
    assert resumed.tolist() == expected.tolist()
    assert source.state_dict() == {"epoch": 3, "batch": batch + 1}


def hand_over(ends: Any) -> None:
    """Offer a file to another process, as torch does with the memory of a batch, and wait."""
    with open(__file__, encoding="utf-8") as file:
        ends.send_bytes(ForkingPickler.dumps(reduction.DupFd(file.fileno())))
        time.sleep(60)


def test_a_process_that_died_before_it_handed_a_batch_over_is_a_killed_one() -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hand_over, args=(there,))
    process.start()
    offered = pickle.loads(here.recv_bytes())
    process.kill()
    process.join()
    with pytest.raises((ConnectionError, FileNotFoundError)) as lost:
        offered.detach()
    assert "A loading process was killed" in str(killed_process(lost.value))


def test_a_connection_that_is_lost_elsewhere_is_not_a_killed_process() -> None:
    with pytest.raises(ConnectionResetError) as lost:
        raise ConnectionResetError(104, "Connection reset by peer")
    assert killed_process(lost.value) is None
