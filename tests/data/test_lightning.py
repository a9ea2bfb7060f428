"""The data module and its loaders under a real Lightning trainer."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from autotimm.data import ImageDataModule
from autotimm.types import Batch

OPTIONS: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class Recorder(pl.LightningModule):
    """A tiny classifier that notes which samples it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.seen: list[tuple[int, int, tuple[str, ...]]] = []
        self.validated: list[str] = []
        self.tested: list[str] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append((self.trainer.current_epoch, batch_idx, batch.ids))
        output = self.layer(batch.images.float().mean((2, 3)) / 255)
        return nn.functional.cross_entropy(output, batch.targets)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated.extend(batch.ids)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.tested.extend(batch.ids)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(root: Path, epochs: int = 3, resume: Any = None, data: Any = None, **options: Any) -> Recorder:
    torch.manual_seed(0)
    task = Recorder()
    data = data or ImageDataModule(root, image_size=32, batch_size=4, num_workers=options.pop("workers", 0))
    callbacks = options.pop("callbacks", [])
    storing = {"enable_checkpointing": bool(callbacks), "callbacks": callbacks}
    trainer = pl.Trainer(max_epochs=epochs, **{**OPTIONS, **storing, **options})
    trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return task


@pytest.mark.filterwarnings("ignore::Warning")
def test_every_epoch_is_another_order_of_the_same_samples(toy: Path) -> None:
    seen = fit(toy).seen
    assert [(epoch, batch) for epoch, batch, _ in seen] == [(e, b) for e in range(3) for b in range(5)]
    orders = [[name for epoch, _, ids in seen if epoch == e for name in ids] for e in range(3)]
    assert orders[0] != orders[1]
    assert set(orders[0]) <= {name for order in orders for name in order}
    assert all(len(set(order)) == len(order) for order in orders)


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 5, 8, 10])
def test_resuming_goes_on_with_the_very_next_batch(toy: Path, tmp_path: Path, step: int, workers: int) -> None:
    whole = fit(toy)
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=step, save_top_k=-1)
    fit(toy, workers=workers, callbacks=[saver])
    resumed = fit(toy, workers=2 - workers, resume=next((tmp_path / "ckpt").glob(f"*step={step}.ckpt")))
    assert [ids for _, _, ids in resumed.seen] == [ids for _, _, ids in whole.seen[step:]]
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore::Warning")
def test_resuming_after_validation_in_and_at_the_end_of_an_epoch(toy: Path, tmp_path: Path) -> None:
    whole = fit(toy, val_check_interval=3)
    for number, saver in enumerate(
        [
            pl.callbacks.ModelCheckpoint(
                tmp_path / "0", every_n_epochs=1, save_on_train_epoch_end=False, save_top_k=-1
            ),
            pl.callbacks.ModelCheckpoint(tmp_path / "1", every_n_epochs=1, save_on_train_epoch_end=True, save_top_k=-1),
        ]
    ):
        fit(toy, callbacks=[saver], val_check_interval=3 if number == 0 else 1.0)
        for path in (tmp_path / str(number)).glob("*.ckpt"):
            step = int(path.stem.split("step=")[1])
            resumed = fit(toy, resume=path, val_check_interval=3 if number == 0 else 1.0)
            assert [ids for _, _, ids in resumed.seen] == [ids for _, _, ids in whole.seen[step:]], path.name


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("workers", [0, 2])
def test_shortened_epochs_begin_at_their_first_batch(toy: Path, workers: int) -> None:
    whole, short = fit(toy).seen, fit(toy, workers=workers, limit_train_batches=2).seen
    assert short == [entry for entry in whole if entry[1] < 2]
    stopped = fit(toy, epochs=-1, workers=workers, max_steps=7).seen
    assert stopped == whole[:7]


@pytest.mark.filterwarnings("ignore::Warning")
def test_overfitting_sees_the_same_batches_in_each_epoch(toy: Path) -> None:
    seen = fit(toy, overfit_batches=2).seen
    assert len(seen) == 6
    assert [ids for epoch, _, ids in seen if epoch == 0] == [ids for epoch, _, ids in seen if epoch == 2]


@pytest.mark.filterwarnings("ignore::Warning")
def test_validation_and_test_see_each_sample_once(toy: Path) -> None:
    data = ImageDataModule(toy, image_size=32, num_workers=2, val_split=0.25, test_split=0.25, eval_batch_size=4)
    task = fit(toy, epochs=2, data=data)
    pl.Trainer(**OPTIONS, enable_checkpointing=False).test(task, datamodule=data, verbose=False)
    assert task.validated == list(data.tables["val"].ids) * 2
    assert task.tested == list(data.tables["test"].ids)
    assert not set(task.validated) & set(task.tested)


@pytest.mark.filterwarnings("ignore::Warning")
def test_without_validation(toy: Path) -> None:
    data = ImageDataModule(toy, image_size=32, num_workers=0, val_split=0.0)
    task = fit(toy, epochs=1, data=data)
    assert task.validated == []
    assert len(task.seen) == 1


class Rank:
    """What a data module asks of a trainer that runs in two processes."""

    num_devices, world_size, overfit_batches = 2, 2, 0

    def __init__(self, rank: int) -> None:
        self.global_rank = rank


def test_processes_share_evaluation_exactly(toy: Path) -> None:
    shares = []
    for rank in range(2):
        data = ImageDataModule(
            toy, image_size=32, num_workers=0, eval_batch_size=4, val_split=0.6, pin_memory=False, batch_size=2
        )
        data.trainer = Rank(rank)  # type: ignore[assignment]
        shares.append([name for batch in data.val_dataloader() for name in batch.ids])
        assert all(len(batch.ids) == 2 for batch in data.train_dataloader())
    everything = sorted(data.tables["val"].ids)
    assert sorted(shares[0] + shares[1]) == everything
    assert len(everything) == 15
