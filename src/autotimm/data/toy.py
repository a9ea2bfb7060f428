"""Images drawn from a seed: data for tests, examples and documentation that needs no download.

Each image is a scene of colored shapes on a noisy background. The geometry of every shape is known, so that boxes and
masks can be read off it. Images are made with torch alone, from named streams, and do not depend on a drawing
library's version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from autotimm.errors import require, require_choice
from autotimm.repro.streams import generator

__all__ = ["COLORS", "Scene", "Shape", "toy_classes", "toy_images", "toy_scene", "write_toy_folder"]

_KINDS = ("circle", "cross", "square", "triangle")
COLORS = {
    "blue": (40, 80, 220),
    "green": (40, 180, 60),
    "orange": (240, 150, 30),
    "purple": (150, 60, 190),
    "red": (220, 40, 40),
}
TASKS = ("classification",)


def toy_classes(num_classes: int) -> tuple[str, ...]:
    """Names of the first classes, such as ``blue_circle``, in byte order as folders are read; there are 20.

    Example:
        >>> toy_classes(3)
        ('blue_circle', 'green_cross', 'orange_square')
    """
    must = f"a whole number from 1 to {len(_KINDS) * len(COLORS)}"
    require(1 <= num_classes <= 20, "num_classes", "toy_classes", must, num_classes, "Give for example 4.")
    colors = list(COLORS)
    # Neighbors differ in both kind and color; 4 and 5 have no common factor, so all pairs come up.
    return tuple(sorted(f"{colors[i % 5]}_{_KINDS[i % 4]}" for i in range(num_classes)))


@dataclass(frozen=True)
class Shape:
    """One shape of a scene.

    Attributes:
        kind: ``circle``, ``cross``, ``square`` or ``triangle``.
        color: RGB in [0, 255].
        x: Center, in pixels from the left.
        y: Center, in pixels from the top.
        radius: Distance in pixels from the center that the shape does not exceed.
        angle: Rotation in radians.
    """

    kind: str
    color: tuple[int, int, int]
    x: float
    y: float
    radius: float
    angle: float

    def mask(self, size: int) -> Tensor:
        """The pixels whose centers lie inside, a bool tensor (size, size)."""
        grid = torch.arange(size, dtype=torch.float64) + 0.5
        dy, dx = torch.meshgrid(grid - self.y, grid - self.x, indexing="ij")
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        u, v = (dx * cos + dy * sin) / self.radius, (dy * cos - dx * sin) / self.radius
        if self.kind == "circle":
            return u**2 + v**2 <= 1
        if self.kind == "square":
            return torch.maximum(u.abs(), v.abs()) <= math.sqrt(0.5)
        if self.kind == "cross":
            return (torch.minimum(u.abs(), v.abs()) <= 0.25) & (torch.maximum(u.abs(), v.abs()) <= 0.95)
        return (v <= 0.5) & (v >= math.sqrt(3) * u.abs() - 1)  # an equilateral triangle in the unit circle

    def box(self, size: int) -> tuple[int, int, int, int]:
        """The smallest box (left, top, right, bottom) around :meth:`mask`, right and bottom exclusive."""
        rows, columns = self.mask(size).nonzero(as_tuple=True)
        return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@dataclass(frozen=True)
class Scene:
    """An image and what is in it.

    Attributes:
        image: RGB ``uint8`` (3, size, size).
        shapes: The shapes, from back to front.
    """

    image: Tensor
    shapes: tuple[Shape, ...]


def _shape(name: str, size: int, numbers: Tensor) -> Shape:
    """Place a shape of a class by four numbers in [0, 1)."""
    color, kind = name.split("_")
    far, place_x, place_y, turn = numbers.tolist()
    radius = size * (0.25 + 0.13 * far)
    room = size - 2 * radius
    return Shape(kind, COLORS[color], radius + room * place_x, radius + room * place_y, radius, 2 * math.pi * turn)


def toy_scene(names: tuple[str, ...], size: int, seed: int, number: int) -> Scene:
    """Draw one scene, a function of its arguments alone.

    Args:
        names: The class of each shape, from :func:`toy_classes`.
        size: Side in pixels.
        seed: Root seed of the ``toy`` stream.
        number: Which scene.
    """
    stream = generator(seed, "toy", number)
    shapes = tuple(_shape(name, size, torch.rand(4, generator=stream)) for name in names)
    gray = 90 + 110 * torch.rand(1, generator=stream)
    image = (gray + 25 * torch.randn(3, size, size, generator=stream)).clone()
    for shape in shapes:
        inside = shape.mask(size)
        color = torch.tensor(shape.color, dtype=image.dtype)
        image[:, inside] = color[:, None] + 15 * torch.randn(3, int(inside.sum()), generator=stream)
    return Scene(image.round().clamp(0, 255).to(torch.uint8), shapes)


def toy_images(n: int = 40, size: int = 32, num_classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw images with one shape each; the class is its color and kind.

    Returns:
        Images ``uint8`` (n, 3, size, size), and class indices ``int64`` (n,): 0, 1, 2, ... in turn.

    Example:
        >>> images, labels = toy_images(6, num_classes=3)
        >>> images.shape, labels.tolist()
        (torch.Size([6, 3, 32, 32]), [0, 1, 2, 0, 1, 2])
    """
    names = toy_classes(num_classes)
    scenes = [toy_scene((names[number % num_classes],), size, seed, number) for number in range(n)]
    return torch.stack([scene.image for scene in scenes]), torch.arange(n) % num_classes


def write_toy_folder(
    root: str | Path,
    task: str = "classification",
    *,
    n: int = 40,
    image_size: int = 32,
    num_classes: int = 4,
    seed: int = 0,
    splits: Mapping[str, int] | None = None,
) -> Path:
    """Write class folders of PNG files.

    Args:
        root: The folder; made if it is not there.
        task: ``classification``.
        n: Number of images, shared out evenly among the classes.
        image_size: Side in pixels.
        num_classes: Number of classes, up to 20.
        seed: Root seed; equal seeds write equal files.
        splits: Images per split, such as ``{"train": 80, "test": 20}``, in place of ``n``; makes a folder for each.

    Returns:
        The folder.
    """
    require_choice("task", "write_toy_folder", task, TASKS)
    root, names = Path(root), toy_classes(num_classes)
    number = 0
    for split, count in (splits or {"": n}).items():
        for position in range(count):
            name = names[position % num_classes]
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            image = toy_scene((name,), image_size, seed, number).image
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:05d}.png")
            number += 1
    return root
