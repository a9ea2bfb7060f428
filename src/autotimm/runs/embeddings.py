"""Pooled features of images: what the backbone makes of each, read while the images are predicted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from safetensors.numpy import save
from torch import Tensor, nn

from autotimm.errors import RunError, UsageError
from autotimm.evidence.collector import pooled, reader_of_features
from autotimm.records.atomic import atomic_path
from autotimm.records.csv_cells import csv_text, safe_cell
from autotimm.records.digest import file_digest
from autotimm.runs.output_paths import require_features_file
from autotimm.tasks import Task
from autotimm.train import AutoTrainer
from autotimm.train.lightning_compat import attached

__all__ = ["Embeddings", "FeatureReader", "Rows", "collecting_features", "write_embeddings"]

_KEY, _VERSION = "autotimm", 1

Rows = NDArray[np.float32]
"""Features, (N, D)."""


class Embeddings(NamedTuple):
    """Pooled features of images.

    Attributes:
        ids: Path or id of each image, in the order of the predictions.
        features: What the backbone makes of each image, ``float32`` (N, D).
    """

    ids: tuple[str, ...]
    features: Rows


class FeatureReader(Callback):
    """Reads pooled features while a task predicts, and passes them on batch by batch.

    The features are those of the evidence: what the head of a classifier is given, or the mean over the coarsest map
    that the rest of a detector or segmenter is given. They come from evaluation batches of one fixed shape.

    Args:
        task: The task.
        take: Is given the ids and the features of every batch.

    Raises:
        UsageError: If no features of whole images can be read from the task.
    """

    def __init__(self, task: Task, take: Callable[[Sequence[str], Rows], None]) -> None:
        if (why := _why_without_features(task)) is not None:
            raise UsageError(
                "Features and neighbours need a backbone whose features can be read for whole images. "
                f"This {type(task).__name__} {why}. Predict without `embeddings` and `neighbours`."
            )
        self.task, self.take = task, take
        self._parts: list[Tensor] = []

    @contextmanager
    def reading(self, trainer: AutoTrainer) -> Iterator[None]:
        """Read the features of everything that the trainer predicts in this block."""
        module = reader_of_features(self.task.network)
        assert module is not None
        handle = module.register_forward_pre_hook(self._note)
        try:
            with attached(trainer, self):
                yield
        finally:
            handle.remove()

    def _note(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._parts.append(pooled(inputs))

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget what the network was shown before, such as an image to try its size."""
        self._parts = []

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Pass on the features of a batch, without the rows that fill it up."""
        parts, self._parts = self._parts, []
        self.take([each.id for each in outputs], torch.cat(parts)[: len(outputs)].numpy())


def _why_without_features(task: Task) -> str | None:
    if task.hparams.get("compile_model"):
        return "was compiled, and shows none"
    if task.spec is not None and task.spec.tiling is not None:
        return "sees tiles of images"
    return "has a network of its own form" if reader_of_features(task.network) is None else None


@contextmanager
def collecting_features(task: Task, trainer: AutoTrainer) -> Iterator[Callable[[], Embeddings]]:
    """Collect the features of everything that a trainer predicts in this block.

    Args:
        task: The task that predicts.
        trainer: The trainer.

    Yields:
        A function that returns what was collected, for use after the block.

    Raises:
        UsageError: If no features of whole images can be read from the task.
    """
    ids: list[str] = []
    blocks: list[Rows] = []

    def take(names: Sequence[str], rows: Rows) -> None:
        ids.extend(names)
        blocks.append(rows)

    with FeatureReader(task, take).reading(trainer):
        yield lambda: Embeddings(tuple(ids), np.concatenate(blocks))


def write_embeddings(path: str | Path, embeddings: Embeddings, checkpoint: Path) -> None:
    """Write features to a new file.

    A ``.safetensors`` file has one tensor, ``features``, and in the entry ``autotimm`` of its metadata a JSON object:
    ``ids`` in the order of the rows, and the SHA-256 of the ``checkpoint``, since features of different weights cannot
    be compared. A ``.csv`` file has the columns ``path``, ``0``, ``1`` and so on, with the nine digits that a 32-bit
    float needs.

    Args:
        path: The file, which ends in ``.safetensors`` or ``.csv``.
        embeddings: The features.
        checkpoint: The file of the weights.

    Raises:
        UsageError: If there is something already, or no folder to write to.
        RunError: If it cannot be written.
    """
    require_features_file(str(path), "path", "write_embeddings")
    ids, features = embeddings
    if Path(path).suffix.lower() == ".csv":
        rows = ([safe_cell(id), *(f"{value:.9g}" for value in row)] for id, row in zip(ids, features, strict=True))
        data = csv_text([["path", *map(str, range(features.shape[1]))], *rows]).encode()
    else:
        about = {"version": _VERSION, "ids": ids, "checkpoint": file_digest(checkpoint)}
        # One entry, see write_evidence: equal features must give equal bytes.
        data = save({"features": np.ascontiguousarray(features)}, {_KEY: json.dumps(about, sort_keys=True)})
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise RunError(f"{path} cannot be written to: {error.strerror}. Give another place.") from None
