"""Collects evidence while a task evaluates batches: what metrics see, kept per sample; joins that of folds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from autotimm.data.annotations.outlines import RunLengths
from autotimm.errors import ModelError
from autotimm.evidence.evidence_file import KINDS, Evidence
from autotimm.evidence.label_runs import LabelRuns
from autotimm.models.backbone.feature_maps import DenseNetwork
from autotimm.models.backbone.pooled import PooledClassifier
from autotimm.records.run_folder import FOLDS
from autotimm.repro.portable_operators import portable_operators
from autotimm.types import Batch, Step

if TYPE_CHECKING:
    from autotimm.tasks import Task

__all__ = ["EvidenceCollector", "collecting", "join_folds", "joined", "pooled", "reader_of_features"]

_UNKNOWN = 255  # the label of a pixel without a class in a label map
_MOST_FEATURES = 1 << 28  # numbers: 1 GB; beyond, features are left out

_Rows = dict[str, NDArray[Any]]
_Result = TypeVar("_Result")


class EvidenceCollector:
    """Collects the evidence of one split, batch by batch.

    Args:
        task: The task that evaluates.
        split: ``val`` or ``test``.

    Attributes:
        task: The task.
        split: The split.
    """

    def __init__(self, task: Task, split: str) -> None:
        self.task, self.split = task, split
        self._ids: list[str] = []
        self._rows: list[_Rows] = []
        self._features: list[Tensor] = []
        self._complete = True  # whether all batches were such as evidence is made of

    @staticmethod
    def collects(task: Task) -> bool:
        """Whether there is evidence of a task: a kind of targets that has a form here."""
        return task.spec is not None and task.spec.kind in KINDS

    @contextmanager
    def watching(self) -> Iterator[EvidenceCollector]:
        """Take over every batch that the task evaluates in this block, and the features in between."""
        handle = None
        if not self.task.hparams.get("compile_model") and (reader := reader_of_features(self.task.network)):
            handle = reader.register_forward_pre_hook(self._note_features)  # a compiled network has no hooks
        before, self.task.collector = self.task.collector, self
        try:
            yield self
        finally:
            self.task.collector = before
            if handle is not None:
                handle.remove()

    def _note_features(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features.append(pooled(inputs))

    def add(self, batch: Batch, step: Step) -> None:
        """Add a batch of an evaluation.

        Args:
            batch: The batch, with ids.
            step: What the task made of it.
        """
        features, self._features = self._features, []
        with portable_operators(self.task.portable):
            rows = self._rows_of(batch, step)
        if rows is None or not batch.ids:
            self._complete = False
            return
        if features:
            rows["features"] = torch.cat(features)[: len(batch.ids)].numpy()  # without the rows of the padding
        self._ids += batch.ids
        self._rows.append(rows)

    def _rows_of(self, batch: Batch, step: Step) -> _Rows | None:
        """The rows of a batch; ``None`` if predictions or targets are of a form that evidence does not have."""
        assert self.task.spec is not None
        kind, classes = self.task.spec.kind, len(self.task.spec.class_names)
        predictions, targets = step.predictions, step.targets
        if kind == "classes":
            fits = isinstance(predictions, Tensor) and isinstance(targets, Tensor)
            return _classes(predictions, targets) if fits and predictions.shape[1:] == (classes,) else None
        if not (isinstance(predictions, list) and isinstance(targets, list)) or batch.placements is None:
            return None
        sizes = {"sizes": batch.placements[:, :2].cpu().numpy().astype(np.int64)}
        if kind == "pixels":
            return sizes | _pixels(predictions, targets, classes)
        return sizes | _objects(predictions, targets, with_masks=kind == "instances")

    def evidence(self) -> Evidence | None:
        """The evidence of all batches; ``None`` if there were none, or the task is of a form that has none."""
        spec = self.task.spec
        if spec is None or not self._rows or not self._complete:
            return None
        # A batch may lack features: that of a network whose hook was not called.
        names = set.intersection(*(set(rows) for rows in self._rows))
        arrays = {name: joined(name, [rows[name] for rows in self._rows]) for name in sorted(names)}
        if "features" in arrays and arrays["features"].size > _MOST_FEATURES:
            del arrays["features"]
        return Evidence(
            self.split, spec.kind, spec.multi_label, self.task.threshold, tuple(spec.class_names), tuple(self._ids),
            arrays,
        )  # fmt: skip


def collecting(
    task: Task, split: str, measure: Callable[[], _Result], *, wanted: bool = True
) -> tuple[_Result, Evidence | None]:
    """Measure, and collect the evidence meanwhile.

    Args:
        task: The task that is measured.
        split: The split that it is measured on.
        measure: Measures.
        wanted: Whether evidence is wanted at all.

    Returns:
        What ``measure`` has returned, and the evidence if it is wanted and there is any.
    """
    if not (wanted and EvidenceCollector.collects(task)):
        return measure(), None
    with EvidenceCollector(task, split).watching() as collector:
        measured = measure()
    return measured, collector.evidence()


def reader_of_features(network: nn.Module) -> nn.Module | None:
    """The first module of a network that is given the features of the backbone."""
    if isinstance(network, PooledClassifier):
        return network.head
    if not isinstance(network, DenseNetwork):
        return None
    children: Mapping[str, nn.Module] = dict(network.named_children())
    return children.get("pyramid") or children.get("decoder")


def pooled(inputs: tuple[Any, ...]) -> Tensor:
    """The features in the inputs of the module that :func:`reader_of_features` names, ``float32`` (N, D)."""
    features = inputs[0] if isinstance(inputs[0], Tensor) else inputs[0][-1]  # the coarsest of several maps
    means = features.float().mean(dim=(2, 3)) if features.ndim == 4 else features.float()
    return means.detach().cpu()


def joined(name: str, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The rows of all batches: matrices of counts are added, offsets continued, everything else appended."""
    if name == "confusion":
        return np.asarray(np.sum(parts, axis=0, dtype=np.int64))
    if not name.endswith("offsets"):
        return np.concatenate(parts)
    ends = np.cumsum([0, *(int(part[-1]) for part in parts)])
    return np.concatenate([[0], *(part[1:] + end for part, end in zip(parts, ends, strict=False))]).astype(np.int64)


def _classes(logits: Tensor, targets: Tensor) -> _Rows:
    logits, targets = logits.detach().float().cpu(), targets.cpu()
    if targets.ndim == 2:
        losses = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(dim=1)
        return {"scores": logits.sigmoid().numpy(), "targets": targets.to(torch.uint8).numpy(),
                "losses": losses.numpy()}  # fmt: skip
    losses = F.cross_entropy(logits, targets, reduction="none")
    return {"scores": logits.softmax(dim=1).numpy(), "targets": targets.numpy(), "losses": losses.numpy()}


def _objects(predictions: Sequence[Any], targets: Sequence[Any], *, with_masks: bool) -> _Rows:
    rows: _Rows = {"scores": _column(predictions, "scores", np.float32)}
    for prefix, images in (("", predictions), ("true_", targets)):
        rows[f"{prefix}offsets"] = _ends([len(image["labels"]) for image in images])
        rows[f"{prefix}boxes"] = _column(images, "boxes", np.float32)
        rows[f"{prefix}labels"] = _column(images, "labels", np.int64)
        if with_masks:
            runs = [_run_lengths(mask) for image in images for mask in image["masks"]]
            rows[f"{prefix}masks"] = np.frombuffer(b"".join(runs), np.uint8)
            rows[f"{prefix}mask_offsets"] = _ends([len(counts) for counts in runs])
    # The truth of a loader of the caller's own need not say these.
    rows["true_crowd"] = _column(targets, "iscrowd", np.uint8, optional=True)
    rows["true_area"] = _column(targets, "area", np.float32, optional=True)
    return rows


def _column(images: Sequence[Any], name: str, dtype: Any, *, optional: bool = False) -> NDArray[Any]:
    """A column of the objects of all images; zeros for an image that lacks it, if it is optional."""
    parts = []
    for image in images:
        values = image.get(name) if optional else image[name]
        if values is None:
            parts.append(np.zeros(len(image["labels"]), dtype))
        else:
            parts.append(values.detach().cpu().numpy().astype(dtype))
    return np.concatenate(parts)


def _ends(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Offsets of parts of some lengths, from 0 on."""
    return np.cumsum([0, *lengths]).astype(np.int64)


def _run_lengths(mask: Any) -> bytes:
    """COCO's run lengths of a mask: as tasks and data modules give it, or pixels from a loader of the caller's own."""
    if isinstance(mask, Tensor):
        return RunLengths.of_mask(mask.cpu().numpy().astype(np.uint8)).as_pair()[1]
    _, counts = mask
    return counts.encode("ascii") if isinstance(counts, str) else counts


def _pixels(predictions: Sequence[Tensor], targets: Sequence[Tensor], classes: int) -> _Rows:
    confusion = np.zeros((classes, classes), np.int64)
    images: list[_Rows] = []
    for predicted, true in zip(predictions, targets, strict=True):
        found, truth = predicted.cpu().numpy().astype(np.uint8), true.cpu().numpy()
        known = (truth >= 0) & (truth < classes)
        pairs = truth[known].astype(np.int64) * classes + found[known]
        counts = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
        confusion += counts
        both = counts.diagonal()
        either = counts.sum(0) + counts.sum(1) - both
        truth = np.where(known, truth, _UNKNOWN).astype(np.uint8)
        runs = {"predicted": LabelRuns.of(found), "true": LabelRuns.of(truth)}
        size = np.array([[runs["true"].height, runs["true"].width]], np.int64)
        image: _Rows = {"intersections": both[None], "unions": either[None], "map_sizes": size}
        for name, of_map in runs.items():
            image[f"{name}_values"], image[f"{name}_lengths"] = of_map.values, of_map.lengths
            image[f"{name}_offsets"] = _ends([len(of_map.values)])
        images.append(image)
    return {"confusion": confusion} | {name: joined(name, [image[name] for image in images]) for name in images[0]}


def join_folds(parts: Sequence[Evidence]) -> Evidence:
    """Join the evidence of the validation samples of each fold into one table, the first fold in front.

    Its array ``folds`` (N,) has the fold of each sample, counted from 1. Features are those of as many networks as
    there are folds: they can be compared within a fold, and not across folds.

    Args:
        parts: The evidence of each fold, in the order of the folds.

    Raises:
        ModelError: If they are of different kinds or classes, or a sample is in two of them.
    """
    first = parts[0]
    ids = tuple(id for part in parts for id in part.ids)
    alike = {(part.kind, part.multi_label, part.threshold, part.class_names) for part in parts}
    if len(alike) > 1 or len({*ids}) < len(ids):
        raise ModelError(
            "The folds of a run must be of the same task and classes, and have each image once. They are not: train "
            "again in a new folder."
        )
    names = sorted(set.intersection(*({*part.arrays} for part in parts)))
    arrays = {name: joined(name, [part.arrays[name] for part in parts]) for name in names}
    arrays["folds"] = np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts]).astype(np.int64)
    return replace(first, split=FOLDS, ids=ids, arrays=arrays)
