import random

import numpy as np
import pytest
import torch

from autotimm.errors import ModelError, UsageError
from autotimm.models import (
    build_backbone,
    build_classifier,
    data_config,
    find_architecture,
    list_backbones,
    remember_architecture,
)
from autotimm.models.backbone.model_args import fitting_arguments, measure_features
from autotimm.records.digest import state_digest

TINY = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]
# One of each family that pools differently or takes the image size as an argument. Only shapes are computed.
SWEEP = [
    "beit_base_patch16_224", "cait_xxs24_224", "coatnet_0_rw_224", "convnextv2_atto", "deit_tiny_distilled_patch16_224",
    "densenet121", "edgenext_xx_small", "efficientformerv2_s0", "fastvit_t8", "hiera_tiny_224", "levit_128",
    "maxvit_tiny_tf_224", "mixer_s16_224", "mobilenetv3_large_100", "mobilenetv4_conv_small", "mobilevit_s",
    "naflexvit_base_patch16_gap", "pvt_v2_b0", "regnety_004", "samvit_base_patch16_224", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "vgg11", "vit_tiny_r_s16_p8_224", "xcit_tiny_12_p16_224",
]  # fmt: skip


@pytest.mark.parametrize("name", [*TINY, "swin_tiny_patch4_window7_224", "vit_tiny_r_s16_p8_224"])
def test_backbones_pool_to_num_features(name: str) -> None:
    network = build_classifier(name, 3, image_size=64)
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    assert network.features(images).shape == (2, network.backbone.num_features)
    assert network(images).shape == (2, 3)


@pytest.mark.parametrize("name", SWEEP)
def test_families_support_small_images(name: str) -> None:
    architecture = find_architecture(name)
    assert measure_features(architecture, fitting_arguments(architecture, 64, 0.0), 64) > 0


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_transformers_without_image_size_accept_other_sizes(name: str) -> None:
    network = build_classifier(name, 2).eval()
    with torch.inference_mode():
        assert [network(torch.zeros(1, 3, size, size)).shape for size in (96, 160)] == [(1, 2), (1, 2)]


def test_initial_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    three, ten = build_classifier("test_vit", 3), build_classifier("test_vit", 10)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
    torch.manual_seed(8)
    assert state_digest(three.backbone.state_dict()) == state_digest(ten.backbone.state_dict())
    assert state_digest(build_classifier("test_vit", 3).state_dict()) == state_digest(three.state_dict())
    other = build_classifier("test_vit", 3, seed=43)
    assert state_digest(other.backbone.state_dict()) != state_digest(three.backbone.state_dict())
    assert not torch.equal(other.head.weight, three.head.weight)


def test_dropout_and_stochastic_depth_are_passed_on() -> None:
    network = build_classifier("test_convnext", 3, image_size=32, head_dropout=0.3, drop_path_rate=0.2)
    assert network.dropout.p == 0.3
    assert max(getattr(module, "drop_prob", 0) or 0 for module in network.modules()) == pytest.approx(0.2)
    with pytest.raises(UsageError, match=r"`drop_path_rate` of vgg11 must be 0. Got 0.1 instead. It has no stochastic"):
        build_backbone("vgg11", drop_path_rate=0.1)
    with pytest.raises(UsageError, match=r"`drop_path_rate` of test_vit must be in \[0, 1\)"):
        build_backbone("test_vit", drop_path_rate=1.0)
    with pytest.raises(UsageError, match=r"`head_dropout` of a classifier must be in \[0, 1\)"):
        build_classifier("test_vit", 3, head_dropout=-0.1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r"There is no 'resnet81'. Did you mean 'resnet\d"),
        ("resnet18.a1_in2k", r"has no weights 'a1_in2k'. Did you mean 'resnet18.a1_in1k'"),
        ("zzzzzz", r"There is no 'zzzzzz'. `list_backbones"),
        ("owner/name", r"Write 'hf-hub:owner/name' for a hub repository"),
        ("local-dir:/tmp/x", r"must be a name of timm or `hf-hub:owner/name`"),
        ("", r"The `backbone` must be a name. Got ''"),
    ],
)
def test_unknown_names_get_a_suggestion(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_backbone(name)


def test_unsupported_image_sizes_get_a_suggestion() -> None:
    with pytest.raises(ModelError, match=r"test_vit does not support an `image_size` of 40 .* Give 32 or 48\.$"):
        build_backbone("test_vit", image_size=40)
    with pytest.raises(ModelError, match=r"efficientformer_l1 does not support an `image_size` of 64 .* Give 224\.$"):
        build_backbone("efficientformer_l1", image_size=64)
    for size in (0, 32.0, True):
        with pytest.raises(UsageError, match=r"`image_size` of test_vit must be a whole number, 1 or more"):
            build_backbone("test_vit", image_size=size)  # type: ignore[arg-type]


def test_models_without_pooling_are_rejected() -> None:
    remember_architecture({"name": "hf-hub:owner/maps", "timm_name": "test_resnet", "arguments": {"global_pool": ""}})
    with pytest.raises(ModelError, match=r"must pool to a vector per image. Got features of shape \(N, \d+, \d"):
        build_backbone("hf-hub:owner/maps", image_size=64)


def test_list_backbones_by_pattern() -> None:
    assert "test_vit" in list_backbones("*vit*")
    assert all("vit" in name for name in list_backbones("*vit*"))
    assert "resnet18.a1_in1k" in list_backbones("resnet18*", pretrained=True)
    assert list_backbones("zzz*") == []


def test_data_config_follows_the_weights() -> None:
    config = data_config("resnet18.a1_in1k")
    assert (config.crop_pct, config.interpolation, config.image_size) == (0.95, "bicubic", 224)
    assert data_config(build_backbone("test_vit")) == data_config("test_vit")


def test_hub_names_build_from_a_remembered_architecture() -> None:
    saved = find_architecture("test_resnet").as_dict() | {
        "name": "hf-hub:owner/mine",
        "overlay": {"mean": [0.1, 0.2, 0.3], "input_size": [3, 64, 64]},
    }
    remember_architecture(saved)
    network = build_classifier("hf-hub:owner/mine", 3)
    assert network.normalize.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert data_config("hf-hub:owner/mine").image_size == 64
    assert find_architecture("hf-hub:owner/mine").as_dict()["overlay"] == saved["overlay"]
