"""What a run starts from, and what may not change when it is resumed."""

import json
import shutil
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torchvision.transforms import v2

import autotimm
from autotimm import ImageClassifier, Run, TunerConfig
from autotimm.errors import ModelError, UsageError
from autotimm.repro import read_ledger
from training import StopAfter, classifier, toy_data, trained, trainer


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def stopped(toy_folder, tmp_path_factory):
    """A run of three epochs that was stopped after the first; only to be copied."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    trainer(3, run_dir=folder, callbacks=[StopAfter(0)]).fit(classifier(lr=0.1), datamodule=toy_data(toy_folder))
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


class TestResumedWithOtherArguments:
    @pytest.mark.parametrize(
        ("task", "data", "options", "said"),
        [
            ({"lr": 0.2}, {}, {}, "The `lr` of ImageClassifier was 0.1 when the run began. Got 0.2 instead."),
            ({}, {"batch_size": 4}, {}, "The `batch_size` of ImageDataModule was 8 when the run began. Got 4 instead."),
            (
                {}, {"augmentation": "strong"}, {},
                "The `augmentation` of ImageDataModule was 'default' when the run began. Got 'strong' instead.",
            ),
            ({"seed": 7}, {}, {}, "The `seed` of the model was 42 when the run began. Got 7 instead."),
            ({"mixup_alpha": 0.2}, {}, {}, "The `mixup_alpha` of ImageClassifier was 0.0 when the run began."),
            (
                {}, {}, {"accumulate_grad_batches": 2},
                "The `accumulate_grad_batches` (option `accumulate`) of AutoTrainer was 1 when the run began. Got 2",
            ),
            ({}, {}, {"precision": "bf16-mixed"}, "The `precision` of AutoTrainer was None when the run began."),
            ({}, {"val_split": 0.5}, {}, "The `val_split` of ImageDataModule was 0.25 when the run began."),
        ],
        ids=["lr", "batch size", "augmentation", "seed", "mixup", "accumulate", "precision", "split"],
    )  # fmt: skip
    def test_it_is_refused_by_name_and_nothing_is_changed(self, task, data, options, said, run, toy_folder):
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        with pytest.raises(UsageError) as error:
            trainer(3, run_dir=run, **options).fit(
                classifier(**{"lr": 0.1, **task}), datamodule=toy_data(toy_folder, **data), ckpt_path="last"
            )
        assert str(error.value).startswith(said)
        assert f"Use `autotimm extend {run}`" in str(error.value)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("ckpt", ["last", "best", "path"])
    def test_other_epochs(self, ckpt, run, toy_folder):
        path = next((run / "checkpoints").glob("epoch-*.ckpt")) if ckpt == "path" else ckpt
        with pytest.raises(UsageError, match=r"`max_epochs` \(option `epochs`\) of AutoTrainer was 3 .* Got 5 instead"):
            trainer(5, run_dir=run).fit(classifier(lr=0.1), datamodule=toy_data(toy_folder), ckpt_path=path)

    def test_what_changes_no_bit_may_differ(self, run, toy_folder):
        again = trainer(3, run_dir=run, log_every_n_steps=1, keep="last")
        again.fit(classifier(lr=0.1), datamodule=toy_data(toy_folder, num_workers=1), ckpt_path="last")
        assert manifest(run)["results"]["status"] == "finished"

    def test_another_transform_with_an_equal_name(self, toy_folder, tmp_path):
        def fit(brightness, ckpt=None, callbacks=()):
            data = toy_data(toy_folder, train_transforms=v2.Compose([v2.Resize((32, 32)), v2.ColorJitter(brightness)]))
            trainer(2, run_dir=tmp_path / "run", callbacks=[*callbacks]).fit(
                classifier(), datamodule=data, ckpt_path=ckpt
            )

        fit(0.1, callbacks=[StopAfter(0)])
        with pytest.raises(UsageError, match="`train_transforms` of the data module had other settings or other code"):
            fit(0.2, "last")
        fit(0.1, "last")

    def test_drawn_seeds_are_not_drawn_again(self, toy_folder, tmp_path):
        trainer(2, run_dir=tmp_path / "run", seed=None, callbacks=[StopAfter(0)]).fit(
            classifier(), datamodule=toy_data(toy_folder)
        )
        with pytest.raises(UsageError, match=r"The `seed` of the trainer was \d+ when the run began. Got \d+ instead"):
            trainer(2, run_dir=tmp_path / "run", seed=None).fit(
                classifier(), datamodule=toy_data(toy_folder), ckpt_path="last"
            )

    def test_a_run_with_drawn_seeds_is_replayed_and_measured_on_its_own_split(self, toy_folder, tmp_path):
        trainer(1, run_dir=tmp_path / "whole", seed=None).fit(
            classifier(seed=None), datamodule=toy_data(toy_folder, seed=None)
        )
        run = Run(tmp_path / "whole")
        verdict = run.verify()
        assert (verdict.verdict, verdict.findings) == ("identical", ())
        assert run.validate() == {name: value for name, value in run.metrics.items() if name.startswith("val/")}
        again = run.reproduce(tmp_path / "again")
        assert (again.path / "ledger.jsonl").read_bytes() == (run.path / "ledger.jsonl").read_bytes()
        other = run.extend(epochs=1)
        assert (other.path / "splits.csv").read_bytes() == (run.path / "splits.csv").read_bytes()

    def test_what_a_finder_found_is_not_searched_again(self, toy_folder, tmp_path):
        def fit(ckpt=None, callbacks=()):
            model = classifier()
            search = TunerConfig(lr=True, steps=20)
            trainer(2, run_dir=tmp_path / "run", tuner=search, callbacks=[*callbacks]).fit(
                model, datamodule=toy_data(toy_folder), ckpt_path=ckpt
            )
            return model.hparams["lr"]

        found = fit(callbacks=[StopAfter(0)])
        assert fit("last") == found == manifest(tmp_path / "run")["decisions"]["lr"]

    def test_a_run_that_starts_over_has_its_arguments_too(self, run, toy_folder):
        shutil.rmtree(run / "checkpoints")
        (run / "checkpoints").mkdir()
        record = json.loads((run / "manifest.json").read_text())
        assert record["results"]["status"] == "finished"
        with pytest.raises(ModelError, match="is finished, and is never trained over"):
            trainer(3, run_dir=run).fit(classifier(lr=0.1), datamodule=toy_data(toy_folder), ckpt_path="last")


class TestFinishedRuns:
    def test_without_checkpoints_it_is_not_trained_over(self, toy_folder, tmp_path):
        options = {"run_dir": tmp_path / "run", "enable_checkpointing": False}
        trained(toy_folder, **options)
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        for ckpt in ("last", None):
            with pytest.raises((ModelError, UsageError), match=str(tmp_path / "run")):
                trainer(**options).fit(classifier(), datamodule=toy_data(toy_folder), ckpt_path=ckpt)
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
        with pytest.raises(
            ModelError, match=r"has no checkpoint. It is finished, and was made with enable_checkpointing"
        ):
            Run(tmp_path / "run").model()

    def test_it_is_not_trained_over_from_an_earlier_checkpoint(self, toy_folder, tmp_path):
        trained(toy_folder, 2, run_dir=tmp_path / "run")
        first = next((tmp_path / "run" / "checkpoints").glob("epoch-0001-*.ckpt"))
        ledger = (tmp_path / "run" / "ledger.jsonl").read_bytes()
        with pytest.raises(ModelError, match=r"is finished, and is never trained over.*autotimm extend"):
            trainer(2, run_dir=tmp_path / "run").fit(classifier(), datamodule=toy_data(toy_folder), ckpt_path=first)
        trainer(2, run_dir=tmp_path / "run").fit(classifier(), datamodule=toy_data(toy_folder), ckpt_path="last")
        assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == ledger

    def test_a_run_is_not_continued_from_the_checkpoint_of_another(self, run, toy_folder, tmp_path):
        trained(toy_folder, run_dir=tmp_path / "other")
        with pytest.raises(UsageError, match="must be a checkpoint of the run in"):
            trainer(3, run_dir=run).fit(
                classifier(lr=0.1), datamodule=toy_data(toy_folder),
                ckpt_path=tmp_path / "other" / "checkpoints" / "last.ckpt",
            )  # fmt: skip

    def test_a_copy_of_a_checkpoint_is_one_of_the_run(self, run, toy_folder, tmp_path):
        copy = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "mine.ckpt")
        trainer(3, run_dir=run).fit(classifier(lr=0.1), datamodule=toy_data(toy_folder), ckpt_path=copy)
        assert manifest(run)["results"]["status"] == "finished"


class TestWeightsThatAreNotTheConstructors:
    def fit(self, model, toy_folder, folder, **options):
        trainer(run_dir=folder, **options).fit(model, datamodule=toy_data(toy_folder))
        return manifest(folder)

    def not_comparable(self, folder, why):
        verdict = Run(folder).verify()
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 4)
        assert why in verdict.reason
        with pytest.raises(ModelError, match="Run your program again"):
            Run(folder).reproduce()

    def test_an_ordinary_run_says_nothing_of_its_start(self, toy_folder, tmp_path):
        record = self.fit(classifier(), toy_folder, tmp_path / "run")
        assert not {"start", "frozen"} & record["inputs"].keys()
        assert record["levels"]["R1"] == "expected"
        assert not list((tmp_path / "run").glob("initial.*"))

    def test_weights_that_were_loaded_by_hand(self, toy_folder, tmp_path):
        model, other = classifier(), classifier(seed=7)
        model.network.load_state_dict(other.network.state_dict())
        record = self.fit(model, toy_folder, tmp_path / "run")
        assert record["inputs"]["start"].keys() == {"kind", "network"}
        assert record["inputs"]["start"]["kind"] == "program"
        assert record["levels"]["R1"].startswith(
            "no, because the weights at the start are not those of the constructor"
        )
        self.not_comparable(tmp_path / "run", "its weights at the start are not those of the constructor")
        plain = self.fit(classifier(), toy_folder, tmp_path / "plain")
        assert plain["run_id"] != record["run_id"]

    def test_only_a_buffer_was_changed(self, toy_folder, tmp_path):
        model = classifier()
        next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)).running_mean += 1
        assert self.fit(model, toy_folder, tmp_path / "run")["inputs"]["start"]["kind"] == "program"

    def test_a_model_that_was_trained_before(self, toy_folder, tmp_path):
        model = classifier()
        assert "start" not in self.fit(model, toy_folder, tmp_path / "first")["inputs"]
        assert self.fit(model, toy_folder, tmp_path / "second")["inputs"]["start"]["kind"] == "program"
        self.not_comparable(tmp_path / "second", "its weights at the start")

    def test_part_of_it_can_be_verified_from_a_checkpoint(self, toy_folder, tmp_path):
        model = classifier()
        model.network.load_state_dict(classifier(seed=7).network.state_dict())
        trainer(2, run_dir=tmp_path / "run").fit(model, datamodule=toy_data(toy_folder))
        verdict = Run(tmp_path / "run").verify(epochs=(2, 2))
        assert verdict.identical
        assert "inputs.start.kind (the replay begins at a checkpoint)" in str(verdict)

    def test_its_resume_goes_on_from_its_checkpoint(self, toy_folder, tmp_path):
        model = classifier()
        model.network.load_state_dict(classifier(seed=7).network.state_dict())
        trainer(2, run_dir=tmp_path / "run", callbacks=[StopAfter(0)]).fit(model, datamodule=toy_data(toy_folder))
        before = manifest(tmp_path / "run")
        trainer(2, run_dir=tmp_path / "run").fit(classifier(), datamodule=toy_data(toy_folder), ckpt_path="last")
        after = manifest(tmp_path / "run")
        assert (after["run_id"], after["inputs"]["start"]) == (before["run_id"], before["inputs"]["start"])
        assert after["levels"]["R1"].startswith("no")

    @pytest.mark.parametrize("many", [False, True])
    def test_parameters_that_were_frozen_by_hand(self, many, toy_folder, tmp_path):
        model = classifier()
        part = model.network.backbone if many else model.network.backbone.conv1
        part.requires_grad_(False)
        record = self.fit(model, toy_folder, tmp_path / "run")
        frozen = record["inputs"]["frozen"]
        names = [name for name, parameter in model.network.named_parameters() if not parameter.requires_grad]
        assert frozen["count"] == len(names)
        assert frozen.get("names") == (None if many else sorted(names))
        assert len(frozen["digest"]) == 16
        assert record["levels"]["R1"].startswith("no, because which parameters are trained was set by hand")
        self.not_comparable(tmp_path / "run", "which parameters are trained was set by hand, not by an option")

    def test_frozen_parameters_stay_frozen_in_a_resume(self, toy_folder, tmp_path):
        def fit(frozen, ckpt=None, callbacks=()):
            model = classifier()
            model.network.head.requires_grad_(not frozen)
            trainer(2, run_dir=tmp_path / "run", callbacks=[*callbacks]).fit(
                model, datamodule=toy_data(toy_folder), ckpt_path=ckpt
            )

        fit(True, callbacks=[StopAfter(0)])
        with pytest.raises(UsageError, match=r"The frozen parameters were head.bias, head.weight when the run began"):
            fit(False, "last")
        fit(True, "last")

    def test_an_option_that_freezes_is_no_hand(self, toy_folder, tmp_path):
        record = self.fit(classifier(freeze_backbone=True), toy_folder, tmp_path / "run")
        assert "frozen" not in record["inputs"]
        assert Run(tmp_path / "run").verify().identical

    def test_a_task_that_was_loaded_can_be_verified_alone(self, toy_folder, tmp_path):
        self.fit(classifier(), toy_folder, tmp_path / "first")
        model = ImageClassifier.load_from_checkpoint(tmp_path / "first" / "checkpoints" / "best.ckpt")
        record = self.fit(model, toy_folder, tmp_path / "second")
        parent = record["inputs"]["start"]["parent"]
        assert record["inputs"]["start"]["kind"] == "weights"
        assert (parent["checkpoint"], parent["run_id"]) == ("best.ckpt", manifest(tmp_path / "first")["run_id"])
        assert record["levels"]["R1"] == "expected"
        verdict = str(Run(tmp_path / "second").verify())
        assert verdict.splitlines()[-1] == "verdict: identical (3 steps compared)"
        assert "initial.safetensors" not in verdict  # it is checked
        shutil.rmtree(tmp_path / "first")
        verdict = Run(tmp_path / "second").verify()
        assert verdict.identical
        assert verdict.notes == (
            f"not checked: the run {parent['run_id']}, whose best.ckpt it began with, is not there; replayed from the "
            "copy of it here",
        )

    def test_a_loaded_task_whose_weights_were_changed(self, toy_folder, tmp_path):
        self.fit(classifier(), toy_folder, tmp_path / "first")
        model = ImageClassifier.load_from_checkpoint(tmp_path / "first" / "checkpoints" / "best.ckpt")
        torch.nn.init.zeros_(model.network.head.weight)
        assert self.fit(model, toy_folder, tmp_path / "second")["inputs"]["start"]["kind"] == "program"

    def test_nothing_is_kept_of_a_fit_without_a_folder(self, toy_folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        model = classifier()
        model.network.head.requires_grad_(False)
        trainer().fit(model, datamodule=toy_data(toy_folder))
        assert not list(tmp_path.iterdir())


class TestCheckpointsOfOtherRuns:
    @pytest.fixture
    def continued(self, toy_folder, tmp_path):
        """A run that goes on elsewhere, with more epochs."""
        trained(toy_folder, 1, run_dir=tmp_path / "first")
        trainer(2, run_dir=tmp_path / "second").fit(
            classifier(), datamodule=toy_data(toy_folder), ckpt_path=tmp_path / "first" / "checkpoints" / "last.ckpt"
        )
        return tmp_path / "second"

    def test_the_manifest_says_where_it_came_from(self, continued, tmp_path):
        start = manifest(continued)["inputs"]["start"]
        first = manifest(tmp_path / "first")
        assert start["kind"] == "checkpoint"
        assert start["sha256"] == start["parent"]["sha256"]
        assert start["parent"]["checkpoint"] == "last.ckpt"
        assert (start["parent"]["run_id"], start["parent"]["manifest"]) == (first["run_id"], first["digest"])
        lines = read_ledger(continued / "ledger.jsonl").lines
        assert [line["kind"] for line in lines[:2]] == ["start", "step"]
        assert lines[1]["epoch"] == 1
        assert not [line for line in lines if line["kind"] == "gap"]

    def test_it_can_be_verified_and_reproduced_also_alone(self, continued, tmp_path):
        run = Run(continued)
        verdict = str(run.verify())
        assert verdict.splitlines()[-1] == "verdict: identical (3 steps compared)"
        assert "initial.ckpt" not in verdict  # it is checked
        again = run.reproduce()
        assert autotimm.diff(run.path, again.path).equal
        assert manifest(again.path)["run_id"] == manifest(continued)["run_id"]
        shutil.rmtree(tmp_path / "first")
        verdict = run.verify()
        assert verdict.identical
        assert "not checked" in verdict.notes[0]

    def test_another_checkpoint_in_the_folder_is_noticed(self, continued):
        (continued / "initial.ckpt").unlink()
        verdict = Run(continued).verify()
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 4)
        assert "initial.ckpt is missing" in verdict.reason
        shutil.copy(continued / "checkpoints" / "last.ckpt", continued / "initial.ckpt")
        assert "initial.ckpt was changed since the run began" in Run(continued).verify().reason

    def test_it_is_resumed_also_before_its_first_checkpoint(self, toy_folder, tmp_path, continued):
        class Fails(Callback):
            def on_train_batch_end(self, *args):
                raise ZeroDivisionError

        def fit(ckpt, callbacks=()):
            trainer(2, run_dir=tmp_path / "third", callbacks=[*callbacks]).fit(
                classifier(), datamodule=toy_data(toy_folder), ckpt_path=ckpt
            )

        with pytest.raises(ZeroDivisionError):
            fit(tmp_path / "first" / "checkpoints" / "last.ckpt", [Fails()])
        shutil.rmtree(tmp_path / "first")
        fit("last")
        for name in ("ledger.jsonl", "metrics.csv", "model.safetensors"):
            assert (tmp_path / "third" / name).read_bytes() == (continued / name).read_bytes(), name
        assert manifest(tmp_path / "third")["run_id"] == manifest(continued)["run_id"]

    def test_too_few_epochs_are_refused(self, toy_folder, tmp_path):
        trained(toy_folder, 1, run_dir=tmp_path / "first")
        with pytest.raises(
            UsageError, match=r"`max_epochs` of AutoTrainer must be above those that the checkpoint last.ckpt has, 1"
        ):
            trainer(1, run_dir=tmp_path / "second").fit(
                classifier(), datamodule=toy_data(toy_folder),
                ckpt_path=tmp_path / "first" / "checkpoints" / "last.ckpt",
            )  # fmt: skip
        assert not (tmp_path / "second").exists()

    def test_a_module_of_ones_own_says_it_too(self, toy_folder, tmp_path):
        class Mine(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(3 * 32 * 32, 3)

            def training_step(self, batch, batch_idx):
                logits = self.layer(batch.images.float().flatten(1))
                return torch.nn.functional.cross_entropy(logits, batch.targets)

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        data = {"val_split": 0}
        trainer(run_dir=tmp_path / "first").fit(Mine(), datamodule=toy_data(toy_folder, **data))
        trainer(2, run_dir=tmp_path / "second").fit(
            Mine(), datamodule=toy_data(toy_folder, **data), ckpt_path=tmp_path / "first" / "checkpoints" / "last.ckpt"
        )
        assert manifest(tmp_path / "second")["inputs"]["start"]["parent"]["checkpoint"] == "last.ckpt"
