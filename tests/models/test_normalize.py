import pytest
import torch

from autotimm.errors import UsageError
from autotimm.models import Normalize, build_classifier, data_config


def test_uint8_and_float_images_give_the_same_bits() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    normalize = Normalize((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    assert torch.equal(normalize(images), normalize(images.float() / 255))
    assert torch.equal(normalize(images), normalize(images.double() / 255).float())
    torch.testing.assert_close(normalize(images)[:, 1], (images[:, 1] / 255 - 0.5) / 0.2)


def test_output_has_the_dtype_of_the_buffers() -> None:
    normalize = Normalize((0.5,) * 3, (0.5,) * 3).to(torch.bfloat16)
    assert normalize(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)).dtype == torch.bfloat16
    assert normalize(torch.zeros(1, 3, 2, 2)).dtype == torch.bfloat16


def test_gradients_reach_the_image() -> None:
    image = torch.rand(1, 3, 4, 4, requires_grad=True)
    Normalize((0.5,) * 3, (0.5,) * 3)(image).sum().backward()
    assert image.grad is not None


def test_normalization_is_part_of_the_network_and_its_state() -> None:
    network = build_classifier("test_vit", 3, image_size=32)
    assert next(network.children()) is network.normalize
    mean = network.state_dict()["normalize.mean"].flatten().tolist()
    assert mean == pytest.approx(data_config("test_vit").mean)


def test_invalid_arguments_and_images_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"`std` of Normalize must be 3 numbers above 0"):
        Normalize((0.5,) * 3, (0.5, 0.0, 0.5))
    with pytest.raises(UsageError, match=r"must be uint8 in \[0, 255\] or float in \[0, 1\]. Got torch.int64"):
        Normalize((0.5,) * 3, (0.5,) * 3)(torch.zeros(1, 3, 2, 2, dtype=torch.int64))
