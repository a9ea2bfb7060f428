"""Toy images: repeatable, learnable, and with known geometry."""

from pathlib import Path

import torch

from autotimm.data.toy import Shape, toy_classes, toy_images, toy_scene, write_toy_folder
from autotimm.repro import files_digest, tensor_digest


def test_golden() -> None:
    """The images of release 1: recorded runs in the documentation were trained on them."""
    assert tensor_digest(toy_images(8, seed=1)[0])[:16] == GOLDEN


GOLDEN = "28c6266d3a247228"


def test_equal_seeds_write_equal_files(tmp_path: Path) -> None:
    roots = [
        write_toy_folder(tmp_path / name, n=6, num_classes=3, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    first, second, third = (files_digest(root.rglob("*.png"), root) for root in roots)
    assert first == second != third


def test_twenty_classes_in_byte_order() -> None:
    names = toy_classes(20)
    assert len(set(names)) == 20
    assert list(names) == sorted(names, key=str.encode)


def test_more_images_leave_the_first_ones_alone() -> None:
    assert torch.equal(toy_images(12)[0][:8], toy_images(8)[0])


def test_classes_differ_by_mean_color_and_shape() -> None:
    """A nearest-class-mean rule on pixels under the shape is right: the task can be learned."""
    names = toy_classes(4)
    for number in range(20):
        scene = toy_scene((names[number % 4],), 32, 0, number)
        (shape,) = scene.shapes
        inside = scene.image[:, shape.mask(32)].float().mean(1)
        assert (inside - torch.tensor(shape.color)).abs().max() < 12


def test_boxes_bound_masks() -> None:
    for kind in ("circle", "cross", "square", "triangle"):
        shape = Shape(kind, (255, 0, 0), 15.0, 17.0, 9.0, 0.7)
        left, top, right, bottom = shape.box(32)
        mask = shape.mask(32)
        assert mask[top:bottom, left:right].sum() == mask.sum() > 60
        assert 0 <= left < right <= 32
        assert right - left <= 19
        assert bottom - top <= 19
