"""The site: it builds without a warning, says everything that is public, loads nothing from elsewhere, and works."""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import autotimm
from browser import in_a_browser, visit

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = [
    "data",
    "losses",
    "metrics",
    "models",
    "optim",
    "repro",
    "tasks",
    "testing",
    "doctor",
    "selfcheck",
    "studies",
]

pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
pytest.importorskip("pydata_sphinx_theme", reason="the extra `docs` is not installed")
pytest.importorskip("myst_parser", reason="the extra `docs` is not installed")


def build(docs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` runs, elsewhere."""
    command = [sys.executable, "-m", "sphinx", "-E", "-q", "-W", "--keep-going", "-b", "html"]
    command += ["-d", str(out.parent / "doctrees"), str(docs), str(out)]
    return subprocess.run(command, capture_output=True, text=True)


def copy_of_the_docs(root: Path) -> Path:
    """A copy to build: the build writes pages below docs/, and reads some from the root of the repository."""
    shutil.copytree(DOCS, root / "docs", ignore=shutil.ignore_patterns("generated", "__pycache__"))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "README.md", "Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    for name in ("benchmarks", "examples", "src", "tests"):
        (root / name).symlink_to(ROOT / name)
    return root / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    out = root / "site"
    run = build(copy_of_the_docs(root), out)
    assert run.returncode == 0, run.stderr
    return out


# ---- what is in it


def test_public_names_are_listed() -> None:
    """Quick, and without a build: the build says the same, and more."""
    pages = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    blocks = re.findall(r"^```\{public-names\} (\S+)\n(.*?)^```$", pages, flags=re.MULTILINE | re.DOTALL)
    listed = [name for package, body in blocks if package == "autotimm" for name in re.findall(r"^\w+$", body, re.M)]
    assert sorted(listed) == sorted(autotimm.__all__)


def test_classes_that_calls_return_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick, and without a build: a class that only type checkers see ends the build."""
    monkeypatch.syspath_prepend(DOCS / "_ext")
    listed = [path for _, paths in import_module("autotimm_site").listings(DOCS) for path in paths]
    assert {"autotimm.Run", "autotimm.runs.explain.Explanation"} <= {*listed}


@pytest.mark.slow
def test_every_public_name_has_a_page(site: Path) -> None:
    for package in ["autotimm", *(f"autotimm.{name}" for name in PACKAGES)]:
        for name in import_module(package).__all__:
            path = f"autotimm.{name}" if name in autotimm.__all__ else f"{package}.{name}"
            page = site / "api" / "generated" / f"{path}.html"
            assert page.exists(), f"{path} has no page"
            assert f'id="{path}"' in page.read_text(), f"{page.name} does not describe it"


@pytest.mark.slow
def test_every_verb_and_option_is_explained(site: Path) -> None:
    from autotimm.cli.main import VERBS
    from autotimm.config import options

    verbs, fit = ((site / page).read_text() for page in ("reference/verbs.html", "guide/cli.html"))
    for name, verb in VERBS.items():
        assert f'<section id="{name}">' in verbs
        for option in verb.options:
            flag = f"--{option.replace('_', '-')}"
            assert f'id="{name}-{flag.strip("-")}"' in (fit if name == "fit" and option in options() else verbs), flag


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    tags = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"(?:https?:)?//[^>]*>")
    for page in site.rglob("*.html"):
        assert not tags.findall(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//", style.read_text()), style


@pytest.mark.slow
def test_a_broken_reference_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for name in ("_ext", "_static"):
        shutil.copytree(DOCS / name, docs / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conf.py", "llms.txt"):
        shutil.copy(DOCS / name, docs)
    (docs / "api").mkdir()
    names = "\n".join(name for name in autotimm.__all__ if name != "study")
    (docs / "api" / "all.md").write_text(
        f"---\norphan: true\n---\n# All\n\n```{{public-names}} autotimm\n{names}\n```\n"
    )
    broken = ["[text](no-such-page.md)", "[text](#no-such-heading)", "![text](no-such-picture.png)"]
    broken += ["{class}`autotimm.NoSuchClass`", "{option}`autotimm fit --no-such-option`"]
    (docs / "index.md").write_text("\n\n".join(["# Title", *broken]))
    run = build(docs, tmp_path / "site")
    assert run.returncode == 1
    warnings = [line for line in run.stderr.splitlines() if "WARNING" in line]
    assert len([line for line in warnings if re.search("no-?such", line, re.IGNORECASE)]) == len(broken)
    others = [line for line in warnings if not re.search("no-?such", line, re.IGNORECASE)]
    assert others == ["WARNING: autotimm.study is public, and no page below docs/api lists it"]


# ---- in a browser


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize(
    "page", ["index.html", "guide/models/object-detection.html", "api/generated/autotimm.Run.html"]
)
def test_a_page_opens_without_an_error(site: Path, page: str, tmp_path: Path) -> None:
    shown, faults = visit(site, page, tmp_path)
    assert faults == []
    assert "<h1>" in shown
    assert 'class="bd-header' in shown  # the theme is there


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("word", ["resume", "AutoTrainer", "lr-find"])
def test_the_search_finds_a_word(site: Path, word: str, tmp_path: Path) -> None:
    shown, faults = visit(site, f"search.html?q={word}", tmp_path)
    assert faults == []
    assert re.search(r"found \d+ pages? matching", shown)
    assert re.search(r'<ul [^>]*class="search"[^>]*><li[^>]*><a href="', shown)


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize(
    "fault",
    ["<script>throw Error('fault')</script>", '<script src="gone.js"></script>', '<img src="http://example.org/a">'],
)
def test_an_error_would_be_seen(fault: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(f"<!doctype html><title>fault</title>{fault}")
    (tmp_path / "favicon.ico").touch()
    assert len(visit(tmp_path, "index.html", tmp_path / "profile")[1]) == 1
