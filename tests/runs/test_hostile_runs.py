"""Run folders, checkpoints and files that a stranger prepared: nothing that they name is imported or called.

Each case plants a name or a file in a copy of a finished run, runs the verbs that read it, and looks whether a file
called `hit` has appeared. The verbs must answer with a code of 2 or 4 and one sentence.
"""

import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from autotimm import ImageClassifier, ImageDataModule, ModelError, Run, Task
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.records.manifest import Manifest
from autotimm.records.run_folder import RunFolder
from autotimm.records.user_state import read_state
from autotimm.runs.restore import rebuild
from training import small_fit, trainer

RUN = "stranger"  # a name that could be a package's

EVIL = """
import pathlib
import pytorch_lightning, torch, torchmetrics

pathlib.Path({hit!r}).touch()

class Model(pytorch_lightning.LightningModule):
    pass

class Data(pytorch_lightning.LightningDataModule):
    pass

class Loss(torch.nn.Module):
    def forward(self, predictions, targets):
        return predictions.sum()

class Optimizer(torch.optim.SGD):
    pass

class Metric(torchmetrics.Metric):
    pass

def function(*arguments, **options):
    pathlib.Path({hit!r}).touch()
"""

# Functions and classes that run what they are given, of Python itself, of libraries and of autotimm.
CALLS = [
    "subprocess.run", "subprocess.Popen", "os.system", "posix.system", "builtins.eval", "builtins.exec",
    "builtins.print", "importlib.import_module", "pickle.loads", "shutil.rmtree", "runpy.run_path", "sys.exit",
    "torch.hub.load", "torch.load", "torch.serialization.pickle.loads", "torch.utils.cpp_extension.load",
    "torch.multiprocessing.spawn", "torchvision.datasets.utils.download_url", "timm.create_model", "numpy.load",
    "autotimm.runs.run.fit", "autotimm.cli.main.main", "pytorch_lightning.Trainer", "torch.os.system",
    "torch.nn.Module.apply", "antigravity.webbrowser", "this.s", "__main__.main", "__mp_main__.main", "pip.main",
    "setuptools.setup", "pytest.main", "ctypes.CDLL", "code.interact", "_posixsubprocess.fork_exec",
    "torch.distributed.launch.main", "torch.testing._internal.common_utils.run_tests", "autotimm.__main__.entry",
    "autotimm.records.run_folder.FileLock", "autotimm.studies.trial_process.main",
]  # fmt: skip
# Modules that are no installed ones: in the run's folder, beside it, in folders without __init__.py.
MODULES = [
    f"{RUN}.evil", f"{RUN}.checkpoints.evil", f"{RUN}.package.evil", "evil", "beside.evil", "linked", "stranger-2.evil",
    "linked_folder.evil",
]  # fmt: skip
NO_NAMES = [
    "", ".", "..", "evil", "evil.", ".evil.Model", "evil:Model", "evil Model", "evil/Model.x", "a\0b.c",
    "OS.system", "\uff4f\uff53.system", "o\u017f.system", "os\u200b.system", "os .system", "\u202eos.system",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made from objects, whose config.yaml names classes; its data lie beside it."""
    place = tmp_path_factory.mktemp("hostile")
    photos = write_toy_folder(place / "photos", splits={"train": 12, "val": 6, "test": 6}, num_classes=3, image_size=32)
    data = ImageDataModule(photos, image_size=32, batch_size=6, num_workers=0)
    task = ImageClassifier("test_resnet", num_classes=3, pretrained=False)
    trainer(2, run_dir=place / RUN).fit(task, datamodule=data)
    return place / RUN


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a copy of the run, and modules that leave a file when they are imported."""
    shutil.copytree(finished, tmp_path / RUN)
    text = EVIL.format(hit=str(tmp_path / "hit"))
    for folder in (RUN, f"{RUN}/checkpoints", f"{RUN}/package", ".", "beside", "stranger-2"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "evil.py").write_text(text)
    (tmp_path / RUN / "package" / "__init__.py").write_text(text)
    (tmp_path / "linked.py").symlink_to(tmp_path / RUN / "evil.py")
    (tmp_path / "linked_folder").symlink_to(tmp_path / RUN, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])  # as the console script does
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    """Forget the modules of other tests: one that is loaded does not run again."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("evil", "beside", "linked", "linked_folder", RUN):
            del sys.modules[name]


def refused(place: Path, capsys: pytest.CaptureFixture[str], *commands: tuple[str, ...]) -> str:
    """Run commands of which nothing may be executed; return what they say."""
    said = ""
    for command in commands:
        code = main(list(command))
        out, err = capsys.readouterr()
        assert code in (2, 4), (command, code, out, err)
        assert "Traceback" not in out + err
        assert not (place / "hit").exists(), command
        said += out + err
    return said


def in_config(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = place / RUN / "config.yaml"
    config = yaml.safe_load(file.read_text())
    change(config)
    file.write_text(yaml.safe_dump(config, sort_keys=False))


def in_checkpoint(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change all checkpoints, and list the digests that they have now."""
    folder = place / RUN / "checkpoints"
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    change(checkpoint)
    names = [path.name for path in folder.glob("*.ckpt")]
    for name in names:
        (folder / name).unlink()
        torch.save(checkpoint, folder / name)
    lines = [f"{sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in names]
    (folder / "sha256.txt").write_text("\n".join(lines) + "\n")


def stop(place: Path) -> None:
    """Let the run look as if it had been interrupted, so that `resume` goes on."""
    manifest = Manifest.load(place / RUN / "manifest.json")
    Manifest(
        manifest.inputs, manifest.environment, manifest.decisions, {"status": "interrupted"}, manifest.levels,
        manifest.volatile,
    ).save(place / RUN / "manifest.json")  # fmt: skip


# A name of each group is tried with all verbs, the others with the first.
THOROUGH = ("subprocess.run", "evil", "evil.Model", f"{RUN}.evil.Model", f"{RUN}.evil", "")


def every_third_fast(names: list[str]) -> list[Any]:
    """All names as parameters; two thirds of them, none of those that are tried thoroughly, in the slow tests."""
    return [
        name if index % 3 == 0 or name.removesuffix(".Data") in THOROUGH else pytest.param(name, marks=pytest.mark.slow)
        for index, name in enumerate(names)
    ]


def verbs(name: str, commands: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return commands if name.removesuffix(".Data") in THOROUGH else commands[:1]


REBUILD = [("verify", RUN), ("reproduce", RUN), ("resume", RUN), ("verify", RUN, "--epochs", "2:2")]
LOAD = [("predict", RUN, "photos"), ("validate", RUN), ("test", RUN), ("predict", f"{RUN}/checkpoints/best.ckpt", "x")]
NAMES = [
    *CALLS,
    *(f"{module}.Model" for module in MODULES),
    *NO_NAMES,
]


@pytest.mark.parametrize("name", every_third_fast(NAMES))
def test_no_model_of_a_config_is_executed(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"args": f"touch {place}/hit", "shell": True}
    in_config(place, lambda config: config["model"].update(class_path=name, init_args=arguments))
    stop(place)
    refused(place, capsys, *verbs(name, REBUILD))


@pytest.mark.parametrize("name", every_third_fast([name.replace(".Model", ".Data") for name in NAMES]))
def test_no_data_module_of_a_config_is_executed(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"args": f"touch {place}/hit", "shell": True}
    in_config(place, lambda config: config["data"].update(class_path=name, init_args=arguments))
    stop(place)
    refused(place, capsys, *verbs(name, [*REBUILD, ("validate", RUN), ("test", RUN)]))


@pytest.mark.parametrize("name", every_third_fast(NAMES))
def test_no_task_of_a_checkpoint_is_executed(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_checkpoint(place, lambda checkpoint: checkpoint["autotimm"].update(task=name))
    refused(place, capsys, *verbs(name, LOAD))
    with pytest.raises(ModelError):
        Task.load_from_checkpoint(place / RUN / "checkpoints" / "best.ckpt")
    with pytest.raises(ModelError):
        ImageClassifier.load_from_checkpoint(place / RUN / "checkpoints" / "best.ckpt")
    assert not (place / "hit").exists()


def metric(path: str) -> list[dict[str, Any]]:
    return [{"name": "m", "backend": "custom", "metric_class": path, "params": {}, "stages": ["val"], "prog_bar": True}]


def in_turn(names: list[str], slots: list[str]) -> list[Any]:
    """Every slot with every name; fast are those tried thoroughly, and each third name with one slot in turn."""
    return [
        pytest.param(slot, name, marks=() if index % 9 == 3 * turn or name in THOROUGH else pytest.mark.slow)
        for turn, slot in enumerate(slots)
        for index, name in enumerate(names)
    ]


@pytest.mark.parametrize(("slot", "name"), in_turn([*CALLS, *MODULES], ["loss", "optimizer", "metrics"]))
def test_no_argument_is_executed(slot: str, name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    member = {"loss": "Loss", "optimizer": "Optimizer", "metrics": "Metric"}[slot]
    path = f"{name}.{member}" if name in MODULES else name
    value: Any = metric(path) if slot == "metrics" else path
    in_config(place, lambda config: config["model"]["init_args"].update({slot: value}))
    in_checkpoint(place, lambda checkpoint: checkpoint["hyper_parameters"].update({slot: value}))
    refused(place, capsys, *verbs(name, [LOAD[1], REBUILD[0], LOAD[0]]))


@pytest.mark.parametrize("name", [*(f"{module}.function" for module in MODULES), "os.system", "builtins.eval"])
def test_no_transform_of_a_checkpoint_is_executed(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_checkpoint(place, lambda checkpoint: checkpoint["autotimm"]["spec"].update(eval_transforms=name))
    refused(place, capsys, *verbs(name.removesuffix(".function"), LOAD[:3]))


@pytest.mark.parametrize("name", [*(f"{module}.function" for module in MODULES), "os.system", "shutil.rmtree"])
@pytest.mark.parametrize(("key", "task"), [("format", "detection"), ("arch", "segmentation"), ("loss", "auto")])
def test_no_option_of_a_record_is_executed(
    key: str, task: str, name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"record": "2", "path": "photos", "task": task, key: name, "backbone": "test_resnet", "pretrained": False}
    if task == "auto":
        write_toy_folder(place / "photos", n=12, num_classes=3, image_size=32)
    else:
        write = write_toy_objects if task == "detection" else write_toy_segmentation
        write(place / "photos", splits={"train": 4, "val": 2}, image_size=64)
    (place / RUN / "config.yaml").write_text(yaml.safe_dump(options))
    stop(place)
    again = ("fit", "--config", f"{RUN}/config.yaml", "--name", "again")
    refused(place, capsys, again, *verbs(name.removesuffix(".function"), [REBUILD[0], *REBUILD[1:3]]))


@pytest.mark.parametrize("text", [
    "!!python/object/apply:os.system ['touch hit']\n",
    "model: !!python/object/apply:subprocess.run [[touch, hit]]\n",
    "record: 2\nseed: !!python/name:os.system ''\n",
    "a: &a [x]\nmodel: {class_path: *a}\n",
    "model: {class_path: [subprocess.run]}\ndata: {class_path: os.system}\ntrainer: {}\n",
    "model: 1\ndata: 2\ntrainer: 3\n",
    "- model\n- data\n",
])  # fmt: skip
def test_no_yaml_is_executed(text: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / RUN / "config.yaml").write_text(text)
    stop(place)
    refused(place, capsys, *REBUILD, ("fit", "--config", f"{RUN}/config.yaml"), ("validate", RUN))


class Touch:
    """Pickled, it touches a file when it is read."""

    def __init__(self, hit: Path) -> None:
        self.hit = hit

    def __reduce__(self) -> Any:
        return Path.touch, (self.hit,)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_no_pickle_in_a_checkpoint_is_executed(
    name: str, zipped: bool, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(path: Path) -> None:
        path.unlink()
        checkpoint = {"state_dict": {}, "autotimm": Touch(place / "hit"), "epoch": 1}
        torch.save(checkpoint, path) if zipped else path.write_bytes(pickle.dumps(checkpoint))

    folder = place / RUN / "checkpoints"
    names = sorted(path.name for path in folder.glob("*.ckpt"))
    for each in names:
        write(folder / each)
    lines = [f"{sha256((folder / each).read_bytes()).hexdigest()}  {each}" for each in names]
    (folder / "sha256.txt").write_text("\n".join(lines) + "\n")
    stop(place)
    refused(
        place, capsys, ("resume", RUN), ("verify", RUN, "--epochs", "2:2"), ("validate", RUN),
        ("predict", f"{RUN}/checkpoints/{name}", "x"), ("test", RUN, "--ckpt", "last"),
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("zipped", [False, True])
def test_no_pickle_in_a_weights_file_is_executed(
    suffix: str, zipped: bool, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, weights = place / f"weights{suffix}", {"conv1.weight": Touch(place / "hit")}
    torch.save(weights, file) if zipped else file.write_bytes(pickle.dumps(weights))
    write_toy_folder(place / "photos", n=12, num_classes=3, image_size=32)
    refused(place, capsys, ("fit", "photos", "--backbone", "test_resnet", "--pretrained", str(file), "--epochs", "1"))


class TestTrust:
    """What --trust admits: the names of the manifest and of config.yaml, and no module inside the run's folder."""

    @staticmethod
    def record(place: Path, loss: str) -> None:
        in_config(place, lambda config: config["model"]["init_args"].update(loss=loss))
        in_checkpoint(place, lambda checkpoint: checkpoint["hyper_parameters"].update(loss=loss))

    def test_a_recorded_name_is_imported(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.record(place, "evil.Loss")
        said = refused(place, capsys, ("validate", RUN))
        assert "names the `loss` evil.Loss" in said
        assert "--trust" in said
        assert main(["validate", RUN, "--trust"]) == 0
        assert (place / "hit").exists()

    def test_in_python_too(self, place: Path) -> None:
        self.record(place, "evil.Loss")
        with pytest.raises(ModelError, match=r"names the `loss` evil.Loss.*trust=True"):
            Run(RUN).model()
        assert type(Run(RUN, trust=True).model().criterion).__name__ == "Loss"
        path = Path(RUN, "checkpoints", "best.ckpt")
        with pytest.raises(ModelError, match="trust=True"):
            Task.load_from_checkpoint(path)
        assert type(Task.load_from_checkpoint(path, trust=True).criterion).__name__ == "Loss"

    def test_a_name_that_only_a_checkpoint_holds_is_not(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        in_checkpoint(place, lambda checkpoint: checkpoint["hyper_parameters"].update(loss="evil.Loss"))
        assert "trust does not extend to it" in refused(place, capsys, ("validate", RUN, "--trust"))

    def test_a_checkpoint_that_stands_alone_is_its_own_record(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.record(place, "evil.Loss")
        shutil.copy(Path(RUN, "checkpoints", "best.ckpt"), "alone.ckpt")
        with pytest.raises(ModelError, match="trust=True"):
            Task.load_from_checkpoint("alone.ckpt")
        assert not Path("hit").exists()
        assert type(Task.load_from_checkpoint("alone.ckpt", trust=True).criterion).__name__ == "Loss"

    @pytest.mark.parametrize("module", [name for name in MODULES if name not in ("evil", "beside.evil")])
    def test_a_module_inside_the_run_is_not(self, module: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.record(place, f"{module}.Loss")
        stop(place)
        refused(place, capsys, *((*command, "--trust") for command in [*REBUILD, *LOAD[:3]]))

    @pytest.mark.parametrize("call", ["os.system", "builtins.print", "subprocess.run"])
    def test_nor_is_a_function_of_python_itself(
        self, call: str, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.record(place, call)
        assert "is a part of Python itself" in refused(place, capsys, ("validate", RUN, "--trust"))

    def test_a_class_is_checked_for_its_kind(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        in_config(place, lambda config: config["model"].update(class_path="evil.Data", init_args={}))
        main(["verify", RUN, "--trust"])
        assert "must be the import path of a subclass of pytorch_lightning.LightningModule" in capsys.readouterr().out


class TestOwnRuns:
    """Runs that this user made here need no flag, as long as none of their files has changed."""

    @pytest.fixture
    def own(self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        (tmp_path / "own_losses.py").write_text("from autotimm.losses import FocalLoss\n\nclass Mine(FocalLoss): ...\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        data = ImageDataModule(finished.parent / "photos", image_size=32, batch_size=6, num_workers=0)
        task = ImageClassifier("test_resnet", num_classes=3, pretrained=False, loss="own_losses.Mine")
        trainer(run_dir=tmp_path / "runs" / "own").fit(task, datamodule=data)
        yield tmp_path / "runs" / "own"
        sys.modules.pop("own_losses", None)

    def test_one_is_used_without_a_flag(self, own: Path) -> None:
        assert main(["verify", str(own)]) == 0
        assert main(["validate", str(own)]) == 0
        moved = own.rename(own.with_name("moved"))
        assert type(Task.load_from_checkpoint(moved / "checkpoints" / "best.ckpt").criterion).__name__ == "Mine"

    @pytest.mark.parametrize("file", ["manifest.json", "config.yaml", "checkpoints/last.ckpt"])
    def test_a_changed_file_makes_it_a_strangers(
        self, own: Path, file: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        changed = (own / file).read_bytes()
        (own / file).unlink()  # best.ckpt and last.ckpt are links to one file
        (own / file).write_bytes(
            changed.replace(b'"folder"', b'"Folder"') if file == "manifest.json" else changed + b"\n"
        )
        assert main(["validate", str(own)]) == 4
        assert "--trust" in capsys.readouterr().err
        assert main(["validate", str(own), "--trust"]) == 0

    def test_another_user_is_asked(self, own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
        with pytest.raises(ModelError, match="--trust"):
            Run(own).model()

    def test_nothing_is_kept_of_a_run_without_own_names(self, own: Path, finished: Path, tmp_path: Path) -> None:
        task = ImageClassifier("test_resnet", num_classes=3, pretrained=False)
        data = ImageDataModule(finished.parent / "photos", image_size=32, batch_size=6, num_workers=0)
        trainer(run_dir=tmp_path / "runs" / "another").fit(task, datamodule=data)
        (file,) = (tmp_path / "state" / "autotimm" / "made").iterdir()
        assert read_state("made", Manifest.load(own / "manifest.json").run_id)["names"] == ["own_losses.Mine"]
        assert file.stat().st_size < 2000


@pytest.mark.parametrize("key", ["model", "data", "trainer"])
@pytest.mark.parametrize(
    "name", ["subprocess.run", "os.system", "torch.hub.load", f"{RUN}.evil.Model", "builtins.eval"]
)
def test_a_file_in_the_style_of_lightning_names_classes_of_their_kind(
    key: str, name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections: dict[str, Any] = {
        "model": {"class_path": "ImageClassifier", "init_args": {"num_classes": 3}},
        "data": {"class_path": "ImageDataModule", "init_args": {"data_dir": "photos"}},
        "trainer": {},
    }
    sections[key] = {"class_path": name, "init_args": {"args": "touch hit", "shell": True}}
    Path("own.yaml").write_text(yaml.safe_dump(sections))
    refused(place, capsys, ("fit", "--config", "own.yaml"))
    sections[key] = {"class_path": name, "init_args": {"callbacks": [{"class_path": name}], "loss": name}}
    Path("own.yaml").write_text(yaml.safe_dump(sections))
    refused(place, capsys, ("fit", "--config", "own.yaml"))


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.print", "subprocess.run", f"{RUN}.evil.Loss", "stranger-2.evil.Loss"]
)
@pytest.mark.parametrize("option", ["loss", "optimizer"])
def test_options_name_classes_of_their_kind(
    option: str, name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_toy_folder(place / "photos", n=12, num_classes=3, image_size=32)
    command = ("fit", "photos", "--backbone", "test_resnet", "--pretrained", "false", "--epochs", "1", f"--{option}")
    said = refused(place, capsys, (*command, name))
    typo = refused(place, capsys, (*command, "no_such.Thing"))
    before = said.partition(name)[0].splitlines()[-1]
    assert before == typo.partition("no_such.Thing")[0].splitlines()[-1]
    assert not list((place).glob("runs/*"))


def test_a_replay_logs_nowhere(finished: Path, tmp_path: Path) -> None:
    """Loggers of a record would write to the account of whoever verifies it."""
    run = small_fit(finished.parent / "photos", tmp_path, name="logged", val_split=None, loggers=["tensorboard"])
    for loggers in (False, True):
        place = RunFolder(tmp_path / "again", tmp_path)
        assert bool(rebuild(run.path, place, loggers=loggers).trainer.loggers) is loggers
    assert run.config["loggers"] == ["tensorboard"]
