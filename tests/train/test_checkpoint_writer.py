import threading
from pathlib import Path

import pytest
import torch

from autotimm.errors import RunError
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.train.checkpoint_writer import CheckpointWriter, DirectCheckpointIO, write_checkpoint


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path, "epochs")


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_what_is_written_is_the_state_when_it_was_taken(store: CheckpointStore) -> None:
    weights, going_on = torch.ones(4), threading.Event()
    state = {"state_dict": {"weight": weights, "tied": weights}, "epoch": 3}
    named: list[bool] = []
    store.remember = lambda digest: going_on.wait(30)  # the thread stands here while the training goes on
    writer = CheckpointWriter()
    writer.write_later(store, "step-00000001.ckpt", lambda path: [state], lambda: named.append(True))
    weights += 1
    state["epoch"] = 4
    assert not named
    assert not (store.folder / "step-00000001.ckpt").exists()
    going_on.set()
    writer.close()
    assert named
    written = read(store.folder / "step-00000001.ckpt")
    assert written["epoch"] == 3
    assert written["state_dict"]["weight"].tolist() == [1, 1, 1, 1]
    assert written["state_dict"]["weight"].data_ptr() == written["state_dict"]["tied"].data_ptr()
    assert store.whole(store.folder / "step-00000001.ckpt")


def test_the_bytes_are_those_of_a_checkpoint_written_at_once(store: CheckpointStore) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = {"state_dict": network.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    writer = CheckpointWriter()
    writer.write_later(store, "step-00000001.ckpt", lambda path: [state], lambda: None)
    writer.close()
    write_checkpoint(state, store.folder / "expected")
    assert (store.folder / "step-00000001.ckpt").read_bytes() == (store.folder / "expected").read_bytes()


def test_a_tensor_with_a_graph_behind_it_is_written_too(store: CheckpointStore) -> None:
    weight = torch.ones(2, requires_grad=True)
    writer = CheckpointWriter()
    writer.write_later(store, "step-00000001.ckpt", lambda path: [{"callbacks": {"sum": weight * 2}}], lambda: None)
    writer.close()
    assert read(store.folder / "step-00000001.ckpt")["callbacks"]["sum"].tolist() == [2, 2]


def test_what_a_strategy_writes_itself_gets_its_name_and_digest(store: CheckpointStore) -> None:
    def strategy(path: Path) -> list[dict]:
        path.write_bytes(b"shards")
        return []

    writer = CheckpointWriter()
    writer.write_later(store, "step-00000001.ckpt", strategy, lambda: None)
    writer.close()
    assert (store.folder / "step-00000001.ckpt").read_bytes() == b"shards"
    assert store.whole(store.folder / "step-00000001.ckpt")


def test_a_failure_is_raised_by_whoever_comes_next_and_leaves_nothing(store: CheckpointStore) -> None:
    def full(digest: str) -> None:
        raise OSError(28, "No space left on device")

    store.remember = full
    writer = CheckpointWriter()
    writer.write_later(store, "step-00000001.ckpt", lambda path: [{}], lambda: None)
    with pytest.raises(RunError, match=r"could not be written: .*No space left.* The one before it is unharmed"):
        writer.write_later(store, "step-00000002.ckpt", lambda path: [{}], lambda: None)
    writer.close()
    assert list(store.folder.glob("*.ckpt")) == []
    assert list(store.folder.glob(".*")) == []


def test_checkpoints_are_written_one_after_the_other(store: CheckpointStore) -> None:
    order: list[int] = []
    writer = CheckpointWriter()
    for step in range(5):
        writer.write_later(
            store, store.name(step), lambda path, step=step: [{"step": step}], lambda step=step: order.append(step)
        )
    writer.close()
    assert order == [0, 1, 2, 3, 4]
    assert [read(path)["step"] for path in store.files()] == order


def test_a_removed_folder_is_not_made_again(store: CheckpointStore) -> None:
    writer = CheckpointWriter()
    store.folder.rmdir()
    with pytest.raises(RunError, match="there is no such folder"):
        writer.write_later(store, "step-00000001.ckpt", lambda path: [{}], lambda: None)
    assert not store.folder.exists()


def test_keeping_hands_over_what_would_be_written(tmp_path: Path) -> None:
    io = DirectCheckpointIO()
    with io.keeping() as kept:
        io.save_checkpoint({"epoch": 1}, tmp_path / "a.ckpt")
    assert kept == [{"epoch": 1}]
    assert list(tmp_path.iterdir()) == []
    io.save_checkpoint({"epoch": 2}, tmp_path / "b.ckpt")
    assert read(tmp_path / "b.ckpt") == {"epoch": 2}
