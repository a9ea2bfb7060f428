"""The table of backbones in the documentation matches the results of `tools/dense_backbones.py`."""

import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "dense_backbones.py"))
PAGE = TOOL["PAGE"].read_text(encoding="utf-8")
LIGHT = ["inception_v4", "vit_small_patch14_dinov2"]


def check(backbone: str) -> None:
    line, reasons = TOOL["row"](backbone)
    assert f"\n{line}\n" in PAGE, "run `python tools/dense_backbones.py`"
    assert all(f"\n- {reason}\n" in PAGE for reason in reasons), "run `python tools/dense_backbones.py`"


@pytest.mark.parametrize("backbone", LIGHT)
def test_rows_of_fast_backbones(backbone: str) -> None:
    check(backbone)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", sorted(TOOL["FAMILIES"].keys() - set(LIGHT)))
def test_rows_of_slow_backbones(backbone: str) -> None:
    check(backbone)


def test_table_has_one_line_per_backbone() -> None:
    part = TOOL["PART"].search(PAGE)[0]
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == list(TOOL["FAMILIES"])
    header = part.strip().splitlines()[0]
    assert header.split("`")[1::2] == list(TOOL["ARCHS"])
