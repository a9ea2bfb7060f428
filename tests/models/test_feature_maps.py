"""Feature maps of timm models: strides, weights and errors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from autotimm.errors import ModelError, UsageError, WeightsError
from autotimm.models import build_classifier, build_detector, build_segmenter, resolve_weights
from autotimm.models.backbone.feature_maps import build_feature_backbone, feature_maps
from autotimm.optim import OptimizerOptions, choose_recipe
from autotimm.optim.build_optimizer import parameter_groups
from dense import images, squares

SWIN = "swin_tiny_patch4_window7_224"
HIERARCHIES = ["test_resnet", "test_convnext", "test_efficientnet", SWIN, "regnety_002", "hiera_tiny_224", "nest_tiny"]
PLAIN_BACKBONES = {"test_vit": 16, "vit_tiny_r_s16_p8_224": 32, "xcit_nano_12_p8_224": 8}


@pytest.mark.parametrize("name", HIERARCHIES)
def test_maps_have_the_declared_strides(name: str) -> None:
    backbone, levels = build_feature_backbone(name, image_size=64)
    maps = feature_maps(backbone.eval(), [level.number for level in levels], images(1).float())
    assert [level.stride for level in levels] == ([4, 8, 16] if name == "nest_tiny" else [4, 8, 16, 32])
    assert [tuple(level_map.shape) for level_map in maps] == [
        (1, level.channels, 64 // level.stride, 64 // level.stride) for level in levels
    ]


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_cells_correspond_to_the_pixels_of_their_stride(name: str) -> None:
    """A change in one place of the image changes the finest map most in the corresponding cell."""
    backbone, levels = build_feature_backbone(name, image_size=64)
    blank = torch.zeros(1, 3, 64, 64)
    spot = blank.clone()
    spot[:, :, 40:44, 20:24] = 1
    numbers = [level.number for level in levels]
    with torch.no_grad():
        before, after = (feature_maps(backbone.eval(), numbers, image)[0] for image in (blank, spot))
    change = (after - before).abs().sum(dim=(0, 1))
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert abs(row - 10) <= 1
    assert abs(column - 5) <= 1


@pytest.mark.parametrize(("name", "stride"), PLAIN_BACKBONES.items())
def test_plain_backbones_have_one_map(name: str, stride: int) -> None:
    _, levels = build_feature_backbone(name, image_size=64)
    assert [level.stride for level in levels] == [stride]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "test_resnet",
            100,
            r"test_resnet does not support an `image_size` of 100 .*multiple of 32\). Give 96 or 128\.",
        ),
        ("test_vit", 40, r"test_vit does not support an `image_size` of 40"),
        ("test_vit", 48, r"of 48 \(its feature maps require a multiple of 32\). Give 32 or 64\."),
        ("inception_v4", 256, r"stride 4, as timm declares. It returns one of 62 x 62 for an image of 256"),
        ("pit_ti_224", 224, r"stride 8, as timm declares. It returns one of 27 x 27"),
        ("crossvit_9_240", 240, r"with strides such as 4, 8, 16 and 32. It has 12, 17\."),
        ("sequencer2d_s", 224, r"with strides such as 4, 8, 16 and 32. It has 7, 14\."),
    ],
)
def test_unsuitable_maps_and_image_sizes_are_rejected(name: str, size: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_feature_backbone(name, image_size=size)


@pytest.mark.parametrize("build", [build_detector, build_segmenter])
def test_patch_sizes_that_are_no_power_of_two_are_rejected(build) -> None:
    arch = "fcos" if build is build_detector else "upernet"
    with pytest.raises(ModelError, match=r"Its patch size of 14 pixels would give 3.5, 7, 14, 28\. Choose"):
        build(arch, "vit_small_patch14_dinov2", 2, image_size=64, width=64)


def test_image_sizes_must_be_multiples_of_the_largest_stride() -> None:
    network = build_segmenter("segformer", "test_vit", 2, image_size=64, width=64).eval()
    assert network(images(1, 96)).shape == (1, 2, 96, 96)
    with pytest.raises(UsageError, match=r"multiples of 32. They are 72 x 72. Give the data image_size=64 or 96\."):
        network(images(1, 72))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_initial_backbone_weights_are_those_of_a_classifier(name: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    expected = build_classifier(name, 5, seed=7, image_size=64).backbone.state_dict()
    for network in (
        build_detector("fcos", name, 2, seed=7, image_size=64, width=64),
        build_detector("mask_rcnn", name, 3, seed=7, image_size=64, width=128),
        build_segmenter("fpn", name, 4, seed=7, image_size=64, width=64),
    ):
        state = network.backbone.state_dict()
        assert state.keys() <= expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in state.items())
    assert torch.equal(torch.get_rng_state(), before)
    other = build_segmenter("fpn", name, 4, seed=8, image_size=64, width=64)
    same = build_segmenter("fpn", name, 4, seed=7, image_size=64, width=64)
    assert not torch.equal(other.head.weight, network.head.weight)
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_efficientnet"])
def test_every_parameter_of_the_backbone_gets_a_gradient(name: str) -> None:
    network = build_detector("mask_rcnn", name, 2, image_size=64, width=64).train()
    sum(network(*squares(2)).values()).backward()
    assert [key for key, value in network.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_pretrained_weights_load_as_for_a_classifier(name: str, tmp_path: Path) -> None:
    source = build_classifier(name, 5, seed=11, image_size=160).backbone
    file = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in source.state_dict().items()}, file)
    weights = resolve_weights(name, str(file))
    assert weights.sha256
    network = build_detector("retinanet", name, 2, weights=weights, seed=1, image_size=160, width=64)
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    # The weights of a detector lack the layers after the last map, and are complete for another detector.
    torch.save({f"backbone.{key}": value for key, value in network.backbone.state_dict().items()}, tmp_path / "b.pth")
    weights = resolve_weights(name, str(tmp_path / "b.pth"))
    segmenter = build_segmenter("fpn", name, 2, weights=weights, image_size=160, width=64)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in segmenter.backbone.state_dict().items())


def test_position_embeddings_are_resampled_to_the_image_size(tmp_path: Path) -> None:
    source = build_classifier("test_vit", 5, seed=11, image_size=160).backbone
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    weights = resolve_weights("test_vit", str(tmp_path / "weights.safetensors"))
    network = build_segmenter("fpn", "test_vit", 2, weights=weights, image_size=64, width=64)
    before, after = source.pos_embed, network.backbone.pos_embed
    assert before.shape[1] > after.shape[1] > 16
    assert torch.equal(network.backbone.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    with pytest.raises(WeightsError, match=r"does not fit test_resnet"):
        build_detector("fcos", "test_resnet", 2, weights=weights, image_size=64, width=64)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_layers_are_numbered_for_layer_decay(name: str) -> None:
    network = build_detector("faster_rcnn", name, 2, image_size=64, width=64)
    recipe = choose_recipe(network, pretrained=True, batch_size=4, options=OptimizerOptions(lr=1.0))
    groups = parameter_groups(network, recipe)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    backbone = [rates[id(parameter)] for parameter in network.backbone.parameters()]
    others = [rates[id(parameter)] for part in (network.pyramid, network.heads) for parameter in part.parameters()]
    assert min(others) == 1.0 > max(backbone) > min(backbone)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
