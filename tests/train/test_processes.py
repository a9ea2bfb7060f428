"""Several processes that train together, as scripts that Lightning starts again for each of them."""

import subprocess
import sys

import pytest
import torch.distributed

from autotimm import Run

SCRIPT = """
import autotimm
run = autotimm.fit(
    {data!r}, backbone="test_resnet", pretrained=False, image_size=32, epochs=2, val_split=0.25, batch_size=4,
    num_workers=0, threads=1, progress=False, accelerator="cpu", devices=2, out={out!r}, **{options!r}
)
assert run.path.is_dir()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.parametrize("options", [{}, {"name": "two"}])
def test_two_processes_leave_one_whole_run(toy_folder, tmp_path, options):
    script, out = tmp_path / "train.py", tmp_path / "runs"
    script.write_text(SCRIPT.format(data=str(toy_folder), out=str(out), options=options))
    # No pipes: a process that hangs would keep them open.
    subprocess.run(
        [sys.executable, script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=True
    )
    (only,) = out.iterdir()
    assert {"config.yaml", "metrics.csv", "model.safetensors", "results.json"} <= {one.name for one in only.iterdir()}
    assert Run(only).validate()["val/loss"] > 0


SPAWN = """
from pathlib import Path
from autotimm import AutoTrainer, ImageClassifier, ImageDataModule
if __name__ == "__main__":
    data = ImageDataModule({data!r}, image_size=32, batch_size=4, num_workers=0, val_split=0.25)
    model = ImageClassifier("test_resnet", 3, pretrained=False, image_size=32)
    options = dict(accelerator="cpu", devices=2, strategy="ddp_spawn", threads=1, enable_progress_bar=False)
    trainer = AutoTrainer(1, run_dir={run!r}, **options)
    trainer.fit(model, datamodule=data)
    assert trainer.checkpoint_callback.best["epoch"] == 0
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_processes_that_are_spawned_leave_a_whole_run_too(toy_folder, tmp_path):
    script, run = tmp_path / "train.py", tmp_path / "run"
    script.write_text(SPAWN.format(data=str(toy_folder), run=str(run)))
    subprocess.run(
        [sys.executable, script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=True
    )
    assert Run(run).metrics["val/loss"] > 0
