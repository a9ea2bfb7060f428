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
    trainer = AutoTrainer(max_epochs=1, threads=1, run_dir="run", limit_train_batches=2, limit_val_batches={val})
    trainer.fit(model, datamodule=data)

{call}
"""
GUARDED = 'if __name__ == "__main__":\n    main()'


def run(toy_folder: Path, tmp_path: Path, method: str, call: str, val: int) -> warm.Completed:
    program = tmp_path / "train.py"
    program.write_text(PROGRAM.format(method=method, folder=str(toy_folder), call=call, val=val))
    return warm.run([program.name], tmp_path)


# That of fork is trained by most other tests.
OTHERS = ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)]


# Each loader has a process, which imports torch: the slow tests load validation images too.
@pytest.mark.parametrize(
    ("method", "val"),
    [("spawn", 0), *(pytest.param(method, 1, marks=pytest.mark.slow) for method in ("spawn", "forkserver"))],
)
def test_a_program_with_a_guard(method: str, val: int, toy_folder: Path, tmp_path: Path) -> None:
    done = run(toy_folder, tmp_path, method, GUARDED, val)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("method", OTHERS)
def test_a_program_without_one(method: str, toy_folder: Path, tmp_path: Path) -> None:
    done = run(toy_folder, tmp_path, method, "main()", val=1)
    assert done.returncode == 1
    assert "must run its code below a line `if __name__" in done.stderr.splitlines()[-1]
    assert f"since processes start by {method} here" in done.stderr.splitlines()[-1]
    assert done.stderr.count("Traceback") == 1
    assert not (tmp_path / "run" / "checkpoints").exists()
