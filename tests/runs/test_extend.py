"""Train on from a finished run: on its own data, on other data, and along a chain of runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_file, save_file

import autotimm
from autotimm import AutoTrainer, Run
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder
from autotimm.errors import DataError, ModelError, UsageError
from autotimm.records.digest import file_digest
from autotimm.records.manifest import Manifest
from autotimm.repro import key
from autotimm.runs import extend as extend_module
from autotimm.runs.extend import read_epochs
from autotimm.runs.run import train_on
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.tasks.start import network_digest
from training import classifier, small_fit, toy_data, trainer


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_toy_folder(tmp_path_factory.mktemp("data") / "photos", n=24, num_classes=3, seed=7)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Images of two other classes."""
    folder = write_toy_folder(tmp_path_factory.mktemp("data") / "others", n=16, num_classes=2, seed=3)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"other-{number}")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run of two epochs whose best is its first; only to be read."""
    return small_fit(photos, tmp_path_factory.mktemp("runs"), epochs=2, lr=0.01, name="first")


@pytest.fixture(scope="module")
def child(run, photos):
    return run.extend(epochs="+2", lr=0.002)


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """A run that was made from objects."""
    folder = tmp_path_factory.mktemp("objects") / "run"
    trainer(1, run_dir=folder).fit(classifier(lr=0.01), datamodule=toy_data(photos))
    return Run(folder)


def manifest(run: Run) -> Manifest:
    return Manifest.load(run.path / "manifest.json")


def network(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = read_checkpoint(checkpoint)["state_dict"]
    return {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}


def forged(run: Run, tmp_path: Path, change) -> Run:
    """A copy of a run beside its parent whose manifest was changed, with its digests computed anew."""
    folder = run.path.with_name(f"{run.path.name}-{tmp_path.name}")
    shutil.copytree(run.path, folder)
    copied = Manifest.load(folder / "manifest.json")
    change(copied.inputs)
    Manifest(**{name: getattr(copied, name) for name in ("inputs", "environment", "decisions", "results", "levels",
                                                         "volatile")}).save(folder / "manifest.json")  # fmt: skip
    return Run(folder)


@pytest.mark.parametrize(("given", "number"), [(10, 10), ("10", 10), ("+10", 10), (" +1 ", 1)])
def test_epochs(given, number):
    assert read_epochs(given, "extend") == number


@pytest.mark.parametrize("given", [0, -1, "+0", "++1", "ten", 1.5, True, None, ""])
def test_wrong_epochs(given):
    with pytest.raises(UsageError, match="The `epochs` of extend must be a number of epochs to train, 1 or more"):
        read_epochs(given, "extend")


class TestOnTheSameData:
    def test_it_begins_with_the_last_weights_and_names_them(self, run, child):
        start, last = manifest(child).inputs["start"], run.path / "checkpoints" / "last.ckpt"
        assert start["kind"] == "weights"
        assert start["parent"] == {
            "checkpoint": "last.ckpt", "manifest": manifest(run).digest, "run_id": manifest(run).run_id,
            "sha256": file_digest(last),
        }  # fmt: skip
        initial = load_file(child.path / "initial.safetensors")
        assert file_digest(child.path / "initial.safetensors") == start["sha256"]
        assert initial.keys() == network(last).keys()
        assert all(torch.equal(initial[name], value) for name, value in network(last).items())
        assert "new" not in start

    def test_it_is_a_run_of_its_own(self, run, child):
        assert child.path == run.path.with_name("first-extended-001")
        record = manifest(child)
        assert record.run_id != manifest(run).run_id
        assert record.results["status"] == "finished"
        assert record.levels["R1"] == "expected"
        assert (child.config["epochs"], child.config["lr"], child.config["batch_size"]) == (2, 0.002, 8)
        text = (child.path / "config.yaml").read_text()
        assert "epochs: 2" in text
        assert text.count("# argument") == 2
        assert len((child.path / "metrics.csv").read_text().splitlines()) == 3

    def test_the_split_stays_and_the_order_does_not_repeat(self, run, child):
        assert (child.path / "splits.csv").read_bytes() == (run.path / "splits.csv").read_bytes()
        seeds, parent = manifest(child).inputs["seeds"], manifest(run).inputs["seeds"]
        assert {name: seeds[name] for name in parent} == parent
        assert set(seeds["streams"]) == {"order", "augment", "step"}
        assert set(seeds["streams"].values()) == {key(0, "extend", manifest(run).run_id) % 2**32}

    def test_another_seed_keeps_the_split_too(self, run):
        other = run.extend(epochs=1, seed=7, name="other-seed")
        assert (other.path / "splits.csv").read_bytes() == (run.path / "splits.csv").read_bytes()
        assert manifest(other).inputs["seeds"]["streams"] == {"split": 42}

    def test_seeds_of_streams_can_be_given(self, run):
        other = run.extend(epochs=1, stream_seeds="order=3", name="order")
        assert manifest(other).inputs["seeds"]["streams"] == {"order": 3}

    def test_the_recipe_is_that_for_trained_weights(self, run):
        other = run.extend(epochs=1, lr=None, name="recipe")
        assert manifest(other).decisions["recipe"]["reason"] == "lr 0.00025: CNN fine-tuning, AdamW, batch 8"
        assert manifest(other).decisions["weights"]["source"] == "run"

    def test_the_best_weights_can_be_asked_for_or_a_file(self, run):
        for number, ckpt in enumerate(("best", run.path / "checkpoints" / "best.ckpt")):
            other = run.extend(epochs=1, ckpt=ckpt, name=f"best-{number}")
            assert manifest(other).inputs["start"]["parent"]["checkpoint"] == "best.ckpt"
            initial = load_file(other.path / "initial.safetensors")
            best = network(run.path / "checkpoints" / "best.ckpt")
            assert all(torch.equal(initial[name], value) for name, value in best.items())

    def test_equal_calls_give_equal_runs(self, run, child):
        again = run.extend(epochs=2, lr=0.002, name="twin")
        assert manifest(again).run_id == manifest(child).run_id
        assert autotimm.diff(child.path, again.path).equal


class TestRecords:
    def test_verify(self, child):
        assert str(child.verify()).splitlines()[-1] == "verdict: identical (6 steps compared)"
        assert child.verify(epochs=(2, 2)).identical
        assert child.verify(steps=2, workers=1).identical

    def test_reproduce(self, child):
        again = child.reproduce()
        assert autotimm.diff(child.path, again.path).equal
        assert manifest(again).run_id == manifest(child).run_id
        assert (again.path / "initial.safetensors").read_bytes() == (child.path / "initial.safetensors").read_bytes()
        assert again.verify().identical

    def test_diff_names_what_it_began_with(self, run, child):
        comparison = autotimm.diff(run.path, child.path)
        assert comparison.difference.stage == "start"
        assert (
            "the source of the initial weights: the constructor was recorded, another run was found" in comparison.cause
        )

    def test_the_published_schema_describes_it(self, child, others, run):
        schema = json.loads((Path(__file__).parents[2] / "docs/reference/manifest.schema.json").read_text())
        other = run.extend(others, epochs=1, name="for-the-schema")
        for extended in (child, other):
            record = json.loads((extended.path / "manifest.json").read_text())
            jsonschema.Draft202012Validator(schema).validate(record)
            start = schema["properties"]["inputs"]["properties"]["start"]["properties"]
            assert record["inputs"]["start"].keys() <= start.keys()
            assert record["inputs"]["start"]["parent"].keys() == start["parent"]["properties"].keys()
            assert record["volatile"]["parent"] == str(run.path)

    def test_a_chain(self, child, tmp_path):
        grandchild = child.extend(epochs=1)
        assert grandchild.path.name == "first-extended-002"
        assert manifest(grandchild).inputs["start"]["parent"]["run_id"] == manifest(child).run_id
        assert grandchild.verify().identical

    def test_alone_it_is_verified_from_its_own_copy(self, child, tmp_path):
        alone = Run(shutil.copytree(child.path, tmp_path / "alone"))
        record = json.loads((alone.path / "manifest.json").read_text())
        record["volatile"]["parent"] = str(tmp_path / "gone")
        (alone.path / "manifest.json").write_text(json.dumps(record))
        verdict = alone.verify()
        assert verdict.identical
        parent = record["inputs"]["start"]["parent"]["run_id"]
        assert verdict.notes[0].startswith(
            f"not checked: the run {parent}, whose last.ckpt it began with, is not there"
        )
        assert autotimm.diff(alone.path, child.path).equal

    def test_moved_together_the_parent_is_found(self, run, child, tmp_path):
        for one in (run, child):
            shutil.copytree(one.path, tmp_path / one.path.name)
        moved = Run(tmp_path / child.path.name)
        record = json.loads((moved.path / "manifest.json").read_text())
        record["volatile"]["parent"] = "/gone/first"
        (moved.path / "manifest.json").write_text(json.dumps(record))
        assert moved.verify(steps=1).notes == ()
        (tmp_path / "first" / "checkpoints" / "last.ckpt").write_bytes(b"other")
        verdict = moved.verify()
        assert (verdict.verdict, verdict.exit_code) == ("different", 5)
        assert "the SHA-256 of that checkpoint is not what its record says" in verdict.reason

    @pytest.mark.parametrize("name", ["run_id", "manifest", "sha256"])
    def test_a_forged_parent_is_noticed(self, name, child, tmp_path):
        def change(inputs):
            value = inputs["start"]["parent"][name]
            inputs["start"]["parent"][name] = value[:-1] + ("0" if value[-1] != "0" else "1")

        verdict = forged(child, tmp_path, change).verify()
        assert (verdict.verdict, verdict.exit_code) == ("different", 5)

    def test_other_initial_weights_are_noticed(self, child, tmp_path):
        folder = child.path.with_name("other-weights")
        shutil.copytree(child.path, folder)
        weights = load_file(folder / "initial.safetensors")
        save_file({**weights, "head.bias": weights["head.bias"] + 1}, folder / "initial.safetensors")
        verdict = Run(folder).verify()
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 4)
        assert "initial.safetensors was changed since the run began" in verdict.reason
        verdict = Run(folder).verify(epochs=(2, 2))  # it begins at a checkpoint, and needs no start
        assert (verdict.verdict, verdict.exit_code) == ("different", 5)
        assert "initial.safetensors" in verdict.reason
        forgery = forged(
            Run(folder), tmp_path,
            lambda inputs: inputs["start"].update(sha256=file_digest(folder / "initial.safetensors")),
        )  # fmt: skip
        verdict = forgery.verify()
        assert verdict.verdict == "different"
        assert "head.bias in" in verdict.reason

    @pytest.mark.parametrize("record", [3, "weights", [], {}, {"kind": "magic"}, {"kind": None}, {"kind": "weights"},
                                        {"kind": ["weights"]}, {"kind": "checkpoint", "sha256": 3}])  # fmt: skip
    def test_a_broken_record_is_refused_in_a_sentence(self, record, child, tmp_path):
        verdict = forged(child, tmp_path, lambda inputs: inputs.update(start=record)).verify()
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 4)

    def test_it_is_resumed(self, run, child):
        class Fails(Callback):
            def on_train_epoch_start(self, trainer, pl_module):
                if trainer.current_epoch == 1:
                    raise ZeroDivisionError

        stopped = run.path.with_name("stopped")
        shutil.copytree(child.path, stopped)
        newest = sorted((stopped / "checkpoints").glob("epoch-*"))[-1]
        newest.unlink()
        shutil.copy(next((stopped / "checkpoints").glob("epoch-*")), stopped / "checkpoints" / "last.ckpt")
        record = json.loads((stopped / "manifest.json").read_text())
        record["results"] = {"status": "interrupted"}
        (stopped / "manifest.json").write_text(json.dumps(record))
        Run(stopped).resume()
        for name in ("ledger.jsonl", "metrics.csv", "model.safetensors"):
            assert (stopped / name).read_bytes() == (child.path / name).read_bytes(), name
        assert manifest(Run(stopped)).run_id == manifest(child).run_id

    def test_it_starts_over_from_its_parent_without_a_checkpoint(self, run, child):
        stopped = run.path.with_name("early")
        shutil.copytree(child.path, stopped, ignore=shutil.ignore_patterns("*.ckpt", "sha256.txt"))
        record = json.loads((stopped / "manifest.json").read_text())
        record["results"] = {"status": "interrupted"}
        (stopped / "manifest.json").write_text(json.dumps(record))
        Run(stopped).resume()
        for name in ("ledger.jsonl", "metrics.csv", "model.safetensors", "initial.safetensors"):
            assert (stopped / name).read_bytes() == (child.path / name).read_bytes(), name


class TestOnOtherData:
    def test_a_new_head_and_the_best_weights_elsewhere(self, run, others, capsys):
        other = run.extend(others, epochs=1, progress=True)
        assert other.path.name == "others-001"
        start = manifest(other).inputs["start"]
        assert start["new"] == ["head.bias", "head.weight"]
        assert start["parent"]["checkpoint"] == "best.ckpt"
        initial, best = load_file(other.path / "initial.safetensors"), network(run.path / "checkpoints" / "best.ckpt")
        assert initial["head.weight"].shape[0] == 2
        assert all(torch.equal(initial[name], value) for name, value in best.items() if name not in start["new"])
        notices = [line for line in capsys.readouterr().err.splitlines() if "begin anew" in line]
        assert len(notices) == 1
        assert "head.bias, head.weight begin anew; the other" in notices[0]
        assert other.model().class_names == ("other-0", "other-1")
        assert other.verify().identical

    def test_what_is_said_to_begin_anew_does(self, run, others, monkeypatch):
        """Whoever says that more is new, or loads what was trained elsewhere, did not train on from the run."""
        begin = extend_module._begin

        def trained_elsewhere(task, *args, **settings):
            start = begin(task, *args, **settings)
            with torch.no_grad():
                task.head.weight.mul_(2)
            return replace(start, network=network_digest(task.network))

        with monkeypatch.context() as patch:
            patch.setattr(extend_module, "_begin", trained_elsewhere)
            verdict = run.extend(others, epochs=1, name="elsewhere").verify()
        assert verdict.verdict == "different"
        assert "says that head.weight began anew, and it began with other values" in verdict.reason
        with monkeypatch.context() as patch:
            patch.setattr(extend_module, "depends_on_classes", lambda task: {*task.network.state_dict()})
            verdict = run.extend(others, epochs=1, name="all-new").verify()
        assert verdict.verdict == "different"
        assert "began anew, which does not depend on the classes" in verdict.reason

    def test_as_many_other_classes_have_a_new_head_too(self, run, photos, tmp_path):
        renamed = shutil.copytree(photos, tmp_path / "renamed")
        for path in list(renamed.iterdir()):
            path.rename(renamed / f"new-{path.name}")
        other = run.extend(renamed, epochs=1, name="renamed")
        assert manifest(other).inputs["start"]["new"] == ["head.bias", "head.weight"]
        assert other.verify(steps=1).identical

    def test_the_same_classes_keep_the_head(self, run, photos, tmp_path):
        more = shutil.copytree(photos, tmp_path / "more")
        next(more.rglob("*.png")).unlink()
        other = run.extend(more, epochs=1, name="more")
        start = manifest(other).inputs["start"]
        assert "new" not in start
        assert start["parent"]["checkpoint"] == "best.ckpt"

    def test_a_copy_of_the_data_is_the_same_data(self, run, photos, tmp_path):
        copy = shutil.copytree(photos, tmp_path / "copy")
        other = run.extend(copy, epochs=1, name="copied")
        assert manifest(other).inputs["start"]["parent"]["checkpoint"] == "last.ckpt"

    def test_a_table(self, run, photos, tmp_path):
        rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
        (tmp_path / "table.csv").write_text("\n".join(["image,label", *rows]) + "\n")
        other = run.extend(tmp_path / "table.csv", epochs=1, image_dir=str(photos), name="table")
        assert other.verify(steps=1).identical

    def test_a_split_of_its_own_replaces_that_of_the_run(self, run, tmp_path):
        own = write_toy_folder(tmp_path / "own", splits={"train": 12, "val": 6}, num_classes=3)
        other = run.extend(own, epochs=1, name="own-split")
        assert (other.path / "splits.csv").read_text().count(",val\n") == 6
        with pytest.raises(UsageError, match="The `val_split` of fit has no effect on data with validation images"):
            run.extend(own, epochs=1, val_split=0.3, name="given")
        assert not run.path.with_name("given").exists()


class TestRefused:
    def test_an_unfinished_run(self, photos, tmp_path):
        class Fails(Callback):
            def on_train_end(self, *args):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            trainer(run_dir=tmp_path / "run", callbacks=[Fails()]).fit(classifier(), datamodule=toy_data(photos))
        with pytest.raises(ModelError, match=r"must be finished before another one trains on from it.*autotimm resume"):
            Run(tmp_path / "run").extend(epochs=1)

    @pytest.mark.parametrize("name", ["backbone", "task", "pretrained", "arch", "width", "multi_label", "path"])
    def test_options_of_the_network(self, name, run):
        before = sorted(run.path.parent.iterdir())
        with pytest.raises(UsageError, match=f"The `{name}` of extend must be that of the run"):
            train_on(run, None, epochs=1, ckpt=None, changes={name: "x"}, source="argument")
        assert sorted(run.path.parent.iterdir()) == before

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"learning_rate": 1}, "extend has no option `learning_rate`. Did you mean 'lr'?"),
            ({"lr": -1}, "The `lr` of extend must be a number above 0"),
            ({"epochs": 0}, "The `epochs` of extend must be a number of epochs"),
            ({"lr_find": True, "lr": 0.1}, "The `lr` of fit has no effect with `lr_find`"),
            ({"ckpt": "bset"}, "The `ckpt` of the run .* must be best, last or a file"),
        ],
    )
    def test_wrong_options(self, changes, said, run):
        before = sorted(run.path.parent.iterdir())
        with pytest.raises((UsageError, ModelError), match=said):
            run.extend(**{"epochs": 1, **changes})
        assert sorted(run.path.parent.iterdir()) == before

    def test_data_that_is_not_there(self, run, tmp_path):
        before = sorted(run.path.parent.iterdir())
        with pytest.raises(DataError):
            run.extend(tmp_path / "nowhere", epochs=1)
        assert sorted(run.path.parent.iterdir()) == before

    def test_a_network_of_another_shape(self, photos, tmp_path):
        parent = small_fit(photos, tmp_path, backbone="test_vit", name="vit")
        with pytest.raises(ModelError, match=r"pos_embed is \(1, .* there and .* here. Leave out .*`image_size`"):
            parent.extend(epochs=1, image_size=64)
        assert [path.name for path in tmp_path.iterdir()] == ["vit"]


class TestRunsMadeFromObjects:
    def test_it_trains_on(self, made):
        other = made.extend(epochs="+2", lr=0.005)
        assert other.path.name == "run-extended-001"
        assert manifest(other).inputs["start"]["parent"]["run_id"] == manifest(made).run_id
        assert manifest(other).inputs["config"]["model"]["lr"] == 0.005
        assert manifest(other).inputs["config"]["trainer"]["max_epochs"] == 2
        assert manifest(other).inputs["seeds"]["trainer"] != 42
        assert (other.path / "splits.csv").read_bytes() == (made.path / "splits.csv").read_bytes()
        assert other.verify().identical

    def test_it_is_tuned_for_other_classes(self, made, others):
        other = made.extend(others, epochs=1, batch_size=4)
        assert manifest(other).inputs["start"]["new"] == ["head.bias", "head.weight"]
        assert other.model().num_classes == 2
        assert manifest(other).inputs["config"]["data"]["batch_size"] == 4
        assert other.verify().identical

    def test_loaders_of_ones_own_are_refused(self, photos, tmp_path):
        data = toy_data(photos)
        AutoTrainer(1, run_dir=tmp_path / "run", accelerator="cpu", threads=1, enable_progress_bar=False).fit(
            classifier(), data.train_dataloader()
        )
        with pytest.raises(ModelError, match="was made from loaders of your own"):
            Run(tmp_path / "run").extend(epochs=1)


class TestCommandLine:
    def test_it_trains_on_and_can_be_verified(self, run, capsys):
        words = ["extend", str(run.path), "--epochs", "+1", "--batch-size", "4", "--name", "by-words"]
        assert main(words) == 0
        out = capsys.readouterr().out
        made = run.path.parent / "by-words"
        assert out == f"report: {made / 'report.html'}\nrun: {made}\n"
        text = (run.path.parent / "by-words" / "config.yaml").read_text()
        assert text.count("# command line") == 3
        assert main(["verify", str(run.path.parent / "by-words")]) == 0

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "autotimm extend needs --epochs: the number of epochs to train, such as +10."),
            (["--epochs", "0"], "The `epochs` of extend must be a number of epochs to train, 1 or more. Got '0'"),
            (["--epochs", "+1", "--backbone", "x"], "autotimm extend has no option --backbone."),
            (["--epochs", "+1", "--data", "x"], "no option --data. Did you mean 'autotimm extend PATH'?"),
            (["--epochs", "+1", "--lr", "x"], "The `--lr` of autotimm extend must be a number above 0"),
            (["a", "b", "--epochs", "1"], "takes RUN [PATH]. Got b as well"),
        ],
    )
    def test_mistakes(self, words, said, run, capsys):
        assert main(["extend", str(run.path), *words]) == 2
        assert said in capsys.readouterr().err

    def test_help(self, capsys):
        assert main(["extend", "--help"]) == 0
        page = capsys.readouterr().out
        assert "autotimm extend RUN [PATH] [OPTIONS]" in page
        assert "--epochs +N" in page
        assert "--ckpt best|last|FILE" in page
        assert "--backbone" not in page
        assert "Options that are not given have the values of the run" in page

    @pytest.mark.parametrize("word", ["continue", "finetune", "extned"])
    def test_other_names_of_it(self, word, capsys):
        assert main([word]) == 2
        assert "Did you mean 'extend'?" in capsys.readouterr().err


def test_a_resume_with_more_epochs_points_here(photos, tmp_path):
    trainer(1, run_dir=tmp_path / "run").fit(classifier(), datamodule=toy_data(photos))
    with pytest.raises(UsageError, match=f"Use `autotimm extend {tmp_path / 'run'}`"):
        trainer(3, run_dir=tmp_path / "run").fit(classifier(), datamodule=toy_data(photos), ckpt_path="last")
    assert Run(tmp_path / "run").extend(epochs="+2").verify().identical
