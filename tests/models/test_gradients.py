"""Every parameter that may learn gets a gradient: training in several processes (DDP) refuses to go on otherwise."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from autotimm.errors import ModelError
from autotimm.losses.pixel_losses import build_dense_loss
from autotimm.models import DETECTORS, SEGMENTERS, build_classifier, build_detector, build_segmenter, resolve_weights
from autotimm.models.backbone.feature_maps import build_maps, feature_maps, idle_parameters
from autotimm.optim import OptimizerOptions, choose_recipe
from autotimm.optim.build_optimizer import parameter_groups
from dense import images, nothing, squares

HRNET = "hrnet_w18_small"
ARCHS = (*DETECTORS, *SEGMENTERS)
TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "dense_backbones.py"))
FAMILIES = sorted(
    TOOL["FAMILIES"].keys() - {HRNET, "inception_v4", "vit_small_patch14_dinov2"}
)  # the last two: refused


def build(arch: str, backbone: str) -> nn.Module:
    maker = build_detector if arch in DETECTORS else build_segmenter
    return maker(arch, backbone, 2, image_size=64, width=64).train()


def loss(arch: str, network: nn.Module, shown: bool = True) -> Tensor:
    """Of two images, either with something to learn on them or without."""
    pictures, targets = squares(2)
    if arch in DETECTORS:
        return sum(network(pictures, targets if shown else [nothing()] * 2).values())
    labels = torch.full((2, 64, 64), 255)
    for label, target in zip(labels, targets, strict=True):
        label[target["masks"][0] == 1] = 1 if shown else 255
    return build_dense_loss("ce+dice", num_classes=2)(network(pictures), labels)


def without_gradient(network: nn.Module) -> list[str]:
    return [name for name, one in network.named_parameters() if one.requires_grad and one.grad is None]


def check(arch: str, backbone: str) -> None:
    try:
        network = build(arch, backbone)
    except ModelError:
        pytest.skip("refused")
    for shown in (True, False):
        network.zero_grad()
        loss(arch, network, shown).backward()
        assert without_gradient(network) == []


@pytest.mark.parametrize("arch", ARCHS)
def test_everything_that_may_learn_gets_a_gradient(arch: str) -> None:
    check(arch, "test_resnet")


@pytest.mark.parametrize(("arch", "backbone"), [("faster_rcnn", "test_vit"), ("unet", "test_vit"), ("fcos", HRNET)])
def test_so_it_does_over_one_map_and_where_maps_are_made_side_by_side(arch: str, backbone: str) -> None:
    check(arch, backbone)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", FAMILIES)
@pytest.mark.parametrize("arch", ARCHS)
def test_so_it_does_in_every_family(arch: str, backbone: str) -> None:
    check(arch, backbone)


def test_what_only_leads_to_a_map_that_nobody_looks_at_is_frozen_and_not_optimized() -> None:
    network = build("retinanet", HRNET)
    frozen = [name for name, one in network.named_parameters() if not one.requires_grad]
    assert frozen
    assert all(name.startswith(("backbone.stage4.0.fuse_layers.0.", "backbone.incre_modules.0.")) for name in frozen)
    recipe = choose_recipe(network, pretrained=True, batch_size=4, options=OptimizerOptions(lr=1.0))
    optimized = sum(len(group["params"]) for group in parameter_groups(network, recipe))
    assert optimized == len(list(network.parameters())) - len(frozen)


def test_nothing_is_frozen_where_all_maps_are_looked_at() -> None:
    backbone, _ = build_maps(HRNET, image_size=64)
    assert all(one.requires_grad for one in backbone.parameters())


@pytest.mark.slow
def test_frozen_layers_are_read_and_written_with_the_others(tmp_path: Path) -> None:
    source = build_classifier(HRNET, 2, seed=11, image_size=64).backbone.state_dict()
    torch.save(source, tmp_path / "whole.pth")
    weights = resolve_weights(HRNET, str(tmp_path / "whole.pth"))
    detector = build_detector("fcos", HRNET, 2, weights=weights, image_size=64, width=64)
    torch.save({f"backbone.{name}": one for name, one in detector.backbone.state_dict().items()}, tmp_path / "part.pth")
    weights = resolve_weights(HRNET, str(tmp_path / "part.pth"))
    segmenter = build_segmenter("fpn", HRNET, 2, weights=weights, image_size=64, width=64)
    for network in (detector, segmenter):
        assert all(torch.equal(one, source[name]) for name, one in network.backbone.state_dict().items())
    assert segmenter.backbone.state_dict().keys() == detector.backbone.state_dict().keys()


@pytest.mark.parametrize("name", ["test_resnet", pytest.param(HRNET, marks=pytest.mark.slow)])
def test_leaving_out_a_map_changes_no_other(name: str) -> None:
    (all_of_it, levels), (part, fewer) = (build_maps(name, image_size=64, finest=one) for one in (4, 8))
    assert [level.stride for level in fewer] == [8, 16, 32]
    found = feature_maps(all_of_it, [level.number for level in levels], images(1).float())[1:]
    again = feature_maps(part, [level.number for level in fewer], images(1).float())
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_what_timm_keeps_in_a_cache_in_evaluation_still_learns() -> None:
    backbone, _ = build_maps("tiny_vit_5m_224", image_size=64)
    assert all(one.requires_grad for one in backbone.parameters())


def test_a_parameter_is_reached_by_any_way_and_a_detached_one_is_not() -> None:
    parts = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("straight", "beside", "detached", "unused")})
    first = parts["straight"](torch.zeros(1, 2))
    second = (parts["beside"](first) + parts["detached"](first).detach()).relu_()
    idle = {"detached.weight", "detached.bias", "unused.weight", "unused.bias"}
    assert idle_parameters(parts, [second]) == idle
    assert idle_parameters(parts, [second, first]) == idle
    assert idle_parameters(parts, [first]) == idle | {"beside.weight", "beside.bias"}
    assert idle_parameters(parts, [first.detach()]) == {name for name, _ in parts.named_parameters()}


def test_plain_ddp_goes_on_after_the_first_step(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = build("fcos", HRNET)
        parallel = DistributedDataParallel(network)
        for _ in range(2):  # the second forward pass raises, if the first left a gradient out
            loss("fcos", parallel).backward()
        everything = build("fcos", HRNET).requires_grad_(True)
        parallel = DistributedDataParallel(everything)
        loss("fcos", parallel).backward()
        with pytest.raises(RuntimeError, match="find_unused_parameters"):
            loss("fcos", parallel)
    finally:
        distributed.destroy_process_group()
