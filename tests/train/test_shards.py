"""Virtual shards of a batch: the same bits on one, two and four processes."""

import json
import signal
import socket
import time

import pytest
import torch
import torch.distributed

import warm
from autotimm import Run
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.records.digest import file_digest
from autotimm.records.ledger import read_ledger

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without them")

# The processes that a launcher such as torchrun starts, on a machine with at least four cores.
PROGRAM = """
import os, sys
os.cpu_count = lambda: 4
from pytorch_lightning.utilities import rank_zero_only
rank_zero_only.rank = int(os.environ.get("RANK", "0"))
from autotimm.cli.main import main
sys.exit(main())
"""
FITS = """
import json, os, sys
from pytorch_lightning.utilities import rank_zero_only
os.cpu_count = lambda: 4
rank_zero_only.rank = int(os.environ.get("RANK", "0"))
import autotimm
for name, data, options in json.loads(sys.argv[2]):
    autotimm.fit(data, **options, devices=int(sys.argv[1]), out=f"runs-{sys.argv[1]}", name=name)
"""
FIT = ["--backbone", "test_resnet", "--image-size", 32, "--threads", 1, "--pretrained", "false", "--num-workers", 0,
       "--epochs", 3, "--accelerator", "cpu", "--batch-size", 8, "--eval-batch-size", 3, "--head-dropout", 0.2,
       "--drop-path-rate", 0.1]  # fmt: skip


def start(processes, *words, cwd, program=PROGRAM):
    """Start a program in so many processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = []
    for rank in range(processes):
        where = {"TORCHELASTIC_RUN_ID": "test", "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes,
                 "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port} if processes > 1 else {}  # fmt: skip
        variables = {name: str(value) for name, value in where.items()}
        launched.append(warm.Program(["-c", program, *words], cwd, variables))
    return launched


def autotimm(processes, *words, cwd, program=PROGRAM):
    """Run a program in so many processes; return the output of the first."""
    started = start(processes, *words, cwd=cwd, program=program)
    outputs = [process.communicate() for process in started]
    assert not any(process.returncode for process in started), outputs
    return outputs[0]


def fit(data, cwd, name, processes, *words, shards=4):
    options = [*FIT, "--shards", shards, "--devices", processes, "--name", name, *words]
    autotimm(processes, "fit", data, *options, cwd=cwd)
    return cwd / "runs" / name


def files(run):
    """The digests of all files that no clock and no number of processes belongs in."""
    left_out = {"config.yaml", "manifest.json", ".lock", "report.html"}
    paths = (path for path in run.rglob("*") if path.is_file() and path.name not in left_out)
    return {path.relative_to(run).as_posix(): file_digest(path) for path in paths}


def killed(processes, *words, run, cwd, after):
    """Run a program, and kill all of its processes in mid-epoch, once there is the checkpoint of a step."""
    started, last = start(processes, *words, cwd=cwd), run / "checkpoints" / "last.ckpt"
    while not (last.exists() and any(int(path.stem[-8:]) >= after for path in last.parent.glob("*step-*.ckpt"))):
        assert all(process.poll() is None for process in started), [each.communicate() for each in started]
        time.sleep(0.005)
    for process in started:
        process.send_signal(signal.SIGKILL)
    assert [process.wait() for process in started] == [-signal.SIGKILL] * processes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 21 images to train on, of which the last batch has 5, and 10 to validate on."""
    root = tmp_path_factory.mktemp("shards")
    write_toy_folder(root / "toy", splits={"train": 21, "val": 10}, num_classes=3)
    return root


@pytest.fixture(scope="module")
def one(place):
    return fit("toy", place, "one", 1)


def test_two_processes_leave_the_bytes_that_one_leaves(place, one):
    two = fit("toy", place, "two", 2)
    assert files(two) == files(one)
    assert len(files(one)) > 8
    manifests = [json.loads((run / "manifest.json").read_text()) for run in (one, two)]
    assert manifests[0]["run_id"] == manifests[1]["run_id"]
    assert [each["volatile"]["processes"] for each in manifests] == [1, 2]
    assert Run(one).level()["R4"] == "expected"


@pytest.mark.slow
def test_four_processes_leave_the_bytes_that_one_leaves(place, one):
    assert files(fit("toy", place, "four", 4)) == files(one)


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(place, tmp_path):
    every = ["--checkpoint-every", 1]
    whole = fit("toy", place, "whole", 1, *every)
    run = place / "runs" / "killed"
    words = ["fit", "toy", *FIT, "--shards", 4, "--devices", 4, "--name", "killed", *every]
    killed(4, *words, run=run, cwd=place, after=1)
    killed(1, "resume", run, "--devices", 1, run=run, cwd=place, after=3)
    autotimm(2, "resume", run, "--devices", 2, cwd=place)
    assert files(run) == files(whole)
    assert len(json.loads((run / "manifest.json").read_text())["volatile"]["resumes"]) == 2
    assert len([line for line in read_ledger(run / "ledger.jsonl").lines if line["kind"] == "step"]) == 6


def test_another_number_of_processes_verifies_a_run(place, one):
    out, _ = autotimm(2, "verify", one, "--devices", 2, cwd=place)
    assert out.splitlines()[-1] == "verdict: identical (6 steps compared)"
    assert Run(one).level()["R4"] == "checked with 2 processes"


SMALL = {"backbone": "test_resnet", "image_size": 32, "threads": 1, "pretrained": False, "num_workers": 0, "epochs": 2,
         "accelerator": "cpu", "batch_size": 8, "eval_batch_size": 3, "shards": 4, "progress": False}  # fmt: skip
OPTIONS = {
    "average": {"ema_decay": 0.9, "clip": 0.1, "mixup_alpha": 0.4, "cutmix_alpha": 0.4},
    "plateau": {
        "schedule": "plateau",
        "precision": "bf16-mixed",
        "class_weights": "balanced",
        "balanced_sampling": True,
    },
    "rest": {"backbone": "test_vit", "shards": 8, "accumulate": 2, "val_split": 0.3},
    "threes": {"shards": 6, "batch_size": 12, "backbone": "test_vit"},
}


def fits(cases, cwd, processes):
    """Train several cases in so many processes, one after the other; return the files of each."""
    autotimm(processes, str(processes), json.dumps(cases), cwd=cwd, program=FITS)
    return {name: files(cwd / f"runs-{processes}" / name) for name, _, _ in cases}


@pytest.mark.slow
def test_every_option_leaves_the_same_bytes(place):
    cases = [(name, "toy", SMALL | options) for name, options in OPTIONS.items()]
    assert fits(cases, place, 2) == fits(cases, place, 1)


@pytest.mark.slow
def test_three_processes_of_six_shards(place):
    """The tree has halves, and none of them is a third."""
    cases = [("threes", "toy", SMALL | OPTIONS["threes"])]
    assert fits(cases, place, 3) == fits(cases, place, 1)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "instance", "segmentation"])
def test_every_task_leaves_the_same_bytes(task, place):
    write = write_toy_segmentation if task == "segmentation" else write_toy_objects
    write(place / task, splits={"train": 10, "val": 5}, image_size=64)
    options = {"task": task, "image_size": 64, "width": 64, "batch_size": 4, "eval_batch_size": 2, "shards": 2}
    cases = [(task, task, SMALL | options)]
    assert fits(cases, place, 2) == fits(cases, place, 1)
