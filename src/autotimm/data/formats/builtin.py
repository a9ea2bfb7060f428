"""The data sets that torchvision knows by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torchvision import datasets

from autotimm.data.read import to_rgb, to_tensor
from autotimm.data.table import Table
from autotimm.errors import DataError, nearest, require
from autotimm.types import Sample

__all__ = ["BUILTIN", "BuiltinTable", "read_builtin"]


class _Known(NamedTuple):
    """How a data set of torchvision says its splits, and where it keeps its labels."""

    labels: str
    splits: Mapping[str, Mapping[str, Any]]


_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
_BY_NAME = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_WHOLE: dict[str, dict[str, Any]] = {"train": {}}

_KNOWN = {
    "MNIST": _Known("targets", _BY_FLAG),
    "FashionMNIST": _Known("targets", _BY_FLAG),
    "KMNIST": _Known("targets", _BY_FLAG),
    "CIFAR10": _Known("targets", _BY_FLAG),
    "CIFAR100": _Known("targets", _BY_FLAG),
    "USPS": _Known("targets", _BY_FLAG),
    "SVHN": _Known("labels", _BY_NAME),
    "STL10": _Known("labels", _BY_NAME),
    "GTSRB": _Known("_samples", _BY_NAME),
    "Food101": _Known("_labels", _BY_NAME),
    "Flowers102": _Known("_labels", _THREE),
    "DTD": _Known("_labels", _THREE),
    "FGVCAircraft": _Known("_labels", _THREE),
    "OxfordIIITPet": _Known("_labels", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "Imagenette": _Known("_samples", {"train": {"split": "train"}, "test": {"split": "val"}}),
    "Country211": _Known("targets", {**_THREE, "val": {"split": "valid"}}),
    "EuroSAT": _Known("targets", _WHOLE),
    "Caltech101": _Known("y", _WHOLE),
    "Caltech256": _Known("y", _WHOLE),
    "SUN397": _Known("_labels", _WHOLE),
}

BUILTIN = tuple(_KNOWN)
"""Names that ``dataset_name`` knows; upper and lower case do not matter."""


class BuiltinTable(Table):
    """A data set of torchvision as a table.

    Args:
        dataset: The data set, without transforms.
        targets: The class index of each sample.
        class_names: Names of the classes.
        split: First part of the ids, which go on with the number of the sample.
    """

    draws_random = False

    def __init__(self, dataset: Any, targets: Sequence[int], class_names: Sequence[str], split: str) -> None:
        self.dataset, self.strata, self.class_names = dataset, list(targets), tuple(class_names)
        self.ids = tuple(f"{split}/{number:07d}" for number in range(len(dataset)))

    def load(self, index: int) -> Sample:
        """Read one image as RGB."""
        image, target = self.dataset[index]
        return Sample(to_tensor(to_rgb(image)), int(target), self.ids[index])


def _open(name: str, root: Path, download: bool, options: Mapping[str, Any]) -> Any:
    try:
        return getattr(datasets, name)(root, **options, **({"download": True} if download else {}))
    except (RuntimeError, OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        first = first.partition("You can use download=True")[0].rstrip(". ")  # ours says where to, too
        cure = "Check the connection." if download else f"Give download=True to fetch it into {root}."
        raise DataError(f"{name} is not in {root}: {first}. {cure}") from error


def _targets(dataset: Any, labels: str) -> list[int]:
    values = getattr(dataset, labels)
    # Some keep pairs of (file, class) instead of classes.
    return [int(value[1] if isinstance(value, (tuple, list)) else value) for value in values]


def _class_names(dataset: Any, targets: list[int]) -> list[str]:
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if not names or len(names) <= max(targets):
        return [str(number) for number in range(max(targets) + 1)]
    return [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]


def read_builtin(name: str, root: str | Path, download: bool = False) -> dict[str, BuiltinTable]:
    """Open a data set of torchvision with all of its splits.

    Args:
        name: One of :data:`BUILTIN`; upper and lower case do not matter.
        root: The folder where torchvision keeps it.
        download: Fetch it if it is not there.

    Returns:
        One table per split; images are RGB, also where the data set is gray.

    Raises:
        UsageError: If the name is unknown.
        DataError: If it is not there and ``download`` is false, or cannot be fetched.
    """
    by_lower = {known.lower(): known for known in _KNOWN}
    name = by_lower.get(name.lower(), name)
    cure = nearest(name, BUILTIN) or "Choose one of these."
    require(name in BUILTIN, "dataset_name", "ImageDataModule", f"one of {', '.join(BUILTIN)}", name, cure)
    tables: dict[str, BuiltinTable] = {}
    for split, options in _KNOWN[name].splits.items():
        dataset = _open(name, Path(root), download, options)
        targets = _targets(dataset, _KNOWN[name].labels)
        tables[split] = BuiltinTable(dataset, targets, _class_names(dataset, targets), split)
    return tables
