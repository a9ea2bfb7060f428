"""The evidence of a run: figures made of it are those of the metrics, and no edit of it goes unnoticed."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import autotimm
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.errors import ModelError
from autotimm.records.ledger import read_ledger
from training import multi_label_data, small_fit, toy_data, trainer

SPLITS = {"train": 8, "val": 5, "test": 3}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_toy_folder(tmp_path_factory.mktemp("toy") / "photos", splits={"train": 18, "val": 6, "test": 6},
                            num_classes=3, seed=7)  # fmt: skip


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    run = small_fit(photos, tmp_path_factory.mktemp("runs"), name="one", epochs=2, val_split=None)
    run.test()
    return run


def test_metrics_follow_from_it(run):
    for split in ("val", "test"):
        evidence = run.evidence(split)
        accuracy = (evidence.scores.argmax(axis=1) == evidence.targets).mean()
        assert accuracy == pytest.approx(run.metrics[f"{split}/accuracy"], abs=1e-6)
        assert evidence.losses.mean() == pytest.approx(run.metrics[f"{split}/loss"], abs=1e-6)
        assert evidence.features.shape == (6, 96)
        assert all(id.startswith(f"{split}/") for id in evidence.ids)
    head = load_file(run.path / "model.safetensors")  # the features are what the head is given
    evidence = run.evidence()
    logits = evidence.features @ head["network.head.weight"].T + head["network.head.bias"]
    exact = np.exp(logits - logits.max(1, keepdims=True))
    assert evidence.scores == pytest.approx(exact / exact.sum(1, keepdims=True), abs=1e-6)


def test_the_last_line_of_the_ledger_binds_it(run):
    from autotimm.records.digest import file_digest

    assert read_ledger(run.path / "ledger.jsonl").lines[-1]["evidence"] == file_digest(
        run.path / "evidence/val.safetensors"
    )


def edited(run, folder, split):
    copy = shutil.copytree(run.path, folder / "copy")
    path = copy / "evidence" / f"{split}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return autotimm.Run(copy)


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_edit_is_noticed(run, split, tmp_path):
    verdict = edited(run, tmp_path, split).verify()
    assert verdict.exit_code == 5
    assert f"evidence/{split}.safetensors: it is not" in str(verdict)


def test_a_run_is_identical_with_its_evidence(run, tmp_path):
    assert str(run.verify()) == "verdict: identical (6 steps compared)"
    (shutil.copytree(run.path, tmp_path / "copy") / "evidence/val.safetensors").unlink()
    assert autotimm.Run(tmp_path / "copy").verify().exit_code == 6


def test_a_record_without_the_option_means_off(photos, tmp_path):
    run = small_fit(photos, tmp_path, name="off", evidence=False, val_split=None)
    config = run.path / "config.yaml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("evidence")))
    assert run.config["evidence"] is False
    assert run.verify().findings[0] == "config.yaml: it lacks evidence"  # a record of this version has the line
    with pytest.raises(ModelError, match="has no evidence of its val images"):
        run.evidence()
    again = small_fit(photos, tmp_path, name="on", val_split=None)
    assert again.evidence().ids
    assert autotimm.diff(run.path, again.path).equal  # which of them keeps evidence is no difference


def test_workers_change_nothing(run, photos, tmp_path):
    other = small_fit(photos, tmp_path, name="two", epochs=2, val_split=None, num_workers=2)
    assert (other.path / "evidence/val.safetensors").read_bytes() == (
        run.path / "evidence/val.safetensors"
    ).read_bytes()


def test_a_trainer_of_objects_keeps_it_if_asked(photos, tmp_path):
    from training import classifier

    data = multi_label_data(photos, tmp_path)
    model = classifier(num_classes=2, multi_label=True)
    trainer(run_dir=tmp_path / "run", evidence=True).fit(model, datamodule=data)
    run = autotimm.Run(tmp_path / "run")
    evidence = run.evidence()
    assert (evidence.multi_label, evidence.threshold, evidence.targets.dtype) == (True, 0.5, np.uint8)
    assert run.verify().identical
    trainer(run_dir=tmp_path / "none").fit(classifier(), datamodule=toy_data(photos))
    assert not (tmp_path / "none" / "evidence").exists()


def test_pixels(tmp_path):
    write_toy_segmentation(tmp_path / "toy", image_size=(48, 64), splits=SPLITS, seed=3)
    run = small_fit(tmp_path / "toy", tmp_path, image_size=64, width=64, batch_size=4, val_split=None)
    evidence = run.evidence()
    matrix = evidence["confusion"]
    both = matrix.diagonal()
    with np.errstate(invalid="ignore"):
        mean = np.nanmean(both / (matrix.sum(0) + matrix.sum(1) - both))
    assert mean == pytest.approx(run.metrics["val/mIoU"], abs=1e-6)
    assert np.array_equal(evidence["intersections"].sum(0), both)
    truth, found = (evidence.label_map(0, true=true) for true in (True, False))
    assert truth.shape == found.shape == (48, 64)
    for label in range(len(evidence.class_names)):
        both = ((truth == label) & (found == label)).sum()
        assert both == evidence["intersections"][0, label]  # small images are not reduced


@pytest.mark.parametrize("task", ["detection", pytest.param("instance", marks=pytest.mark.slow)])
def test_objects(task, tmp_path):
    write_toy_objects(tmp_path / "toy", image_size=64, splits=SPLITS, seed=3)
    run = small_fit(tmp_path / "toy", tmp_path, task=task, image_size=64, width=64, batch_size=4, val_split=None)
    run.test()
    evidence = run.evidence()
    assert len(evidence) == 5
    assert evidence.of_image(4).stop == len(evidence.scores)
    assert evidence["true_boxes"].max() <= 64
    assert run.verify().identical
