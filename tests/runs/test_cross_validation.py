"""Cross-validation: runs of folds, what they predict together, and the model that is trained on all images."""

import json
import os
import shutil
import signal
import statistics
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import autotimm
import warm
from autotimm import Run, inspect_data
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.errors import DataError, ModelError, UsageError
from autotimm.evidence import evidence_path, read_evidence, write_evidence
from autotimm.records.digest import file_digest
from autotimm.records.ledger import read_ledger
from autotimm.records.run_folder import RunFolder
from training import SMALL, small_fit

FOLDS = 3
KEPT = ("ledger.jsonl", "results.json", "model.safetensors", "evidence/folds.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_toy_folder(tmp_path_factory.mktemp("folds") / "photos", n=30, num_classes=3, seed=7)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return small_fit(photos, out, val_split=None, folds=FOLDS, epochs=2, patience=2, name="whole")


def test_each_image_is_predicted_once_by_a_fold_that_has_not_seen_it(photos, run):
    evidence = run.evidence()
    assert evidence.split == "folds"
    assert len({*evidence.ids}) == len(evidence) == 30
    assert evidence.features is not None
    for number in (1, 2, 3):
        fold = Run(run.path / f"fold-{number}")
        rows = np.flatnonzero(evidence["folds"] == number)
        assert [evidence.ids[row] for row in rows] == [*fold.evidence().ids]
        assert np.array_equal(evidence.scores[rows], fold.evidence().scores)
        assert {*fold.data().tables["val"].ids}.isdisjoint(fold.data().tables["train"].ids)
        assert fold.config["fold"] == number
    assert sorted(run.data().tables["train"].ids) == sorted(evidence.ids)
    with pytest.raises(ModelError, match="has trained on all images: take the evidence of its folds"):
        run.evidence("val")


def test_metrics_of_the_folds_have_a_mean_and_a_standard_deviation(run):
    rows = [run.folds[f"fold-{number}"] for number in (1, 2, 3)]
    values = [row["val/accuracy"] for row in rows]
    assert values == [Run(run.path / f"fold-{number}").metrics["val/accuracy"] for number in (1, 2, 3)]
    assert run.folds["mean"]["val/accuracy"] == statistics.mean(values)
    assert run.folds["std"]["val/accuracy"] == statistics.stdev(values)
    assert sum(row["images"] for row in rows) == 30
    assert run.config["epochs"] == statistics.median(row["epoch"] for row in rows)
    assert run.config["patience"] is None
    assert "epochs:" in (text := (run.path / "config.yaml").read_text())
    assert next(line for line in text.splitlines() if line.startswith("epochs:")).endswith("# folds")


def test_results_are_those_of_the_published_schema(run):
    schema = json.loads((Path(__file__).parents[2] / "docs/reference/results.schema.json").read_text())
    for place in (run.path, run.path / "fold-1"):
        results = json.loads((place / "results.json").read_text())
        jsonschema.validate(results, schema)
        assert results.keys() <= schema["properties"].keys()
    results = json.loads((run.path / "results.json").read_text())
    results["folds"]["fold-1"]["epoch"] = "1"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(results, schema)


def test_a_fold_and_the_whole_are_verified(run, tmp_path):
    assert Run(run.path / "fold-2").verify().identical
    verdict = run.verify()
    assert verdict.identical, verdict
    assert [text for text in verdict.not_checked if "folds were trained" in text]
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    evidence = copy.evidence()
    scores = np.roll(evidence.scores, 1, axis=1)
    digest = write_evidence(copy.path, replace(evidence, arrays={**evidence.arrays, "scores": scores}))
    copy._folder.add_results(evidence={"folds": digest})
    found = copy.verify()
    assert found.verdict == "different"
    assert any("evidence/folds.safetensors: it is not what the folds predict" in line for line in found.findings)
    shutil.rmtree(copy.path / "fold-1")
    assert any("There is no fold-1" in text for text in copy.verify().not_checked)


def test_the_report_and_json_show_the_folds(photos, run, tmp_path, capsys):
    page = (run.path / "report.html").read_text()
    assert '<section id="folds">' in page
    assert "standard deviation" in page
    assert "30 training images, each predicted by a fold that has not seen it" in page
    assert "background-image" in page  # thumbnails of the training images
    lines = (run.path / "report" / "folds.csv").read_text().splitlines()
    assert lines[0].startswith("fold,images,best epoch,val/accuracy")
    assert [line.partition(",")[0] for line in lines[1:]] == [
        "fold-1",
        "fold-2",
        "fold-3",
        "mean",
        "standard deviation",
    ]
    done = warm.run(["-m", "autotimm", "resume", run.path.absolute(), "--json"], tmp_path)
    answer = json.loads(done.stdout)
    assert answer["folds"] == run.folds


def test_a_run_that_was_killed_in_its_second_fold_goes_on(photos, run, tmp_path):
    words = [part for name, value in SMALL.items() if name not in ("val_split", "epochs", "progress")
             for part in (f"--{name.replace('_', '-')}", str(value).lower())]  # fmt: skip
    process = warm.Program(["-m", "autotimm", "fit", photos, *words, "--folds", FOLDS, "--epochs", 2, "--patience", 2,
                            "--name", "whole"], tmp_path)  # fmt: skip
    folder = tmp_path / "runs" / "whole"
    while process.poll() is None and not (folder / "fold-2" / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (folder / "manifest.json").exists(), "it was quicker than the test"
    first = (folder / "fold-1" / "ledger.jsonl").stat().st_mtime_ns
    resumed = Run(folder).resume()
    assert (folder / "fold-1" / "ledger.jsonl").stat().st_mtime_ns == first
    assert [file_digest(resumed.path / name) for name in KEPT[1:]] == [
        file_digest(run.path / name) for name in KEPT[1:]
    ]
    assert len(read_ledger(folder / "ledger.jsonl").lines) == len(read_ledger(run.path / "ledger.jsonl").lines)
    assert Run(folder).resume().path == folder  # it is finished


def test_a_run_that_was_killed_before_the_first_step_after_its_folds_goes_on(photos, tmp_path, monkeypatch):
    killed, opened = tmp_path / "killed", RunFolder.open

    def opens(folder, *args, **settings):
        opened(folder, *args, **settings)
        if folder.path.name == "whole":
            shutil.copytree(folder.path, killed)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "open", opens)
        run = small_fit(photos, tmp_path, val_split=None, folds=2, name="whole")
    assert (killed / "checkpoints").is_dir()
    assert not (killed / "manifest.json").exists()
    Run(killed).resume()
    assert [file_digest(killed / name) for name in KEPT] == [file_digest(run.path / name) for name in KEPT]


def test_images_that_changed_between_the_folds_are_refused(run, photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "photos")
    folder = shutil.copytree(run.path, tmp_path / "whole")
    for name in ("manifest.json", "ledger.jsonl"):
        (folder / name).unlink()
    shutil.rmtree(folder / "fold-3")
    next(data.rglob("*.png")).unlink()
    with pytest.raises(DataError, match="must be what the run began with"):
        Run(folder).resume(data=data)
    outside = shutil.move(folder / "fold-2", tmp_path / "elsewhere")
    (folder / "fold-2").symlink_to(outside)
    with pytest.raises(ModelError, match=r"must hold its folds itself\. fold-2 is a link"):
        Run(folder).resume()


@pytest.mark.parametrize(("options", "problem"), [
    ({"folds": 1}, "The `folds` of autotimm.fit must be a whole number, 2 or more"),
    ({"folds": 3, "fold": 4}, "The `fold` of fit must be a whole number from 1 to 3"),
    ({"fold": 2}, "The `fold` of fit has no effect without `folds`"),
    ({"folds": 3, "val_split": 0.2}, "The `val_split` of fit has no effect with `folds`"),
    ({"folds": 3, "devices": 2}, "The `devices` of fit must be 1 with `folds`"),
    ({"folds": 31}, "There are 30 images to train on, fewer than the 31 folds"),
    ({"folds": 4, "group": "([a-z]+)/"}, "There are 3 groups to train on, fewer than the 4 folds"),
    ({"folds": 3, "group": "([a-z]+)/"}, "whose images are all in one group"),
])  # fmt: skip
def test_what_cannot_be_folded_is_refused_and_leaves_nothing(photos, tmp_path, options, problem):
    with pytest.raises((UsageError, DataError), match=problem):
        small_fit(photos, tmp_path / "runs", **{"val_split": None, **options})
    assert not (tmp_path / "runs").exists()


def test_one_fold_alone_is_an_ordinary_run(photos, run, tmp_path):
    fold = small_fit(photos, tmp_path, val_split=None, folds=FOLDS, fold=2, epochs=2, patience=2)
    assert fold.metrics == Run(run.path / "fold-2").metrics
    assert fold.folds == {}
    longer = run.extend(epochs=1, out=str(tmp_path), name="longer")
    assert (longer.config["folds"], "val" in longer.data().tables) == (None, False)
    with pytest.raises(UsageError, match="The `folds` of extend must be left out"):
        run.extend(epochs=1, folds=3)
    with pytest.raises(UsageError, match="The `folds` of a study must be left out"):
        autotimm.study(photos, folds=3, out=str(tmp_path / "study"))


TASKS = {"detection": write_toy_objects, "instance": write_toy_objects, "segmentation": write_toy_segmentation}


@pytest.mark.parametrize("task", [pytest.param(task, marks=[] if task == "segmentation" else pytest.mark.slow)
                                  for task in TASKS])  # fmt: skip
def test_objects_and_pixels(task, tmp_path):
    data = TASKS[task](tmp_path / "scenes", splits={"train": 8}, image_size=(48, 64))
    run = small_fit(data, tmp_path, val_split=None, task=task, folds=2, image_size=64, width=64, batch_size=4, lr=1e-3)
    evidence = run.evidence()
    assert len({*evidence.ids}) == 8
    parts = [read_evidence(evidence_path(run.path / f"fold-{number}", "val")) for number in (1, 2)]
    if task == "segmentation":
        assert np.array_equal(evidence["confusion"], sum(part["confusion"] for part in parts))
        assert np.array_equal(evidence.label_map(7, true=True), parts[1].label_map(len(parts[1]) - 1, true=True))
    else:
        assert len(evidence["true_boxes"]) == sum(len(part["true_boxes"]) for part in parts)
        last = parts[1].of_image(len(parts[1]) - 1, true=True)
        assert np.array_equal(evidence["true_boxes"][evidence.of_image(7, true=True)], parts[1]["true_boxes"][last])
    assert run.verify().identical
    assert '<section id="folds">' in (run.path / "report.html").read_text()


def test_planted_label_errors_are_found_among_all_training_images(tmp_path):
    pytest.importorskip("cleanlab")
    root = write_toy_folder(tmp_path / "toy", n=60, num_classes=3, seed=3)
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    planted = set()
    for at, folder in enumerate(folders):
        wrong = folders[(at + 1) % 3] / f"planted{at}.png"
        sorted(folder.glob("[!p]*.png"))[at].rename(wrong)
        planted.add(wrong.name)
    run = small_fit(root, tmp_path, val_split=None, folds=3, epochs=6, lr=1e-2, batch_size=10)
    (finding,) = [each for each in inspect_data(root, run=run.path, image_size=32).findings
                  if each.check == "label_errors"]  # fmt: skip
    listed = {case.id.rpartition("/")[2] for case in finding.cases}
    assert "of 60 training labels are probably wrong" in finding.sentence
    assert len(planted & listed) >= 2
    assert len(listed) <= 6
    assert {case.split for case in finding.cases} <= {"train", "val"}  # as inspect has split them
    assert RunFolder(run.path, tmp_path).results()["evidence"].keys() == {"folds"}
