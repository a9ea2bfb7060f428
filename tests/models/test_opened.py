"""Residual branches of random networks are open; pretrained ones stay as they are."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from autotimm.models import Weights, build_backbone
from autotimm.models.features import build_maps
from autotimm.models.opened import open_residuals


def closed(network: nn.Module) -> int:
    return sum(not one.weight.any() for one in network.modules() if isinstance(one, nn.BatchNorm2d))


@pytest.mark.parametrize("name", ["resnet18", "resnet10t", "regnetx_002"])
def test_random_backbones_begin_open(name):
    assert closed(timm.create_model(name)) > 0
    assert closed(build_backbone(name, image_size=64)) == 0
    assert closed(build_maps(name, image_size=64)[0]) == 0


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
