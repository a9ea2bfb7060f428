"""Images with classes, from folders, CSV files or torchvision's data sets."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotimm.data.formats import read_builtin, read_csv, read_folder
from autotimm.data.module import DataModule
from autotimm.data.table import Table
from autotimm.errors import require

__all__ = ["ImageDataModule"]


class ImageDataModule(DataModule):
    """Images for classification, with one label each or several.

    The data come from one of

    - a folder of class folders, or one with ``train/``, ``val/`` (``valid/``, ``validation/``) and ``test/`` above
      them: ``ImageDataModule("photos/")``. A folder that holds a single folder is gone through.
    - CSV files with a header: ``ImageDataModule(train_csv="train.csv", image_dir="photos/")``. Several label columns of
      zeros and ones make it multi-label. ``ImageDataModule("train.csv")`` is short for the first.
    - torchvision: ``ImageDataModule("data/", dataset_name="CIFAR10", download=True)``.

    Args:
        data_dir: The folder, or a CSV file. With CSV files: where relative paths are looked for, and the default of
            ``image_dir``. With ``dataset_name``: where torchvision keeps it (default ``data``).
        train_csv: CSV file of the training images.
        val_csv: CSV file of the validation images. Default: split off, see ``val_split``.
        test_csv: CSV file of the test images.
        image_dir: Folder that the files named in CSV files are in, and that they may not leave. Default: ``data_dir``,
            or the folder of each CSV file.
        image_column: Column of the file names. Default: the first with a usual name, such as ``image`` or ``filename``.
        label_column: Column of the class; several columns of zeros and ones for multi-label. Default: the first with a
            usual name, such as ``label`` or ``class``.
        dataset_name: A data set of torchvision, such as ``CIFAR10``.
        download: Fetch it if it is not there. Nothing is ever downloaded unless asked for.
        common: Every argument of :class:`DataModule`, such as ``image_size``, ``batch_size`` and ``seed``.

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
        dataset_name: str | None = None,
        download: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        owner = type(self).__name__
        _refuse_shadowed(common, owner)
        if data_dir is not None and Path(data_dir).suffix.lower() in (".csv", ".tsv"):
            require(
                train_csv is None, "train_csv", owner, "left out where `data_dir` is a table", train_csv, "Give one."
            )
            data_dir, train_csv = None, data_dir
        csv = {"train": train_csv, "val": val_csv, "test": test_csv}
        self.csv_files = {split: Path(file).expanduser() for split, file in csv.items() if file is not None}
        require(
            not self.csv_files or "train" in self.csv_files, "train_csv", owner, "given with `val_csv` or `test_csv`",
            train_csv, "Name the table to train on.",
        )  # fmt: skip
        require(
            bool(self.csv_files) or (image_dir or image_column or label_column) is None, "train_csv", owner,
            "given with `image_dir`, `image_column` or `label_column`", None, "Name the table to train on.",
        )  # fmt: skip
        require(
            not (self.csv_files and dataset_name), "dataset_name", owner, "left out where CSV files are given",
            dataset_name, "Choose one of the two.",
        )  # fmt: skip
        require(
            dataset_name is not None or not download, "download", owner, "given with `dataset_name`", download,
            "Name the data set, or leave it out.",
        )  # fmt: skip
        require(
            bool(data_dir or self.csv_files or dataset_name), "data_dir", owner, "a folder of images", data_dir,
            "Give one, or `train_csv`, or `dataset_name`.",
        )  # fmt: skip
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        self.image_dir = self.data_dir if image_dir is None else Path(image_dir).expanduser()
        self.image_column, self.label_column = image_column, label_column
        self.dataset_name, self.download = dataset_name, download
        self._found: Mapping[str, Table] = {}

    def prepare_data(self) -> None:
        """Download torchvision's data set if that was asked for; Lightning calls this in one process only."""
        if self.dataset_name is not None and self.download:
            read_builtin(self.dataset_name, self.data_dir or "data", download=True)

    def setup(self, stage: str | None = None) -> None:
        """Read, check and split the data; the second time nothing happens."""
        if not self._tables and self.trainer is None:
            self.prepare_data()
        super().setup(stage)

    def read(self, split: str) -> Table | None:
        """Return the samples of a split, or ``None``."""
        if split == "train":
            self._found = self._read_all()
        return self._found.get(split)

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
            )
        recognized, self.recognized = self.recognized, None
        return read_folder((self.data_dir or "") if recognized is None else recognized.listing, self.notices)

    def _resolve(self, file: Path) -> Path:
        """A table that is not where the path says may be in the data folder."""
        inside = None if self.data_dir is None else self.data_dir / file
        return inside if inside is not None and not file.exists() and inside.exists() else file


def _refuse_shadowed(given: Mapping[str, Any], owner: str) -> None:
    """Refuse what transforms of the caller's own leave without effect; a default cannot be told from the same value."""
    usual = {name: one.default for name, one in inspect.signature(DataModule.__init__).parameters.items()}
    found = {name: given.get(name, usual[name]) for name in ("augmentation", "crop_pct", "interpolation")}
    train, evaluation = (given.get(name) is not None for name in ("train_transforms", "eval_transforms"))
    # The crop of evaluation is also that of a training without augmentation.
    useless = {
        "augmentation": train,
        "crop_pct": evaluation and (train or found["augmentation"] != "none"),
        "interpolation": evaluation and train,
    }
    for name, value in found.items():
        transforms = "train_transforms" if name == "augmentation" else "eval_transforms"
        must = f"left out with transforms of your own, which `{transforms}` are"
        require(not useless[name] or value == usual[name], name, owner, must, value, "Put it into them.")
