"""What is exported: a module from decoded images to scores, with everything that ``predict`` does between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autotimm.data.inference_loaders import least_size
from autotimm.image_size import height_and_width
from autotimm.tasks import Task
from autotimm.types import Batch, DataSpec

__all__ = ["Agreement", "Graph", "Runtime", "Size", "dense_input_rule"]


Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

Runtime = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]]
"""An exported file in its own runtime: RGB ``uint8`` (N, 3, H, W) to the named results."""


class Agreement(NamedTuple):
    """How far a file agrees with its run on some images.

    Attributes:
        differences: The largest difference of each kind of number.
        undecided: Labels, objects or pixels that differ where scores or overlaps lie within the tolerance.
        disagreements: Those that differ though they do not.
    """

    differences: dict[str, float]
    undecided: int = 0
    disagreements: int = 0


class Graph(nn.Module, ABC):
    """A module to export: RGB ``uint8`` (N, 3, H, W) of one size, any N, H and W, to named results.

    Args:
        task: The trained task. Its network is copied, and the copy is in evaluation mode.
        spec: What the task knows of its data.
        half: Whether the network computes in 16-bit floats. What surrounds it does not.
        dtype: In which floats images are resized; see :mod:`autotimm.export.resize`.

    Attributes:
        outputs: Names of the results, in their order.
        quantized: Name of the module that computes with 8 bits where the precision is ``int8``.
        input_rule: How images become the network's input, as plain data for a file: of ``network`` height and width;
            decoded ``upright`` or as stored; JPEGs at the smallest scale at which they have at ``least`` that size.
        tiling: How images are cut; ``None`` if the network sees them at once.
    """

    outputs: tuple[str, ...]
    quantized = "network.backbone"

    def __init__(self, task: Task, spec: DataSpec, half: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        # A copy is not compiled, whatever the run was, and a module that is compiled cannot be exported.
        network = deepcopy(task.network).eval().requires_grad_(False)
        self.network = network.half() if half else network
        self.size, self.tiling = height_and_width(spec.image_size), spec.tiling
        least = least_size(spec)
        self.input_rule: dict[str, Any] = {
            "network": list(self.size), "upright": not spec.ignore_exif, "least": least and list(least),
        }  # fmt: skip

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict images."""

    # How a file is compared with its run: both make one list with an entry per image.

    @abstractmethod
    def of_run(self, task: Any, batch: Batch) -> list[Any]:
        """What the run finds in each image of a batch."""

    @abstractmethod
    def of_file(self, results: Sequence[Mapping[str, Tensor]], sizes: Sequence[Size]) -> list[Any]:
        """What a file finds in each image, from its results for it and the image's height and width."""

    @abstractmethod
    def compare(self, expected: Sequence[Any], found: Sequence[Any], tolerance: float) -> Agreement:
        """Compare what the run and the file find in some images."""

    def joined(self, found: Sequence[Any]) -> Any:
        """What a file finds in several images, as metrics take it."""
        return list(found)


def dense_input_rule(spec: DataSpec) -> dict[str, Any]:
    """How images become the input of a network that finds objects or pixels, as a part of :attr:`Graph.input_rule`."""
    if spec.tiling is None:
        return {"resize": "letterbox", "interpolation": "bilinear"}
    return {"resize": "tiles", "overlap": spec.tiling.overlap}
