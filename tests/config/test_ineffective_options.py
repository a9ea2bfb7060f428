"""Runs that cannot be: said before anything is trained, and without half a folder that the next try would trip over."""

import pytest
import pytorch_lightning as pl
import yaml
from filelock import FileLock
from pytorch_lightning.callbacks import Callback

import autotimm
from autotimm.cli.main import main
from autotimm.errors import RunError, UsageError
from autotimm.runs.run import fit_objects
from training import SMALL as SMALL_FIT
from training import StopAfter, classifier, toy_data, trained, trainer

SMALL = {name: value for name, value in SMALL_FIT.items() if name != "val_split"}


class Never(Callback):
    """Fails if anything is trained."""

    def on_sanity_check_start(self, *args):
        raise AssertionError("too late")

    on_train_start = on_sanity_check_start


class Fails(Callback):
    """Fails in a hook, as a caller's own code may."""

    def __init__(self, hook):
        setattr(self, hook, self._fail)

    def _fail(self, *args, **kwargs):
        raise RuntimeError("mine")


class TestTrainersThatLeaveNoRun:
    @pytest.mark.parametrize(
        ("section", "message"),
        [
            ({"run_dir": False}, "`run_dir` of fit must be left as it is by default"),
            ({"fast_dev_run": True}, "`fast_dev_run` of fit must be left as it is by default, since fit leaves a run"),
            ({"class_path": "pytorch_lightning.Trainer", "init_args": {"max_epochs": 1}},
             "`trainer` of fit must be an AutoTrainer"),
        ],
        ids=["run_dir", "fast_dev_run", "Lightning's"],
    )  # fmt: skip
    def test_in_a_file(self, toy_folder, tmp_path, monkeypatch, capfd, section, message):
        monkeypatch.chdir(tmp_path)
        file = tmp_path / "nested.yaml"
        model = {"backbone": "test_resnet", "num_classes": 3, "pretrained": False, "image_size": 32}
        data = {"data_dir": str(toy_folder), "image_size": 32, "batch_size": 8, "num_workers": 0}
        file.write_text(
            yaml.safe_dump(
                {
                    "model": {"class_path": "ImageClassifier", "init_args": model},
                    "data": {"class_path": "ImageDataModule", "init_args": data},
                    "trainer": section,
                }
            )
        )
        assert main(["fit", "--config", str(file)]) == 2
        shown = capfd.readouterr()
        assert message in shown.err
        assert "Traceback" not in shown.err
        assert list(tmp_path.iterdir()) == [file]

    def test_before_anything_is_trained(self, toy_folder, tmp_path):
        for one in (trainer(callbacks=[Never()]), pl.Trainer(callbacks=[Never()], logger=False, accelerator="cpu",
                                                             enable_checkpointing=False)):  # fmt: skip
            with pytest.raises(UsageError, match=r"since fit leaves a run|which leaves a run"):
                fit_objects(classifier(), toy_data(toy_folder), one)

    def test_a_variable(self, toy_folder, tmp_path, monkeypatch):
        monkeypatch.setenv("PL_TRAINER_FAST_DEV_RUN", "1")
        with pytest.raises(UsageError, match="PL_TRAINER_FAST_DEV_RUN out of the environment"):
            autotimm.fit(toy_folder, out=str(tmp_path), name="one", **SMALL)
        assert not list(tmp_path.iterdir())


class TestNothingIsLeft:
    def test_a_second_try_under_the_same_name(self, toy_folder, tmp_path, monkeypatch):
        monkeypatch.setenv("PL_TRAINER_VAL_CHECK_INTERVAL", "1000")  # more batches than there are
        with pytest.raises(ValueError, match="val_check_interval"):
            autotimm.fit(toy_folder, out=str(tmp_path), name="one", **SMALL)
        assert not list(tmp_path.iterdir())
        monkeypatch.undo()
        assert autotimm.fit(toy_folder, out=str(tmp_path), name="one", **SMALL).path == tmp_path / "one"

    @pytest.mark.parametrize("hook", ["setup", "on_sanity_check_start"])
    def test_of_objects(self, toy_folder, tmp_path, hook):
        with pytest.raises(RuntimeError, match="mine"):
            trained(toy_folder, run_dir=tmp_path / "run", callbacks=[Fails(hook)])
        assert not list(tmp_path.iterdir())

    def test_numbers_are_given_back(self, toy_folder, tmp_path):
        one = trainer(run_dir=None, default_root_dir=tmp_path, callbacks=[Fails("on_sanity_check_start")])
        with pytest.raises(RuntimeError, match="mine"):
            one.fit(classifier(), datamodule=toy_data(toy_folder))
        assert not list((tmp_path / "runs").iterdir())
        assert one.run_folder.chosen is None

    def test_what_was_there_before_stays(self, toy_folder, tmp_path):
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "config.yaml").write_text("mine: 1\n")
        (folder / "notes.txt").write_text("mine")
        with pytest.raises(RuntimeError, match="mine"):
            trained(toy_folder, run_dir=folder, callbacks=[Fails("on_sanity_check_start")])
        assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "notes.txt"]
        assert (folder / "config.yaml").read_text() == "mine: 1\n"

    def test_a_run_that_is_resumed_stays(self, toy_folder, tmp_path):
        trained(toy_folder, 2, run_dir=tmp_path / "run", callbacks=[StopAfter(0)])
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.ckpt")}
        with pytest.raises(RuntimeError, match="mine"):
            trainer(2, run_dir=tmp_path / "run", callbacks=[Fails("setup")]).fit(
                classifier(), datamodule=toy_data(toy_folder), ckpt_path="last"
            )
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.ckpt")} == before
        assert (tmp_path / "run" / "manifest.json").is_file()

    def test_a_run_that_somebody_else_writes_to_is_left_alone(self, toy_folder, tmp_path):
        trained(toy_folder, 2, run_dir=tmp_path / "run", callbacks=[StopAfter(0)])
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        with FileLock(tmp_path / "run" / ".lock"), pytest.raises(RunError, match="must have one writer"):
            trainer(2, run_dir=tmp_path / "run").fit(classifier(), datamodule=toy_data(toy_folder), ckpt_path="last")
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
