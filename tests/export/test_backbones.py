"""The table of backbones in the guide is what the benchmark prints, and covers many families."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "export.py"
ROW = re.compile(r"^\| (\w+) \| (\w+) \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", re.MULTILINE)


def rows(text: str) -> list[tuple[str, str, bool, bool]]:
    """Backbone, family, and whether it can be exported to ONNX and to torch."""
    found = [row for row in ROW.findall(text) if row[0] != "backbone"]
    return [(name, family, onnx[0].isdigit(), to[0].isdigit()) for name, family, onnx, to in found]


def test_table_covers_the_families_of_the_benchmark() -> None:
    listed = rows((ROOT / "docs" / "guide" / "export.md").read_text())
    block = re.search(r"^BACKBONES = \{(.*?)\}", PROGRAM.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert block
    assert [row[0] for row in listed] == re.findall(r'"(\w+)":', block[1])
    assert len(listed) >= 12
    assert len({row[1] for row in listed}) >= 8


def test_table_of_formats_has_a_difference_and_a_size_in_each_cell() -> None:
    guide = (ROOT / "docs" / "guide" / "export.md").read_text()
    table = guide[guide.index("| model | family or task | ONNX |") :].splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in table]
    assert len({row[1] for row in cells}) >= 8
    for name, _, *formats in cells:
        assert len(formats) == 6, name
        assert all(re.fullmatch(r"\de[+-]\d\d, \d+\.\d MB|no \(\d+\)", cell) for cell in formats), name


@pytest.mark.slow
def test_table_is_what_the_benchmark_finds() -> None:
    """If this fails, run `python benchmarks/export.py` and copy the first table into docs/guide/export.md."""
    listed = rows((ROOT / "docs" / "guide" / "export.md").read_text())
    run = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert rows(run.stdout) == listed
