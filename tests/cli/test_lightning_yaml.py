"""Configuration files in Lightning's style."""

import sys
from pathlib import Path
from typing import Any

import pytest

from autotimm.cli.lightning_yaml import build
from autotimm.errors import UsageError

SOURCE = """
from dataclasses import dataclass
from typing import Literal

import pytorch_lightning as pl
from autotimm.errors import UsageError


@dataclass
class Part:
    name: str


class Model(pl.LightningModule):
    def __init__(
        self, width: int, lr: float | None = 0.1, kind: Literal["a", "b"] = "a", parts: list[Part] | None = None
    ):
        super().__init__()
        if width < 0:
            raise UsageError("width below zero")
        self.given = (width, lr, kind, parts)


class Data(pl.LightningDataModule):
    def __init__(self, data_dir: str | None = "here"):
        super().__init__()
        self.given = data_dir


class Trainer(pl.Trainer):
    def __init__(self, max_epochs: int = 10, **kwargs: object):
        super().__init__(max_epochs=max_epochs, logger=False, accelerator="cpu", **kwargs)
        self.given = (max_epochs, kwargs)


def function(): ...
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "users_own.py").write_text("from __future__ import annotations\n" + SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("users_own", None)


def nested(**sections: Any) -> dict[str, Any]:
    default = {
        "model": {"class_path": "users_own.Model", "init_args": {"width": 3}},
        "data": {"class_path": "users_own.Data"},
        "trainer": {"class_path": "users_own.Trainer"},
    }
    return {**default, **sections}


def model(**arguments: object) -> dict[str, Any]:
    return {"class_path": "users_own.Model", "init_args": arguments}


def refusal(**sections: Any) -> str:
    with pytest.raises(UsageError) as caught:
        build(nested(**sections), "n.yaml")
    return str(caught.value)


def test_only_given_arguments_are_passed():
    parts = [{"name": "x"}]
    objects = build(
        nested(
            model=model(width=4, lr="1e-3", parts=parts),
            trainer={"class_path": "users_own.Trainer", "init_args": {"limit_train_batches": 2}},
        ),
        "n.yaml",
    )
    assert objects[0].given[:3] == (4, 1e-3, "a")
    assert objects[0].given[3][0].name == "x"
    assert objects[1].given == "here"
    assert objects[2].given == (10, {"limit_train_batches": 2})


def test_null_becomes_none():
    objects = build(
        nested(model=model(width=1, lr=None), data={"class_path": "users_own.Data", "init_args": {"data_dir": None}}),
        "n",
    )
    assert objects[0].given[1] is None
    assert objects[1].given is None


@pytest.mark.parametrize("name", ["ImageClassifier", "autotimm.ImageClassifier", "autotimm.tasks.ImageClassifier"])
def test_autotimm_classes_by_short_or_full_name(name: str):
    arguments = {"backbone": "test_resnet", "num_classes": 2, "pretrained": False}
    classifier, *_ = build(nested(model={"class_path": name, "init_args": arguments}), "n.yaml")
    assert type(classifier).__name__ == "ImageClassifier"


def test_default_trainer_is_autotrainer():
    *_, trainer = build(nested(trainer={"max_epochs": 3, "accelerator": "cpu"}), "n.yaml")
    assert (type(trainer).__name__, trainer.max_epochs) == ("AutoTrainer", 3)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": model(widht=1)}, "The class of `model` in n.yaml has no argument `widht`. Did you mean 'width'?"),
        ({"model": model()}, "The class of `model` in n.yaml needs the argument `width`."),
        ({"model": model(width="x")}, "The `model.width` of n.yaml must be of type int. Got x instead."),
        ({"model": model(width=1, lr="x")}, "The `model.lr` of n.yaml must be of type float or null. Got x instead."),
        ({"model": model(width=1, kind="c")}, "must be of type Literal['a', 'b']. Got c instead."),
        ({"model": model(width=1, parts=[{"nme": "x"}])}, "The `model.parts` of n.yaml has no argument `nme`."),
        ({"model": model(width=-1)}, "width below zero"),
        ({"model": {"class_path": "ImageClassifer"}}, "Did you mean 'ImageClassifier'?"),
        ({"model": {"class_path": "users_own.Modell"}}, "cannot be imported"),
        ({"model": {"class_path": "nowhere.Model"}}, "cannot be imported: No module named 'nowhere'"),
        (
            {"model": {"class_path": "users_own.Data"}},
            "a subclass of LightningModule, such as ImageClassifier. It is something",
        ),
        ({"model": {"class_path": "users_own.function"}}, "must be the import path of a subclass of LightningModule"),
        ({"model": {"class_path": "users_own.Model", "init_arg": {}}}, "no key `init_arg`. Did you mean 'init_args'?"),
        ({"model": {"class_path": "users_own.Model", "width": 3}}, "no key `width`. Move it under `init_args`."),
        ({"model": {"init_args": {"width": 3}}}, "The `model` of n.yaml needs a class."),
        ({"model": "users_own.Model"}, "The `model` of n.yaml needs a class."),
        ({"model": {"class_path": "users_own.Model", "init_args": [1]}}, "must be lines `argument: value`"),
        ({"data": None}, "The `data` of n.yaml needs a class. Write `class_path: ImageDataModule` under it."),
        ({"trainer": {"max_epoch": 3}}, "has no argument `max_epoch`. Did you mean 'max_epochs'"),
    ],
)
def test_mistakes_get_one_sentence(sections: dict[str, Any], message: str):
    assert message in refusal(**sections)


def test_files_of_very_many_values_are_refused():
    assert "must have at most 2,000 values. It has more." in refusal(model=model(width=1, parts=[0] * 2000))
