"""The house rules that a linter cannot see."""

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import autotimm

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "autotimm"
FILES = sorted(SRC.rglob("*.py"))
PARTS = autotimm._PARTS  # modules that are reached as attributes


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", autotimm.__all__)
def test_public_names_load_and_explain_themselves(name: str) -> None:
    assert (getattr(autotimm, name).__doc__ or "").strip()


@pytest.mark.parametrize("package", ["", "doctor"])
def test_type_checkers_see_each_lazy_name(package: str) -> None:
    """A stub hides `import X` and `from .y import X` from type checkers, unless it says `as X`."""
    stub = ast.parse((SRC / package / "__init__.pyi").read_text())
    aliases = [alias for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.name == alias.asname for alias in aliases)
    module = import_module(f"autotimm.{package}".rstrip("."))
    assert sorted(alias.name for alias in aliases) == sorted({*module.__all__, *(PARTS if not package else ())})


def test_a_star_import_takes_the_public_names_and_no_part() -> None:
    names: dict[str, object] = {}
    exec("from autotimm import *", names)
    assert names.keys() - {"__builtins__"} == set(autotimm.__all__)
    assert all(isinstance(getattr(autotimm, part), ModuleType) for part in PARTS)


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


@pytest.mark.parametrize(
    ("before", "given", "kept"),
    [("", {}, "3000"), ("", {"GOMP_SPINCOUNT": "7"}, "7"), ("", {"OMP_WAIT_POLICY": "active"}, "None"),
     ("import torch;", {}, "None")],
)  # fmt: skip
def test_threads_that_wait_soon_sleep_unless_it_is_said_otherwise(
    before: str, given: dict[str, str], kept: str
) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.endswith(("WAIT_POLICY", "SPINCOUNT"))}
    code = f"{before}import autotimm, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert subprocess.check_output([sys.executable, "-c", code], env=variables | given, text=True).strip() == kept


def test_the_version_is_that_of_the_installed_package() -> None:
    assert run_python("from importlib.metadata import version; print(version('autotimm'))") == autotimm.__version__


def test_every_file_has_a_docstring() -> None:
    assert not [path for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]


def test_no_exception_is_swallowed_wholesale() -> None:
    """A handler that catches everything, to tidy up, raises it again."""
    handlers = [
        (path.relative_to(SRC), node.lineno)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and ast.unparse(node.body[-1]) != "raise"
    ]
    assert handlers == []


def test_file_names_are_unique() -> None:
    """Two files of one name only where a verb of the command line names its part of the package."""
    verbs = {path.name for path in (SRC / "cli").glob("*.py")}
    names = [path.name for path in FILES if path.parent.name != "cli" and path.name != "__init__.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    parts = {f"{path.name}.py" for path in SRC.iterdir() if path.is_dir()} | set(names)
    named = {
        "diff",
        "doctor",
        "explain",
        "export",
        "extend",
        "fit",
        "predict",
        "report",
        "resume",
        "selfcheck",
        "verify",
    }
    assert verbs & parts <= {f"{name}.py" for name in named}


def test_the_map_in_contributing_shows_the_layers() -> None:
    """The layers stand in pyproject.toml; the map repeats them for readers, top first."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib needs Python 3.11")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    shown = re.search(r"^```text\nsrc/autotimm/\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    assert shown
    rows = re.findall(r"^ +(\d+) +([a-z_, ]+?) {2,}", shown[1], flags=re.MULTILINE)
    assert [(int(number), sorted(names.split(", "))) for number, names in rows] == [
        (len(layers) - index, sorted(re.split(r" [|:] ", layer))) for index, layer in enumerate(layers)
    ]
    assert len(layers) <= 11


def test_the_lower_bounds_have_reasons() -> None:
    """Every dependency, also of an extra, has a line with a lower bound and a comment that says why.

    The tools of ``dev`` need no reason: users do not install them.
    """
    text = re.sub(r"^dev = \[\n.*?^\]\n", "", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE | re.DOTALL)
    dependencies = re.search(r"^dependencies = \[\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    extras = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", text, flags=re.MULTILINE | re.DOTALL)
    assert dependencies
    assert extras
    for listed, expected in ((dependencies[1], 18), (extras[1], 20)):
        lines = [
            line for line in listed.splitlines() if not line.lstrip().startswith(("#", '"autotimm[')) and '"' in line
        ]
        assert len(lines) >= expected
        assert not [line for line in lines if not re.match(r'[^"]*"[^"<]+>=[\d.]+"\]?,? +# \S', line)]
