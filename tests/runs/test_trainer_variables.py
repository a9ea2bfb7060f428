"""Runs that variables of the environment had a say in: the record brings it back, the variable is not needed again."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from autotimm import Run
from training import digest, small_fit


def interrupt_after(path: Path) -> None:
    """Press Ctrl-C as soon as there is a file."""
    while not path.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_replay_is_identical_without_the_variable(toy_folder, tmp_path, monkeypatch):
    whole = small_fit(toy_folder, tmp_path, name="whole", epochs=2)
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "1")
    run = small_fit(toy_folder, tmp_path, name="short", epochs=2)
    monkeypatch.delenv("PL_TRAINER_LIMIT_TRAIN_BATCHES")
    verdict = run.verify()
    assert (verdict.verdict, verdict.exit_code, verdict.steps) == ("identical", 0, 2)
    assert whole.verify().steps == 6
    again = run.reproduce(tmp_path / "again")
    assert digest(again.model("last")) == digest(run.model("last")) != digest(whole.model("last"))


def test_a_run_goes_on_without_the_variable(toy_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "1")
    whole = small_fit(toy_folder, tmp_path, name="whole", epochs=12)
    watching = threading.Thread(target=interrupt_after, args=[tmp_path / "half" / "checkpoints" / "last.ckpt"])
    watching.start()
    with pytest.raises(KeyboardInterrupt):
        small_fit(toy_folder, tmp_path, name="half", epochs=12)
    watching.join()
    monkeypatch.delenv("PL_TRAINER_LIMIT_TRAIN_BATCHES")
    assert not (tmp_path / "half" / "model.safetensors").exists()
    half = Run(tmp_path / "half").resume()
    for name in ("model.safetensors", "metrics.csv"):
        assert (half.path / name).read_bytes() == (whole.path / name).read_bytes()
