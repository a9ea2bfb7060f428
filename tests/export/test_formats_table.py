"""The table of formats in the guide is what the benchmark prints, and covers many families and every `arch`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from _networks import ARCHS, BACKBONES, TILED, family_of

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "export_formats.py"
HEAD = "| model | family or task | ONNX |"
CELL = re.compile(r"(\d)e([+-]\d\d), (\d+\.\d) MB|no \((\d+)\)")


def rows_in(text: str) -> dict[str, list[str]]:
    """The cells behind the name of each model."""
    lines = text[text.index(HEAD) :].split("\n\n")[0].splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in lines]
    return {name: rest for name, *rest in cells}


def test_table_covers_backbones_and_archs() -> None:
    listed = rows_in((ROOT / "docs" / "guide" / "export.md").read_text())
    assert list(listed) == [*BACKBONES, *ARCHS, *TILED]
    assert len(BACKBONES) >= 12
    assert len({family_of(name) for name in BACKBONES}) >= 8
    assert {name: listed[name][0] for name in BACKBONES} == {name: family_of(name) for name in BACKBONES}
    for name, (_, *formats) in listed.items():
        assert len(formats) == 6, name
        assert all(CELL.fullmatch(cell) for cell in formats), name


def test_every_refusal_of_the_table_has_a_reason_below_it() -> None:
    guide = (ROOT / "docs" / "guide" / "export.md").read_text()
    numbers = set(re.findall(r"no \((\d+)\) \|", guide))
    reasons = guide[guide.index(HEAD) :].partition("\n\n")[2]
    assert all(re.search(rf"^{number}\. \w", reasons, flags=re.MULTILINE) for number in numbers)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "fpn", "fcos", "mask_rcnn", "fcos in tiles"])
def test_table_is_what_the_benchmark_finds(model: str) -> None:
    """If this fails, run `python benchmarks/export_formats.py` and copy the table into docs/guide/export.md."""
    listed = rows_in((ROOT / "docs" / "guide" / "export.md").read_text())
    command = [sys.executable, str(PROGRAM), "--models", model]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    family, *formats = rows_in(run.stdout)[model]
    assert family == listed[model][0]
    for mine, theirs in zip(formats, listed[model][1:], strict=True):
        # Digits of differences are those of a processor; whether there is a file and how large it is are not.
        assert CELL.fullmatch(mine)[3] == CELL.fullmatch(theirs)[3], (mine, theirs)
