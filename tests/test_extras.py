"""Optional packages that are not installed: the exit code is 2 and the error names the line that installs them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from environments import ROOT, linked_environment, run

FIT = ["--backbone", "test_resnet", "--pretrained", "false", "--image-size", "32", "--batch-size", "8", "--epochs", "1",
       "--num-workers", "0", "--threads", "1", "--accelerator", "cpu", "--val-split", "0.25"]  # fmt: skip
OPTIONAL = [
    "scikit-learn",
    "tensorboard",
    "wandb",
    "mlflow",
    "matplotlib",
    "faster-coco-eval",
    "ray",
    "cleanlab",
    "captum",
    "model-signing",
    "starlette",
    "pylance",
    "litdata",
    "pyarrow",
]
# Extras of features to come. Whoever writes the feature moves its extra to the table of the README.
PLANNED: set[str] = set()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment without optional packages."""
    return linked_environment(tmp_path_factory.mktemp("bare") / "environment", OPTIONAL)


COMMANDS = {
    "demo": ["demo"],
    "tensorboard": ["fit", "PHOTOS", *FIT, "--loggers", "tensorboard"],
    "wandb": ["fit", "PHOTOS", *FIT, "--loggers", "wandb"],
    "mlflow": ["fit", "PHOTOS", *FIT, "--loggers", "mlflow"],
    "ray": ["study", "PHOTOS", *FIT, "--launcher", "ray"],
    "serve": ["serve", "runs/photos-001"],
    "explain": ["explain", "runs/photos-001", "PHOTOS"],
    "proof": ["seal", "runs/photos-001", "--key", "key.pem"],
    "inspect": ["inspect", "PHOTOS", "--run", "runs/photos-001"],
    "lance": ["pack", "PHOTOS", "--to", "lance", "--out", "photos.lance"],
    "litdata": ["pack", "PHOTOS", "--to", "litdata", "--out", "photos.litdata"],
    "parquet": ["fit", "PARQUET", *FIT],
}
ALL_COMMANDS = """
import contextlib, io, json, os, sys
from pathlib import Path
from autotimm.cli.main import main

ended = {}
for extra, words in json.loads(sys.argv[1]).items():
    Path(extra).mkdir()
    os.chdir(extra)
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(words)
    os.chdir("..")
    ended[extra] = code, errors.getvalue()
print(json.dumps(ended))
exec(sys.argv[2])
"""


@pytest.fixture(scope="module")
def ended(bare: Path, toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A folder of a folder per command, by extra the exit code and the errors, and what FALL_BACK prints.

    One process imports torch once.
    """
    folder = tmp_path_factory.mktemp("commands")
    (folder / "photos.parquet").touch()
    commands = (
        json.dumps(COMMANDS).replace("PHOTOS", str(toy_folder)).replace("PARQUET", str(folder / "photos.parquet"))
    )
    done = run(bare, "-c", ALL_COMMANDS, commands, FALL_BACK, cwd=folder, sources=True)
    assert done.returncode == 0, done.stderr
    *_, outcomes, fallen_back = done.stdout.splitlines()
    return folder, json.loads(outcomes), fallen_back


@pytest.mark.parametrize("extra", COMMANDS)
def test_missing_extra_is_a_usage_error(extra: str, ended: tuple[Path, dict[str, Any], str]) -> None:
    folder, outcomes, _ = ended
    code, errors = outcomes[extra]
    assert code == 2, errors
    assert re.fullmatch(rf"error: [^.]+: pip install 'autotimm\[{extra}\]'", errors.splitlines()[-1])
    assert not [path for path in (folder / extra).rglob("*") if path.is_file()], "a failed start left files behind"


FALL_BACK = """
from pathlib import Path
import torch
from autotimm.metrics.scores import MeanAP
from autotimm.studies.study_report import draw

boxes, labels = torch.tensor([[2.0, 2.0, 20.0, 20.0]]), torch.tensor([0])
metric = MeanAP(1)
metric.update([{"boxes": boxes, "labels": labels, "scores": torch.ones(1)}], [{"boxes": boxes, "labels": labels}])
print(float(metric.compute()["mean"]), draw(Path("plot.png"), None))
"""


def test_what_can_do_without_its_extra_does(ended: tuple[Path, dict[str, Any], str]) -> None:
    """Without ``coco`` pycocotools computes the same (see test_scores.py); without ``plot`` a study has no picture.

    Hours of training must not end in an error because of a picture.
    """
    assert ended[2].split() == ["1.0", "False"]


def declared_extras() -> dict[str, str]:
    """The lines of ``project.optional-dependencies``, by name."""
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", text, flags=re.MULTILINE | re.DOTALL)
    assert block
    return dict(re.findall(r"^(\w+) = (.*?)(?=^\w+ = |\Z)", block[1], flags=re.MULTILINE | re.DOTALL))


def test_the_readme_lists_the_extras() -> None:
    section = re.search(r"^## Install\n(.*?)^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert section
    listed = set(re.findall(r"^\| `(\w+)` \|", section[1], flags=re.MULTILINE))
    assert listed | PLANNED == declared_extras().keys() - {"dev"}
    assert not listed & PLANNED


def test_errors_name_extras_that_there_are() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r'missing_extra\([^)]*"(\w+)"\)', sources))
    assert {"demo", "onnx", "plot", "ray"} <= named <= declared_extras().keys() - PLANNED
