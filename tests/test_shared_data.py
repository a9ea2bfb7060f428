"""A run without the real data says in one line how many tests wanted them."""

import shutil
from pathlib import Path

import warm

TESTS = Path(__file__).parent
FILE = """
import pytest

@pytest.mark.parametrize("name", ["cls_clothing", "seg_dhcn"])
def test_real_data(real, name):
    assert real(name).is_dir()

def test_another_reason():
    pytest.skip("needs a CUDA device")
"""


def test_skipped_tests_are_counted(tmp_path: Path) -> None:
    tests = tmp_path / "repository" / "tests"
    tests.mkdir(parents=True)
    for name in ("conftest.py", "shared_data.py"):
        shutil.copy(TESTS / name, tests)
    (tests / "test_own.py").write_text(FILE)
    (tests.parent / "pytest.ini").write_text("[pytest]\npythonpath = tests\n")

    def run() -> list[str]:
        done = warm.run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"], tests.parent)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    assert "2 tests were skipped for want of real data in ../shared." in run()
    (tmp_path / "shared" / "data" / "cls_clothing").mkdir(parents=True)
    assert "1 test was skipped for want of real data in ../shared." in run()
