"""Transforms: sizes, types, names, and what may go wrong with a user's own."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from autotimm.data.loader import collate_samples
from autotimm.data.transforms import (
    AUGMENTATIONS,
    ImageTransform,
    draws_from_torch_only,
    eval_transform,
    train_transform,
)
from autotimm.errors import UsageError
from autotimm.types import Sample


def image(height: int = 50, width: int = 70) -> tv_tensors.Image:
    return tv_tensors.Image(torch.arange(3 * height * width).reshape(3, height, width) % 251).to(torch.uint8)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_every_augmentation_keeps_type_and_gives_the_size(augmentation: str) -> None:
    transform = train_transform(augmentation, 32)
    assert draws_from_torch_only(transform)
    for _ in range(20):
        out = transform(image())
        assert out.shape == (3, 32, 32)
        assert out.dtype == torch.uint8
    same = all(torch.equal(transform(image()), out) for _ in range(20))
    assert same == (augmentation == "none")


@pytest.mark.parametrize(("height", "width"), [(10, 90), (90, 10), (32, 32), (1, 1)])
def test_evaluation_of_any_shape(height: int, width: int) -> None:
    out = eval_transform(32)(image(height, width))
    assert out.shape == (3, 32, 32)


def test_eval_is_resize_and_center_crop() -> None:
    expected = v2.functional.center_crop(v2.functional.resize(image(), [37], antialias=True), [32, 32])
    assert torch.equal(eval_transform(32)(image()), expected)
    assert torch.equal(train_transform("none", 32)(image()), expected)


def test_light_never_mirrors() -> None:
    gradient = tv_tensors.Image(torch.arange(64, dtype=torch.uint8).expand(3, 64, 64))
    outs = [train_transform("light", 32)(gradient) for _ in range(30)]
    assert all(out[0, 0, 0] < out[0, 0, -1] for out in outs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"augmentation": "defaults"}, r"`augmentation` of ImageDataModule .* Did you mean 'default'"),
        ({"interpolation": "lanczos"}, "`interpolation` of ImageDataModule must be one of nearest"),
    ],
)
def test_unknown_names(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_transform(**arguments)  # type: ignore[arg-type]


class Mine(v2.RandomHorizontalFlip):  # type: ignore[misc]
    def forward(self, *inputs: Any) -> Any:
        return super().forward(*inputs) if random.random() < 0.5 else inputs[0]


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (v2.RandomApply([v2.GaussianBlur(3)]), True),
        (v2.Compose([v2.RandomChoice([v2.ColorJitter(), v2.RandomGrayscale()])]), True),
        (v2.Compose([v2.Lambda(lambda image: image)]), False),
        (v2.RandomApply([Mine()]), False),
        (Mine(), False),
        (torch.nn.Sequential(v2.RandomHorizontalFlip()), False),
        (lambda image: image, False),
    ],
)
def test_which_transforms_draw_from_torch_only(transform: Any, expected: bool) -> None:
    assert draws_from_torch_only(transform) is expected


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda image: image.numpy(), r"Got ndarray instead\. End them with a tensor"),
        (lambda image: image[0], r"Got a tensor of shape \(50, 70\)"),
        (lambda image: image.permute(1, 2, 0), r"Got a tensor of shape \(50, 70, 3\).*channels first"),
        (lambda image: image[:1], r"shape \(1, 50, 70\)"),
        (lambda image: image.to(torch.int64), r"Got a tensor of torch\.int64"),
        (lambda image: None, "Got NoneType"),
    ],
)
def test_wrong_results_name_the_transform(transform: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(UsageError, match="The `train_transforms` of ImageDataModule must give .*" + message):
        ImageTransform(transform, "train_transforms")(Sample(image(), 0, "a"))


def test_normalized_values_are_refused() -> None:
    transform = ImageTransform(lambda image: image, "eval_transforms")
    transform.check(Sample(torch.rand(3, 4, 4), 0, "x"))
    transform.check(Sample(image(), 0, "x"))
    with pytest.raises(UsageError, match=r"values from -2 to 0.*Leave out Normalize"):
        transform.check(Sample(torch.rand(3, 4, 4) * 0 - torch.tensor([2.0, 1, 0]).reshape(3, 1, 1), 0, "x"))
    with pytest.raises(UsageError, match="values from"):
        transform.check(Sample(torch.full((3, 4, 4), float("nan")), 0, "x"))


def test_not_callable() -> None:
    with pytest.raises(UsageError, match="`train_transforms` of ImageDataModule must be callable"):
        ImageTransform("flip", "train_transforms")  # type: ignore[arg-type]


def test_sizes_that_differ() -> None:
    samples = [Sample(torch.zeros(3, 4, size), 0, f"{size}.png") for size in (4, 5)]
    with pytest.raises(UsageError, match=r"`eval_transforms` must give.*\(4\.png\) and .*\(5\.png\)"):
        collate_samples(samples, "eval_transforms")


def test_collate_targets() -> None:
    images = torch.zeros(3, 4, 4, dtype=torch.uint8)
    batch = collate_samples([Sample(images, 2, "a"), Sample(images, 0, "b")])
    assert batch.images.shape == (2, 3, 4, 4)
    assert batch.targets.tolist() == [2, 0]
    assert batch.targets.dtype == torch.int64
    assert batch.ids == ("a", "b")
    several = collate_samples([Sample(images, torch.tensor([1.0, 0.0]), "a")])
    assert several.targets.tolist() == [[1, 0]]
    assert collate_samples([Sample(images, None, "a")]).targets is None
