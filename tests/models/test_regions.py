"""Pyramids, anchors, RoI align and pooling: the layers between a backbone and a head."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign, roi_align

from autotimm.errors import ModelError, UsageError
from autotimm.models.backbone.feature_maps import Level, simple_strides
from autotimm.models.detection.detector import StridedAnchors
from autotimm.models.layers.deterministic import (
    AveragePool,
    RegionPool,
    region_align,
    region_align_by_matmul,
    replace_pooling,
)
from autotimm.models.layers.feature_pyramid import Pyramid, SimplePyramid, check_width


@pytest.mark.parametrize("stride", [4, 8, 16, 32, 64])
def test_simple_pyramid_has_all_strides_for_any_patch_size(stride: int) -> None:
    pyramid = SimplePyramid(48, stride, simple_strides(stride, "it"), 64)
    maps = pyramid([torch.rand(2, 48, 128 // stride, 128 // stride)])
    assert [tuple(level.shape) for level in maps] == [(2, 64, 128 // s, 128 // s) for s in (4, 8, 16, 32)]
    with pytest.raises(ModelError, match=r"Its patch size of 7 pixels would give 1.75, 3.5, 7, 14"):
        simple_strides(7, "it")


@pytest.mark.parametrize(
    ("finest", "extra", "strides"),
    [(4, "pool", [4, 8, 16, 32, 64]), (8, "convolutions", [8, 16, 32, 64, 128])],
)
@pytest.mark.parametrize("plain", [True, False])
def test_pyramid_has_equal_widths_and_extra_maps(finest: int, extra: str, strides: list[int], plain: bool) -> None:
    levels = [Level(0, 48, 16)] if plain else [Level(index, 16 + index, 4 * 2**index) for index in range(4)]
    pyramid = Pyramid(levels, 64, finest, extra, "it")
    maps = pyramid([torch.rand(1, level.channels, 224 // level.stride, 224 // level.stride) for level in levels])
    assert list(pyramid.strides) == strides
    assert [tuple(level.shape) for level in maps] == [(1, 64, -(-224 // s), -(-224 // s)) for s in strides]
    assert pyramid.multiple == 32


def test_pyramid_requirements() -> None:
    with pytest.raises(ModelError, match=r"at least two feature maps of stride 8 or more. Its strides are 4, 8\."):
        Pyramid([Level(0, 8, 4), Level(1, 8, 8)], 64, 8, "pool", "it")
    for width in (0, 96, 64.0, 32):
        with pytest.raises(UsageError, match=r"`width` of it must be a multiple of 64"):
            check_width(width, "it")  # type: ignore[arg-type]


def test_anchors_follow_the_strides_of_rounded_maps() -> None:
    """torchvision would assume a stride of 224 // 4 = 56 for the coarse map."""
    anchors = StridedAnchors([[8], [64]], [1.0], [8, 64])
    fine, coarse = anchors.layout([torch.zeros(1, 1, 28, 28), torch.zeros(1, 1, 4, 4)])
    assert coarse[:2].tolist() == [[-32, -32, 32, 32], [32, -32, 96, 32]]
    assert fine[28].tolist() == [-4, 4, 4, 12]


BOXES = torch.tensor(
    [[3.0, 5.0, 40.0, 33.0], [0.0, 0.0, 64.0, 64.0], [60.0, 60.0, 64.0, 64.0], [10.2, 10.7, 10.9, 11.1]]
)


@pytest.mark.parametrize("scale", [1.0, 0.25, 1 / 16])
def test_region_align_matches_torchvision(scale: float) -> None:
    side = int(64 * scale)
    features = torch.rand(1, 5, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    copy = features.detach().clone().requires_grad_()
    aligned, expected = region_align_by_matmul(features, BOXES, 7, scale), roi_align(copy, [BOXES], 7, scale, 2)
    torch.testing.assert_close(aligned, expected, atol=1e-5, rtol=1e-5)
    weight = torch.rand_like(aligned)
    (aligned * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(features.grad, copy.grad, atol=1e-5, rtol=1e-5)
    assert torch.equal(region_align(copy, BOXES, 7, scale), expected)
    assert region_align_by_matmul(features, BOXES[:0], 7, scale).shape == (0, 5, 7, 7)


def test_region_pool_matches_torchvision() -> None:
    rng = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, 512 // stride, 512 // stride, generator=rng) for stride in (4, 8, 16, 32)]
    starts, sides = torch.rand(40, 2, generator=rng) * 200, 8 + torch.rand(40, 1, generator=rng) ** 3 * 300
    boxes = torch.cat([starts, starts + sides], dim=1)
    by_image = [boxes[:30], boxes[30:]]
    named = {str(index): level for index, level in enumerate(maps)}
    expected = MultiScaleRoIAlign(list("0123"), 7, 2)(named, by_image, [(512, 512)] * 2)
    assert torch.equal(RegionPool((4, 8, 16, 32), 7)(maps, by_image), expected)


@pytest.mark.parametrize("side", [(7, 7), (8, 5), (2, 2), (6, 12)])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_average_pool_matches_adaptive_pooling(side: tuple[int, int], size: int) -> None:
    maps = torch.rand(2, 3, *side, dtype=torch.float64)
    torch.testing.assert_close(AveragePool(size)(maps), F.adaptive_avg_pool2d(maps, size))


def test_only_pooling_to_several_values_is_replaced() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.ReLU()))
    replace_pooling(network)
    assert isinstance(network[0], AveragePool)
    assert isinstance(network[1][0], nn.AdaptiveAvgPool2d)
