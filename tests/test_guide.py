"""The user's guide is a contract: each of its Python blocks runs as it is written, in order, sharing earlier names.

The harness supplies ``./data``, shrinks the training, and fills the literal ``...`` of the closing quick reference.
"""

import os
import re
from pathlib import Path

import pytest

from blocks import assert_ran, python_blocks, run_blocks
from shared_data import SHARED, WANT

ROOT = Path(__file__).parents[1]
GUIDE = SHARED / "guide.md"
pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason=f"{WANT}guide.md")


def filled(code: str) -> str:
    """Replace the literal ``...`` of the quick reference by arguments; nothing else is touched."""
    code = code.replace("ImageClassifier(...", 'ImageClassifier("test_resnet", 10')
    return code.replace("AutoTrainer(...", "AutoTrainer(1")


def test_every_block_is_found_and_filled() -> None:
    blocks = python_blocks(GUIDE)
    assert len(blocks) == len(re.findall(r"^```python$", GUIDE.read_text(), flags=re.MULTILINE)) >= 15
    assert [block.heading for block in blocks if "..." in block.code] == ["Quick Reference"]
    assert not [block.heading for block in blocks if "..." in filled(block.code)]


def test_every_block_runs_as_written(tmp_path: Path) -> None:
    from autotimm.data.toy import write_toy_folder

    write_toy_folder(tmp_path / "data", n=20, num_classes=10, image_size=32, seed=0)
    assert_ran(run_blocks(GUIDE, tmp_path, filled), GUIDE)


def test_links_resolve_from_a_page_of_the_guide() -> None:
    """The guide is written for a folder two below docs/, such as docs/guide/training/."""
    links = re.findall(r"\]\(([^)#]+\.md)", GUIDE.read_text())
    assert len(links) == 3
    for link in links:
        assert Path(os.path.normpath(ROOT / "docs" / "guide" / "any" / link)).exists(), link
