"""Studies made for real, by processes: their numbers, going on after a kill, and what is refused."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

import autotimm
from autotimm.cli.main import main
from autotimm.errors import DataError, RunError, UsageError
from autotimm.repro.digest import file_digest
from autotimm.studies.one import finished
from autotimm.studies.statistics import summarize

OPTIONS = {
    "backbone": "test_resnet",
    "pretrained": False,
    "image_size": 32,
    "batch_size": 8,
    "val_split": 0.25,
    "epochs": 2,
    "num_workers": 0,
    "threads": 1,
    "accelerator": "cpu",
    "head_dropout": 0.2,
}


def words(**options: object) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value).lower())]


@pytest.fixture(scope="module")
def made(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> autotimm.Study:
    out = tmp_path_factory.mktemp("studies")
    return autotimm.study(toy_folder, seeds=[42, 44], jobs=2, out=out, vs={"lr": 0.02, "seed": 5}, **OPTIONS)


class TestResults:
    def test_a_run_of_a_study_is_the_run_that_fit_makes(self, made, toy_folder, tmp_path):
        alone = autotimm.fit(toy_folder, out=tmp_path, seed=44, progress=False, **OPTIONS)
        of_study = next(run for run in made.runs if run.path.name == "seed-44")
        for name in ("model.safetensors", "metrics.csv", "splits.csv"):
            assert file_digest(alone.path / name) == file_digest(of_study.path / name)

    def test_the_numbers_are_those_of_the_runs(self, made):
        ours = [run.metrics["val/loss"] for run in made.runs if run.path.name.startswith("seed-")]
        others = [run.metrics["val/loss"] for run in made.runs if run.path.name.startswith("vs-")]
        assert made.results.summaries["a"]["val/loss"] == summarize(ours)
        assert made.results.summaries["b"]["val/loss"] == summarize(others)
        gaps = [b - a for a, b in zip(ours, others, strict=True)]
        assert made.results.paired["val/loss"].difference == summarize(gaps)
        assert made.results.paired["val/loss"].least_p == 0.5

    def test_the_files(self, made):
        data = json.loads((made.path / "study.json").read_text())
        assert (data["status"], data["seeds"], data["vary"]) == ("finished", [42, 44], "all")
        assert data["changed"] == {"lr": {"a": None, "b": 0.02}}
        with (made.path / "study.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["config"], row["seed"], row["run"]) for row in rows] == [
            ("a", "42", "seed-42"), ("a", "44", "seed-44"), ("b", "42", "vs-seed-42"), ("b", "44", "vs-seed-44"),
        ]  # fmt: skip
        assert float(rows[0]["val/loss"]) == data["metrics"]["seed-42"]["val/loss"]
        assert (made.path / "plot.png").read_bytes().startswith(b"\x89PNG")
        assert not [path for path in made.path.rglob("*.log") if "Warning" in path.read_text()]

    def test_the_table(self, made):
        text = str(made)
        assert "2 seeds of everything" in text
        assert "B has lr 0.02 instead of auto" in text
        assert "gives 0.5 at best" in text
        assert "The split varies with the seed" in text
        assert max(map(len, text.splitlines())) <= 110

    def test_what_is_finished_is_not_made_again(self, made, toy_folder, capsys):
        before = {path: path.stat().st_mtime_ns for path in made.path.glob("runs/*/*")}
        again = autotimm.study(
            toy_folder, seeds=[42, 44], jobs=1, out=made.path.parent, vs={"lr": 0.02}, name=made.path.name, **OPTIONS
        )
        assert {path: path.stat().st_mtime_ns for path in made.path.glob("runs/*/*")} == before
        assert again == made
        assert "4 runs, 4 of them are finished" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_study_goes_on(toy_folder, tmp_path):
    """SIGKILL between two runs and in the middle of one; the outcome is that of a run that was left alone."""
    command = [sys.executable, "-m", "autotimm", "study", str(toy_folder), "--seeds", "2", "--vary", "init"]
    command += words(**{**OPTIONS, "epochs": 6})
    study = subprocess.Popen([*command, "--name", "killed"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    first, second = (tmp_path / "studies" / "killed" / "runs" / name for name in ("seed-42", "seed-42-init-43"))
    while not [*second.glob("checkpoints/epoch*")] and study.poll() is None:
        time.sleep(0.01)
    os.kill(study.pid, signal.SIGKILL)
    assert study.wait() == -signal.SIGKILL
    with FileLock(second / ".lock", timeout=120):
        pass  # its process has noticed
    assert finished(first)
    assert not finished(second)
    before = (first / "manifest.json").stat().st_mtime_ns
    again = subprocess.run([*command, "--name", "killed"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "2 runs, 1 of them are finished" in again.stderr
    assert again.stdout.splitlines()[-1] == "study: studies/killed"
    assert (first / "manifest.json").stat().st_mtime_ns == before
    options = {**OPTIONS, "epochs": 6, "stream_seeds": "init=43", "progress": False}
    whole = autotimm.fit(toy_folder, out=tmp_path, **options)
    for name in ("ledger.jsonl", "metrics.csv", "model.safetensors"):
        assert file_digest(second / name) == file_digest(whole.path / name)


def test_a_run_that_fails_is_named(toy_folder, tmp_path):
    options = {**OPTIONS, "loss": "no.such.loss"}
    with pytest.raises(RunError, match=r"The run seed-42 of the study failed: .*no\.such.* is in .*seed-42\.log"):
        autotimm.study(toy_folder, seeds=2, jobs=1, out=tmp_path, **options)


def test_changed_data_is_refused(made, toy_folder, tmp_path):
    manifest = made.path / "runs" / "seed-42" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(before.replace('"samples": 24', '"samples": 25'))
    try:
        with pytest.raises(DataError, match=r"same data. seed-42 and seed-44 of"):
            autotimm.study(
                toy_folder, seeds=[42, 44], out=made.path.parent, vs={"lr": 0.02}, name=made.path.name, **OPTIONS
            )
    finally:
        manifest.write_text(before)


def test_a_study_has_one_maker(made, toy_folder):
    with FileLock(made.path / ".lock"), pytest.raises(RunError, match="being made by another process"):
        autotimm.study(toy_folder, out=made.path.parent, name=made.path.name, **OPTIONS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"jobs": 0}, "The `jobs` of a study must be a whole number, 1 or more"),
        ({"vary": "inti"}, "Did you mean 'init'"),
        ({"launcher": "rays"}, "Did you mean 'ray'"),
        ({"vs": {"learning_rate": 1}}, "Did you mean 'lr'"),
        ({"vs": "missing.yaml"}, "cannot be read"),
    ],
)
def test_mistakes_are_refused(given, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        autotimm.study("photos", out=tmp_path, **given)
    assert not [*tmp_path.iterdir()]


def test_mistakes_on_the_command_line(tmp_path, capsys):
    (tmp_path / "nested.yaml").write_text("model:\n  class_path: ImageClassifier\n")
    for given, message in (
        (["photos", "--seeds", "1"], "The `--seeds` of autotimm study must be a number of seeds, 2 or more"),
        (["photos", "--vary", "al"], "Did you mean 'all'"),
        (["--config", str(tmp_path / "nested.yaml")], "A study needs options of fit."),
        (["photos", "--vs", str(tmp_path / "nested.yaml")], "names classes instead"),
    ):
        assert main(["study", *given]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_with_ray(made, toy_folder, tmp_path):
    found = autotimm.study(toy_folder, seeds=[42, 44], launcher="ray", out=tmp_path, **OPTIONS)
    assert found.results.summaries["a"] == made.results.summaries["a"]
