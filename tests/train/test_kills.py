"""Real processes, really killed: what remains goes on to the same bytes."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

import warm
from autotimm import Run
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder
from autotimm.records.digest import file_digest
from autotimm.records.ledger import read_ledger
from autotimm.records.run_folder import RunFolder
from training import small_fit

FILES = ("ledger.jsonl", "metrics.csv", "splits.csv", "files.csv", "results.json", "model.safetensors")
FIT = ["--backbone", "test_resnet", "--image-size", "32", "--batch-size", "4", "--threads", "1", "--pretrained",
       "false", "--val-split", "0.25", "--num-workers", "2", "--checkpoint-every", "3", "--ema-decay", "0.9",
       "--mixup-alpha", "0.2"]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_toy_folder(tmp_path_factory.mktemp("kills") / "photos", n=64, num_classes=3, image_size=32, seed=7)


def start(*words, cwd):
    return warm.Program(["-m", "autotimm", *words], cwd)


def whole(photos, cwd, epochs):
    # This interpreter hashes strings otherwise than the processes that are killed, which all come from another one.
    words = ["fit", photos, *FIT, "--epochs", epochs, "--name", "whole"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        assert main([*map(str, words)]) == 0
    return cwd / "runs" / "whole"


@pytest.fixture(scope="module")
def reference(photos, tmp_path_factory):
    """A run of three epochs that nobody stopped."""
    return whole(photos, tmp_path_factory.mktemp("reference"), 3)


def steps(folder):
    """How many lines of steps are on the disk."""
    lines = read_ledger(folder / "ledger.jsonl").lines
    return sum(line["kind"] == "step" for line in lines)


def reach(process, folder, wanted):
    """Wait until a run has written so many steps; the run may be over by then."""
    while process.poll() is None and steps(folder) < wanted:
        time.sleep(0.005)


def finish(folder, cwd):
    process = start("resume", folder, cwd=cwd)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return err


def kill(process, number):
    """Send a signal to a process and to those that load for it, as a terminal or an out-of-memory killer does."""
    os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(number)
    return process.communicate(timeout=120)


def same(folder, reference):
    assert {name: file_digest(folder / name) for name in FILES} == {
        name: file_digest(reference / name) for name in FILES
    }


# Ctrl-C in a process of its own is also in tests/test_bad_runs.py, which is quicker.
SIGNALS = [
    pytest.param(signal.SIGTERM, 143, id="term", marks=pytest.mark.slow),  # briefer in tests/test_bad_runs.py
    pytest.param(signal.SIGINT, 130, id="int", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal(number, code, photos, reference, tmp_path):
    process = start("fit", photos, *FIT, "--epochs", 3, "--name", "stopped", cwd=tmp_path)
    folder = tmp_path / "runs" / "stopped"
    reach(process, folder, 15)
    _, err = kill(process, number)
    assert process.returncode in (code, 0), err
    assert "Traceback" not in err
    if process.returncode:
        said = finish(folder, tmp_path)
        assert "resumed at epoch " in said
        manifest = json.loads((folder / "manifest.json").read_text())
        assert len(manifest["volatile"]["resumes"]) == 1
    same(folder, reference)


TWO = [
    pytest.param(signal.SIGTERM, "group", id="term"),  # as a scheduler sends it
    pytest.param(signal.SIGINT, "group", id="int"),  # as a terminal does
    pytest.param(signal.SIGTERM, "child", id="term-child"),  # no more than process 1 knows
]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "whom"), TWO)
def test_two_processes_stop_together(number, whom, photos, tmp_path):
    words = [*FIT[: FIT.index("--checkpoint-every")], "--devices", 2, "--epochs", 3]
    process = start("fit", photos, *words, "--name", "stopped", cwd=tmp_path)
    folder = tmp_path / "runs" / "stopped"
    reach(process, folder, 8)
    if whom == "group":
        os.killpg(process.pid, number)
    else:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        second = next(child for child in children if "LOCAL_RANK" in Path(f"/proc/{child}/environ").read_text())
        os.kill(int(second), number)
    _, err = process.communicate(timeout=60)  # it waited for ever
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    stopped = steps(folder)
    assert "resumed at epoch " in finish(folder, tmp_path)
    assert 8 <= stopped < steps(folder)
    said = start("verify", folder, cwd=tmp_path).communicate(timeout=300)
    assert "verdict: identical" in "".join(said)


def kills(photos, reference, tmp_path, count, epochs, seed):
    chance = random.Random(seed)
    folder = tmp_path / "runs" / "stopped"
    process = start("fit", photos, *FIT, "--epochs", epochs, "--name", "stopped", cwd=tmp_path)
    done = 0
    for _ in range(count):
        # Somewhere after the next few steps, to come forward at all; and at any moment of writing.
        reach(process, folder, steps(folder) + chance.randrange(4) if folder.exists() else 1)
        time.sleep(chance.random() * 0.3)
        if process.poll() is not None:
            break
        kill(process, signal.SIGKILL)
        done += 1
        process = start("resume", folder, cwd=tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    same(folder, reference)
    return done


def test_three_kills(photos, reference, tmp_path):
    assert kills(photos, reference, tmp_path, count=3, epochs=3, seed=time.time_ns()) >= 1


@pytest.mark.slow
def test_twenty_kills(photos, tmp_path):
    reference = whole(photos, tmp_path, epochs=40)
    assert kills(photos, reference, tmp_path, count=20, epochs=40, seed=time.time_ns()) == 20


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_over(photos, reference, tmp_path):
    process = start("fit", photos, *FIT, "--epochs", 3, "--name", "stopped", cwd=tmp_path)
    folder = tmp_path / "runs" / "stopped"
    while not (folder / "config.yaml").exists():
        time.sleep(0.005)
    kill(process, signal.SIGKILL)
    assert "the run was interrupted before its first checkpoint; it starts over" in finish(folder, tmp_path)
    same(folder, reference)


def test_one_writer(photos, tmp_path):
    process = start("fit", photos, *FIT, "--epochs", 3, "--name", "one", cwd=tmp_path)
    folder = tmp_path / "runs" / "one"
    reach(process, folder, 4)
    before = (folder / "manifest.json").read_bytes()
    second = start("resume", folder, cwd=tmp_path)
    _, err = second.communicate(timeout=120)
    if process.poll() is None:
        assert second.returncode == 1, err
        assert "must have one writer" in err
        assert (folder / "manifest.json").read_bytes() == before
    process.communicate(timeout=120)
    assert process.returncode == 0


def test_a_run_killed_before_its_first_checkpoint_has_the_same_manifest(photos, tmp_path):
    """It starts over, and must not show in the record that it does."""
    words = [word if word != "3" else "1000" for word in FIT]
    process = start("fit", photos, *words, "--epochs", "1", "--name", "whole", cwd=tmp_path)
    process.communicate(timeout=300)
    assert process.returncode == 0
    process = start("fit", photos, *words, "--epochs", "1", "--name", "killed", cwd=tmp_path)
    folder = tmp_path / "runs" / "killed"
    while process.poll() is None and not (folder / "manifest.json").exists():
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    assert not [*folder.glob("checkpoints/*.ckpt")]
    (folder / ".manifest.json.4711.tmp").touch()
    assert "it starts over" in finish(folder, tmp_path)
    whole, killed = (
        json.loads((tmp_path / "runs" / name / "manifest.json").read_text()) for name in ("whole", "killed")
    )
    assert killed["digest"] == whole["digest"]
    assert not [*folder.rglob(".*.tmp")]
    same(folder, tmp_path / "runs" / "whole")


def test_a_process_killed_when_it_has_finished_leaves_a_complete_record(photos, tmp_path, monkeypatch):
    """Whatever says that a run is finished is written last: nobody resumes it then."""
    save = RunFolder.write_manifest

    def saved(folder, manifest, names=()):
        save(folder, manifest, names)
        if manifest.results.get("status") == "finished":
            shutil.copytree(folder.path, tmp_path / "killed")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_manifest", saved)
        small_fit(photos, tmp_path, search_budget="1x", epochs=2)
    verdict = Run(tmp_path / "killed").verify()
    assert (verdict.verdict, verdict.not_checked) == ("identical", ())
