"""The wheel holds what the package needs: it is built, installed away from the sources, and used."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import autotimm
from autotimm.data.toy import write_toy_folder
from environments import ROOT, linked_environment, run


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make wheel` does."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"autotimm-{autotimm.__version__}-py3-none-any.whl"
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("autotimm/")}
    sources = (path for path in (ROOT / "src" / "autotimm").rglob("*") if path.is_file())
    assert packed == {f"{path.relative_to(ROOT / 'src')}" for path in sources if "__pycache__" not in path.parts}
    others = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()} - {"autotimm"}
    assert others == {f"autotimm-{autotimm.__version__}.dist-info"}


def test_the_installed_wheel_trains(wheel: Path, tmp_path: Path) -> None:
    python = linked_environment(tmp_path / "environment", ["autotimm"])
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    program = python.with_name("autotimm")
    shown = run(python, "-c", "import autotimm; print(autotimm.__file__)", cwd=tmp_path, sources=False)
    assert Path(shown.stdout.strip()).is_relative_to(tmp_path / "environment")
    shown = run(python, program, "--help", cwd=tmp_path, sources=False)
    assert shown.returncode == 0
    assert "fit" in shown.stdout
    photos = write_toy_folder(tmp_path / "photos", n=24, num_classes=3)
    words = ["--backbone", "test_resnet", "--pretrained", "false", "--image-size", "32", "--batch-size", "8",
             "--epochs", "1", "--num-workers", "0", "--threads", "1", "--accelerator", "cpu"]  # fmt: skip
    fitted = run(python, program, "fit", photos, *words, "--name", "short", cwd=tmp_path, sources=False)
    assert fitted.returncode == 0, fitted.stderr
    assert fitted.stdout.splitlines()[-1] == f"run: {Path('runs') / 'short'}"
    assert "Warning" not in fitted.stderr  # of imports too, which most other tests have done before
    assert (tmp_path / "runs" / "short" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_fresh_environment_runs_the_demo(wheel: Path, tmp_path: Path) -> None:
    """As the README says for an environment of one's own; takes 5.5 GB and some minutes."""
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "environment")], check=True)
    pip = ["-m", "pip", "install", "--quiet"]
    if run(
        python, *pip, "--dry-run", "--no-deps", "--no-cache-dir", "filelock", cwd=tmp_path, sources=False
    ).returncode:
        pytest.skip("needs a package index")
    # The pinned versions: what a newer release breaks is found where the pins are raised.
    words = ["--constraint", ROOT / "constraints.txt", f"autotimm[demo] @ {wheel.as_uri()}"]
    installed = run(python, *pip, *words, cwd=tmp_path, sources=False)
    assert installed.returncode == 0, installed.stderr
    program = python.with_name("autotimm")
    demo = run(python, program, "demo", cwd=tmp_path, sources=False)
    assert demo.returncode == 0, demo.stderr
    assert demo.stdout.splitlines()[-1].startswith("run: ")
    doctor = run(python, program, "doctor", cwd=tmp_path, sources=False)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
