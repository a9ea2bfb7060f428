"""Other views of an image: mirrored, or in other sizes; their predictions are averaged or merged.

Every view of an image is made and read back by itself, and the network sees batches of one fixed shape per size, so
that the other images of a batch change no bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from autotimm.constants import VIEWS
from autotimm.errors import UsageError, require_choice
from autotimm.image_size import ImageSize, height_and_width
from autotimm.tasks.letterbox import to_original
from autotimm.tasks.tiles import without_suppressed
from autotimm.types import Placement

__all__ = [
    "View", "Viewing", "check_sizes", "looking", "mean_probabilities", "merged_objects", "seen", "views_of"
]  # fmt: skip

_STEP = 32  # pixels: the coarsest stride of most backbones
_SMALLER, _LARGER = 3, 5  # quarters of the size


class View(NamedTuple):
    """How an image is looked at.

    Attributes:
        height: Height of the network's input in pixels.
        width: Its width.
        mirrored: Whether left and right are exchanged.
    """

    height: int
    width: int
    mirrored: bool = False


class Viewing(Protocol):
    """A task that can look at an image more than once.

    Attributes:
        views: How it looks at images now; empty for once, as they are. The first view is the image as it is.
    """

    views: tuple[View, ...]


def views_of(name: str, size: ImageSize, verb: str = "predict") -> tuple[View, ...]:
    """The views of an image, the first of which is the image as it is.

    The other sizes are about 3/4 and 5/4, in whole multiples of 32 pixels and at least 32.

    Args:
        name: One of :data:`autotimm.constants.VIEWS`.
        size: The size of the network's input.
        verb: Who was given the name, for the error.

    Raises:
        UsageError: If the name is unknown.

    Example:
        >>> [view[:2] for view in views_of("multiscale", 224)]
        [(224, 224), (160, 160), (288, 288)]
    """
    require_choice("tta", verb, name, VIEWS)
    height, width = height_and_width(size)
    first = View(height, width)
    if name == "flip":
        return first, View(height, width, mirrored=True)
    return tuple(dict.fromkeys((first, View(_smaller(height), _smaller(width)), View(_larger(height), _larger(width)))))


def _smaller(side: int) -> int:
    return max(_STEP, side * _SMALLER // 4 // _STEP * _STEP)


def _larger(side: int) -> int:
    return -(-side * _LARGER // 4 // _STEP) * _STEP


@contextmanager
def looking(task: Viewing, views: tuple[View, ...]) -> Iterator[None]:
    """Have a task look at images in several views for a while."""
    before, task.views = task.views, views
    try:
        yield
    finally:
        task.views = before


def check_sizes(network: torch.nn.Module, views: Sequence[View], in_chans: int, verb: str = "predict") -> None:
    """Refuse views that a network cannot see, as those of another size for a plain ViT.

    Args:
        network: The network.
        views: The views.
        in_chans: The channels of the images.
        verb: Who was given the name of the views, for the error.

    Raises:
        UsageError: If there is one.
    """
    training = network.training
    parameter = next(network.parameters())
    try:
        for view in (view for view in views if view[:2] != views[0][:2]):
            with torch.no_grad():
                network.eval()(torch.zeros(1, in_chans, *view[:2], dtype=torch.uint8, device=parameter.device))
    except (AssertionError, RuntimeError, ValueError, UsageError) as error:
        raise UsageError(
            f"The `tta` of {verb} must be flip or left out here: the network does not take images of {view.height} x "
            f"{view.width} pixels ({str(error).splitlines()[0]}). Give flip."
        ) from None
    finally:
        network.train(training)


def seen(images: Tensor, view: View) -> Tensor:
    """Images (N, C, H, W) in a view."""
    if images.shape[-2:] != (view.height, view.width):
        size = [view.height, view.width]
        images = torch.stack([transforms.resize(image, size, antialias=True) for image in images])
    return images.flip(-1) if view.mirrored else images


def mean_probabilities(logits: Sequence[Tensor], views: Sequence[View]) -> list[Tensor]:
    """The mean probabilities of the pixels of each image, in the size of the first view.

    Args:
        logits: (N, C, H, W) for each view.
        views: The views.

    Returns:
        N tensors (C, H, W) on the CPU.
    """
    size = (views[0].height, views[0].width)
    means = []
    for of_image in zip(*logits, strict=True):
        total = torch.zeros(len(of_image[0]), *size)
        for each, view in zip(of_image, views, strict=True):
            probabilities = each.float().cpu().softmax(0)
            probabilities = probabilities.flip(-1) if view.mirrored else probabilities
            if probabilities.shape[1:] != size:
                (probabilities,) = F.interpolate(probabilities[None], size, mode="bilinear", align_corners=False)
            total += probabilities
        means.append(total / len(views))
    return means


def merged_objects(
    found: Sequence[Mapping[str, Tensor]], views: Sequence[View], place: Placement, nms_iou: float, most: int
) -> dict[str, Tensor]:
    """Merge the objects that all views of an image show.

    Of boxes of a class that overlap in the original image the one with the highest score is kept, as among those of
    one view.

    Args:
        found: The objects of each view: ``boxes`` (K, 4) in its pixels, ``scores`` and ``labels`` (K,), and possibly
            ``masks`` (K, M, M).
        views: The views.
        place: Where the image lies in the first view.
        nms_iou: Intersection over union of two boxes of a class above which the one with the lower score is dropped.
        most: Objects to keep.

    Returns:
        The same entries in pixels of the first view, highest score first, on the CPU.
    """
    parts = [_as_first(objects, view, views[0]) for objects, view in zip(found, views, strict=True)]
    merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return without_suppressed(merged, to_original(merged["boxes"].float(), place), nms_iou, most)


def _as_first(objects: Mapping[str, Tensor], view: View, first: View) -> dict[str, Any]:
    """Objects of a view in pixels of the first one."""
    moved = {name: value.detach().cpu() for name, value in objects.items()}
    boxes = moved["boxes"].float()
    if view.mirrored:
        boxes = torch.stack([view.width - boxes[:, 2], boxes[:, 1], view.width - boxes[:, 0], boxes[:, 3]], dim=1)
        moved |= {"masks": moved["masks"].flip(-1)} if "masks" in moved else {}
    scale = boxes.new_tensor([first.width / view.width, first.height / view.height] * 2)
    return {**moved, "boxes": boxes * scale}
