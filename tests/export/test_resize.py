"""The resize of exported graphs: the pixels of evaluation, to the last one."""

import pytest
import torch

from autotimm.data.transforms.image_transforms import INTERPOLATIONS, eval_transform
from autotimm.data.transforms.spatial_transforms import SpatialTransform
from autotimm.export.resize import cropped, letterbox_place, letterboxed
from autotimm.types import Sample

SIZES = [(50, 70, 32), (70, 50, 32), (33, 33, 33), (9, 150, 40), (200, 31, 64), (383, 87, 87), (5, 5, 64)]


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height * width)
    )


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_crop_has_the_pixels_of_evaluation(interpolation: str, crop_pct: float) -> None:
    for height, width, side in SIZES:
        image = picture(height, width)
        expected = eval_transform(side, crop_pct, interpolation)(image)
        assert torch.equal(cropped(image[None], (side, side), crop_pct, interpolation)[0], expected), (height, width)
        size = (side, side // 2 + 3)
        expected = eval_transform(size, crop_pct, interpolation)(image)
        assert torch.equal(cropped(image[None], size, crop_pct, interpolation)[0], expected), (height, width, size)


def test_letterbox_has_the_pixels_and_the_place_of_evaluation() -> None:
    for height, width, side in SIZES:
        image = picture(height, width)
        expected = SpatialTransform(None, side, "", "", keep_all=True)(Sample(image, None, ""))
        place = letterbox_place(image[None], (side, side))
        assert [float(value) for value in place] == list(expected.placement)
        assert torch.equal(letterboxed(image[None], place, (side, side))[0], expected.image), (height, width)
