"""Segmenters: their outputs, that they learn, and that logits do not depend on the other images."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autotimm.errors import ModelError, UsageError
from autotimm.models import SEGMENTERS, build_segmenter
from autotimm.models.segmentation.segmenter import Segmenter
from autotimm.records.digest import state_digest
from dense import images, squares


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(arch, backbone: str = "test_resnet", classes: int = 3, **options) -> Segmenter:
    return build_segmenter(arch, backbone, classes, **{"image_size": 64, "width": 64, **options})


def labeled_squares(number: int = 4) -> tuple[Tensor, Tensor]:
    """Squares, with the class of each pixel: 0 for the background, 1 and 2 for the squares."""
    pictures, objects = squares(number)
    targets = torch.zeros(number, 64, 64, dtype=torch.int64)
    for target, image_objects in zip(targets, objects, strict=True):
        for mask, label in zip(image_objects["masks"], image_objects["labels"], strict=True):
            target[mask.bool()] = 1 + label
    return pictures, targets


def train(network: Segmenter, steps: int) -> tuple[Tensor, Tensor]:
    pictures, targets = labeled_squares()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    torch.manual_seed(0)
    network.train()
    for _ in range(steps):
        loss = F.cross_entropy(network(pictures), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return pictures, targets


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("arch", SEGMENTERS)
def test_logits_have_the_size_of_the_images(arch: str, backbone: str) -> None:
    if (arch, backbone) == ("deeplabv3plus", "test_vit"):
        with pytest.raises(ModelError, match=r"cannot be dilated to a stride of 16. Use arch='upernet' or 'fpn' with"):
            build(arch, backbone)
        return
    network = build(arch, backbone).eval()
    with torch.no_grad():
        logits = network(images(2))
        wide = network(images(2, 128)[:, :, :64])
    assert (logits.shape, logits.dtype) == ((2, 3, 64, 64), torch.float32)
    assert wide.shape == (2, 3, 64, 128)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("arch", ["fpn", *(pytest.param(arch, marks=pytest.mark.slow) for arch in SEGMENTERS[1:])])
def test_segmenters_learn_the_classes_of_pixels(arch: str) -> None:
    network = build(arch)
    pictures, targets = train(network, 60)
    with torch.no_grad():
        predicted = network.eval()(pictures).argmax(dim=1)
    for label in range(3):
        intersection = ((predicted == label) & (targets == label)).sum()
        union = ((predicted == label) | (targets == label)).sum()
        assert intersection / union > 0.7


@pytest.mark.parametrize("arch", SEGMENTERS)
def test_batches_of_one_image_can_be_trained(arch: str) -> None:
    """Batch normalization after global pooling would raise an error."""
    network = build(arch, image_size=128).train()
    network(images(1, 128)).mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("arch", SEGMENTERS)
def test_logits_do_not_depend_on_the_other_images(arch: str, backbone: str) -> None:
    if (arch, backbone) == ("deeplabv3plus", "test_vit"):
        pytest.skip("this combination is rejected")
    network = build(arch, backbone).eval()
    pictures = images(4)
    others = torch.cat([torch.zeros_like(pictures[:1]), images(1, seed=5), pictures[2:3], pictures[:1]])
    with torch.no_grad():
        first, second = network(pictures), network(others)
    assert torch.equal(first[2], second[2])
    assert torch.equal(first[0], second[3])


@pytest.mark.parametrize("arch", SEGMENTERS)
def test_training_is_reproducible_bit_for_bit(arch: str) -> None:
    digests = set()
    for _ in range(2):
        network = build(arch, seed=3)
        train(network, 3)
        digests.add(state_digest(network.state_dict()))
    assert len(digests) == 1


class Tiny(nn.Module):
    """A decoder that uses the finest map only."""

    def __init__(self, channels, strides, width) -> None:
        super().__init__()
        self.seen = list(channels), list(strides), width
        self.conv = nn.Conv2d(channels[0], 5, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.conv(maps[0])


def test_custom_decoders_get_maps_and_may_have_any_number_of_channels() -> None:
    network = build(Tiny)
    channels, strides, width = network.decoder.seen
    assert (strides, width) == ([2, 4, 8, 16, 32], 64)
    assert channels == [level.channels for level in network.levels]
    assert network.head.in_channels == 5
    assert network(images(2)).shape == (2, 3, 64, 64)
    assert build(Tiny, "test_vit").decoder.seen == ([64] * 4, [4, 8, 16, 32], 64)
    with pytest.raises(UsageError, match=r"`arch` of a segmenter must be a name, or a callable that returns a module"):
        build(lambda channels, strides, width: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "unett"}, r"`arch` of a segmenter must be one of fpn.* Did you mean 'unet'"),
        ({"num_classes": 0}, r"`num_classes` of a segmenter must be an integer of at least 1"),
        ({"width": 32}, r"`width` of a segmenter must be a multiple of 64"),
    ],
)
def test_invalid_arguments_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_segmenter(**{"arch": "fpn", "backbone": "test_resnet", "num_classes": 2, "image_size": 64, **options})


@pytest.mark.parametrize(("name", "strides"), [("nest_tiny", "4, 8, 16"), ("volo_d1_224", "8, 16")])
def test_backbones_without_the_required_maps_are_rejected(name: str, strides: str) -> None:
    with pytest.raises(ModelError, match=rf"strides 4, 8, 16, 32 for upernet. Its strides are {strides}\."):
        build("upernet", name, image_size=224)
