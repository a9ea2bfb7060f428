"""Prediction: the same bits for an image alone, in a folder, in a list and in validation."""

import multiprocessing
import shutil

import pytest
import torch

from autotimm import Task
from autotimm.errors import DataError, ModelError, UsageError
from autotimm.runs.predict import predict
from training import classifier, multi_label_data, toy_data, trainer


@pytest.fixture(scope="module")
def model(toy_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "run"
    trainer(2, run_dir=folder).fit(classifier("test_vit", lr=1e-3), datamodule=toy_data(toy_folder))
    return Task.load_from_checkpoint(folder / "checkpoints" / "best.ckpt")


def scores(model, paths, **options):
    return [one.scores for one in predict(model, paths, trainer=trainer(), **options)]


@pytest.fixture(scope="module")
def files(toy_folder):
    return sorted(toy_folder.rglob("*.png"))


@pytest.fixture(scope="module")
def expected(model, toy_folder):
    return scores(model, toy_folder)


class TestSameBits:
    def test_a_list_in_another_order(self, model, files, expected):
        assert scores(model, files[::-1])[::-1] == expected

    def test_each_file_alone(self, model, files, expected):
        assert [scores(model, path)[0] for path in files[:5]] == expected[:5]

    def test_with_workers(self, model, toy_folder, expected):
        others = {*multiprocessing.active_children()}  # a test before this one may have killed a loader's process
        assert scores(model, toy_folder, num_workers=2) == expected
        assert {*multiprocessing.active_children()} - others == set()  # the garbage collector ends them very slowly

    def test_another_trainer_seed_or_switch(self, model, toy_folder, expected):
        other = trainer(seed=7, use_autotimm_seeding=True)
        assert [one.scores for one in predict(model, toy_folder, trainer=other)] == expected

    def test_as_validation_saw_them(self, model, toy_folder, expected, files):
        data = toy_data(toy_folder)
        batches = trainer().predict(model, data.val_dataloader())
        found = {one.id: one.scores for batch in batches for one in batch}
        assert len(found) == 6
        names = [path.relative_to(toy_folder).as_posix() for path in files]
        assert found == {name: score for name, score in zip(names, expected, strict=True) if name in found}
        right = sum(max(score, key=score.get) == name.split("/")[0] for name, score in found.items())
        assert trainer().validate(model, datamodule=data)[0]["val/accuracy"] == pytest.approx(right / 6)

    def test_fast_is_close_and_leaves_the_task_as_it_was(self, model, toy_folder, expected):
        for fast, one in zip(scores(model, toy_folder, fast=True), expected, strict=True):
            assert list(fast.values()) == pytest.approx(list(one.values()), abs=1e-5)
        assert scores(model, toy_folder) == expected


class TestResults:
    def test_ids_labels_and_scores(self, model, toy_folder, files):
        found = predict(model, toy_folder, trainer=trainer())
        assert [one.id for one in found] == [path.relative_to(toy_folder).as_posix() for path in files]
        for one in found:
            assert list(one.scores) == ["blue_circle", "green_cross", "orange_square"]
            assert sum(one.scores.values()) == pytest.approx(1)
            assert one.labels == (max(one.scores, key=one.scores.get),)
        assert predict(model, files[0], trainer=trainer())[0].id == files[0].name
        assert [one.id for one in predict(model, files[:2], trainer=trainer())] == [
            path.as_posix() for path in files[:2]
        ]

    def test_unreadable_ones_are_left_out_and_named(self, model, files, tmp_path, capfd):
        shutil.copy(files[0], tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(files[1].read_bytes()[:200])
        (tmp_path / "c.jpg").write_text("a letter")
        (tmp_path / "d.png").write_bytes(b"")
        found = predict(model, tmp_path, trainer=trainer())
        assert [one.id for one in found] == ["a.png"]
        shown = capfd.readouterr().err
        assert "3 of 4 images cannot be read" in shown
        assert all(name in shown for name in ("b.png", "c.jpg", "d.png"))

    @pytest.mark.parametrize("paths", [[], ["missing.png"], ["empty"], ["bad.png"]])
    def test_nothing_to_predict(self, model, tmp_path, paths):
        (tmp_path / "empty").mkdir()
        (tmp_path / "bad.png").write_text("no image")
        with pytest.raises(DataError):
            predict(model, [tmp_path / path for path in paths], trainer=trainer())

    def test_a_task_that_has_seen_no_data(self, toy_folder):
        with pytest.raises(ModelError, match="must know its data"):
            predict(classifier(), toy_folder, trainer=trainer())

    def test_the_callers_generators_stay_without_a_seed(self, model, files):
        state = torch.get_rng_state()
        predict(model, files[:2], trainer=trainer(seed=None))
        assert torch.equal(torch.get_rng_state(), state)


def test_labels_from_another_score_on(toy_folder, files, tmp_path):
    model = classifier(num_classes=2, multi_label=True)
    trainer().fit(model, datamodule=multi_label_data(toy_folder, tmp_path))
    all_of_them = predict(model, files[0], trainer=trainer(), threshold=1e-6)[0]
    assert set(all_of_them.labels) == set(all_of_them.scores)
    assert predict(model, files[0], trainer=trainer(), threshold=1 - 1e-6)[0].labels == ()
    assert model.threshold == 0.5
    with pytest.raises(UsageError, match=r"The `threshold` of ImageClassifier must be in \(0, 1\). Got 2 instead"):
        predict(model, files[0], trainer=trainer(), threshold=2)


def test_one_class_for_each_image_has_no_threshold(model, files):
    with pytest.raises(UsageError, match=r"The `threshold` of ImageClassifier must be left out\. Got 0.5 instead"):
        predict(model, files[0], trainer=trainer(), threshold=0.5)
