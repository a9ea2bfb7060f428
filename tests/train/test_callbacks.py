"""Best and last checkpoints, the table of metrics, and steps on streams."""

import csv
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from autotimm import ImageClassifier, Run, Task
from autotimm.errors import RunError, UsageError
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.train.callbacks.epoch_metrics import EpochMetrics
from autotimm.train.callbacks.recorder import Recorder
from autotimm.train.callbacks.run_checkpoint import RunCheckpoint
from training import StopAfter, classifier, digest, toy_data, trained, trainer

NAN = float("nan")


class Script(pl.LightningModule):
    """Logs what it is told, one pair of accuracy and loss per epoch."""

    def __init__(self, accuracies, losses=()):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.accuracies, self.losses = accuracies, losses or [1.0] * len(accuracies)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", self.accuracies[self.current_epoch])
        self.log("val/loss", self.losses[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def play(folder, accuracies, losses=(), monitor="val/accuracy", **options):
    loader = DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=2)
    one = trainer(len(accuracies), run_dir=folder, monitor=monitor, **options)
    one.fit(Script(accuracies, losses), loader, loader)
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["epoch"] == len(accuracies) - 1
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")["epoch"]
    assert best == one.checkpoint_callback.best["epoch"]
    return best


class TestBest:
    @pytest.mark.parametrize(
        ("accuracies", "losses", "best"),
        [
            ([0.1, 0.9, 0.5], [], 1),
            ([0.5, 0.7, 0.7, 0.7], [1.0, 0.9, 0.8, 0.85], 2),  # among equals the lower loss
            ([0.5, 0.5], [1.0, 1.0], 0),  # equal in everything: the first
            ([NAN, 0.2, NAN], [], 1),
            ([0.2, NAN], [], 0),
            ([0.5, 0.6], [0.1, NAN], 1),
        ],
        ids=["largest", "tie", "first", "nan", "nan later", "loss nan"],
    )
    def test_the_epoch_with_the_best_score(self, tmp_path, accuracies, losses, best):
        assert play(tmp_path / "run", accuracies, losses) == best

    def test_a_loss_is_best_when_small(self, tmp_path):
        assert play(tmp_path / "run", [0.1, 0.2, 0.3], [0.5, 0.1, 0.9], monitor="val/loss") == 1

    def test_without_a_monitor_the_last_is_best(self, tmp_path):
        assert play(tmp_path / "run", [0.9, 0.1, 0.2], monitor=None) == 2

    def test_only_validated_epochs_compete(self, tmp_path):
        assert play(tmp_path / "run", [0.1, 0.5, 0.9, 0.4], check_val_every_n_epoch=2) == 1

    def test_without_validation_data_the_last_is_best(self, toy_folder, tmp_path, recwarn):
        one = trainer(3, run_dir=tmp_path / "run")
        one.fit(classifier(), datamodule=toy_data(toy_folder, val_split=0))
        files = tmp_path / "run" / "checkpoints"
        assert (files / "best.ckpt").read_bytes() == (files / "last.ckpt").read_bytes()
        assert one.checkpoint_callback.best["epoch"] == 2
        assert [str(one.message) for one in recwarn] == []

    def test_the_tasks_first_metric_is_watched(self, toy_folder, tmp_path):
        one = trainer(run_dir=tmp_path / "run")
        one.fit(classifier(), datamodule=toy_data(toy_folder))
        assert (one.checkpoint_callback.monitor, one.checkpoint_callback.mode) == ("val/accuracy", "max")
        other = trainer(run_dir=tmp_path / "other", monitor="val/f1")
        other.fit(classifier(), datamodule=toy_data(toy_folder))
        assert other.checkpoint_callback.monitor == "val/f1"


class TestFiles:
    def test_every_epoch_best_and_last_and_no_temporary_ones(self, toy_folder, tmp_path):
        trained(toy_folder, 3, run_dir=tmp_path / "run")
        names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
        ends = [f"epoch-{epoch:04d}-step-{3 * epoch:08d}.ckpt" for epoch in (1, 2, 3)]
        assert names == ["best.ckpt", *ends, "last.ckpt", "sha256.txt"]

    @pytest.mark.parametrize(("keep", "kept"), [("last", [4, 5]), (3, [3, 4, 5]), ("epochs", [1, 2, 3, 4, 5])])
    def test_what_is_kept(self, toy_folder, tmp_path, keep, kept):
        trained(toy_folder, 5, run_dir=tmp_path / "run", keep=keep)
        files = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("epoch-*"))
        assert files == [f"epoch-{epoch:04d}-step-{3 * epoch:08d}.ckpt" for epoch in kept]

    def test_no_folder_no_files(self, toy_folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        one = trainer(run_dir=False)
        one.fit(classifier(), datamodule=toy_data(toy_folder))
        assert not list(tmp_path.iterdir())
        assert one.checkpoint_callback.best_model_path == one.checkpoint_callback.last_model_path == ""

    def test_checkpoints_can_be_switched_off(self, toy_folder, tmp_path):
        trained(toy_folder, run_dir=tmp_path / "run", enable_checkpointing=False)
        assert not list((tmp_path / "run" / "checkpoints").iterdir())
        assert (tmp_path / "run" / "metrics.csv").exists()

    def test_a_checkpoint_callback_of_the_users_is_additional(self, toy_folder, tmp_path):
        theirs = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "theirs", monitor="val/loss")
        fitted = trainer(run_dir=tmp_path / "run", callbacks=[theirs])
        fitted.fit(classifier(), datamodule=toy_data(toy_folder))
        assert [str(path) for path in (tmp_path / "theirs").iterdir()] == [theirs.best_model_path]
        kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
        assert {"best.ckpt", "last.ckpt", "sha256.txt"} < kept
        assert fitted.checkpoint_callback.best_model_path == str(tmp_path / "run" / "checkpoints" / "best.ckpt")
        assert isinstance(Run(tmp_path / "run").model(), ImageClassifier)

    def test_a_checkpoint_callback_of_the_users_is_resumed_too(self, toy_folder, tmp_path):
        def fit(run, ckpt=None, stop=()):
            theirs = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / f"{run}-theirs", monitor="val/loss", save_top_k=2)
            fitted = trainer(3, run_dir=tmp_path / run, callbacks=[theirs, *stop])
            fitted.fit(classifier(), datamodule=toy_data(toy_folder), ckpt_path=ckpt)
            return sorted(Path(path).name for path in theirs.best_k_models), Path(theirs.best_model_path).name

        whole = fit("whole")
        fit("parts", stop=[StopAfter(1)])
        assert fit("parts", "last") == whole
        ledgers = [(tmp_path / run / "ledger.jsonl").read_bytes() for run in ("whole", "parts")]
        assert ledgers[0] == ledgers[1]

    def test_a_checkpoint_callback_of_the_users_needs_a_folder_of_its_own(self, toy_folder, tmp_path):
        theirs = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "run" / "checkpoints", save_last=True)
        with pytest.raises(UsageError, match="`dirpath` of ModelCheckpoint must be another folder"):
            trained(toy_folder, run_dir=tmp_path / "run", callbacks=[theirs])
        assert not (tmp_path / "run").exists()

    def test_temporary_space_elsewhere_is_not_needed(self, toy_folder, tmp_path, monkeypatch):
        """A full or missing /tmp must not stop a run whose own disk has room."""
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
        trained(toy_folder, run_dir=tmp_path / "run")
        assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()

    def test_the_state_is_plain(self, toy_folder, tmp_path):
        trained(toy_folder, run_dir=tmp_path / "run")
        state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["callbacks"]["RunCheckpoint"]
        again = RunCheckpoint(EpochMetrics())
        again.load_state_dict(state)
        assert again.state_dict() == state
        assert set(state["best"]["metrics"]) == {"train/loss", "val/accuracy", "val/f1", "val/loss"}


class TestTable:
    def rows(self, folder):
        with open(folder / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))

    def test_one_line_per_epoch(self, toy_folder, tmp_path):
        trained(toy_folder, 2, {"lr": 1e-3, "schedule": "constant", "warmup_epochs": 0}, run_dir=tmp_path / "run")
        rows = self.rows(tmp_path / "run")
        assert [(row["epoch"], row["step"], row["lr"]) for row in rows] == [("0", "3", "0.001"), ("1", "6", "0.001")]
        assert list(rows[0])[:3] == ["epoch", "step", "lr"]
        assert set(list(rows[0])[3:]) == {"train/loss", "val/accuracy", "val/f1", "val/loss"}

    def test_an_epoch_without_validation_has_none_of_an_earlier_one(self, toy_folder, tmp_path):
        trained(toy_folder, 4, run_dir=tmp_path / "run", check_val_every_n_epoch=2)
        rows = self.rows(tmp_path / "run")
        assert [bool(row["val/loss"]) for row in rows] == [False, True, False, True]
        assert all(row["train/loss"] for row in rows)

    def test_a_resumed_run_goes_on_where_its_checkpoint_was(self, toy_folder, tmp_path):
        trained(toy_folder, 3, run_dir=tmp_path / "run", callbacks=[StopAfter(1)])
        kept = self.rows(tmp_path / "run")
        with open(tmp_path / "run" / "metrics.csv", "a") as file:
            file.write("2,9,0.1,an epoch that no checkpoint has seen\n")
        trainer(3, run_dir=tmp_path / "run").fit(classifier(), datamodule=toy_data(toy_folder), ckpt_path="last")
        rows = self.rows(tmp_path / "run")
        assert rows[:2] == kept
        assert [row["epoch"] for row in rows] == ["0", "1", "2"]

    def test_a_loss_that_is_not_a_number_is_not_written_down(self, toy_folder, tmp_path):
        with pytest.raises(RunError):
            trained(toy_folder, 2, {"loss": lambda logits, targets: logits.sum() * NAN}, run_dir=tmp_path / "run")
        assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_loaded_best_scores_what_was_written(toy_folder, tmp_path):
    model = trained(toy_folder, 3, {"lr": 0.01}, run_dir=tmp_path / "run")
    loaded = Task.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert digest(loaded) == digest(model)


class LoggedByLightning(ImageClassifier):
    """Logs the loss of each step as Lightning's documentation tells."""

    def _logged_again(self, name, value, weight):
        return False


class Shown(pl.Callback):
    """Notes what loggers, progress bars and callbacks are shown in each step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        shown = trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics
        self.steps.append([{name: float(value) for name, value in metrics.items()} for metrics in shown])


class TestCostOfAStep:
    def test_losses_are_logged_as_lightning_logs_them(self, toy_folder, tmp_path):
        found = []
        for kind in (ImageClassifier, LoggedByLightning):
            shown, folder = Shown(), tmp_path / kind.__name__
            task = kind("test_resnet", 3, pretrained=False, image_size=32)
            trainer(2, run_dir=folder, callbacks=[shown]).fit(task, datamodule=toy_data(toy_folder))
            found.append((shown.steps, (folder / "metrics.csv").read_bytes(), digest(task)))
        assert found[0] == found[1]
        assert len(found[0][0]) == 6
        assert "train/loss_step" in found[0][0][-1][0]

    def test_nothing_is_digested_that_nobody_reads(self, toy_folder, tmp_path):
        lines = {}
        for folder in (False, tmp_path / "run"):
            one = trainer(run_dir=folder)
            one.fit(classifier(), datamodule=toy_data(toy_folder))
            ledger = next(callback for callback in one.callbacks if isinstance(callback, Recorder)).ledger
            lines[bool(folder)] = ledger.position["lines"]
        # The start, three steps, a validation and the end; and the digests after the first step and the epoch.
        assert lines == {False: 6, True: 8}

    def test_hooks_that_do_nothing_are_not_called(self):
        assert Recorder.on_before_backward is None
        assert EpochMetrics.on_train_batch_end is None
        assert callable(Recorder.on_train_batch_end)
        assert callable(EpochMetrics.on_validation_end)
