"""The table of inputs: each row names a test that is there, and that expects an error where the row says so."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/inputs.md"
ROWS = re.findall(r"^\| (?!input|---)(.+?) \| (.+?) <!-- (\S+)::(\S+) --> \|$", PAGE.read_text(), flags=re.MULTILINE)
OUTCOMES = ("read", "said", "left out", "refused")


@cache
def functions_of(path: Path) -> dict[str, str]:
    """The source of each test function of a file, by its name."""
    source = path.read_text()
    tree = ast.parse(source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {node.name: ast.get_source_segment(source, node) or "" for node in functions}


def test_the_table_is_long_and_names_each_input_once() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if re.match(r"\| (?!input|---)", line)]
    assert len(lines) == len(ROWS) >= 60
    assert len({(path, test) for _, _, path, test in ROWS}) == len({row[0] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("given", "outcome", "path", "test"), ROWS, ids=[row[3] for row in ROWS])
def test_each_row_is_checked_by_its_test(given: str, outcome: str, path: str, test: str) -> None:
    source = functions_of((ROOT / "tests/data" / path).resolve()).get(test)
    assert source is not None, f"{given}: there is no {test} in {path}"
    assert outcome.startswith(OUTCOMES)
    if outcome.startswith("refused"):
        assert re.search(r"raises\(|refused\(", source), f"{test} expects no error"
    if outcome.startswith("said"):
        assert re.search(r"notice|line|message|odd|problems|\[1\]", source), f"{test} looks at no notice"
