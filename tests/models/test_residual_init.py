"""Residual branches of random networks are open; pretrained ones stay as they are."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from autotimm.models import Weights, build_backbone
from autotimm.models.backbone.feature_maps import build_maps
from autotimm.models.backbone.pooled import open_residuals


def closed(network: nn.Module) -> int:
    return sum(not one.weight.any() for one in network.modules() if isinstance(one, nn.BatchNorm2d))


def least(network: nn.Module, ending: str) -> float:
    """The smallest factor of the parameters whose names end so."""
    found = [value.abs().max().item() for name, value in network.named_parameters() if name.endswith(ending)]
    assert found
    return min(found)


@pytest.mark.parametrize("name", ["resnet18", "resnet10t", "regnetx_002"])
def test_random_backbones_begin_open(name):
    assert closed(timm.create_model(name)) > 0
    assert closed(build_backbone(name, image_size=64)) == 0
    assert closed(build_maps(name, image_size=64)[0]) == 0


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("test_convnext", "gamma"),
        ("deit3_small_patch16_224", "ls1.gamma"),
        ("poolformer_s12", "layer_scale1.scale"),
        ("fastvit_t8", "layer_scale.gamma"),
    ],
)
def test_layer_scales_begin_open(name, ending):
    network = timm.create_model(name)
    assert 0 < least(network, ending) < 1e-4
    assert open_residuals(network) > 0
    assert least(network, ending) == 1


@pytest.mark.parametrize(
    ("name", "ending"), [("convnextv2_atto", "grn.weight"), ("beit_base_patch16_224", "gamma_1"), ("test_vit", "bias")]
)
def test_what_is_meant_to_begin_small_stays(name, ending):
    network = timm.create_model(name)
    before = least(network, ending)
    assert open_residuals(network) == 0
    assert least(network, ending) == before


def test_nothing_else_is_changed():
    """The fill draws no random number, and touches nothing that is not closed."""
    torch.manual_seed(0)
    plain, opened = timm.create_model("resnet18"), timm.create_model("resnet18")
    opened.load_state_dict(plain.state_dict())
    before = torch.get_rng_state()
    assert open_residuals(opened) == closed(plain) == 8
    assert torch.equal(torch.get_rng_state(), before)
    changed = {name for name, value in opened.state_dict().items() if not torch.equal(value, plain.state_dict()[name])}
    assert changed == {f"layer{stage}.{block}.bn2.weight" for stage in (1, 2, 3, 4) for block in (0, 1)}


def test_pretrained_weights_are_not_touched(tmp_path):
    model = timm.create_model("resnet18")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    found = build_backbone("resnet18", weights=Weights("file", file=str(tmp_path / "weights.safetensors")))
    assert closed(found) == closed(model) == 8


def test_networks_without_numbers_are_left_alone():
    with torch.device("meta"):
        assert open_residuals(timm.create_model("resnet18")) == 0
