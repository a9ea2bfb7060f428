"""Changes of color as one linear function: torchvision's meaning, and bits that depend on the pixels alone."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from autotimm.data.transforms.colors import Colors, Mixture, mixed
from autotimm.records.digest import state_digest


def picture(low=60, high=190, channels=3):
    return torch.from_numpy(np.random.default_rng(0).integers(low, high, (channels, 40, 50), np.uint8))


def changed(image, change):
    pixels = image.numpy().astype(np.float32)
    weights = np.array([0.2989, 0.587, 0.114]) if len(image) == 3 else np.ones(1)
    mean = float((pixels.astype(np.float64).mean((1, 2)) * weights).sum())
    return torch.from_numpy(mixed(pixels, change(Mixture(), mean)))


CHANGES = {
    "brightness": (lambda m, mean: m.brighter(1.2), lambda image: F.adjust_brightness(image, 1.2)),
    "contrast": (lambda m, mean: m.contrasted(0.7, mean), lambda image: F.adjust_contrast(image, 0.7)),
    "saturation": (lambda m, mean: m.saturated(1.3), lambda image: F.adjust_saturation(image, 1.3)),
    "gray": (lambda m, mean: m.saturated(0.0), lambda image: F.rgb_to_grayscale(image, num_output_channels=3)),
    "all": (
        lambda m, mean: m.brighter(0.9).saturated(1.2).contrasted(1.1, mean),
        lambda image: F.adjust_contrast(F.adjust_saturation(F.adjust_brightness(image, 0.9), 1.2), 1.1),
    ),
    "another order": (
        lambda m, mean: m.contrasted(1.1, mean).saturated(1.2).brighter(0.9),
        lambda image: F.adjust_brightness(F.adjust_saturation(F.adjust_contrast(image, 1.1), 1.2), 0.9),
    ),
}


@pytest.mark.parametrize(("ours", "theirs"), CHANGES.values(), ids=CHANGES)
def test_the_meaning_is_that_of_torchvision(ours, theirs):
    """torchvision cuts off fractions after each change, and ours rounds once: 1 for each of three changes."""
    image = picture()
    difference = changed(image, ours).int() - theirs(image).int()
    assert difference.abs().max() <= 3
    assert -0.1 < difference.float().mean() < 2


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_gray_images_keep_their_channel(name):
    ours, theirs = CHANGES[name]
    image = picture(channels=1)
    assert (changed(image, ours).int() - theirs(image).int()).abs().max() <= 1


def test_values_stay_in_their_range():
    bright, dark = Colors(0.9, 0.9, 0.9), picture(0, 256)
    torch.manual_seed(3)
    results = [bright(dark) for _ in range(20)]
    assert min(int(result.min()) for result in results) == 0
    assert max(int(result.max()) for result in results) == 255
    # Beyond the range values are cut off: a byte that began again from 0 would make light pixels dark.
    extreme = mixed(np.array([[[0, 255]]] * 3, np.float32), Mixture(5.0, 0.0, -300.0))
    assert extreme[0].tolist() == [[0, 255]]


def test_factors_are_drawn_from_their_ranges():
    transform = Colors(0.4, 0.2, 0.1)
    torch.manual_seed(0)
    drawn = [transform.make_params([]) for _ in range(2000)]
    factors = torch.tensor([params["factors"] for params in drawn])
    assert torch.allclose(factors.amin(0), torch.tensor([0.6, 0.8, 0.9]), atol=0.002)
    assert torch.allclose(factors.amax(0), torch.tensor([1.4, 1.2, 1.1]), atol=0.002)
    assert torch.allclose(factors.mean(0), torch.ones(3), atol=0.02)
    orders = {tuple(sorted(range(3), key=params["order"].__getitem__)) for params in drawn}
    assert len(orders) == 6


def test_no_change_changes_nothing():
    image = picture(0, 256)
    assert torch.equal(Colors(0.0, 0.0, 0.0)(image), image)


def test_boxes_and_masks_stay_as_they_are():
    mask = tv_tensors.Mask(torch.ones(40, 50, dtype=torch.uint8))
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[1, 2, 3, 4]]), format="XYXY", canvas_size=(40, 50))
    image = tv_tensors.Image(picture())
    moved, target = v2.Compose([Colors(0.5, 0.5, 0.5)])(image, {"masks": mask, "boxes": boxes})
    assert isinstance(moved, tv_tensors.Image)
    assert not torch.equal(moved, image)
    assert torch.equal(target["masks"], mask)
    assert torch.equal(target["boxes"], boxes)


def test_the_bits_are_golden():
    """They depend on neither threads nor instructions: the same on every machine."""
    images = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(7)
            images.append(Colors(0.4, 0.4, 0.4)(picture(0, 256)))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(*images)
    assert state_digest({"": images[0]})[:16] == "450ba40e6d90c341"


def test_memory_order_does_not_matter():
    image = picture()
    last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    torch.manual_seed(1)
    one = Colors(0.3, 0.3, 0.3)(image)
    torch.manual_seed(1)
    assert torch.equal(Colors(0.3, 0.3, 0.3)(last), one)
    assert one.is_contiguous()
