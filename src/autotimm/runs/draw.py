"""Predictions drawn into the image: boxes, masks, regions, names and scores."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from autotimm.report.class_colors import Color, class_colors, is_background, readable_on
from autotimm.types import ObjectPrediction, PixelPrediction

__all__ = ["draw_prediction", "plain_letters"]


_VEIL = 0.4  # how much of the color and how little of the image is seen in a region
_NOTHING = -1
_LARGEST_LETTERS = 4  # as often as high as objects; of smaller objects only the color tells the class
_LOOK = 128  # side in pixels at which the middle of a region is looked for


class _Tag(NamedTuple):
    """A name to be written: what, on which color, and where its upper left corner may be, the best place first."""

    text: str
    color: Color
    places: tuple[tuple[float, float], ...]


def draw_prediction(image: Tensor, found: ObjectPrediction | PixelPrediction, class_names: Sequence[str]) -> Tensor:
    """Draw what was found into an image.

    Args:
        image: RGB ``uint8`` (3, H, W), the original.
        found: The objects in it, or the classes of its pixels.
        class_names: All classes in the order of the model: each has a color of its own.

    Returns:
        ``uint8`` (3, H, W). Letters outside of ASCII lose their accents; what has none is written as ``?``.
    """
    image = image.as_subclass(Tensor).contiguous()
    colors = dict(zip(class_names, class_colors(class_names), strict=True))
    return _objects(image, found, colors) if isinstance(found, ObjectPrediction) else _pixels(image, found, colors)


def _objects(image: Tensor, found: ObjectPrediction, colors: Mapping[str, Color]) -> Tensor:
    if not found.labels:
        return image
    names = list(colors)
    boxes = torch.tensor(found.boxes).round()
    side = float((boxes[:, 2:] - boxes[:, :2]).amin(1).median())
    # In a picture of 4000 pixels lines of 12 would cover objects of 7, and names all that is around them.
    line = max(1, min(round(max(image.shape[1:]) / 320), round(side / 4)))
    if found.masks:
        areas, edges = _outlined(found, names, line)
        image = _painted(_painted(image, areas, colors, _VEIL), edges, colors, 1.0)
    chosen = [colors[label] for label in found.labels]
    image = draw_bounding_boxes(image, boxes.flip(0), colors=chosen[::-1], width=line)
    size = _letters(image)
    if size > _LARGEST_LETTERS * side:
        return image
    tags = [
        _Tag(f"{plain_letters(label)} {score:.2f}", colors[label], _corners(box, 1.4 * size))
        for label, score, box in zip(found.labels, found.scores, found.boxes, strict=True)
    ]
    return _written(image, tags, size)


def _outlined(found: ObjectPrediction, names: Sequence[str], line: int) -> tuple[Tensor, Tensor]:
    """Class indices (H, W) of what is inside of masks and on their edges; the best lie above the others."""
    areas, edges = (torch.full(found.size, _NOTHING, dtype=torch.int16) for _ in range(2))
    for index in reversed(range(len(found.labels))):
        mask = found.mask(index)
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if not len(rows):
            continue
        around = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        inside, label = mask[around], names.index(found.labels[index])  # a small part: photographs are large
        areas[around][inside], edges[around][inside] = label, _NOTHING
        edges[around][inside & ~_shrunk(inside, line)] = label
    return areas, edges


def _corners(box: tuple[float, float, float, float], height: float) -> tuple[tuple[float, float], ...]:
    """Above a box, in its upper corner, below it, in its lower corner."""
    x1, y1, _, y2 = box
    return (x1, y1 - height), (x1, y1), (x1, y2), (x1, y2 - height)


def _pixels(image: Tensor, found: PixelPrediction, colors: Mapping[str, Color]) -> Tensor:
    classes = found.mask().to(torch.int16)
    shown = [index for index, name in enumerate(colors) if name in found.labels and not is_background(name)]
    areas = torch.where(torch.isin(classes, torch.tensor(shown, dtype=torch.int16)), classes, _NOTHING)
    image = _painted(image, areas, colors, _VEIL)
    names, size = list(colors), _letters(image)
    tags = []
    for index in sorted(shown, key=lambda one: -found.scores[names[one]]):
        text = f"{plain_letters(names[index])} {found.scores[names[index]]:.1%}"
        x, y = _middle(areas == index)
        half = 0.25 * size * len(text)  # letters are half as wide as they are high
        steps = (0.0, 1.5, -1.5, 3.0, -3.0)
        tags.append(_Tag(text, colors[names[index]], tuple((x - half, y + (step - 0.7) * size) for step in steps)))
    return _written(image, tags, size)


def _painted(image: Tensor, areas: Tensor, colors: Mapping[str, Color], alpha: float) -> Tensor:
    """Paint areas (H, W) of class indices in their colors."""
    present = (torch.bincount(areas.flatten() - _NOTHING)[1:]).nonzero().flatten().tolist()
    if not present:
        return image
    chosen = list(colors.values())
    masks = torch.stack([areas == index for index in present])
    painted: Tensor = draw_segmentation_masks(image, masks, alpha=alpha, colors=[chosen[index] for index in present])
    return painted


def _shrunk(mask: Tensor, by: int) -> Tensor:
    """A mask (H, W) without its outermost pixels."""
    around = F.pad((~mask)[None, None].float(), [by] * 4, value=1.0)
    return F.max_pool2d(around, 2 * by + 1, stride=1)[0, 0] == 0


def _middle(mask: Tensor) -> tuple[float, float]:
    """Where a region (H, W) is thickest: x and y of the pixel of it that survives longest when it is shrunk."""
    height, width = mask.shape
    factor = max(1, max(height, width) // _LOOK)
    small = F.max_pool2d(mask[None, None].float(), factor, ceil_mode=True)[0, 0] > 0
    while True:
        smaller = _shrunk(small, 1)
        if not smaller.any():
            break
        small = smaller
    rows, columns = small.nonzero().float().median(0).values.tolist()
    return min((columns + 0.5) * factor, width - 1), min((rows + 0.5) * factor, height - 1)


def _letters(image: Tensor) -> int:
    """The size of letters in pixels: to be read when the picture fills a screen."""
    return max(11, round(max(image.shape[1:]) / 45))


def plain_letters(name: str) -> str:
    """A name in the letters that the font of Pillow has."""
    letters = (letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return " ".join("".join(letters).encode("ascii", "replace").decode().split())


def _written(image: Tensor, tags: Iterable[_Tag], size: int) -> Tensor:
    """Write names where they cover each other least; the first ones choose first, and lie above."""
    height, width = image.shape[1:]
    # torchvision writes into the box, where names cover what they name and are cut off by the border.
    picture: Image.Image = to_pil_image(image)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    placed: list[tuple[_Tag, tuple[float, float, float, float]]] = []
    for tag in tags:
        long, high = pen.textlength(tag.text, font=font) + 0.5 * size, 1.4 * size
        rooms = []
        for left, top in tag.places:
            x, y = max(0.0, min(left, width - long)), max(0.0, min(top, height - high))
            rooms.append((x, y, x + long, y + high))
        free = [room for room in rooms if not any(_meet(room, other) for _, other in placed)]
        placed.append((tag, (free or rooms)[0]))
    for tag, room in reversed(placed):
        pen.rectangle(room, fill=tag.color)
        pen.text((room[0] + 0.25 * size, (room[1] + room[3]) / 2), tag.text, readable_on(tag.color), font, anchor="lm")
    result: Tensor = pil_to_tensor(picture)
    return result


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
