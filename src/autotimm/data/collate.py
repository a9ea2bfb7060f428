"""From samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autotimm.errors import UsageError
from autotimm.types import Batch, Sample

__all__ = ["collate"]


def _targets(targets: list[Any]) -> Any:
    if any(target is None for target in targets):
        return None
    return torch.stack(targets) if isinstance(targets[0], Tensor) else torch.tensor(targets, dtype=torch.int64)


def collate(samples: Sequence[Sample], transforms: str = "transforms") -> Batch:
    """Stack samples to a :class:`Batch`.

    Args:
        samples: Samples whose images have one shape (3, H, W) and one data type.
        transforms: What to call the transforms in an error.

    Returns:
        Images (N, 3, H, W); targets ``int64`` (N,), or what stacks from tensors, or ``None`` if one is unknown.

    Raises:
        UsageError: If shapes or data types differ.
    """
    images = [sample.image for sample in samples]
    for sample in samples:
        if sample.image.shape != images[0].shape or sample.image.dtype != images[0].dtype:
            found = [f"{tuple(one.image.shape)} {one.image.dtype} ({one.id})" for one in (samples[0], sample)]
            raise UsageError(
                f"The `{transforms}` must give images of one size and data type. Got {' and '.join(found)} instead. "
                "Let them end with a resize or crop to a fixed (height, width)."
            )
    return Batch(torch.stack(images), _targets([sample.target for sample in samples]), tuple(s.id for s in samples))
