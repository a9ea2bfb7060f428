"""No step of a detector or segmenter asks CUDA for what raises under deterministic algorithms; see autotimm.doctor."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from autotimm import Batch, InstanceSegmentor, ObjectDetector, SemanticSegmentor, Stage, Step
from autotimm.doctor import preflight
from autotimm.doctor.example import example_batch
from autotimm.doctor.trace import trace
from autotimm.models import DETECTORS, SEGMENTERS
from autotimm.models.decoders import DECODERS
from autotimm.models.roi import RegionPool
from dense import nothing, squares

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch is built without CUDA")

LATER = [pytest.param(one, marks=pytest.mark.slow) for one in ("test_convnext", "test_efficientnet")]
BACKBONES = ["test_resnet", "test_vit", *LATER]
OPTIONS = {"pretrained": False, "image_size": 64, "width": 64, "lr": 0.1}


def detector(arch: str, backbone: str, **options) -> ObjectDetector | InstanceSegmentor:
    kind = InstanceSegmentor if arch == "mask_rcnn" else ObjectDetector
    return kind(backbone, 3, arch=arch, **{**OPTIONS, **options})


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("arch", SEGMENTERS)
def test_a_step_of_a_segmenter(arch: str, backbone: str) -> None:
    if (arch, backbone) == ("deeplabv3plus", "test_vit"):
        pytest.skip("refused")
    losses = {"loss": "ce+dice+focal+jaccard", "class_weights": [1, 2, 3]}
    task = SemanticSegmentor(backbone, 3, arch=arch, **OPTIONS, **losses)
    found = trace(task, example_batch(task, 64, 2))
    assert found.operators == []
    assert found.optimizer == ""
    assert not found.calculated, "a trace without numbers is enough, and takes no longer for large images"
    assert "aten::convolution_backward" in found.seen


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("arch", DETECTORS)
def test_a_step_of_a_detector(arch: str, backbone: str) -> None:
    """All of it: maps, heads, what is matched with what, losses, the way back and the optimizer."""
    task = detector(arch, backbone)
    found = trace(task, example_batch(task, 64, 2))
    assert found.operators == []
    assert found.optimizer == ""
    assert found.calculated
    assert "aten::convolution_backward" in found.seen
    if arch in ("faster_rcnn", "mask_rcnn"):
        # Regions are cut out by matrix products: torchvision's way back would raise.
        assert {"aten::bmm", "torchvision::nms"} <= found.seen
        assert ("torchvision::roi_align" in found.seen) == (arch == "mask_rcnn"), "masks alone, without a gradient"


@pytest.mark.parametrize("arch", DETECTORS)
def test_images_with_many_objects_and_with_none(arch: str) -> None:
    pictures, targets = squares(3)
    task = detector(arch, "test_resnet")
    assert preflight(task, batch=Batch(pictures, targets)) == []
    assert preflight(task, batch=Batch(pictures, [nothing()] * 3)) == []


def test_regions_are_cut_by_ours() -> None:
    network = detector("mask_rcnn", "test_resnet").network
    assert all(isinstance(one, RegionPool) for name, one in network.named_modules() if name.endswith("roi_pool"))


# ---- models of others: what raises is named


class Own(ObjectDetector):
    """A detector with one more loss, of the finest map of its pyramid."""

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
    "a scattered product": (
        lambda x: x.new_ones(5).scatter_reduce(0, x.flatten().argsort() % 5, x.flatten(), "prod").sum(),
        "aten::scatter_reduce",
    ),
    "put and added up": (
        lambda x: x.flatten().put(x.new_zeros(3, dtype=torch.int64), x.flatten()[:3], accumulate=True).sum(),
        "aten::put",
    ),
    "only where numbers say so": (
        lambda x: F.adaptive_max_pool2d(x, 3).sum() if float(x.detach().var()) > 0 else x.sum(),
        "aten::adaptive_max_pool2d_backward",
    ),
    "torchvision's regions": (
        lambda x: torch.ops.torchvision.roi_align(x, x.new_tensor(REGION), 0.125, 3, 3, 2, False).sum(),
        "torchvision::_roi_align_backward",
    ),
    "torchvision's deformable convolution": (
        lambda x: torchvision.ops.deform_conv2d(x, x.new_zeros(len(x), 2, *x.shape[2:]), x.new_ones(4, 64, 1, 1)).sum(),
        "torchvision::_deform_conv2d_backward",
    ),
}


@pytest.mark.parametrize("case", RAISING)
def test_what_raises_in_a_detector_of_ones_own_is_named(case: str) -> None:
    extra, operator = RAISING[case]
    assert [one.name for one in preflight(Own("test_resnet", 3, extra=extra, **OPTIONS), 64)] == [operator]


def test_a_decoder_of_ones_own() -> None:
    """smp's own UPerNet pools adaptively."""

    class Pools(nn.Module):
        def __init__(self, channels, strides, width) -> None:
            super().__init__()
            self.decoder = DECODERS["upernet"].make([3, 0, *channels], width).module

        def forward(self, maps: list[Tensor]) -> Tensor:
            return self.decoder([maps[0], maps[0], *maps])

    task = SemanticSegmentor("test_resnet", 3, arch=Pools, **OPTIONS)
    (found,) = preflight(task, 64, 2)
    assert found.name == "aten::_adaptive_avg_pool2d_backward"
    assert found.modules[0].startswith("network.decoder.decoder.")


def test_a_loss_of_ones_own() -> None:
    task = SemanticSegmentor("test_resnet", 3, loss=nn.CrossEntropyLoss(), **OPTIONS)
    (found,) = preflight(task, 64, 2)
    assert (found.name, found.modules) == ("aten::nll_loss2d_forward", ("criterion (CrossEntropyLoss)",))
