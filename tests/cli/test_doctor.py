"""``autotimm doctor`` on tasks, files and mistakes."""

from pathlib import Path

import pytest
import torch

import warm
from autotimm.cli.main import main

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch is built without CUDA")
SMALL = ["--backbone", "test_resnet", "--image-size", "64", "--batch-size", "2"]
MODULE = '''
from torch.nn import functional as F
from autotimm import ImageClassifier, ObjectDetector, Step


def blurred(logits, targets):
    wide = F.interpolate(logits[:, None, None], size=(1, 30), mode="bicubic")
    return F.cross_entropy(wide.flatten(1), targets)


def pixels(logits, targets):
    return F.cross_entropy(logits, targets)


class Other(ImageClassifier):
    """A user's own class."""


class Blurred(ObjectDetector):
    """A detector with a loss on enlarged feature maps."""

    def step(self, batch, stage):
        large = F.interpolate(self.network.maps(batch.images)[0], scale_factor=2, mode="bicubic")
        return Step({**super().step(batch, stage).losses, "large": large.mean()})
'''


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a module of the user's own, and without environment variables that are a problem."""
    (tmp_path / "doctors_loss.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def test_report_of_a_new_process_without_problems(tmp_path: Path):
    done = warm.run(["-m", "autotimm", "doctor", *SMALL], tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if line and not line.startswith(" ")] == [
        "Versions",
        "Switches",
        "Machine",
        "One training step",
    ]
    assert "a step of 2 x 3 x 64 x 64, traced for CUDA" in done.stdout or torch.cuda.is_available()
    assert "problem" not in done.stdout
    assert not list(tmp_path.glob("runs"))


def report(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["doctor", *words])
    return code, " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "how"),
    [
        (["--task", "detection"], "calculated on the CPU as if on CUDA"),
        (["--task", "detection", "--arch", "retinanet"], "calculated on the CPU"),
        (["--task", "detection", "--arch", "faster_rcnn"], "calculated on the CPU"),
        (["--task", "instance"], "calculated on the CPU"),
        (["--task", "segmentation", "--arch", "unet"], "traced for CUDA"),
    ],
)
def test_dense_tasks(capsys, words: list[str], how: str):
    code, text = report(capsys, *SMALL, "--width", "64", *words)
    assert code == 0
    assert f"a step of 2 x 3 x 64 x 64, {how}" in text
    assert "calls only deterministic operators" in text


def test_image_size_defaults_to_that_of_the_task(capsys):
    _, text = report(capsys, "--task", "segmentation", "--backbone", "test_resnet", "--width", "64")
    assert "a step of 8 x 3 x 512 x 512" in text


def test_non_deterministic_pixel_loss(capsys, tmp_path: Path):
    (tmp_path / "a.yaml").write_text("path: missing\ntask: segmentation\nwidth: 64\nloss: doctors_loss.pixels\n")
    code, text = report(capsys, "--config", "a.yaml", *SMALL)
    assert code == 4
    assert "problem aten::nll_loss2d_forward has no deterministic CUDA implementation, torch's nn.NLLLoss, in" in text


def test_own_detector(capsys, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(
        """
model:
  class_path: doctors_loss.Blurred
  init_args: {backbone: test_resnet, num_classes: 2, width: 64, pretrained: false, image_size: 64}
data: {class_path: DetectionDataModule, init_args: {data_dir: missing, image_size: 64, batch_size: 5}}
"""
    )
    code, text = report(capsys, "--config", "a.yaml")
    assert code == 4
    assert "problem aten::upsample_bicubic2d_backward has no deterministic CUDA implementation" in text
    assert main(["doctor", "--config", "a.yaml", "--arch", "fcos"]) == 2
    assert "sets the model, so that --arch would have no effect" in capsys.readouterr().err


@pytest.mark.parametrize(("deterministic", "code", "level"), [("true", 4, "problem"), ("false", 0, "note")])
def test_non_deterministic_operator(capsys, tmp_path: Path, deterministic: str, code: int, level: str):
    (tmp_path / "a.yaml").write_text(f"path: missing\nloss: doctors_loss.blurred\ndeterministic: {deterministic}\n")
    exit_code, text = report(capsys, "--config", "a.yaml", *SMALL)
    assert exit_code == code
    assert f"{level} aten::upsample_bicubic2d_backward has no deterministic CUDA implementation" in text
    assert "torch's nn.functional.interpolate, in criterion (FunctionLoss)" in text


def test_options_of_a_file_are_used(capsys, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(
        "path: missing\nbackbone: test_vit\nimage-size: 160\nbatch_size: 3\nmulti_label: true\nthreshold: 0.3\n"
        "mixup_alpha: 0.2\ncutmix_alpha: 1\ncompile: true\npretrained: true\nema_decay: 0.9\nclass_weights: balanced\n"
    )
    code, text = report(capsys, "--config", "a.yaml", "--batch-size", "2")
    assert code == 0
    assert "2 x 3 x 160 x 160" in text


def test_lightning_style_file(capsys, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(
        """
model:
  class_path: doctors_loss.Other
  init_args: {backbone: test_resnet, num_classes: 2, pretrained: false, loss: doctors_loss.blurred}
data: {class_path: ImageDataModule, init_args: {data_dir: missing, image_size: 48, batch_size: 5}}
trainer: {deterministic: true}
"""
    )
    code, text = report(capsys, "--config", "a.yaml")
    assert code == 4
    assert "aten::upsample_bicubic2d_backward" in text
    assert main(["doctor", "--config", "a.yaml", "--backbone", "resnet18"]) == 2
    assert "sets the model, so that --backbone would have no effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--backbone", "resnet1888"], 4, "resnet1888"),
        (["--backbon", "resnet18"], 2, "Did you mean '--backbone'"),
        (["--image-size", "0"], 2, "The `--image-size` of autotimm doctor must be a whole number"),
        (["--config", "missing.yaml"], 2, "missing.yaml cannot be read"),
        (["photos"], 2, "autotimm doctor takes no arguments"),
        (["--task", "detections"], 2, "The `--task` of autotimm doctor must be one of"),
        (["--task", "detection", "--arch", "unet"], 2, "The `arch` of ObjectDetector must be one of fcos"),
        (["--arch", "fcos"], 2, "The `arch` of fit has no effect on classification"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str):
    assert main(["doctor", *words]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_help_says_that_the_trace_is_experimental(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--help"]) == 0
    assert "traced as it would run on one (experimental)" in capsys.readouterr().out


def test_non_deterministic_cublas_workspace_is_a_problem(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    code, text = report(capsys, *SMALL)
    assert code == 1
    assert "problem CUBLAS_WORKSPACE_CONFIG=:0:0" in text
