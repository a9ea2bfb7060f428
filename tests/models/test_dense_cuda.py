"""No detector and no segmenter asks CUDA for what raises under deterministic algorithms; see autotimm.doctor."""

import pytest
import torch
from torch import Tensor, nn

from autotimm import Batch
from autotimm.losses.dense import build_dense_loss
from autotimm.models import DETECTORS, SEGMENTERS, build_detector, build_segmenter
from autotimm.models.decoders import DECODERS
from autotimm.models.roi import RegionPool, region_align
from dense import images, recorded, squares, traced

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch is built without CUDA")

BACKBONES = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("arch", SEGMENTERS)
def test_a_step_of_a_segmenter(arch: str, backbone: str) -> None:
    if (arch, backbone) == ("deeplabv3plus", "test_vit"):
        pytest.skip("refused")
    network = build_segmenter(arch, backbone, 3, image_size=64, width=64)
    criterion = build_dense_loss("ce+dice+focal+jaccard", num_classes=3, class_weights=[1, 2, 3])
    batch = Batch(images(2), torch.zeros(2, 64, 64, dtype=torch.int64))
    found = traced(network, batch, lambda net, some: criterion.to("cuda")(net(some.images), some.targets))
    assert found.operators == []
    assert found.optimizer == ""
    assert "aten::convolution_backward" in found.seen


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("arch", DETECTORS)
def test_the_maps_of_a_detector(arch: str, backbone: str) -> None:
    """All that does not depend on numbers, with fake CUDA tensors: backbone, pyramid and the heads over all cells."""
    network = build_detector(arch, backbone, 3, image_size=64, width=64)

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        maps = net.pyramid(net.maps(batch.images))
        head = net.model.head if arch in ("fcos", "retinanet") else net.proposals.head
        outputs = head(maps)
        parts = outputs.values() if isinstance(outputs, dict) else [one for some in outputs for one in some]
        return torch.stack([one.float().mean() for one in parts]).sum()

    found = traced(network, Batch(images(2), torch.zeros(2, dtype=torch.int64)), loss)
    assert found.operators == []
    assert "aten::convolution_backward" in found.seen


class Cut(nn.Module):
    """Cuts one region out of what a convolution makes of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.size = 7

    def forward(self, pictures: Tensor) -> Tensor:
        boxes = pictures.new_tensor([[1.0, 2.0, 30.0, 40.0]], dtype=torch.float32)
        return region_align(self.conv(pictures[:1].float()), boxes, self.size, 1.0)


def test_cutting_regions() -> None:
    """On CUDA by matrix products: torchvision's backward pass would raise."""
    batch = Batch(images(1), torch.zeros(1, dtype=torch.int64))
    found = traced(Cut(), batch, lambda net, some: net(some.images).mean())
    assert found.operators == []
    assert not [name for name in found.seen if name.startswith("torchvision::")]
    assert "aten::bmm" in found.seen


@pytest.mark.parametrize("arch", DETECTORS)
def test_a_step_of_a_detector(arch: str) -> None:
    """All of it, with numbers, on the CPU."""
    network = build_detector(arch, "test_resnet", 3, image_size=64, width=64).train()
    pictures, targets = squares(3)
    assert recorded(network, lambda: torch.stack(list(network(pictures, targets).values())).sum()) == []
    assert all(isinstance(one, RegionPool) for name, one in network.named_modules() if name.endswith("roi_pool"))


def test_the_looks_would_see_what_raises() -> None:
    """smp's own UPerNet pools adaptively."""
    decoder = DECODERS["upernet"].make([3, 0, 8, 8, 8, 8], 64).module

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        maps = [net[0](batch.images.float())[:, :, ::step, ::step] for step in (1, 2, 4, 8, 16, 32)]
        return net[1](maps).mean()

    batch = Batch(images(2), torch.zeros(2, dtype=torch.int64))
    found = traced(nn.Sequential(nn.Conv2d(3, 8, 1), decoder), batch, loss)
    assert [one.name for one in found.operators] == ["aten::_adaptive_avg_pool2d_backward"]
    conv = nn.Conv2d(3, 1, 3)
    seen = recorded(conv, lambda: nn.functional.adaptive_avg_pool2d(conv(images(1).float()), 3).mean())
    assert [one.name for one in seen] == ["aten::_adaptive_avg_pool2d_backward"]
