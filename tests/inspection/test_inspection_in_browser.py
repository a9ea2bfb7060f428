"""The page of an inspection in a browser: no error, and it fits a phone."""

from pathlib import Path

import pytest

from autotimm import inspect_data
from autotimm.data.toy import write_toy_objects
from browser import in_a_browser, visit


@pytest.mark.slow
@in_a_browser
def test_a_page_has_no_errors(tmp_path: Path) -> None:
    root = write_toy_objects(tmp_path / "toy", splits={"train": 12, "val": 4}, image_size=64, num_classes=2, seed=2)
    copy = root / "val" / "00000.png"
    copy.write_bytes((root / "train" / "00000.png").read_bytes())
    inspect_data(root, task="detection", image_size=64).write_page(tmp_path / "page.html")
    page, problems = visit(tmp_path, "page.html", tmp_path / "profile")
    assert problems == []
    assert page.count('class="card"') == 2
    assert 'aria-label="Classes by split"' in page
