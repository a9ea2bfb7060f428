"""The self-check passes reproducible setups and reports others. Every training is a real one."""

import json
from pathlib import Path

import pytest

import autotimm.selfcheck.check as check_module
import warm
from autotimm import ImageClassifier
from autotimm.cli.main import main
from autotimm.errors import UsageError
from autotimm.selfcheck import Report, Result
from autotimm.selfcheck.processes import PLAN, Child
from autotimm.selfcheck.setup import Setup, make
from autotimm.selfcheck.variations import CHECKS, Variation, World

CLASSES = """
import random

import numpy as np
import torch

from autotimm import ImageClassifier, ImageDataModule, Sample
from autotimm.data import Table


class Wrapped(Table):
    def __init__(self, table):
        self.table = table
        self.ids, self.class_names, self.strata = table.ids, table.class_names, list(table.strata)


class Noisy(Wrapped):
    own = np.random.default_rng()

    def load(self, index):
        sample = self.table.load(index)
        return Sample(sample.image ^ int(self.own.integers(256)), sample.target, sample.id)


class Unordered(Wrapped):
    def __init__(self, table):
        super().__init__(table)
        self.class_names = tuple({table.class_names[label] for label in table.strata})
        self.strata = [self.class_names.index(table.class_names[label]) for label in table.strata]

    def load(self, index):
        return Sample(self.table.load(index).image, self.strata[index], self.ids[index])


class OwnGenerator(ImageDataModule):
    def read(self, split):
        table = super().read(split)
        return None if table is None else Noisy(table)


class SetOfClasses(ImageDataModule):
    def read(self, split):
        table = super().read(split)
        return None if table is None else Unordered(table)


class Rolled:
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, image):
        return image.roll(int(self.rng.integers(32)), 2)


class FixedGenerator(ImageDataModule):
    def __init__(self, data_dir, **options):
        super().__init__(data_dir, train_transforms=Rolled(), **options)


class DrawsInItsConstructor(ImageClassifier):
    def __init__(self, num_classes: int, **options):
        scale = random.random()
        super().__init__("test_resnet", num_classes, **options)
        with torch.no_grad():
            next(self.network.parameters()).mul_(scale)


class NeedsAWidth(ImageClassifier):
    def __init__(self, width, num_classes, **options):
        super().__init__("test_resnet", num_classes, **options)
"""


@pytest.fixture(autouse=True)
def _classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the check in a folder with a module of the user's own."""
    (tmp_path / "odd_classes.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch):
    """Run only the processes and checks that a test needs."""

    def shorten(checks: tuple[str, ...], children: tuple[Child, ...]) -> None:
        chosen = tuple(check for check in CHECKS if check.name in ("another process", *checks))
        monkeypatch.setattr(check_module, "CHECKS", chosen)
        monkeypatch.setattr(check_module, "PLAN", children)
        monkeypatch.setattr(check_module, "STREAMS", ())

    return shorten


PLAIN = Child("plain", {"reference": Variation()})


def result_of(report: Report, name: str) -> Result:
    return next(result for result in report.results if result.name == name)


@pytest.mark.parametrize(
    ("classes", "said", "cause"),
    [
        pytest.param(
            {"data": "odd_classes.OwnGenerator"},
            "other pixels",
            "the data set draws from a generator of its own",
            marks=pytest.mark.slow,
            id="a data set with a generator of its own",
        ),
        pytest.param(
            {"model": "odd_classes.DrawsInItsConstructor"},
            "initial weights differ",
            "weights are drawn outside",
            id="a constructor that draws from random",
        ),
    ],
)
def test_difference_between_processes_ends_the_check(classes, said, cause, plan, monkeypatch):
    monkeypatch.setattr("autotimm.selfcheck.processes.subprocess", warm.Subprocess)
    plan((), (PLAIN, Child("again", {"restart": Variation()})))
    report = check_module.selfcheck(**classes)
    assert report.exit_code == 5
    assert said in report.problems[0].text
    assert cause in report.problems[0].cause
    assert report.levels["R1"] == "no, because this changes the result: another process"


@pytest.mark.slow
def test_transform_with_a_fixed_generator_fails_with_workers(plan):
    by_name = {check.trained: check.variation for check in CHECKS}
    plan(("2 workers",), (PLAIN, Child("workers", {"restart": Variation(), "workers2": by_name["workers2"]})))
    report = check_module.selfcheck(data="odd_classes.FixedGenerator")
    assert result_of(report, "another process").verdict == "ok"
    assert result_of(report, "2 workers").cause.startswith("A data set or a transform keeps a generator")
    assert report.levels["R1"] == "checked"
    assert report.levels["R3"] == "no, because this changes the result: 2 workers"


@pytest.mark.slow
def test_classes_from_a_set_fail_with_another_hash_seed(plan):
    children = (PLAIN, Child("again", {"restart": Variation()}))
    surrounded = Child("surrounded", {"surrounded": Variation()}, World(1, zone=True))
    plan(("PYTHONHASHSEED 1", "another time zone"), (*children, surrounded))
    report = check_module.selfcheck(data="odd_classes.SetOfClasses")
    assert [result.name for result in report.problems] == ["PYTHONHASHSEED 1"]
    assert "sort what you iterate over" in report.problems[0].cause


@pytest.mark.slow
def test_reproducible_setup(capsys):
    assert main(["selfcheck", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {result["verdict"] for result in report["results"]} == {"ok", "skipped"}
    skipped = [result["name"] for result in report["results"] if result["verdict"] == "skipped"]
    assert set(skipped) <= {"another seed of `eval`", "one free core, 2 threads"}
    assert {name: text for name, text in report["levels"].items() if name < "R4"} == dict.fromkeys(
        ("R0", "R1", "R2", "R3"), "checked"
    )


@pytest.mark.slow
def test_lightning_style_file_with_own_images(toy_folder, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text(
        f"""
model:
  class_path: odd_classes.DrawsInItsConstructor
  init_args: {{num_classes: 3, pretrained: false}}
data: {{class_path: ImageDataModule, init_args: {{data_dir: {toy_folder}, image_size: 32, val_split: 0.25}}}}
trainer: {{accelerator: cpu, max_epochs: 7}}
"""
    )
    assert main(["selfcheck", "--config", "own.yaml"]) == 5
    assert "The initial weights differ" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "odd_classes.Missing"], "must be the import path of a subclass of Task. It cannot be imported"),
        (["--model", "autotimm.ImageDataModule"], "must be the import path of a subclass of Task"),
        (["--data", "autotimm.DataModule"], "must be a subclass of DataModule"),
        pytest.param(["--model", "odd_classes.NeedsAWidth"], "needs the argument `width`", marks=pytest.mark.slow),
        (["--config", "missing.yaml"], "cannot be read"),
    ],
)
def test_unusable_classes_and_files_are_refused(words, said, capsys):
    assert main(["selfcheck", *words]) == 2
    assert said in capsys.readouterr().err


def test_options_of_a_file_are_used(toy_folder, tmp_path):
    options = {"path": str(toy_folder), "backbone": "test_resnet", "image_size": "48", "seed": "none", "epochs": "9"}
    options |= {"batch_size": "5", "pretrained": "false", "precision": "bf16-mixed"}
    setup = Setup(options=options, file="a.yaml")
    assert not setup.toy
    task, data, trainer = make(setup, Variation(), tmp_path / "no", tmp_path / "run")
    assert isinstance(task, ImageClassifier)
    assert (data.image_size, data.batch_size, data.num_workers) == (48, 4, 0)
    assert (trainer.max_epochs, trainer.seed, trainer.precision) == (2, 42, "bf16-mixed")
    pair = make(setup, Variation(processes=2), tmp_path / "no", tmp_path / "run")
    assert (pair[1].batch_size, pair[2].world_size) == (2, 2)


def test_every_check_has_its_trainings_in_the_plan():
    children = [child for first in PLAN for child in (first, first.then) if child is not None]
    trained = {name for child in children for name in child.trainings}
    assert {name for check in CHECKS for name in (check.trained, check.against)} <= trained


def test_report_groups_results_by_cause():
    report = Report(tuple(Result(name, "R3", "problem", "differs", "Sort it.") for name in "ab"), {"R0": "checked"})
    assert report.causes == {"Sort it.": ["a", "b"]}
    assert str(report).splitlines()[-3:] == ["R0  checked", "", "not reproducible"]
    Path("n.yaml").write_text("model: {class_path: a.B}\n")
    with pytest.raises(UsageError, match="names classes"):
        check_module.selfcheck("n.yaml")
