"""Segmenters: shapes, learning, and bits that depend on nothing else."""

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


def learnable(number: int = 4) -> tuple[Tensor, Tensor]:
    """Squares, and for every pixel 0 or one more than the class of what it shows."""
    pictures, targets = squares(number)
    maps = torch.zeros(number, 64, 64, dtype=torch.int64)
    for one, target in zip(maps, targets, strict=True):
        for mask, label in zip(target["masks"], target["labels"], strict=True):
            one[mask.bool()] = 1 + label
    return pictures, maps


def train(network: Segmenter, steps: int) -> tuple[Tensor, Tensor]:
    pictures, wanted = learnable()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    torch.manual_seed(0)
    network.train()
    for _ in range(steps):
        loss = F.cross_entropy(network(pictures), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return pictures, wanted


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("arch", SEGMENTERS)
def test_every_pixel_has_logits(arch: str, backbone: str) -> None:
    if (arch, backbone) == ("deeplabv3plus", "test_vit"):
        with pytest.raises(ModelError, match=r"dilated to a stride of 16. It cannot. Use arch='upernet' or 'fpn' with"):
            build(arch, backbone)
        return
    network = build(arch, backbone).eval()
    with torch.no_grad():
        logits = network(images(2))
        wide = network(images(2, 128)[:, :, :64])
    assert (logits.shape, logits.dtype) == ((2, 3, 64, 64), torch.float32)
    assert wide.shape == (2, 3, 64, 128)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("arch", ["fpn", *(pytest.param(one, marks=pytest.mark.slow) for one in SEGMENTERS[1:])])
def test_it_learns_what_pixels_show(arch: str) -> None:
    network = build(arch)
    pictures, wanted = train(network, 60)
    with torch.no_grad():
        shown = network.eval()(pictures).argmax(dim=1)
    for label in range(3):
        both, either = ((shown == label) & (wanted == label)).sum(), ((shown == label) | (wanted == label)).sum()
        assert both / either > 0.7


@pytest.mark.parametrize("arch", SEGMENTERS)
def test_one_image_is_enough_to_train_on(arch: str) -> None:
    """Branches that pool to one value would have nothing to take the statistics of."""
    network = build(arch, image_size=128).train()
    network(images(1, 128)).mean().backward()
    assert [name for name, one in network.named_parameters() if one.grad is None] == []


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("arch", SEGMENTERS)
def test_the_logits_of_an_image_do_not_depend_on_the_others(arch: str, backbone: str) -> None:
    if (arch, backbone) == ("deeplabv3plus", "test_vit"):
        pytest.skip("refused")
    network = build(arch, backbone).eval()
    pictures = images(4)
    others = torch.cat([torch.zeros_like(pictures[:1]), images(1, seed=5), pictures[2:3], pictures[:1]])
    with torch.no_grad():
        first, second = network(pictures), network(others)
    assert torch.equal(first[2], second[2])
    assert torch.equal(first[0], second[3])


@pytest.mark.parametrize("arch", SEGMENTERS)
def test_two_trainings_are_equal_bit_for_bit(arch: str) -> None:
    digests = set()
    for _ in range(2):
        network = build(arch, seed=3)
        train(network, 3)
        digests.add(state_digest(network.state_dict()))
    assert len(digests) == 1


class Tiny(nn.Module):
    """A decoder that looks at the finest map alone."""

    def __init__(self, channels, strides, width) -> None:
        super().__init__()
        self.seen = list(channels), list(strides), width
        self.conv = nn.Conv2d(channels[0], 5, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.conv(maps[0])


def test_a_decoder_of_ones_own_is_given_maps_and_may_have_any_channels() -> None:
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
def test_wrong_arguments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_segmenter(**{"arch": "fpn", "backbone": "test_resnet", "num_classes": 2, "image_size": 64, **options})


@pytest.mark.parametrize(("name", "strides"), [("nest_tiny", "4, 8, 16"), ("volo_d1_224", "8, 16")])
def test_a_backbone_without_the_maps_that_a_decoder_needs_is_refused(name: str, strides: str) -> None:
    with pytest.raises(ModelError, match=rf"strides 4, 8, 16, 32 for upernet. Its strides are {strides}\."):
        build("upernet", name, image_size=224)
