import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import autotimm
import warm
from autotimm.records.bit_factors import VARIABLES
from autotimm.records.digest import files_digest
from autotimm.records.environment import code_state, environment, package_digest, volatile
from autotimm.repro.seed import set_deterministic

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init")
    (root / "train.py").write_text("lr = 1\n")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    return root


# --- environment -----------------------------------------------------------------------------------------------------


def test_the_environment_is_plain_data_and_stable():
    recorded = environment(3, ["cpu"])
    assert json.loads(json.dumps(recorded)) == recorded == environment(3, ["cpu"])
    parts = {"versions", "hardware", "libraries", "threads", "switches", "variables", "replay_versions"}
    assert set(recorded) == parts
    assert recorded["threads"] == 3
    assert recorded["hardware"]["devices"] == ["cpu"]
    assert recorded["hardware"]["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert recorded["versions"]["torch"] == torch.__version__
    assert recorded["versions"]["autotimm"] == autotimm.__version__
    missing = {name for name, value in recorded["versions"].items() if value is None}
    assert missing <= {"faster-coco-eval", "pillow-heif"}  # of extras


def test_all_switches_of_this_torch_are_read():
    # The strategy of opt_einsum is `None` where that package is not installed.
    unreadable = {"backends.opt_einsum.strategy"}
    if torch.__version__ < (2, 14):  # torch 2.11 does not have these yet
        unreadable |= {"backends.cudnn.depthwise_kernel", "backends.cuda.matmul.prefer_cublaslt_grouped_gemm"}
    set_deterministic(True)
    on = environment(1, ["cpu"])["switches"]
    set_deterministic(False)
    off = environment(1, ["cpu"])["switches"]
    torch_switches = [name for name in on if not name.startswith(("timm.", "torchvision.", "PIL."))]
    assert {name for name in torch_switches if on[name] is None} <= unreadable
    differing = {name for name in on if on[name] != off[name]}
    assert differing == {
        "are_deterministic_algorithms_enabled",
        "backends.cudnn.deterministic",
        "backends.cudnn.benchmark",
    }


def test_both_ways_to_allow_tf32_are_recorded():
    code = """
import torch
from autotimm.records.environment import environment
before = environment(1, ["cpu"])["switches"]
{change}
after = environment(1, ["cpu"])["switches"]
print(sorted(name for name in before if before[name] != after[name]))
"""
    for change in ("torch.backends.fp32_precision = 'tf32'", "torch.set_float32_matmul_precision('high')"):
        done = warm.run(["-c", code.format(change=change)])
        assert done.returncode == 0, done.stderr
        assert "backends.cuda.matmul.fp32_precision" in done.stdout


def test_variables_that_change_numbers_are_recorded_and_others_never(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert environment(1, ["cpu"])["variables"] == {}
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY", "HTTPS_PROXY", "OMP_NUM_THREADS_", "HOME"):
        monkeypatch.setenv(name, "s3cr3t")
    recorded = environment(1, ["cpu"])
    assert recorded["variables"] == {"MKL_CBWR": "AVX2"}
    assert "s3cr3t" not in json.dumps(recorded)
    assert list(VARIABLES) == sorted(set(VARIABLES))


def test_no_library_is_imported_and_no_device_initialized():
    code = """
import sys
from autotimm.records.environment import environment
import torch
environment(1, ["cpu"])
heavy = ("torchvision", "timm", "pytorch_lightning", "torchmetrics", "PIL")
print([name for name in heavy if name in sys.modules], torch.cuda.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


@pytest.mark.parametrize("home", ["/proc", ""])
def test_unusual_home_and_path_do_no_harm(home, tmp_path):
    code = """
import json
from autotimm.records.environment import code_state, environment, volatile
print(json.dumps([bool(environment(1, ["cpu"])["versions"]["torch"]), code_state("."), sorted(volatile())]))
"""
    strange = {"HOME": home, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=strange)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True, None, ["host", "user"]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_named():
    hardware = environment(1, ["cuda:0"])["hardware"]
    assert hardware["devices"] == [torch.cuda.get_device_name(0)]
    assert hardware["cuda"] == torch.version.cuda
    assert hardware["cudnn"] == torch.backends.cudnn.version()


def test_volatile_names_machine_and_user():
    assert set(volatile()) == {"host", "user"}


# --- code ------------------------------------------------------------------------------------------------------------


@needs_git
def test_a_clean_repository(repository):
    state = code_state(repository)
    assert state == code_state(str(repository))
    assert (state["dirty"], state["diff"]) == (False, None)
    assert len(state["commit"]) == 40


@needs_git
def test_changes_and_new_python_files_change_the_state(repository):
    states = [code_state(repository)]
    (repository / "train.py").write_text("lr = 2\n")
    states.append(code_state(repository))
    (repository / "new.py").write_text("")
    states.append(code_state(repository))
    git(repository, "add", "train.py")
    assert code_state(repository) == states[-1]  # staged or not does not matter
    (repository / "train.py").write_text("lr = 1\n")
    states.append(code_state(repository))
    assert len({state["diff"] for state in states}) == 4
    assert [state["dirty"] for state in states] == [False, True, True, True]
    assert len({state["commit"] for state in states}) == 1


@needs_git
def test_a_run_folder_does_not_make_the_repository_dirty(repository):
    before = code_state(repository)
    (repository / "runs").mkdir()
    (repository / "runs" / "config.yaml").write_text("lr: 1")
    assert code_state(repository) == before
    assert code_state(repository / "runs") == before


@needs_git
def test_settings_of_the_user_do_not_change_the_digest(repository, monkeypatch):
    (repository / "train.py").write_text("lr = 2\n")
    before = code_state(repository)
    for name, value in {"diff.noprefix": "true", "diff.context": "0", "color.ui": "always", "diff.external": "false",
                        "diff.algorithm": "histogram", "core.quotepath": "false"}.items():  # fmt: skip
        git(repository, "config", name, value)
    monkeypatch.setenv("GIT_DIR", "/nonexistent")  # as inside a hook of another repository
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    assert code_state(repository) == before


@needs_git
def test_a_repository_without_a_commit(tmp_path):
    git(tmp_path, "init")
    assert code_state(tmp_path) == {"commit": None, "dirty": False, "diff": None}
    (tmp_path / "a b ü.py").write_text("")
    assert code_state(tmp_path)["dirty"]


@pytest.mark.parametrize("folder", ["missing", "file", "a\0b", "."])
def test_without_a_repository_there_is_no_state(tmp_path, monkeypatch, folder):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert code_state(folder) is None


def test_without_a_working_git_there_is_no_state(tmp_path, monkeypatch):
    fake = tmp_path / "git"
    fake.write_text("#!/bin/sh\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert code_state(".") is None
    fake.chmod(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_state(".") is None


def test_the_package_has_a_digest_that_ignores_caches():
    assert package_digest() == package_digest()
    assert len(package_digest()) == 64


def test_a_change_of_the_package_changes_its_digest_at_once(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(autotimm, "__file__", str(tmp_path / "__init__.py"))
    file = tmp_path / "inner" / "code.py"
    digests = []
    for text in ("lr = 1", "lr = 2"):  # of equal size and time
        file.write_text(text)
        os.utime(file, (1, 1))
        assert package_digest() == files_digest(tmp_path.rglob("*.py"), tmp_path)
        digests.append(package_digest())
    (tmp_path / "inner" / "notes.txt").write_text("")
    assert package_digest() == digests[1]
    assert digests[0] != digests[1]
