"""The house rules that a linter cannot see."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import autotimm

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "autotimm"
INIT = ast.parse((SRC / "__init__.py").read_text())


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", autotimm.__all__)
def test_public_names_load_and_explain_themselves(name: str) -> None:
    assert (getattr(autotimm, name).__doc__ or "").strip()


def test_the_table_and_the_block_for_type_checkers_agree() -> None:
    block = next(node for node in INIT.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == autotimm._HOME
    assert sorted(autotimm._HOME) == sorted(autotimm.__all__)


def test_dir_names_what_there_is() -> None:
    assert set(autotimm.__all__) < set(dir(autotimm))
    assert autotimm.repro.key(1, "order", 0) == autotimm.repro.key(1, "order", 0)


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"autotimm has no `ImageClasifier`. Did you mean 'ImageClassifier'"):
        autotimm.ImageClasifier  # noqa: B018 - reading the attribute is the test
    with pytest.raises(AttributeError, match=r"has no `zzz`\.$"):
        autotimm.zzz  # noqa: B018


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = ("torch", "numpy", "timm", "pytorch_lightning", "torchvision", "torchmetrics", "PIL", "rich")
    loaded = run_python(f"import sys, autotimm; print([name for name in {heavy} if name in sys.modules])")
    assert loaded == "[]"


def test_the_version_is_that_of_the_installed_package() -> None:
    assert run_python("from importlib.metadata import version; print(version('autotimm'))") == autotimm.__version__


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: path.relative_to(SRC).as_posix())
class TestEachFile:
    def test_is_short(self, path: Path) -> None:
        assert len(path.read_text().splitlines()) <= 300

    def test_says_what_it_is_for(self, path: Path) -> None:
        assert ast.get_docstring(ast.parse(path.read_text()))

    def test_swallows_no_exception_wholesale(self, path: Path) -> None:
        """Whoever catches everything, to tidy up, raises it again."""
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                everything = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
                assert not everything or ast.unparse(node.body[-1]) == "raise", f"line {node.lineno}"


def test_the_lower_bounds_have_reasons() -> None:
    """Every runtime dependency has a lower bound, and a comment that says why."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    assert listed
    lines = [line for line in listed[1].splitlines() if line.strip().startswith('"')]
    assert len(lines) == 16
    assert not [line for line in lines if not re.search(r'>=[\d.]+", +# \S+', line)]
