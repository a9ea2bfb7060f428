"""The zero initialization of residual branches is undone for random weights and kept for pretrained ones."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from autotimm.models import Weights, build_backbone
from autotimm.models.backbone.feature_maps import build_feature_backbone
from autotimm.models.backbone.pooled import undo_zero_init


def count_zero_norms(network: nn.Module) -> int:
    return sum(not module.weight.any() for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def smallest_factor(network: nn.Module, ending: str) -> float:
    """The smallest of the maxima of the parameters whose names end with ``ending``."""
    maxima = [value.abs().max().item() for name, value in network.named_parameters() if name.endswith(ending)]
    assert maxima
    return min(maxima)


@pytest.mark.parametrize("name", ["resnet18", "resnet10t", "regnetx_002"])
def test_random_backbones_have_no_zero_norms(name):
    assert count_zero_norms(timm.create_model(name)) > 0
    assert count_zero_norms(build_backbone(name, image_size=64)) == 0
    assert count_zero_norms(build_feature_backbone(name, image_size=64)[0]) == 0


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("test_convnext", "gamma"),
        ("deit3_small_patch16_224", "ls1.gamma"),
        ("poolformer_s12", "layer_scale1.scale"),
        ("fastvit_t8", "layer_scale.gamma"),
    ],
)
def test_layer_scales_become_1(name, ending):
    network = timm.create_model(name)
    assert 0 < smallest_factor(network, ending) < 1e-4
    assert undo_zero_init(network) > 0
    assert smallest_factor(network, ending) == 1


@pytest.mark.parametrize(
    ("name", "ending"), [("convnextv2_atto", "grn.weight"), ("beit_base_patch16_224", "gamma_1"), ("test_vit", "bias")]
)
def test_other_small_parameters_are_kept(name, ending):
    network = timm.create_model(name)
    before = smallest_factor(network, ending)
    assert undo_zero_init(network) == 0
    assert smallest_factor(network, ending) == before


def test_only_zero_norms_change_and_no_random_number_is_drawn():
    torch.manual_seed(0)
    original, network = timm.create_model("resnet18"), timm.create_model("resnet18")
    state = original.state_dict()
    network.load_state_dict(state)
    before = torch.get_rng_state()
    assert undo_zero_init(network) == count_zero_norms(original) == 8
    assert torch.equal(torch.get_rng_state(), before)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == {f"layer{stage}.{block}.bn2.weight" for stage in (1, 2, 3, 4) for block in (0, 1)}


def test_pretrained_weights_are_unchanged(tmp_path):
    model = timm.create_model("resnet18")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    backbone = build_backbone("resnet18", weights=Weights("file", file=str(tmp_path / "weights.safetensors")))
    assert count_zero_norms(backbone) == count_zero_norms(model) == 8


def test_networks_on_the_meta_device_are_skipped():
    with torch.device("meta"):
        assert undo_zero_init(timm.create_model("resnet18")) == 0
