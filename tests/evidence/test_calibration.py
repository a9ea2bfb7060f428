"""Calibration: what is fitted, what it is worth on other samples, and that a run predicts, keeps and replays it."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_curve

import autotimm
from autotimm import Run, Task
from autotimm.data.toy import write_toy_folder, write_toy_objects
from autotimm.errors import ModelError, UsageError
from autotimm.evidence import Evidence
from autotimm.evidence.calibration import fit_calibration, halves
from autotimm.evidence.reliability import expected_calibration_error, reliability
from autotimm.evidence.temperature import fit_temperature, scaled
from autotimm.evidence.thresholds import choose_threshold
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.types import Calibration
from forger import sign
from training import classifier, multi_label_data, small_fit, toy_data, trainer

NAMES = ("a", "b", "c", "d")


def softmax(logits):
    exact = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exact / exact.sum(axis=1, keepdims=True)


def single(samples, sharpness, seed=0):
    """Scores of a model that is as often right as it says, made ``sharpness`` times too sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(samples, 4)) * 1.5
    targets = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    arrays = {"scores": softmax(logits * sharpness).astype(np.float32), "targets": targets}
    return Evidence("val", "classes", False, None, NAMES, tuple(map(str, range(samples))), arrays)


def several(samples, shift=-2.0, seed=0):
    """Scores of several labels that are rare, and found with scores that are too low."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(samples, 4)) * 2 - 1
    targets = (rng.random((samples, 4)) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    arrays = {"scores": (1 / (1 + np.exp(-(logits + shift)))).astype(np.float32), "targets": targets}
    return Evidence("val", "classes", True, 0.5, NAMES, tuple(map(str, range(samples))), arrays)


def error(scores, targets):
    return expected_calibration_error(reliability(scores.max(axis=1), (scores.argmax(axis=1) == targets) * 1.0))


@pytest.mark.parametrize("sharpness", [0.5, 1.7, 4.0])
def test_a_temperature_undoes_what_is_too_sure(sharpness):
    evidence, other = single(2000, sharpness), single(2000, sharpness, seed=1)
    fitted = fit_calibration(evidence)
    assert fitted.calibration.temperature == pytest.approx(sharpness, rel=0.08)
    assert fitted.measured["calibrated_ece"] < 0.4 * fitted.measured["ece"]
    after = scaled(other.scores, fitted.calibration.temperature, multi_label=False)
    assert error(after, other.targets) < 0.4 * error(other.scores, other.targets)
    assert (after.argmax(axis=1) == other.scores.argmax(axis=1)).all()


def test_it_has_the_least_cross_entropy():
    for evidence in (single(300, 2.0), several(300)):
        logits, targets = evidence.scores.astype(np.float64), torch.from_numpy(evidence.targets)
        logits = torch.from_numpy(np.log(logits) - (np.log1p(-logits) if evidence.multi_label else 0))
        inverse = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([inverse], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def loss(optimizer=optimizer, inverse=inverse, logits=logits, targets=targets):
            optimizer.zero_grad()
            several = targets.ndim == 2
            measure = (
                torch.nn.functional.binary_cross_entropy_with_logits if several else torch.nn.functional.cross_entropy
            )
            value = measure(logits * inverse, targets.double() if several else targets)
            value.backward()
            return value

        optimizer.step(loss)
        assert fit_temperature(evidence.scores, evidence.targets) == pytest.approx(1 / inverse.item(), rel=1e-4)


def test_what_does_no_good_is_not_used():
    fitted = fit_calibration(single(60, 1.0, seed=1))
    assert fitted.measured["calibrated_cross_entropy"] >= fitted.measured["cross_entropy"]
    assert fitted.calibration.changes_nothing
    right = several(60, shift=0.0, seed=1)
    right.arrays["scores"][:] = np.where(right.targets, 0.9, 0.1)
    assert fit_calibration(right).calibration.thresholds == ()
    assert fit_calibration(single(19, 3.0)) is None


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_without_fitted_thresholds_labels_are_those_that_metrics_count(threshold):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 2)) * 1.5
    targets = (rng.random((400, 2)) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    scores = (1 / (1 + np.exp(-3 * logits))).astype(np.float32)
    ids = tuple(map(str, range(400)))
    evidence = Evidence("val", "classes", True, threshold, NAMES[:2], ids, {"scores": scores, "targets": targets})
    fitted = fit_calibration(evidence)
    assert (fitted.measured["fitted"], round(fitted.calibration.temperature)) == (0, 3)
    assert (fitted.calibration.thresholds == ()) == (threshold == 0.5)
    moved = scaled(scores, fitted.calibration.temperature, multi_label=True)
    predicted = moved >= np.array(fitted.calibration.thresholds or threshold)
    assert np.array_equal(predicted, scores >= threshold)
    assert f1_score(targets, predicted, average="macro") == pytest.approx(fitted.measured["f1"])


def test_extremes_have_an_end():
    sure = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert fit_temperature(sure, np.array([1, 0])) == 20
    assert fit_temperature(sure * 0.5 + 0.25, np.array([0, 1])) == 0.05
    assert fit_temperature(sure, np.array([[1, 0], [0, 1]])) == 0.05


@given(st.lists(st.tuples(st.integers(1, 19), st.booleans()), min_size=1, max_size=12), st.integers(0, 3))
def test_a_threshold_is_the_best_of_all(found, missed):
    score, right = (np.array(column) for column in zip(*found, strict=True))
    score, there = score / 20, int(right.sum()) + missed
    chosen = choose_threshold(score, right, there)
    if not there:
        assert chosen is None
        return

    def f1(threshold):
        kept = score >= threshold
        return 2 * (kept & right).sum() / (kept.sum() + there)

    assert f1(chosen) == max(map(f1, [*score, 1.0]))
    assert not np.isclose(score, chosen).any()  # half-way, so that no last bit decides


def test_thresholds_agree_with_scikit_learn():
    evidence = several(400)
    scores, true = evidence.scores[:, 1].astype(np.float64), evidence.targets[:, 1]
    precision, recall, _ = precision_recall_curve(true, scores)
    best = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-9))
    chosen = choose_threshold(scores, true.astype(bool), int(true.sum()))
    assert f1_score(true, scores >= chosen) == pytest.approx(best)
    chosen = choose_threshold(scores, true.astype(bool), int(true.sum()), 0.8)
    kept = scores >= chosen
    assert true[kept].mean() >= 0.8
    assert true[kept].sum() / true.sum() == pytest.approx(recall[precision >= 0.8].max())
    assert choose_threshold(np.array([0.9, 0.8]), np.array([False, True]), 1, 0.9) == 0.4  # none is so precise


def test_thresholds_of_labels_are_better_on_other_samples():
    evidence, other = several(400), several(400, seed=1)
    fitted = fit_calibration(evidence)
    assert fitted.measured["fitted_f1"] > fitted.measured["f1"] + 0.1
    scores = scaled(other.scores, fitted.calibration.temperature, multi_label=True)
    after = f1_score(other.targets, scores >= np.array(fitted.calibration.thresholds), average="macro")
    assert after == pytest.approx(fitted.measured["fitted_f1"], abs=0.05)
    precise = fit_calibration(evidence, 0.7)
    assert precise.calibration.aim == "precision 0.7"
    assert precise.measured["fitted_precision"] == pytest.approx(0.7, abs=0.08)


def test_halves_depend_on_ids_alone():
    evidence = single(100, 1.0)
    order = np.random.default_rng(3).permutation(100)
    arrays = {name: array[order] for name, array in evidence.arrays.items()}
    ids = tuple(evidence.ids[at] for at in order)
    shuffled = Evidence("val", "classes", False, None, NAMES, ids, arrays)
    assert (halves(shuffled) == halves(evidence)[order]).all()
    for label in range(4):
        assert abs(2 * halves(evidence)[evidence.targets == label].sum() - (evidence.targets == label).sum()) <= 1


# Runs


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    splits = {"train": 18, "val": 24, "test": 6}
    return write_toy_folder(tmp_path_factory.mktemp("toy") / "photos", splits=splits, num_classes=3, seed=7)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    return small_fit(photos, tmp_path_factory.mktemp("runs"), name="one", epochs=2, val_split=None, lr=0.01)


def best(folder):
    return folder / "checkpoints" / "best.ckpt"


def test_a_run_predicts_with_its_temperature(run, photos, tmp_path):
    fitted = run.model().calibration
    assert fitted.temperature != 1
    calibrated, raw = run.predict(photos / "test"), run.predict(photos / "test", raw=True)
    for one, other in zip(calibrated, raw, strict=True):
        expected = scaled(np.array([[*other.scores.values()]]), fitted.temperature, multi_label=False)[0]
        assert [*one.scores.values()] == pytest.approx(expected, abs=1e-6)
        assert one.labels == other.labels
    alone = shutil.copy(best(run.path), tmp_path / "alone.ckpt")
    assert Run(alone).predict(photos / "test") == calibrated
    assert torch.load(alone, weights_only=True)["autotimm"]["calibration"]["samples"] == 24
    assert run.model("last").calibration is None  # its weights may be others


def test_the_record_binds_it(run, tmp_path):
    line = json.loads((run.path / "ledger.jsonl").read_text().splitlines()[-1])
    assert float.fromhex(line["calibration"]["temperature"]) == run.model().calibration.temperature
    results = json.loads((run.path / "results.json").read_text())["calibration"]
    assert results["samples"] == 24
    assert results["temperature"] == run.model().calibration.temperature
    assert str(run.verify()) == "verdict: identical (6 steps compared)"
    assert autotimm.diff(run.path, run.path).equal


@pytest.mark.parametrize("file", ["best.ckpt", "results.json", "ledger.jsonl"])
def test_an_edit_is_noticed(run, file, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    if file == "best.ckpt":
        checkpoint = read_checkpoint(best(copy))
        checkpoint["autotimm"]["calibration"]["temperature"] = 3.0
        torch.save(checkpoint, best(copy))
        sign(copy, "checkpoints/best.ckpt")
    elif file == "results.json":
        results = json.loads((copy / file).read_text())
        results["calibration"]["calibrated_ece"] = 0.001
        (copy / file).write_text(json.dumps(results))
    else:
        lines = (copy / file).read_text().splitlines(keepends=True)
        line = json.loads(lines[-1])
        line["calibration"]["temperature"] = float.hex(3.0)
        lines[-1] = json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n"
        (copy / file).write_text("".join(lines))
        sign(copy, file)
    verdict = Run(copy).verify()
    assert verdict.exit_code == 5
    assert file in str(verdict) or "calibration" in str(verdict)


@pytest.mark.parametrize("written", [True, False], ids=["after best.ckpt", "before best.ckpt"])
def test_a_run_that_was_killed_while_it_was_calibrated(run, written, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    if not written:
        end = max(copy.glob("checkpoints/epoch-*"))
        best(copy).unlink()
        best(copy).hardlink_to(end)
    lines = (copy / "ledger.jsonl").read_text().splitlines(keepends=True)
    (copy / "ledger.jsonl").write_text("".join(lines[:-1]))
    for name in ("results.json", "model.safetensors"):
        (copy / name).unlink()
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["results"] = {"status": "running"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    Run(copy).resume()
    names = ["results.json", "ledger.jsonl", "model.safetensors", "evidence/val.safetensors", "metrics.csv"]
    names += [f"checkpoints/{path.name}" for path in (run.path / "checkpoints").iterdir()]
    for name in names:
        assert (copy / name).read_bytes() == (run.path / name).read_bytes(), name


def test_the_best_epoch_may_be_gone(photos, tmp_path):
    options = {"epochs": 3, "val_split": None, "lr": 0.3, "monitor": "train/loss"}  # it diverges: the first is the best
    all_kept = small_fit(photos, tmp_path, name="all", **options)
    last = small_fit(photos, tmp_path, name="last", keep="last", **options)
    assert not [*last.path.glob("checkpoints/epoch-0001-*")]
    assert last.model().calibration == all_kept.model().calibration
    assert last.verify().identical


def test_off(photos, tmp_path):
    run = small_fit(photos, tmp_path, name="off", val_split=None, calibrate="none")
    assert run.model().calibration is None
    assert best(run.path).samefile(run.path / "checkpoints" / "last.ckpt")
    assert "calibration" not in (run.path / "ledger.jsonl").read_text()
    config = run.path / "config.yaml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("calibrate")))
    assert run.config["calibrate"] is None  # a record of a version without it
    assert run.verify().findings[0] == "config.yaml: it lacks calibrate"
    with pytest.raises(UsageError, match="`calibrate` of fit has no effect without `evidence`"):
        small_fit(photos, tmp_path, evidence=False, calibrate=0.9)


def test_thresholds_of_labels_and_who_wins(photos, tmp_path):
    data, model = multi_label_data(photos, tmp_path, val_split=0.5), classifier(num_classes=2, multi_label=True)
    trainer(2, run_dir=tmp_path / "run", evidence=True, calibrate=0.6).fit(model, datamodule=data)
    run = Run(tmp_path / "run")
    fitted = run.model().calibration
    assert (len(fitted.thresholds), fitted.aim) == (2, "precision 0.6")
    for image in run.predict(photos / "test"):
        scores = zip(image.scores.items(), fitted.thresholds, strict=True)
        assert image.labels == tuple(name for (name, score), least in scores if score >= least)
    for image in run.predict(photos / "test", threshold=0.01):
        assert len(image.labels) == 2
    assert run.verify().identical
    trainer(run_dir=tmp_path / "none").fit(classifier(), datamodule=toy_data(photos))
    assert Run(tmp_path / "none").model().calibration is None


def test_thresholds_of_objects(tmp_path):
    write_toy_objects(tmp_path / "toy", image_size=64, splits={"train": 24, "val": 20, "test": 3}, seed=3)
    options = {"task": "detection", "image_size": 64, "width": 64, "batch_size": 4, "val_split": None}
    run = small_fit(tmp_path / "toy", tmp_path, epochs=2, calibrate=0.5, **options)
    fitted = run.model().calibration
    assert (fitted.temperature, len(fitted.thresholds)) == (1, 3)
    names, found = run.model().class_names, run.predict(tmp_path / "toy" / "test")
    for image, every in zip(found, run.predict(tmp_path / "toy" / "test", threshold=1e-6), strict=True):
        least = dict(zip(names, fitted.thresholds, strict=True))
        kept = [score for label, score in zip(every.labels, every.scores, strict=True) if score >= least[label]]
        assert [*image.scores] == kept


@pytest.mark.parametrize(
    "change", [{"temperature": 0.0}, {"temperature": "hot"}, {"thresholds": [0.5]}, {"thresholds": [2.0] * 3}]
)
def test_a_calibration_that_means_nothing_is_refused(run, change, tmp_path):
    checkpoint = read_checkpoint(best(run.path))
    checkpoint["autotimm"]["calibration"] |= change
    torch.save(checkpoint, tmp_path / "edited.ckpt")
    with pytest.raises(ModelError, match="calibration"):
        Task.load_from_checkpoint(tmp_path / "edited.ckpt")


def test_calibrations_round_trip():
    calibration = Calibration(1.5, (0.2, 0.3), "precision 0.9", 40)
    assert Calibration.from_dict(json.loads(json.dumps(calibration.as_dict()))) == calibration


def test_the_report_shows_it_before_and_after(run, photos, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    copy.test()  # its evidence has six images, and the page is about them
    for folder, how in ((run.path, "each half of the images"), (copy.path, "fitted on validation images")):
        Run(folder).report()
        page = " ".join((folder / "report.html").read_text().split())
        assert "Reliability, calibrated" in page
        assert how in page
        assert (folder / "report" / "reliability_calibrated.csv").is_file()
