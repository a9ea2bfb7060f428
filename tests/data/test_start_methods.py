"""Programs train by each way in which Python starts processes; without a guard they are told what to do."""

from pathlib import Path

import pytest

import warm

PROGRAM = """
import multiprocessing
from autotimm import AutoTrainer, ImageClassifier, ImageDataModule

def main():
    multiprocessing.set_start_method({method!r})
    data = ImageDataModule({folder!r}, image_size=32, batch_size=4, num_workers=1)
    model = ImageClassifier("test_resnet", num_classes=data.num_classes, pretrained=False)
    trainer = AutoTrainer(max_epochs=1, threads=1, run_dir="run", limit_train_batches=2, limit_val_batches=1)
    trainer.fit(model, datamodule=data)

{call}
"""
GUARDED = 'if __name__ == "__main__":\n    main()'


def run(toy_folder: Path, tmp_path: Path, method: str, call: str) -> "warm.Completed":
    program = tmp_path / "train.py"
    program.write_text(PROGRAM.format(method=method, folder=str(toy_folder), call=call))
    return warm.run([program.name], tmp_path)


# That of fork is trained by most other tests.
OTHERS = ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)]


@pytest.mark.parametrize("method", OTHERS)
def test_a_program_with_a_guard(method: str, toy_folder: Path, tmp_path: Path) -> None:
    done = run(toy_folder, tmp_path, method, GUARDED)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("method", OTHERS)
def test_a_program_without_one(method: str, toy_folder: Path, tmp_path: Path) -> None:
    done = run(toy_folder, tmp_path, method, "main()")
    assert done.returncode == 1
    assert "must run its code below a line `if __name__" in done.stderr.splitlines()[-1]
    assert f"since processes start by {method} here" in done.stderr.splitlines()[-1]
    assert done.stderr.count("Traceback") == 1
    assert not (tmp_path / "run" / "checkpoints").exists()
