"""Commitments: what a run is bound to before its first step, and what a finished one can show."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from autotimm.cli.main import main
from autotimm.errors import UsageError
from autotimm.records.commitment import commitment_of
from autotimm.records.manifest import Manifest
from autotimm.runs.run import Run
from training import small_fit


@pytest.fixture(scope="module")
def committed(toy_folder, tmp_path_factory):
    return small_fit(toy_folder, tmp_path_factory.mktemp("runs"), name="one", commit=True).path


@pytest.fixture
def run(committed, tmp_path):
    return Path(shutil.copytree(committed, tmp_path / "one"))


def digest(run: Path) -> str:
    return json.loads((run / "commitment.json").read_text())["commitment"]


def edit(run: Path, **inputs: object) -> None:
    """Change the manifest of a run, with its digest."""
    manifest = Manifest.load(run / "manifest.json")
    replace(manifest, inputs={**manifest.inputs, **inputs}).save(run / "manifest.json")


def test_a_run_that_kept_to_it(run, capsys):
    manifest = Manifest.load(run / "manifest.json")
    assert manifest.decisions["commitment"] == digest(run) == commitment_of(manifest).digest
    assert main(["verify", str(run), "--commitment", digest(run)]) == 0
    said = capsys.readouterr().out
    assert f"commitment: kept, {digest(run)}, as published" in said
    assert "identical (3 steps compared)" in said
    assert "not checked" not in said


def test_it_is_printed_before_the_first_step(toy_folder, tmp_path, capsys):
    words = ["--backbone", "test_resnet", "--pretrained", "false", "--image-size", "32", "--epochs", "1",
             "--threads", "1", "--num-workers", "0", "--out", str(tmp_path), "--name", "one"]  # fmt: skip
    assert main(["fit", str(toy_folder), *words, "--commit"]) == 0
    said = capsys.readouterr().err
    assert said.index(f"commitment: {digest(tmp_path / 'one')}") < said.index("finished")


def test_seeds_change_the_commitment_and_not_the_plan(run):
    first = commitment_of(Manifest.load(run / "manifest.json"))
    edit(run, seeds={"data": 1, "task": 1, "trainer": 1}, splits="0" * 64)
    second = commitment_of(Manifest.load(run / "manifest.json"))
    assert first.plan == second.plan
    assert first.digest != second.digest
    assert Run(run).verify().exit_code == 5


def test_runs_of_other_seeds_have_one_plan(run, toy_folder, tmp_path):
    other = small_fit(toy_folder, tmp_path / "runs", name="other", commit=True, seed=7).path
    first, second = (json.loads((path / "commitment.json").read_text()) for path in (run, other))
    assert first["plan"] == second["plan"]
    assert first["commitment"] != second["commitment"]


@pytest.mark.parametrize("name", ["data", "config", "code", "transforms"])
def test_changed_afterwards(run, name):
    before = commitment_of(Manifest.load(run / "manifest.json"))
    inputs = Manifest.load(run / "manifest.json").inputs
    changed = {"data": {"digest": "0" * 64, "samples": 3}, "code": "0" * 16, "transforms": {},
               "config": {**inputs["config"], "trainer": {"max_epochs": 7}}}  # fmt: skip
    edit(run, **{name: changed[name]})
    assert commitment_of(Manifest.load(run / "manifest.json")).plan != before.plan
    verdict = Run(run).verify()
    assert (verdict.verdict, verdict.exit_code, verdict.steps) == ("different", 5, 0)
    assert "did not keep to its commitment" in verdict.reason


def test_a_run_that_was_made_to_fit(run):
    """Whoever changes the options can write another commitment, which is not the one that was published."""
    published = digest(run)
    edit(run, data={"digest": "0" * 64, "samples": 3})
    manifest = Manifest.load(run / "manifest.json")
    commitment = commitment_of(manifest)
    (run / "commitment.json").write_text(commitment.text())
    replace(manifest, decisions={**manifest.decisions, "commitment": commitment.digest}).save(run / "manifest.json")
    verdict = Run(run).verify(commitment=published)
    assert verdict.exit_code == 5
    assert "it was published as" in verdict.reason


def test_the_plan_can_be_published_too(run):
    plan = json.loads((run / "commitment.json").read_text())["plan"]
    assert any("whose plan was published" in note for note in Run(run).verify(steps=1, commitment=plan).notes)


@pytest.mark.parametrize("name", ["commitment.json", "manifest.json"])
def test_a_half_is_removed(run, name):
    if name == "commitment.json":
        (run / name).unlink()
    else:
        manifest = Manifest.load(run / name)
        decisions = {key: value for key, value in manifest.decisions.items() if key != "commitment"}
        replace(manifest, decisions=decisions).save(run / name)
    assert Run(run).verify(steps=1).exit_code == 5


def test_a_run_without(toy_folder, run, tmp_path):
    other = small_fit(toy_folder, tmp_path / "runs", name="other")
    assert not (other.path / "commitment.json").exists()
    assert other.verify(steps=1).identical
    assert "was not committed to" in other.verify(commitment="0" * 64).reason
    with pytest.raises(UsageError, match="64 digits"):
        other.verify(commitment="abc")


def test_a_resumed_run_is_held_to_what_it_began_with(run, toy_folder):
    manifest = Manifest.load(run / "manifest.json")
    replace(manifest, results={**manifest.results, "status": "interrupted"}).save(run / "manifest.json")
    Run(run).resume()
    assert Manifest.load(run / "manifest.json").decisions["commitment"] == digest(run)
    assert Run(run).verify(steps=1).identical
