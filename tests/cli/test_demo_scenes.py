"""The demo of detection and segmentation: drawn scenes, then three ordinary commands."""

import json
from pathlib import Path

import pytest

from autotimm.cli.main import main
from autotimm.data.image_io import read_image
from autotimm.runs.run import Run

TASKS = {
    "detection": ("test/mAP_50", 0.6),
    "instance": ("test/mask_mAP_50", 0.5),
    "segmentation": ("test/mIoU", 0.75),
}


def metrics(lines: list[str]) -> dict[str, float]:
    """The test metrics that were printed."""
    return {words[0]: float(words[1]) for line in lines if (words := line.split()) and words[0].startswith("test/")}


# Slow, since the commands and the toy data are tested separately in `make test`.
@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation", "instance"])
def test_demo_prints_and_runs_three_commands(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--task", task, "--out", str(tmp_path), "--epochs", "1", "--image-size", "64"]
    assert main(["demo", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("$ autotimm ")]
    assert [line.split()[2] for line in commands] == ["fit", "test", "predict"]
    assert metrics(lines).keys() >= {TASKS[task][0]}
    run = Run(lines[-1].removeprefix("run: "))
    assert run.config["task"] == task
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {f"{number:05d}.png" for number in range(8)}
    assert read_image(tmp_path / "new" / "00000.png").shape == (3, 3 * 64, 4 * 64)
    if task == "segmentation":
        assert (tmp_path / "labels" / "00000.png").is_file()
    else:
        assert len(json.loads((tmp_path / "found.json").read_text())["images"]) == 8


@pytest.mark.slow
def test_earlier_predictions_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "found.json").write_text("mine")
    (tmp_path / "pictures").mkdir()
    options = ["--task", "detection", "--out", str(tmp_path), "--epochs", "1", "--image-size", "32"]
    assert main(["demo", *options]) == 0
    assert (tmp_path / "found.json").read_text() == "mine"
    assert (tmp_path / "found-2.json").is_file()
    assert len(list((tmp_path / "pictures-2").iterdir())) == 8
    capsys.readouterr()


def test_unwritable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--task", "instance", "--out", str(tmp_path / "file")]) == 1
    assert "The scenes cannot be written to" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_demo_reaches_the_expected_metric(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--task", task, "--out", str(tmp_path)]) == 0
    name, least = TASKS[task]
    assert metrics(capsys.readouterr().out.splitlines())[name] >= least
