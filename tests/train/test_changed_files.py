"""Files that change while a run trains on them: it finishes, names them, and is never called identical."""

import os
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.callbacks import Callback

import autotimm
from autotimm.cli import main
from autotimm.data import file_facts, image_facts
from autotimm.data.data_facts import content
from autotimm.data.toy import write_toy_folder, write_toy_segmentation
from autotimm.errors import DataError
from autotimm.records.manifest import Manifest
from autotimm.records.sample_index import SampleIndex
from autotimm.runs.run import Run, diff
from training import SMALL, classifier, small_fit, toy_data, trainer


@pytest.fixture
def photos(tmp_path):
    return write_toy_folder(tmp_path / "photos", splits={"train": 16}, num_classes=2) / "train"


class During(Callback):
    """Does something in the middle of a training, after the first epoch of two."""

    def __init__(self, do):
        self.do = do

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            self.do()


def swap(path):
    """Another image of the same size in bytes and the same mtime: the pixels of a BMP are its bytes."""
    before = path.stat()
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path, "BMP")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def as_bmp(path):
    Image.open(path).convert("RGB").save(path.with_suffix(".bmp"))
    path.unlink()
    return path.with_suffix(".bmp")


def fit(photos, folder, do, **options):
    auto_trainer = trainer(2, run_dir=folder, callbacks=[During(do)])
    auto_trainer.fit(classifier(num_classes=2), datamodule=toy_data(photos, **options))


def results(folder):
    return Manifest.load(folder / "manifest.json").results


def test_an_image_that_is_swapped_in_the_middle_of_a_training(photos, tmp_path):
    path = as_bmp(sorted(photos.rglob("*.png"))[3])
    name, folder = path.relative_to(photos).as_posix(), tmp_path / "run"
    shutil.copytree(photos, tmp_path / "as-before")
    with pytest.raises(DataError, match=f"^1 file changed while the run trained: {re.escape(str(path))}\\. The run "):
        fit(photos, folder, lambda: swap(path))
    assert results(folder)["changed_files"] == {"count": 1, "ids": [name]}
    assert results(folder)["status"] == "finished"
    assert {"model.safetensors", "results.json", "metrics.csv"} <= {file.name for file in folder.iterdir()}
    run = Run(folder)
    assert run.level()["R1"] == "no, because 1 file changed while it trained"
    assert run.model() is not None
    # The file as it was, which the recorded digest is of, makes it no run that can be verified.
    for data in (photos, tmp_path / "as-before"):
        verdict = run.verify(data=data)
        assert (verdict.verdict, verdict.exit_code) == ("not comparable", 3)
        assert verdict.reason.startswith("1 file changed while the run trained, so that the recorded digests do not")
        assert verdict.reason.endswith(f": {name}.")
    comparison = diff(folder, shutil.copytree(folder, tmp_path / "copy"))
    assert (comparison.verdict, comparison.exit_code) == ("incomplete", 6)
    assert f"{folder}: {verdict.reason}" in comparison.notes


def test_an_image_that_is_removed_after_it_was_read_for_the_last_time(photos, tmp_path):
    files = sorted(photos.rglob("*.png"))

    class AtTheEnd(Callback):
        def on_train_end(self, *args):
            for path in files[:6]:
                path.unlink()

    auto_trainer = trainer(1, run_dir=tmp_path / "run", callbacks=[AtTheEnd()])
    with pytest.raises(DataError, match=r"^6 files changed .* and 1 more\. The run "):
        auto_trainer.fit(classifier(num_classes=2), datamodule=toy_data(photos))
    assert results(tmp_path / "run")["changed_files"]["count"] == 6
    assert Run(tmp_path / "run").level()["R1"] == "no, because 6 files changed while it trained"


def test_an_image_that_is_only_touched(photos, tmp_path):
    path = sorted(photos.rglob("*.png"))[0]
    fit(photos, tmp_path / "run", path.touch)
    assert "changed_files" not in results(tmp_path / "run")
    assert Run(tmp_path / "run").level()["R1"] == "expected"


def test_a_mask_that_is_swapped(tmp_path):
    scenes = tmp_path / "scenes"
    write_toy_segmentation(scenes, splits={"train": 4, "val": 2}, image_size=32)
    mask = scenes / "train" / "00001_mask.png"

    class Swapping(autotimm.SegmentationDataModule):
        def train_dataloader(self):  # after the digests were taken, and before a mask is loaded
            Image.fromarray(np.zeros((32, 32), np.uint8)).save(mask)
            return super().train_dataloader()

    data = Swapping(scenes, image_size=32, batch_size=2, num_workers=0)
    options = {"num_classes": data.num_classes, "pretrained": False, "image_size": 32}
    model = autotimm.SemanticSegmentor("test_resnet", **options)
    with pytest.raises(DataError, match=r"1 file changed while the run trained: .*00001_mask\.png"):
        trainer(1, run_dir=tmp_path / "run").fit(model, datamodule=data)
    assert results(tmp_path / "run")["changed_files"] == {"count": 1, "ids": ["train/00001.png"]}


def test_a_change_between_a_run_and_its_resume(photos, tmp_path):
    path = as_bmp(sorted(photos.rglob("*.png"))[3])
    folder, kept = tmp_path / "run", tmp_path / "kept"
    shutil.copy2(path, kept)

    def go(*callbacks, ckpt_path=None):
        auto_trainer = trainer(3, run_dir=folder, callbacks=[*callbacks])
        auto_trainer.fit(classifier(num_classes=2), datamodule=toy_data(photos), ckpt_path=ckpt_path)

    class Interrupt(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(Interrupt())
    swap(path)
    with pytest.raises(DataError, match=f"changed: {path.relative_to(photos).as_posix()}"):
        go(ckpt_path="last")
    assert "changed_files" not in results(folder)
    shutil.copy2(kept, path)

    class Later(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                swap(path)

    with pytest.raises(DataError, match="1 file changed while the run trained"):
        go(Later(), ckpt_path="last")
    assert results(folder)["changed_files"]["count"] == 1
    # A resume of the finished run trains nothing, and does not forget it.
    shutil.copy2(kept, path)
    go(ckpt_path="last")
    assert results(folder)["changed_files"]["count"] == 1
    assert Run(folder).level()["R1"].startswith("no, because 1 file changed")


@pytest.fixture
def meddling(photos, tmp_path, monkeypatch):
    """The import path of a loss that changes an image once a file ``go`` exists, the image, and that file."""
    path, go = sorted(photos.rglob("*.png"))[0], tmp_path / "go"
    lines = ["import os", "import torch", "def loss(logits, targets):", f"    if os.path.exists({str(go)!r}):",
             f"        open({str(path)!r}, 'ab').write(b'.')  # behind the image: no decoder reads it",
             "    return torch.nn.functional.cross_entropy(logits, targets)"]  # fmt: skip
    (tmp_path / "meddling.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "meddling", raising=False)  # of the test before
    return "meddling.loss", path, go


def test_exit_code_and_message_of_the_command(photos, tmp_path, capsys, meddling):
    loss, path, go = meddling
    go.touch()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    folder = tmp_path / "runs" / "one"
    assert main.main(["fit", str(photos), *options, "--loss", loss, "--out", str(folder.parent), "--name", "one"]) == 3
    expected = f"error: 1 file changed while the run trained: {path}. The run {folder} is finished"
    assert expected in capsys.readouterr().err
    assert "recipe" in (folder / "config.yaml").read_text()  # its record was completed all the same
    assert main.main(["verify", str(folder)]) == 3
    assert "verdict: not comparable" in capsys.readouterr().out


def test_a_change_during_a_replay(photos, tmp_path, meddling):
    loss, path, go = meddling
    run = small_fit(photos, tmp_path, loss=loss)
    go.touch()
    verdict = run.verify()
    assert (verdict.verdict, verdict.exit_code) == ("not comparable", 3)
    assert verdict.reason.startswith(f"Files changed during the replay: {path}. ")


def test_verify_and_reproduce_read_every_file(photos, tmp_path, monkeypatch):
    path = sorted(photos.rglob("*.png"))[0]
    run = small_fit(photos, tmp_path)
    recorded = SampleIndex(run.path).content()
    path.write_bytes(path.read_bytes() + b".")
    monkeypatch.setattr(file_facts, "_SETTLED", 0)

    def forge_cache():
        """Let the cache take the file for what it was."""
        assert content(toy_data(photos).tables.values()) != recorded
        known = image_facts._STORE.find([os.fsencode(path)])
        before = bytes.fromhex(recorded[path.relative_to(photos).as_posix()])
        known.facts["digest"] = np.frombuffer(before, np.uint8)
        image_facts._STORE.keep([os.fsencode(path)], known)
        assert content(toy_data(photos).tables.values()) == recorded

    forge_cache()
    verdict = run.verify()
    expected = f"The data is not what it was: changed: {path.relative_to(photos).as_posix()}."
    assert (verdict.verdict, verdict.reason) == ("not comparable", expected)
    forge_cache()
    assert SampleIndex(run.reproduce(tmp_path / "again").path).content() != recorded
