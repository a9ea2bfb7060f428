"""Images with classes, from folders, CSV files or torchvision's data sets."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import Unpack

from autotimm.constants import DECODINGS
from autotimm.data.formats import Listing, read_builtin, read_csv
from autotimm.data.formats.recognize import read_classes
from autotimm.data.module import DataModule, DataOptions
from autotimm.data.table import Table
from autotimm.data.transforms.image_transforms import pixels_needed
from autotimm.errors import is_whole, require, require_choice

__all__ = ["ImageDataModule"]


class ImageDataModule(DataModule):
    """Images for classification, with one label each or several.

    The data come from one of

    - a folder of class folders, or one with ``train/``, ``val/`` (``valid/``, ``validation/``) and ``test/`` above
      them: ``ImageDataModule("photos/")``. A folder whose only entry is a folder stands for that one. Where it holds
      a ``metadata.jsonl`` with labels, as Hugging Face's image folders, that is read instead.
    - CSV files with a header: ``ImageDataModule(train_csv="train.csv", image_dir="photos/")``. Several label columns of
      zeros and ones, or several labels in a cell, make it multi-label; a column of split names is used.
      ``ImageDataModule("train.csv")`` is short for the first.
    - torchvision: ``ImageDataModule("data/", dataset_name="CIFAR10", download=True)``.

    Args:
        data_dir: The folder, or a CSV file. With CSV files: the folder that relative paths start from, and the default
            of ``image_dir``. With ``dataset_name``: where torchvision stores it (default ``data``).
        train_csv: CSV file of the training images.
        val_csv: CSV file of the validation images. Default: split off, see ``val_split``.
        test_csv: CSV file of the test images.
        image_dir: Folder of the files named in CSV files; names that leave it are refused. Default: ``data_dir``, or
            the folder of each CSV file.
        image_column: Column of the file names. Default: the first with a usual name, such as ``image`` or ``filename``.
        label_column: Column of the class; several columns of zeros and ones for multi-label. Default: the first with a
            usual name, such as ``label`` or ``class``.
        label_separator: What separates several labels in a cell of that column, such as ``|``, which makes it
            multi-label. Default: a cell is one label.
        class_levels: Levels of folders that make a class: 1 takes ``flower/`` with all below as one class, 2 makes
            ``flower/daisy`` and ``flower/rose`` classes. Default: 1, and an error where that is doubtful.
        dataset_name: A data set of torchvision, such as ``CIFAR10``.
        decode: ``reduced`` decodes large JPEGs at the smallest scale of 1, 1/2, 1/4 and 1/8 at which even the smallest
            crop has the pixels that the network sees: several times faster, with other pixels. It has no effect beside
            transforms of your own. ``full`` decodes all of each image.
        download: Download the data set if it is missing. Nothing is downloaded otherwise.
        common: The options of :class:`DataModule`, such as ``image_size``, ``batch_size`` and ``seed``.

    Raises:
        UsageError: If arguments contradict each other.

    Example:
        >>> import tempfile
        >>> from autotimm.data.toy import write_toy_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = ImageDataModule(write_toy_folder(folder, n=40), image_size=32, num_workers=0)
        ...     batch = next(iter(data.train_dataloader()))
        >>> data.num_classes, batch.images.shape, batch.images.dtype
        (4, torch.Size([32, 3, 32, 32]), torch.uint8)
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        *,
        train_csv: str | Path | None = None,
        val_csv: str | Path | None = None,
        test_csv: str | Path | None = None,
        image_dir: str | Path | None = None,
        image_column: str | None = None,
        label_column: str | Sequence[str] | None = None,
        label_separator: str | None = None,
        class_levels: int | None = None,
        dataset_name: str | None = None,
        download: bool = False,
        decode: str = "full",
        **common: Unpack[DataOptions],
    ) -> None:
        super().__init__(**common)
        owner = type(self).__name__
        _refuse_overridden(common, owner)
        if data_dir is not None and Path(data_dir).suffix.lower() in (".csv", ".tsv"):
            require(
                train_csv is None, "train_csv", owner, "left out where `data_dir` is a table", train_csv, "Give one."
            )
            data_dir, train_csv = None, data_dir
        csv = {"train": train_csv, "val": val_csv, "test": test_csv}
        self.csv_files = {split: Path(file).expanduser() for split, file in csv.items() if file is not None}
        of_tables = image_dir or image_column or label_column or label_separator
        _check_sources(
            owner, data_dir, self.csv_files, dataset_name, download, of_tables, label_separator, class_levels
        )
        require_choice("decode", owner, decode, DECODINGS)
        self.decode = decode
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        self.image_dir = self.data_dir if image_dir is None else Path(image_dir).expanduser()
        self.image_column, self.label_column = image_column, label_column
        self.label_separator, self.class_levels = label_separator, class_levels
        self.dataset_name, self.download = dataset_name, download
        self._splits: Mapping[str, Table] = {}

    def pixels_needed(self, name: str) -> tuple[int, int] | None:
        """Return height and width that images must keep, if they may be decoded at a reduced scale."""
        if self.decode == "full" or self._given_transforms[name] is not None or self.in_chans != 3:
            return None
        augmentation = self.augmentation if name == "train_transforms" else "none"
        return pixels_needed(self.image_size, self.crop_pct, augmentation)

    def prepare_data(self) -> None:
        """Download torchvision's data set if ``download`` is set; Lightning calls this in one process only."""
        if self.dataset_name is not None and self.download:
            read_builtin(self.dataset_name, self.data_dir or "data", download=True)

    def setup(self, stage: str | None = None) -> None:
        """Read, check and split the data; does nothing when called again."""
        if not self._tables and self.trainer is None:
            self.prepare_data()
        super().setup(stage)

    def read(self, split: str) -> Table | None:
        """Return the samples of a split, or ``None``."""
        if split == "train":
            self._splits = self._read_all()
        return self._splits.get(split)

    def _read_all(self) -> Mapping[str, Table]:
        if self.dataset_name is not None:
            return read_builtin(self.dataset_name, self.data_dir or "data")
        if self.csv_files:
            files = {split: self._resolve(file) for split, file in self.csv_files.items()}
            return read_csv(
                files,
                self.notices,
                image_dir=self.image_dir,
                image_column=self.image_column,
                label_column=self.label_column,
                label_separator=self.label_separator,
                strict=self.strict,
                group=self.division.group,
            )
        recognized, self.recognized = self.recognized, None  # its listing takes memory, and is used once
        listing = Listing(self.data_dir or "") if recognized is None else recognized.listing
        return read_classes(listing, self.notices, strict=self.strict, class_levels=self.class_levels)

    def _resolve(self, file: Path) -> Path:
        """Look for a table in the data folder if it is not at its path."""
        if self.data_dir is None or os.path.exists(file):
            return file
        inside = self.data_dir / file
        return inside if os.path.exists(inside) else file  # as it was given, for the error


def _check_sources(
    owner: str, data_dir: object, csv_files: Mapping[str, Path], dataset_name: object, download: object,
    of_tables: object, label_separator: object, class_levels: object,
) -> None:  # fmt: skip
    """Refuse sources that contradict each other, and options that have no effect on the one that was given.

    Args:
        owner: Who is given them.
        data_dir: The folder.
        csv_files: The tables by split.
        dataset_name: The data set of torchvision.
        download: Whether it may be downloaded.
        of_tables: The first option that was given and is for tables alone.
        label_separator: What separates labels in a cell.
        class_levels: Levels of folders that make a class.
    """
    require(
        not csv_files or "train" in csv_files, "train_csv", owner, "given with `val_csv` or `test_csv`",
        csv_files.get("train"), "Name the table to train on.",
    )  # fmt: skip
    require(
        bool(csv_files) or of_tables is None, "train_csv", owner,
        "given with `image_dir`, `image_column`, `label_column` or `label_separator`", None,
        "Name the table to train on.",
    )  # fmt: skip
    require(
        not (csv_files and dataset_name), "dataset_name", owner, "left out where CSV files are given",
        dataset_name, "Choose one of the two.",
    )  # fmt: skip
    require(
        dataset_name is not None or not download, "download", owner, "given with `dataset_name`", download,
        "Name the data set, or leave it out.",
    )  # fmt: skip
    require(
        label_separator is None or _is_text(label_separator), "label_separator", owner, "a text", label_separator,
        "Give for example '|'.",
    )  # fmt: skip
    require(
        class_levels is None or is_whole(class_levels, 1), "class_levels", owner, "a whole number, 1 or more",
        class_levels, "Give 2 if flower/daisy is a class.",
    )  # fmt: skip
    require(
        class_levels is None or not (csv_files or dataset_name), "class_levels", owner,
        "left out where tables or `dataset_name` give the classes", class_levels, "Leave it out.",
    )  # fmt: skip
    require(
        bool(data_dir or csv_files or dataset_name), "data_dir", owner, "a folder of images", data_dir,
        "Give one, or `train_csv`, or `dataset_name`.",
    )  # fmt: skip


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _refuse_overridden(given: DataOptions, owner: str) -> None:
    """Refuse options that have no effect beside the caller's own transforms.

    A default cannot be told from the same value that was given.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(DataModule).parameters.items()}
    values = {name: given.get(name, defaults[name]) for name in ("augmentation", "crop_pct", "interpolation")}
    own_train, own_eval = (given.get(name) is not None for name in ("train_transforms", "eval_transforms"))
    # A training without augmentation uses the crop of evaluation.
    train_has_no_crop = own_train or values["augmentation"] != "none"
    overridden = {
        "augmentation": own_train,
        "crop_pct": own_eval and train_has_no_crop,
        "interpolation": own_eval and own_train,
    }
    for name, value in values.items():
        transforms = "train_transforms" if name == "augmentation" else "eval_transforms"
        must = f"left out, since it has no effect beside `{transforms}`"
        require(not overridden[name] or value == defaults[name], name, owner, must, value, "Put it into them.")
