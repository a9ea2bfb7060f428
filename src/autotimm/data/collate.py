"""From samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from autotimm.errors import UsageError
from autotimm.repro.digest import state_digest
from autotimm.types import Batch, Sample

__all__ = ["collate", "with_fingerprints"]


def _targets(targets: list[Any]) -> Any:
    if any(target is None for target in targets):
        return None
    if isinstance(targets[0], dict):
        return targets  # objects: as many as each image has, no padding
    return torch.stack(targets) if isinstance(targets[0], Tensor) else torch.tensor(targets, dtype=torch.int64)


def _placements(samples: Sequence[Sample]) -> Tensor | None:
    if any(sample.placement is None for sample in samples):
        return None
    return torch.tensor([sample.placement for sample in samples], dtype=torch.int64)


def collate(samples: Sequence[Sample], transforms: str = "transforms") -> Batch:
    """Stack samples to a :class:`Batch`.

    Args:
        samples: Samples whose images have one shape (3, H, W) and one data type.
        transforms: What to call the transforms in an error.

    Returns:
        Images (N, 3, H, W); targets ``int64`` (N,), or what stacks from tensors, or a list of what is a dictionary, or
        ``None`` if one is unknown.

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
    targets = _targets([sample.target for sample in samples])
    return Batch(torch.stack(images), targets, tuple(s.id for s in samples), placements=_placements(samples))


def with_fingerprints(batch: Batch) -> Batch:
    """Add the digest of each sample's image and target to a batch.

    One digest per sample and none of the whole: several processes each hold a part of a global batch, and the parts
    must add up to what one process would have noted.

    Example:
        >>> batch = Batch(torch.zeros(2, 3, 1, 1), torch.tensor([0, 1]))
        >>> len(with_fingerprints(batch).fingerprints)
        32
    """
    if batch.fingerprints:
        return batch
    images = batch.images.contiguous()
    kind = f"{images.dtype}{tuple(images.shape[1:])}".encode()
    pixels = images.flatten(1).view(torch.uint8).numpy()
    if isinstance(batch.targets, Tensor):
        targets = [row.tobytes() for row in batch.targets.numpy()]
    else:
        each = batch.targets or [None] * len(images)
        targets = [state_digest(one if isinstance(one, dict) else {"": one}).encode() for one in each]
    found = (sha256(kind + target + row.tobytes()) for row, target in zip(pixels, targets, strict=True))
    return batch._replace(fingerprints="".join(one.hexdigest()[:16] for one in found))
