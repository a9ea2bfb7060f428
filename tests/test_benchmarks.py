"""The programs that print the figures we publish still run; what they print of a smoke run means nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
# The others take minutes, or photographs that are not part of the project.
QUICK = ["ledger", "pipeline", "startup"]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_benchmark(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    assert json.loads(run.stdout.splitlines()[-1])["benchmark"] == name
