"""A run that was stopped anywhere ends with the same bytes as one that never was."""

import itertools
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping

from autotimm.errors import DataError, ModelError
from autotimm.records.digest import file_digest
from autotimm.records.ledger import read_ledger
from autotimm.records.manifest import Manifest
from autotimm.runs.run import Run
from training import classifier, toy_data, trainer

FILES = ("ledger.jsonl", "metrics.csv", "splits.csv", "files.csv", "results.json", "model.safetensors")


class StoppedError(Exception):
    """Stands for the end of a process."""


class StopAt(Callback):
    """Ends a training without a word, in the middle of everything."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def on_train_batch_start(self, *args) -> None:
        if self.seen == self.step:
            raise StoppedError
        self.seen += 1


class Press(Callback):
    """Presses Ctrl-C in the last batch of an epoch: the run ends after the checkpoint of that epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.current_epoch == self.epoch and batch_idx + 1 == trainer.num_training_batches:
            os.kill(os.getpid(), signal.SIGINT)


def run(toy: Path, folder: Path, *, stop: int | None = None, resume: bool = False, task=None, data=None, **options):
    settings = {"checkpoint_every": 1, "callbacks": [], **options}
    callbacks = [*settings.pop("callbacks"), *([] if stop is None else [StopAt(stop)])]
    one = trainer(settings.pop("epochs", 2), run_dir=folder, callbacks=callbacks, **settings)
    module = toy_data(toy, **(data or {}))
    if stop is None:
        one.fit(classifier(**(task or {})), datamodule=module, ckpt_path="last" if resume else None)
        return
    with pytest.raises(StoppedError):
        one.fit(classifier(**(task or {})), datamodule=module, ckpt_path="last" if resume else None)


def digests(folder: Path) -> dict[str, str]:
    return {name: file_digest(folder / name) for name in FILES}


def same_after(stops, toy, tmp_path, **options):
    whole = tmp_path / "whole"
    run(toy, whole, **options)
    for stop in stops:
        folder = tmp_path / f"stopped{stop}"
        run(toy, folder, stop=stop, **options)
        run(toy, folder, resume=True, **options)
        assert digests(folder) == digests(whole), f"stopped before batch {stop}"
        assert read_ledger(folder / "ledger.jsonl").problem is None


VARIANTS = {
    "plain": {"epochs": 3},
    "mixup, average, dropout": {"task": {"mixup_alpha": 0.2, "ema_decay": 0.9, "head_dropout": 0.3}},
    "accumulated": {"accumulate_grad_batches": 2},
    "balanced": {"data": {"balanced_sampling": True}},
    "plateau": {"task": {"schedule": "plateau"}, "epochs": 3},
    "step schedule": {"task": {"schedule": "step"}, "epochs": 3},
    "onecycle": {"task": {"schedule": "onecycle"}},
    "validation within epochs": {"val_check_interval": 2},
    "rare validation": {"check_val_every_n_epoch": 2, "epochs": 3},
    "rare checkpoints": {"checkpoint_every": 4, "epochs": 3},
}


QUICK = {"plain", "mixup, average, dropout", "accumulated"}


@pytest.mark.parametrize(
    "options",
    [pytest.param(one, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, one in VARIANTS.items()],
)
def test_any_moment(options, toy_folder, tmp_path):
    same_after([2, 4, 5], toy_folder, tmp_path, **options)


def test_every_batch(toy_folder, tmp_path):
    same_after([1, 3], toy_folder, tmp_path)  # the others are among those above


def test_early_stopping(toy_folder, tmp_path):
    stopping = {"callbacks": [EarlyStopping("val/loss", patience=1)], "epochs": 5, "task": {"lr": 1e-6}}
    whole = tmp_path / "whole"
    run(toy_folder, whole, **stopping)
    for stop in (4, 5):
        stopping["callbacks"] = [EarlyStopping("val/loss", patience=1)]
        run(toy_folder, tmp_path / str(stop), stop=stop, **stopping)
        stopping["callbacks"] = [EarlyStopping("val/loss", patience=1)]
        run(toy_folder, tmp_path / str(stop), resume=True, **stopping)
        assert digests(tmp_path / str(stop)) == digests(whole)


@pytest.mark.parametrize(
    "stopping",
    [{"patience": 1}, {"patience": 3, "stopping_threshold": 100.0}, {"patience": 1, "check_on_train_epoch_end": False}],
    ids=["patience", "threshold", "after validation"],
)
def test_after_the_epoch_in_which_early_stopping_stops(stopping, toy_folder, tmp_path):
    options = {"epochs": 5, "task": {"lr": 1e-6}}
    run(toy_folder, tmp_path / "whole", callbacks=[EarlyStopping("val/loss", **stopping)], **options)
    last = [line for line in read_ledger(tmp_path / "whole" / "ledger.jsonl").lines if line["kind"] == "epoch"][-1]
    assert last["epoch"] < 4
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(toy_folder, folder, callbacks=[EarlyStopping("val/loss", **stopping), Press(last["epoch"])], **options)
    run(toy_folder, folder, resume=True, callbacks=[EarlyStopping("val/loss", **stopping)], **options)
    assert digests(folder) == digests(tmp_path / "whole")


@pytest.mark.parametrize("names", [True, False], ids=["all named", "before best.ckpt and last.ckpt got their names"])
def test_after_the_last_epoch(names, toy_folder, tmp_path):
    """Nothing is left to train, and the ledger is not at its end."""
    run(toy_folder, tmp_path / "whole", epochs=2)
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(toy_folder, folder, epochs=2, callbacks=[Press(1)])
    checkpoints = folder / "checkpoints"
    linked = {name: os.stat(checkpoints / name).st_ino for name in ("best.ckpt", "last.ckpt")}
    if not names:
        first = next(checkpoints.glob("epoch-0001-*"))
        for name in linked:
            (checkpoints / name).unlink()
            os.link(first, checkpoints / name)
    for _ in range(2):  # the second time of a run that is whole
        run(toy_folder, folder, epochs=2, resume=True)
        assert digests(folder) == digests(tmp_path / "whole")
        assert {name: os.stat(checkpoints / name).st_ino for name in linked} == linked
        assert Manifest.load(folder / "manifest.json").results["status"] == "finished"


def test_a_finished_run_stays_finished_when_it_may_not_go_on(toy_folder, tmp_path):
    photos = shutil.copytree(toy_folder, tmp_path / "photos")
    run(photos, tmp_path / "run", epochs=1)
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    next(iter(photos.rglob("*.png"))).unlink()
    with pytest.raises(DataError):
        run(photos, tmp_path / "run", epochs=1, resume=True)
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_another_number_of_workers_and_several_stops(toy_folder, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    options = {"epochs": 3, "task": {"mixup_alpha": 0.2}}
    run(toy_folder, whole, **options)
    for number, stop in enumerate((2, 1, 4)):
        settings = {"data": {"num_workers": number}, **options}
        run(toy_folder, folder, stop=stop, resume=number > 0, **settings)
    run(toy_folder, folder, resume=True, data={"num_workers": 1}, **options)
    assert digests(folder) == digests(whole)


def test_a_moved_folder_goes_on(toy_folder, tmp_path):
    run(toy_folder, tmp_path / "whole")
    run(toy_folder, tmp_path / "stopped", stop=4)
    shutil.move(tmp_path / "stopped", tmp_path / "elsewhere")
    run(toy_folder, tmp_path / "elsewhere", resume=True)
    assert digests(tmp_path / "elsewhere") == digests(tmp_path / "whole")


@pytest.mark.parametrize("stale", [True, False], ids=["names another epoch", "is not there"])
def test_a_kill_before_the_best_epoch_got_its_name(stale, toy_folder, tmp_path):
    """The file of the epoch is written, `best.ckpt` is not yet, or is still that of another epoch."""
    folder = tmp_path / "stopped"
    run(toy_folder, folder, stop=6, epochs=3)  # at the start of the third epoch
    best = folder / "checkpoints" / "best.ckpt"
    ends = [*best.parent.glob("epoch-*")]
    (right,) = (path for path in ends if path.samefile(best))
    (other,) = (path for path in ends if path != right)
    best.unlink()
    if stale:
        os.link(other, best)
    run(toy_folder, folder, stop=0, resume=True, epochs=3)
    assert best.samefile(right)


def test_a_kill_before_the_first_checkpoint_got_its_second_name(toy_folder, tmp_path):
    run(toy_folder, tmp_path / "whole")
    folder = tmp_path / "stopped"
    run(toy_folder, folder, stop=1)
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert Run(folder).checkpoint("last").name == "step-00000001.ckpt"
    run(toy_folder, folder, resume=True)
    assert digests(folder) == digests(tmp_path / "whole")


class TestDamage:
    def test_the_newest_is_damaged(self, toy_folder, tmp_path, capsys):
        run(toy_folder, tmp_path / "whole")
        folder = tmp_path / "stopped"
        run(toy_folder, folder, stop=5)
        newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
        with newest.open("r+b") as file:
            file.seek(2000)
            file.write(b"damage")
        run(toy_folder, folder, resume=True)
        assert f"{newest.name}: damaged since it was written; resuming from" in capsys.readouterr().err
        assert digests(folder) == digests(tmp_path / "whole")

    def test_all_are_damaged(self, toy_folder, tmp_path):
        folder = tmp_path / "stopped"
        run(toy_folder, folder, stop=2)
        for path in (folder / "checkpoints").glob("step-*"):
            path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ModelError, match="All of them are damaged"):
            run(toy_folder, folder, resume=True)

    def test_the_list_of_digests_is_missing(self, toy_folder, tmp_path):
        folder = tmp_path / "stopped"
        run(toy_folder, folder, stop=2)
        (folder / "checkpoints" / "sha256.txt").unlink()
        with pytest.raises(ModelError, match=r"The list checkpoints/sha256\.txt is missing"):
            run(toy_folder, folder, resume=True)

    def test_what_a_killed_process_was_writing_is_swept_away(self, toy_folder, tmp_path):
        folder = tmp_path / "stopped"
        run(toy_folder, folder, stop=2)
        (folder / "checkpoints" / ".last.ckpt.12345.tmp").write_bytes(b"half")
        run(toy_folder, folder, resume=True)
        assert not [*(folder / "checkpoints").glob(".*")]

    def test_a_ledger_that_was_cut_short_has_a_gap(self, toy_folder, tmp_path):
        folder = tmp_path / "stopped"
        run(toy_folder, folder, stop=5)
        ledger = folder / "ledger.jsonl"
        ledger.write_bytes(ledger.read_bytes()[:500])
        run(toy_folder, folder, resume=True)
        lines = read_ledger(ledger)
        assert lines.problem is None
        assert [line["kind"] for line in lines.lines].count("gap") == 1


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def test_a_checkpoint_that_would_run_code_is_refused(toy_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(toy_folder, tmp_path / "stopped", stop=4)
    folder = tmp_path / "stopped" / "checkpoints"
    known = folder / "sha256.txt"
    for file in [*folder.glob("*.ckpt")]:  # with a digest that fits: whoever plants one can write the other
        before, content = file_digest(file), torch.load(file, weights_only=True)
        file.unlink()  # names of one file would all change with it
        torch.save({**content, "extra": Evil()}, file)
        known.write_text(known.read_text().replace(before, file_digest(file)))
    with pytest.raises(ModelError, match="could run code"):
        run(toy_folder, tmp_path / "stopped", resume=True)
    assert not (tmp_path / "evil-was-here").exists()


def test_a_clock_that_goes_backwards_changes_nothing(toy_folder, tmp_path, monkeypatch):
    run(toy_folder, tmp_path / "whole")
    hours = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(hours)))
    run(toy_folder, tmp_path / "stopped", stop=4)
    run(toy_folder, tmp_path / "stopped", resume=True)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")
