"""The recipes `auto` and `probe`: what a run begins with, what it keeps, and that all of it is replayed."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback

import autotimm
import warm
from autotimm.config import FitConfig
from autotimm.data.toy import write_toy_folder, write_toy_objects
from autotimm.errors import UsageError
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.records.digest import file_digest
from autotimm.records.ledger import read_ledger
from autotimm.records.manifest import Manifest
from autotimm.runs.factory import build_data, settle_recipe
from autotimm.runs.restore import read_config
from autotimm.train.callbacks.candidates import Candidates
from autotimm.train.callbacks.epoch_metrics import EpochMetrics
from autotimm.train.callbacks.recorder import Recorder
from autotimm.train.callbacks.run_checkpoint import RunCheckpoint
from training import classifier, multi_label_data, small_fit, toy_data, trainer


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_toy_folder(tmp_path_factory.mktemp("toy") / "photos", n=48, num_classes=3, image_size=32, seed=7)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A backbone that was trained on other images."""
    folder = tmp_path_factory.mktemp("pretrained")
    other = write_toy_folder(folder / "other", n=64, num_classes=4, image_size=32, seed=1)
    return str(small_fit(other, folder, epochs=3).path / "model.safetensors")


@pytest.fixture(scope="module")
def run(photos, weights, tmp_path_factory):
    return small_fit(photos, tmp_path_factory.mktemp("runs"), pretrained=weights, epochs=4, name="auto")


def lines(run, kind):
    return [line for line in read_ledger(run.path / "ledger.jsonl").lines if line["kind"] == kind]


def results(run):
    return json.loads((run.path / "results.json").read_text())


def monitored(metrics):
    return metrics["val/accuracy"], -metrics["val/loss"]


def test_it_begins_with_a_head_and_keeps_what_validates_best(run):
    kinds = [line["kind"] for line in read_ledger(run.path / "ledger.jsonl").lines]
    assert kinds[:3] == ["start", "head", "step"]
    assert kinds[-2:] == ["choice", "end"]
    chosen = results(run)["recipe"]
    assert {"0", chosen["kept"]} <= chosen["candidates"].keys()
    best = max(chosen["candidates"].values(), key=monitored)
    assert chosen["candidates"][chosen["kept"]] == best
    assert {name: run.metrics[name] for name in best} == best
    assert monitored(run.metrics) >= monitored(chosen["candidates"]["0"])


KEPT = {
    "0": "the fitted head", "7": "epoch 7", "0+2": "the average of the fitted head and epoch 2",
    "0+2+5": "the average of the fitted head and epochs 2, 5", "1+2": "the average of epochs 1, 2", "<b>": None,
}  # fmt: skip


@pytest.mark.parametrize(("kept", "words"), KEPT.items())
def test_the_report_says_which_weights_were_kept(run, kept, words, tmp_path):
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    (folder / "results.json").write_text(json.dumps(results(run) | {"recipe": {"kept": kept}}))
    page = autotimm.Run(folder).report().path.read_text()
    assert ("Weights kept" in page) == (words is not None)
    assert words is None or words in page


def test_the_metrics_of_the_head_are_those_that_validation_measures(run):
    head = run.path / "checkpoints" / "epoch-0000-step-00000000.ckpt"
    assert run.validate(ckpt=head) == pytest.approx(results(run)["recipe"]["candidates"]["0"], abs=1e-6)


def test_a_replay_makes_the_same_choice(run):
    assert run.verify().verdict == "identical"
    part = run.verify(epochs=(3, 4))
    assert (part.exit_code, part.steps) == (0, 10)


def test_each_edit_of_a_choice_is_found(run, tmp_path):
    copy = autotimm.Run(shutil.copytree(run.path, tmp_path / "copy"))
    groups, edits = results(copy), {"kept": "9", "candidates": {}, "losses": {}}
    groups["recipe"] |= edits
    (copy.path / "results.json").write_text(json.dumps(groups, indent=2) + "\n")
    verdict = copy.verify()
    assert verdict.verdict == "different"
    for name in edits:
        assert any(f"results.json: recipe.{name}" in finding for finding in verdict.findings), name


def test_workers_and_kept_checkpoints_change_nothing(run, photos, weights, tmp_path):
    other = small_fit(photos, tmp_path, pretrained=weights, epochs=4, num_workers=2, keep="last")
    assert (other.path / "ledger.jsonl").read_bytes() == (run.path / "ledger.jsonl").read_bytes()
    assert results(other) == results(run)


def test_probe_ends_with_the_head(photos, weights, tmp_path):
    run = small_fit(photos, tmp_path, pretrained=weights, recipe="probe", epochs=None)
    assert [line["kind"] for line in read_ledger(run.path / "ledger.jsonl").lines] == ["start", "head", "choice", "end"]
    assert results(run)["recipe"]["kept"] == "0"
    assert run.verify().verdict == "identical"
    assert run.predict(photos)[0].labels
    with pytest.raises(UsageError, match="`epochs` of fit has no effect with recipe probe"):
        small_fit(photos, tmp_path, pretrained=weights, recipe="probe")


class StopAtFirstStep(Callback):
    def on_train_batch_start(self, *args) -> None:
        raise KeyboardInterrupt


def test_a_run_resumed_from_its_fitted_head_is_verified(photos, weights, tmp_path):
    """Its checkpoint has no step, and the record of its first weights must stay that of the run."""

    def train(callbacks, **settings):
        one = trainer(2, run_dir=tmp_path / "run", recipe="auto", callbacks=callbacks)
        one.fit(classifier(pretrained=weights), datamodule=toy_data(photos), **settings)

    def initial():
        return Manifest.load(tmp_path / "run" / "manifest.json").inputs["initial"]

    with pytest.raises(KeyboardInterrupt):
        train([StopAtFirstStep()])
    assert [path.name for path in CheckpointStore(tmp_path / "run" / "checkpoints").files()] == [
        "epoch-0000-step-00000000.ckpt"
    ]
    before = initial()
    train([], ckpt_path="last")
    assert initial() == before
    assert autotimm.Run(tmp_path / "run").verify().verdict == "identical"


def test_several_labels_without_validation_images(photos, weights, tmp_path):
    data = multi_label_data(photos, tmp_path, val_split=0.0)
    task = classifier(num_classes=2, pretrained=weights, multi_label=True)
    auto = trainer(1, recipe="auto", run_dir=tmp_path / "run", evidence=True)
    auto.fit(task, datamodule=data)
    run = autotimm.Run(tmp_path / "run")
    assert results(run)["recipe"].keys() == {"penalty", "losses"}
    assert run.verify().verdict == "identical"


@pytest.fixture(scope="module")
def plain(photos, tmp_path_factory):
    return small_fit(photos, tmp_path_factory.mktemp("plain"))


def test_random_weights_are_trained_plainly(plain):
    assert plain.config["recipe"] == "plain"
    assert "recipe: plain" in (plain.path / "config.yaml").read_text()
    assert "auto, as the weights are random" in (plain.path / "config.yaml").read_text()
    assert not lines(plain, "head")
    assert "recipe" not in json.loads((plain.path / "manifest.json").read_text())["inputs"]["config"]["trainer"]


def test_the_line_that_says_so(photos, tmp_path, capsys):
    small_fit(photos, tmp_path, progress=True)
    assert "recipe: plain, as the weights are random\n" in capsys.readouterr().err


def test_other_tasks_are_trained_plainly(tmp_path, capsys):
    objects = write_toy_objects(tmp_path / "objects", splits={"train": 4, "val": 2})
    options = {"image_size": 64, "batch_size": 2, "val_split": None, "width": 64, "progress": True}
    run = small_fit(objects, tmp_path, **options)
    assert "recipe: plain, as only the head of a classifier can be fitted" in capsys.readouterr().err
    assert run.config["recipe"] == "plain"


def test_probe_is_refused_where_no_head_can_be_fitted(photos, tmp_path):
    with pytest.raises(UsageError, match="plain or auto here, since the weights are random"):
        small_fit(photos, tmp_path, recipe="probe", epochs=None)
    with pytest.raises(UsageError, match="The `recipe` of AutoTrainer must be plain here: the weights are random"):
        trainer(recipe="auto").fit(classifier(), datamodule=toy_data(photos))


def settled(photos, pretrained, **given):
    """The options as the recipe settles them, and what is said: of 36 training images."""
    config = FitConfig(path=str(photos), task="classification", val_split=0.25, num_workers=0)
    config = config.resolved(given, "argument")
    return settle_recipe(config, classifier(pretrained=pretrained), build_data(config))


@pytest.mark.parametrize("start", ["a head", "random"])
@pytest.mark.parametrize(
    ("given", "epochs"),
    [({"batch_size": 4}, 23), ({"batch_size": 32}, 40), ({"batch_size": 1}, 10), ({"epochs": 3}, 3)],
    ids=["200 steps", "at most 40 epochs", "at least 10", "as given"],
)
def test_the_length_of_a_training_on_a_small_set(photos, weights, start, given, epochs):
    config, said = settled(photos, weights if start == "a head" else False, **given)
    assert config.epochs == epochs
    assert config.sources["epochs"] == {3: "argument", 10: "default"}.get(epochs, "recipe")
    assert said.startswith(f"recipe: {'auto, beginning with a head' if start == 'a head' else 'plain, as the weights'}")
    assert said.endswith(f"; {epochs} epochs, since there are few images") is (config.sources["epochs"] == "recipe")


def test_a_recipe_that_was_given_has_the_usual_length(photos):
    config, said = settled(photos, False, recipe="plain")
    assert (config.epochs, config.sources["epochs"], said) == (10, "default", "")


def test_a_longer_training_from_random_weights_is_replayed(tmp_path):
    few = write_toy_folder(tmp_path / "few", n=12, num_classes=3, image_size=32)
    run = small_fit(few, tmp_path / "runs", epochs=None, patience=1)  # which ends it early
    assert run.config["epochs"] == 40
    (line,) = (line for line in (run.path / "config.yaml").read_text().splitlines() if line.startswith("epochs:"))
    assert line.endswith("# recipe")
    assert run.verify().verdict == "identical"


def test_an_earlier_record_of_random_weights_keeps_its_length(photos, plain, tmp_path):
    """Before, `auto` trained random weights for 10 epochs: it wrote `plain`, and the length as a default."""
    text = (plain.path / "config.yaml").read_text()
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("epochs:"))
    (tmp_path / "config.yaml").write_text(f"{text}epochs: 10    # default\n")
    config = read_config(tmp_path)
    assert isinstance(config, FitConfig)
    config, _ = settle_recipe(config, classifier(), build_data(config))
    assert config.epochs == 10


def test_a_moving_average_begins_with_the_head(photos, weights, tmp_path):
    run = small_fit(photos, tmp_path, pretrained=weights, ema_decay=0.9)
    head = torch.load(run.path / "checkpoints/epoch-0000-step-00000000.ckpt", weights_only=True)
    assert torch.equal(head["state_dict"]["network.head.weight"], head["current_model_state"]["network.head.weight"])
    assert run.verify().verdict == "identical"


# The average: weights of which it is known that their mean is better, in the place of those of a training


def test_an_average_is_kept_if_it_validates_better(photos, weights, tmp_path):
    run = small_fit(photos, tmp_path, pretrained=weights, epochs=2, name="one")
    best, epochs = Candidates.choose, (1, 2)

    def apart(self, auto, task):
        """Move the two epochs apart from the head in opposite directions: the head is again their mean."""
        store = auto.checkpoint_callback.store
        head = torch.load(store.epochs()[0], weights_only=True)
        for sign, number in zip((1, -1), epochs, strict=True):
            shifted = dict(head["state_dict"])
            shifted["network.head.bias"] = shifted["network.head.bias"] + sign * torch.tensor([9.0, 0.0, -9.0])
            with store.writing(store.epochs()[number].name) as file:
                torch.save({**head, "state_dict": shifted}, file)
        self.scores = [score for score in self.scores if score["epochs"]]
        for score in self.scores:
            score["metrics"] = {**score["metrics"], "val/accuracy": 0.0}
        best(self, auto, task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Candidates, "choose", apart)
        averaged = small_fit(photos, tmp_path, pretrained=weights, epochs=2, name="two")
    assert results(averaged)["recipe"]["kept"] == "1+2"
    assert lines(averaged, "choice")[0]["epochs"] == [1, 2]
    checkpoints = averaged.path / "checkpoints"
    assert file_digest(checkpoints / "average.ckpt") == file_digest(checkpoints / "best.ckpt")
    head = torch.load(run.path / "checkpoints/epoch-0000-step-00000000.ckpt", weights_only=True)["state_dict"]
    assert torch.allclose(averaged.model().network.head.bias, head["network.head.bias"], atol=1e-5)
    assert averaged.metrics["val/accuracy"] == results(averaged)["recipe"]["candidates"]["1+2"]["val/accuracy"]
    assert averaged.validate()["val/accuracy"] == pytest.approx(averaged.metrics["val/accuracy"])
    verdict = averaged.verify()  # a training does not end with these epochs
    assert verdict.verdict == "different"
    assert not [note for note in verdict.notes if "sha256" in note]


def test_ties_keep_the_earlier():
    candidates = Candidates("auto", EpochMetrics(), Recorder(EpochMetrics()))

    class Trainer:
        checkpoint_callback = RunCheckpoint(EpochMetrics(), "val/accuracy")

    for epochs, accuracy in ((0, 0.5), (1, 0.75), (2, 0.75), (3, 0.25), (4, 1.0), (5, 0.5), (6, 0.5)):
        candidates._note(Trainer, epochs, {"val/accuracy": accuracy, "val/loss": 1.0})
    assert [score["epochs"] for score in candidates.scores] == [4, 1, 2, 0, 5]
    assert candidates.members() == {0, 1, 2, 4, 5}


# Real kills, as in test_kills

FILES = ("ledger.jsonl", "metrics.csv", "results.json", "model.safetensors", "evidence/val.safetensors")
FIT = ["--backbone", "test_resnet", "--image-size", "32", "--batch-size", "4", "--threads", "1", "--val-split", "0.25",
       "--num-workers", "0", "--epochs", "3", "--checkpoint-every", "2"]  # fmt: skip


def start(*words, cwd):
    return warm.Program(["-m", "autotimm", *words], cwd)


def finish(process):
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


@pytest.fixture(scope="module")
def whole(photos, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(start("fit", photos, "--pretrained", weights, *FIT, "--name", "whole", cwd=folder))
    return folder / "runs" / "whole"


def kinds(folder: Path) -> list[str]:
    return [line["kind"] for line in read_ledger(folder / "ledger.jsonl").lines]


MOMENTS = {
    "after the head": lambda folder: (folder / "checkpoints/last.ckpt").exists(),
    "in an epoch": lambda folder: kinds(folder).count("step") >= 12,
    "after the last epoch": lambda folder: kinds(folder).count("epoch") == 3,
}


@pytest.mark.parametrize(
    "moment", ["after the head", *(pytest.param(each, marks=pytest.mark.slow) for each in [*MOMENTS][1:])]
)
def test_killed_and_resumed(moment, photos, weights, whole, tmp_path):
    process = start("fit", photos, "--pretrained", weights, *FIT, "--name", "killed", cwd=tmp_path)
    folder = tmp_path / "runs" / "killed"
    while process.poll() is None and not MOMENTS[moment](folder):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    finish(start("resume", folder, cwd=tmp_path))
    assert {name: file_digest(folder / name) for name in FILES} == {name: file_digest(whole / name) for name in FILES}
