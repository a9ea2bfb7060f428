"""The file of evidence: predictions, targets, losses and features of the samples of one split.

A safetensors file, which cannot contain code. Its metadata has one entry, ``autotimm``, a JSON object with the kind of
targets, the names of the classes and the ids of the N samples, in the order of the rows. What the tensors are depends
on the kind; C is the number of classes, K that of all objects of all images::

    all        features            float32 (N, D)   pooled features of the backbone; left out if they are unknown
               folds               int64 (N,)       the fold that predicted each sample, from 1; only out of folds
    classes    scores              float32 (N, C)   probabilities
               targets             int64 (N,)       class indices; uint8 (N, C), zeros and ones, for several labels
               losses              float32 (N,)     cross-entropy, without weights of classes and smoothing
    boxes      sizes               int64 (N, 2)     height and width of the original images
    instances  offsets             int64 (N + 1,)   the objects of image i are offsets[i] to offsets[i + 1]
               boxes               float32 (K, 4)   x1, y1, x2, y2 in pixels of the original image
               scores, labels      float32, int64 (K,)
               masks, mask_offsets uint8 (B,), int64 (K + 1,)   COCO's compressed run lengths, for instances
               true_*              the same of the true objects, with crowd (uint8) and area in place of scores
    pixels     sizes               int64 (N, 2)     height and width of the original images
               confusion           int64 (C, C)     pixels by true and predicted class
               intersections, unions   int64 (N, C) pixels per image and class, of which IoU is the ratio
               map_sizes           int64 (N, 2)     height and width of the maps (:mod:`autotimm.evidence.label_runs`)
               predicted_values, predicted_lengths, predicted_offsets   the runs of all maps; true_* of the truth
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from autotimm.data.annotations.outlines import read_outline
from autotimm.errors import ModelError, RunError, UsageError
from autotimm.evidence.label_runs import LONGEST_SIDE, LabelRuns
from autotimm.records.atomic import atomic_path
from autotimm.records.digest import file_digest
from autotimm.records.readers import require_shape
from autotimm.records.run_folder import FOLDS
from autotimm.serialization import parse_json

__all__ = [
    "EVIDENCE",
    "KINDS",
    "Evidence",
    "evidence_bytes",
    "evidence_path",
    "read_evidence",
    "write_evidence",
]

EVIDENCE = "evidence"
"""The folder in a run, and the group of ``results.json`` with the digest of the evidence of a test."""

KINDS = ("classes", "boxes", "instances", "pixels")
"""The kinds of targets, as :class:`autotimm.types.DataSpec` names them."""

_KEY = "autotimm"
_VERSION = 1
_MOST_BYTES = 1 << 32  # of a file that is read; 50,000 images with 1,000 classes and 2,048 features take 0.6 GB

Array = NDArray[Any]
# Dimensions by letter: N samples, C classes; others are free, and equal letters are equal sizes.
_OBJECTS = {
    "sizes": ("I64", "N2"), "offsets": ("I64", "M"), "boxes": ("F32", "K4"), "scores": ("F32", "K"),
    "labels": ("I64", "K"), "true_offsets": ("I64", "M"), "true_boxes": ("F32", "T4"), "true_labels": ("I64", "T"),
    "true_crowd": ("U8", "T"), "true_area": ("F32", "T"),
}  # fmt: skip
_LAYOUT: dict[str, dict[str, tuple[str, str]]] = {
    "classes": {"scores": ("F32", "NC"), "targets": ("I64", "N"), "losses": ("F32", "N")},
    "labels": {"scores": ("F32", "NC"), "targets": ("U8", "NC"), "losses": ("F32", "N")},
    "boxes": _OBJECTS,
    "instances": _OBJECTS | {
        "masks": ("U8", "A"), "mask_offsets": ("I64", "B"), "true_masks": ("U8", "D"), "true_mask_offsets": ("I64", "E")
    },
    "pixels": {
        "sizes": ("I64", "N2"), "confusion": ("I64", "CC"), "intersections": ("I64", "NC"), "unions": ("I64", "NC"),
        "map_sizes": ("I64", "N2"), "predicted_values": ("U8", "P"), "predicted_lengths": ("I32", "P"),
        "predicted_offsets": ("I64", "M"), "true_values": ("U8", "T"), "true_lengths": ("I32", "T"),
        "true_offsets": ("I64", "M"),
    },
}  # fmt: skip
_SHAPE = {
    "version": int, "split": str, "kind": str, "multi_label": bool, "threshold": (float, type(None)),
    "class_names": [str], "ids": [str],
}  # fmt: skip


def evidence_path(folder: Path, split: str) -> Path:
    """Where a run keeps the evidence of a split."""
    return folder / EVIDENCE / f"{split}.safetensors"


@dataclass(frozen=True)
class Evidence:
    """Predictions, targets, losses and features of the samples of one split, as NumPy arrays.

    Attributes:
        split: ``val`` or ``test``; ``folds`` for training samples, each predicted by a network that has not seen
            it.
        kind: The kind of targets: ``classes``, ``boxes``, ``instances`` or ``pixels``.
        multi_label: Whether an image may have several classes.
        threshold: The score from which the run predicts labels or objects; ``None`` where the likeliest class wins.
        class_names: The names of the C classes.
        ids: The ids of the N samples, in the order of the rows.
        arrays: The tensors of the file by name, see :mod:`autotimm.evidence.evidence_file`.
    """

    split: str
    kind: str
    multi_label: bool
    threshold: float | None
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    arrays: Mapping[str, Array] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    @property
    def features(self) -> Array | None:
        """Pooled features of the backbone, ``float32`` (N, D); ``None`` if they are unknown."""
        return self.arrays.get("features")

    @property
    def scores(self) -> Array:
        """Probabilities (N, C) of classes, or the scores (K,) of all objects.

        Raises:
            KeyError: For pixels, which have none.
        """
        return self.arrays["scores"]

    @property
    def targets(self) -> Array:
        """The true classes: indices (N,), or zeros and ones (N, C).

        Raises:
            KeyError: For objects and pixels; see :attr:`arrays`.
        """
        return self.arrays["targets"]

    @property
    def losses(self) -> Array:
        """The cross-entropy of each sample (N,).

        Raises:
            KeyError: For objects and pixels, which have no natural loss of one sample.
        """
        return self.arrays["losses"]

    def of_image(self, index: int, *, true: bool = False) -> slice:
        """The rows of the predicted or true objects of an image."""
        offsets = self.arrays["true_offsets" if true else "offsets"]
        return slice(int(offsets[index]), int(offsets[index + 1]))

    def mask(self, row: int, *, true: bool = False) -> bytes:
        """The run lengths of an object's mask, as COCO compresses them."""
        prefix = "true_" if true else ""
        offsets = self.arrays[f"{prefix}mask_offsets"]
        return self.arrays[f"{prefix}masks"][int(offsets[row]) : int(offsets[row + 1])].tobytes()

    def label_map(self, index: int, *, true: bool = False) -> NDArray[np.uint8]:
        """The reduced label map of an image, ``uint8`` (h, w); 255 where the truth is unknown."""
        prefix = "true" if true else "predicted"
        offsets = self.arrays[f"{prefix}_offsets"]
        runs = slice(int(offsets[index]), int(offsets[index + 1]))
        height, width = self.arrays["map_sizes"][index].tolist()
        return LabelRuns(
            height, width, self.arrays[f"{prefix}_values"][runs], self.arrays[f"{prefix}_lengths"][runs]
        ).labels()

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row per sample, its id as index.

        Columns are what has one value or one row per sample; rows of several values are split into ``scores.cat`` with
        the name of the class, or numbered.

        Raises:
            UsageError: If pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise UsageError("A DataFrame of evidence needs pandas. Install it, or read `arrays`.") from None
        columns: dict[str, Array] = {}
        for name, array in self.arrays.items():
            if array.shape[:1] != (len(self),) or name == "confusion":
                continue
            if array.ndim == 1:
                columns[name] = array
                continue
            of_classes = name != "features" and array.shape[1] == len(self.class_names)
            titles = self.class_names if of_classes else range(array.shape[1])
            columns |= {f"{name}.{title}": array[:, at] for at, title in enumerate(titles)}
        # Objects, since the text of pandas 3 takes no name of a file that is not UTF-8.
        frame = pandas.DataFrame(
            dict(enumerate(columns.values())), index=pandas.Index(self.ids, dtype=object, name="id")
        )
        frame.columns = pandas.Index([*columns], dtype=object)
        return frame


def evidence_bytes(evidence: Evidence) -> bytes:
    """The file of evidence; equal evidence has equal bytes."""
    about = {
        "version": _VERSION, "split": evidence.split, "kind": evidence.kind, "multi_label": evidence.multi_label,
        "threshold": evidence.threshold, "class_names": list(evidence.class_names), "ids": list(evidence.ids),
    }  # fmt: skip
    arrays = {name: np.ascontiguousarray(array) for name, array in evidence.arrays.items()}
    # One entry: safetensors writes several in random order, and equal runs must give equal bytes.
    return save(arrays, {_KEY: json.dumps(about, sort_keys=True)})


def write_evidence(folder: Path, evidence: Evidence) -> str:
    """Write evidence into the folder of a run, and return the SHA-256 of the file.

    Raises:
        RunError: If it cannot be written.
    """
    path = evidence_path(folder, evidence.split)
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(evidence_bytes(evidence))
        return file_digest(path)
    except OSError as error:
        raise RunError(
            f"The evidence {path} could not be written: {error.strerror}. The checkpoints are unharmed. Free some "
            "space, or train with `evidence` off."
        ) from error


def read_evidence(path: Path) -> Evidence:
    """Read evidence that anybody may have written: nothing in it is believed before it is checked.

    Raises:
        ModelError: If there is no such file, or it is no evidence.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES >> 30} GB")
        with safe_open(path, framework="numpy") as file:
            about = parse_json((file.metadata() or {}).get(_KEY, "null"))
            require_shape(about, _SHAPE, f"the evidence {path}")
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            _require_layout(about, {name: (each.get_dtype(), each.get_shape()) for name, each in slices.items()})
            arrays = {name: file.get_tensor(name) for name in slices}
        evidence = Evidence(
            about["split"], about["kind"], about["multi_label"], about["threshold"], tuple(about["class_names"]),
            tuple(about["ids"]), arrays,
        )  # fmt: skip
        _require_sense(evidence)
    except OSError as error:
        raise ModelError(f"The evidence {path} must be readable. It is not ({error.strerror}).") from None
    except (SafetensorError, ValueError) as error:
        raise ModelError(
            f"The evidence {path} must be a file that autotimm wrote. It is damaged: {error}. Use an intact copy of "
            "the run."
        ) from None
    return evidence


def _require_layout(about: Mapping[str, Any], shapes: Mapping[str, tuple[str, list[int]]]) -> None:
    """Compare names, types and shapes of the tensors with those of the kind, before any of them is read."""
    if about["version"] != _VERSION or about["kind"] not in KINDS:
        raise ValueError("it is of an unknown kind, or a later version of autotimm wrote it")
    layout = dict(_LAYOUT["labels" if about["kind"] == "classes" and about["multi_label"] else about["kind"]])
    if "features" in shapes:
        layout["features"] = ("F32", "NF")
    if about["split"] == FOLDS:
        layout["folds"] = ("I64", "N")
    if layout.keys() != shapes.keys():
        raise ValueError("it has not the tensors of its kind")
    samples = len(about["ids"])
    sizes = {"N": samples, "C": len(about["class_names"]), "M": samples + 1, "2": 2, "4": 4}
    for name, (dtype, dimensions) in layout.items():
        found, shape = shapes[name]
        if found != dtype or len(shape) != len(dimensions):
            raise ValueError(f"`{name}` is of another type")
        for letter, size in zip(dimensions, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"`{name}` has the shape {tuple(shape)}")


def _require_sense(evidence: Evidence) -> None:
    """Refuse indices that lead out of their arrays, and numbers that are none."""
    arrays, classes = evidence.arrays, len(evidence.class_names)
    floats = [array for name, array in arrays.items() if array.dtype.kind == "f" and name != "features"]
    if not all(np.isfinite(array).all() for array in floats):
        raise ValueError("it has numbers that are not finite")
    if evidence.kind == "classes":
        if not evidence.multi_label:
            _require(_within(arrays["targets"], 0, classes), "targets")
        return
    _require(len(evidence) == 0 or arrays["sizes"].min() >= 1, "sizes")
    if evidence.kind == "pixels":
        for prefix in ("predicted", "true"):
            _require_maps(arrays, prefix)
    else:
        for prefix in ("", "true_"):
            _require_objects(evidence, prefix)


def _require(fine: bool, name: str) -> None:
    if not fine:
        raise ValueError(f"`{name}` has impossible values")


def _within(values: Array, low: int, high: int) -> bool:
    return bool(((values >= low) & (values < high)).all())


def _is_cut(offsets: Array, total: int) -> bool:
    """Whether offsets begin at 0, never fall, and end at the end."""
    return bool(offsets[0] == 0 and offsets[-1] == total and (np.diff(offsets) >= 0).all())


def _require_objects(evidence: Evidence, prefix: str) -> None:
    arrays, rows = evidence.arrays, len(evidence[f"{prefix}boxes"])
    _require(_is_cut(arrays[f"{prefix}offsets"], rows), f"{prefix}offsets")
    _require(_within(arrays[f"{prefix}labels"], 0, len(evidence.class_names)), f"{prefix}labels")
    if evidence.kind == "instances":
        ends = arrays[f"{prefix}mask_offsets"]
        _require(len(ends) == rows + 1 and _is_cut(ends, len(arrays[f"{prefix}masks"])), f"{prefix}mask_offsets")
        _require_masks(evidence, true=bool(prefix))


def _require_masks(evidence: Evidence, *, true: bool) -> None:
    """Refuse run lengths that do not fill their image: pycocotools would write beyond it."""
    for index in range(len(evidence)):
        size = evidence["sizes"][index].tolist()
        rows = evidence.of_image(index, true=true)
        for row in range(rows.start, rows.stop):
            read_outline({"size": size, "counts": evidence.mask(row, true=true).decode("ascii")})


def _require_maps(arrays: Mapping[str, Array], prefix: str) -> None:
    """Refuse runs that do not fill their maps."""
    offsets, lengths, sizes = (arrays[name] for name in (f"{prefix}_offsets", f"{prefix}_lengths", "map_sizes"))
    _require(_is_cut(offsets, len(lengths)), f"{prefix}_offsets")
    _require(len(sizes) == 0 or _within(sizes, 1, LONGEST_SIDE + 1), "map_sizes")
    ends = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))])
    filled = np.diff(ends[offsets])  # pixels of each map
    _require(bool((lengths > 0).all() and (filled == sizes.prod(axis=1)).all()), f"{prefix}_lengths")
