"""Data sets of torchvision, by name.

They are not a :class:`~autotimm.data.formats.data_format.Format`: they are read by name, not recognized in a folder.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from torchvision import datasets

from autotimm.data.image_channels import to_channels
from autotimm.data.image_io import BROKEN, reason, to_rgb, to_tensor
from autotimm.data.image_reading import current_reading
from autotimm.data.table import Table
from autotimm.errors import DataError, nearest, require
from autotimm.records.imports import admission
from autotimm.types import Sample

__all__ = ["BUILTIN", "BuiltinTable", "read_builtin"]


class _Known(NamedTuple):
    """How to open a data set of torchvision, and what to read from it.

    Attributes:
        labels: The attribute with the labels.
        splits: The arguments of the constructor for each split.
        files: Gives the image files; none if torchvision keeps all images in one file.
    """

    labels: str
    splits: Mapping[str, Mapping[str, Any]]
    files: Callable[[Any], Sequence[Any]] = lambda dataset: ()


def _caltech101(dataset: Any) -> list[Path]:
    folder, places = Path(dataset.root, "101_ObjectCategories"), zip(dataset.y, dataset.index, strict=True)
    return [folder / dataset.categories[label] / f"image_{number:04d}.jpg" for label, number in places]


def _caltech256(dataset: Any) -> list[Path]:
    folder, places = Path(dataset.root, "256_ObjectCategories"), zip(dataset.y, dataset.index, strict=True)
    return [folder / dataset.categories[label] / f"{label + 1:03d}_{number:04d}.jpg" for label, number in places]


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
    "GTSRB": _Known("_samples", _BY_NAME, attrgetter("_samples")),
    "Food101": _Known("_labels", _BY_NAME, attrgetter("_image_files")),
    "Flowers102": _Known("_labels", _THREE, attrgetter("_image_files")),
    "DTD": _Known("_labels", _THREE, attrgetter("_image_files")),
    "FGVCAircraft": _Known("_labels", _THREE, attrgetter("_image_files")),
    "OxfordIIITPet": _Known(
        "_labels", {"train": {"split": "trainval"}, "test": {"split": "test"}}, attrgetter("_images")
    ),
    "Imagenette": _Known("_samples", {"train": {"split": "train"}, "test": {"split": "val"}}, attrgetter("_samples")),
    "Country211": _Known("targets", {**_THREE, "val": {"split": "valid"}}, attrgetter("samples")),
    "EuroSAT": _Known("targets", _WHOLE, attrgetter("samples")),
    "Caltech101": _Known("y", _WHOLE, _caltech101),
    "Caltech256": _Known("y", _WHOLE, _caltech256),
    "SUN397": _Known("_labels", _WHOLE, attrgetter("_image_files")),
}

BUILTIN = tuple(_KNOWN)
"""The names that ``dataset_name`` accepts, in any case."""


class BuiltinTable(Table):
    """A data set of torchvision as a table.

    Args:
        dataset: The data set, without transforms.
        targets: The class index of each sample.
        class_names: Names of the classes.
        split: First part of the ids; the second is the number of the sample.
        files: The image file of each sample; empty if torchvision keeps all images in one file.
    """

    draws_random = False

    def __init__(
        self, dataset: Any, targets: Sequence[int], class_names: Sequence[str], split: str,
        files: Sequence[str | Path] = (),
    ) -> None:  # fmt: skip
        self.dataset, self.strata, self.class_names = dataset, list(targets), tuple(class_names)
        self.ids = tuple(f"{split}/{number:07d}" for number in range(len(dataset)))
        self._files = tuple(map(Path, files))
        self.reading = current_reading()

    def files(self) -> tuple[Path, ...]:
        """The image files, if there is one per sample."""
        return self._files

    def load(self, index: int) -> Sample:
        """Read one image as RGB, or with the channels that the data have."""
        try:
            image, target = self.dataset[index]
            rgb = self.reading.is_rgb
            pixels = to_tensor(to_rgb(image)) if rgb else to_channels(image, self.reading.channels)
            return Sample(pixels, int(target), self.ids[index])
        except BROKEN as error:
            what = self._files[index] if self._files else f"{type(self.dataset).__name__} {self.ids[index]}"
            raise DataError(
                f"{what} cannot be read as an image: {reason(what, error)}. Replace it or fetch the data set again."
            ) from error


def _open(name: str, root: Path, download: bool, options: Mapping[str, Any]) -> Any:
    try:
        return getattr(datasets, name)(root, **options, **({"download": True} if download else {}))
    except (*BROKEN, AssertionError, pickle.UnpicklingError) as error:  # torchvision unpickles files without a check
        first = (str(error).splitlines() or ["its files are damaged"])[0]
        first = first.partition("You can use download=True")[0].rstrip(". ")  # our sentence also says where to
        cure = "Check the connection." if download else f"Give download=True to fetch it into {root}."
        raise DataError(f"{name} is not in {root}: {first}. {cure}") from error


def _targets(dataset: Any, labels: str) -> list[int]:
    values = getattr(dataset, labels)
    # Some keep pairs of (file, class) instead of classes.
    return [int(value[1] if isinstance(value, (tuple, list)) else value) for value in values]


def _paths(files: Sequence[Any]) -> list[str | Path]:
    return [file[0] if isinstance(file, (tuple, list)) else file for file in files]


def _class_names(dataset: Any, targets: list[int]) -> list[str]:
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if not names or len(names) <= max(targets):
        return [str(number) for number in range(max(targets) + 1)]
    return [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]


def read_builtin(name: str, root: str | Path, download: bool = False) -> dict[str, BuiltinTable]:
    """Open a data set of torchvision with all of its splits.

    Args:
        name: One of :data:`BUILTIN`, in any case.
        root: The folder where torchvision keeps it.
        download: Fetch it if it is not there; not for a record of a run.

    Returns:
        One table per split; images are RGB, also where the data set is gray.

    Raises:
        UsageError: If the name is unknown.
        DataError: If it is not there and ``download`` is false, or cannot be fetched.
    """
    if admission() is not None:
        download = False  # a record must not fill the disk, nor ask a server: its maker may be a stranger
    by_lower = {known.lower(): known for known in _KNOWN}
    name = by_lower.get(name.lower(), name)
    cure = nearest(name, BUILTIN) or "Choose one of these."
    require(name in BUILTIN, "dataset_name", "ImageDataModule", f"one of {', '.join(BUILTIN)}", name, cure)
    tables: dict[str, BuiltinTable] = {}
    for split, options in _KNOWN[name].splits.items():
        dataset = _open(name, Path(root), download, options)
        targets, files = _targets(dataset, _KNOWN[name].labels), _paths(_KNOWN[name].files(dataset))
        tables[split] = BuiltinTable(dataset, targets, _class_names(dataset, targets), split, files)
    return tables
