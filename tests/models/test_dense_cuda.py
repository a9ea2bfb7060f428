"""Steps of detectors and segmenters use no CUDA operator that raises under deterministic algorithms.

They are traced without a GPU; see autotimm.doctor.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from autotimm import Batch, InstanceSegmentor, ObjectDetector, SemanticSegmentor, Stage, Step
from autotimm.doctor import preflight
from autotimm.doctor.trace import example_batch, trace
from autotimm.models import DETECTORS, SEGMENTERS
from autotimm.models.layers.deterministic import RegionPool
from autotimm.models.segmentation.decoders import DECODERS
from dense import nothing, squares

slow = pytest.mark.slow
pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch is built without CUDA")

BACKBONES = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]
SMALL = {"pretrained": False, "image_size": 64, "width": 64, "lr": 0.1}


def pairs(archs: Iterable[str], on_vit: str) -> list[Any]:
    """Each architecture on each backbone: fast on one, and one of them on a vision transformer too."""
    return [
        pytest.param(arch, name, marks=() if name == "test_resnet" or (arch, name) == (on_vit, "test_vit") else slow)
        for arch in archs
        for name in BACKBONES
    ]


def detector(arch: str, backbone: str, **options) -> ObjectDetector | InstanceSegmentor:
    task_class = InstanceSegmentor if arch == "mask_rcnn" else ObjectDetector
    return task_class(backbone, 3, arch=arch, **{**SMALL, **options})


@pytest.mark.parametrize(("arch", "backbone"), pairs(SEGMENTERS, "fpn"))
def test_segmenter_steps_are_deterministic(arch: str, backbone: str) -> None:
    if (arch, backbone) == ("deeplabv3plus", "test_vit"):
        pytest.skip("this combination is rejected")
    losses = {"loss": "ce+dice+focal+jaccard", "class_weights": [1, 2, 3]}
    task = SemanticSegmentor(backbone, 3, arch=arch, **SMALL, **losses)
    traced = trace(task, example_batch(task, 64, 2))
    assert traced.operators == []
    assert traced.optimizer == ""
    assert not traced.calculated, "a trace on the meta device suffices, whose cost does not grow with the images"
    assert "aten::convolution_backward" in traced.seen


@pytest.mark.parametrize(("arch", "backbone"), pairs(DETECTORS, "fcos"))
def test_detector_steps_are_deterministic(arch: str, backbone: str) -> None:
    """The trace covers feature maps, heads, matching, losses, the backward pass and the optimizer."""
    task = detector(arch, backbone)
    traced = trace(task, example_batch(task, 64, 2))
    assert traced.operators == []
    assert traced.optimizer == ""
    assert traced.calculated
    assert "aten::convolution_backward" in traced.seen
    if arch in ("faster_rcnn", "mask_rcnn"):
        # Regions are resampled by matrix products. torchvision's operator is used for target masks only.
        assert {"aten::bmm", "torchvision::nms"} <= traced.seen
        assert ("torchvision::roi_align" in traced.seen) == (arch == "mask_rcnn")


@pytest.mark.parametrize("arch", DETECTORS)
def test_detector_steps_with_many_objects_and_none(arch: str) -> None:
    pictures, targets = squares(3)
    task = detector(arch, "test_resnet")
    assert preflight(task, batch=Batch(pictures, targets)) == []
    assert preflight(task, batch=Batch(pictures, [nothing()] * 3)) == []


def test_rcnns_use_region_pool() -> None:
    network = detector("mask_rcnn", "test_resnet").network
    pools = [module for name, module in network.named_modules() if name.endswith("roi_pool")]
    assert all(isinstance(pool, RegionPool) for pool in pools)


# ---- custom models


class DetectorWithExtraLoss(ObjectDetector):
    """A detector with an additional loss on the finest map of its pyramid."""

    def __init__(self, *arguments, extra: Callable[[Tensor], Tensor] = torch.sum, **options) -> None:
        super().__init__(*arguments, **options)
        self.extra = extra

    def step(self, batch: Batch, stage: Stage) -> Step:
        maps = self.network.pyramid(self.network.maps(batch.images))
        return Step({**super().step(batch, stage).losses, "extra": self.extra(maps[0])})


REGION = [[0.0, 1.0, 1.0, 30.0, 30.0]]
RAISING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "resized bicubically": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic").mean(),
        "aten::upsample_bicubic2d_backward",
    ),
    "cross-entropy of pixels": (
        lambda x: F.cross_entropy(x, torch.zeros(len(x), *x.shape[2:], dtype=torch.int64, device=x.device)),
        "aten::nll_loss2d_forward",
    ),
    "scatter with a product": (
        lambda x: x.new_ones(5).scatter_reduce(0, x.flatten().argsort() % 5, x.flatten(), "prod").sum(),
        "aten::scatter_reduce",
    ),
    "put with accumulation": (
        lambda x: x.flatten().put(x.new_zeros(3, dtype=torch.int64), x.flatten()[:3], accumulate=True).sum(),
        "aten::put",
    ),
    "in a data-dependent branch": (
        lambda x: F.adaptive_max_pool2d(x, 3).sum() if float(x.detach().var()) > 0 else x.sum(),
        "aten::adaptive_max_pool2d_backward",
    ),
    "torchvision's RoI align": (
        lambda x: torch.ops.torchvision.roi_align(x, x.new_tensor(REGION), 0.125, 3, 3, 2, False).sum(),
        "torchvision::_roi_align_backward",
    ),
    "torchvision's deformable convolution": (
        lambda x: torchvision.ops.deform_conv2d(x, x.new_zeros(len(x), 2, *x.shape[2:]), x.new_ones(4, 64, 1, 1)).sum(),
        "torchvision::_deform_conv2d_backward",
    ),
}


@pytest.mark.parametrize("case", RAISING)
def test_nondeterministic_operators_of_custom_detectors_are_named(case: str) -> None:
    extra, operator = RAISING[case]
    assert [
        finding.name for finding in preflight(DetectorWithExtraLoss("test_resnet", 3, extra=extra, **SMALL), 64)
    ] == [operator]


def test_nondeterministic_operators_of_custom_decoders_are_named() -> None:
    """smp's own UPerNet uses adaptive average pooling."""

    class Pools(nn.Module):
        def __init__(self, channels, strides, width) -> None:
            super().__init__()
            self.decoder = DECODERS["upernet"].make([3, 0, *channels], width).module

        def forward(self, maps: list[Tensor]) -> Tensor:
            return self.decoder([maps[0], maps[0], *maps])

    task = SemanticSegmentor("test_resnet", 3, arch=Pools, **SMALL)
    (finding,) = preflight(task, 64, 2)
    assert finding.name == "aten::_adaptive_avg_pool2d_backward"
    assert finding.modules[0].startswith("network.decoder.decoder.")


def test_nondeterministic_operators_of_custom_losses_are_named() -> None:
    task = SemanticSegmentor("test_resnet", 3, loss=nn.CrossEntropyLoss(), **SMALL)
    (finding,) = preflight(task, 64, 2)
    assert (finding.name, finding.modules) == ("aten::nll_loss2d_forward", ("criterion (CrossEntropyLoss)",))
