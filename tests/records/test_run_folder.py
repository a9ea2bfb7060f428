"""The run folder: what lies in it, that it stays whole, and where it may not be."""

import csv
import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from autotimm import ImageClassifier, Task
from autotimm.errors import RunError, UsageError
from autotimm.records.run_folder import RunFolder
from training import classifier, multi_label_data, toy_data, trained, trainer


@pytest.fixture(scope="module")
def run(toy_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / "run"
    trained(toy_folder, 2, {"lr": 0.01}, run_dir=folder)
    return folder


class TestContent:
    def test_the_files(self, run):
        names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
        files = {name for name in names if not name.startswith("checkpoints/epoch-")}
        assert files == {"config.yaml", "splits.csv", "files.csv", "metrics.csv", "results.json", "model.safetensors",
                         "manifest.json", "ledger.jsonl", ".lock", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
                         "checkpoints/sha256.txt"}  # fmt: skip

    def test_the_split_of_every_sample(self, run, toy_folder):
        with open(run / "splits.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
        assert {row["id"] for row in rows} == {
            path.relative_to(toy_folder).as_posix() for path in toy_folder.rglob("*.png")
        }
        assert sorted({row["split"] for row in rows}) == ["train", "val"]
        assert all(row["id"].startswith(row["class"]) for row in rows)

    def test_the_exported_weights_are_the_best_ones(self, run):
        weights = load_file(run / "model.safetensors")
        best = Task.load_from_checkpoint(run / "checkpoints" / "best.ckpt").state_dict()
        assert weights.keys() == best.keys()
        assert all(torch.equal(weights[name], best[name]) for name in weights)

    def test_results(self, run):
        results = json.loads((run / "results.json").read_text())
        with open(run / "metrics.csv", newline="") as file:
            last = list(csv.DictReader(file))[-1]
        assert results["last"] == {name: float(last[name]) for name in results["last"]}
        assert set(results["best"]) == set(results["last"]) == {"train/loss", "val/accuracy", "val/f1", "val/loss"}

    def test_the_configuration_names_classes_and_arguments(self, run):
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["model"]["class_path"].endswith("ImageClassifier")
        assert config["model"]["init_args"]["backbone"] == "test_resnet"
        assert config["data"]["init_args"]["image_size"] == 32

    def test_results_of_the_last_epoch_where_it_was_not_validated(self, toy_folder, tmp_path):
        trained(toy_folder, 3, run_dir=tmp_path / "run", check_val_every_n_epoch=2)
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert set(results["last"]) == {"train/loss"}
        assert "val/accuracy" in results["best"]

    def test_several_labels_in_the_split(self, toy_folder, tmp_path):
        trainer(run_dir=tmp_path / "run").fit(
            classifier(num_classes=2, multi_label=True), datamodule=multi_label_data(toy_folder, tmp_path)
        )
        assert "second|third" in (tmp_path / "run" / "splits.csv").read_text()


class TestPlaces:
    def test_folder_numbers_continue(self, toy_folder, tmp_path):
        for _ in range(2):
            trained(toy_folder, run_dir=None, default_root_dir=tmp_path)
        (tmp_path / "runs" / "shapes-003").mkdir()
        trained(toy_folder, run_dir=None, default_root_dir=tmp_path)
        names = sorted(path.name for path in (tmp_path / "runs").iterdir())
        assert names == [f"shapes-00{number}" for number in (1, 2, 3, 4)]

    def test_a_folder_with_a_run_is_refused_and_kept(self, toy_folder, run):
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        with pytest.raises(UsageError, match="`run_dir` of AutoTrainer must be a folder without a run"):
            trained(toy_folder, run_dir=run)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    def test_an_exact_name_must_be_free(self, tmp_path):
        assert RunFolder.create(tmp_path, "photos", exact=True).path == tmp_path / "photos"
        (tmp_path / "photos" / "mine.txt").write_text("keep")
        with pytest.raises(UsageError, match="new or empty folder"):
            RunFolder.create(tmp_path, "photos", exact=True)
        assert (tmp_path / "photos" / "mine.txt").read_text() == "keep"

    def test_a_name_is_no_path_and_true_is_no_folder(self, tmp_path):
        with pytest.raises(UsageError, match=r"`name` of the run must be a folder's name, without a path. Got 'a/b'"):
            RunFolder.create(tmp_path, "a/b")
        with pytest.raises(UsageError, match=r"`run_dir` of AutoTrainer must be a path, None or False. Got True"):
            trainer(run_dir=True)
        assert not list(tmp_path.iterdir())

    def test_discarding_keeps_files_of_others(self, tmp_path):
        folder = RunFolder.create(tmp_path, "photos")
        folder.write_config("a: 1\n")
        (folder.path / "mine.txt").write_text("keep")
        folder.discard()
        assert (folder.path / "mine.txt").exists()
        (folder.path / "mine.txt").unlink()
        folder.discard()
        assert not folder.path.exists()

    @pytest.mark.parametrize("below", ["", "run"])
    def test_a_file_in_place_of_the_folder(self, toy_folder, tmp_path, below):
        (tmp_path / "taken").write_text("a file")
        with pytest.raises(RunError, match=r"must be writable. It is not"):
            trained(toy_folder, run_dir=tmp_path / "taken" / below)
        with pytest.raises(RunError, match=r"must be writable. It is not"):
            trained(toy_folder, run_dir=None, default_root_dir=tmp_path / "taken")
        assert (tmp_path / "taken").read_text() == "a file"

    def test_a_moved_run_tests_and_loads(self, toy_folder, tmp_path):
        data = toy_data(toy_folder, test_split=0.2)
        auto_trainer = trainer(run_dir=tmp_path / "here")
        model = classifier()
        auto_trainer.fit(model, datamodule=data)
        before = auto_trainer.test(model, datamodule=data, ckpt_path="best")
        (tmp_path / "here").rename(tmp_path / "there")
        loaded = ImageClassifier.load_from_checkpoint(tmp_path / "there" / "checkpoints" / "best.ckpt")
        assert trainer().test(loaded, datamodule=data) == before
