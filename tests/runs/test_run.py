"""Making a run in one call, and what can be done with its folder afterwards."""

import csv
import json
import shutil

import pytest
import yaml

import autotimm
from autotimm import ImageDataModule, Run, Task
from autotimm.data.toy import write_toy_folder
from autotimm.errors import DataError, ModelError, UsageError
from autotimm.runs.run import fit_objects
from training import SMALL as SMALL_FIT
from training import classifier, digest, toy_data, trained, trainer

SMALL = {name: value for name, value in SMALL_FIT.items() if name not in ("epochs", "val_split")}


def fit(folder, out, **options):
    return autotimm.fit(folder, **{**SMALL, "epochs": 1, "out": str(out), **options})


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos") / "photos"
    return write_toy_folder(folder, splits={"train": 18, "val": 6, "test": 6}, num_classes=3, seed=7)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    return fit(photos, tmp_path_factory.mktemp("out"), epochs=2)


class TestFit:
    def test_it_returns_the_run(self, run, photos):
        assert type(run) is Run
        assert run.path.name == "photos-001"
        assert run.config["path"] == str(photos)
        assert run.config["epochs"] == 2
        assert {"val/accuracy", "val/loss", "train/loss"} <= set(run.metrics)

    def test_it_records_what_was_left_open_and_who_decided(self, run):
        text = (run.path / "config.yaml").read_text()
        assert run.config["lr"] == pytest.approx(0.0005)
        assert any(line.startswith("lr:") and line.endswith("# recipe") for line in text.splitlines())
        assert any(line.startswith("clip:") and line.endswith("# recipe") for line in text.splitlines())

    def test_again_gives_the_same_bytes(self, run, photos, tmp_path):
        again = fit(photos, tmp_path, epochs=2)
        for name in ("model.safetensors", "metrics.csv", "splits.csv", "results.json"):
            assert (again.path / name).read_bytes() == (run.path / name).read_bytes()
        assert digest(again.model()) == digest(run.model())

    def test_the_same_from_its_own_configuration(self, run, tmp_path):
        config = {name: value for name, value in run.config.items() if value is not None}
        again = autotimm.fit(**{**config, "out": str(tmp_path), "progress": False})
        assert digest(again.model("last")) == digest(run.model("last"))

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"backbone": "resnett18"}, ModelError),
            ({"pretrained": "missing.pth"}, ModelError),
            ({"multi_label": True}, UsageError),
            ({"optimizer": "adamww"}, UsageError),
            ({"loss": "nothing.of.the.kind"}, UsageError),
            ({"monitor": "val/acuracy"}, UsageError),
            ({"metrics": "Acuracy"}, UsageError),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_is_wrong_is_said_before_anything_is_left(self, photos, tmp_path, options, error):
        with pytest.raises(error):
            fit(photos, tmp_path, **options)
        assert not list(tmp_path.iterdir())

    def test_patience_needs_validation_data(self, toy_folder, tmp_path):
        with pytest.raises(UsageError, match="`patience` of fit"):
            fit(toy_folder, tmp_path, val_split=0, patience=2)
        assert not list(tmp_path.iterdir())

    def test_patience_stops(self, photos, tmp_path):
        run = fit(photos, tmp_path, epochs=9, patience=1, lr=1e-12)
        with (run.path / "metrics.csv").open() as file:
            found = [float(row["val/accuracy"]) for row in csv.DictReader(file)]
        assert len(found) < 9
        assert found.index(max(found)) == len(found) - 2  # one epoch without gain, and no more

    @pytest.mark.parametrize("progress", [True, False])
    def test_an_image_on_two_sides_is_pointed_out(self, photos, tmp_path, capsys, progress):
        shutil.copytree(photos, tmp_path / "leaky")
        folders = sorted(tmp_path.glob("leaky/*/*"))
        once = next(one for one in folders if one.parent.name == "train")
        again = next(one for one in folders if one.parent.name == "test" and one.name == once.name)
        shutil.copy(sorted(once.iterdir())[0], again / "copy.png")
        run = fit(tmp_path / "leaky", tmp_path / "out", progress=progress)
        said = capsys.readouterr().err
        assert "1 of 7 test images also occur in the training set" in said
        assert f"test/{once.name}/copy.png (train/{once.name}/" in said
        assert "val images were" not in said
        kept = json.loads((run.path / "manifest.json").read_text())["volatile"]["notices"]
        assert any("1 of 7 test images also occur in the training set" in line for line in kept)

    def test_a_finder_is_recorded(self, photos, tmp_path):
        options = {name: value for name, value in SMALL.items() if name != "batch_size"}
        run = autotimm.fit(photos, **options, epochs=1, out=tmp_path, batch_size_find=True)
        assert "# batch-size finder" in (run.path / "config.yaml").read_text()
        assert run.data().batch_size == run.config["batch_size"]

    def test_a_share_that_was_asked_for_is_refused_where_there_are_such_images(self, photos, toy_folder, tmp_path):
        for options, images in ({"val_split": 0.1}, "validation"), ({"test_split": 0.2, "val_split": 0}, "test"):
            name = next(iter(options))
            with pytest.raises(UsageError, match=f"The `{name}` of fit has no effect on data with {images} images"):
                fit(photos, tmp_path, **options)
        assert not list(tmp_path.iterdir())
        run = fit(toy_folder, tmp_path, val_split=0.2, test_split=0.2)
        assert {split for _, _, split in run.data().assignments()} == {"train", "val", "test"}

    def test_a_path_that_nothing_is_looked_for_in_is_refused(self, toy_folder, tmp_path):
        table = tmp_path / "table.csv"
        names = [one.relative_to(toy_folder).as_posix() for one in sorted(toy_folder.rglob("*.png"))]
        table.write_text("image,label\n" + "".join(f"{name},{name.partition('/')[0]}\n" for name in names))
        given = {"train_csv": table, "image_dir": toy_folder}
        with pytest.raises(UsageError, match="The `path` of fit has no effect with `train_csv` and `image_dir`"):
            fit(tmp_path, tmp_path / "runs", **given)
        # Where the table lies in it, it has an effect; and a table may be the path itself.
        found = fit(tmp_path, tmp_path / "runs", **{**given, "train_csv": "table.csv"})
        same = fit(table, tmp_path / "runs", image_dir=toy_folder)
        assert digest(found.model("last")) == digest(same.model("last"))

    def test_validation_never_comes_from_the_test_side(self, photos, tmp_path):
        rows = (fit(photos, tmp_path).path / "splits.csv").read_text().splitlines()[1:]
        assert sorted({row.split(",")[2] for row in rows}) == ["test", "train", "val"]
        assert all(row.split(",")[0].startswith(row.split(",")[2]) for row in rows)


class TestRun:
    def test_it_is_found_by_its_folder_or_a_checkpoint(self, run):
        for path in (run.path, str(run.path), run.path / "checkpoints" / "best.ckpt"):
            assert digest(Run(path).model()) == digest(run.model())
            assert Run(path).path == run.path

    def test_something_else_is_no_run(self, run, tmp_path):
        with pytest.raises(ModelError, match="Did you mean 'photos-001'"):
            Run(run.path.parent / "photos-01")
        with pytest.raises(ModelError, match="Give the folder that the last line of"):
            Run(tmp_path)

    def test_validate_gives_what_training_wrote(self, run):
        found = run.validate()
        assert found == {name: run.metrics[name] for name in found}
        assert run.validate(ckpt="last") == {
            name: json.loads((run.path / "results.json").read_text())["last"][name] for name in found
        }

    def test_test_is_kept_with_the_results(self, run, photos, tmp_path):
        shutil.copytree(run.path, tmp_path / "copy")
        copy = Run(tmp_path / "copy")
        found = copy.test()
        assert {"test/accuracy", "test/f1", "test/loss"} == set(found)
        assert copy.metrics == run.metrics | found
        assert copy.test(photos / "test") == found  # the same images, as a folder of their own

    def test_another_folder_is_measured_and_not_kept(self, run, photos, capsys):
        before = (run.path / "results.json").read_bytes()
        run.test(photos / "val")
        assert "trained on" not in capsys.readouterr().err
        found = run.test(photos / "train")
        assert "18 of 18 images also occur in the training set; metrics will be optimistic" in capsys.readouterr().err
        assert "test/accuracy" in found
        assert (run.path / "results.json").read_bytes() == before

    def test_a_folder_that_lacks_a_class_is_measured_by_the_right_indices(self, run, photos, tmp_path):
        names = sorted(path.name for path in (photos / "train").iterdir())
        expected = {}
        for name in names[1:]:
            shutil.copytree(photos / "train" / name, tmp_path / "some" / name)
        for one in run.predict(tmp_path / "some"):
            expected[one.id] = one.labels[0] == one.id.split("/")[0]
        assert run.test(tmp_path / "some")["test/accuracy"] == pytest.approx(sum(expected.values()) / len(expected))

    def test_a_data_module_with_other_classes_is_refused(self, run, photos, tmp_path):
        shutil.copytree(photos / "train", tmp_path / "other")
        next(iter(sorted((tmp_path / "other").iterdir()))).rename(tmp_path / "other" / "zebra")
        with pytest.raises(UsageError, match="zebra"):
            run.validate(ImageDataModule(tmp_path / "other", image_size=32, num_workers=0, val_split=0.3))

    def test_a_table_is_read_as_that_of_the_training_was(self, toy_folder, tmp_path):
        table = tmp_path / "table.csv"
        names = [one.relative_to(toy_folder).as_posix() for one in sorted(toy_folder.rglob("*.png"))]
        table.write_text("photo,kind\n" + "".join(f"{name},{name.partition('/')[0]}\n" for name in names))
        columns = {"image_dir": toy_folder, "image_column": "photo", "label_column": "kind"}
        run = fit(None, tmp_path / "runs", train_csv=table, **columns)
        found = run.test(toy_folder)
        assert run.test(table) == found
        one = trainer(run_dir=tmp_path / "objects")
        objects = fit_objects(classifier(), toy_data(None, train_csv=table, **columns), one)
        assert set(objects.test(table)) == set(found)

    def test_without_test_data_there_is_an_error(self, toy_folder, tmp_path):
        run = fit(toy_folder, tmp_path, val_split=0.25)
        with pytest.raises(DataError, match="There is no test data"):
            run.test()

    def test_without_validation_data_too(self, toy_folder, tmp_path):
        run = fit(toy_folder, tmp_path, val_split=0)
        assert run.metrics.keys() == {"train/loss"}
        with pytest.raises(DataError, match="no validation data"):
            run.validate()

    def test_a_moved_run_does_all_of_it(self, run, photos, tmp_path):
        before = run.validate(), run.predict(photos / "test")
        shutil.copytree(run.path, tmp_path / "elsewhere")
        moved = Run(tmp_path / "elsewhere")
        assert (moved.validate(), moved.predict(photos / "test")) == before
        assert moved.metrics == run.metrics

    def test_a_checkpoint_alone_predicts_and_says_what_it_cannot(self, run, photos, tmp_path):
        shutil.copy(run.path / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
        alone = Run(tmp_path / "alone.ckpt")
        assert alone.predict(photos / "test") == run.predict(photos / "test")
        with pytest.raises(ModelError, match=r"has no config\.yaml"):
            alone.validate()
        assert alone.test(photos / "test") == run.test(photos / "test")

    def test_a_run_that_was_stopped_at_once_says_so(self, tmp_path):
        (tmp_path / "early" / "checkpoints").mkdir(parents=True)
        with pytest.raises(ModelError, match="It was stopped before its first epoch ended"):
            Run(tmp_path / "early").model()


class TestObjects:
    def test_a_run_of_objects_measures_and_predicts(self, toy_folder, tmp_path):
        data, one = toy_data(toy_folder, test_split=0.2), trainer(run_dir=tmp_path / "run")
        model = classifier()
        run = fit_objects(model, data, one)
        assert digest(run.model("last")) == digest(model)
        assert yaml.safe_load((run.path / "config.yaml").read_text())["trainer"]["seed"] == 42
        found = Run(run.path).validate()
        assert found == {name: run.metrics[name] for name in found}
        assert set(run.test()) == {"test/accuracy", "test/f1", "test/loss"}

    def test_a_trainers_folder_is_a_run(self, toy_folder, tmp_path):
        trained(toy_folder, run_dir=tmp_path / "run")
        assert isinstance(Run(tmp_path / "run").model(), Task)
