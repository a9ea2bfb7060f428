"""The finders: asked for explicitly, on a copy, without a trace in what is trained afterwards."""

import random

import numpy as np
import pytest
import torch

from autotimm import TunerConfig
from autotimm.data.toy import write_toy_folder
from autotimm.errors import RunError, UsageError
from training import classifier, digest, toy_data, trainer


def generators():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


class TestLearningRate:
    @pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
    def test_it_leaves_no_trace(self, toy_folder, backbone):
        found = classifier(backbone, head_dropout=0.2)
        one = trainer(2, tuner=TunerConfig(lr=True, steps=15))
        one.fit(found, datamodule=toy_data(toy_folder))
        rate = found.recipe.lr
        assert 1e-7 < rate < 1
        assert found.hparams["lr"] == rate
        given = classifier(backbone, head_dropout=0.2, lr=rate)
        trainer(2).fit(given, datamodule=toy_data(toy_folder))
        assert digest(found) == digest(given)

    def test_it_leaves_the_callers_generators(self, toy_folder):
        model, data, one = (
            classifier(),
            toy_data(toy_folder),
            trainer(1, seed=None, tuner=TunerConfig(lr=True, steps=15)),
        )
        before = generators()
        one.fit(model, datamodule=data)
        assert generators() == before

    def test_a_task_that_was_trained_before_can_be_tuned(self, toy_folder):
        model = classifier()
        trainer(1).fit(model, datamodule=toy_data(toy_folder, num_workers=1))
        trainer(1, tuner=TunerConfig(lr=True, steps=15)).fit(model, datamodule=toy_data(toy_folder))
        assert model.optimizer_options.lr == model.recipe.lr

    def test_it_is_repeatable(self, toy_folder):
        rates = set()
        for _ in range(2):
            model = classifier()
            trainer(1, tuner=TunerConfig(lr=True, steps=15)).fit(model, datamodule=toy_data(toy_folder))
            rates.add(model.recipe.lr)
        assert len(rates) == 1

    def test_too_few_steps_are_an_error_with_a_cure(self, toy_folder):
        with pytest.raises(RunError, match="found no learning rate"):
            trainer(1, tuner=TunerConfig(lr=True, steps=2)).fit(classifier(), datamodule=toy_data(toy_folder))


class TestBatchSize:
    @pytest.mark.parametrize(("largest", "found"), [(8, 8), (31, 16), pytest.param(32, 32, marks=pytest.mark.slow)])
    def test_it_goes_up_to_the_largest(self, tmp_path, largest, found):
        folder = write_toy_folder(tmp_path / "more", n=64, num_classes=3)
        model, data = classifier(), toy_data(folder, batch_size=4)
        trainer(1, tuner=TunerConfig(batch_size=True, max_batch_size=largest)).fit(model, datamodule=data)
        assert data.batch_size == found

    def test_it_leaves_no_trace(self, toy_folder):
        found, data = classifier(), toy_data(toy_folder, batch_size=4)
        trainer(2, tuner=TunerConfig(batch_size=True, max_batch_size=8)).fit(found, datamodule=data)
        given = classifier()
        trainer(2).fit(given, datamodule=toy_data(toy_folder, batch_size=data.batch_size))
        assert digest(found) == digest(given)


def test_both_at_once(toy_folder):
    model, data = classifier(), toy_data(toy_folder, batch_size=4)
    trainer(1, tuner=TunerConfig(lr=True, batch_size=True, steps=15, max_batch_size=8)).fit(model, datamodule=data)
    assert data.batch_size == 8
    assert model.hparams["lr"] == model.recipe.lr


def test_nothing_is_looked_for_unless_asked(toy_folder):
    model = classifier()
    trainer(1, tuner=TunerConfig()).fit(model, datamodule=toy_data(toy_folder))
    assert model.optimizer_options.lr is None


def test_others_loaders_have_no_place_for_the_numbers(toy_folder):
    data = toy_data(toy_folder)
    with pytest.raises(UsageError, match="needs a Task and a DataModule"):
        trainer(1, tuner=TunerConfig(lr=True)).fit(classifier(), data.train_dataloader())
