"""The contract suite notices a task that breaks it."""

import random

import pytest
import torch
from torch import nn

from autotimm import ImageClassifier
from autotimm.testing import CHECKS, TaskCase, check_task
from autotimm.types import Stage, Step

NAMED = {check.__name__: check for check in CHECKS}
ARGUMENTS = {"backbone": "test_resnet", "num_classes": 3, "pretrained": False, "image_size": 32}


class DrawsFromPython(ImageClassifier):
    """Adds noise of a generator of its own, which nobody keys."""

    own = random.SystemRandom()

    def step(self, batch, stage):
        found = super().step(batch, stage)
        return Step({"loss": found.loss * (1 + self.own.random())}, found.predictions, found.targets)


class DependsOnTheBatch(ImageClassifier):
    def infer(self, images):
        logits = self.network(images)
        return logits + logits.mean()


class ForgetsItsWeights(ImageClassifier):
    def state_dict(self, *args, **kwargs):
        return {name: torch.zeros_like(value) for name, value in super().state_dict(*args, **kwargs).items()}


class DoesNotLearn(ImageClassifier):
    def step(self, batch, stage):
        found = super().step(batch, stage)
        return Step({"loss": found.loss * 0 + 1 if stage is Stage.TRAIN else found.loss}, found.predictions)


class UnseededWeights(ImageClassifier):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        nn.init.constant_(next(self.network.parameters()), random.SystemRandom().random())


class SameForEverySeed(ImageClassifier):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for parameter in self.network.parameters():
            nn.init.constant_(parameter, 0.01)


@pytest.mark.parametrize(
    ("task", "check"),
    [
        (DrawsFromPython, "check_repeatable"),
        (DependsOnTheBatch, "check_predict_equals_validate"),
        (ForgetsItsWeights, "check_checkpoint"),
        (DoesNotLearn, "check_learns"),
        (UnseededWeights, "check_same_seed_same_weights"),
        (SameForEverySeed, "check_same_seed_same_weights"),
    ],
)
def test_it_notices(task, check, tmp_path):
    with pytest.raises(AssertionError):
        NAMED[check](TaskCase.of(task, folder=tmp_path, **ARGUMENTS))


def test_the_first_failure_says_which_part_is_broken():
    with pytest.raises(AssertionError, match="one seed must give one set of weights"):
        check_task(UnseededWeights, **ARGUMENTS)


def test_a_training_leaves_the_callers_generators(tmp_path):
    case = TaskCase.of(ImageClassifier, folder=tmp_path, **ARGUMENTS)
    state = torch.get_rng_state()
    random_state = random.getstate()
    model = case.task  # a task's constructor seeds by design; its training must not draw
    assert callable(model)
    case.train(epochs=1, task={"seed": None})
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() != random_state  # one draw for the root seed
