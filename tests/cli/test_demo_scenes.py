"""The demo of tasks with boxes, outlines and regions: drawn scenes, then three ordinary commands."""

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
    """What ``test`` printed."""
    return {words[0]: float(words[1]) for line in lines if (words := line.split()) and words[0].startswith("test/")}


# The parts of it, the commands on toy scenes and the data, are tested one by one in `make test`.
@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation", "instance"])
def test_it_shows_and_runs_three_commands(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--task", task, "--out", str(tmp_path), "--epochs", "1", "--image-size", "64"]
    assert main(["demo", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("$ autotimm ")]
    assert [line.split()[2] for line in commands] == ["fit", "test", "predict"]
    assert metrics(lines).keys() >= {TASKS[task][0]}
    run = Run(lines[-1].removeprefix("run: "))
    assert run.config["task"] == task
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {f"{one:05d}.png" for one in range(8)}
    assert read_image(tmp_path / "new" / "00000.png").shape == (3, 3 * 64, 4 * 64)
    if task == "segmentation":
        assert (tmp_path / "labels" / "00000.png").is_file()
    else:
        assert len(json.loads((tmp_path / "found.json").read_text())["images"]) == 8


@pytest.mark.slow
def test_what_an_earlier_demo_predicted_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "found.json").write_text("mine")
    (tmp_path / "pictures").mkdir()
    options = ["--task", "detection", "--out", str(tmp_path), "--epochs", "1", "--image-size", "32"]
    assert main(["demo", *options]) == 0
    assert (tmp_path / "found.json").read_text() == "mine"
    assert (tmp_path / "found-2.json").is_file()
    assert len(list((tmp_path / "pictures-2").iterdir())) == 8
    capsys.readouterr()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--task", "instance", "--out", str(tmp_path / "file")]) == 1
    assert "The scenes cannot be written to" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_it_learns(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--task", task, "--out", str(tmp_path)]) == 0
    name, least = TASKS[task]
    assert metrics(capsys.readouterr().out.splitlines())[name] >= least
