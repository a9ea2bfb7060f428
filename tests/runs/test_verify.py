"""Replaying runs: identical where they are, and the cause in words where one was planted."""

import dataclasses
import json
import re
import shutil
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch import nn

import autotimm
from autotimm import repro
from autotimm.errors import DataError, IncompleteError, ModelError, UsageError
from autotimm.records.manifest import Manifest
from autotimm.records.replay_versions import CURRENT
from autotimm.records.run_folder import RunFolder
from autotimm.runs.recorded_classes import replayed_settings
from autotimm.runs.restore import rebuild
from autotimm.runs.run import Run, diff
from autotimm.runs.verify import _says_more
from autotimm.train.run_description import UNKEYED_WEIGHTS
from training import SMALL, classifier, small_fit, toy_data, trainer


def fit(photos, out, name="one", **options):
    return small_fit(photos, out, **{"name": name, "epochs": 2, **options})


def best_epoch(run):
    """The number of the best epoch, from 1."""
    lines = map(json.loads, (run.path / "ledger.jsonl").read_text().splitlines())
    epochs = [line for line in lines if line["kind"] == "epoch"]
    best = Manifest.load(run.path / "manifest.json").results["metrics"]
    return next(line["epoch"] + 1 for line in epochs if line["metrics"] == best)


@pytest.fixture(autouse=True)
def own_state(monkeypatch, tmp_path):
    """What one test has checked is not known to the next: copies of a run are one record."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def copy(run, tmp_path):
    return Run(shutil.copytree(run.path, tmp_path / "copy"))


class TestIdentical:
    def test_a_run(self, photos, tmp_path):
        copy = fit(photos, tmp_path)
        assert copy.level()["R1"] == "expected"
        assert copy.verify(steps=2).identical
        assert copy.level()["R1"] == "expected"
        verdict = copy.verify()
        assert (verdict.verdict, verdict.exit_code, verdict.steps) == ("identical", 0, 6)
        assert str(verdict) == "verdict: identical (6 steps compared)"
        assert copy.level()["R1"] == "checked"

    def test_some_steps(self, run):
        assert run.verify(steps=2).steps == 2

    def test_some_epochs_with_workers(self, copy):
        verdict = copy.verify(epochs=(2, 2), workers=2)
        assert (verdict.verdict, verdict.steps) == ("identical", 3)
        assert copy.level()["R3"] == "checked with 2 workers in epochs 2 to 2"
        assert copy.level()["R2"] == "checked from the checkpoint before epoch 2 to epoch 2"

    def test_files_that_no_run_writes_are_named(self, copy):
        (copy.path / "fold-1").mkdir()  # it was not cross-validated
        (copy.path / "notes.txt").touch()
        assert copy.verify().not_checked == ("fold-1, notes.txt",)

    def test_the_recorded_number_of_workers_checks_no_others(self, copy):
        assert copy.verify(epochs=(2, 2), workers=0).identical
        assert copy.level()["R3"] == "expected"

    def test_a_claim_about_the_whole_run_is_kept(self, copy):
        manifest = Manifest.load(copy.path / "manifest.json")
        for said in ("checked with 2 workers in epochs 2 to 2", "checked with 2 workers"):
            assert _says_more(said, manifest.levels["R3"])
            manifest = dataclasses.replace(manifest, levels={**manifest.levels, "R3": said})
        assert not _says_more("checked with 3 workers in epochs 1 to 1", manifest.levels["R3"])

    def test_epochs_without_a_checkpoint_before_them(self, copy):
        next((copy.path / "checkpoints").glob("epoch-0001-*")).unlink()
        with pytest.raises(UsageError, match=r"It can begin at epoch 1\."):
            copy.verify(epochs=(2, 2))

    def test_epochs_after_a_damaged_checkpoint(self, copy):
        path = next((copy.path / "checkpoints").glob("epoch-0001-*"))
        path.write_bytes(path.read_bytes()[:-100])
        verdict = copy.verify(epochs=(2, 2))
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 4)
        assert "must be intact to begin there. It may not be: it was damaged since it was written" in verdict.reason

    def test_arguments_of_the_recorded_trainer_have_names(self):
        with pytest.raises(ModelError, match=r"must have arguments by name. It has not: the record is damaged"):
            replayed_settings(["accelerator"])

    def test_notes_beside_the_weights_are_a_difference(self, copy):
        tensors = load_file(copy.path / "model.safetensors")
        save_file(tensors, copy.path / "model.safetensors", {"note": "mine"})
        verdict = copy.verify()
        assert verdict.verdict == "different"
        assert any("model.safetensors: it holds notes beside its tensors" in each for each in verdict.findings)

    @pytest.mark.parametrize("wrong", [
        {"steps": 0}, {"steps": True}, {"steps": "2"}, {"epochs": (2, 1)}, {"epochs": (0, 1)}, {"epochs": "1:2"},
        {"epochs": (1,)}, {"stretches": 0}, {"budget": "10%"}, {"stretches": 1, "budget": 0.5}, {"challenge": 1},
        {"stretches": 1, "epochs": (1, 1)}, {"budget": 0.5, "explain": True}, {"jobs": 2}, {"commitment": 5},
    ], ids=str)  # fmt: skip
    def test_arguments_without_a_meaning_are_refused(self, run, wrong):
        with pytest.raises(UsageError, match=rf"The `{[*wrong][-1]}` of verify must be"):
            run.verify(**wrong)

    def test_epochs_that_the_run_has_not_made(self, run):
        with pytest.raises(UsageError, match=r"Got 2:9 instead\. The last is 2"):
            run.verify(epochs=(2, 9))

    def test_some_steps_of_some_epochs(self, run):
        assert run.verify(epochs=(2, 2), steps=2).steps == 2

    def test_epochs_after_the_best(self, photos, tmp_path):
        # The replay begins without the file of the best epoch, which once made its first epoch the best.
        options = {"epochs": 3, "lr": 0.3, "optimizer": "sgd", "schedule": "constant", "monitor": "val/loss"}
        runs = (fit(photos, tmp_path, f"seed-{seed}", seed=seed, keep="epochs", **options) for seed in (6, *range(6)))
        run = next(run for run in runs if best_epoch(run) == 1)
        verdict = run.verify(epochs=(2, 3))
        assert (verdict.verdict, verdict.steps, verdict.findings) == ("identical", 6, ())
        assert "checkpoints/best.ckpt" in verdict.not_checked
        assert run.verify(epochs=(3, 3)).identical
        assert run.verify().identical

    def test_a_checkpoint_within_an_epoch_does_not_count_validations(self, photos, tmp_path):
        # A replay from the checkpoint of an epoch has not validated that epoch.
        run = fit(photos, tmp_path, checkpoint_every=1)
        assert (run.path / "checkpoints" / "step-00000005.ckpt").exists()
        verdict = run.verify(epochs=(2, 2))
        assert (verdict.verdict, verdict.findings) == ("identical", ())

    def test_data_that_is_gone_is_asked_for(self, photos, tmp_path):
        here, there = shutil.copytree(photos, tmp_path / "here"), tmp_path / "there"
        run = fit(here, tmp_path, "one")
        here.rename(there)
        asked = "If the data was moved, give its new place as `data` (`--data`)."
        verdict = run.verify()
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 3)
        assert verdict.reason.startswith(f"{here} must be a folder of images.")
        assert verdict.reason.endswith(asked)
        assert run.verify(data=there).identical
        assert asked not in run.verify(data=tmp_path / "nowhere").reason
        with pytest.raises(DataError, match=re.escape(asked)):
            run.reproduce(tmp_path / "again")
        assert not (tmp_path / "again").exists()

    def test_moved_data(self, run, photos, tmp_path):
        shutil.copytree(photos, tmp_path / "moved")
        assert run.verify(data=tmp_path / "moved").identical

    def test_a_run_of_objects(self, photos, tmp_path):
        auto_trainer = trainer(2, run_dir=tmp_path / "run")
        auto_trainer.fit(classifier(mixup_alpha=0.2, ema_decay=0.9), datamodule=toy_data(photos))
        assert Run(tmp_path / "run").verify().identical

    @pytest.mark.slow
    def test_found_learning_rate_and_batch_size_are_read_back(self, photos, tmp_path):
        searched = small_fit(photos, tmp_path, batch_size=None, epochs=2, lr_find=True, batch_size_find=True)
        decided = Manifest.load(searched.path / "manifest.json").decisions
        assert 0 < decided["lr"] < 1
        assert decided["batch_size"] != SMALL["batch_size"]
        assert searched.verify().identical

    def test_a_reproduced_run_is_equal(self, run, tmp_path):
        again = run.reproduce(tmp_path / "again")
        comparison = diff(run.path, again.path)
        assert comparison.equal
        assert not [difference for difference in comparison.manifests if difference.section == "inputs"]
        for name in ("ledger.jsonl", "splits.csv", "metrics.csv", "model.safetensors", "files.csv"):
            assert (run.path / name).read_bytes() == (again.path / name).read_bytes(), name

    def test_an_interrupted_run_is_compared_up_to_its_end(self, photos, tmp_path):
        class Boom(Callback):
            def on_train_epoch_start(self, trainer, *args):
                if trainer.current_epoch == 1:
                    raise RuntimeError

        auto_trainer = trainer(2, run_dir=tmp_path / "run")
        auto_trainer.callbacks.insert(0, Boom())
        with pytest.raises(RuntimeError):
            auto_trainer.fit(classifier(), datamodule=toy_data(photos))
        verdict = Run(tmp_path / "run").verify()
        assert (verdict.verdict, verdict.exit_code, verdict.steps) == ("incomplete", 6, 3)
        assert verdict.notes == ("the run did not finish; compared up to where it stopped",)
        with pytest.raises(IncompleteError, match="the run did not finish"):
            verdict.require_identical()
        assert str(Run(tmp_path / "run").verify(steps=2)).endswith("identical in part (2 of 3 steps compared)")

    def test_a_ledger_that_was_cut_in_a_line(self, copy):
        ledger, levels = copy.path / "ledger.jsonl", copy.level()
        ledger.write_bytes(ledger.read_bytes()[:1000])
        verdict = copy.verify()
        assert (verdict.verdict, verdict.exit_code, verdict.steps) == ("incomplete", 6, 3)
        assert "is cut off; compared up to there" in verdict.notes[0]
        assert copy.level() == levels

    @pytest.mark.parametrize("lines", [3, 6])
    def test_a_ledger_that_was_cut_between_two_lines(self, copy, run, lines):
        ledger, levels = copy.path / "ledger.jsonl", copy.level()
        ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:lines]))
        verdict = copy.verify()
        assert (verdict.verdict, verdict.exit_code) == ("incomplete", 6)
        assert "not the ones that the manifest refers to; compared up to there" in verdict.notes[0]
        assert copy.level() == levels
        for cut, other in ((copy, run), (run, copy)):
            comparison = diff(cut.path, other.path)
            assert (comparison.verdict, comparison.exit_code) == ("incomplete", 6)
            assert comparison.difference is None
            assert "compared up to there" in str(comparison)

    def test_a_recipe_is_read_back_and_not_chosen_again(self, copy):
        """As of a version whose recipes were others: here the run's own file says so."""
        folder = RunFolder(copy.path / "again", copy.path)
        file = copy.path / "manifest.json"
        manifest = Manifest.load(file)
        recipe = {**manifest.decisions["recipe"], "weight_decay": 0.07}
        dataclasses.replace(manifest, decisions={**manifest.decisions, "recipe": recipe}).save(file)
        made = rebuild(copy.path, folder)
        made.trainer.fit(made.task, datamodule=made.data)
        assert made.task.recipe.weight_decay == 0.07
        assert made.task.recipe.as_dict() == recipe
        assert rebuild(copy.path, folder, changes={"threads": 2}).task.decided.weight_decay == 0.07
        assert rebuild(copy.path, folder, changes={"lr": 0.1}).task.decided is None

    def test_a_manifest_that_was_edited(self, copy):
        file = copy.path / "manifest.json"
        file.write_text(file.read_text().replace('"threads": 1', '"threads": 3'))
        verdict = copy.verify(steps=2)
        assert verdict.notes == ("manifest.json: it was edited after it was written",)


class Own(pl.LightningModule):
    """A module of somebody who knows only Lightning."""

    def __init__(self, width, keyed=False):
        super().__init__()
        with repro.scope(1, "init", "own") if keyed else nullcontext():
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, width), nn.Linear(width, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layers(batch.images.float() / 255), batch.targets)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class Saved(Own):
    def __init__(self, width, keyed=False):
        super().__init__(width, keyed)
        self.save_hyperparameters()


class TestOwnModules:
    def fit(self, module, photos, folder):
        trainer(1, run_dir=folder).fit(module, datamodule=toy_data(photos, val_split=0))
        return Run(folder)

    def test_weights_outside_of_the_init_stream(self, photos, tmp_path):
        run = self.fit(Saved(4), photos, tmp_path / "run")
        assert run.level()["R1"] == UNKEYED_WEIGHTS
        assert run.level()["R2"] == "expected"
        verdict = run.verify()
        assert verdict.difference.stage == "start"
        assert "Likely weights are drawn outside of the stream `init`" in verdict.reason

    def test_weights_on_a_stream(self, photos, tmp_path):
        run = self.fit(Saved(4, keyed=True), photos, tmp_path / "run")
        assert run.verify().identical
        assert run.level()["R1"] == "checked"

    def test_arguments_that_were_not_saved(self, photos, tmp_path):
        run = self.fit(Own(4), photos, tmp_path / "run")
        verdict = run.verify()
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 4)
        assert "The Own of the run must call `self.save_hyperparameters()`" in verdict.reason
        with pytest.raises(ModelError, match="save_hyperparameters"):
            run.reproduce(tmp_path / "again")


class TestNotComparable:
    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (
                lambda path: path.write_bytes(path.read_bytes()[:-4000] + bytes(8) + path.read_bytes()[-3992:]),
                "damaged",
            ),
            (lambda path: path.write_bytes(path.read_bytes()[:3000]), "it was damaged since it was written"),
            (lambda path: (path.parent / "sha256.txt").unlink(), "the list of digests sha256.txt is missing"),
        ],
        ids=["eight bytes", "cut", "no list"],
    )
    def test_a_damaged_checkpoint(self, copy, damage, said):
        path = next((copy.path / "checkpoints").glob("epoch-0001-*"))
        damage(path)
        verdict = copy.verify(epochs=(2, 2))
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 4)
        assert path.name in verdict.reason
        assert said in verdict.reason

    def made_by_other_rules(self, run, status="finished", **versions):
        """As a run that another version of autotimm has recorded."""
        file = run.path / "manifest.json"
        manifest = Manifest.load(file)
        environment = dict(manifest.environment)
        if versions:
            environment["replay_versions"] = {**environment["replay_versions"], **versions}
            environment["versions"] = {**environment["versions"], "autotimm": "9.8.7"}
        else:
            del environment["replay_versions"]
        results = {**manifest.results, "status": status}
        dataclasses.replace(manifest, environment=environment, results=results).save(file)

    @pytest.mark.parametrize("name", ["streams", "pipeline", "ledger"])
    def test_other_rules(self, copy, name):
        self.made_by_other_rules(copy, **{name: 99})
        verdict = copy.verify()
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 4)
        assert name in verdict.reason
        assert f"has version 99 there and {CURRENT[name]} here" in verdict.reason
        assert 'pip install "autotimm==9.8.7"' in verdict.reason
        assert copy.verify(explain=True).confirmed == ""
        assert copy.validate()  # it is read and measured as any other

    def test_a_record_without_versions_has_the_first(self, copy):
        self.made_by_other_rules(copy)
        verdict = copy.verify(steps=2)
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 4)
        assert f"has version 1 there and {CURRENT['pipeline']} here" in verdict.reason
        assert 'pip install "autotimm==0.1.0"' in verdict.reason

    def test_resuming_by_other_rules(self, copy, photos):
        self.made_by_other_rules(copy, "interrupted", pipeline=99)
        before = {path.name: path.read_bytes() for path in copy.path.iterdir() if path.is_file()}
        with pytest.raises(ModelError, match="has version 99 there"):
            copy.resume()
        with pytest.raises(ModelError, match="has version 99 there"):
            trainer(3, run_dir=copy.path).fit(classifier(), datamodule=toy_data(photos), ckpt_path="last")
        assert {path.name: path.read_bytes() for path in copy.path.iterdir() if path.is_file()} == before

    def test_other_rules_are_a_difference(self, copy, run):
        self.made_by_other_rules(copy, pipeline=99)
        comparison = diff(run.path, copy.path)
        assert comparison.equal
        assert f"the version of the pipeline: {CURRENT['pipeline']} was recorded, 99 is used" in str(comparison)

    def test_resuming_with_other_data(self, photos, tmp_path):
        moved = shutil.copytree(photos, tmp_path / "moved")
        with pytest.raises(UsageError):
            fit(moved, tmp_path, "one", monitor="nothing")
        done = fit(moved, tmp_path, "one")
        manifest = Manifest.load(done.path / "manifest.json")
        dataclasses.replace(manifest, results={"status": "interrupted"}).save(done.path / "manifest.json")
        path = sorted(moved.rglob("*.png"))[3]
        Image.new("RGB", (32, 32), "white").save(path)
        before = (done.path / "files.csv").read_bytes()
        with pytest.raises(DataError, match=f"changed: {path.relative_to(moved).as_posix()}"):
            done.resume()
        assert (done.path / "files.csv").read_bytes() == before

    def test_one_changed_pixel(self, run, photos, tmp_path):
        moved = shutil.copytree(photos, tmp_path / "moved")
        path = sorted(moved.rglob("*.png"))[3]
        image = Image.open(path).convert("RGB")
        image.putpixel((3, 3), (1, 2, 3))
        image.save(path)
        verdict = run.verify(data=moved)
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 3)
        assert verdict.reason == f"The data is not what it was: changed: {path.relative_to(moved).as_posix()}."

    def test_a_renamed_file(self, run, photos, tmp_path):
        moved = shutil.copytree(photos, tmp_path / "moved")
        path = sorted(moved.rglob("*.png"))[3]
        path.rename(path.with_name("other.png"))
        verdict = run.verify(data=moved)
        assert verdict.exit_code == 3
        assert f"missing: {path.relative_to(moved).as_posix()}" in verdict.reason
        assert "new: " in verdict.reason

    def test_a_missing_backbone(self, copy):
        config = (copy.path / "config.yaml").read_text()
        (copy.path / "config.yaml").write_text(config.replace("test_resnet", "test_resnot"))
        verdict = copy.verify()
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 4)

    def test_callbacks_given_as_objects(self, photos, tmp_path):
        auto_trainer = trainer(1, run_dir=tmp_path / "run", callbacks=[Touching(1)])
        auto_trainer.fit(classifier(), datamodule=toy_data(photos))
        verdict = Run(tmp_path / "run").verify()
        assert verdict.exit_code == 4
        assert "`callbacks` of the run's trainer" in verdict.reason


class Touching(Callback):
    """Changes weights at a step, as no record tells."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(iter(pl_module.network.parameters())).add_(1e-3)


def brighter(image):
    return image


class TestCauses:
    """Each planted cause is named, with its stage."""

    @pytest.mark.parametrize(
        ("options", "stage", "said"),
        [
            ({"seed": 43}, "start", "another seed of the model: 42 was recorded, 43 was found"),
            ({"batch_size": 6}, "order", "the option `batch_size`: 8 was recorded, 6 was found."),
            ({"lr": 1e-3}, "rate", "the learning rate: 0.0005 was recorded, 0.001 was found."),
            ({"augmentation": "light"}, "inputs", "the option `augmentation`: default was recorded, light was found"),
            ({"weight_decay": 0.2}, "update", "the decision on `weight_decay`: 0.05 was recorded, 0.2 was found."),
            ({"epochs": 3}, "rate", "the option `epochs` (`max_epochs`): 2 was recorded, 3 was found"),
        ],
        ids=["seed", "batch size", "learning rate", "augmentation", "decay", "epochs"],
    )  # fmt: skip
    def test_an_option(self, run, photos, tmp_path, options, stage, said):
        comparison = diff(run.path, fit(photos, tmp_path, **options).path)
        assert not comparison.equal
        assert comparison.difference.stage == stage
        assert said in comparison.cause

    def test_threads(self, photos, tmp_path):
        # Large enough for a sum to be shared among threads.
        options = {"image_size": 96, "epochs": 1}
        a = fit(photos, tmp_path, "one", **options)
        b = fit(photos, tmp_path, "two", **{**options, "threads": 2})
        comparison = diff(a.path, b.path)
        assert comparison.difference.stage in ("forward", "update")
        assert "the number of threads: 1 was recorded, 2 is used" in comparison.cause

    def test_a_pixel(self, run, photos, tmp_path):
        moved = shutil.copytree(photos, tmp_path / "photos")
        path = next(iter(sorted(moved.rglob("*.png"))))
        Image.new("RGB", (32, 32), "white").save(path)
        comparison = diff(run.path, fit(moved, tmp_path).path)
        assert comparison.files == (f"changed: {path.relative_to(moved).as_posix()}",)
        assert comparison.difference.stage in ("inputs", "validation")
        assert path.name in comparison.cause

    def test_a_name(self, run, photos, tmp_path):
        moved = shutil.copytree(photos, tmp_path / "photos")
        path = next(iter(sorted(moved.rglob("*.png"))))
        path.rename(path.with_name("zzz.png"))
        comparison = diff(run.path, fit(moved, tmp_path).path)
        assert comparison.difference.stage == "order"
        assert "zzz.png" in comparison.cause

    def test_a_library(self, copy, run):
        manifest = Manifest.load(copy.path / "manifest.json")
        versions = {**manifest.environment["versions"], "torch": "1.0"}
        environment = {**manifest.environment, "versions": versions}
        dataclasses.replace(manifest, environment=environment).save(copy.path / "manifest.json")
        lines = (copy.path / "ledger.jsonl").read_text().splitlines()
        assert "the version of torch" in diff(run.path, copy.path).__str__()
        forged = json.loads(lines[1]) | {"loss": "0x1.0p+0"}
        ledger = autotimm.repro.Ledger(copy.path / "forged.jsonl")
        for line in [json.loads(lines[0]), forged]:
            ledger.add(line.pop("kind"), **{name: value for name, value in line.items() if name != "prev"})
        ledger.flush()
        (copy.path / "forged.jsonl").rename(copy.path / "ledger.jsonl")
        comparison = diff(run.path, copy.path)
        assert comparison.difference.stage == "forward"
        assert "the version of torch: " in comparison.cause

    def test_code_of_a_transform(self, photos, tmp_path):
        runs = []
        for number, change in enumerate(("image", "255 - image")):
            source = f"def change(image):\n    return {change}\n"
            path = tmp_path / f"mine{number}.py"
            path.write_text(source)
            space = {}
            exec(compile(source, str(path), "exec"), space)
            auto_trainer = trainer(1, run_dir=tmp_path / f"run{number}")
            auto_trainer.fit(classifier(), datamodule=toy_data(photos, train_transforms=space["change"]))
            runs.append(tmp_path / f"run{number}")
        comparison = diff(*runs)
        assert comparison.difference.stage == "inputs"
        assert "the settings or the code of a transform (train)" in comparison.cause

    def test_an_initial_weight(self, photos, tmp_path):
        for name in ("a", "b"):
            task = classifier()
            if name == "b":
                with torch.no_grad():
                    next(iter(task.network.parameters())).view(-1)[0] += 1e-6
            trainer(1, run_dir=tmp_path / name).fit(task, datamodule=toy_data(photos))
        comparison = diff(tmp_path / "a", tmp_path / "b")
        assert comparison.difference.stage == "start"
        assert "the initial weights" in comparison.cause

    def test_a_callback_that_touches_weights(self, photos, tmp_path):
        trainer(2, run_dir=tmp_path / "a").fit(classifier(), datamodule=toy_data(photos))
        touched = trainer(2, run_dir=tmp_path / "b", callbacks=[Touching(4)])
        touched.fit(classifier(), datamodule=toy_data(photos))
        comparison = diff(tmp_path / "a", tmp_path / "b")
        assert (comparison.difference.stage, comparison.difference.step) == ("forward", 5)
        assert comparison.cause == f"Likely the callback {__name__}.Touching."
