"""Every example runs, as its reader would run it."""

from pathlib import Path

import pytest

import warm

ROOT = Path(__file__).parents[1]
# Most of a minute until something is found, or several trainings.
LONG = {"detect_objects.py", "outline_objects.py", "segment_images.py", "reproducibility.py", "train_folder.py"}
EXAMPLES = [
    pytest.param(path, id=path.relative_to(ROOT).as_posix(), marks=pytest.mark.slow if path.name in LONG else ())
    for path in sorted((ROOT / "examples").rglob("*.py"))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example: Path, tmp_path: Path) -> None:
    how = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if example.name.startswith("test_") else []
    run = warm.run([*how, example], tmp_path)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    assert "Warning" not in run.stderr, run.stderr
