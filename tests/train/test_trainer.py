"""The trainer's promises: seeds, switches, variables, and that only what is named reaches the weights."""

import copy
import inspect
import json
import multiprocessing
import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, LambdaCallback
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import warm
from autotimm import AutoTrainer, ImageClassifier, ImageDataModule, seed_everything
from autotimm.data.toy import toy_images, write_toy_folder
from autotimm.errors import DataError, ModelError, UsageError
from autotimm.metrics import Monitor
from autotimm.records.digest import state_digest
from autotimm.repro.seed import set_deterministic
from autotimm.train.machine_limits import require_machine_for
from training import StopAfter, classifier, digest, toy_data, trained, trainer


def switches():
    cudnn = torch.backends.cudnn
    return cudnn.deterministic, cudnn.benchmark, torch.are_deterministic_algorithms_enabled()


class Watch(Callback):
    """Notes the switches and threads of each stage."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, *args):
        self.seen.append((*switches(), torch.get_num_threads()))

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start


class Noise(Callback):
    """Draws from every global generator."""

    def on_train_batch_start(self, *args):
        torch.rand(3), np.random.rand(2), random.random()

    on_train_batch_end = on_train_epoch_start = on_validation_batch_end = on_train_batch_start


class Fails(Callback):
    def on_train_batch_start(self, *args):
        raise ZeroDivisionError


class Plain(pl.LightningModule):
    """A module that knows nothing of autotimm."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, 3))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.layers(batch[0].float() / 255), batch[1])

    def validation_step(self, batch, batch_idx):
        torch.rand(1)
        self.log("val_loss", F.cross_entropy(self.layers(batch[0].float() / 255), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(scope="module")
def expected(toy_folder):
    """The digest of one epoch on the toy images."""
    return digest(trained(toy_folder))


class TestDefaults:
    def test_of_the_signature(self):
        shown = inspect.signature(AutoTrainer).parameters
        promised = {"max_epochs": 10, "seed": 42, "deterministic": True, "use_autotimm_seeding": False}
        assert {name: shown[name].default for name in promised} == promised

    def test_no_warning_and_the_same_bits_with_no_argument_given(self, tmp_path, monkeypatch, capfd):
        toy_folder = write_toy_folder(tmp_path / "toy" / "shapes", n=12, num_classes=3)
        monkeypatch.chdir(tmp_path)
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                data = ImageDataModule(toy_folder, image_size=32)
                model = ImageClassifier("test_resnet", data.num_classes)
                one = AutoTrainer(max_epochs=1)
                one.fit(model, datamodule=data)
                one.validate(model, datamodule=data)
                found.append(digest(model))
        assert found[0] == found[1]
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["shapes-001", "shapes-002"]
        shown = capfd.readouterr()
        assert shown.out == ""
        for tip in ("litlogger", "TPU", "GPU available", "LightningDeprecation", "num_workers", "Seed set"):
            assert tip not in shown.err

    @pytest.mark.parametrize(
        ("options", "must"),
        [
            ({"deterministic": "maybe"}, "`deterministic` of AutoTrainer must be True, False or 'warn'"),
            ({"keep": "some"}, "`keep` of AutoTrainer must be auto, last, epochs or a number of at least 1"),
            ({"keep": 0}, "`keep` of AutoTrainer must be"),
            ({"recipe": "auto", "enable_checkpointing": False}, "`recipe` of AutoTrainer must be plain without check"),
            ({"tuner": {"lr": True}}, "`tuner` of AutoTrainer must be a TunerConfig or None"),
            ({"calibrate": 2}, r"`calibrate` of AutoTrainer must be f1, a precision in \(0, 1\) or None"),
        ],
    )
    def test_wrong_arguments(self, options, must):
        with pytest.raises(UsageError, match=must):
            AutoTrainer(**options)

    def test_a_record_of_a_larger_machine_is_not_replayed(self):
        require_machine_for({"threads": 1, "devices": 1})
        with pytest.raises(ModelError, match=r"`threads` must be at most \d+ .* Use a larger machine"):
            require_machine_for({"threads": 10**6})

    def test_the_callers_list_of_callbacks_stays(self, toy_folder):
        mine = [Watch(), Noise()]
        before = list(mine)
        one = trainer(callbacks=mine)
        one.fit(classifier(ema_decay=0.9), datamodule=toy_data(toy_folder))
        assert mine == before
        assert mine[0] in trainer(callbacks=mine[0]).callbacks

    def test_an_unknown_argument(self):
        with pytest.raises(UsageError, match=r"AutoTrainer takes no argument `max_epoch`. Did you mean 'max_epochs'"):
            AutoTrainer(max_epoch=3)
        with pytest.raises(UsageError, match="Did you mean 'deterministic'"):
            AutoTrainer(determinstic=False)

    @pytest.mark.parametrize(
        "wrong", [{"threads": 0}, {"deterministic": "yes"}, {"run_dir": True}, {"seed": -1}, {"seed": True}]
    )
    def test_a_wrong_value(self, wrong):
        with pytest.raises(UsageError, match=f"`{next(iter(wrong))}` of AutoTrainer"):
            AutoTrainer(**wrong)

    def test_one_positional_argument(self):
        assert AutoTrainer(3, accelerator="cpu").max_epochs == 3
        with pytest.raises(TypeError):
            AutoTrainer(3, 7)
        with pytest.raises(TypeError):
            AutoTrainer(3, max_epochs=4)


class TestVariables:
    def test_both_prefixes_work_and_an_argument_wins(self, monkeypatch):
        monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "3")
        monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "0.5")
        monkeypatch.setenv("PL_AUTOTRAINER_LIMIT_VAL_BATCHES", "2")
        monkeypatch.setenv("PL_TRAINER_DETERMINISTIC", "False")
        monkeypatch.setenv("PL_TRAINER_ACCELERATOR", "cpu")
        one = AutoTrainer()
        assert (one.max_epochs, one.limit_train_batches, one.limit_val_batches) == (3, 0.5, 2)
        assert one.deterministic is False
        given = AutoTrainer(5, limit_train_batches=1.0, deterministic=True)
        assert (given.max_epochs, given.limit_train_batches, given.deterministic) == (5, 1.0, True)
        assert AutoTrainer(max_epochs=6).max_epochs == 6

    def test_our_own_name_wins_over_lightnings(self, monkeypatch):
        monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "3")
        monkeypatch.setenv("PL_AUTOTRAINER_MAX_EPOCHS", "4")
        assert AutoTrainer(accelerator="cpu").max_epochs == 4

    def test_our_own_arguments_have_variables_too(self, monkeypatch):
        monkeypatch.setenv("PL_AUTOTRAINER_SEED", "None")
        monkeypatch.setenv("PL_AUTOTRAINER_THREADS", "1")
        one = AutoTrainer(accelerator="cpu")
        assert (one.seed, one.threads) == (None, 1)

    @pytest.mark.parametrize(("true", "false", "null"), [("true", "false", "null"), ("TRUE", "False", "none")])
    def test_words_for_true_and_false_are_read_in_any_case(self, monkeypatch, true, false, null):
        monkeypatch.setenv("PL_TRAINER_ENABLE_PROGRESS_BAR", false)
        monkeypatch.setenv("PL_TRAINER_LOGGER", false)
        monkeypatch.setenv("PL_TRAINER_DETERMINISTIC", true)
        monkeypatch.setenv("PL_AUTOTRAINER_SEED", null)
        one = AutoTrainer(accelerator="cpu")
        assert (one.progress_bar_callback, one.loggers, one.deterministic, one.seed) == (None, [], True, None)

    def test_a_variable_that_is_no_number_is_an_error_of_usage(self, monkeypatch):
        monkeypatch.setenv("PL_TRAINER_THREADS", "abc")
        with pytest.raises(UsageError, match=r"`threads` of AutoTrainer must be .* Got 'abc' instead"):
            AutoTrainer(accelerator="cpu")


class TestSwitches:
    @pytest.mark.parametrize("wanted", [True, False])
    def test_they_reach_lightning_and_cudnn_and_are_given_back(self, toy_folder, wanted):
        model, watch = classifier(deterministic=wanted), Watch()
        set_deterministic(not wanted)
        before, threads = switches(), torch.get_num_threads()
        short = {f"limit_{stage}_batches": 1 for stage in ("train", "val", "test", "predict")}
        one = trainer(deterministic=wanted, callbacks=[watch], threads=2, **short)
        assert (one.deterministic, switches()) == (wanted, before)
        data = toy_data(toy_folder, test_split=0.2)
        one.fit(model, datamodule=data)
        one.validate(model, datamodule=data)
        one.test(model, datamodule=data)
        one.predict(model, data.val_dataloader())
        assert set(watch.seen) == {(wanted, not wanted, wanted, 2)}
        assert (switches(), torch.get_num_threads()) == (before, threads)

    def test_they_are_given_back_after_a_failure(self, toy_folder):
        model = classifier()
        set_deterministic(False)
        with pytest.raises(ZeroDivisionError):
            trainer(callbacks=[Fails()]).fit(model, datamodule=toy_data(toy_folder))
        assert switches() == (False, True, False)
        assert model.run_seed is None

    def test_warn_only(self, toy_folder):
        found = []

        class Look(Callback):
            def on_train_batch_start(self, *args):
                found.append(torch.is_deterministic_algorithms_warn_only_enabled())

        trained(toy_folder, deterministic="warn", callbacks=[Look()])
        assert found == [True] * 3
        assert not torch.is_deterministic_algorithms_warn_only_enabled()

    @pytest.mark.parametrize(("task", "run"), [(True, False), (False, True)])
    def test_one_warning_where_task_and_trainer_disagree(self, toy_folder, task, run, expected):
        model, watch = classifier(deterministic=task), Watch()
        with pytest.warns(UserWarning, match=f"deterministic={task} and the trainer with deterministic={run}") as found:
            trainer(deterministic=run, callbacks=[watch]).fit(model, datamodule=toy_data(toy_folder))
        assert len(found) == 1
        assert found[0].filename == __file__
        assert {one[0] for one in watch.seen} == {run}
        assert digest(model) == expected


class TestSeeds:
    def test_whichever_function_seeds_the_globals_our_tasks_get_the_same_weights(self, toy_folder, expected):
        assert digest(trained(toy_folder, use_autotimm_seeding=True)) == expected
        assert digest(trained(toy_folder, use_autotimm_seeding=False)) == expected

    @pytest.mark.parametrize("ours", [True, False])
    def test_the_choice_is_kept(self, toy_folder, ours, monkeypatch):
        monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
        model = classifier()
        monkeypatch.setenv("PYTHONHASHSEED", "1")
        found = []

        class Look(Callback):
            def setup(self, *args, **kwargs):
                found.append((torch.initial_seed(), "PL_GLOBAL_SEED" in os.environ, os.environ["PYTHONHASHSEED"]))

        trainer(seed=9, use_autotimm_seeding=ours, callbacks=[Look()]).fit(model, datamodule=toy_data(toy_folder))
        assert found == [(9, not ours, "9" if ours else "1")]

    def test_another_seed_gives_other_weights(self, toy_folder, expected):
        assert digest(trained(toy_folder, seed=43)) != expected
        assert digest(trained(toy_folder, task={"seed": 43})) != expected

    def test_none_leaves_the_callers_generators(self, toy_folder):
        model = classifier(head_dropout=0.3)
        seed_everything(5)
        one, data = trainer(seed=None), toy_data(toy_folder)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        one.fit(model, datamodule=data)
        one.validate(model, datamodule=data)
        one.predict(model, data.val_dataloader())
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]

    def test_none_is_drawn_once_and_recorded(self, toy_folder):
        seed_everything(5)
        first, second = trainer(seed=None), trainer(seed=None)
        seed_everything(5)
        assert trainer(seed=None).root_seed == first.root_seed != second.root_seed

    @pytest.mark.slow
    def test_none_in_fresh_processes(self, toy_folder):
        code = """
import sys
from autotimm import seed_everything
from training import classifier, digest, toy_data, trainer

def run():
    data, model, one = toy_data(sys.argv[1], seed=None), classifier(seed=None), trainer(seed=None)
    one.fit(model, datamodule=data)
    return digest(model)

free = run(), run()
seed_everything(42)
print(*free, run())
"""
        both = [warm.Program(["-c", f"import sys; sys.path[:] = {sys.path}\n{code}", toy_folder]) for _ in range(2)]
        one, two = (process.communicate()[0].split() for process in both)
        assert len({*one[:2], *two[:2]}) == 4  # free ones differ, within a process and between two
        assert one[2] == two[2]  # seeded by hand they agree


class TestOthersTrainers:
    """Our task and data module under Lightning's own trainer."""

    @pytest.mark.parametrize("workers", [0, 2])
    def test_workers_change_nothing(self, toy_folder, tmp_path, workers):
        def run(workers):
            model = classifier(head_dropout=0.3, ema_decay=0.9)
            plain = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path,
                               enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                               callbacks=[Noise()] if workers else [])  # fmt: skip
            plain.fit(model, datamodule=toy_data(toy_folder, num_workers=workers))
            return digest(model)

        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's own advice
            assert run(workers) == run(0)


def test_a_training_that_fails_leaves_no_loading_process(toy_folder):
    before = {*multiprocessing.active_children()}
    with pytest.raises(ZeroDivisionError) as failure:
        trainer(callbacks=[Fails()]).fit(classifier(), datamodule=toy_data(toy_folder, num_workers=2))
    assert {*multiprocessing.active_children()} <= before  # also while somebody looks at the error
    assert failure.traceback


class TestOthersModules:
    """A module of somebody who knows only Lightning."""

    def run(self, **options):
        pl.seed_everything(1, verbose=False)
        model = Plain()
        images, labels = toy_images(12, num_classes=3)
        loaders = [DataLoader(TensorDataset(images, labels), batch_size=4) for _ in range(2)]
        trainer(2, **options).fit(model, *loaders)
        return state_digest(model.state_dict())

    def test_its_dropout_is_keyed(self):
        found = self.run()
        assert self.run(callbacks=[Noise()]) == found
        assert self.run(limit_val_batches=0, num_sanity_val_steps=0) == found
        assert self.run(check_val_every_n_epoch=2) == found
        assert self.run(seed=43) != found

    def test_it_gets_a_run_folder(self, tmp_path):
        images, labels = toy_images(8, num_classes=3)
        loader = DataLoader(TensorDataset(images, labels), batch_size=4)
        one = trainer(2, run_dir=tmp_path / "run", monitor="val_loss")
        one.fit(Plain(), loader, loader)
        written = {path.name for path in (tmp_path / "run").iterdir()}
        assert written == {"config.yaml", "checkpoints", "metrics.csv", "model.safetensors", "results.json",
                           "manifest.json", "ledger.jsonl", ".lock"}  # fmt: skip
        assert "val_loss" in (tmp_path / "run" / "metrics.csv").read_text()

    def test_weights_that_are_shared_can_be_written(self, tmp_path):
        class Tied(Plain):
            def __init__(self):
                super().__init__()
                self.again = nn.Linear(3 * 32 * 32, 3)
                self.again.weight = self.layers[2].weight

        images, labels = toy_images(8, num_classes=3)
        trainer(run_dir=tmp_path / "run").fit(Tied(), DataLoader(TensorDataset(images, labels), batch_size=4))
        assert (tmp_path / "run" / "model.safetensors").exists()

    def test_objects_in_its_checkpoints_do_not_lose_the_run(self, tmp_path, capfd):
        class Keeps(Plain):
            def __init__(self, folder):
                super().__init__()
                self.save_hyperparameters()

        images, labels = toy_images(8, num_classes=3)
        loader = DataLoader(TensorDataset(images, labels), batch_size=4)
        trainer(run_dir=tmp_path / "run").fit(Keeps(Path("here")), loader)
        assert {"results.json", "checkpoints"} <= {path.name for path in (tmp_path / "run").iterdir()}
        assert "model.safetensors was not written" in capfd.readouterr().err


class TestResume:
    """Exact resume from an epoch's end. In the middle of an epoch it is a matter of issue 3."""

    @pytest.mark.parametrize(
        ("task", "data", "options"),
        [
            ({}, {}, {}),
            ({"ema_decay": 0.9}, {}, {}),
            ({"head_dropout": 0.3, "mixup_alpha": 0.4}, {"num_workers": 2}, {}),
            ({"schedule": "onecycle"}, {}, {"accumulate_grad_batches": 2}),
            ({"schedule": "plateau"}, {"balanced_sampling": True}, {}),
        ],
        ids=["plain", "averaged", "workers", "accumulated", "plateau"],
    )
    def test_it_gives_the_bits_of_a_run_that_was_never_stopped(self, toy_folder, tmp_path, task, data, options):
        def run(folder, callbacks=(), **fit):
            model = classifier(**task)
            one = trainer(3, run_dir=tmp_path / folder, callbacks=list(callbacks), **options)
            one.fit(model, datamodule=toy_data(toy_folder, **data), **fit)
            return digest(model)

        whole = run("whole")
        stopped = run("parts", [StopAfter(0)])
        resumed = run("parts", ckpt_path="last")
        assert stopped != whole
        assert resumed == whole
        for name in ("metrics.csv", "model.safetensors", "results.json"):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def test_a_moved_run_goes_on_and_keeps_its_best(self, toy_folder, tmp_path):
        whole = trainer(4, run_dir=tmp_path / "whole")
        whole.fit(classifier(), datamodule=toy_data(toy_folder))
        trainer(4, run_dir=tmp_path / "here", callbacks=[StopAfter(1)]).fit(
            classifier(), datamodule=toy_data(toy_folder)
        )
        (tmp_path / "here").rename(tmp_path / "there")
        one = trainer(4, run_dir=tmp_path / "there")
        one.fit(classifier(), datamodule=toy_data(toy_folder), ckpt_path="last")
        assert one.checkpoint_callback.best == whole.checkpoint_callback.best
        assert not (tmp_path / "here").exists()

    @pytest.mark.parametrize("folder", ["run", None, False])
    def test_nothing_to_go_on_from_is_an_error(self, toy_folder, tmp_path, folder):
        where = tmp_path / folder if folder else folder
        with pytest.raises(ModelError, match=r"must have a last\.ckpt"):
            trainer(run_dir=where, default_root_dir=tmp_path).fit(
                classifier(), datamodule=toy_data(toy_folder), ckpt_path="last"
            )
        assert not list(tmp_path.iterdir())


class TestVerbs:
    def test_test_without_test_data(self, toy_folder):
        with pytest.raises(DataError, match=r"There is no test data. Add a test/ folder"):
            trainer().test(classifier(), datamodule=toy_data(toy_folder))

    def test_best_can_be_named(self, toy_folder, tmp_path):
        model, data = classifier(lr=0.05), toy_data(toy_folder, test_split=0.2)
        one = trainer(3, run_dir=tmp_path / "run")
        one.fit(model, datamodule=data)
        best = one.checkpoint_callback.best["metrics"]
        found = one.validate(datamodule=data, ckpt_path="best")[0]
        assert found == {name: best[name] for name in found}
        assert one.test(model, datamodule=data, ckpt_path="best")

    def test_early_stopping(self, toy_folder):
        stop = EarlyStopping("val/accuracy", mode="max", patience=1)
        one = trainer(9, callbacks=[stop])
        one.fit(classifier(lr=1e-12), datamodule=toy_data(toy_folder))
        assert one.current_epoch == 2

    def test_a_deep_copy_of_a_task_that_was_trained_trains_alike(self, toy_folder):
        model = classifier()
        other = copy.deepcopy(model)
        for one in (model, other):
            trainer().fit(one, datamodule=toy_data(toy_folder))
        assert digest(model) == digest(other)

    @pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"limit_train_batches": 1}, {"max_steps": 2}])
    def test_short_runs_leave_no_folder_or_a_whole_one(self, toy_folder, tmp_path, options):
        folder = {} if "fast_dev_run" in options else {"run_dir": tmp_path / "run"}
        trained(toy_folder, **options, **folder)
        if folder:
            assert json.loads((tmp_path / "run" / "results.json").read_text())["last"]
        else:
            assert not list(tmp_path.iterdir())


class TestUsedAgain:
    def test_a_second_fit_begins_anew_in_the_next_folder(self, toy_folder, tmp_path):
        stopping = EarlyStopping("train/loss", patience=1, min_delta=9.0)  # stops after the second epoch
        again, data = trainer(5, run_dir=None, default_root_dir=tmp_path, callbacks=[stopping]), toy_data(toy_folder)
        ledgers = []
        for number in (1, 2, 3):
            again.fit(classifier(), datamodule=data)
            folder = again.run_folder.path
            assert folder == tmp_path / "runs" / f"{toy_folder.name}-{number:03d}"
            assert json.loads((folder / "manifest.json").read_text())["results"]["status"] == "finished"
            ledgers.append((folder / "ledger.jsonl").read_bytes())
        assert ledgers[0] == ledgers[1] == ledgers[2]
        assert again.current_epoch == 2

    """Trainers, tasks and folders that were used before."""

    def test_a_loaded_task_trains_in_training_mode_but_for_what_is_frozen(self, toy_folder, tmp_path):
        trained(toy_folder, run_dir=tmp_path / "run")
        for frozen in (False, True):
            path = tmp_path / "run" / "checkpoints" / "last.ckpt"
            model, modes = ImageClassifier.load_from_checkpoint(path, freeze_backbone=frozen), []
            trainer(callbacks=[LambdaCallback(on_train_batch_start=lambda t, m, *_, modes=modes: modes.append(
                (m.network.head.training, m.network.backbone.training)
            ))]).fit(model, datamodule=toy_data(toy_folder))  # fmt: skip
            assert set(modes) == {(True, not frozen)}

    def test_a_frozen_backbone_keeps_its_statistics_with_a_loader_of_ones_own(self):
        model = classifier(freeze_backbone=True)
        before = state_digest(model.network.backbone.state_dict())
        trainer().fit(model, DataLoader(TensorDataset(*toy_images(8, num_classes=3)), batch_size=4))
        assert state_digest(model.network.backbone.state_dict()) == before

    def test_an_average_does_not_reach_the_next_task(self, toy_folder):
        one, other = trainer(), classifier(seed=5)
        one.fit(classifier(ema_decay=0.5), datamodule=toy_data(toy_folder))
        expected = trainer().validate(other, datamodule=toy_data(toy_folder))
        assert one.validate(other, datamodule=toy_data(toy_folder)) == expected

    def test_a_second_attempt_in_the_folder_of_one_that_was_refused(self, toy_folder, tmp_path):
        with pytest.raises(UsageError, match="num_classes"):
            trainer(run_dir=tmp_path / "run").fit(classifier(num_classes=2), datamodule=toy_data(toy_folder))
        trainer(run_dir=tmp_path / "run").fit(classifier(), datamodule=toy_data(toy_folder))

    def test_a_run_that_goes_on_elsewhere_has_a_best_of_its_own(self, toy_folder, tmp_path):
        trained(toy_folder, 1, run_dir=tmp_path / "first")
        one = trainer(2, run_dir=tmp_path / "second")
        model = classifier(lr=1e-12, schedule="constant")  # nothing gets better
        one.fit(model, datamodule=toy_data(toy_folder), ckpt_path=tmp_path / "first" / "checkpoints" / "last.ckpt")
        assert (tmp_path / "second" / "checkpoints" / "best.ckpt").exists()
        assert (tmp_path / "second" / "results.json").exists()

    def test_the_task_says_what_is_best(self, toy_folder, tmp_path):
        class ByLoss(ImageClassifier):
            monitor = Monitor("val/loss", "min")

        one = trainer(run_dir=tmp_path / "run")
        one.fit(ByLoss("test_resnet", 3, pretrained=False, image_size=32), datamodule=toy_data(toy_folder))
        assert (one.checkpoint_callback.monitor, one.checkpoint_callback.mode) == ("val/loss", "min")

    def test_the_checkpoints_of_a_folder_can_be_named(self, toy_folder, tmp_path):
        trained(toy_folder, 1, run_dir=tmp_path / "run")
        path = tmp_path / "run" / "checkpoints" / "best.ckpt"
        expected = trainer().validate(classifier(seed=5), datamodule=toy_data(toy_folder), ckpt_path=path)
        for name in ("best", "last"):
            one = trainer(run_dir=tmp_path / "run")
            found = one.validate(classifier(seed=5), datamodule=toy_data(toy_folder), ckpt_path=name)
            assert found == expected
            with pytest.raises(ModelError, match=rf"must have a {name}\.ckpt"):
                trainer().validate(classifier(seed=5), datamodule=toy_data(toy_folder), ckpt_path=name)


def test_steps_alone_decide_when_they_are_given():
    assert AutoTrainer(max_steps=100, accelerator="cpu").max_epochs in (None, -1)
    assert AutoTrainer(3, max_steps=100, accelerator="cpu").max_epochs == 3
