"""Custom decoders, as callables and by their import paths as checkpoints store them."""

import pytest
import torch
from torch import Tensor, nn

from autotimm.errors import UsageError
from autotimm.models import build_segmenter
from autotimm.records.digest import state_digest
from autotimm.serialization import import_name

OPTIONS = {"backbone": "test_resnet", "num_classes": 3, "image_size": 64, "width": 64}


class Finest(nn.Module):
    """A decoder that uses the finest map only."""

    def __init__(self, channels: list[int], strides: list[int], width: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels[0], width, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.layer(maps[0])


def test_import_path_and_callable_give_the_same_network() -> None:
    networks = [build_segmenter(arch, **OPTIONS) for arch in (Finest, import_name(Finest))]
    assert type(networks[0].decoder) is type(networks[1].decoder) is Finest
    assert len({state_digest(network.state_dict()) for network in networks}) == 1
    assert networks[1](torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("nowhere.Decoder", r"'nowhere.Decoder' must be the import path of .* No module named 'nowhere'"),
        ("torch.nn.Gone", r"'torch.nn.Gone' must be the import path of .* has no attribute 'Gone'"),
        (
            "math.pi",
            r"'math.pi' must be the import path of .* math is a part of Python itself",
        ),
        ("upernett", r"must be one of fpn, .*Did you mean 'upernet'"),
        (7, r"must be one of fpn, .* Got 7 instead"),
        (
            lambda channels, strides, width: None,
            r"must be a name, or a callable that returns a module. Got None instead",
        ),
    ],
)
def test_invalid_decoders_are_rejected(arch: object, message: str) -> None:
    with pytest.raises(UsageError, match=rf"`arch`( of a segmenter)? {message}"):
        build_segmenter(arch, **OPTIONS)


class Returns(nn.Module):
    """A decoder that returns a given object, or its input for None."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, maps: list[Tensor]) -> object:
        return maps if self.output is None else self.output


@pytest.mark.parametrize(
    ("output", "got"),
    [(None, "a list"), ({}, "a dict"), (torch.zeros(1, 8), r"a tensor \(1, 8\)"), (torch.zeros(4, 8, 8), "a tensor")],
)
def test_decoders_that_return_no_single_map_are_rejected(output: object, got: str) -> None:
    with pytest.raises(UsageError, match=rf"`arch` of a segmenter must .* one tensor \(N, D, h, w\)\. Got {got}"):
        build_segmenter(lambda channels, strides, width: Returns(output), **OPTIONS)
