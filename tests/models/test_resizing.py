"""Deterministic resizing, and the ViTs that need it."""

import pytest
import torch
from torch.nn import functional as F

from autotimm import ImageClassifier, ObjectDetector, SemanticSegmentor
from autotimm.doctor import preflight
from autotimm.models.layers.deterministic import deterministic_resizing, resize_by_matmul

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
def test_resize_by_matmul_matches_interpolate(shape, size, options) -> None:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    resized, expected = resize_by_matmul(values, size, **options), F.interpolate(values, size, **options)
    torch.testing.assert_close(resized, expected)
    weights = torch.rand(expected.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        torch.autograd.grad((resized * weights).sum(), values), torch.autograd.grad((expected * weights).sum(), values)
    )


@needs_cuda_build
@pytest.mark.parametrize(
    ("task", "options", "image_size"),
    [
        (ImageClassifier, {}, None),
        (ImageClassifier, {}, 96),
        (SemanticSegmentor, {"width": 64}, None),
        pytest.param(SemanticSegmentor, {"width": 64}, 96, marks=pytest.mark.slow),
        pytest.param(ObjectDetector, {"width": 64}, None, marks=pytest.mark.slow),
        (ObjectDetector, {"width": 64}, 96),
        (ObjectDetector, {"width": 64, "arch": "faster_rcnn"}, None),
        pytest.param(ObjectDetector, {"width": 64, "arch": "faster_rcnn"}, 96, marks=pytest.mark.slow),
    ],
)
def test_vits_train_on_images_of_another_size(task, options, image_size) -> None:
    # With `image_size` given, the position embeddings are resized once, at the beginning; otherwise in every step.
    model = task("test_vit", 3, pretrained=False, image_size=image_size, **options)
    assert preflight(model, 96, 2) == []


@needs_cuda_build
def test_relative_position_embeddings_are_resized() -> None:
    assert preflight(ImageClassifier("samvit_base_patch16", 3, pretrained=False), 96, 2) == []


def test_cpu_uses_interpolate() -> None:
    network = ImageClassifier("test_vit", 3, pretrained=False).network
    images = torch.zeros(1, 3, 96, 96)
    torch.use_deterministic_algorithms(True)
    try:
        assert deterministic_resizing(network.backbone, images).__enter__() is None
    finally:
        torch.use_deterministic_algorithms(False)
