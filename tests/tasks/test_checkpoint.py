"""Checkpoints: whole without their run, readable without unpickling, and without a trace of who wrote them."""

import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from torch import nn

import warm
from autotimm import ImageClassifier, ImageDataModule, Task
from autotimm.data.toy import toy_images
from autotimm.errors import ModelError
from autotimm.records.digest import file_digest, state_digest
from autotimm.repro.seed import set_deterministic
from autotimm.tasks.checkpoint import read_checkpoint
from training import classifier, digest, toy_data, trainer


class OtherTask(ImageClassifier):
    """Another class than the one that was saved."""


class Narrow(Task):
    """A task that takes no shared option but passes one on."""

    def __init__(self, width=2):
        super().__init__(lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(3, width)), lr=0.1)

    def step(self, batch, stage):
        raise NotImplementedError

    def decode(self, output, batch):
        return []

    def default_metrics(self):
        return []


class Fixed(ImageClassifier):
    """A classifier with a backbone, a rate and even an option at its default value that are not to be chosen."""

    def __init__(self, n, **o):
        super().__init__("test_resnet", n, lr=1e-3, ema_decay=None, **o)


class Pretrained(ImageClassifier):
    """It insists on weights that a loaded model does not need."""

    file = None

    def __init__(self, n):
        super().__init__("test_resnet", n, pretrained=self.file, image_size=32)


class Passing(ImageClassifier):
    """Passes on whatever comes, after an argument of its own."""

    def __init__(self, note, *args, **kwargs):
        self.note = note
        super().__init__(*args, **kwargs)


class Renaming(Fixed):
    """Gives an argument of its base another name and value."""

    def __init__(self, classes_less_one=2, /, *, seed=5, **rest):
        super().__init__(classes_less_one + 1, seed=seed + 1, **rest)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


@pytest.fixture(scope="module")
def saved(toy_folder, tmp_path_factory):
    """A checkpoint of a short training with everything that must survive, and the task as it was."""
    folder = tmp_path_factory.mktemp("checkpoint")
    data = ImageDataModule(toy_folder, image_size=40, batch_size=8, eval_batch_size=3, num_workers=0, crop_pct=0.9,
                           interpolation="bicubic", val_split=0.25)  # fmt: skip
    model = classifier(seed=7, label_smoothing=0.1, optimizer=torch.optim.SGD, head_dropout=0.2)
    trainer(run_dir=folder / "run").fit(model, datamodule=data)
    return folder / "run" / "checkpoints" / "last.ckpt", model


def walk(value, path="checkpoint"):
    """Every leaf of a loaded checkpoint with where it is, keys among them."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield f"{path} key", key
            yield from walk(one, f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            yield from walk(one, f"{path}[{number}]")
    else:
        yield path, value


class TestRoundTrip:
    def test_weights_options_and_what_is_known_of_the_data(self, saved):
        path, model = saved
        loaded = ImageClassifier.load_from_checkpoint(path)
        assert state_digest(loaded.state_dict()) == state_digest(model.state_dict())
        assert loaded.spec == model.spec
        assert loaded.spec.class_names == ("blue_circle", "green_cross", "orange_square")
        assert (loaded.spec.image_size, loaded.spec.crop_pct, loaded.spec.interpolation) == (40, 0.9, "bicubic")
        assert loaded.eval_batch_size == 3
        assert (loaded.root_seed, loaded.hparams["seed"], loaded.hparams["label_smoothing"]) == (7, 7, 0.1)
        assert loaded.hparams["optimizer"] == "torch.optim.sgd.SGD"
        assert not loaded.training

    def test_outputs_have_the_same_bits(self, saved):
        images, _ = toy_images(5, size=40)
        with torch.no_grad():
            found = [task.eval().infer(images) for task in (saved[1], Task.load_from_checkpoint(saved[0]))]
        assert torch.equal(*found)

    def test_what_was_loaded_can_be_saved_and_loaded_again(self, saved, toy_folder, tmp_path):
        loaded = Task.load_from_checkpoint(saved[0])
        again = trainer()
        again.validate(loaded, datamodule=toy_data(toy_folder))
        again.save_checkpoint(tmp_path / "again.ckpt")
        second = Task.load_from_checkpoint(tmp_path / "again.ckpt")
        assert digest(second) == digest(loaded)
        assert second.hparams == loaded.hparams
        assert second.record() == loaded.record()

    def test_a_drawn_seed_is_recorded(self, toy_folder, tmp_path):
        model = classifier(seed=None)
        trainer(run_dir=tmp_path / "run").fit(model, datamodule=toy_data(toy_folder))
        loaded = Task.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
        assert (loaded.root_seed, loaded.hparams["seed"]) == (model.root_seed, None)

    def test_arguments_can_be_replaced(self, saved):
        assert ImageClassifier.load_from_checkpoint(saved[0], label_smoothing=0.3).criterion.label_smoothing == 0.3

    def test_a_task_that_takes_no_shared_options_loads_too(self, tmp_path):
        model = Narrow(5)
        one = trainer()
        one.strategy.connect(model)
        one.save_checkpoint(tmp_path / "narrow.ckpt", weights_only=True)
        loaded = Task.load_from_checkpoint(tmp_path / "narrow.ckpt", trust=True)
        assert (type(loaded), digest(loaded)) == (Narrow, digest(model))

    @pytest.mark.parametrize(
        "build",
        [
            lambda: Fixed(3),
            lambda: Fixed(n=3, label_smoothing=0.1, weight_decay=0.1, metrics=[]),
            lambda: Passing("a note", "test_resnet", 3, image_size=32),
            lambda: Passing("a note", backbone="test_resnet", num_classes=3),
            lambda: Renaming(),
            lambda: Renaming(2, seed=1, freeze_backbone=True),
        ],
    )
    def test_a_task_that_fixes_or_passes_on_arguments(self, build, toy_folder, tmp_path):
        model = build()
        trainer(run_dir=tmp_path / "run").fit(model, datamodule=toy_data(toy_folder))
        loaded = Task.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
        assert (type(loaded), digest(loaded)) == (type(model), digest(model))
        assert loaded.hparams == model.hparams
        assert loaded.record() == model.record()
        assert loaded.optimizer_options == model.optimizer_options
        assert loaded.criterion.label_smoothing == model.criterion.label_smoothing
        assert vars(loaded).get("note") == vars(model).get("note")

    def test_first_weights_that_a_task_insists_on_are_not_asked_for_again(self, toy_folder, tmp_path, monkeypatch):
        first = tmp_path / "first.pth"
        torch.save(classifier(seed=1).network.backbone.state_dict(), first)
        monkeypatch.setattr(Pretrained, "file", str(first))
        model = Pretrained(3)
        trainer(run_dir=tmp_path / "run").fit(model, datamodule=toy_data(toy_folder))
        first.unlink()
        loaded = Task.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
        assert (digest(loaded), loaded.weights.sha256) == (digest(model), model.weights.sha256)

    def test_a_loss_that_was_an_object_must_be_given_again(self, toy_folder, tmp_path):
        for number, loss in enumerate((nn.CrossEntropyLoss(), lambda logits, targets: logits.square().sum())):
            run = tmp_path / f"run{number}"
            trainer(run_dir=run).fit(classifier(loss=loss), datamodule=toy_data(toy_folder))
            path = run / "checkpoints" / "last.ckpt"
            with pytest.raises(
                ModelError, match=r"The `loss` of ImageClassifier must be given again.*\(path, loss=\.\.\.\)"
            ):
                Task.load_from_checkpoint(path)
            assert isinstance(Task.load_from_checkpoint(path, loss=loss).criterion, nn.Module)

    def test_the_file_of_the_first_weights_is_not_needed_again(self, toy_folder, tmp_path):
        weights = tmp_path / "first.pth"
        torch.save(classifier(seed=1).network.backbone.state_dict(), weights)
        model = classifier(pretrained=str(weights))
        assert model.weights.source == "file"
        trainer(run_dir=tmp_path / "run").fit(model, datamodule=toy_data(toy_folder))
        weights.unlink()
        loaded = Task.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
        assert digest(loaded) == digest(model)
        assert (loaded.weights.sha256, loaded.weights.file) == (model.weights.sha256, None)


class TestLoadingTouchesNothing:
    @pytest.mark.parametrize("kind", [None, Narrow])
    def test_generators_switches_and_variables_stay(self, saved, tmp_path, kind):
        if kind is not None:  # it takes no `seed`
            one = trainer()
            one.strategy.connect(kind())
            one.save_checkpoint(tmp_path / "kind.ckpt", weights_only=True)
            saved = (tmp_path / "kind.ckpt",)
        set_deterministic(False)
        os.environ["PYTHONHASHSEED"] = "123"
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), dict(os.environ)
        Task.load_from_checkpoint(saved[0], trust=True)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist(), dict(os.environ)) == before[1:]
        assert torch.backends.cudnn.benchmark
        assert not torch.are_deterministic_algorithms_enabled()

    def test_the_hub_is_never_asked(self, saved):
        asked = []

        class Count(BaseHTTPRequestHandler):
            def do_HEAD(self):
                asked.append(self.path)
                self.send_error(404)

            do_GET = do_HEAD  # noqa: N815

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Count)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "no_proxy": "*",
                       "HF_HOME": str(saved[0].parent / "no-cache")}  # fmt: skip
        code = (
            f"{warm.forgotten('autotimm', 'huggingface_hub', 'timm')}"
            "import os; os.environ.pop('HF_HUB_OFFLINE', None); from autotimm import Task, ImageClassifier\n"
            "print(type(Task.load_from_checkpoint(sys.argv[1])).__name__, flush=True); input()\n"
            "ImageClassifier('test_resnet', 3)"
        )
        reading, writing = os.pipe()
        command = [sys.executable, "-c", code, str(saved[0])]
        with (
            os.fdopen(reading) as shown, os.fdopen(writing, "wb") as out,
            warm.Process(command, env=environment, stdin=subprocess.PIPE, stdout=out) as process,
        ):  # fmt: skip
            assert shown.readline().strip() == "ImageClassifier"
            assert asked == []
            process.stdin.write(b"\n")
        server.shutdown()
        server.server_close()
        assert process.returncode == 0
        assert asked  # the same process asks when it builds a new model: the counter works


@pytest.fixture(scope="module")
def runs(toy_folder, tmp_path_factory):
    """Two equal runs of somebody called jane-doe, who has her own weights."""
    root = tmp_path_factory.mktemp("jane-doe")
    shutil.copytree(toy_folder, root / "photos")
    weights = root / "weights.pth"
    torch.save(classifier(seed=1).network.backbone.state_dict(), weights)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "USER", "LOGNAME", "USERNAME"):
            patch.setenv(name, "/home/jane-doe" if name == "HOME" else "jane-doe")
        for number in range(2):
            model = classifier(pretrained=str(weights), ema_decay=0.9)
            trainer(2, run_dir=root / f"run{number}").fit(model, datamodule=toy_data(root / "photos"))
            found.append(root / f"run{number}")
    return found


class TestNoTraces:
    """Neither paths nor names nor the time enter a file that people pass on."""

    def test_the_raw_bytes(self, runs):
        for path in (runs[0] / "checkpoints").iterdir():
            content = path.read_bytes()
            assert not re.findall(rb"jane|photos|/home|/tmp|/root|/Users", content)

    def test_every_leaf(self, runs):
        checkpoint = read_checkpoint(runs[0] / "checkpoints" / "last.ckpt")
        texts = [(where, value) for where, value in walk(checkpoint) if isinstance(value, str)]
        assert texts
        assert not [(where, value) for where, value in texts if value.startswith(("/", "~")) or "\\" in value]
        assert not [(where, value) for where, value in texts if re.search(r"\d{4}-\d\d-\d\d|\d\d:\d\d", value)]
        numbers = [value for _, value in walk(checkpoint) if isinstance(value, (int, float))]
        assert not [value for value in numbers if value > 1e9]  # seconds since 1970, or bytes of a process

    def test_only_plain_data(self, runs):
        checkpoint = read_checkpoint(runs[0] / "checkpoints" / "last.ckpt")
        kinds = {type(value) for _, value in walk(checkpoint)}
        assert kinds <= {str, int, float, bool, type(None), torch.Tensor}

    @pytest.mark.parametrize("name", ["model.safetensors", "metrics.csv", "splits.csv", "results.json"])
    def test_equal_runs_write_equal_files(self, runs, name):
        assert file_digest(runs[0] / name) == file_digest(runs[1] / name)

    def test_equal_runs_write_equal_checkpoints(self, runs):
        for name in ("best.ckpt", "last.ckpt"):
            first, second = (read_checkpoint(run / "checkpoints" / name) for run in runs)
            assert state_digest(first) == state_digest(second)


class TestRefusals:
    def test_a_pickle_that_would_run_code(self, saved, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        checkpoint = torch.load(saved[0], weights_only=True)
        torch.save({**checkpoint, "extra": Evil()}, tmp_path / "evil.ckpt")
        (tmp_path / "raw.ckpt").write_bytes(pickle.dumps({"state_dict": Evil()}))
        for name, message in (("evil.ckpt", "could run code"), ("raw.ckpt", "something else")):
            with pytest.raises(ModelError, match=message):
                Task.load_from_checkpoint(tmp_path / name)
        assert not (tmp_path / "evil-was-here").exists()

    @pytest.mark.parametrize("share", [0, 0.3, 0.999])
    def test_a_file_that_was_cut_off(self, saved, tmp_path, share):
        content = saved[0].read_bytes()
        (tmp_path / "cut.ckpt").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ModelError, match=r"checkpoint .*cut\.ckpt must"):
            Task.load_from_checkpoint(tmp_path / "cut.ckpt")

    def test_a_file_that_is_not_there_or_something_else(self, tmp_path):
        (tmp_path / "text.ckpt").write_text("hello")
        torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
        torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
        for name, message in (
            ("none.ckpt", "There is none"),
            ("text.ckpt", "must be a file that a trainer wrote"),
            ("other.ckpt", "must hold a `state_dict`"),
            ("foreign.ckpt", "`hyper_parameters` of the checkpoint .* must be given"),
        ):
            with pytest.raises(ModelError, match=message):
                Task.load_from_checkpoint(tmp_path / name)

    def test_a_task_of_another_class(self, saved):
        with pytest.raises(ModelError, match=r"must hold a OtherTask. It holds a autotimm\.tasks\.classification"):
            OtherTask.load_from_checkpoint(saved[0])
        assert type(Task.load_from_checkpoint(saved[0])) is ImageClassifier

    def test_a_task_that_cannot_be_imported(self, saved, tmp_path):
        checkpoint = torch.load(saved[0], weights_only=True)
        checkpoint["autotimm"]["task"] = "not_installed.Classifier"
        torch.save(checkpoint, tmp_path / "gone.ckpt")
        with pytest.raises(ModelError, match=r"names the task not_installed\.Classifier.*trust=True"):
            Task.load_from_checkpoint(tmp_path / "gone.ckpt")
        with pytest.raises(ModelError, match=r"task 'not_installed\.Classifier' must be .* No module named"):
            Task.load_from_checkpoint(tmp_path / "gone.ckpt", trust=True)
