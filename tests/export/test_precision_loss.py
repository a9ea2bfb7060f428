"""Fewer bits that cost the metric: no file is left of a network that only 32 bits can hold."""

import shutil
from pathlib import Path

import pytest
import torch

from autotimm import Run
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder
from training import classifier, toy_data, trainer

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}


@pytest.fixture(scope="module")
def steep(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained classifier, computed rewritten as the same function with numbers that are far apart.

    In each block one channel is a million times as large, and the next convolution divides it by as much. Powers of two
    change no bit with 32 bits. 16 bits end at 65504, and one scale of 8 bits leaves 0 of all other channels.
    """
    folder = tmp_path_factory.mktemp("steep")
    photos = write_toy_folder(folder / "photos", n=80, num_classes=3, image_size=48, seed=7)
    # Resized by picking pixels: half of the graph, and of the time of an export, is left.
    data = toy_data(photos, val_split=0.5, interpolation="nearest")
    trainer(8, run_dir=folder / "runs" / "trained").fit(classifier(), datamodule=data)
    trained, path = Run(folder / "runs" / "trained"), folder / "runs" / "steep"
    shutil.copytree(trained.path, path)
    checkpoint = torch.load(path / "checkpoints" / "best.ckpt", weights_only=True)
    state, scale = checkpoint["state_dict"], 2.0**20
    for layer in range(1, 5):
        block = f"network.backbone.layer{layer}.0"
        channel = int(state[f"{block}.bn1.bias"].argmax())
        for name in ("weight", "bias"):
            state[f"{block}.bn1.{name}"][channel] *= scale
        state[f"{block}.conv2.weight"][:, channel] /= scale
    torch.save(checkpoint, path / "checkpoints" / "best.ckpt")
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        same = trained.model().network(images), Run(path).model().network(images)
    torch.testing.assert_close(*same, rtol=0, atol=1e-4)
    return Run(path)


@pytest.mark.parametrize(
    ("to", "precision"),
    [
        ("torch", "fp16"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("onnx", "int8"), ("onnx", "fp16"), ("openvino", "int8"))
        ),
    ],
)
def test_metric_beyond_the_tolerance_leaves_no_file(
    to: str, precision: str, steep: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"m{SUFFIXES[to]}"
    command = ["export", str(steep.path), "--to", to, "--precision", precision, "--out", str(out)]
    assert main([*command, "--tolerance", "0.05"]) == 4
    error = capsys.readouterr().err
    assert "must agree with the run within 0.05. On 32 validation images accuracy is" in error
    assert "No file was written." in error
    assert not list(tmp_path.iterdir())


def test_with_32_bits_it_is_kept(steep: Run, tmp_path: Path) -> None:
    check = steep.export(tmp_path / "m.pt2", to="torch").check
    accuracy = check.metrics["accuracy"]
    assert accuracy["run"] == accuracy["file"] > 0.7
