"""Resizing by matrix products, and the ViTs that need it."""

import pytest
import torch
from torch.nn import functional as F

from autotimm import ImageClassifier, ObjectDetector, SemanticSegmentor
from autotimm.doctor import preflight
from autotimm.models.layers.deterministic import resize_by_products, steady_resizing

needs_cuda_build = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch is built without CUDA")


@pytest.mark.parametrize(
    ("shape", "size", "options"),
    [
        ((2, 3, 14, 14), (32, 32), {"mode": "bicubic", "antialias": True, "align_corners": None}),
        ((2, 3, 14, 9), (5, 20), {"mode": "bicubic", "antialias": True, "align_corners": False}),
        ((1, 3, 7, 5), (9, 2), {"mode": "bicubic", "align_corners": False}),
        ((1, 3, 7, 5), (9, 2), {"mode": "bicubic", "align_corners": True}),
        ((1, 3, 9, 8), (4, 4), {"mode": "bilinear", "antialias": True, "align_corners": False}),
        ((1, 3, 27), (13,), {"mode": "linear", "align_corners": None}),
        ((1, 3, 5), (13,), {"mode": "linear", "align_corners": True}),
    ],
)
def test_products_give_what_interpolate_gives(shape, size, options) -> None:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mine, theirs = resize_by_products(values, size, **options), F.interpolate(values, size, **options)
    torch.testing.assert_close(mine, theirs)
    slope = torch.rand(theirs.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        torch.autograd.grad((mine * slope).sum(), values), torch.autograd.grad((theirs * slope).sum(), values)
    )


@needs_cuda_build
@pytest.mark.parametrize("image_size", [None, 96])
@pytest.mark.parametrize(
    ("task", "options"),
    [
        (ImageClassifier, {}),
        (SemanticSegmentor, {"width": 64}),
        (ObjectDetector, {"width": 64}),
        (ObjectDetector, {"width": 64, "arch": "faster_rcnn"}),
    ],
)
def test_a_vit_takes_images_of_another_size(task, options, image_size) -> None:
    """Told of it, it resizes its position embeddings once, at the beginning; otherwise in every step."""
    made = task("test_vit", 3, pretrained=False, image_size=image_size, **options)
    assert preflight(made, 96, 2) == []


@needs_cuda_build
def test_relative_positions_are_resized_too() -> None:
    assert preflight(ImageClassifier("samvit_base_patch16", 3, pretrained=False), 96, 2) == []


def test_nothing_changes_on_the_cpu() -> None:
    network = ImageClassifier("test_vit", 3, pretrained=False).network
    images = torch.zeros(1, 3, 96, 96)
    torch.use_deterministic_algorithms(True)
    try:
        assert steady_resizing(network.backbone, images).__enter__() is None
    finally:
        torch.use_deterministic_algorithms(False)
