"""What was checked is known to the user who did, as long as the record of the run stays as it is."""

import json
import shutil

import pytest

from autotimm.records.checked_levels import keep_checked, level_claims
from autotimm.records.manifest import Manifest
from autotimm.records.user_state import state_folder


@pytest.fixture(autouse=True)
def own_state(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    levels = {"R0": "checked", "R1": "expected", "R2": "expected", "R4": "no, because"}
    Manifest({"a": 1}, {}, levels=levels, volatile={"started": "now"}).save(run / "manifest.json")
    for name in ("config.yaml", "ledger.jsonl", "files.csv", "splits.csv", "metrics.csv", "checkpoints/sha256.txt"):
        (run / name).write_text(name)
    return run


def test_a_run_claims_what_its_manifest_says(folder):
    assert level_claims(folder) == {"R0": "checked", "R1": "expected", "R2": "expected", "R4": "no, because"}


def test_what_was_checked_is_kept_outside_of_the_run(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    keep_checked(folder, {"R1": "checked"})
    keep_checked(folder, {"R2": "checked from a checkpoint"})
    assert level_claims(folder)["R1"] == "checked"
    assert level_claims(folder)["R2"] == "checked from a checkpoint"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_copy_is_the_same_record_and_another_run_is_not(folder, tmp_path):
    keep_checked(folder, {"R1": "checked"})
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert level_claims(copy)["R1"] == "checked"
    Manifest({"a": 1}, {}, levels={"R1": "expected"}, volatile={"started": "later"}).save(copy / "manifest.json")
    assert level_claims(copy)["R1"] == "expected"
    keep_checked(copy, {"R1": "checked"})
    assert level_claims(folder)["R1"] == level_claims(copy)["R1"] == "checked"


@pytest.mark.parametrize("name", ["config.yaml", "ledger.jsonl", "files.csv", "splits.csv", "metrics.csv",
                                  "checkpoints/sha256.txt", "manifest.json"])  # fmt: skip
def test_a_changed_file_means_not_checked(folder, name):
    keep_checked(folder, {"R1": "checked"})
    if name == "manifest.json":
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content))  # the same values in other bytes
    else:
        (folder / name).unlink()
    assert level_claims(folder)["R1"] == "expected"


def test_a_manifest_that_says_checked_is_not_believed(folder):
    Manifest({}, {}, levels={"R0": "checked", "R1": "checked", "R3": "checked with 2 workers"}).save(
        folder / "manifest.json"
    )
    assert level_claims(folder) == {"R0": "checked", "R1": "expected", "R3": "expected"}


@pytest.mark.parametrize("content", [[], {"records": 1}, {"records": {"x": 1}}, {"records": {"KEY": {"levels": 3}}}])
def test_a_damaged_state_says_nothing(folder, content):
    keep_checked(folder, {"R1": "checked"})
    (file,) = (state_folder() / "checked").iterdir()
    key = next(iter(json.loads(file.read_text())["records"]))
    file.write_text(json.dumps(content).replace("KEY", key))
    assert level_claims(folder)["R1"] == "expected"
