"""What every task does, shown on the smallest of our own and on a task of a user's."""

import copy
import inspect
import os
import random

import numpy as np
import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from autotimm import ImageClassifier, MetricConfig, Task, seed_everything
from autotimm.data.toy import toy_images
from autotimm.errors import ModelError, UsageError
from autotimm.runs.predict import predict
from autotimm.tasks.spec_checks import check_spec
from autotimm.types import Batch, DataSpec, Prediction, Stage, Step
from training import Rates, classifier, digest, toy_data, trained, trainer, weights

SHARED = {
    name: parameter
    for name, parameter in inspect.signature(Task.__init__).parameters.items()
    if name not in ("self", "network", "weights") and parameter.kind is not parameter.VAR_KEYWORD
}


class Means(nn.Module):
    def forward(self, images):
        return images.float().mean((2, 3)) / 255


class Brightness(Task):
    """A task that a user may write: says of an image how bright it is. It has neither timm nor a `backbone`."""

    def __init__(self, width: int = 4, *, lr: float = 0.05, **options):
        super().__init__(lambda seed: nn.Sequential(Means(), nn.Linear(3, width), nn.Dropout(0.5), nn.Linear(width, 1)),
                         lr=lr, **options)  # fmt: skip

    def step(self, batch, stage):
        values = self.infer(batch.images).squeeze(1)
        wanted = batch.images.float().mean((1, 2, 3)) / 255
        return Step({"squares": (values - wanted).square().mean(), "size": 0.01 * values.abs().mean()}, values, wanted)

    def decode(self, output, batch):
        return [Prediction(id, (), {"brightness": float(value)}) for id, value in zip(batch.ids, output, strict=True)]

    def default_metrics(self):
        return [MetricConfig("mae", metric_class="MeanAbsoluteError", stages=("val",))]


class TestSignature:
    def test_the_shared_options_are_shown_with_their_defaults(self):
        shown = inspect.signature(ImageClassifier).parameters
        assert {name: shown[name].default for name in SHARED} == {name: one.default for name, one in SHARED.items()}

    def test_the_promised_defaults(self):
        shown = inspect.signature(ImageClassifier).parameters
        promised = {"seed": 42, "deterministic": True, "compile_model": False, "mixup_alpha": 0.0}
        assert {name: shown[name].default for name in promised} == promised
        assert list(shown)[:2] == ["backbone", "num_classes"]
        assert all(one.kind is not one.VAR_KEYWORD for one in shown.values())

    def test_an_option_that_a_task_overrides_is_shown_once_and_as_it_overrides_it(self):
        shown = inspect.signature(Brightness).parameters
        assert (shown["width"].default, shown["lr"].default, shown["seed"].default) == (4, 0.05, 42)

    def test_an_unknown_option_is_refused(self):
        with pytest.raises(UsageError, match=r"ImageClassifier takes no argument `sead`. Did you mean 'seed'"):
            classifier(sead=1)

    def test_a_class_without_options_shows_its_own_arguments_only(self):
        class Two(ImageClassifier):
            def __init__(self, n):
                super().__init__("test_resnet", n)

        class Passing(ImageClassifier):
            def __init__(self, n, *, lr=1e-3, **options):
                super().__init__("test_resnet", n, lr=lr, **options)

        assert list(inspect.signature(Two).parameters) == ["n"]
        shown = inspect.signature(Passing).parameters
        assert list(shown)[:2] == ["n", "lr"]
        assert {"label_smoothing", *SHARED} <= set(shown)
        assert shown["lr"].default == 1e-3


class TestHparams:
    def test_they_are_what_the_class_was_called_with_and_the_defaults(self):
        found = ImageClassifier("test_resnet", 3, pretrained=False, label_smoothing=0.1, optimizer=torch.optim.SGD)
        assert set(found.hparams) == set(inspect.signature(ImageClassifier).parameters)
        assert (found.hparams.backbone, found.hparams.num_classes, found.hparams.lr) == ("test_resnet", 3, None)
        assert (found.hparams.seed, found.hparams.label_smoothing) == (42, 0.1)
        assert (found.hparams.optimizer, found.hparams_initial.optimizer) == ("torch.optim.sgd.SGD",) * 2
        assert found.hparams.metrics == [one.to_dict() for one in found.metric_configs]

    def test_what_a_subclass_fixes_is_none_of_them(self):
        class Fixed(Brightness):
            def __init__(self, height=1, **options):
                super().__init__(2 * height, lr=0.1, seed=42, **options)

        assert dict(Brightness(8).hparams) | {"metrics": 0} == {
            "width": 8, "lr": 0.05, "metrics": 0,
            **{name: one.default for name, one in SHARED.items() if name not in ("lr", "metrics")},
        }  # fmt: skip
        found = Fixed(ema_decay=0.5).hparams
        assert (found.height, found.ema_decay, found.eval_batch_size) == (1, 0.5, 16)
        assert not {"width", "lr", "seed"} & set(found)

    def test_a_logger_receives_them(self, tmp_path):
        logger = CSVLogger(tmp_path)
        images, labels = toy_images(8, num_classes=3)
        weights = np.array([1.0, 2.0, 3.0])  # an array, which cannot be compared with everything
        trainer(logger=logger).fit(
            classifier(class_weights=weights), DataLoader(TensorDataset(images, labels), batch_size=4)
        )
        assert logger.experiment.hparams["backbone"] == "test_resnet"

    def test_a_copy_is_a_task_of_its_own(self):
        model = classifier()
        twin = copy.deepcopy(model)
        assert (digest(twin), twin.hparams) == (digest(model), model.hparams)


class TestSeeds:
    def test_constructing_seeds_everything(self):
        def drawn():
            return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

        seed_everything(7)
        expected = drawn()
        os.environ["PYTHONHASHSEED"] = "1"
        classifier(seed=7)
        assert os.environ["PYTHONHASHSEED"] == "7"
        assert drawn() == expected

    @pytest.mark.parametrize("seed", [42, None])
    @pytest.mark.parametrize("deterministic", [True, False])
    def test_constructing_sets_the_switches(self, seed, deterministic):
        classifier(seed=seed, deterministic=deterministic)
        assert torch.backends.cudnn.deterministic is deterministic
        assert torch.backends.cudnn.benchmark is not deterministic
        assert torch.are_deterministic_algorithms_enabled() is deterministic

    def test_none_draws_once_from_python_and_touches_nothing_else(self):
        seed_everything(3)
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
        model = classifier(seed=None)
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert np.random.get_state()[1].tolist() == numpy_state
        after = random.random()
        random.seed(3)
        assert model.root_seed == random.getrandbits(64)
        assert random.random() == after

    def test_none_after_a_manual_seed_is_fixed_and_the_next_none_differs(self):
        seed_everything(3)
        first, second = classifier(seed=None), classifier(seed=None)
        seed_everything(3)
        assert digest(classifier(seed=None)) == digest(first) != digest(second)

    @pytest.mark.parametrize("seed", [-1, 2**32, True, 1.0, "42"])
    def test_a_wrong_seed_is_refused_before_anything_changes(self, seed):
        state = torch.get_rng_state()
        with pytest.raises(UsageError, match="The `seed` of ImageClassifier must be an integer in"):
            classifier(seed=seed)
        assert torch.equal(torch.get_rng_state(), state)


class TestFreezing:
    def test_the_backbone_keeps_weights_and_statistics_and_the_head_learns(self, toy_folder):
        before = classifier(freeze_backbone=True, seed=5)
        model = trained(toy_folder, 2, {"freeze_backbone": True, "seed": 5, "lr": 0.1})
        assert any("running_mean" in name for name in before.network.backbone.state_dict())
        old, new = before.network.state_dict(), model.network.state_dict()
        changed = {name for name in old if not torch.equal(old[name], new[name])}
        assert changed
        assert not [name for name in changed if name.startswith("backbone.")]

    def test_it_stays_in_evaluation_mode(self):
        model = classifier(freeze_backbone=True).train()
        assert model.training
        assert not any(module.training for module in model.network.backbone.modules())
        assert not model.eval().training

    def test_a_network_without_a_backbone_cannot_be_frozen(self):
        with pytest.raises(UsageError, match="`freeze_backbone` of Brightness must be False"):
            Brightness(freeze_backbone=True)


class TestAveraging:
    def test_the_best_checkpoint_and_the_task_have_the_averaged_weights(self, toy_folder, tmp_path):
        plain = trained(toy_folder, 2, {"lr": 0.01})
        model = trained(toy_folder, 2, {"lr": 0.01, "ema_decay": 0.9}, run_dir=tmp_path / "run")
        checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        loaded = ImageClassifier.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
        assert digest(loaded) == digest(model) != digest(plain)
        name = "network.backbone.conv1.weight"
        name = name if name in checkpoint["state_dict"] else next(k for k in checkpoint["state_dict"] if "weight" in k)
        assert torch.equal(checkpoint["current_model_state"][name], plain.state_dict()[name])  # training is as ever
        assert not torch.equal(checkpoint["state_dict"][name], plain.state_dict()[name])

    def test_validation_measures_the_averaged_weights(self, toy_folder, tmp_path):
        trained(toy_folder, 1, {"lr": 0.01, "ema_decay": 0.9}, run_dir=tmp_path / "run")
        header, row = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
        logged = dict(zip(header.split(","), row.split(","), strict=True))
        loaded = Task.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
        found = trainer().validate(loaded, datamodule=toy_data(toy_folder))[0]
        assert found["val/loss"] == float(logged["val/loss"])

    @pytest.mark.parametrize("decay", [0, 1, -0.5, 2])
    def test_a_decay_out_of_range_is_refused(self, decay):
        with pytest.raises(UsageError, match="`ema_decay` of ImageClassifier"):
            classifier(ema_decay=decay)


class TestBatches:
    def test_a_last_batch_is_padded_in_evaluation_only(self):
        model = classifier(eval_batch_size=4).eval()
        images, _ = toy_images(6)
        shapes = []
        model.network.register_forward_pre_hook(lambda module, given: shapes.append(len(given[0])))
        with torch.no_grad():
            assert len(model.infer(images)) == 6
            with model.padding(False):
                assert len(model.infer(images)) == 6
            model.train().infer(images)
        assert shapes == [4, 4, 6, 6]
        assert model.eval()._padding

    def test_an_image_has_the_same_bits_in_every_batch(self):
        model = classifier("test_vit", eval_batch_size=4).eval()
        images, _ = toy_images(6)
        with torch.no_grad():
            together = model.infer(images)
            assert all(torch.equal(model.infer(images[i : i + 1])[0], together[i]) for i in range(6))
            assert torch.equal(model.infer(images.flip(0)).flip(0), together)

    def test_a_users_loader_may_give_pairs_or_images(self):
        images, labels = toy_images(8, num_classes=3)
        pairs = DataLoader(TensorDataset(images, labels), batch_size=4)
        model = classifier()
        fitted = trainer()
        fitted.fit(model, pairs, pairs)
        assert {"train/loss", "val/loss", "val/accuracy"} <= set(fitted.callback_metrics)
        predictions = trainer().predict(model, DataLoader(images[:4], batch_size=4))
        assert [one.id for one in predictions[0]] == ["0", "1", "2", "3"]
        assert set(predictions[0][0].scores) == {"0", "1", "2"}

    @pytest.mark.parametrize("verb", ["fit", "validate", "test"])
    def test_images_alone_can_only_be_predicted(self, verb):
        loader = DataLoader(toy_images(4)[0], batch_size=2)
        with pytest.raises(
            UsageError, match=r"ImageClassifier learns .* must be \(images, targets\). Got images alone"
        ):
            getattr(trainer(), verb)(classifier(), loader)

    def test_other_batches_are_refused_with_the_cure(self):
        with pytest.raises(UsageError, match="collate_fn"):
            trainer().fit(classifier(), DataLoader([{"image": torch.zeros(3, 32, 32)}] * 2))

    def test_a_batch_size_of_nothing_is_refused(self):
        with pytest.raises(UsageError, match="`eval_batch_size` of ImageClassifier must be an integer of at least 1"):
            classifier(eval_batch_size=0)


class TestMetrics:
    def test_own_metrics_replace_the_defaults_and_appear_in_their_stages(self, toy_folder):
        kappa = MetricConfig("kappa", metric_class="CohenKappa", params={"task": "multiclass", "num_classes": 3})
        inside = {"name": "inside", "metric_class": "MulticlassAccuracy", "params": {"num_classes": 3},
                  "stages": ["train"], "log_on_step": True}  # fmt: skip
        fitted = trainer(log_every_n_steps=1)
        fitted.fit(classifier(metrics=[kappa, inside]), datamodule=toy_data(toy_folder))
        logged = set(fitted.callback_metrics)
        assert {"val/kappa", "train/kappa", "train/inside_step", "train/inside_epoch"} <= logged
        assert not logged & {"val/accuracy", "val/inside"}

    def test_they_do_not_change_the_training(self, toy_folder):
        kappa = MetricConfig("kappa", metric_class="CohenKappa", params={"task": "multiclass", "num_classes": 3})
        assert digest(trained(toy_folder, 1, {"metrics": [kappa]})) == digest(trained(toy_folder))

    def test_no_metrics_leaves_the_loss(self, toy_folder):
        model = classifier(metrics=[])
        assert model.monitor == ("val/loss", "min")
        fitted = trainer()
        fitted.fit(model, datamodule=toy_data(toy_folder))
        assert {name for name in fitted.callback_metrics if name.startswith("val/")} == {"val/loss"}

    def test_the_monitor_is_the_first_metric(self):
        assert classifier().monitor == ("val/accuracy", "max")
        assert Brightness().monitor == ("val/mae", "min")


class TestOwnTask:
    def test_it_trains_logs_every_loss_and_predicts(self, toy_folder, tmp_path):
        model, fitted = Brightness(8), trainer(3, run_dir=tmp_path / "run")
        fitted.fit(model, datamodule=toy_data(toy_folder))
        logged = {name: float(value) for name, value in fitted.callback_metrics.items()}
        assert logged["val/loss"] == pytest.approx(logged["val/squares"] + logged["val/size"])
        assert "val/mae" in logged
        loaded = Task.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
        assert (type(loaded), loaded.hparams["width"], digest(loaded)) == (Brightness, 8, digest(model))
        images, _ = toy_images(2)
        loader = DataLoader(
            images, batch_size=2, collate_fn=lambda images: Batch(torch.stack(images), None, ("a", "b"))
        )
        assert [one.id for one in trainer().predict(loaded, loader)[0]] == ["a", "b"]

    def test_its_dropout_is_keyed(self, toy_folder):
        def run(seed):
            model = Brightness()
            trainer(seed=seed).fit(model, datamodule=toy_data(toy_folder, augmentation="none"))
            return digest(model)

        assert run(1) == run(1) != run(2)

    def test_an_abstract_task_cannot_be_made(self):
        with pytest.raises(TypeError, match="abstract"):
            Task(lambda seed: nn.Identity())

    def test_data_can_be_refused_before_the_first_step(self, toy_folder):
        class Picky(Brightness):
            def check_data(self, spec: DataSpec) -> None:
                raise UsageError(f"not {spec.class_names[0]}")

        with pytest.raises(UsageError, match="not blue_circle"):
            trainer().fit(Picky(), datamodule=toy_data(toy_folder))


class TestStages:
    def test_evaluation_leaves_the_generators_and_training_does_not_see_it(self):
        model = classifier(head_dropout=0.5)
        images, labels = toy_images(4, num_classes=3)
        model.eval()
        state = torch.get_rng_state()
        step = model.step(Batch(images, labels), Stage.VAL)
        assert torch.equal(torch.get_rng_state(), state)
        assert step.targets is labels

    def test_rates_are_noted_once_per_step(self, toy_folder):
        rates = Rates()
        before = weights(classifier())
        model = trained(toy_folder, 1, {"schedule": "constant", "warmup_epochs": 0, "lr": 1e-3}, callbacks=[rates])
        assert rates.seen == [1e-3] * 3
        assert not torch.equal(weights(model), before)


def test_data_of_another_kind_or_number_of_classes_are_refused():
    check_spec(DataSpec(("a", "b")), ("classes",), 2, "ImageClassifier")
    with pytest.raises(UsageError, match=r"ImageClassifier expects classes; got boxes. Use the task for boxes, or"):
        check_spec(DataSpec(("a", "b"), kind="boxes"), ("classes",), 2, "ImageClassifier")
    with pytest.raises(UsageError, match="`num_classes` of ImageClassifier must be 2"):
        check_spec(DataSpec(("a", "b")), ("classes",), 3, "ImageClassifier")


def test_views_of_a_task_of_ones_own_cannot_be_merged():
    task = Brightness()
    task.spec = DataSpec(("a", "b"), image_size=32)
    with pytest.raises(UsageError, match="How views of Brightness are merged is not known"):
        predict(task, [], tta="flip")
    task.spec = None
    with pytest.raises(ModelError, match="The Brightness must know its data to read files"):
        predict(task, [])
