"""Runs that go wrong: a clear sentence, a code, and nothing that was written before is lost."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback

import warm
from autotimm import Run, Task
from autotimm.cli.main import main
from autotimm.data import loader
from autotimm.data.loading_processes import killed_process
from autotimm.errors import ModelError, RunError, UsageError
from autotimm.records.manifest import Manifest
from autotimm.train import lightning_compat
from training import classifier, digest, small_fit, toy_data, trained, trainer

FLAGS = ["--backbone", "test_resnet", "--pretrained", "false", "--image-size", "32", "--threads", "1",
         "--batch-size", "8", "--accelerator", "cpu"]  # fmt: skip
LIMIT = resource.RLIM_INFINITY


EARLY = {"config.yaml", "splits.csv", "files.csv", "manifest.json", "ledger.jsonl", ".lock"}
"""What is there before the first step."""


def files(folder: Path) -> set[str]:
    """The files of a run, but for the checkpoints that have names of their own."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not re.fullmatch(r"checkpoints/(epoch-\d+-)?step-\d+\.ckpt", name)}


class NanAt(Callback):
    """Spoils a weight before a step."""

    def __init__(self, epoch, batch):
        self.place = epoch, batch

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.place:
            with torch.no_grad():
                next(task.parameters()).fill_(float("nan"))


class Raises(Callback):
    """Fails in the second epoch."""

    def __init__(self, error):
        self.error = error

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise self.error


class NoRoom(Callback):
    """Lets no file grow beyond a number of bytes from the second epoch on, as a full disk does."""

    def __init__(self, size):
        self.size = size

    def on_train_epoch_start(self, trainer, task):
        if trainer.current_epoch == 1:
            trainer.checkpoint_callback.writer.wait()  # the first checkpoint is on the disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, LIMIT))


@contextmanager
def room_again():
    """Take back the limit before anybody else writes: pytest's own output is a file, too, in many places."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def one_epoch(toy_folder, tmp_path_factory):
    """The weights after the first of three epochs."""
    folder = tmp_path_factory.mktemp("one") / "run"

    class Stop(Callback):
        def on_train_epoch_end(self, trainer, task):
            trainer.should_stop = True

    trained(toy_folder, 3, run_dir=folder, callbacks=[Stop()])
    return digest(Task.load_from_checkpoint(folder / "checkpoints" / "last.ckpt"))


CHECKPOINTS = {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "checkpoints/sha256.txt"}


def left_whole(run: Path, one_epoch: str, lines: tuple[int, ...] = (2,)) -> None:
    """Only what the first epoch wrote is there, and it is whole.

    Further lines in the table belong to an epoch whose checkpoint could not be written, and to one that was trained
    meanwhile; a resumed run writes them anew.
    """
    assert files(run) == EARLY | {"metrics.csv", *CHECKPOINTS}
    for name in ("best", "last"):
        assert digest(Task.load_from_checkpoint(run / "checkpoints" / f"{name}.ckpt")) == one_epoch
    assert len((run / "metrics.csv").read_text().splitlines()) in lines


class TestLossThatIsNoNumber:
    @pytest.mark.parametrize("batch", [0, 1, 2])
    def test_it_names_the_step_and_keeps_what_was_written(self, toy_folder, tmp_path, batch, one_epoch):
        with pytest.raises(
            RunError, match=rf"must be a finite number. Got nan at epoch 2, batch {batch + 1} instead. Lower"
        ):
            trained(toy_folder, 3, run_dir=tmp_path / "run", callbacks=[NanAt(1, batch)])
        left_whole(tmp_path / "run", one_epoch)

    def test_infinity_is_none_either(self, toy_folder, tmp_path):
        with pytest.raises(RunError, match="Got inf at epoch 1, batch 1"):
            trained(
                toy_folder, 1, {"loss": lambda logits, targets: logits.sum() + float("inf")}, run_dir=tmp_path / "run"
            )
        assert files(tmp_path / "run") == EARLY

    def test_long_epochs_are_looked_at_on_the_way(self, toy_folder):
        with pytest.raises(RunError, match="epoch 1, batch 3 "):
            trainer(1, callbacks=[NanAt(0, 2)], num_sanity_val_steps=0, limit_val_batches=0).fit(
                classifier("test_vit"), datamodule=toy_data(toy_folder, batch_size=1, drop_last=False)
            )

    def test_a_run_after_it_is_as_ever(self, toy_folder):
        with pytest.raises(RunError):
            trained(toy_folder, 1, callbacks=[NanAt(0, 1)])
        assert digest(trained(toy_folder)) == digest(trained(toy_folder))

    def test_the_command_exits_with_1(self, toy_folder, tmp_path, capfd):
        words = ["fit", str(toy_folder), *FLAGS, "--lr", "1e30", "--clip", "0", "--num-workers", "0", "--epochs", "3"]
        assert main([*words, "--out", str(tmp_path), "--name", "nan", "--warmup-epochs", "0"]) == 1
        shown = capfd.readouterr()
        assert shown.out == ""
        assert "error: The loss must be a finite number" in shown.err
        assert "Traceback" not in shown.err


class TestFullDisk:
    @pytest.mark.parametrize("size", [4096, 1_000_000])
    def test_a_checkpoint_that_does_not_fit(self, toy_folder, tmp_path, size, one_epoch, monkeypatch):
        (tmp_path / "tmp").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
        with (
            room_again(),
            pytest.raises(
                # What fails first is what is larger than the room: the file of digests, or the checkpoint.
                RunError,
                match=r"could not be written: .*The one before it is unharmed|The disk is full: .* unharmed",
            ),
        ):
            trained(toy_folder, 3, run_dir=tmp_path / "run", callbacks=[NoRoom(size)])
        left_whole(tmp_path / "run", one_epoch, lines=(3, 4))
        assert not list((tmp_path / "tmp").iterdir())

    def test_a_table_that_does_not_fit(self, toy_folder, tmp_path, one_epoch):
        with room_again(), pytest.raises(RunError, match="The disk is full"):
            trained(toy_folder, 3, run_dir=tmp_path / "run", callbacks=[NoRoom(64)])
        left_whole(tmp_path / "run", one_epoch)

    def test_weights_that_do_not_fit_at_the_end(self, toy_folder, tmp_path):
        class NoRoomAtTheEnd(Callback):
            def on_train_end(self, trainer, task):
                trainer.checkpoint_callback.writer.wait()
                resource.setrlimit(resource.RLIMIT_FSIZE, (65536, LIMIT))

        with room_again(), pytest.raises(RunError, match=r"could not be written|disk is full"):
            trained(toy_folder, 1, run_dir=tmp_path / "run", callbacks=[NoRoomAtTheEnd()])
        assert "model.safetensors" not in files(tmp_path / "run")
        assert not [name for name in files(tmp_path / "run") if name.endswith(".tmp")]
        assert isinstance(Run(tmp_path / "run").model(), Task)

    def test_a_run_goes_on_when_there_is_room_again(self, toy_folder, tmp_path):
        with room_again(), pytest.raises(RunError):
            trained(toy_folder, 3, run_dir=tmp_path / "run", callbacks=[NoRoom(4096)])
        model = classifier()
        trainer(3, run_dir=tmp_path / "run").fit(model, datamodule=toy_data(toy_folder), ckpt_path="last")
        assert digest(model) == digest(trained(toy_folder, 3))

    def test_what_a_test_found_is_returned_all_the_same(self, toy_folder, tmp_path, capsys):
        trainer(run_dir=tmp_path / "run").fit(classifier(), datamodule=toy_data(toy_folder, test_split=0.2))
        before = (tmp_path / "run" / "results.json").read_bytes()
        with room_again():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, LIMIT))
            found = Run(tmp_path / "run").test()
        assert found.keys() == {"test/loss", "test/accuracy", "test/f1"}
        assert "the metrics are not kept with the run, which cannot be written to (File too large)" in (
            capsys.readouterr().err
        )
        assert (tmp_path / "run" / "results.json").read_bytes() == before

    def test_a_real_file_system_without_room(self, toy_folder, tmp_path, one_epoch):
        """Needs the right to mount; elsewhere the limit above stands in for it."""
        small = tmp_path / "small"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(small)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("needs the right to mount a file system of 7 MB")
        try:
            with pytest.raises(RunError, match=r"step-00000006\.ckpt could not be written: .*No space left"):
                trained(toy_folder, 3, run_dir=small / "run")
            left_whole(small / "run", one_epoch, lines=(3, 4))
        finally:
            subprocess.run(["umount", str(small)], check=True)


class TestMemory:
    def test_it_says_what_to_lower(self, toy_folder, tmp_path, one_epoch):
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAnd more lines")
        with pytest.raises(
            RunError, match=r"ran out of memory \(CUDA out of memory. Tried to allocate 2 GiB.\). Lower `batch"
        ) as found:
            trained(toy_folder, 3, run_dir=tmp_path / "run", callbacks=[Raises(error)])
        assert found.value.__cause__ is error
        left_whole(tmp_path / "run", one_epoch)

    @pytest.mark.parametrize("make", [torch.empty, np.empty], ids=["torch", "NumPy"])
    def test_the_memory_of_a_cpu(self, toy_folder, tmp_path, one_epoch, make):
        class Large(Callback):
            def on_train_batch_start(self, trainer, *args):
                if trainer.current_epoch == 1:
                    make(10**14)

        with pytest.raises(RunError, match=r"ran out of memory \(.*llocat.*\)\. Lower `batch_size`") as found:
            trained(toy_folder, 3, run_dir=tmp_path / "run", callbacks=[Large()])
        assert "\n" not in str(found.value)
        left_whole(tmp_path / "run", one_epoch)

    @pytest.mark.parametrize(
        "words",
        [
            "MPS backend out of memory (MPS allocated: 5 GB). Tried to allocate 2 GB on private pool.",
            "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you tried 9",
            "Caught RuntimeError in DataLoader worker process 0.\nDefaultCPUAllocator: can't allocate memory: tried",
            "CUDA error: out of memory\nCUDA kernel errors might be reported later",
        ],
        ids=["MPS", "Windows", "worker", "CUDA"],
    )
    def test_the_words_of_other_devices(self, toy_folder, words):
        with pytest.raises(RunError, match="ran out of memory"):
            trained(toy_folder, 2, callbacks=[Raises(RuntimeError(words))])


class TestInterrupted:
    def test_the_handler_of_ctrl_c_is_given_back(self, toy_folder, tmp_path, one_epoch):
        def mine(*args):
            raise KeyboardInterrupt

        class Press(Callback):
            def on_train_batch_end(self, trainer, *args):
                if trainer.current_epoch == 1:
                    os.kill(os.getpid(), signal.SIGINT)

        before = signal.signal(signal.SIGINT, mine)
        try:
            with pytest.raises(KeyboardInterrupt):
                trained(toy_folder, 3, run_dir=tmp_path / "run", callbacks=[Press()])
            assert signal.getsignal(signal.SIGINT) is mine
        finally:
            signal.signal(signal.SIGINT, before)
        left_whole(tmp_path / "run", one_epoch)

    def test_ctrl_c_while_a_checkpoint_is_written_waits_for_it(self, toy_folder, tmp_path, one_epoch):
        class Press(Callback):
            def on_save_checkpoint(self, *args):
                signal.raise_signal(signal.SIGINT)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                trained(toy_folder, 3, run_dir=tmp_path / "run", callbacks=[Press()])
        finally:
            signal.signal(signal.SIGINT, before)
        left_whole(tmp_path / "run", one_epoch)

    def test_own_failures_pass_through(self, toy_folder):
        error = ValueError("mine")
        with pytest.raises(ValueError, match="mine") as found:
            trained(toy_folder, 3, callbacks=[Raises(error)])
        assert found.value is error
        with pytest.raises(SystemExit) as left:
            trained(toy_folder, 3, callbacks=[Raises(SystemExit(9))])
        assert left.value.code == 9

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
    )
    def test_a_real_process(self, toy_folder, tmp_path, number, code):
        words = [
            "fit",
            toy_folder,
            *FLAGS,
            "--num-workers",
            "2",
            "--epochs",
            "100000",
            "--out",
            tmp_path,
            "--name",
            "run",
        ]
        process = warm.Program(["-m", "autotimm", *words])
        while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
            time.sleep(0.05)
        # A terminal sends Ctrl-C to all processes in front, a scheduler its signal to the one that it knows.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        out, shown = process.communicate(timeout=60)
        assert (process.returncode, out) == (code, "")
        assert "Traceback" not in shown
        assert files(tmp_path / "run") == EARLY | {"metrics.csv", *CHECKPOINTS}
        assert isinstance(Run(tmp_path / "run").model("last"), Task)
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)  # no worker is left


class TestEarly:
    """What cannot work is refused before the first step, with nothing left behind."""

    @pytest.mark.parametrize(
        ("words", "code", "message"),
        [
            (["--backbone", "resnett18"], 4, "Did you mean 'resnet18'"),
            (["--pretrained", "missing.pth"], 4, "There is no weights file missing.pth"),
            (["--lr", "-1"], 2, "lr"),
            (["--epochs", "0"], 2, "epochs"),
            (["--metrics", "Acuracy"], 2, "Did you mean 'Accuracy'"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else "",
    )
    def test_the_command_says_why(self, toy_folder, tmp_path, capfd, words, code, message):
        flags = [word for flag, value in zip(FLAGS[::2], FLAGS[1::2], strict=True) if flag != words[0]
                 for word in (flag, value)]  # fmt: skip
        assert main(["fit", str(toy_folder), *flags, "--out", str(tmp_path / "out"), *words]) == code
        shown = capfd.readouterr().err
        assert shown.startswith("error: ")
        assert message in shown
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())

    def test_an_output_folder_that_is_a_file(self, toy_folder, tmp_path, capfd):
        (tmp_path / "out").write_text("a file")
        assert main(["fit", str(toy_folder), *FLAGS, "--out", str(tmp_path / "out")]) == 2
        assert "There is a file of that name" in capfd.readouterr().err
        assert (tmp_path / "out").read_text() == "a file"

    def test_a_folder_that_cannot_be_written_to(self, toy_folder, tmp_path, capfd):
        """The system administrator may write everywhere but to a file system that is read-only."""
        target = tmp_path / "out"
        target.mkdir()
        mounted = False
        if os.geteuid() == 0:
            mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(target)]
            mounted = subprocess.run(mount, capture_output=True).returncode == 0
            if not mounted:
                pytest.skip("needs the right to mount a read-only file system")
        else:
            target.chmod(0o500)
        try:
            assert main(["fit", str(toy_folder), *FLAGS, "--out", str(target)]) == 1
            assert "must be writable. It is not" in capfd.readouterr().err
        finally:
            if mounted:
                subprocess.run(["umount", str(target)], check=True)
            target.chmod(0o700)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"num_classes": 4}, UsageError, "`num_classes` of ImageClassifier must be 3, as the data has. Got 4"),
            ({"multi_label": True}, UsageError, "`multi_label` of ImageClassifier must be False, as the data is"),
            ({"multi_label": True, "label_smoothing": 0.1}, UsageError, "must be 0 with multi_label"),
            ({"backbone": "resnett18"}, ModelError, "Did you mean"),
        ],
        ids=["classes", "labels", "smoothing", "backbone"],
    )
    def test_python_says_why_before_the_first_step(self, toy_folder, tmp_path, options, error, message):
        class Never(Callback):
            def on_sanity_check_start(self, *args):
                raise AssertionError("too late")

            on_train_start = on_sanity_check_start

        with pytest.raises(error, match=message):
            trained(toy_folder, 1, options, run_dir=tmp_path / "run", callbacks=[Never()])


class TestNothingTrained:
    """Wrong numbers that are noticed in the first step only, and a failure in it: no folder is left."""

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--batch-size", "1"], "batch of one image is too small for batch normalization"),
            (["--lr", "1e38"], "A number of the optimizer is too large"),
        ],
    )
    def test_a_step_that_cannot_work(self, toy_folder, tmp_path, capfd, words, message):
        flags = [*FLAGS, "--val-split", "0.25", "--num-workers", "0", "--epochs", "1", "--name", "run"]
        for flag, value in zip(words[::2], words[1::2], strict=True):
            flags = flags if flag not in flags else flags[: flags.index(flag)] + flags[flags.index(flag) + 2 :]
            flags += [flag, value]
        assert main(["fit", str(toy_folder), *flags, "--out", str(tmp_path / "out" / "deep")]) == 2
        assert message in capfd.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_failure_in_the_first_step(self, toy_folder, tmp_path):
        class Fails(Callback):
            def on_before_optimizer_step(self, *args):
                raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(RunError, match="out of memory"):
            trained(toy_folder, 1, run_dir=tmp_path / "run", callbacks=[Fails()])
        assert not (tmp_path / "run").exists()


class TestKept:
    def test_a_failed_run_says_that_it_is_kept(self, toy_folder, tmp_path):
        with pytest.raises(
            RunError, match=r"must be a finite number.* The run folder .*run is kept, and marked as failed\.$"
        ):
            trained(toy_folder, 1, run_dir=tmp_path / "run", callbacks=[NanAt(0, 0)])
        assert Manifest.load(tmp_path / "run" / "manifest.json").results["status"] == "failed"

    def test_a_loading_process_that_is_killed(self, toy_folder, tmp_path):
        class KillsOne(Callback):
            def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
                if trainer.current_epoch == 1:
                    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

        data = toy_data(toy_folder, num_workers=2, batch_size=2)
        with pytest.raises(RunError, match=r"A loading process was killed.* is kept, and marked as failed"):
            trainer(2, run_dir=tmp_path / "run", callbacks=[KillsOne()]).fit(classifier(), datamodule=data)
        assert Manifest.load(tmp_path / "run" / "manifest.json").results["status"] == "failed"
        assert Run(tmp_path / "run").checkpoint("last").exists()

    def test_another_one_that_is_killed_while_the_first_is_noticed(self, toy_folder, tmp_path, monkeypatch):
        class KillsOne(Callback):
            def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
                if trainer.current_epoch == 1:
                    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

        noticed = []

        def interrupted(error):  # by the signal of another process, in which torch raises
            if len(noticed) < 2:
                noticed.append(error)
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
            return killed_process(error)

        monkeypatch.setattr(loader, "killed_process", interrupted)
        monkeypatch.setattr(lightning_compat, "killed_process", interrupted)
        data = toy_data(toy_folder, num_workers=2, batch_size=2)
        with pytest.raises(RunError, match=r"A loading process was killed.* is kept, and marked as failed"):
            trainer(2, run_dir=tmp_path / "run", callbacks=[KillsOne()]).fit(classifier(), datamodule=data)
        assert Manifest.load(tmp_path / "run" / "manifest.json").results["status"] == "failed"
        assert noticed

    @pytest.mark.parametrize("renamed", [False, True])
    def test_a_folder_that_somebody_removes(self, toy_folder, tmp_path, renamed):
        class Removes(Callback):
            def on_train_batch_start(self, trainer, task, batch, batch_idx):
                if (trainer.current_epoch, batch_idx) == (1, 0):
                    trainer.checkpoint_callback.writer.wait()
                    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
                    if not renamed:
                        shutil.rmtree(tmp_path / "elsewhere")

        with pytest.raises(RunError, match=r"The run folder .*run was removed or renamed while the run was training"):
            trained(toy_folder, 3, run_dir=tmp_path / "run", callbacks=[Removes()])
        assert not (tmp_path / "run").exists()
        if renamed:
            assert isinstance(Run(tmp_path / "elsewhere").model("last"), Task)

    def test_a_folder_in_place_of_a_file(self, toy_folder, tmp_path):
        class Blocks(Callback):
            def on_train_batch_start(self, trainer, task, batch, batch_idx):
                if trainer.current_epoch == 1 and batch_idx == 0:
                    (tmp_path / "run" / "metrics.csv").unlink()
                    (tmp_path / "run" / "metrics.csv").mkdir()

        with pytest.raises(RunError, match=r"metrics\.csv must be writable\. It is not \(Is a directory\)"):
            trained(toy_folder, 3, run_dir=tmp_path / "run", callbacks=[Blocks()])

    def test_temporary_files_of_killed_processes_are_swept(self, toy_folder, tmp_path):
        class Leaves(Callback):
            def on_train_epoch_end(self, trainer, task):
                for name in (".manifest.json.4711.tmp", "checkpoints/.last.ckpt.4711.tmp"):
                    (tmp_path / "run" / name).touch()
                trainer.should_stop = True

        trained(toy_folder, 2, run_dir=tmp_path / "run", callbacks=[Leaves()])
        assert [*(tmp_path / "run").rglob(".*.tmp")]
        trainer(2, run_dir=tmp_path / "run").fit(classifier(), datamodule=toy_data(toy_folder), ckpt_path="last")
        assert not [*(tmp_path / "run").rglob(".*.tmp")]


@pytest.fixture(scope="module")
def recorded(toy_folder, tmp_path_factory):
    """A finished run; only to be copied."""
    return small_fit(toy_folder, tmp_path_factory.mktemp("runs"), name="run").path


class TestRecords:
    """A record that somebody has edited ends each verb that reads it in one sentence with exit code 4."""

    @pytest.mark.parametrize(
        ("name", "content", "verbs", "message"),
        [
            ("files.csv", b"id,sha256\n\xe9,1\n", ["verify", "validate", "diff"], "files.csv must be UTF-8 text"),
            ("files.csv", b"name,digest\na,1\n", ["verify", "validate", "diff"], "must have the columns id, sha256"),
            ("splits.csv", b"a,b,c\n1,2,3\n", ["validate"], "must have the columns id, class, split"),
            ("results.json", b"[1, 2]", ["diff"], "results.json must be an object"),
            (
                "results.json",
                b"[" * 100_000 + b"]" * 100_000,
                ["diff"],
                "results.json must be JSON. It is damaged (it is nested",
            ),
            ("results.json", b'{"best": {"val/loss": "low"}}', ["diff"], "`best.val/loss` of the results"),
            ("config.yaml", b"a: " + b"[" * 3000 + b"]" * 3000, ["verify", "validate"], "nested more than 100 levels"),
            (
                "config.yaml",
                b"model: {class_path: [1]}\ntrainer: {}\n",
                ["verify"],
                "`model.class_path` of the options",
            ),
            ("config.yaml", b"\xff\xfe", ["verify"], "The options of the run"),
            (
                "manifest.json",
                b"[" * 100_000 + b"]" * 100_000,
                ["verify", "levels", "diff"],
                "manifest.json must be JSON",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_it_ends_in_one_sentence(self, recorded, toy_folder, tmp_path, capfd, name, content, verbs, message):
        run = shutil.copytree(recorded, tmp_path / "run")
        (run / name).write_bytes(content)
        words = {"validate": [str(toy_folder)], "diff": [str(recorded)]}
        for verb in verbs:
            code = main([verb, str(run), *words.get(verb, [])])
            shown = capfd.readouterr()
            # verify and diff judge what came out: a file that they cannot read is a finding of its own.
            judged = code in (5, 6) and verb in ("verify", "diff") and f"{name}: " in shown.out
            assert judged or (code == 4 and message in shown.err + shown.out), (verb, code, shown)
            assert "Traceback" not in shown.err

    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [
            (("decisions", "recipe", "lr"), "fast", "`decisions.recipe.lr` of the manifest"),
            (("decisions", "recipe"), [1], "`decisions.recipe` of the manifest"),
            (("decisions", "weights"), {"x": 1}, "`decisions.weights.source` of the manifest"),
            (("levels", "R1"), 5, "`levels.R1` of the manifest"),
            (("inputs", "config"), 7, "`inputs.config` of the manifest"),
            (("environment", "replay_versions"), "new", "`environment.replay_versions` of the manifest"),
            (("results", "metrics"), None, "`results.metrics` of the manifest"),
        ],
    )
    def test_values_of_other_types_in_a_manifest(self, recorded, tmp_path, capfd, place, value, message):
        run = shutil.copytree(recorded, tmp_path / "run")
        content = json.loads((run / "manifest.json").read_text())
        parent = content
        for name in place[:-1]:
            parent = parent[name]
        parent[place[-1]] = value
        (run / "manifest.json").write_text(json.dumps(content))
        for words in (
            ["verify", str(run)],
            ["levels", str(run)],
            ["diff", str(recorded), str(run)],
            ["resume", str(run)],
        ):
            assert main(words) == 4, words
            assert message in capfd.readouterr().err

    @pytest.mark.parametrize("damage", [b"\xe9" * 100, b"a" * 100_000], ids=["text", "long"])
    def test_checkpoints(self, recorded, tmp_path, capfd, damage):
        run = shutil.copytree(recorded, tmp_path / "run")
        content = (run / "checkpoints" / "best.ckpt").read_bytes()
        (run / "checkpoints" / "best.ckpt").write_bytes(content[:500] + damage + content[500 + len(damage) :])
        assert main(["validate", str(run)]) == 4
        assert "error: The checkpoint" in capfd.readouterr().err

    def test_weights_that_do_not_fit(self, recorded, tmp_path, capfd):
        run = shutil.copytree(recorded, tmp_path / "run")
        checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        checkpoint["state_dict"].popitem()
        torch.save(checkpoint, run / "checkpoints" / "best.ckpt")
        assert main(["validate", str(run)]) == 4
        assert "must hold the weights of its task" in capfd.readouterr().err
