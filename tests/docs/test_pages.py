"""The pages of the documentation as they stand in the repository: their code runs, their links lead somewhere."""

import re
from pathlib import Path

import pytest

from autotimm.cli.main import VERBS, main
from autotimm.repro.streams import preserve_generators
from blocks import SHRINK, assert_ran, python_blocks, run_blocks

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
WITH_CODE = [name for name, page in zip(NAMES, PAGES, strict=True) if python_blocks(page)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{name} links to {link}, which has no such heading"


# With resnet18 each page takes many seconds; `make test` runs the one that is read first, with a smaller network.
SHORT = "README.md"


@pytest.mark.parametrize(
    ("name", "smaller"), [(SHORT, True), *(pytest.param(name, False, marks=pytest.mark.slow) for name in WITH_CODE)]
)
def test_code_runs(name: str, smaller: bool, tmp_path: Path) -> None:
    from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation

    n = 12 if name in (SHORT, "docs/start.md", "docs/guide/data.md") else 36  # at 128 pixels every image costs time
    write_toy_folder(tmp_path / "photos", n=n, num_classes=3, image_size=64, seed=0)
    scenes = {"train": 16, "val": 4, "test": 4}
    write_toy_objects(tmp_path / "objects", splits=scenes, image_size=64)
    write_toy_segmentation(tmp_path / "regions", splits=scenes, image_size=64)
    fill = with_test_resnet if smaller else str
    # CONTRIBUTING.md runs the contract suite, which has to see a loss fall.
    assert_ran(run_blocks(ROOT / name, tmp_path, fill, shrink=name != "CONTRIBUTING.md"), ROOT / name)


def with_test_resnet(code: str) -> str:
    """The code of the README with a network, named or the default, and images that take a tenth of the time."""
    size = "image_size=128"
    assert size in code
    fit = code.replace("epochs=5, image_size", 'backbone="test_resnet", epochs=5, image_size')
    return fit.replace('"resnet18"', '"test_resnet"').replace(size, "image_size=32")


SMALLER = ("--backbone", "test_resnet", "--image-size", "32")


@pytest.mark.parametrize(
    ("number", "words"), [(0, SMALLER), *(pytest.param(number, (), marks=pytest.mark.slow) for number in (0, 1))]
)
def test_configuration_files_are_accepted(
    number: int,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from autotimm.data.toy import write_toy_folder

    files = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs/guide/cli.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(files) == 2
    write_toy_folder(tmp_path / "photos", n=15, num_classes=3, image_size=32, seed=0)
    (tmp_path / "photos.yaml").write_text(files[number])
    monkeypatch.chdir(tmp_path)
    for name, value in SHRINK.items():
        monkeypatch.setenv(name, value)
    with preserve_generators():
        assert main(["fit", "--config", "photos.yaml", *words]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "run: runs/photos-001"


def test_llms_txt_lists_pages_that_there_are() -> None:
    links = re.findall(r"^- \[[^]]+\]\(([^)]+)\): \S", (ROOT / "docs/llms.txt").read_text(), flags=re.MULTILINE)
    assert len(links) >= 10
    assert not [link for link in links if not (ROOT / "docs" / link).is_file()]


def test_the_page_for_scripts_names_every_verb() -> None:
    text = (ROOT / "docs/guide/scripts.md").read_text()
    assert not [name for name in VERBS if f"autotimm {name} " not in text and f"`{name} " not in text]
