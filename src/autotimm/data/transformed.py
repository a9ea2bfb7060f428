"""From a table to a loader of transformed batches: one way for data modules and for models that remember theirs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from autotimm.data.loader import KeyedDataset, KeyedLoader
from autotimm.data.table import Table
from autotimm.data.transforms import SampleTransform
from autotimm.repro.sampler import KeyedBatchSampler

__all__ = ["transformed_loader"]


def transformed_loader(
    table: Table,
    batches: KeyedBatchSampler,
    transform: SampleTransform,
    *,
    stream: str,
    collate: Callable[..., Any],
    **loading: Any,
) -> KeyedLoader:
    """Load the samples of a table through a transform.

    Args:
        table: The samples.
        batches: Which of them, in which order; its seed is that of the samples' streams too.
        transform: What is applied to each.
        stream: ``augment`` in training, else ``eval``, see :class:`KeyedDataset`.
        collate: Makes a batch; its argument ``transforms`` is what to call the transforms in an error.
        loading: Options of :class:`KeyedLoader`, such as ``num_workers``.

    Raises:
        UsageError: If the transform makes no image of the first sample.
    """
    dataset = KeyedDataset(table, transform, seed=batches.seed, stream=stream)
    transform.check(dataset[0])  # a wrong transform is refused here, not in a worker
    return KeyedLoader(dataset, batches, collate=partial(collate, transforms=transform.name), **loading)
