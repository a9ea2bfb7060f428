"""Images drawn from a seed: data for tests, examples and documentation that need no download.

A toy image shows colored shapes on a noisy background. The geometry of every shape is known, so that boxes and masks
follow from it. Images are made with torch alone, from named streams, and do not depend on a drawing library's version.

For classification an image shows one shape. For detection and segmentation a scene shows several, on a textured
background; it depends on the seed and its id alone, so that more images leave the first ones as they are, and those of
``train``, ``val`` and ``test`` differ. Masks are the visible pixels of a shape, and boxes bound these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autotimm.data.annotations.outlines import RunLengths
from autotimm.errors import require, require_choice
from autotimm.repro.streams import generator

__all__ = [
    "COLORS",
    "ObjectScene",
    "Scene",
    "Shape",
    "draw_objects",
    "toy_classes",
    "toy_images",
    "toy_scene",
    "write_toy_folder",
    "write_toy_objects",
    "write_toy_segmentation",
]


_KINDS = ("circle", "cross", "square", "triangle")
COLORS = {
    "blue": (40, 80, 220),
    "green": (40, 180, 60),
    "orange": (240, 150, 30),
    "purple": (150, 60, 190),
    "red": (220, 40, 40),
}
TASKS = ("classification",)
_SPLITS = {"train": 64, "val": 16, "test": 16}
_TRIES = 20  # to place a shape away from the others


def toy_classes(num_classes: int) -> tuple[str, ...]:
    """Names of the first classes, such as ``blue_circle``, in byte order, as folders are read; there are 20.

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
    """An image and its shapes.

    Attributes:
        image: RGB ``uint8`` (3, size, size).
        shapes: The shapes, from back to front.
    """

    image: Tensor
    shapes: tuple[Shape, ...]


def _shape(name: str, size: int, numbers: Tensor) -> Shape:
    """A shape of a class, with size, place and rotation from four numbers in [0, 1)."""
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
        number: Number of the scene, its position in the stream.
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


class ObjectScene(NamedTuple):
    """An image and the objects in it.

    Attributes:
        image: RGB ``uint8`` (3, H, W).
        labels: Names of the K objects, from back to front.
        masks: The visible pixels of each: bool (K, H, W).
    """

    image: Tensor
    labels: tuple[str, ...]
    masks: Tensor

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """The smallest box around each mask: x1, y1, x2, y2, the last two exclusive."""
        boxes = []
        for mask in self.masks:
            rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        return boxes


def draw_objects(
    id: str, size: int | tuple[int, int] = 128, num_classes: int = 3, seed: int = 0, most: int = 4
) -> ObjectScene:
    """Draw one scene with at least one object, a function of its arguments alone.

    Args:
        id: The scene, such as ``train/00007``: its position in the ``toy`` stream.
        size: Side in pixels, or height and width.
        num_classes: Number of classes, see :func:`autotimm.data.toy.toy_classes`.
        seed: Root seed.
        most: The maximum number of objects.

    Example:
        >>> scene = draw_objects("train/00000", size=64)
        >>> scene.image.shape, len(scene.labels) == len(scene.masks) == len(scene.boxes)
        (torch.Size([3, 64, 64]), True)
    """
    height, width = (size, size) if isinstance(size, int) else size
    require(min(height, width) >= 16, "size", "draw_objects", "16 pixels or more", size, "Give for example 128.")
    stream = generator(seed, "toy", "objects", id)
    names = toy_classes(num_classes)
    image = _background(height, width, stream)
    labels, shapes = [], list[Shape]()
    for _ in range(int(torch.randint(1, most + 1, (1,), generator=stream))):
        name = names[int(torch.randint(len(names), (1,), generator=stream))]
        shape = _placed(name, height, width, shapes, stream)
        if shape is not None:
            labels.append(name)
            shapes.append(shape)
    masks = torch.stack([shape.mask(max(height, width))[:height, :width] for shape in shapes])
    for shape, mask in zip(shapes, masks, strict=True):
        color = torch.tensor(shape.color, dtype=image.dtype)
        noise = torch.randn(3, int(mask.sum()), generator=stream, dtype=image.dtype)
        image[:, mask] = color[:, None] + 12 * noise
    for index in range(len(masks) - 1):
        masks[index] &= ~masks[index + 1 :].any(0)
    return ObjectScene(image.round().clamp(0, 255).to(torch.uint8), tuple(labels), masks)


def _background(height: int, width: int, stream: torch.Generator) -> Tensor:
    """Two waves across a tinted gray, and noise: ``float64`` (3, H, W)."""
    numbers = torch.rand(9, generator=stream, dtype=torch.float64).tolist()
    rows = torch.arange(height, dtype=torch.float64)[:, None] / max(height, width)
    columns = torch.arange(width, dtype=torch.float64)[None] / max(height, width)
    gray = torch.full((height, width), 80 + 90 * numbers[0], dtype=torch.float64)
    for angle, waves, phase in (numbers[1:4], numbers[4:7]):
        along = rows * math.sin(2 * math.pi * angle) + columns * math.cos(2 * math.pi * angle)
        gray += 14 * torch.sin(2 * math.pi * ((2 + 8 * waves) * along + phase))
    tint = torch.tensor([numbers[7], numbers[8], 1 - numbers[7]], dtype=torch.float64)[:, None, None]
    noise = torch.randn(3, height, width, generator=stream, dtype=torch.float64)
    return gray + 24 * (tint - 0.5) + 8 * noise


def _placed(name: str, height: int, width: int, others: list[Shape], stream: torch.Generator) -> Shape | None:
    """A shape of a class placed where it hides little of the others; ``None`` after 20 unsuccessful tries."""
    color, kind = name.split("_")
    for _ in range(_TRIES):
        far, x, y, turn = torch.rand(4, generator=stream, dtype=torch.float64).tolist()
        radius = min(height, width) * (0.13 + 0.11 * far)
        place = radius + (width - 2 * radius) * x, radius + (height - 2 * radius) * y
        if all(math.dist(place, (other.x, other.y)) > 0.8 * (radius + other.radius) for other in others):
            return Shape(kind, COLORS[color], *place, radius, 2 * math.pi * turn)
    return None


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
        root: The folder; created if missing.
        task: ``classification``.
        n: Number of images, shared out evenly among the classes.
        image_size: Side in pixels.
        num_classes: Number of classes, up to 20.
        seed: Root seed; equal seeds write equal files.
        splits: Images per split, such as ``{"train": 80, "test": 20}``, instead of ``n``; creates a folder for each.

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


def _write_scenes(
    root: Path, splits: Mapping[str, int] | None, size: int | tuple[int, int], num_classes: int, seed: int
) -> Iterator[tuple[str, Path, ObjectScene]]:
    """Draw the scenes of every split, write their images, and yield split, path and scene."""
    for split, count in (splits or _SPLITS).items():
        (root / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            scene = draw_objects(f"{split}/{number:05d}", size, num_classes, seed)
            path = root / split / f"{number:05d}.png"
            Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save(path)
            yield split, path, scene


def write_toy_objects(
    root: str | Path,
    *,
    splits: Mapping[str, int] | None = None,
    image_size: int | tuple[int, int] = 128,
    num_classes: int = 3,
    seed: int = 0,
) -> Path:
    """Write scenes for detection and instance segmentation: ``<split>/*.png`` and COCO files in ``annotations/``.

    Args:
        root: The folder; created if missing.
        splits: Images per split; by default 64 to train on and 16 each for ``val`` and ``test``.
        image_size: Side in pixels, or height and width.
        num_classes: Number of classes, up to 20.
        seed: Root seed; equal seeds write equal files.

    Returns:
        The folder.
    """
    root, names = Path(root), toy_classes(num_classes)
    categories = [{"id": number, "name": name, "supercategory": "shape"} for number, name in enumerate(names, 1)]
    sheets: dict[str, dict[str, Any]] = {}
    for split, path, scene in _write_scenes(root, splits, image_size, num_classes, seed):
        sheet = sheets.setdefault(split, {"images": [], "annotations": [], "categories": categories})
        number, (height, width) = len(sheet["images"]) + 1, scene.image.shape[-2:]
        sheet["images"].append({"id": number, "file_name": path.name, "height": height, "width": width})
        for label, mask, (x1, y1, x2, y2) in zip(scene.labels, scene.masks, scene.boxes, strict=True):
            sheet["annotations"].append(
                {
                    "id": len(sheet["annotations"]) + 1,
                    "image_id": number,
                    "category_id": names.index(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": RunLengths.of_mask(mask.numpy().astype(np.uint8)).as_coco(),
                }
            )
    (root / "annotations").mkdir(exist_ok=True)
    for split, sheet in sheets.items():
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(sheet, indent=1), encoding="utf-8")
    return root


def write_toy_segmentation(
    root: str | Path,
    *,
    splits: Mapping[str, int] | None = None,
    image_size: int | tuple[int, int] = 128,
    num_classes: int = 3,
    seed: int = 0,
) -> Path:
    """Write scenes for semantic segmentation: ``<split>/X.png``, ``X_mask.png`` and ``_classes.csv``.

    Class 0 is ``background``; the others are those of the shapes.

    Args:
        root: The folder; created if missing.
        splits: Images per split; by default 64 to train on and 16 each for ``val`` and ``test``.
        image_size: Side in pixels, or height and width.
        num_classes: Number of classes of shapes, up to 20.
        seed: Root seed; equal seeds write equal files.

    Returns:
        The folder.
    """
    root, names = Path(root), toy_classes(num_classes)
    lines = [f"{number}, {name}" for number, name in enumerate(("background", *names))]
    for _, path, scene in _write_scenes(root, splits, image_size, num_classes, seed):
        classes = np.zeros(scene.image.shape[-2:], np.uint8)
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            classes[mask.numpy()] = names.index(label) + 1
        Image.fromarray(classes).save(path.with_name(f"{path.stem}_mask.png"))
        (path.parent / "_classes.csv").write_text("\n".join(["Pixel Value, Class", *lines]) + "\n", encoding="utf-8")
    return root
