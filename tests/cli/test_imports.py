"""Which modules a command loads: libraries of other tasks and verbs cost every command their time."""

import json
import subprocess
import sys

import pytest

from autotimm.data.toy import write_toy_folder

PROGRAM = """
import json, sys
from autotimm.cli.main import main
code = main(sys.argv[2:])
open(sys.argv[1], "w").write(json.dumps([code, sorted(sys.modules)]))
"""
OTHER_TASKS = {"segmentation_models_pytorch", "faster_coco_eval"}
OTHER_VERBS = {
    "autotimm.attribution", "autotimm.doctor", "autotimm.export.exporter", "autotimm.inspection", "autotimm.proof",
    "autotimm.selfcheck", "autotimm.serving", "autotimm.studies", "autotimm.testing",
}  # fmt: skip
LIBRARIES = {
    "IPython", "albumentations", "datasets", "jsonargparse", "lance", "litdata", "onnx", "onnxruntime", "openvino",
    "pandas", "pyarrow", "sklearn", "starlette", "tensorboard", "transformers", "uvicorn",
}  # fmt: skip
PAGES = {"jinja2", "autotimm.report.page"}
FIT = [
    "--backbone", "test_resnet", "--pretrained", "false", "--image-size", "32", "--batch-size", "8", "--epochs", "1",
    "--num-workers", "0", "--threads", "1", "--accelerator", "cpu", "--progress", "false", "--name", "one",
]  # fmt: skip


def modules(folder, *words):
    """The modules that a command has loaded at its end."""
    result = folder / "modules.json"
    command = [sys.executable, "-c", PROGRAM, result, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    code, loaded = json.loads(result.read_text())
    assert code == 0
    return {*loaded}


def test_help_loads_no_library(tmp_path):
    heavy = {"PIL", "numpy", "pytorch_lightning", "rich", "timm", "torch", "torchmetrics", "torchvision"}
    assert not modules(tmp_path, "--help") & (heavy | LIBRARIES | OTHER_TASKS)


@pytest.mark.slow
def test_verbs_load_what_they_need(tmp_path):
    photos = write_toy_folder(tmp_path / "photos", n=12, num_classes=3, image_size=32)
    unused = OTHER_TASKS | OTHER_VERBS | LIBRARIES
    assert not modules(tmp_path, "fit", photos, *FIT) & unused
    image = next(photos.rglob("*.png"))
    assert not modules(tmp_path, "predict", "runs/one", image) & (unused | PAGES)
    assert not modules(tmp_path, "verify", "runs/one") & (unused | PAGES)
