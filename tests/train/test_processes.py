"""Several processes that train together, as scripts that Lightning starts again for each of them."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch.distributed

import launched
import warm
from autotimm import Run
from autotimm.data.toy import write_toy_folder
from autotimm.errors import UsageError
from autotimm.records.digest import file_digest
from autotimm.records.ledger import read_ledger
from autotimm.runs.run import diff
from training import classifier, small_fit, toy_data, trainer

SCRIPT = """
import autotimm
run = autotimm.fit(
    {data!r}, backbone="test_resnet", pretrained=False, image_size=32, epochs=2, val_split=0.25, batch_size=4,
    num_workers=0, threads=1, progress=False, accelerator="cpu", devices=2, out={out!r}, **{options!r}
)
assert run.path.is_dir()
"""


def run_script(script):
    """Run a script that starts further processes; no pipes, which a process that hangs would keep open."""
    log = script.with_suffix(".log")
    with open(log, "w") as file:
        done = subprocess.run([sys.executable, script], stdout=file, stderr=file, timeout=120, check=False)
    assert done.returncode == 0, log.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.parametrize("options", [{}, {"name": "two"}])
def test_two_processes_leave_one_whole_run(toy_folder, tmp_path, options):
    script, out = tmp_path / "train.py", tmp_path / "runs"
    script.write_text(SCRIPT.format(data=str(toy_folder), out=str(out), options=options))
    run_script(script)
    (only,) = out.iterdir()
    assert {"config.yaml", "metrics.csv", "model.safetensors", "results.json"} <= {one.name for one in only.iterdir()}
    assert Run(only).validate()["val/loss"] > 0


SPAWN = """
from pathlib import Path
from autotimm import AutoTrainer, ImageClassifier, ImageDataModule
if __name__ == "__main__":
    data = ImageDataModule({data!r}, image_size=32, batch_size=4, num_workers=0, val_split=0.25)
    model = ImageClassifier("test_resnet", 3, pretrained=False, image_size=32)
    options = dict(accelerator="cpu", devices=2, strategy="ddp_spawn", threads=1, enable_progress_bar=False)
    trainer = AutoTrainer(1, run_dir={run!r}, **options)
    trainer.fit(model, datamodule=data)
    assert trainer.checkpoint_callback.best["epoch"] == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_processes_that_are_spawned_leave_a_whole_run_too(toy_folder, tmp_path):
    script, run = tmp_path / "train.py", tmp_path / "run"
    script.write_text(SPAWN.format(data=str(toy_folder), run=str(run)))
    run_script(script)
    assert Run(run).metrics["val/loss"] > 0


FIT = ["--backbone", "test_resnet", "--image-size", "32", "--threads", "1", "--pretrained", "false", "--val-split",
       "0.25", "--num-workers", "1", "--epochs", "3", "--accelerator", "cpu", "--checkpoint-every", "1"]  # fmt: skip
FILES = ("ledger.jsonl", "metrics.csv", "splits.csv", "model.safetensors")


def autotimm(*words, cwd, kill_after=None):
    """Run the program with all the processes that it starts; kill them all once so many steps are on the disk."""
    command = [sys.executable, "-m", "autotimm", *map(str, words)]
    with open(cwd / "log.txt", "a") as log, open(cwd / "out.txt", "w") as out:
        process = subprocess.Popen(command, cwd=cwd, stdout=out, stderr=log, start_new_session=True)
        ledger = cwd / "runs" / "killed" / "ledger.jsonl"
        while kill_after is not None and process.poll() is None:
            if ledger.exists() and ledger.read_bytes().count(b'"step"') >= kill_after:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.01)
        assert process.wait(timeout=240) == (0 if kill_after is None else -signal.SIGKILL), (
            cwd / "log.txt"
        ).read_text()


def lines(run, kind, *fields):
    found = [line for line in read_ledger(run / "ledger.jsonl").lines if line["kind"] == kind]
    return [[line[name] for name in fields] for line in found]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.parametrize("repeat", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["once", "twice"])
def test_two_processes_see_what_one_sees_and_repeat(repeat, toy_folder, tmp_path):
    # Without batch normalization, whose statistics are those of a process's own share of a batch.
    runs, fit = tmp_path / "runs", ["test_vit" if word == "test_resnet" else word for word in FIT]
    for name in ("two", *(["again"] if repeat else [])):
        autotimm("fit", toy_folder, *fit, "--batch-size", 3, "--devices", 2, "--name", name, cwd=tmp_path)
        assert (tmp_path / "out.txt").read_text() == f"report: runs/{name}/report.html\nrun: runs/{name}\n"
    log = (tmp_path / "log.txt").read_text()
    assert len(re.findall("^best epoch: ", log, re.MULTILINE)) == (2 if repeat else 1)
    if repeat:
        assert {name: file_digest(runs / "two" / name) for name in FILES} == {
            name: file_digest(runs / "again" / name) for name in FILES
        }
    done = warm.run(["-m", "autotimm", "fit", toy_folder, *fit, "--batch-size", 6, "--name", "one"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert lines(runs / "two", "start", "world_size", "weights")[0][1] == lines(runs / "one", "start", "weights")[0][0]
    seen = ("epoch", "batch", "ids", "inputs")
    assert lines(runs / "two", "step", *seen) == lines(runs / "one", "step", *seen)
    # No rest is left over: 18 images are three global batches of 6, whoever shares them.
    # The first step has seen equal samples with equal weights: its loss differs by no more than the order of sums.
    losses = [float.fromhex(lines(runs / name, "step", "loss")[0][0]) for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    found = diff(runs / "one", runs / "two")
    assert "environment: the number of processes: 1 was recorded, 2 is used" in str(found)
    assert found.cause.startswith("Likely the number of processes: 1 was recorded, 2 is used")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_begin_with_the_head_that_one_fits(toy_folder, tmp_path):
    other = write_toy_folder(tmp_path / "other", n=24, num_classes=3, image_size=32, seed=1)
    weights = small_fit(other, tmp_path / "pretrained").path / "model.safetensors"
    fit = [weights if word == "false" else word for word in FIT]
    launched.autotimm(2, "fit", toy_folder, *fit, "--devices", 2, "--batch-size", 3, "--name", "two", cwd=tmp_path)
    launched.autotimm(1, "fit", toy_folder, *fit, "--batch-size", 6, "--name", "one", cwd=tmp_path)
    one, two = (tmp_path / "runs" / name for name in ("one", "two"))
    # Process 0 alone sees all of the images, in batches of the same shape.
    head = ("features", "penalty", "weights", "metrics")
    assert lines(two, "head", *head) == lines(one, "head", *head)
    assert lines(two, "choice", "tried")[0][0].keys() == lines(one, "choice", "tried")[0][0].keys()
    assert Run(two).validate()["val/loss"] == pytest.approx(Run(two).metrics["val/loss"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_that_were_killed_go_on(toy_folder, tmp_path):
    runs = tmp_path / "runs"
    common = [*FIT, "--batch-size", 4, "--devices", 2]
    autotimm("fit", toy_folder, *common, "--name", "whole", cwd=tmp_path)
    autotimm("fit", toy_folder, *common, "--name", "killed", cwd=tmp_path, kill_after=5)
    autotimm("resume", runs / "killed", cwd=tmp_path)
    assert {name: file_digest(runs / "killed" / name) for name in FILES} == {
        name: file_digest(runs / "whole" / name) for name in FILES
    }


def command(*words, cwd):
    """Run the program with the processes that it starts, and return its exit code, its output and its errors."""
    with open(cwd / "out.txt", "w") as out, open(cwd / "log.txt", "w") as log:
        words = [sys.executable, "-m", "autotimm", *map(str, words)]
        done = subprocess.run(words, cwd=cwd, stdout=out, stderr=log, timeout=240, check=False)
    return done.returncode, (cwd / "out.txt").read_text(), (cwd / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_give_one_verdict_and_one_comparison(toy_folder, tmp_path):
    autotimm("fit", toy_folder, *FIT, "--batch-size", 3, "--devices", 2, "--name", "two", cwd=tmp_path)
    run = tmp_path / "runs" / "two"
    code, out, log = command("verify", run, cwd=tmp_path)
    assert code == 0, log
    assert out.splitlines() == ["verdict: identical (9 steps compared)"]
    assert log.count("replaying") == 1
    code, out, log = command("verify", run, "--steps", 4, cwd=tmp_path)  # ended in the middle of an epoch
    assert (code, out.splitlines()[-1]) == (0, "verdict: identical in part (4 of 9 steps compared)"), log
    code, out, log = command("reproduce", run, cwd=tmp_path)
    assert code == 0, log
    report = run.parent / "two-again-001" / "report.html"
    assert out.splitlines()[-3:] == ["equal", f"report: {report}", f"run: {run}-again-001"]
    assert out.count("equal\n") == 1
    assert sorted(path.name for path in run.parent.iterdir()) == ["two", "two-again-001"]
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"(?m)^seed: 42 ", "seed: 43 ", config))
    code, out, log = command("verify", run, cwd=tmp_path)
    assert code == 5, log
    assert [line for line in out.splitlines() if line.startswith("verdict")] == ["verdict: different"]
    assert "Traceback" not in log


MEASURE = """
import json, sys
from pathlib import Path
from autotimm import AutoTrainer, ImageClassifier, ImageDataModule
data = ImageDataModule({data!r}, image_size=32, eval_batch_size=2, num_workers=0, val_split=0.3)
model = ImageClassifier("test_resnet", 3, pretrained=False, image_size=32)
options = dict(accelerator="cpu", devices=int(sys.argv[1]), threads=1, run_dir=False, enable_progress_bar=False)
trainer = AutoTrainer(1, **options)
(found,) = trainer.validate(model, datamodule=data)
metric = model.metrics["val_metrics"]["accuracy"]
if trainer.is_global_zero:
    Path({out!r}).write_text(json.dumps([len(data.tables["val"]), found]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_every_sample_is_measured_once(toy_folder, tmp_path):
    """Of 7 images two processes have 4 and 3: none may count twice."""
    script, out = tmp_path / "measure.py", tmp_path / "found.json"
    script.write_text(MEASURE.format(data=str(toy_folder), out=str(out)))
    found = []
    for devices in ("1", "2"):
        subprocess.run([sys.executable, script, devices], capture_output=True, timeout=120, check=True)
        found.append(json.loads(out.read_text()))
    assert found[0][0] == found[1][0]
    assert found[0][1]["val/accuracy"] == found[1][1]["val/accuracy"]
    assert found[0][1]["val/loss"] == pytest.approx(found[1][1]["val/loss"], rel=1e-6)


LOGGED = """
import sys
from autotimm import AutoTrainer, ImageClassifier, ImageDataModule
devices = int(sys.argv[1])
metrics = [
    dict(name=name, metric_class=kind, params=dict(task="multiclass", num_classes=3), stages=["train", "val"])
    for name, kind in (("accuracy", "Accuracy"), ("f1", "F1Score"))
]
for images, weights in {cases!r}:
    data = ImageDataModule(
        f"data-{{images}}", image_size=32, batch_size=8 // devices, eval_batch_size=4, num_workers=0,
        augmentation="none",
    )
    # Without batch normalization, which sees other groups of images; with a rate that changes nothing.
    model = ImageClassifier(
        "test_vit", 3, pretrained=False, image_size=32, metrics=metrics, lr=1e-12, class_weights=weights
    )
    options = dict(accelerator="cpu", devices=devices, threads=1, enable_progress_bar=False)
    run = f"run-{{images}}-{{weights is not None}}-{{devices}}"
    AutoTrainer(2, run_dir=run, **options).fit(model, datamodule=data)
"""
CASES = [(5, None), (9, None), (10, None), (15, None), (5, [1.0, 2.0, 4.0])]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_every_logged_value_is_that_of_one_process(tmp_path):
    """Of 15 training images the last batch has 7, which two processes share as 3 and 4; of 9 images none is left."""
    for images in {images for images, _ in CASES}:
        write_toy_folder(tmp_path / f"data-{images}", splits={"train": 15, "val": images}, num_classes=3)
    script = tmp_path / "train.py"
    script.write_text(LOGGED.format(cases=CASES))
    for devices in ("1", "2"):
        done = subprocess.run(
            [sys.executable, script, devices], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
    logged = {"train/loss", "val/loss", "train/accuracy", "val/accuracy", "train/f1", "val/f1"}
    for images, weights in CASES:
        runs = [tmp_path / f"run-{images}-{weights is not None}-{devices}" for devices in (1, 2)]
        tables = []
        for run in runs:
            with open(run / "metrics.csv", newline="") as file:
                tables.append([{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)])
        assert logged <= tables[0][0].keys() == tables[1][0].keys()
        for one, two in zip(*tables, strict=True):
            expected = {name: one[name] for name in logged}
            assert {name: two[name] for name in logged} == pytest.approx(expected, rel=1e-5), (images, weights)
        assert Run(runs[1]).metrics == pytest.approx(Run(runs[0]).metrics, rel=1e-5)


@pytest.mark.parametrize("side", ["train", "val"])
def test_fewer_images_than_processes_are_refused_before_anything_is_started(side, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)  # or the machine is what is too small
    data = write_toy_folder(tmp_path / "data", splits={"train": 6, "val": 6} | {side: 2}, num_classes=2)
    run = trainer(run_dir=tmp_path / "run", devices=3)
    with pytest.raises(UsageError, match=f"`devices` of AutoTrainer must be at most 2, the number of {side} images"):
        run.fit(classifier(num_classes=2), datamodule=toy_data(data))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_launchers_of_others_give_the_same_run(launcher, toy_folder, tmp_path):
    """Processes that torchrun or SLURM started find each other by the variables these set."""
    common = [*FIT, "--batch-size", 4, "--devices", 2]
    autotimm("fit", toy_folder, *common, "--name", "lightning", cwd=tmp_path)
    words = [*map(str, ["fit", toy_folder, *common, "--name", launcher])]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if launcher == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        started = [([*torchrun, "--master-port", port, "-m", "autotimm", *words], {})]
    else:
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
               "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost", **where}  # fmt: skip
        ranks = [{**job, "SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in ("0", "1")]
        started = [([sys.executable, "-m", "autotimm", *words], variables) for variables in ranks]
    logs = [tmp_path / f"{number}.log" for number in range(len(started))]
    processes = []
    for (command, variables), log in zip(started, logs, strict=True):
        with open(log, "w") as file:
            environment = {**os.environ, **variables}
            processes.append(subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=file, env=environment))
    codes = [process.wait(timeout=240) for process in processes]
    assert not any(codes), "\n".join(log.read_text() for log in logs)
    runs = tmp_path / "runs"
    assert {name: file_digest(runs / launcher / name) for name in FILES} == {
        name: file_digest(runs / "lightning" / name) for name in FILES
    }
