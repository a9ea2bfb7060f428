"""Every trainable parameter gets a gradient: otherwise DistributedDataParallel raises an error."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from autotimm.errors import ModelError
from autotimm.losses.pixel_losses import build_dense_loss
from autotimm.models import DETECTORS, SEGMENTERS, build_classifier, build_detector, build_segmenter, resolve_weights
from autotimm.models.backbone.feature_maps import build_feature_backbone, feature_maps, unused_parameters
from autotimm.optim import OptimizerOptions, choose_recipe
from autotimm.optim.build_optimizer import parameter_groups
from dense import images, nothing, squares

HRNET = "hrnet_w18_small"
ARCHS = (*DETECTORS, *SEGMENTERS)
TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "dense_backbones.py"))
FAMILIES = sorted(
    TOOL["FAMILIES"].keys() - {HRNET, "inception_v4", "vit_small_patch14_dinov2"}
)  # the last two are rejected


def build(arch: str, backbone: str) -> nn.Module:
    maker = build_detector if arch in DETECTORS else build_segmenter
    return maker(arch, backbone, 2, image_size=64, width=64).train()


def compute_loss(arch: str, network: nn.Module, with_objects: bool = True) -> Tensor:
    """Compute the loss of two images, with or without objects."""
    pictures, targets = squares(2)
    if arch in DETECTORS:
        return sum(network(pictures, targets if with_objects else [nothing()] * 2).values())
    labels = torch.full((2, 64, 64), 255)
    for label, target in zip(labels, targets, strict=True):
        label[target["masks"][0] == 1] = 1 if with_objects else 255
    return build_dense_loss("ce+dice", num_classes=2)(network(pictures), labels)


def trainable_without_gradient(network: nn.Module) -> list[str]:
    return [
        name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]


def check(arch: str, backbone: str) -> None:
    try:
        network = build(arch, backbone)
    except ModelError:
        pytest.skip("this combination is rejected")
    for with_objects in (True, False):
        network.zero_grad()
        compute_loss(arch, network, with_objects).backward()
        assert trainable_without_gradient(network) == []


@pytest.mark.parametrize("arch", ARCHS)
def test_trainable_parameters_get_a_gradient(arch: str) -> None:
    check(arch, "test_resnet")


@pytest.mark.parametrize(("arch", "backbone"), [("faster_rcnn", "test_vit"), ("unet", "test_vit"), ("fcos", HRNET)])
def test_trainable_parameters_get_a_gradient_in_vits_and_hrnets(arch: str, backbone: str) -> None:
    check(arch, backbone)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", FAMILIES)
@pytest.mark.parametrize("arch", ARCHS)
def test_trainable_parameters_get_a_gradient_in_every_family(arch: str, backbone: str) -> None:
    check(arch, backbone)


def test_unused_backbone_parameters_are_frozen() -> None:
    network = build("retinanet", HRNET)
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(name.startswith(("backbone.stage4.0.fuse_layers.0.", "backbone.incre_modules.0.")) for name in frozen)
    recipe = choose_recipe(network, pretrained=True, batch_size=4, options=OptimizerOptions(lr=1.0))
    optimized = sum(len(group["params"]) for group in parameter_groups(network, recipe))
    assert optimized == len(list(network.parameters())) - len(frozen)


def test_nothing_is_frozen_if_all_maps_are_used() -> None:
    backbone, _ = build_feature_backbone(HRNET, image_size=64)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.slow
def test_frozen_layers_are_loaded_and_saved(tmp_path: Path) -> None:
    source = build_classifier(HRNET, 2, seed=11, image_size=64).backbone.state_dict()
    torch.save(source, tmp_path / "whole.pth")
    weights = resolve_weights(HRNET, str(tmp_path / "whole.pth"))
    detector = build_detector("fcos", HRNET, 2, weights=weights, image_size=64, width=64)
    part = {f"backbone.{name}": value for name, value in detector.backbone.state_dict().items()}
    torch.save(part, tmp_path / "part.pth")
    weights = resolve_weights(HRNET, str(tmp_path / "part.pth"))
    segmenter = build_segmenter("fpn", HRNET, 2, weights=weights, image_size=64, width=64)
    for network in (detector, segmenter):
        assert all(torch.equal(value, source[name]) for name, value in network.backbone.state_dict().items())
    assert segmenter.backbone.state_dict().keys() == detector.backbone.state_dict().keys()


@pytest.mark.parametrize("name", ["test_resnet", pytest.param(HRNET, marks=pytest.mark.slow)])
def test_omitting_a_map_does_not_change_the_others(name: str) -> None:
    complete, levels = build_feature_backbone(name, image_size=64, finest=4)
    reduced, fewer_levels = build_feature_backbone(name, image_size=64, finest=8)
    assert [level.stride for level in fewer_levels] == [8, 16, 32]
    expected = feature_maps(complete, [level.number for level in levels], images(1).float())[1:]
    maps = feature_maps(reduced, [level.number for level in fewer_levels], images(1).float())
    assert all(torch.equal(*pair) for pair in zip(maps, expected, strict=True))


def test_parameters_that_timm_caches_in_evaluation_are_not_frozen() -> None:
    backbone, _ = build_feature_backbone("tiny_vit_5m_224", image_size=64)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_unused_parameters_of_a_branching_graph() -> None:
    parts = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("stem", "branch", "detached", "unused")})
    first = parts["stem"](torch.zeros(1, 2))
    second = (parts["branch"](first) + parts["detached"](first).detach()).relu_()
    unused = {"detached.weight", "detached.bias", "unused.weight", "unused.bias"}
    assert unused_parameters(parts, [second]) == unused
    assert unused_parameters(parts, [second, first]) == unused
    assert unused_parameters(parts, [first]) == unused | {"branch.weight", "branch.bias"}
    assert unused_parameters(parts, [first.detach()]) == {name for name, _ in parts.named_parameters()}


def test_ddp_trains_beyond_the_first_step(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = build("fcos", HRNET)
        parallel = DistributedDataParallel(network)
        for _ in range(2):  # the second forward pass raises an error if a gradient was missing in the first
            compute_loss("fcos", parallel).backward()
        unfrozen = build("fcos", HRNET).requires_grad_(True)
        parallel = DistributedDataParallel(unfrozen)
        compute_loss("fcos", parallel).backward()
        with pytest.raises(RuntimeError, match="find_unused_parameters"):
            compute_loss("fcos", parallel)
    finally:
        distributed.destroy_process_group()
