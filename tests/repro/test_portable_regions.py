"""Operators on boxes and regions in a portable run: torchvision's results, whatever the order of regions."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torchvision.ops import box_iou, nms, roi_align

from autotimm.errors import UsageError
from autotimm.repro.portable_operators import portable_operators
from autotimm.tasks.letterbox import encode


def boxes(number, side=60.0, seed=0):
    """Boxes that reach a little beyond an image."""
    drawn = torch.rand(number, 4, generator=torch.Generator().manual_seed(seed))
    low = drawn[:, :2] * side - 4
    return torch.cat([low, low + drawn[:, 2:] * side * 0.6], 1)


def aligned(maps, regions, *settings, portable):
    """RoI align, and the gradient of a sum of its numbers with weights."""
    maps = maps.clone().requires_grad_()
    with portable_operators(portable):
        squares = roi_align(maps, regions, *settings)
        weights = torch.linspace(-1, 1, squares.shape[1:].numel()).view(squares.shape[1:])
        squares.mul(weights).sum().backward()
    return squares.detach(), maps.grad


@pytest.mark.parametrize("settings", [((7, 5), 0.4, 2, False), (3, 0.4, 1, True), (4, 0.25, 3, False)])
def test_regions_are_aligned_as_by_torchvision(settings):
    maps = torch.randn(2, 5, 20, 24, generator=torch.Generator().manual_seed(1))
    regions = [boxes(9), boxes(6, seed=2)]
    for ours, theirs in zip(*(aligned(maps, regions, *settings, portable=on) for on in (True, False)), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def test_masks_are_cut_as_by_torchvision():
    masks = (torch.rand(3, 1, 40, 50, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    regions = [boxes(4, seed=seed) for seed in range(3)]
    theirs = roi_align(masks, regions, 14, 1.0, 0)
    with portable_operators():
        assert_close(roi_align(masks, regions, 14, 1.0, 0), theirs, rtol=0, atol=2e-5)
        with pytest.raises(UsageError, match="a fixed number of points per cell"):
            roi_align(masks.requires_grad_(), regions, 14, 1.0, 0).sum().backward()


def test_regions_of_64_bits_stay_as_they_are():
    maps = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    regions = torch.cat([torch.zeros(4, 1), boxes(4)], 1).double()
    before = regions.clone()
    with portable_operators():
        assert_close(roi_align(maps, regions, 7, 0.25, 2), roi_align(maps, before, 7, 0.25, 2))
    assert torch.equal(regions, before)


def test_no_order_of_regions_changes_a_bit_of_the_gradient():
    maps = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    found = boxes(300)
    first, other = (aligned(maps, [each], 7, 0.25, 2, portable=True)[1] for each in (found, found[order]))
    assert torch.equal(first, other)
    usual = [aligned(maps, [each], 7, 0.25, 2, portable=False)[1] for each in (found, found[order])]
    assert not torch.equal(*usual)  # or this would show nothing


def test_no_regions_have_no_gradient():
    squares, gradient = aligned(torch.ones(1, 3, 8, 8), [torch.zeros(0, 4)], 7, 0.25, 2, portable=True)
    assert squares.shape == (0, 3, 7, 7)
    assert not gradient.any()


def test_suppression_keeps_the_first_of_equal_boxes():
    found, scores = boxes(400, 300.0), torch.arange(400).remainder(7).div(7)
    expected = nms(found, scores, 0.3)
    with portable_operators():
        kept = nms(found, scores, 0.3)
        assert nms(torch.ones(3, 4).cumsum(1), torch.ones(3), 0.5).tolist() == [0]
        assert not nms(torch.zeros(0, 4), torch.zeros(0), 0.5).numel()
    assert torch.equal(kept, expected)
    assert box_iou(found[kept], found[kept]).fill_diagonal_(0).max() <= 0.3


def test_the_best_of_equal_numbers_are_the_first():
    numbers = torch.tensor([[1.0, 3, 3, 0, 3, 0]])
    with portable_operators():
        values, places = numbers.topk(4)
        assert (values.tolist(), places.tolist()) == ([[3, 3, 3, 1]], [[1, 2, 4, 0]])
        assert numbers.topk(2, largest=False).indices.tolist() == [[3, 5]]
        assert torch.tensor(2.0).topk(1).values.item() == 2


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_smooth_distances_are_those_of_torch(reduction):
    x, targets = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    found = []
    for on in (True, False):
        given = x.clone().requires_grad_()
        with portable_operators(on):
            loss = F.smooth_l1_loss(given, targets, beta=1 / 9, reduction=reduction)
            loss.sum().backward()
        found.append((loss.detach(), given.grad))
    assert_close(*found)
    with portable_operators():
        assert torch.tensor([1.0, 8.0, 0.25]).log2().tolist() == [0, 3, -2]


def test_masks_are_drawn_as_by_torch():
    masks = torch.rand(5, 28, 28, generator=torch.Generator().manual_seed(1))
    expected = encode(masks, boxes(5), 50, 60)
    with portable_operators():
        assert encode(masks, boxes(5), 50, 60) == expected
        with pytest.raises(UsageError, match="`grid_sample` of a portable run must be bilinear"):
            F.grid_sample(masks[None], torch.zeros(1, 2, 2, 2), padding_mode="zeros", align_corners=False)
