"""What a stranger's run may not reach: files outside of its folder, programs, other modules and servers.

The names in its files are the subject of `test_hostile_runs.py`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import warm
from autotimm import ImageClassifier, ImageDataModule, ModelError, Run, RunError, Task
from autotimm.cli.fit import FIT, configure
from autotimm.cli.lightning_yaml import build
from autotimm.cli.main import main
from autotimm.cli.parser import parse
from autotimm.config import FitConfig, defaults, read_yaml
from autotimm.data.toy import write_toy_folder
from autotimm.models.backbone.architectures import find_architecture, remember_architecture
from autotimm.records.atomic import write_text
from autotimm.records.environment import code_state
from autotimm.records.manifest import Manifest
from autotimm.selfcheck.setup import Setup, make
from autotimm.selfcheck.variations import Variation
from autotimm.serialization import import_name
from autotimm.studies.trial_process import work
from training import small_fit, trainer

RUN = "stranger"
EVIL = """
import pathlib
import torch

pathlib.Path({hit!r}).touch()

class Loss(torch.nn.Module):
    def forward(self, predictions, targets):
        return predictions.sum()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a run made from options and one made from objects."""
    place = tmp_path_factory.mktemp("made")
    photos = write_toy_folder(place / "photos", splits={"train": 12, "val": 6, "test": 6}, num_classes=3, image_size=32)
    small_fit(photos, place, name="options", val_split=None)
    data = ImageDataModule(photos, image_size=32, batch_size=6, num_workers=0)
    task = ImageClassifier("test_resnet", num_classes=3, pretrained=False)
    trainer(2, run_dir=place / "objects").fit(task, datamodule=data)
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of the run that was made from objects, and a module beside it."""
    copy(made / "objects", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def copy(run: Path, place: Path) -> None:
    shutil.copytree(run, place / RUN)
    (place / "evil.py").write_text(EVIL.format(hit=str(place / "hit")))


def own_modules(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `evil` be importable, as after a name of the user's own."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path, str(place)])
    monkeypatch.delitem(sys.modules, "evil", raising=False)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit a manifest as a forger would: with its digest."""
    sections = json.loads((folder / "manifest.json").read_text())
    change(sections)
    names = ("inputs", "environment", "decisions", "results", "levels", "volatile")
    Manifest(**{name: sections[name] for name in names}).save(folder / "manifest.json")


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def edit_checkpoint(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    change(checkpoint)
    (folder / "checkpoints" / "best.ckpt").unlink()
    torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")


def interrupt(folder: Path) -> None:
    edit_manifest(folder, lambda sections: sections.update(results={"status": "interrupted"}))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses that are asked for in the test; none is reached."""
    addresses: list[Any] = []

    def refuse(*address: Any, **options: Any) -> Any:
        addresses.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return addresses


class TestLinks:
    """A run is never written to through a link out of its folder."""

    @pytest.mark.parametrize(
        "name", [".lock", "ledger.jsonl", "config.yaml", "checkpoints", "checkpoints/last.ckpt", "tensorboard"]
    )
    def test_resume_refuses_one(self, name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        interrupt(place / RUN)
        target, link = place / "mine", place / RUN / name
        if link.exists() and name != ".lock":
            link.rename(target)
        else:
            link.unlink(missing_ok=True)
            target.write_text("precious\n")
        link.symlink_to(target)
        before = contents(target)
        assert main(["resume", RUN]) == 4
        assert f"is a link to {target}" in capsys.readouterr().err
        assert contents(target) == before

    def test_a_link_within_the_run_is_fine(self, place: Path) -> None:
        interrupt(place / RUN)
        last = place / RUN / "checkpoints" / "last.ckpt"
        (epoch,) = last.parent.glob("epoch-0002-*.ckpt")
        last.unlink()
        last.symlink_to(epoch.name)
        assert main(["resume", RUN]) == 0

    def test_temporary_files_have_names_that_nobody_can_know(self, tmp_path: Path) -> None:
        (tmp_path / "victim").write_text("precious\n")
        for number in (os.getpid(), "0", "tmp"):
            (tmp_path / f".results.json.{number}.tmp").symlink_to(tmp_path / "victim")
        write_text(tmp_path / "results.json", "{}")
        assert (tmp_path / "victim").read_text() == "precious\n"
        assert (tmp_path / "results.json").read_text() == "{}"


def contents(path: Path) -> Any:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {file: file.read_bytes() for file in files if file.is_file()}


class TestGit:
    """The state of the code is read from a repository that may have come with the run, of which nothing is executed."""

    @pytest.fixture
    def repository(self, tmp_path: Path) -> Path:
        git(tmp_path, "init", "--quiet")
        (tmp_path / ".gitattributes").write_text("*.txt filter=x diff=x\n")
        (tmp_path / "code.txt").write_text("a\n")
        git(tmp_path, "add", ".")
        git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=first")
        return tmp_path

    @pytest.mark.parametrize(
        "name",
        ["filter.x.clean", "filter.x.process", "diff.x.textconv", "diff.x.command", "diff.external", "core.fsmonitor",
         "core.pager", "core.sshCommand"],
    )  # fmt: skip
    def test_no_setting_is_executed(self, name: str, repository: Path) -> None:
        git(repository, "config", name, f"touch {repository}/hit; cat")
        git(repository, "config", "filter.x.required", "true")
        (repository / "code.txt").write_text("b\n")
        state = code_state(repository)
        assert state is not None
        assert state["dirty"]
        assert not (repository / "hit").exists()

    def test_no_filter_with_a_strange_name_is(self, repository: Path) -> None:
        (repository / ".gitattributes").write_text("*.txt filter=x=y\n")
        git(repository, "config", "filter.x=y.clean", f"touch {repository}/hit; cat")
        (repository / "code.txt").write_text("b\n")
        assert code_state(repository) is None
        assert not (repository / "hit").exists()

    def test_no_hook_is(self, repository: Path) -> None:
        for name in ("post-index-change", "reference-transaction"):
            (repository / ".git" / "hooks").mkdir(exist_ok=True)
            hook = repository / ".git" / "hooks" / name
            hook.write_text(f"#!/bin/sh\ntouch {repository}/hit\n")
            hook.chmod(0o755)
        os.utime(repository / "code.txt", (1, 1))
        assert code_state(repository) is not None
        assert not (repository / "hit").exists()

    def test_what_is_missing_is_not_fetched(self, repository: Path) -> None:
        for name, value in (("core.repositoryFormatVersion", "1"), ("extensions.partialClone", "other"),
                            ("remote.other.promisor", "true"), ("remote.other.url", str(repository)),
                            ("remote.other.uploadpack", f"touch {repository}/hit; git-upload-pack")):  # fmt: skip
            git(repository, "config", name, value)
        blob = git(repository, "rev-parse", "HEAD:code.txt")
        (repository / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
        (repository / "code.txt").write_text("b\n")
        assert code_state(repository) is None
        assert not (repository / "hit").exists()

    def test_nothing_of_a_submodule_is(self, repository: Path) -> None:
        inner = repository / "inner"
        inner.mkdir()
        git(inner, "init", "--quiet")
        (inner / "code.txt").write_text("a\n")
        git(inner, "add", ".")
        commit = ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=first")
        git(inner, *commit)
        git(repository, "add", "inner")
        git(repository, *commit)
        git(inner, "config", "core.fsmonitor", f"touch {repository}/hit; false")
        git(repository, "config", "diff.submodule", "diff")
        (inner / "code.txt").write_text("b\n")
        code_state(repository)
        assert not (repository / "hit").exists()


def git(folder: Path, *arguments: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class TestTrainer:
    """Of a recorded trainer a replay is given what changes numbers, and nothing that writes elsewhere."""

    @pytest.mark.parametrize("source", ["options", "objects"])
    @pytest.mark.parametrize("verb", ["verify", "reproduce"])
    def test_settings_that_write_elsewhere_are_left_out(
        self, source: str, verb: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy(made / source, tmp_path)
        monkeypatch.chdir(tmp_path)
        settings = {"default_root_dir": "elsewhere", "profiler": "pytorch", "logger": True, "run_dir": "elsewhere",
                    "model_registry": "a/b", "enable_autolog_hparams": True}  # fmt: skip
        if source == "options":
            edit_manifest(tmp_path / RUN, lambda sections: sections["inputs"]["config"]["trainer"].update(settings))
        else:
            edit_config(tmp_path / RUN, lambda config: config["trainer"].update(settings))
        main([verb, RUN])
        allowed = {RUN, "evil.py", f"{RUN}-again-001"} if verb == "reproduce" else {RUN, "evil.py"}
        assert {path.name for path in tmp_path.iterdir()} == allowed

    @pytest.mark.parametrize(
        "setting",
        [{"barebones": True}, {"fast_dev_run": 1}, {"callbacks": ["evil.Loss"]}, {"callbacks": "evil.Loss"},
         {"plugins": [{"class_path": "evil.Loss"}]}, {"devices": "evil"}, {"strategy": "evil.Loss"},
         {"accelerator": "evil.Loss"}],
        ids=str,
    )  # fmt: skip
    @pytest.mark.parametrize("source", ["options", "objects"])
    def test_settings_that_no_run_has_are_refused(
        self, source: str, setting: dict[str, Any], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        copy(made / source, tmp_path)
        own_modules(tmp_path, monkeypatch)
        edit_manifest(tmp_path / RUN, lambda sections: sections["inputs"]["config"]["trainer"].update(setting))
        if source == "objects":
            edit_config(tmp_path / RUN, lambda config: config["trainer"].update(setting))
        code = main(["reproduce", RUN])
        # What an option says wins over the manifest, so that the run may be fine.
        assert code in (2, 4) or (source == "options" and {*setting} & {"devices", "accelerator"})
        assert "Traceback" not in capsys.readouterr().err
        assert not Path("hit").exists()


class TestConfigOfARun:
    """The config.yaml of a run is a record for every verb that takes a file."""

    @pytest.mark.parametrize("source", ["options", "objects"])
    @pytest.mark.parametrize(
        "command",
        [("fit", "--config"), ("doctor", "--config"), ("study", "--seeds", "2", "--config"),
         ("study", "photos", "--backbone", "test_resnet", "--seeds", "2", "--vs")],
        ids=lambda command: "-".join(command),
    )  # fmt: skip
    def test_its_names_are_not_imported(
        self, command: tuple[str, ...], source: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        copy(made / source, tmp_path)
        own_modules(tmp_path, monkeypatch)
        change = {"loss": "evil.Loss"}
        edit_config(
            tmp_path / RUN,
            lambda config: (config if source == "options" else config["model"]["init_args"]).update(change),
        )
        code = main([*command, f"{RUN}/config.yaml"])
        # `doctor` looks at neither the loss nor the optimizer of a file of options.
        assert code in (2, 4) or (command[0] == "doctor" and source == "options")
        assert "Traceback" not in capsys.readouterr().err
        assert not Path("hit").exists()
        assert not Path("studies").exists()

    @pytest.mark.parametrize("source", ["options", "objects"])
    def test_nor_are_they_in_the_processes_of_selfcheck(
        self, source: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy(made / source, tmp_path)
        own_modules(tmp_path, monkeypatch)
        file = tmp_path / RUN / "config.yaml"
        edit_config(
            tmp_path / RUN,
            lambda config: (config if source == "options" else config["model"]["init_args"]).update(loss="evil.Loss"),
        )
        values, nested = read_yaml(str(file))
        parts: dict[str, Any] = {"nested": values, "builder": import_name(build)} if nested else {"options": values}
        with pytest.raises(ModelError, match=r"names the `loss` evil.Loss"):
            make(Setup(**parts, file="config.yaml", place=str(file)), Variation(), tmp_path, tmp_path / "run")
        assert not Path("hit").exists()

    @pytest.mark.parametrize(
        ("section", "argument", "value"),
        [
            *(("trainer", name, "evil.Loss") for name in ("callbacks", "plugins", "strategy", "accelerator")),
            ("trainer", "callbacks", ["evil.Loss"]),
            ("trainer", "plugins", {"class_path": "autotimm.data.toy.write_toy_folder", "init_args": {"path": "hit"}}),
            ("trainer", "callbacks", [{"class_path": "EarlyStopping"}]),
            *(("model", name, "evil.Loss") for name in ("loss", "optimizer", "metrics", "head")),
            *(("data", name, "evil.Loss") for name in ("train_transforms", "eval_transforms", "augmentation")),
        ],
    )
    def test_no_text_in_the_style_of_lightning_is_imported(
        self, section: str, argument: str, value: Any, place: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        own_modules(place, monkeypatch)
        edit_config(
            place / RUN,
            lambda config: config[section].get("init_args", config[section]).update({argument: value}),
        )
        assert main(["fit", "--config", f"{RUN}/config.yaml"]) in (2, 4)
        assert "Traceback" not in capsys.readouterr().err
        assert not Path("hit").exists()

    def test_one_that_names_libraries_alone_is_trained(self, made: Path, place: Path) -> None:
        shutil.copytree(made / "photos", place / "photos")
        edit_config(place / RUN, lambda config: config["model"]["init_args"].update(loss="torch.nn.CrossEntropyLoss"))
        assert main(["fit", "--config", f"{RUN}/config.yaml"]) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of POSIX")
class TestPipes:
    """A pipe that nobody writes to keeps whoever opens it waiting for ever."""

    @pytest.mark.parametrize("place", ["manifest.json", "results.json", "checkpoints/last.ckpt", "notes"])
    @pytest.mark.parametrize("verb", ["verify", "resume", "predict", "levels"])
    def test_in_a_run_folder(self, verb, place, made, tmp_path, capsys):
        run = tmp_path / RUN
        shutil.copytree(made / "options", run)
        (run / place).unlink(missing_ok=True)
        os.mkfifo(run / place)
        assert main([verb, str(run), *([str(made / "photos")] if verb == "predict" else [])]) == 4
        assert f"{run / place} is a pipe or a device" in capsys.readouterr().err

    def test_in_a_folder_of_images(self, made, tmp_path, capsys):
        photos = tmp_path / "photos"
        shutil.copytree(made / "photos", photos)
        folder = next(path for path in (photos / "train").iterdir() if path.is_dir())
        os.mkfifo(folder / "zz.jpg")
        data = ImageDataModule(photos, image_size=32, num_workers=0)
        data.setup()
        assert "zz.jpg" not in str(data.tables["train"].ids)

    def test_that_is_named(self, made, tmp_path, capsys):
        os.mkfifo(tmp_path / "a.jpg")
        (tmp_path / "photos.csv").write_text(f"image,label\n{tmp_path / 'a.jpg'},a\n")
        assert main(["predict", str(made / "options"), str(tmp_path / "a.jpg")]) == 3
        assert "it is a folder, a pipe or a device, and no file" in capsys.readouterr().err
        assert main(["fit", str(tmp_path / "photos.csv"), "--backbone", "test_resnet", "--pretrained", "false"]) == 3
        assert "it is a folder, a pipe or a device, and no file" in capsys.readouterr().err


def test_the_file_of_a_run_does_not_say_where_a_new_run_goes(made, tmp_path):
    lines = (made / "options" / "config.yaml").read_text().splitlines()
    places = {"out": f"out: {tmp_path}/elsewhere", "name": "name: theirs"}
    (tmp_path / "config.yaml").write_text("\n".join(places.get(line.split(":")[0], line) for line in lines))
    config = configure(parse(FIT, ["--config", str(tmp_path / "config.yaml")]))
    assert (config.out, config.name) == (defaults()["out"], defaults()["name"])
    config = configure(parse(FIT, ["--config", str(tmp_path / "config.yaml"), "--name", "mine"]))
    assert config.name == "mine"


def test_a_study_removes_no_folder_that_is_not_of_a_run(made, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("my only copy")
    values, _ = read_yaml(str(made / "options" / "config.yaml"))
    config = FitConfig.layered([("file plan.yaml", {**values, "out": str(tmp_path), "name": "precious"})])
    with pytest.raises(RunError, match="It holds other files"):
        work(config)
    assert (precious / "thesis.txt").read_text() == "my only copy"


class TestNetwork:
    """A record does not decide whom this machine asks."""

    @pytest.mark.parametrize("architecture", [None, {"name": "hf-hub:a/b", "timm_name": "hf-hub:a/b"}])
    def test_loading_a_checkpoint_asks_nobody(
        self, architecture: dict[str, Any] | None, place: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        def change(checkpoint: dict[str, Any]) -> None:
            checkpoint["hyper_parameters"]["backbone"] = "hf-hub:a/b"
            checkpoint["autotimm"]["weights"]["architecture"] = architecture

        edit_checkpoint(place / RUN, change)
        assert main(["validate", RUN]) == 4
        assert "Traceback" not in capsys.readouterr().err
        assert not asked

    @pytest.mark.parametrize("verb", ["verify", "reproduce", "validate"])
    def test_no_data_set_is_downloaded(
        self, verb: str, place: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = {"data_dir": str(place / "elsewhere"), "dataset_name": "CIFAR10", "download": True}
        edit_config(place / RUN, lambda config: config["data"]["init_args"].update(arguments))
        assert main([verb, RUN]) == 3
        assert "CIFAR10 is not in" in "".join(capsys.readouterr())
        assert not asked
        assert not Path("elsewhere").exists()


class TestArchitectures:
    """A checkpoint records the architecture of a hub repository; it cannot say what a name of timm means."""

    def test_a_name_of_timm_keeps_its_meaning(self, place: Path) -> None:
        other = {"name": "test_resnet", "timm_name": "test_vit", "arguments": {}, "overlay": {}}
        edit_checkpoint(place / RUN, lambda checkpoint: checkpoint["autotimm"]["weights"].update(architecture=other))
        with pytest.raises(ModelError, match="must be that of a hub repository"):
            Run(RUN).model()
        assert find_architecture("test_resnet").timm_name == "test_resnet"

    def test_it_says_not_where_files_are(self) -> None:
        arguments = {"checkpoint_path": "evil.pth", "pretrained": True, "cache_dir": "elsewhere", "in_chans": 3,
                     "layers": [1, 1]}  # fmt: skip
        overlay = {"file": "evil.pth", "url": "http://evil", "custom_load": True, "mean": [0.5, 0.5, 0.5]}
        record = {"name": "hf-hub:a/evil", "timm_name": "test_resnet", "arguments": arguments, "overlay": overlay}
        remember_architecture(record)
        architecture = find_architecture("hf-hub:a/evil")
        assert architecture.arguments == {"layers": [1, 1]}
        assert architecture.overlay == {"mean": (0.5, 0.5, 0.5)}

    @pytest.mark.parametrize(
        "record", [{}, {"name": "hf-hub:a/b"}, {"name": "hf-hub:a/b", "timm_name": "local-dir:/tmp"},
                   {"name": "hf-hub:a/b", "timm_name": "test_resnet", "arguments": 3}],
    )  # fmt: skip
    def test_a_damaged_one_is_refused(self, record: dict[str, Any]) -> None:
        with pytest.raises(ModelError):
            remember_architecture(record)


class TestSearchPath:
    """Files that are called like a library are not found in the working directory."""

    NAMES = ("yaml", "timm", "torch", "apex", "wandb", "rich", "numpy", "cv2", "litmodels", "plugin", "statistics")

    @pytest.mark.parametrize("inside", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_nothing_is_imported_from_the_working_directory(self, inside: bool, place: Path, made: Path) -> None:
        folder = place / RUN if inside else place
        for name in self.NAMES:
            (folder / f"{name}.py").write_text(f"open({str(place / 'hit')!r}, 'w').write({name!r})\n")
        package = folder / "plugin-1.0.dist-info"
        package.mkdir()
        (package / "METADATA").write_text("Name: plugin\nVersion: 1.0\n")
        groups = ("pytorch_lightning.callbacks_factory", "torch.backends")
        (package / "entry_points.txt").write_text("".join(f"[{group}]\nx = plugin:f\n" for group in groups))
        command = [sys.executable, "-m", "autotimm", "validate", "." if inside else RUN, str(made / "photos")]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert not (place / "hit").exists(), (place / "hit").read_text()
        assert done.returncode == 0, done.stderr

    def test_the_users_own_modules_are(self, place: Path, made: Path) -> None:
        words = ["fit", made / "photos", "--loss", "evil.Loss", "--epochs", "1", "--backbone", "test_resnet",
                 "--pretrained", "false", "--image-size", "32", "--num-workers", "0", "--threads", "1"]  # fmt: skip
        done = warm.run(["-m", "autotimm", *words], place)
        assert done.returncode == 0, done.stderr
        assert (place / "hit").exists()


class TestCheckpointsElsewhere:
    """A checkpoint has the trust of a run only if it is one of its checkpoints."""

    @pytest.fixture
    def own(self, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A run of this user's own, with a class of theirs."""
        copy(made / "objects", tmp_path)
        own_modules(tmp_path, monkeypatch)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        data = ImageDataModule(made / "photos", image_size=32, batch_size=6, num_workers=0)
        task = ImageClassifier("test_resnet", num_classes=3, pretrained=False, loss="evil.Loss")
        trainer(run_dir=tmp_path / "own").fit(task, datamodule=data)
        return tmp_path / "own"

    @pytest.mark.parametrize("name", ["elsewhere.ckpt", "own/others/best.ckpt", "own/checkpoints/best.pt"])
    def test_another_file_has_not(self, name: str, own: Path) -> None:
        file = own.parent / name
        file.parent.mkdir(exist_ok=True)
        shutil.copy(own / "checkpoints" / "best.ckpt", file)
        Run(own).model()
        for load in (lambda: Run(own).model(file), lambda: Task.load_from_checkpoint(file)):
            with pytest.raises(ModelError, match="--trust"):
                load()
        assert type(Run(own, trust=True).model(file).criterion).__name__ == "Loss"

    def test_a_folder_of_checkpoints_alone_is_a_run_folder(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own_modules(place, monkeypatch)
        shutil.copy("evil.py", RUN)
        for name in ("manifest.json", "config.yaml", "ledger.jsonl"):
            Path(RUN, name).unlink()
        edit_checkpoint(Path(RUN), lambda checkpoint: checkpoint["hyper_parameters"].update(loss=f"{RUN}.evil.Loss"))
        with pytest.raises(ModelError, match="lies inside the run folder"):
            Run(RUN, trust=True).model()
        assert not Path("hit").exists()

    def test_a_folder_that_is_called_like_a_checkpoint_is_none(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Some of Lightning's strategies would read it, and unpickle what they find."""
        interrupt(place / RUN)
        for file in Path(RUN, "checkpoints").glob("*.ckpt"):
            file.unlink()
            file.mkdir()
        assert main(["resume", RUN]) == 4
        assert main(["verify", RUN, "--epochs", "2:2"]) in (2, 4)
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["init", "compiled", "linked"])
def test_a_package_is_known_by_the_file_that_is_executed(
    kind: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an `__init__` is compiled, or a link into the run."""
    own_modules(place, monkeypatch)
    shutil.copy("evil.py", f"{RUN}/evil.py")
    Path("package").mkdir()
    if kind == "linked":
        Path("package", "__init__.py").symlink_to(place / RUN / "evil.py")
    else:
        Path("package").rmdir()
        Path("package").symlink_to(place / RUN, target_is_directory=True)
        Path(RUN, "__init__.py" if kind == "init" else "__init__.pyc").write_bytes(b"")
    edit_config(place / RUN, lambda config: config["model"]["init_args"].update(loss="package.Loss"))
    edit_checkpoint(place / RUN, lambda checkpoint: checkpoint["hyper_parameters"].update(loss="package.Loss"))
    with pytest.raises(ModelError, match="lies inside the run folder"):
        Run(RUN, trust=True).model()
    assert not Path("hit").exists()


@pytest.mark.parametrize("name", ["files.csv", "splits.csv", "ledger.jsonl", "manifest.json", "results.json"])
@pytest.mark.parametrize("verb", ["verify", "resume", "predict"])
def test_a_folder_in_place_of_a_file(verb, name, made, tmp_path, capsys):
    run = tmp_path / RUN
    shutil.copytree(made / "options", run)
    (run / name).unlink()
    (run / name).mkdir()
    assert main([verb, str(run), *([str(made / "photos")] if verb == "predict" else [])]) == 4
    assert f"{run / name} is a folder" in capsys.readouterr().err


def test_a_link_to_itself(made, tmp_path, capsys):
    run = tmp_path / RUN
    shutil.copytree(made / "options", run)
    (run / "ledger.jsonl").unlink()
    (run / "ledger.jsonl").symlink_to("ledger.jsonl")
    for verb in ("verify", "resume", "levels"):
        assert main([verb, str(run)]) == 4
        assert f"{run / 'ledger.jsonl'} is a link to itself" in capsys.readouterr().err
