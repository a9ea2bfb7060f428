"""The programs that print the published figures run; what they print with `--quick` means nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import warm

FOLDER = Path(__file__).parents[1] / "benchmarks"
BENCHMARKS = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_quick_run_draws_its_own_data_and_reports(name: str, tmp_path: Path) -> None:
    program = FOLDER / f"{name}.py"
    # Threads that wait for each other on busy cores take minutes for what one does in seconds.
    threads = ["--threads", "1"] if 'add_argument("--threads"' in program.read_text() else []
    command = [sys.executable, str(program), "--quick", *threads]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    reports = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert name in [report["benchmark"] for report in reports]
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_an_error(tmp_path: Path) -> None:
    run = warm.run([FOLDER / "invariance.py", "--data", tmp_path / "none"], tmp_path)
    assert run.returncode == 1
    assert run.stderr.startswith("There is no folder")
