"""Studies of real runs in processes: results, resuming after a kill, and refused arguments."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

import autotimm
import warm
from autotimm.cli.main import main
from autotimm.errors import DataError, RunError, UsageError
from autotimm.records.digest import file_digest
from autotimm.studies.statistics import summarize
from autotimm.studies.trials import finished

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


@pytest.fixture(scope="module", autouse=True)
def _warm_processes() -> Iterator[None]:
    """The processes of runs begin with all libraries imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autotimm.studies.execution.subprocess", warm.Subprocess)
        yield


@pytest.fixture(scope="module")
def finished_study(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> autotimm.Study:
    out = tmp_path_factory.mktemp("studies")
    return autotimm.study(toy_folder, seeds=[42, 44], jobs=2, out=out, vs={"lr": 0.02, "seed": 5}, **OPTIONS)


class TestResults:
    def test_run_of_a_study_equals_a_run_of_fit(self, finished_study, toy_folder, tmp_path):
        alone = autotimm.fit(toy_folder, out=tmp_path, seed=44, progress=False, **OPTIONS)
        of_study = next(run for run in finished_study.runs if run.path.name == "seed-44")
        for name in ("model.safetensors", "metrics.csv", "splits.csv"):
            assert file_digest(alone.path / name) == file_digest(of_study.path / name)

    def test_numbers_are_those_of_the_runs(self, finished_study):
        a_losses = [run.metrics["val/loss"] for run in finished_study.runs if run.path.name.startswith("seed-")]
        b_losses = [run.metrics["val/loss"] for run in finished_study.runs if run.path.name.startswith("vs-")]
        assert finished_study.results.summaries["a"]["val/loss"] == summarize(a_losses)
        assert finished_study.results.summaries["b"]["val/loss"] == summarize(b_losses)
        gaps = [b - a for a, b in zip(a_losses, b_losses, strict=True)]
        assert finished_study.results.paired["val/loss"].difference == summarize(gaps)
        assert finished_study.results.paired["val/loss"].least_p == 0.5

    def test_the_files(self, finished_study):
        data = json.loads((finished_study.path / "study.json").read_text())
        assert (data["status"], data["seeds"], data["vary"]) == ("finished", [42, 44], "all")
        assert data["changed"] == {"lr": {"a": None, "b": 0.02}}
        with (finished_study.path / "study.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["config"], row["seed"], row["run"]) for row in rows] == [
            ("a", "42", "seed-42"), ("a", "44", "seed-44"), ("b", "42", "vs-seed-42"), ("b", "44", "vs-seed-44"),
        ]  # fmt: skip
        assert float(rows[0]["val/loss"]) == data["metrics"]["seed-42"]["val/loss"]
        assert (finished_study.path / "plot.png").read_bytes().startswith(b"\x89PNG")
        assert not [path for path in finished_study.path.rglob("*.log") if "Warning" in path.read_text()]

    def test_the_table(self, finished_study):
        text = str(finished_study)
        assert "2 seeds of everything" in text
        assert "B has lr 0.02 instead of auto" in text
        assert "gives 0.5 at best" in text
        assert "The split varies with the seed" in text
        assert max(map(len, text.splitlines())) <= 110

    def test_finished_runs_are_not_trained_again(self, finished_study, toy_folder, capsys):
        before = {path: path.stat().st_mtime_ns for path in finished_study.path.glob("runs/*/*")}
        again = autotimm.study(
            toy_folder,
            seeds=[42, 44],
            jobs=1,
            out=finished_study.path.parent,
            vs={"lr": 0.02},
            name=finished_study.path.name,
            **OPTIONS,
        )
        assert {path: path.stat().st_mtime_ns for path in finished_study.path.glob("runs/*/*")} == before
        assert again == finished_study
        assert "4 runs, 4 of them finished" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_study_is_resumed(toy_folder, tmp_path):
    """After SIGKILL in the middle of the second run, the results equal those of an uninterrupted run."""
    command = [sys.executable, "-m", "autotimm", "study", str(toy_folder), "--seeds", "2", "--vary", "init"]
    command += words(**{**OPTIONS, "epochs": 6})
    study = subprocess.Popen([*command, "--name", "killed"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    first, second = (tmp_path / "studies" / "killed" / "runs" / name for name in ("seed-42", "seed-42-init-43"))
    while not [*second.glob("checkpoints/epoch*")] and study.poll() is None:
        time.sleep(0.01)
    os.kill(study.pid, signal.SIGKILL)
    assert study.wait() == -signal.SIGKILL
    with FileLock(second / ".lock", timeout=120):
        pass  # the process of the run has ended
    assert finished(first)
    assert not finished(second)
    before = (first / "manifest.json").stat().st_mtime_ns
    again = subprocess.run([*command, "--name", "killed"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "2 runs, 1 of them finished" in again.stderr
    assert again.stdout.splitlines()[-1] == "study: studies/killed"
    assert (first / "manifest.json").stat().st_mtime_ns == before
    options = {**OPTIONS, "epochs": 6, "stream_seeds": "init=43", "progress": False}
    whole = autotimm.fit(toy_folder, out=tmp_path, **options)
    for name in ("ledger.jsonl", "metrics.csv", "model.safetensors"):
        assert file_digest(second / name) == file_digest(whole.path / name)


def test_failed_run_is_named(toy_folder, tmp_path):
    options = {**OPTIONS, "loss": "no.such.loss"}
    with pytest.raises(UsageError, match=r"The run seed-42 of the study failed: .*no\.such"):
        autotimm.study(toy_folder, seeds=2, jobs=1, out=tmp_path, **options)
    options = {**OPTIONS, "lr": 1e30, "clip": 0, "warmup_epochs": 0, "schedule": "constant", "epochs": 3}
    message = (
        r"The run seed-42 of the study failed: The loss must be a finite number.* Its output is in .*logs\. Repeat"
    )
    with pytest.raises(RunError, match=message):
        autotimm.study(toy_folder, seeds=2, jobs=1, out=tmp_path, **options)
    assert [log.stem for log in tmp_path.rglob("logs/*.log")] == ["seed-42"]  # no more are started


def test_changed_data_is_refused(finished_study, toy_folder, tmp_path):
    manifest = finished_study.path / "runs" / "seed-42" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(before.replace('"samples": 24', '"samples": 25'))
    try:
        with pytest.raises(DataError, match=r"same data. seed-42 and seed-44 of"):
            autotimm.study(
                toy_folder,
                seeds=[42, 44],
                out=finished_study.path.parent,
                vs={"lr": 0.02},
                name=finished_study.path.name,
                **OPTIONS,
            )
    finally:
        manifest.write_text(before)


@pytest.mark.parametrize(("what", "old", "new"), [("data", '"samples": 24', '"samples": 25'), ("code", "", "0")])
def test_two_configurations_must_have_the_same_data_and_code(finished_study, toy_folder, what, old, new):
    """All runs of A may be of before a change, and all of B of after it."""
    manifests = [finished_study.path / "runs" / f"vs-seed-{seed}" / "manifest.json" for seed in (42, 44)]
    before = [manifest.read_text() for manifest in manifests]
    for manifest, text in zip(manifests, before, strict=True):
        word = old or json.loads(text)["inputs"]["code"]
        manifest.write_text(text.replace(word, new if old else word[:-1] + "x"))
    again = {"vs": {"lr": 0.02}, "out": finished_study.path.parent, "name": finished_study.path.name, **OPTIONS}
    try:
        with pytest.raises(DataError, match=rf"same {what}\. seed-42 and vs-seed-42 of"):
            autotimm.study(toy_folder, seeds=[42, 44], **again)
    finally:
        for manifest, text in zip(manifests, before, strict=True):
            manifest.write_text(text)


def test_study_is_run_by_one_process_at_a_time(finished_study, toy_folder):
    with FileLock(finished_study.path / ".lock"), pytest.raises(RunError, match="Another process is running"):
        autotimm.study(toy_folder, out=finished_study.path.parent, name=finished_study.path.name, **OPTIONS)


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
def test_with_ray(finished_study, toy_folder, tmp_path):
    on_ray = autotimm.study(toy_folder, seeds=[42, 44], launcher="ray", out=tmp_path, **OPTIONS)
    assert on_ray.results.summaries["a"] == finished_study.results.summaries["a"]


@pytest.mark.parametrize(
    ("path", "options", "code"),
    [("nope", {}, 3), (None, {"backbone": "resnett18"}, 4), (None, {"monitor": "val/nothing"}, 2)],
    ids=["data", "backbone", "monitor"],
)
def test_a_study_that_cannot_train_leaves_nothing(toy_folder, tmp_path, capfd, path, options, code):
    place = path or str(toy_folder)
    command = ["study", place, "--seeds", "2", "--out", str(tmp_path / "studies"), *words(**{**OPTIONS, **options})]
    assert main(command) == code
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    assert shown.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "studies").exists()
