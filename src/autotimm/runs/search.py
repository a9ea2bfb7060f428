"""Choose length, learning rate and regularization by short trainings on folds of the training images.

Each trial trains on three of four folds of the training images and is scored on the fourth: by its loss, which tells
more of few images than a share of right answers, or for objects, which have none in evaluation, by the metric that
chooses the best epoch. Validation and test images are not looked at. A trial takes a quarter of the steps of the
training that it stands for. Options are settled one after the other, each with the best values of those before: first
the length, then the rate, then the regularization. What was given is not searched.

The number of steps is bounded by ``search_budget``, as a multiple of the steps of the training that follows. Nothing
depends on the clock, and folds are keyed by the ids of the images, so that a replay makes the same choice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.config import FitConfig
from autotimm.data.folds import assign_folds, groups_of
from autotimm.data.module import DataModule
from autotimm.data.table import Subset
from autotimm.errors import DataError, LossError, UsageError, sentence
from autotimm.metrics import Monitor
from autotimm.optim import choose_recipe
from autotimm.records.atomic import write_text
from autotimm.records.digest import config_digest
from autotimm.records.readers import EachOf, Fields, read_json, require_shape
from autotimm.records.run_folder import SEARCH, RunFolder
from autotimm.runs.factory import build_data, build_task, build_trainer, least_epochs
from autotimm.tasks import Task
from autotimm.train.progress import say

__all__ = ["Search", "has_trials", "search", "settle_search"]

_FOLDS = 4
_SHARE = 4  # a trial takes so many times fewer steps than what it stands for
_LOSS = Monitor("val/loss", "min")

# What is tried, in this order. Numbers but for epochs are factors on what the recipe has.
_LONGER = (2, 4)
_RATES = (3.0, 0.3)
_AUGMENTATIONS = ("strong", "light")
_DECAYS = (4.0,)

# A trial needs no validation before its end, and leaves nothing.
_TRIAL: dict[str, Any] = {"patience": None, "loggers": None, "calibrate": None, "evidence": False, "progress": False,
                          "checkpoint_every": None}  # fmt: skip

_OPEN = {"epochs": int, "lr": type(None), "augmentation": str, "weight_decay": type(None)}
_TRIED = Fields(
    {"settings": EachOf((str, float)), "steps": int, "scores": [(float, type(None))]}, ("settings", "steps", "scores")
)
_SHAPE = Fields({"asked": Fields(_OPEN), "images": str, "trials": [_TRIED]}, ("asked", "images", "trials"))


class Search(NamedTuple):
    """What a search has chosen.

    Attributes:
        chosen: The options that get another value than they had, by name.
        record: What was asked for, tried and chosen, as plain data for a manifest.
    """

    chosen: dict[str, Any]
    record: dict[str, Any]

    @property
    def said(self) -> str:
        """The choice in one line."""
        tried = f"the best of {len(self.record['trials'])} trials, {self.record['steps']} steps"
        return f"search: {_words(self.chosen)}, {tried}"


def settle_search(
    config: FitConfig, task: Task, data: DataModule, folder: RunFolder
) -> tuple[FitConfig, Task, DataModule, dict[str, Any] | None]:
    """Search for what was left open, if that was asked for.

    Args:
        config: The options, with the recipe settled.
        task: The task of these options.
        data: The data module, set up.
        folder: The run's folder.

    Returns:
        The options with what was chosen, the task and the data module of these, and the record of the search.
    """
    if not config.search_budget:
        return config, task, data, None
    found = search(config, task, data, folder)
    say(found.said)
    if found.chosen:
        config = config.resolved(found.chosen, "search")
        if "augmentation" in found.chosen:
            dropped = [id for ids in data.dropped.values() for id in ids]
            data = build_data(config)
            data.setup("fit")
            data.drop(dropped, recorded=True)
        task = build_task(config, data)
    folder.write_config(config.to_yaml())
    return config, task, data, found.record


def has_trials(folder: RunFolder) -> bool:
    """Whether a search has begun in a folder, and can be resumed."""
    return folder.chosen is not None and (folder.path / SEARCH).exists()


def search(
    config: FitConfig, task: Task, data: DataModule, folder: RunFolder | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Search:  # fmt: skip
    """Search for what was left open, within the budget of a configuration.

    Args:
        config: The options, with the recipe settled.
        task: The task of these options, which is not trained.
        data: The data module, set up.
        folder: Where finished trials are kept, so that an interrupted search goes on; ``None`` keeps nothing.
        recorded: What a run has recorded of its search, if that is made again: it says which options were open.

    Raises:
        UsageError: If the training begins with a fitted head, or has several processes.
        DataError: If there are too few images.
        ModelError: If what was recorded is damaged.
    """
    images = len(data.tables["train"])
    if images < 2 * _FOLDS:
        raise DataError(
            f"The search of fit needs {2 * _FOLDS} training images or more, for {_FOLDS} folds. There are {images}. "
            "Leave `search_budget` out."
        )
    path = None if folder is None or folder.chosen is None else folder.path / SEARCH
    begun = _begun(path, data)
    if recorded is not None:
        require_shape(recorded, _SHAPE, "the search of the run")
        asked = _only_open(recorded["asked"])
    else:
        asked = _only_open(begun["asked"]) if begun else _left_open(config)
    trials = _Trials(config.resolved(asked, "default"), task, data, asked, path)
    trials.made += begun["trials"] if begun else []
    return trials.run()


def _only_open(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asked[name] for name in _OPEN if name in asked}


def _left_open(config: FitConfig) -> dict[str, Any]:
    """The options that nobody has given, with the values that they have."""
    if config.recipe != "plain":
        cure = "The training begins with a fitted head, for which it is not made. Leave it out, or give recipe plain."
        raise UsageError(sentence("search_budget", "fit", "0x here", f"{config.search_budget:g}x", cure))
    if config.devices > 1:
        cure = "Give 1, or leave `search_budget` out."
        raise UsageError(sentence("devices", "fit", "1 with `search_budget`", config.devices, cure))
    settled = {"epochs": config.given("epochs") or config.sources["epochs"] == "folds"}
    settled["augmentation"] = config.given("augmentation")
    settled |= {name: getattr(config, name) is not None for name in ("lr", "weight_decay")}
    return {name: getattr(config, name) for name in _OPEN if not settled[name]}


def _begun(path: Path | None, data: DataModule) -> dict[str, Any] | None:
    """What an interrupted search has left, unless it was of other images."""
    if path is None or not path.is_file():
        return None
    begun: dict[str, Any] = read_json(path, "the search")
    require_shape(begun, _SHAPE, f"the search {path}")
    return begun if begun["images"] == _images(data) else None


def _images(data: DataModule) -> str:
    return config_digest([*data.tables["train"].ids])[:16]


def _words(values: Mapping[str, Any]) -> str:
    texts = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()]
    return ", ".join(texts) or "the values of the recipe"


class _Best(NamedTuple):
    """Settings and their score.

    Attributes:
        values: The options that get another value than they had.
        score: That of held-out images, the mean over the folds; less is better.
        steps: The steps of the training that they mean.
    """

    values: dict[str, Any]
    score: float
    steps: int


class _Trials:
    """The trials of a search, each of which is made once.

    Args:
        config: The options as they were before the search.
        task: The task of these options.
        data: What is trained on.
        asked: The options that are open.
        path: The file that trials are kept in.

    Attributes:
        made: All trials that were made, also before an interruption.
        used: Those of this search.
    """

    def __init__(
        self, config: FitConfig, task: Task, data: DataModule, asked: dict[str, Any], path: Path | None
    ) -> None:
        self.config, self.task, self.data, self.asked, self.path = config, task, data, asked, path
        self.made: list[dict[str, Any]] = []
        self.used: list[dict[str, Any]] = []
        self.judge = task.monitor if data.spec.kind in ("boxes", "instances") else _LOSS
        self.folds = range(1, 1 + min(_FOLDS, max(1, int(config.search_budget // 2))))
        train = data.tables["train"]
        self._fold_of = assign_folds(
            train.ids, train.strata, _FOLDS, data.data_seed, names=train.class_names,
            groups=groups_of(train, config.group, "fit"),
        )  # fmt: skip

    def run(self) -> Search:
        """Settle one option after the other."""
        self._keep()  # what is open is known from then on
        epochs = self._least_epochs()
        start: dict[str, Any] = {} if epochs == self.config.epochs else {"epochs": epochs}
        steps = self.steps_of(epochs)
        best = self._scored(start, steps) or _Best(start, math.inf, steps)
        for name, values in self._alternatives():
            for value in values:
                other = self._scored({**best.values, name: value}, best.steps)
                if other is not None and other.score < best.score:
                    best = other
                elif name == "epochs":
                    break  # a still longer one would be tried against what has lost
        record = self._begun() | {
            "budget": self.config.search_budget, "chosen": best.values, "score": self.judge.name, "steps": self.spent,
            "steps_of_training": best.steps, "trials": self.used,
        }  # fmt: skip
        return Search(best.values, record)

    def _alternatives(self) -> Iterator[tuple[str, list[Any]]]:
        left_open: dict[str, Any] = {name: None for name in ("lr", "weight_decay") if name in self.asked}
        given = replace(self.task.optimizer_options, **left_open)
        recipe = choose_recipe(
            self.task.network, pretrained=self.task.weights.pretrained, options=given, kind=self.task.kinds[0],
            batch_size=self.data.batch_size * self.config.accumulate,
        )  # fmt: skip
        alternatives: dict[str, list[Any]] = {
            "epochs": [self._least_epochs() * factor for factor in _LONGER],
            "lr": [float(f"{recipe.lr * factor:.3g}") for factor in _RATES],
            "augmentation": [name for name in _AUGMENTATIONS if name != self.config.augmentation],
            "weight_decay": [float(f"{recipe.weight_decay * factor:.3g}") for factor in _DECAYS if recipe.weight_decay],
        }
        yield from ((name, values) for name, values in alternatives.items() if name in self.asked)

    def _least_epochs(self) -> int:
        """The shortest training: as long as that of a small set by default, since a few steps say nothing of a rate."""
        epochs = self.config.epochs
        return least_epochs(epochs, self.steps_of(1)) if "epochs" in self.asked else epochs

    def steps_of(self, epochs: int) -> int:
        """Optimizer steps of the training that follows."""
        return epochs * self._steps_per_epoch(len(self.data.tables["train"]))

    def _steps_per_epoch(self, images: int) -> int:
        return math.ceil(math.ceil(images / self.data.batch_size) / self.config.accumulate)

    @property
    def spent(self) -> int:
        """Optimizer steps so far."""
        return sum(int(trial["steps"]) for trial in self.used)

    def _scored(self, values: dict[str, Any], final: int) -> _Best | None:
        """The score of settings; ``None`` where the budget, of the training as it is chosen so far, has no room."""
        steps = self.steps_of(values.get("epochs", self.config.epochs))
        short = max(1, steps // _SHARE)
        if self.spent + short * len(self.folds) > self.config.search_budget * final:
            return None
        trial = next((each for each in self.made if each["settings"] == values), None)
        if trial is None:
            scores = [self._train(values, short, fold) for fold in self.folds]
            trial = {"settings": values, "steps": short * len(self.folds), "scores": scores}
            self.made.append(trial)
            self._keep()
        self.used.append(trial)
        sign = 1 if self.judge.mode == "min" else -1
        lost = [math.inf if score is None else sign * score for score in trial["scores"]]
        score = sum(lost) / len(lost)
        said = f"{self.judge.name} {sign * score:.4g} on held-out training images, after {short} steps"
        say(f"search: {_words(values)}: {said}")
        return _Best(values, score, steps)

    def _train(self, values: Mapping[str, Any], steps: int, fold: int) -> float | None:
        """Train on the other folds, and return the score on this one; ``None`` if it is not finite."""
        train = self.data.tables["train"]
        sides: dict[str, list[int]] = {"train": [], "val": []}
        for index, of in enumerate(self._fold_of):
            sides["val" if of == fold else "train"].append(index)
        epochs = math.ceil(steps / self._steps_per_epoch(len(sides["train"])))
        config = self.config.resolved({**_TRIAL, **values, "epochs": epochs}, "search")
        data = build_data(config)
        data.borrow(self.data, {split: Subset(train, side) for split, side in sides.items()})
        task = build_task(config, data)
        own = {"run_dir": False, "enable_checkpointing": False, "max_steps": steps, "num_sanity_val_steps": 0,
               "check_val_every_n_epoch": epochs + 1}  # fmt: skip
        trainer = build_trainer(config, RunFolder(None, Path(), enabled=False), task, data, own=own)
        try:
            trainer.fit(task, datamodule=data)
            score = float(trainer.validate(task, datamodule=data)[0][self.judge.name])
        except LossError:
            return None
        finally:
            data.teardown()
        return score if math.isfinite(score) else None

    def _begun(self) -> dict[str, Any]:
        return {"asked": self.asked, "images": _images(self.data), "trials": self.made}

    def _keep(self) -> None:
        if self.path is not None:
            write_text(self.path, json.dumps(self._begun(), indent=2) + "\n")
