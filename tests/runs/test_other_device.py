"""A run on a machine that is not the one it was trained on."""

import pytest
import torch

import autotimm
from autotimm import Run

SMALL = {"backbone": "test_resnet", "pretrained": False, "image_size": 32, "batch_size": 8, "num_workers": 0,
         "threads": 1, "accelerator": "cpu", "progress": False, "val_split": 0.25, "epochs": 1}  # fmt: skip


@pytest.fixture(scope="module")
def run(toy_folder, tmp_path_factory):
    return autotimm.fit(toy_folder, out=str(tmp_path_factory.mktemp("out")), **SMALL)


def recorded_as(run: Run, accelerator: str) -> None:
    file = run.path / "config.yaml"
    lines = [f"accelerator: {accelerator}" if line.startswith("accelerator:") else line
             for line in file.read_text().splitlines()]  # fmt: skip
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="has a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_device_that_is_not_here(run, toy_folder, capsys, accelerator):
    recorded_as(run, "cpu")
    before = run.validate()
    first = next(toy_folder.rglob("*.png"))
    seen = run.predict(first)[0]
    assert "lacks" not in capsys.readouterr().err
    recorded_as(run, accelerator)
    assert run.config["accelerator"] == accelerator
    assert run.validate() == before
    said = capsys.readouterr().err
    assert said.count(f"the run was made with accelerator {accelerator}, which this machine lacks; using cpu") == 1
    assert run.predict(first)[0] == seen
