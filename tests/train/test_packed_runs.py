"""Runs on packed data: the record of the folder, with any number of workers and processes, and after kills."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotimm.constants import ENGINES
from autotimm.data.toy import write_toy_folder
from autotimm.records.digest import file_digest
from autotimm.records.ledger import read_ledger

pytestmark = pytest.mark.slow
for engine in ENGINES:
    pytest.importorskip(engine)

FILES = ("ledger.jsonl", "metrics.csv", "splits.csv", "files.csv", "results.json", "model.safetensors")
FIT = ["--backbone", "test_resnet", "--image-size", "32", "--batch-size", "8", "--threads", "1", "--pretrained",
       "false", "--val-split", "0.25", "--checkpoint-every", "2", "--epochs", "2", "--accelerator", "cpu",
       "--shards", "2"]  # fmt: skip


def start(*words: object, cwd: Path, rank: int = 0, processes: int = 1, port: int = 0) -> subprocess.Popen[str]:
    """A process of its own, as a launcher starts it; one that has imported Lance must fork none."""
    where = {"TORCHELASTIC_RUN_ID": "test", "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes,
             "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": port} if processes > 1 else {}  # fmt: skip
    variables = {name: str(value) for name, value in where.items()}
    return subprocess.Popen([sys.executable, "-m", "autotimm", *map(str, words)], cwd=cwd, text=True,
                            env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            start_new_session=True)  # fmt: skip


def finish(*started: subprocess.Popen[str]) -> None:
    outputs = [process.communicate(timeout=300) for process in started]
    assert not any(process.returncode for process in started), outputs


def digests(run: Path) -> dict[str, str]:
    return {name: file_digest(run / name) for name in FILES if (run / name).exists()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 48 images, packed by each engine, and a run on the folder that nobody stopped."""
    place = tmp_path_factory.mktemp("packed")
    write_toy_folder(place / "photos", n=48, num_classes=3, image_size=32, seed=7)
    packing = [start("pack", "photos", "--to", name, "--out", f"photos.{name}", cwd=place) for name in ENGINES]
    finish(start("fit", "photos", *FIT, "--num-workers", 0, "--name", "folder", cwd=place), *packing)
    return place


def kill_in_mid_epoch(process: subprocess.Popen[str], run: Path) -> None:
    """Kill a run with all that load for it, once it has written a checkpoint of a step."""
    while not [*run.glob("checkpoints/*step-*.ckpt")]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_run_goes_on_with_the_same_bits(engine: str, place: Path) -> None:
    run = place / "runs" / f"killed-{engine}"
    words = [f"photos.{engine}", *FIT, "--num-workers", 1, "--name", run.name]
    kill_in_mid_epoch(start("fit", *words, cwd=place), run)
    before = sum(line["kind"] == "step" for line in read_ledger(run / "ledger.jsonl").lines)
    assert before < 10
    finish(start("resume", run, "--workers", 2, cwd=place))
    assert digests(run) == digests(place / "runs" / "folder")


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_with_workers_leave_the_bytes_of_one(engine: str, place: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["fit", f"photos.{engine}", *FIT, "--devices", 2, "--num-workers", 1, "--name", f"two-{engine}"]
    finish(*(start(*words, cwd=place, rank=rank, processes=2, port=port) for rank in (0, 1)))
    assert digests(place / "runs" / f"two-{engine}") == digests(place / "runs" / "folder")
