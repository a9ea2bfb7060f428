"""Constructors name all of their arguments: to type checkers, to editors and to ``inspect``."""

import copy
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import pytorch_lightning as pl
import yaml
from torch import nn

import autotimm
from autotimm import (
    AutoTrainer,
    DataModule,
    DetectionDataModule,
    ImageClassifier,
    ImageDataModule,
    InstanceSegmentationDataModule,
    InstanceSegmentor,
    ObjectDetector,
    SegmentationDataModule,
    SemanticSegmentor,
    Task,
)
from autotimm.data import DataOptions
from autotimm.data.dense import SpatialDataModule, SpatialOptions
from autotimm.data.module import CommonDataOptions
from autotimm.serialization import construct, plain_value
from autotimm.tasks import TaskOptions
from autotimm.tasks.detection import ObjectOptions, ObjectTask
from autotimm.train import TrainerOptions

HERE = Path(__file__).parent
TASKS = [ImageClassifier, ObjectDetector, InstanceSegmentor, SemanticSegmentor]
SPATIAL = [DetectionDataModule, InstanceSegmentationDataModule, SegmentationDataModule]


# Type checkers


def checked_by_mypy(*files: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mypy", reason="mypy is not installed")
    source = Path(autotimm.__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "--config-file", HERE.parents[1] / "pyproject.toml", "--no-error-summary",
               *(HERE / file for file in files)]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=source.parent)


def test_mypy_accepts_right_calls_and_refuses_each_wrong_one():
    done = checked_by_mypy("accepted.py", "refused.py")
    refused = {int(line) for line in re.findall(r"refused\.py:(\d+): error", done.stdout)}
    lines = (HERE / "refused.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if re.match(r"    [A-Z]\w+\(", line)}
    assert refused == wrong, done.stdout
    assert "accepted.py" not in done.stdout
    assert 'Unexpected keyword argument "sede" for "ImageClassifier"' in done.stdout


# Options are stated twice, as a TypedDict and in a signature


def keyword_options(init: Any) -> dict[str, Any]:
    parameters = inspect.signature(inspect.unwrap(init)).parameters.values()
    hints = get_type_hints(inspect.unwrap(init))
    return {one.name: hints[one.name] for one in parameters if one.kind is one.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("options", "constructors"),
    [
        (TaskOptions, [Task]),
        (ObjectOptions, [ObjectTask, Task]),
        (DataOptions, [DataModule]),
        (SpatialOptions, [SpatialDataModule, DataModule]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_typed_dict_has_the_options_of_its_constructor(options, constructors):
    stated = [keyword_options(constructor.__init__) for constructor in reversed(constructors)]
    merged = {name: hint for part in stated for name, hint in part.items()}
    if options is ObjectOptions:  # which the concrete detectors name themselves
        del merged["arch"], merged["threshold"]
    if options is SpatialOptions:  # a transform of image and target
        merged["train_transforms"] = get_type_hints(SpatialOptions)["train_transforms"]
    assert get_type_hints(options) == merged
    assert not options.__required_keys__


def test_the_common_data_options_have_one_default():
    spatial = keyword_options(SpatialDataModule.__init__)
    assert set(get_type_hints(CommonDataOptions)) == set(keyword_options(DataModule.__init__)) - set(spatial)


def test_the_options_of_lightnings_trainer():
    """They are those of the pinned release; some of its types are private."""
    theirs = get_type_hints(pl.Trainer.__init__)
    passed_on = theirs.keys() - {"return", "max_epochs", "deterministic"}
    ours = get_type_hints(TrainerOptions)
    assert ours.keys() == passed_on
    assert {name: ours[name] for name in ours} == {
        name: ours[name] if name in ("precision", "plugins") else theirs[name] for name in ours
    }


# What `inspect.signature` shows


@pytest.mark.parametrize("task", TASKS)
def test_a_task_shows_every_argument_and_records_it(task):
    shown = inspect.signature(task).parameters
    assert list(shown)[:2] == ["backbone", "num_classes"]
    assert set(get_type_hints(TaskOptions)) < set(shown)
    assert all(one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) for one in shown.values())
    narrow = {} if task is ImageClassifier else {"width": 64}
    model = task("test_resnet", 3, pretrained=False, **narrow)
    assert set(model.hparams) == set(shown)
    left = set(shown) - {"backbone", "num_classes", "pretrained", "metrics", "width"}
    assert {name: model.hparams[name] for name in left} == {name: shown[name].default for name in left}


@pytest.mark.parametrize("module", [ImageDataModule, *SPATIAL])
def test_a_data_module_shows_every_argument_and_records_it(module):
    shown = inspect.signature(module).parameters
    assert next(iter(shown)) == "data_dir"
    assert set(get_type_hints(DataOptions)) < set(shown)
    assert all(one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) for one in shown.values())
    data = module("photos")
    recorded = {name: one.default for name, one in shown.items()} | {"data_dir": "photos"}
    if module is SegmentationDataModule:
        # As in records of earlier versions: only options of all data modules have defaults there.
        for name in ("format", "tile", "overlap"):
            del recorded[name]
    assert data.arguments == recorded
    assert (data.image_size, data.batch_size) == (shown["image_size"].default, shown["batch_size"].default)
    assert construct(module, plain_value(data.arguments)).arguments == data.arguments


def test_the_trainer_shows_every_argument():
    shown = inspect.signature(AutoTrainer).parameters
    assert set(inspect.signature(pl.Trainer).parameters) < set(shown)
    assert {"seed", "run_dir", "keep", "tuner"} < set(shown)
    assert all(one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) for one in shown.values())


# Subclasses


class SmallSegments(SegmentationDataModule):
    """Fixes some options of its base."""

    def __init__(self, folder, **options):
        super().__init__(folder, image_size=64, seed=7, **options)


class Between(ImageClassifier):
    """Takes no options."""

    def __init__(self, n):
        super().__init__("test_resnet", n, pretrained=False, image_size=32)


class Below(Between):
    """Takes options that its base does not pass on."""

    def __init__(self, n=3, **options):
        super().__init__(n, **options)


class Noting:
    """A mixin that is no task."""

    def __init__(self, *args, note="", **kwargs):
        super().__init__(*args, **kwargs)
        self.note = note


class Noted(Noting, ImageClassifier):
    """Has the constructor of a mixin."""


def test_options_that_a_data_module_fixes_are_not_recorded():
    data = SmallSegments("photos", batch_size=2)
    assert not {"image_size", "seed"} & data.arguments.keys()
    assert (data.arguments["folder"], data.arguments["batch_size"], data.arguments["strict"]) == ("photos", 2, False)
    again = construct(SmallSegments, yaml.safe_load(yaml.safe_dump(plain_value(data.arguments))))
    assert (again.arguments, again.image_size) == (data.arguments, 64)


def test_options_that_cannot_be_given_are_not_recorded():
    assert list(inspect.signature(Below).parameters) == ["n"]
    assert dict(Below().hparams) == {"n": 3}


def test_a_constructor_of_a_mixin_is_captured():
    model = Noted("test_resnet", 3, note="a", pretrained=False)
    assert (model.note, model.hparams["note"], model.hparams["args"]) == ("a", "a", ["test_resnet", 3])
    assert model.hparams["lr"] is None
    assert digest_of(construct(Noted, model.hparams)) == digest_of(model)


def digest_of(task):
    return [parameter.sum().item() for parameter in task.network.parameters()]


def test_a_missing_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match=r"ImageClassifier\.__init__\(\) missing 1 required positional .*'num_classes'"):
        ImageClassifier("test_resnet")


def test_copies_and_pickles_call_no_constructor():
    data = SmallSegments("photos")
    for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert twin.arguments == data.arguments
        assert vars(twin).keys() == vars(data).keys()
    model = Between(2)
    assert copy.deepcopy(model).hparams == pickle.loads(pickle.dumps(model)).hparams == model.hparams


# Constructors


def guarded(base: type) -> type:
    """A subclass whose public methods fail while its constructor runs."""

    def guard(name: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            assert "ready" in vars(self), f"the constructor calls {name}"
            return getattr(super(sub, self), name)(*args, **kwargs)

        return method

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)
        vars(self)["ready"] = True

    ours = [above for above in base.__mro__ if above.__module__.startswith("autotimm.")]
    names = {name for above in ours for name, value in vars(above).items() if inspect.isfunction(value)}
    public = {name for name in names if not name.startswith("_")}
    sub = type(base.__name__, (base,), {**{name: guard(name) for name in public}, "__init__": init})
    return sub


@pytest.mark.parametrize("base", [*TASKS, ImageDataModule, *SPATIAL, AutoTrainer])
def test_constructors_call_no_method_that_a_subclass_may_override(base):
    if issubclass(base, Task):
        narrow = {} if base is ImageClassifier else {"width": 64}
        model = guarded(base)("test_resnet", 3, pretrained=False, freeze_backbone=True, **narrow)
        assert model.metric_configs
    elif issubclass(base, DataModule):
        assert guarded(base)("photos").transforms.keys() == {"train", "eval"}
    else:
        assert guarded(base)(accelerator="cpu").max_epochs == 10


@pytest.mark.parametrize("task", TASKS)
def test_backbone_and_head_are_read_only_parts_of_the_network(task):
    narrow = {} if task is ImageClassifier else {"width": 64}
    model = task("test_resnet", 3, pretrained=False, **narrow)
    assert model.backbone is model.network.backbone
    parts = dict(model.network.named_modules())
    assert any(part is model.head for part in parts.values())
    assert all(name.startswith("network.") for name in model.state_dict() if not name.startswith("criterion."))
    for name in ("backbone", "head"):
        with pytest.raises(AttributeError):
            setattr(model, name, "another")


def test_a_network_without_backbone_has_none():
    class Bare(Task):
        def __init__(self, **options):
            super().__init__(lambda seed: nn.Linear(1, 1), **options)

        def step(self, batch, stage):
            raise NotImplementedError

        def decode(self, output, batch):
            return []

        def default_metrics(self):
            return []

    assert not hasattr(Bare(), "backbone")
    with pytest.raises(AttributeError, match="head"):
        Bare().head  # noqa: B018 - reading the attribute is the test
