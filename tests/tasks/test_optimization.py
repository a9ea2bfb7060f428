"""Optimizer, schedule, clipping and accumulation, seen from what they do to weights and rates."""

import pytest

from autotimm.errors import UsageError
from autotimm.optim import SCHEDULES
from training import Rates, classifier, digest, toy_data, trained, trainer, weights

PLAIN = {"optimizer": "torch.optim.SGD", "lr": 1.0, "weight_decay": 0, "schedule": "constant", "warmup_epochs": 0}


def moved(root, task, **options):
    """How far one step of plain gradient descent at rate 1 goes: the norm of the clipped gradient."""
    before = weights(classifier(**PLAIN, **task))
    return float((weights(trained(root, 1, {**PLAIN, **task}, max_steps=1, **options)) - before).norm())


class TestClipping:
    def test_the_recipe_clips_to_one(self, toy_folder):
        assert moved(toy_folder, {}) <= 1.0001

    def test_a_value_of_the_task_wins_over_the_recipe(self, toy_folder):
        assert moved(toy_folder, {"gradient_clip": 1e-3}) == pytest.approx(1e-3, rel=1e-2)

    def test_the_trainers_value_wins_over_the_tasks(self, toy_folder):
        found = moved(toy_folder, {"gradient_clip": 1e-3}, gradient_clip_val=2e-3)
        assert found == pytest.approx(2e-3, rel=1e-2)

    def test_zero_is_off(self, toy_folder):
        free = moved(toy_folder, {"gradient_clip": 0})
        assert free == moved(toy_folder, {"gradient_clip": 1e6})
        assert moved(toy_folder, {"gradient_clip": 1e-3}, gradient_clip_val=0) == free > 1e-2

    def test_the_algorithm_of_the_trainer_is_used(self, toy_folder):
        before = weights(classifier(**PLAIN))
        model = trained(toy_folder, 1, PLAIN, max_steps=1, gradient_clip_val=1e-4, gradient_clip_algorithm="value")
        assert float((weights(model) - before).abs().max()) <= 1.001e-4


class TestRecipe:
    def test_an_explicit_rate_wins(self, toy_folder):
        model = trained(toy_folder, 1, {"lr": 3e-3})
        assert model.recipe.lr == 3e-3
        assert model.recipe.optimizer == "adamw"
        assert "as given" in model.recipe.reason

    def test_accumulated_batches_count(self, toy_folder):
        single, double = classifier(), classifier()
        trainer().fit(single, datamodule=toy_data(toy_folder))
        both = trainer(2, accumulate_grad_batches=2)
        both.fit(double, datamodule=toy_data(toy_folder))
        assert both.global_step == 4  # three batches are two steps
        assert double.recipe.lr == pytest.approx(single.recipe.lr * 2**0.5)

    def test_accumulation_is_repeatable(self, toy_folder):
        found = {digest(trained(toy_folder, 2, accumulate_grad_batches=2)) for _ in range(2)}
        assert len(found) == 1
        assert found != {digest(trained(toy_folder, 2))}

    def test_an_unknown_optimizer_or_schedule_is_refused_at_once(self):
        with pytest.raises(UsageError, match="Did you mean 'adamw'"):
            classifier(optimizer="adamww")
        with pytest.raises(UsageError, match="Did you mean 'cosine'"):
            classifier(schedule="cosin")


class TestSchedules:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_each_one_trains(self, toy_folder, schedule):
        rates = Rates()
        trained(toy_folder, 4, {"schedule": schedule, "lr": 1e-3}, callbacks=[rates])
        assert len(rates.seen) == 12
        assert max(rates.seen) == pytest.approx(1e-3, rel=0.05)
        assert rates.seen[0] < max(rates.seen)  # warm-up, or the rise of one cycle
        if schedule in ("cosine", "linear", "onecycle", "step"):
            assert rates.seen[-1] < 0.2e-3

    def test_plateau_lowers_the_rate_when_nothing_gets_better(self, toy_folder):
        rates = Rates()
        options = {"schedule": "plateau", "lr": 1e-12, "warmup_epochs": 0}
        trained(toy_folder, 7, options, callbacks=[rates])
        assert rates.seen[0] == 1e-12
        assert rates.seen[-1] == pytest.approx(1e-13)

    @pytest.mark.parametrize("length", [{"epochs": 3}, {"epochs": -1, "max_steps": 9}, {"epochs": 20, "max_steps": 9}])
    def test_warm_up_lasts_as_many_epochs_as_it_says(self, toy_folder, length):
        rates = Rates()
        trained(toy_folder, task={"schedule": "constant", "lr": 1e-3, "warmup_epochs": 2}, callbacks=[rates], **length)
        assert rates.seen == sorted(rates.seen)
        assert rates.seen[5] < 1e-3
        assert rates.seen[6:] == [1e-3] * 3

    def test_warm_up_counts_optimizer_steps(self, toy_folder):
        rates = Rates()
        options = {"schedule": "constant", "lr": 1e-3, "warmup_epochs": 1}
        trained(toy_folder, 2, options, callbacks=[rates], accumulate_grad_batches=2)
        assert rates.seen[2] < 1e-3
        assert rates.seen[3:] == [1e-3] * 3  # two steps make an epoch


def test_weights_that_do_not_learn_are_refused(toy_folder):
    model = classifier()
    model.network.requires_grad_(False)
    with pytest.raises(UsageError, match=r"All parameters of the network .* are frozen"):
        trainer().fit(model, datamodule=toy_data(toy_folder))
