"""The search for length, rate and regularization: its budget, its record, and that a replay makes the same choice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import autotimm
from autotimm.config import FitConfig
from autotimm.data.toy import write_toy_folder, write_toy_objects
from autotimm.errors import DataError, ModelError, UsageError
from autotimm.records.manifest import Manifest
from autotimm.records.run_folder import SEARCH
from autotimm.runs.factory import build_data, build_task
from autotimm.runs.search import search
from training import small_fit


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_toy_folder(tmp_path_factory.mktemp("toy") / "photos", n=24, num_classes=3, image_size=32, seed=7)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    return small_fit(photos, tmp_path_factory.mktemp("runs"), search_budget="2x", epochs=6, name="searched")


def record(run):
    return Manifest.load(run.path / "manifest.json").decisions["search"]


def settled(photos, **options):
    given = {"backbone": "test_resnet", "pretrained": False, "image_size": 32, "num_workers": 0, "threads": 1,
             "val_split": 0.25}  # fmt: skip
    config = FitConfig.from_options(photos, given | options).for_task("classification")
    config = config.resolved({"recipe": "plain"}, "")
    data = build_data(config)
    data.setup("fit")
    return config, build_task(config, data), data


def test_what_is_chosen_scored_best_within_the_budget(run):
    found = record(run)
    assert found["asked"] == {"augmentation": "default", "lr": None, "weight_decay": None}  # epochs were given
    assert found["budget"] == 2
    assert found["steps"] == sum(trial["steps"] for trial in found["trials"]) <= 2 * found["steps_of_training"]
    assert found["trials"][0]["settings"] == {}
    best = min(found["trials"], key=lambda trial: trial["scores"][0])
    assert found["chosen"] == best["settings"]
    assert {name: run.config[name] for name in found["chosen"]} == found["chosen"]
    text = (run.path / "config.yaml").read_text()
    assert all(line.endswith("# search") for line in text.splitlines() if line.partition(":")[0] in found["chosen"])
    assert not (run.path / SEARCH).exists()


def test_the_training_is_that_of_the_values_which_were_chosen(run, photos, tmp_path):
    other = small_fit(photos, tmp_path, epochs=6, **record(run)["chosen"])
    assert (other.path / "ledger.jsonl").read_bytes() == (run.path / "ledger.jsonl").read_bytes()


def test_a_replay_makes_the_same_choice(run):
    assert run.verify().verdict == "identical"
    part = run.verify(steps=2)
    assert any("decisions.search" in text for text in part.not_checked)


EDITS = {
    "a score": lambda search, config: search["trials"][0]["scores"].__setitem__(0, 9.0),
    "a choice": lambda search, config: search["chosen"].update(augmentation="none"),
    "what was open": lambda search, config: search["asked"].pop("lr"),
    "the budget": lambda search, config: config.write_text(config.read_text().replace("budget: 2x", "budget: 0x")),
}


@pytest.mark.parametrize("edit", [*EDITS][:1] + [pytest.param(each, marks=pytest.mark.slow) for each in [*EDITS][1:]])
def test_an_edited_search_is_found(run, tmp_path, edit):
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    manifest = Manifest.load(copy / "manifest.json")
    EDITS[edit](manifest.decisions["search"], copy / "config.yaml")
    replace(manifest, decisions=manifest.decisions).save(copy / "manifest.json")
    verdict = autotimm.Run(copy).verify()
    assert verdict.verdict == "different"
    assert any("search" in finding for finding in verdict.findings)


@pytest.mark.slow
def test_the_length_is_searched_first_and_bounds_the_rest(photos):
    config, task, data = settled(photos, batch_size=16, search_budget="2x")
    found = search(config, task, data).record
    # 40 epochs, as from a fitted head: of 2 batches each, so that there are still fewer than 200 steps.
    assert [trial["settings"]["epochs"] for trial in found["trials"][:2]] == [40, 80]
    assert found["trials"][0]["steps"] == 20  # a quarter
    assert found["asked"]["epochs"] == 10
    assert found["steps"] <= 2 * found["steps_of_training"]
    assert found["steps_of_training"] == 2 * found["chosen"]["epochs"]
    assert search(config, task, data).record == found
    again = search(config.resolved(found["chosen"], "record"), task, data, recorded=found)
    assert again.record == found


@pytest.mark.slow
def test_a_larger_budget_looks_at_more_folds(photos):
    config, task, data = settled(photos, batch_size=16, search_budget=4, epochs=4, lr=0.01, augmentation="light")
    found = search(config, task, data).record
    assert found["asked"] == {"weight_decay": None}
    assert [len(trial["scores"]) for trial in found["trials"]] == [2, 2]


@pytest.mark.slow
def test_validation_and_test_images_are_not_looked_at(photos):
    config, task, data = settled(photos, batch_size=16, search_budget="1x", epochs=4, test_split=0.2)
    found = search(config, task, data).record
    del data.tables["val"], data.tables["test"]
    assert search(config, task, data).record == found


def test_a_diverged_trial_loses(photos):
    config, task, data = settled(photos, batch_size=8, search_budget="2x", epochs=8, optimizer="sgd", lr=1e30)
    found = search(config, task, data)
    assert {*(score for trial in found.record["trials"] for score in trial["scores"])} == {None}
    assert found.chosen == {}


def test_what_cannot_be_searched_is_refused(photos, tmp_path):
    config, task, data = settled(photos, search_budget="2x")
    with pytest.raises(UsageError, match="`search_budget` of fit must be 0x here"):
        search(config.resolved({"recipe": "auto"}, ""), task, data)
    with pytest.raises(UsageError, match="`devices` of fit must be 1 with `search_budget`"):
        search(config.resolved({"devices": 2}, ""), task, data)
    with pytest.raises(ModelError, match="`trials` of the search of the run must be given"):
        search(config, task, data, recorded={"asked": {}, "images": ""})
    with pytest.raises(UsageError, match="`lr_find` of fit has no effect with `search_budget`"):
        FitConfig.from_options(photos, {"lr_find": True, "search_budget": "2x"})
    with pytest.raises(UsageError, match="must be a multiple from 0x to 100x, such as 2x"):
        FitConfig.from_options(photos, {"search_budget": "twice"})
    few = write_toy_folder(tmp_path / "few", n=6, num_classes=3, image_size=32)
    with pytest.raises(DataError, match="needs 8 training images or more"):
        small_fit(few, tmp_path / "runs", search_budget="2x")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_objects(tmp_path):
    objects = write_toy_objects(tmp_path / "objects", splits={"train": 8, "val": 2}, image_size=64)
    options = {"image_size": 64, "batch_size": 4, "val_split": None, "width": 64, "search_budget": "2x", "epochs": 2}
    found = small_fit(objects, tmp_path, **options)
    assert record(found)["trials"][0]["settings"] == {}
    assert record(found)["score"] == "val/mask_mAP"
    assert len(record(found)["trials"]) == 6


@pytest.mark.slow
def test_each_fold_searches_for_itself(photos, tmp_path):
    found = small_fit(photos, tmp_path, folds=2, val_split=None, search_budget="1x", epochs=4, name="folded")
    assert all(record(autotimm.Run(found.path / name))["budget"] == 1 for name in ("fold-1", "fold-2", "."))
    assert autotimm.Run(found.path / "fold-1").verify().verdict == "identical"


@pytest.mark.slow
def test_killed_in_the_search_and_resumed(run, photos, tmp_path):
    words = ["fit", photos, "--backbone", "test_resnet", "--pretrained", "false", "--image-size", "32", "--batch-size",
             "8", "--num-workers", "0", "--threads", "1", "--accelerator", "cpu", "--val-split", "0.25", "--epochs",
             "6", "--search-budget", "2x", "--name", "killed"]  # fmt: skip
    command = [sys.executable, "-m", "autotimm", *map(str, words)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=variables, stderr=subprocess.DEVNULL, start_new_session=True)
    folder = tmp_path / "runs" / "killed"
    while process.poll() is None and not (trials := _trials(folder)):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    assert not (folder / "manifest.json").exists()
    resumed = autotimm.Run(folder).resume()
    assert record(resumed) == record(run)
    assert record(resumed)["trials"][: len(trials)] == trials
    assert (folder / "ledger.jsonl").read_bytes() == (run.path / "ledger.jsonl").read_bytes()
    assert not (folder / SEARCH).exists()


def _trials(folder):
    path = folder / SEARCH
    return json.loads(path.read_text())["trials"] if path.exists() else []
