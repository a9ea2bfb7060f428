"""The contract suite reports tasks that break it."""

import random

import pytest
import torch
from torch import nn
from torchvision import tv_tensors

from autotimm import DataModule, ImageClassifier, Sample
from autotimm.data import Table
from autotimm.data.toy import toy_images
from autotimm.testing import CHECKS, TaskCase, check_task
from autotimm.types import Stage, Step

NAMED = {check.__name__: check for check in CHECKS}
ARGUMENTS = {"backbone": "test_resnet", "num_classes": 3, "pretrained": False, "image_size": 32}


class DrawsFromPython(ImageClassifier):
    """Adds noise from a generator of its own, which is not seeded."""

    own = random.SystemRandom()

    def step(self, batch, stage):
        step = super().step(batch, stage)
        return Step({"loss": step.loss * (1 + self.own.random())}, step.predictions, step.targets)


class DependsOnTheBatch(ImageClassifier):
    def infer(self, images):
        logits = self.network(images)
        return logits + logits.mean()


class ForgetsItsWeights(ImageClassifier):
    def state_dict(self, *args, **kwargs):
        return {name: torch.zeros_like(value) for name, value in super().state_dict(*args, **kwargs).items()}


class DoesNotLearn(ImageClassifier):
    def step(self, batch, stage):
        step = super().step(batch, stage)
        return Step({"loss": step.loss * 0 + 1 if stage is Stage.TRAIN else step.loss}, step.predictions)


class UnseededWeights(ImageClassifier):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        nn.init.constant_(next(self.network.parameters()), random.SystemRandom().random())


class SameForEverySeed(ImageClassifier):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for parameter in self.network.parameters():
            nn.init.constant_(parameter, 0.01)


class PredictsOtherwise(ImageClassifier):
    def predict_step(self, batch, batch_idx):
        return super().predict_step(batch._replace(images=batch.images.flip(3)), batch_idx)


class RemembersOutsideOfCheckpoints(ImageClassifier):
    """Its loss grows with the number of steps since it was constructed."""

    steps = 0

    def step(self, batch, stage):
        step = super().step(batch, stage)
        self.steps += stage is Stage.TRAIN
        return Step({"loss": step.loss * (1 + self.steps)}, step.predictions, step.targets)


class ArrayTable(Table):
    """Images in memory, without files."""

    class_names = ("0", "1", "2")

    def __init__(self, seed, n):
        self.images, labels = toy_images(n, num_classes=3, seed=seed)
        self.strata, self.ids = labels.tolist(), tuple(map(str, range(n)))

    def load(self, index):
        return Sample(tv_tensors.Image(self.images[index]), self.strata[index], self.ids[index])


class ArrayData(DataModule):
    def read(self, split):
        return {"train": ArrayTable(1, 16), "val": ArrayTable(2, 6)}.get(split)


def array_data(**options):
    return ArrayData(**{"image_size": 32, "batch_size": 8, "eval_batch_size": 4, "num_workers": 0, **options})


@pytest.mark.parametrize(
    ("task", "check"),
    [
        (DrawsFromPython, "check_repeatable"),
        (DependsOnTheBatch, "check_predict_equals_validate"),
        (PredictsOtherwise, "check_predict_equals_validate"),
        (RemembersOutsideOfCheckpoints, "check_resume"),
        (ForgetsItsWeights, "check_checkpoint"),
        (DoesNotLearn, "check_learns"),
        (UnseededWeights, "check_same_seed_same_weights"),
        (SameForEverySeed, "check_same_seed_same_weights"),
    ],
)
def test_broken_task_fails(task, check, tmp_path):
    with pytest.raises(AssertionError):
        NAMED[check](TaskCase.of(task, folder=tmp_path, **ARGUMENTS))


def test_data_without_files_is_predicted_from_its_loader(tmp_path):
    check = NAMED["check_predict_equals_validate"]
    check(TaskCase.of(ImageClassifier, folder=tmp_path, data=array_data, **ARGUMENTS))
    with pytest.raises(AssertionError, match="predictions differ"):
        check(TaskCase.of(PredictsOtherwise, folder=tmp_path, data=array_data, **ARGUMENTS))


def test_learning_is_checked_on_16_images(tmp_path):
    seen = set()

    class Watching(ImageClassifier):
        def step(self, batch, stage):
            seen.update(batch.ids if stage is Stage.TRAIN else ())
            return super().step(batch, stage)

    NAMED["check_learns"](TaskCase.of(Watching, folder=tmp_path, **ARGUMENTS))
    assert len(seen) == 16


def test_error_message_names_the_broken_part():
    with pytest.raises(AssertionError, match="equal seeds must give equal weights"):
        check_task(UnseededWeights, **ARGUMENTS)


def test_training_leaves_global_generators_unchanged(tmp_path):
    case = TaskCase.of(ImageClassifier, folder=tmp_path, **ARGUMENTS)
    state = torch.get_rng_state()
    random_state = random.getstate()
    model = case.task  # the constructor of a task seeds by design; its training must not draw
    assert callable(model)
    case.train(epochs=1, task={"seed": None})
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() != random_state  # one draw for the root seed
