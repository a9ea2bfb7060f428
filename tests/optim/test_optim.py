import io
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
from torch import nn

from autotimm.errors import UsageError
from autotimm.models import build_classifier
from autotimm.models.segmentation import build_segmenter
from autotimm.optim import (
    SCHEDULES,
    OptimizerOptions,
    ProgressLR,
    Recipe,
    build_optimizer,
    build_schedulers,
    choose_recipe,
    factor,
    family,
    find_optimizer,
)


def network(name: str = "test_resnet") -> nn.Module:
    return build_classifier(name, 3, image_size=32)


cached_network = cache(network)  # for tests that do not change it


def recipe_for(name: str = "test_resnet", pretrained: bool = False, batch_size: int = 32, **options: Any) -> Recipe:
    return choose_recipe(
        network(name), pretrained=pretrained, batch_size=batch_size, options=OptimizerOptions(**options)
    )


def never() -> float:
    raise AssertionError("the length of the run was queried too early")


class TestRecipes:
    @pytest.mark.parametrize(
        ("name", "pretrained", "batch_size", "lr", "layer_decay"),
        [
            ("test_vit", True, 64, 1e-4, 0.7),
            ("test_convnext", True, 64, 1e-4, 0.8),
            ("test_resnet", True, 32, 5e-4, 1.0),
            ("test_vit", False, 64, 1e-4, 1.0),
            ("test_convnext", False, 64, 1e-4, 1.0),
            ("test_efficientnet", False, 32, 1e-3, 1.0),
            ("test_resnet", False, 128, 2e-3, 1.0),  # scaled by the square root of the ratio
            ("test_vit", True, 16, 5e-5, 0.7),
        ],
    )
    def test_depend_on_family_pretraining_and_batch_size(
        self, name: str, pretrained: bool, batch_size: int, lr: float, layer_decay: float
    ) -> None:
        recipe = recipe_for(name, pretrained, batch_size)
        assert recipe.lr == pytest.approx(lr)
        assert (recipe.layer_decay, recipe.weight_decay, recipe.gradient_clip) == (layer_decay, 0.05, 1.0)
        assert (recipe.optimizer, recipe.schedule, recipe.warmup_epochs) == ("adamw", "cosine", None)

    @pytest.mark.parametrize(
        ("kind", "name", "pretrained", "batch_size", "lr", "layer_decay", "backbone_scale"),
        [
            ("boxes", "test_resnet", True, 16, 1e-4, 1.0, 0.1),
            ("instances", "test_resnet", True, 64, 2e-4, 1.0, 0.1),
            ("boxes", "test_convnext", True, 16, 1e-4, 1.0, 1.0),
            ("boxes", "test_vit", True, 64, 1e-4, 0.7, 1.0),
            ("instances", "test_vit", True, 16, 5e-5, 0.7, 1.0),
            ("pixels", "test_resnet", True, 16, 1e-3, 1.0, 0.1),
            ("pixels", "test_vit", True, 16, 1e-3, 1.0, 0.1),
            ("pixels", "test_convnext", True, 4, 5e-4, 1.0, 0.1),
            ("boxes", "test_resnet", False, 32, 1e-3, 1.0, 1.0),
            ("pixels", "test_resnet", False, 8, 5e-4, 1.0, 1.0),
            ("instances", "test_vit", False, 64, 1e-4, 1.0, 1.0),
        ],
    )
    def test_depend_on_the_kind_of_targets(
        self, kind: str, name: str, pretrained: bool, batch_size: int, lr: float, layer_decay: float,
        backbone_scale: float,
    ) -> None:  # fmt: skip
        recipe = choose_recipe(cached_network(name), pretrained=pretrained, batch_size=batch_size, kind=kind)
        assert recipe.lr == pytest.approx(lr)
        assert (recipe.layer_decay, recipe.backbone_scale) == (layer_decay, backbone_scale)
        assert (recipe.weight_decay, recipe.gradient_clip, recipe.schedule) == (0.05, 1.0, "cosine")

    def test_go_less_far_after_a_fitted_head(self) -> None:
        found = [
            choose_recipe(cached_network(name), pretrained=True, batch_size=64, head_fitted=True)
            for name in ("test_resnet", "test_vit")
        ]
        assert [recipe.lr for recipe in found] == [pytest.approx(2.5e-4 * 2**0.5), pytest.approx(1e-4)]
        assert found[1].layer_decay == 0.7
        assert found[0].reason == "lr 0.000354: CNN fine-tuning after a fitted head, AdamW, batch 64"

    def test_scale_the_backbone_only_if_there_is_one(self) -> None:
        def recipe(network: nn.Module, **options: Any) -> Recipe:
            return choose_recipe(
                network, pretrained=True, batch_size=16, kind="pixels", options=OptimizerOptions(**options)
            )

        model = cached_network("test_resnet")
        assert recipe(nn.Conv2d(3, 3, 1)).backbone_scale == 1.0
        assert recipe(model, optimizer="sgd").backbone_scale == 1.0
        assert recipe(model, optimizer="sgd").lr == pytest.approx(0.01)
        assert recipe(model, optimizer="lion").backbone_scale == 0.1
        assert recipe(model, optimizer="lion").lr == pytest.approx(2e-4)
        assert recipe(model, backbone_scale=1.0).reason == "lr 0.001: CNN fine-tuning on pixels, AdamW, batch 16"
        assert recipe(model, lr=0.5).reason == "lr 0.5: as given; backbone x 0.1"
        assert recipe(model).as_dict()["backbone_scale"] == 0.1

    def test_give_the_reason_in_one_line(self) -> None:
        assert recipe_for().reason == "lr 0.001: CNN from scratch, AdamW, batch 32"
        assert recipe_for("test_vit", True, 64).reason == "lr 0.0001: ViT fine-tuning, AdamW, batch 64; layer decay 0.7"
        assert recipe_for("test_vit", True, 64, lr=0.5, layer_decay=1.0).reason == "lr 0.5: as given"

    @pytest.mark.parametrize(
        ("optimizer", "lr", "weight_decay"),
        [
            ("sgd", 0.0125, 1e-4),  # 0.1 at 256, scaled linearly
            ("torch.optim.SGD", 0.0125, 1e-4),
            ("lion", 2e-4, 0.25),
            ("lamb", 6.25e-4, 0.02),
            ("NAdamW", 1e-3, 0.05),
            ("lookahead_adamw", 1e-3, 0.05),
            (torch.optim.AdamW, 1e-3, 0.05),
            ("adagrad", 1e-2, 0.0),
            ("Rprop", 1e-2, 0.0),
        ],
    )
    def test_depend_on_the_optimizer(self, optimizer: Any, lr: float, weight_decay: float) -> None:
        recipe = recipe_for(optimizer=optimizer)
        assert (recipe.lr, recipe.weight_decay) == (pytest.approx(lr), weight_decay)

    def test_options_take_precedence_and_leave_the_rest(self) -> None:
        given = {
            "lr": 0.3, "weight_decay": 0.0, "layer_decay": 0.5, "schedule": "step", "warmup_epochs": 0.0,
            "backbone_scale": 0.3,
        }  # fmt: skip
        for name, value in given.items():
            changed, default = vars(recipe_for("test_vit", True, **{name: value})), vars(recipe_for("test_vit", True))
            assert changed[name] == value
            assert {k: v for k, v in changed.items() if k not in (name, "reason")} == {
                k: v for k, v in default.items() if k not in (name, "reason")
            }

    def test_are_plain_data(self) -> None:
        assert recipe_for(optimizer=torch.optim.SGD).as_dict()["optimizer"] == "torch.optim.sgd.SGD"

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("test_vit", "vit"),
            ("beit_base_patch16_224", "vit"),
            ("vit_tiny_r_s16_p8_224", "vit"),
            ("swin_tiny_patch4_window7_224", "convnext"),
            ("maxvit_tiny_tf_224", "convnext"),
            ("mobilenetv3_small_050", "cnn"),
            ("vgg11", "cnn"),
        ],
    )
    def test_family_of_a_network(self, name: str, kind: str) -> None:
        with torch.device("meta"):
            assert family(timm.create_model(name)) == kind

    def test_families_name_existing_timm_modules(self) -> None:
        from autotimm.optim.recipe import _FAMILIES

        assert not {name.removeprefix("timm.models.") for name in _FAMILIES} - set(timm.list_modules())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": 0}, r"`lr` of the optimizer options must be a number above 0. Got 0"),
            ({"lr": "1e-3"}, r"`lr` .* must be a number above 0. Got '1e-3'"),
            ({"lr": math.inf}, r"`lr`"),
            ({"weight_decay": -1}, r"`weight_decay` .* at least 0"),
            ({"layer_decay": 0}, r"`layer_decay` .* in \(0, 1\]"),
            ({"layer_decay": 1.5}, r"`layer_decay`"),
            ({"backbone_scale": 0}, r"`backbone_scale` .* in \(0, 1\]. Got 0 instead. Give 1 to switch it off."),
            ({"warmup_epochs": -1}, r"`warmup_epochs`"),
            ({"gradient_clip": math.nan}, r"`gradient_clip`"),
            ({"schedule": "cosin"}, r"`schedule` .* Did you mean 'cosine'"),
            ({"optimizer": "adamww"}, r"Neither timm nor torch has an `optimizer` 'adamww'. Did you mean 'adamw'"),
            ({"optimizer": "zzzz"}, r"Neither timm nor torch has an `optimizer` 'zzzz'. Give an import path"),
            ({"optimizer": "torch.optim.NoSuch"}, r"'torch.optim.NoSuch' must be .* It cannot be imported"),
            (
                {"optimizer": "torch.nn.Linear"},
                r"'torch.nn.Linear' must be .* a subclass of torch.optim.Optimizer. It is some",
            ),
            ({"optimizer": nn.Linear}, r"must be a subclass of torch.optim.Optimizer"),
            ({"optimizer": "fusedadam"}, r"'fusedadam' is not installed"),
        ],
    )
    def test_invalid_options_are_rejected(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            OptimizerOptions(**options)


class TestOptimizers:
    @pytest.mark.parametrize(
        "optimizer",
        [
            "adamw",
            "AdamW",
            "sgd",
            "lion",
            "lamb",
            "muon",
            "lookahead_sgd",
            "Rprop",
            "torch.optim.Adagrad",
            torch.optim.SGD,
        ],
    )
    def test_optimizers_of_timm_and_torch_update_weights(self, optimizer: Any) -> None:
        torch.manual_seed(0)
        model, images, targets = network(), torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
        optimizer = build_optimizer(model, recipe_for(optimizer=optimizer))
        assert isinstance(optimizer, torch.optim.Optimizer)
        before = model.head.weight.clone()
        for _ in range(6):  # lookahead moves at every sixth step
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
        assert not torch.equal(model.head.weight, before)

    def test_biases_norms_and_embeddings_have_no_weight_decay(self) -> None:
        model = network("test_vit")
        optimizer = build_optimizer(model, recipe_for("test_vit"))
        assert [group["name"] for group in optimizer.param_groups] == ["no_decay", "decay"]
        decaying = {id(parameter) for parameter in optimizer.param_groups[1]["params"]}
        for name, parameter in model.named_parameters():
            excluded = parameter.ndim <= 1 or "pos_embed" in name or "token" in name
            assert (id(parameter) in decaying) != excluded, name
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05]

    @pytest.mark.parametrize(("name", "decay"), [("test_vit", 0.7), ("test_convnext", 0.8)])
    def test_layer_decay_lowers_the_rate_towards_the_input(self, name: str, decay: float) -> None:
        model = network(name)
        optimizer = build_optimizer(model, recipe_for(name, pretrained=True, lr=1.0))
        rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        assert len(rates) == len(list(model.parameters()))
        assert {rates[id(parameter)] for parameter in model.head.parameters()} == {1.0}
        body = [rates[id(parameter)] for parameter in model.backbone.parameters()]
        assert max(body) == pytest.approx(decay)
        steps = sorted({round(math.log(rate, decay), 6) for rate in body})
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) > 2
        names = [group["name"] for group in optimizer.param_groups]
        assert len(set(names)) == len(names)
        slowest = min(optimizer.param_groups, key=lambda group: group["lr"])
        assert slowest["name"].startswith("layer0/")

    @pytest.mark.parametrize("layer_decay", [1.0, 0.5])
    def test_backbone_scale_lowers_the_rate_of_the_backbone(self, layer_decay: float) -> None:
        model = build_segmenter("fpn", "test_resnet", 2, image_size=64, width=64)
        recipe = Recipe("adamw", lr=1.0, weight_decay=0.1, layer_decay=layer_decay, backbone_scale=0.25)
        optimizer = build_optimizer(model, recipe)
        rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        assert len(rates) == len(list(model.parameters()))
        body = [rates[id(parameter)] for parameter in model.backbone.parameters()]
        others = [*model.decoder.parameters(), *model.head.parameters()]
        assert {rates[id(parameter)] for parameter in others} == {1.0}
        assert max(body) == 0.25 * layer_decay
        assert (len(set(body)) > 2) == (layer_decay != 1)
        names = [group["name"] for group in optimizer.param_groups]
        assert len(set(names)) == len(names)
        assert {name.split("/")[0] for name in names} == {"backbone", "head"}
        assert names[-1].startswith("head/")  # metrics.csv shows the rate of the last group
        assert [group["weight_decay"] for group in optimizer.param_groups if group["name"].endswith("no_decay")] == [
            0.0 for name in names if name.endswith("no_decay")
        ]

    def test_backbone_scale_needs_a_backbone(self) -> None:
        with pytest.raises(
            UsageError, match=r"`backbone_scale` must be 1 for Linear, which has no `backbone`. Got 0.1"
        ):
            build_optimizer(nn.Linear(2, 2), Recipe("adamw", 0.1, 0.1, backbone_scale=0.1))

    def test_frozen_parameters_are_excluded(self) -> None:
        model = network("test_vit")
        model.backbone.requires_grad_(False)
        optimizer = build_optimizer(model, recipe_for("test_vit", pretrained=True))
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
        model.requires_grad_(False)
        with pytest.raises(UsageError, match=r"All parameters of the network .* are frozen"):
            build_optimizer(model, recipe_for("test_vit"))

    def test_layer_decay_needs_numbered_layers(self) -> None:
        network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        assert len(build_optimizer(network, Recipe("adamw", 0.1, 0.1)).param_groups) == 2
        with pytest.raises(UsageError, match=r"`layer_decay` must be 1 for Sequential, whose layers have no numbers"):
            build_optimizer(network, Recipe("adamw", 0.1, 0.1, layer_decay=0.5))

    def test_arguments_are_passed_on_or_rejected(self) -> None:
        assert build_optimizer(network(), recipe_for(), betas=(0.5, 0.6)).defaults["betas"] == (0.5, 0.6)
        with pytest.raises(UsageError, match=r"`optimizer` 'adamw' does not accept its arguments.*unknown"):
            build_optimizer(network(), recipe_for(), unknown=1)
        with pytest.raises(UsageError, match=r"`optimizer` 'LBFGS' does not accept its arguments"):
            build_optimizer(network(), recipe_for(optimizer="LBFGS", weight_decay=0.1))  # takes one group only

    def test_second_order_optimizers_are_rejected(self) -> None:
        with pytest.raises(UsageError, match=r"The `optimizer` 'Adahessian' needs second-order gradients"):
            find_optimizer("Adahessian")

    def test_one_without_a_default_rate_needs_a_rate(self) -> None:
        class NoDefault(torch.optim.SGD):
            def __init__(self, params: Any, lr: float, **options: Any) -> None:
                super().__init__(params, lr, **options)

        assert recipe_for(optimizer=NoDefault, lr=0.5).lr == 0.5
        with pytest.raises(UsageError, match="There is no default learning rate for this optimizer"):
            recipe_for(optimizer=NoDefault)

    def test_timm_names_take_precedence(self) -> None:
        assert find_optimizer("sgd") is torch.optim.SGD
        assert find_optimizer("muon").__module__.startswith("timm.")


def rates(
    schedule: str, total: int, steps: int, warmup: Callable[[], float] | None = None, **options: Any
) -> list[float]:
    """The learning rate of each optimizer step, as set by the schedule."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    progress = ProgressLR(optimizer, schedule, lambda: total, warmup, **options)
    learning_rates = []
    for _ in range(steps):
        learning_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        progress.step()
    return learning_rates


class TestSchedules:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_are_pure_functions_of_progress(self, schedule: str) -> None:
        learning_rates = rates(schedule, 100, 100)
        rise = 0 if schedule == "onecycle" else 5
        assert learning_rates == pytest.approx([factor(schedule, step, 100, rise) for step in range(100)])
        assert max(learning_rates) == pytest.approx(1.0)
        assert min(learning_rates) > 0
        assert learning_rates[0] == pytest.approx(0.04 if schedule == "onecycle" else 0.01)

    def test_shapes(self) -> None:
        def at(schedule: str) -> list[float]:
            return [round(factor(schedule, step, 100), 4) for step in (0, 25, 50, 75, 100)]

        assert at("constant") == at("plateau") == [1, 1, 1, 1, 1]
        assert at("linear") == [1, 0.75, 0.5, 0.25, 0]
        assert at("cosine") == [1, 0.8536, 0.5, 0.1464, 0]
        assert at("step") == [1, 1, 0.1, 0.01, 0.01]

    def test_one_cycle_matches_torch(self) -> None:
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0, momentum=0.9)
        reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=101, cycle_momentum=False)
        expected = []
        for _ in range(101):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if len(expected) < 101:
                reference.step()
        factors = [factor("onecycle", step, 100, 0.3 * 101 - 1) for step in range(101)]
        assert factors == pytest.approx(expected, abs=1e-6)

    def test_default_warmup_is_5_percent_and_at_least_one_step(self) -> None:
        assert [rate < 1 for rate in rates("constant", 200, 20)] == [True] * 10 + [False] * 10
        assert [rate < 1 for rate in rates("constant", 4, 4)] == [True, False, False, False]
        assert rates("constant", 4, 2, warms_up=False) == [1.0, 1.0]
        assert [rate < 1 for rate in rates("constant", 4, 4, lambda: 2.5)] == [True, True, True, False]

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_creation_does_not_query_the_length_of_the_run(self, schedule: str) -> None:
        for epochs in (None, 0.0, 2.0):
            recipe = Recipe("sgd", 0.1, 0.0, schedule=schedule, warmup_epochs=epochs)
            build_schedulers(build_optimizer(network(), recipe), recipe, never, never)

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_resume_at_the_same_rate_from_a_weights_only_checkpoint(self, schedule: str) -> None:
        def make(lr: float) -> tuple[torch.optim.Optimizer, ProgressLR]:
            optimizer = torch.optim.SGD([{"params": nn.Linear(1, 1).parameters(), "lr": lr, "name": "all"}])
            return optimizer, ProgressLR(optimizer, schedule, lambda: 40)

        original, progress = make(0.5)
        for _ in range(17):
            original.step()
            progress.step()
        file = io.BytesIO()
        torch.save([original.state_dict(), progress.state_dict()], file)
        file.seek(0)
        states = torch.load(file, weights_only=True)
        restored, restored_progress = make(0.25)
        restored.load_state_dict(states[0])
        restored_progress.load_state_dict(states[1])
        for _ in range(20):
            assert restored.param_groups[0]["lr"] == original.param_groups[0]["lr"]
            for optimizer, scheduler in ((original, progress), (restored, restored_progress)):
                optimizer.step()
                scheduler.step()

    def test_keep_the_ratio_between_layers(self) -> None:
        optimizer = build_optimizer(network("test_vit"), recipe_for("test_vit", pretrained=True))
        base = [group["lr"] for group in optimizer.param_groups]
        progress = ProgressLR(optimizer, "cosine", lambda: 10, warms_up=False)
        for _ in range(5):
            optimizer.step()
            progress.step()
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5 * rate for rate in base])

    def test_plateau_reductions_persist_during_warmup(self) -> None:
        recipe = Recipe("sgd", 1.0, 0.0, schedule="plateau", warmup_epochs=2)
        optimizer = build_optimizer(nn.Linear(1, 1), recipe)
        progress, plateau = build_schedulers(
            optimizer, recipe, lambda: 1000, lambda: 10, monitor="val/accuracy", mode="max"
        )
        assert (plateau["monitor"], plateau["scheduler"].mode, plateau["interval"]) == ("val/accuracy", "max", "epoch")
        for _ in range(10):
            optimizer.step()
            progress["scheduler"].step()
        for _ in range(6):
            plateau["scheduler"].step(0.5)
        for _ in range(20):
            optimizer.step()
            progress["scheduler"].step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)

    def test_endless_runs_need_a_constant_schedule(self) -> None:
        def step(*arguments: Any, **options: Any) -> None:
            optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
            progress = ProgressLR(optimizer, *arguments, **options)
            optimizer.step()
            progress.step()

        with pytest.raises(UsageError, match=r"'cosine' needs a run of known length. This one is endless"):
            step("cosine", lambda: math.inf)
        step("constant", lambda: math.inf, warms_up=False)
        step("constant", lambda: math.inf, lambda: 3.0)


class Learner(pl.LightningModule):
    """A minimal module that uses the optimizer and the schedules as a task does."""

    def __init__(self, schedule: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.schedule, self.rates = nn.Linear(2, 1), schedule, []

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.net(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val/loss", 1.0)

    def configure_optimizers(self) -> Any:
        recipe = Recipe("adamw", 0.1, 0.05, schedule=self.schedule)
        optimizer = build_optimizer(self.net, recipe)
        length = self.trainer.__class__.estimated_stepping_batches
        return [optimizer], build_schedulers(optimizer, recipe, lambda: length.fget(self.trainer), lambda: 5.0)


def trained(learner: Learner, folder: Path, epochs: int, resume: Path | None = None) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
        callbacks=[StopAfter(epochs)],
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.ones(10, 2), batch_size=2)
    trainer.fit(learner, loader, loader, ckpt_path=resume, weights_only=True)
    return trainer


class StopAfter(pl.Callback):
    """Stop a run before its planned end."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_lightning_resumes_at_the_same_rates(tmp_path: Path, schedule: str) -> None:
    whole, first, second = Learner(schedule), Learner(schedule), Learner(schedule)
    trained(whole, tmp_path, 6)
    trained(first, tmp_path, 3).save_checkpoint(tmp_path / "half.ckpt")
    trained(second, tmp_path, 6, tmp_path / "half.ckpt")
    assert first.rates + second.rates == whole.rates
    assert len(set(whole.rates)) > 2
