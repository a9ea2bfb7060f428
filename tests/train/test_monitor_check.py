"""What is to tell the best epoch must be logged: a slip is named early, what a task logs is taken."""

import csv

import pytest
import torch

from autotimm import Batch, ImageClassifier, Stage, Step
from autotimm.errors import UsageError
from training import small_fit, toy_data, trained, trainer


class Named(ImageClassifier):
    """Two losses with names of their own."""

    def step(self, batch: Batch, stage: Stage) -> Step:
        found = super().step(batch, stage)
        halves = {"near_loss": found.loss / 2, "far_loss": found.loss / 2}
        return Step(halves, found.predictions, found.targets)


class Late(ImageClassifier):
    """Logs a loss at the end of an epoch only."""

    def on_train_epoch_end(self) -> None:
        self.log("train/late_loss", torch.tensor(float(self.current_epoch)))


def named(kind=Named):
    return kind("test_resnet", 3, pretrained=False, image_size=32)


@pytest.mark.parametrize("name", ["val/lossy", "train/lossy", "loss", "val/train_loss"])
def test_a_slip_leaves_nothing(toy_folder, tmp_path, name):
    with pytest.raises(UsageError, match=r"`monitor` of a task must be one of .*/loss.* Got") as found:
        small_fit(toy_folder, tmp_path, name="one", monitor=name)
    assert "Did you mean" in str(found.value) or "Give one of these" in str(found.value)
    assert not list(tmp_path.iterdir())


def test_the_nearest_is_named(toy_folder):
    with pytest.raises(UsageError, match="Did you mean 'val/loss'"):
        trained(toy_folder, monitor="val/lossy")
    with pytest.raises(UsageError, match="Did you mean 'train/loss'"):
        trained(toy_folder, monitor="train/lossy")


@pytest.mark.parametrize("name", ["val/near_loss", "train/far_loss", "train/loss", "val/loss"])
def test_the_losses_of_a_task(toy_folder, tmp_path, name):
    trainer(2, run_dir=tmp_path / "run", monitor=name).fit(named(), datamodule=toy_data(toy_folder))
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row[name] for row in csv.DictReader(file)] != ["", ""]


def test_a_loss_at_the_end_of_an_epoch(toy_folder, tmp_path):
    one = trainer(2, run_dir=tmp_path / "run", monitor="train/late_loss")
    one.fit(named(Late), datamodule=toy_data(toy_folder))
    assert one.checkpoint_callback.best["epoch"] == 0
    with pytest.raises(UsageError, match="Did you mean 'train/late_loss'"):
        trainer(2, monitor="train/lates_loss").fit(named(Late), datamodule=toy_data(toy_folder))


def test_without_a_sanity_check(toy_folder, tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'val/loss'"):
        trained(toy_folder, run_dir=tmp_path / "run", monitor="val/lossy", num_sanity_val_steps=0)
    assert not list(tmp_path.iterdir())
