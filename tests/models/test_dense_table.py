"""The table of backbones in the documentation is what comes out when all of them are tried."""

import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "dense_backbones.py"))
PAGE = TOOL["PAGE"].read_text(encoding="utf-8")
LIGHT = ["mobilenetv3_small_100", "inception_v4", "vit_small_patch14_dinov2"]


def check(backbone: str) -> None:
    line, reasons = TOOL["row"](backbone)
    assert f"\n{line}\n" in PAGE, "run `python tools/dense_backbones.py`"
    assert all(f"\n- {reason}\n" in PAGE for reason in reasons), "run `python tools/dense_backbones.py`"


@pytest.mark.parametrize("backbone", LIGHT)
def test_backbones_that_take_little_time(backbone: str) -> None:
    check(backbone)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", sorted(TOOL["FAMILIES"].keys() - set(LIGHT)))
def test_backbones_that_take_longer(backbone: str) -> None:
    check(backbone)


def test_the_table_has_a_line_for_each_backbone_and_nothing_else() -> None:
    part = TOOL["PART"].search(PAGE)[0]
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == list(TOOL["FAMILIES"])
    header = part.strip().splitlines()[0]
    assert header.split("`")[1::2] == list(TOOL["ARCHS"])
