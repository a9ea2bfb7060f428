"""The classifier: what it learns from, what it refuses, what it says of an image."""

import platform
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from autotimm import AutoTrainer, ImageClassifier, Task
from autotimm.data.toy import toy_images
from autotimm.errors import ModelError, UsageError
from autotimm.losses import FunctionLoss
from autotimm.records.digest import tensor_digest
from autotimm.runs.predict import predict
from autotimm.types import Batch, DataSpec, Stage
from training import classifier, digest, multi_label_data, toy_data, trained, trainer


class ShiftedLoss(nn.Module):
    """A loss of a user's own."""

    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets) + 1


def named(*ids):
    """What predictions are read for."""
    return Batch(torch.zeros(len(ids), 3, 1, 1), ids=ids)


def shifted_loss(logits, targets):
    return F.cross_entropy(logits, targets) + 1


@pytest.fixture(scope="module")
def plain(toy_folder):
    return digest(trained(toy_folder))


class TestRandomParts:
    @pytest.mark.parametrize(
        "options",
        [
            {"mixup_alpha": 0.4},
            {"cutmix_alpha": 1.0},
            {"mixup_alpha": 0.4, "cutmix_alpha": 1.0},
            {"head_dropout": 0.5},
            {"backbone": "test_vit", "drop_path_rate": 0.5},
        ],
        ids=lambda options: "+".join(options),
    )
    def test_they_repeat_and_matter(self, toy_folder, options):
        one, again = (digest(trained(toy_folder, 1, options)) for _ in range(2))
        backbone = {"backbone": options.get("backbone", "test_resnet")}
        assert one == again != digest(trained(toy_folder, 1, backbone))

    def test_mixing_depends_on_the_trainers_seed_alone(self):
        def run(model_seed, trainer_seed):
            torch.rand(3)
            model = classifier(seed=model_seed, mixup_alpha=0.4)
            seen = []
            model.network.register_forward_pre_hook(lambda module, given: seen.append(tensor_digest(given[0])))
            loader = DataLoader(TensorDataset(*toy_images(8, num_classes=3)), batch_size=8)
            trainer(seed=trainer_seed).fit(model, loader)
            return seen[0]

        assert run(1, 1) == run(2, 1) != run(1, 2)

    @pytest.mark.parametrize(
        "options", [{"mixup_alpha": 0.4}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 1, "cutmix_alpha": 1}]
    )
    def test_mixed_targets_are_learned_from_and_not_measured_with(self, options):
        images, labels = toy_images(6, num_classes=3)
        model = classifier(**options)
        mixed = model.train().step(Batch(images, labels), Stage.TRAIN)
        assert mixed.targets is None
        assert mixed.loss.isfinite()
        assert model.eval().step(Batch(images, labels), Stage.VAL).targets is labels

    def test_a_batch_of_one_has_nothing_to_mix_with(self):
        images, labels = toy_images(1, num_classes=3)
        assert (
            classifier("test_vit", mixup_alpha=0.4).train().step(Batch(images, labels), Stage.TRAIN).targets is labels
        )

    @pytest.mark.parametrize(
        "options", [{"mixup_alpha": 0.4}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 1, "cutmix_alpha": 1}]
    )
    def test_several_labels_can_be_mixed_too(self, toy_folder, tmp_path, options):
        def run(**options):
            model = classifier(num_classes=2, multi_label=True, **options)
            trainer().fit(model, datamodule=multi_label_data(toy_folder, tmp_path))
            return digest(model)

        assert run(**options) == run(**options) != run()

    @pytest.mark.parametrize("name", ["mixup_alpha", "cutmix_alpha"])
    def test_a_negative_strength_is_refused(self, name):
        with pytest.raises(UsageError, match=f"`{name}` of ImageClassifier must be 0, or at least 1e-37"):
            classifier(**{name: -0.1})


class TestLosses:
    def loss(self, **options):
        images, labels = toy_images(6, num_classes=3)
        model = classifier(**options).eval()
        step = model.step(Batch(images, labels), Stage.VAL)
        return step.loss, step.predictions, labels

    def test_label_smoothing(self):
        loss, logits, labels = self.loss(label_smoothing=0.2)
        assert torch.equal(loss, F.cross_entropy(logits, labels, label_smoothing=0.2))

    def test_class_weights(self):
        loss, logits, labels = self.loss(class_weights=[1, 2, 3])
        assert torch.equal(loss, F.cross_entropy(logits, labels, torch.tensor([1.0, 2.0, 3.0])))

    @pytest.mark.parametrize("smoothing", [0, 0.1])
    def test_the_mean_over_batches_is_that_over_all_images(self, smoothing):
        images, labels = toy_images(7, num_classes=3)
        model = classifier(class_weights=[1, 2, 30], label_smoothing=smoothing).eval()
        with torch.no_grad():
            parts = [Batch(images[:4], labels[:4]), Batch(images[4:], labels[4:])]
            found = [model.step(part, Stage.VAL) for part in parts]
            whole = model.step(Batch(images, labels), Stage.VAL)
        total = sum(step.loss * step.weight for step in found) / sum(step.weight for step in found)
        assert float(total) == pytest.approx(float(whole.loss), rel=1e-6)
        assert whole.weight == sum([1.0, 2.0, 30.0][label] for label in labels.tolist())

    @pytest.mark.parametrize(
        "options",
        [{}, {"loss": "focal", "class_weights": [1, 2, 3]}, {"loss": nn.CrossEntropyLoss(reduction="sum")}],
    )
    def test_other_losses_are_a_mean_over_images(self, options):
        images, labels = toy_images(6, num_classes=3)
        assert classifier(**options).eval().step(Batch(images, labels), Stage.VAL).weight is None

    def test_class_weights_survive_a_checkpoint(self, toy_folder, tmp_path):
        trained(toy_folder, 1, {"class_weights": [1, 2, 3]}, run_dir=tmp_path / "run")
        loaded = Task.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
        assert loaded.criterion.weight.tolist() == [1, 2, 3]

    @pytest.mark.parametrize(
        "own",
        [shifted_loss, ShiftedLoss(), ShiftedLoss, f"{__name__}.shifted_loss", f"{__name__}.ShiftedLoss"],
        ids=["function", "module", "class", "path of a function", "path of a class"],
    )
    def test_a_loss_of_ones_own(self, own):
        loss, logits, labels = self.loss(loss=own)
        assert torch.equal(loss, F.cross_entropy(logits, labels) + 1)

    def test_it_trains_as_the_built_in_one(self, toy_folder, plain):
        assert digest(trained(toy_folder, 1, {"loss": shifted_loss})) == plain
        assert digest(trained(toy_folder, 1, {"loss": "focal"})) != plain

    def test_an_object_does_not_warn(self, recwarn):
        assert isinstance(classifier(loss=lambda logits, targets: logits.sum()).criterion, FunctionLoss)
        classifier(loss=ShiftedLoss())
        assert [str(one.message) for one in recwarn] == []

    def test_smoothing_several_labels_is_refused(self):
        with pytest.raises(
            UsageError, match=r"`label_smoothing` of the loss must be 0 with multi_label. Got 0.1 instead"
        ):
            classifier(multi_label=True, label_smoothing=0.1)

    def test_an_unknown_loss_gets_the_nearest_name(self):
        with pytest.raises(UsageError, match="Did you mean 'cross_entropy'"):
            classifier(loss="crossentropy")


class TestCompile:
    @pytest.mark.slow
    def test_it_trains_and_loads_as_any_other(self, toy_folder, tmp_path):
        if platform.system() != "Linux" or shutil.which("g++") is None:
            pytest.skip("torch.compile needs a C++ compiler for the CPU")
        first = trained(toy_folder, 1, {"compile_model": True}, run_dir=tmp_path / "run")
        assert digest(first) == digest(trained(toy_folder, 1, {"compile_model": True}))
        loaded = Task.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt", compile_model=False)
        assert digest(loaded) == digest(first)

    def test_it_is_off_unless_asked_for(self):
        assert classifier().network._compiled_call_impl is None
        assert classifier(compile_model=True).network._compiled_call_impl is not None

    def test_names_of_weights_do_not_change(self):
        assert classifier(compile_model=True).state_dict().keys() == classifier().state_dict().keys()


@pytest.fixture(scope="module")
def run(toy_folder, tmp_path_factory):
    """A task with two labels, its trainer and its run folder."""
    folder = tmp_path_factory.mktemp("labels")
    model = classifier(num_classes=2, multi_label=True, threshold=0.3)
    fitted = trainer(2, run_dir=folder / "run")
    fitted.fit(model, datamodule=multi_label_data(toy_folder, folder))
    return model, fitted, folder / "run"


class TestMultiLabel:
    def test_it_measures_mean_average_precision_and_f1(self, run):
        model, fitted, _ = run
        assert {name for name in fitted.callback_metrics if name.startswith("val/")} == {
            "val/loss",
            "val/mAP",
            "val/f1",
        }
        assert model.monitor == ("val/mAP", "max")
        assert fitted.checkpoint_callback.monitor == "val/mAP"
        assert model.metrics["val_metrics"]["f1"].threshold == 0.3

    def test_the_split_says_all_labels(self, run):
        rows = (run[2] / "splits.csv").read_text().splitlines()[1:]
        assert {row.split(",")[1] for row in rows} == {"", "second", "second|third"}

    def test_it_predicts_any_number_of_labels(self, run, toy_folder):
        loaded = Task.load_from_checkpoint(run[2] / "checkpoints" / "best.ckpt")
        found = predict(loaded, toy_folder, trainer=trainer())
        assert len(found) == 24
        for one in found:
            assert list(one.scores) == ["second", "third"]
            assert one.labels == tuple(name for name, score in one.scores.items() if score >= 0.3)

    def test_the_threshold_decides(self):
        names = {"class_names": ("a", "b", "c"), "multi_label": True}
        model = classifier(multi_label=True, threshold=0.5)
        model.spec = DataSpec(**names)
        logits = torch.tensor([[0.0, -0.01, 3.0], [-9.0, -9.0, -9.0]])  # 0 is a probability of exactly 0.5
        assert [one.labels for one in model.decode(logits, named("x", "y"))] == [("a", "c"), ()]

    def test_one_class_is_enough(self):
        assert classifier(num_classes=1, multi_label=True).num_classes == 1


class TestDecode:
    def test_probabilities_sum_to_one_and_the_largest_wins(self):
        one, tie = classifier().decode(torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, 0.0]]), named("x", "y"))
        assert (one.id, one.labels) == ("x", ("1",))
        assert sum(one.scores.values()) == pytest.approx(1)
        assert tie.labels == ("0",)

    def test_half_precision_is_read_too(self):
        assert classifier().decode(torch.zeros(1, 3, dtype=torch.bfloat16), named("x"))[0].scores["0"] == pytest.approx(
            1 / 3
        )

    def test_features_are_a_vector(self):
        images, _ = toy_images(2)
        assert classifier("test_convnext").features(images).ndim == 2


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_classes": 1}, "`num_classes` of ImageClassifier must be an integer of at least 2. Got 1 instead"),
            ({"num_classes": 3.0}, "`num_classes` of ImageClassifier must be an integer"),
            ({"num_classes": True}, "`num_classes` of ImageClassifier must be an integer"),
            ({"num_classes": 0, "multi_label": True}, "at least 1. Got 0"),
            ({"threshold": 1}, r"`threshold` of ImageClassifier must be in \(0, 1\). Got 1 instead"),
            ({"class_weights": [1, 2]}, "`class_weights`"),
            ({"head_dropout": 1.5}, "`head_dropout`"),
            ({"drop_path_rate": -0.1}, "`drop_path_rate`"),
            ({"label_smoothing": 1}, "`label_smoothing`"),
            ({"lr": 0}, "`lr`"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_wrong_arguments(self, options, message):
        with pytest.raises(UsageError, match=message):
            classifier(**options)

    def test_an_unknown_backbone_gets_the_nearest_names(self):
        with pytest.raises(ModelError, match="Did you mean 'resnet18'"):
            classifier("resnett18")

    def test_data_with_another_number_of_classes(self, toy_folder):
        with pytest.raises(
            UsageError, match=r"`num_classes` of ImageClassifier must be 3, as the data has. Got 4 instead"
        ):
            trainer().fit(classifier(num_classes=4), datamodule=toy_data(toy_folder))

    def test_data_of_the_other_kind(self, toy_folder, tmp_path):
        with pytest.raises(UsageError, match=r"`multi_label` of ImageClassifier must be False, as the data is"):
            trainer().fit(classifier(multi_label=True), datamodule=toy_data(toy_folder))
        with pytest.raises(UsageError, match=r"`multi_label` of ImageClassifier must be True, as the data is"):
            trainer().fit(classifier(num_classes=2), datamodule=multi_label_data(toy_folder, tmp_path))

    @pytest.mark.parametrize("verb", ["validate", "test"])
    def test_a_trained_model_is_not_measured_on_other_classes(self, toy_folder, tmp_path, verb):
        run = tmp_path / "run"
        trained(toy_folder, run_dir=run)
        loaded = ImageClassifier.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
        renamed = tmp_path / "renamed"
        shutil.copytree(toy_folder, renamed)
        next(iter(sorted(renamed.iterdir()))).rename(renamed / "zebra")
        with pytest.raises(UsageError, match="zebra"):
            getattr(AutoTrainer(run_dir=False, accelerator="cpu"), verb)(
                loaded, datamodule=toy_data(renamed, test_split=0.25)
            )


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "test_efficientnet"])
def test_other_families_train_too(toy_folder, backbone):
    assert digest(trained(toy_folder, 1, {"backbone": backbone})) == digest(
        trained(toy_folder, 1, {"backbone": backbone})
    )
