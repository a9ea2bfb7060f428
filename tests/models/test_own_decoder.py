"""Decoders of one's own, by their import path as a checkpoint knows them."""

import pytest
import torch
from torch import Tensor, nn

from autotimm.errors import UsageError
from autotimm.models import build_segmenter
from autotimm.records.digest import state_digest
from autotimm.serialization import import_name

OPTIONS = {"backbone": "test_resnet", "num_classes": 3, "image_size": 64, "width": 64}


class Finest(nn.Module):
    """Looks at the finest map alone."""

    def __init__(self, channels: list[int], strides: list[int], width: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels[0], width, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.layer(maps[0])


def test_a_path_gives_the_network_that_its_callable_gives() -> None:
    made = [build_segmenter(arch, **OPTIONS) for arch in (Finest, import_name(Finest))]
    assert type(made[0].decoder) is type(made[1].decoder) is Finest
    assert len({state_digest(one.state_dict()) for one in made}) == 1
    assert made[1](torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("nowhere.Decoder", r"must be a name, or the path of a callable. Got .* \(No module named 'nowhere'\)\. Check"),
        ("torch.nn.Gone", r"must be a name, or the path of a callable. Got .* has no attribute 'Gone'\)\. Check"),
        ("math.pi", r"must be one of fpn, .* Got 3\.14"),
        ("upernett", r"must be one of fpn, .*Did you mean 'upernet'"),
        (7, r"must be one of fpn, .* Got 7 instead"),
        (
            lambda channels, strides, width: None,
            r"must be a name, or a callable that returns a module. Got None instead",
        ),
    ],
)
def test_what_is_no_decoder_is_refused(arch: object, message: str) -> None:
    with pytest.raises(UsageError, match=rf"`arch` of a segmenter {message}"):
        build_segmenter(arch, **OPTIONS)


class Gives(nn.Module):
    """Gives what it was told to."""

    def __init__(self, made: object) -> None:
        super().__init__()
        self.made = made

    def forward(self, maps: list[Tensor]) -> object:
        return maps if self.made is None else self.made


@pytest.mark.parametrize(
    ("made", "got"),
    [(None, "a list"), ({}, "a dict"), (torch.zeros(1, 8), r"a tensor \(1, 8\)"), (torch.zeros(4, 8, 8), "a tensor")],
)
def test_a_decoder_that_gives_no_map_is_refused(made: object, got: str) -> None:
    with pytest.raises(UsageError, match=rf"`arch` of a segmenter must .* one tensor \(N, D, h, w\)\. Got {got}"):
        build_segmenter(lambda channels, strides, width: Gives(made), **OPTIONS)
