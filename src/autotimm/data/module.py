"""The base of every data module: what is done once, whatever the task and the format.

What a data module was called with, for a run's ``config.yaml``.
"""

from __future__ import annotations

import inspect
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch

from autotimm.data.data_facts import Facts
from autotimm.data.file_facts import Problem
from autotimm.data.formats.image_paths import read_paths
from autotimm.data.formats.recognize import Recognized
from autotimm.data.loader import KeyedLoader, collate_samples, default_workers, transformed_loader
from autotimm.data.split import check_shares
from autotimm.data.table import Table
from autotimm.data.table_checks import balanced_weights, check_classes, readable, split_off
from autotimm.data.transforms.image_transforms import ImageTransform, SampleTransform, eval_transform, train_transform
from autotimm.errors import DataError, is_whole, number, refuse_unknown, require, require_flags
from autotimm.repro.sampler import KeyedBatchSampler
from autotimm.repro.seed import root_seed
from autotimm.serialization import constructor_arguments

__all__ = ["Called", "DataModule", "default_workers"]


_Made = TypeVar("_Made", bound="Called")


class Called:
    """Notes what the class that is made was called with: a constructor sees only what subclasses passed on to it.

    Lightning's ``save_hyperparameters`` would collect the arguments of every constructor on the way, also those that a
    subclass fixes and its caller cannot give; and it would put paths into checkpoints.
    """

    _call: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls: type[_Made], *args: Any, **kwargs: Any) -> _Made:
        """Make an object that remembers its call; a copy of one has the original's."""
        made = super().__new__(cls)
        made._call = (args, kwargs)
        return made

    def _called_with(self, base: Callable[..., None]) -> dict[str, Any]:
        """The arguments of the call by name, with the defaults of those that are passed on as ``**options`` to a base.

        Args:
            base: The constructor whose options a subclass passes on.
        """
        args, kwargs = self.__dict__.pop("_call")
        given = constructor_arguments(type(self), args, kwargs)
        kinds = [one.kind for one in inspect.signature(type(self)).parameters.values()]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return given
        shared = inspect.signature(base).parameters.values()
        return {one.name: one.default for one in shared if one.default is not inspect.Parameter.empty} | given


class DataModule(Called, pl.LightningDataModule, Facts, ABC):
    """Data for training, validation, test and prediction, so that who loads it does not matter.

    A subclass says :meth:`read`. Done once for all: unreadable images are found before training and left out;
    validation and test samples are split off by id where there are none; transforms of training touch the training side
    only; every random number is keyed (see :class:`autotimm.data.loader.KeyedDataset`).

    Args:
        image_size: Side in pixels of the square that the network sees.
        batch_size: Training samples per step and process.
        eval_batch_size: Samples per batch in validation, test and prediction; does not change training.
        num_workers: Processes that load. ``None``: from the number of CPUs. Never changes a result.
        seed: Root seed of the split, and of order and augmentation unless a trainer gives its own (``run_seed``).
            ``None`` draws one from Python's ``random``.
        val_split: Share of the training samples of each class that validates, if there is no validation data.
        test_split: The same for test.
        train_transforms: A callable from a ``uint8`` ``tv_tensors.Image`` (3, H, W) to a tensor of a fixed size, in
            place of the augmentation. No normalization: the network does that.
        eval_transforms: The same for validation, test and prediction.
        augmentation: See :func:`autotimm.data.transforms.train_transform`.
        balanced_sampling: Draw every class equally often, with replacement.
        strict: Refuse data with unreadable images instead of leaving them out.
        drop_last: Leave out a last training batch that is not full.
        persistent_workers: Keep the loading processes from one epoch to the next.
        pin_memory: Copy batches to page-locked memory. ``None``: if training runs on a GPU.
        crop_pct: Share of the resized image that evaluation's central crop keeps.
        interpolation: How images are resized: ``nearest``, ``nearest-exact``, ``bilinear`` or ``bicubic``.

    Attributes:
        run_seed: Root seed of order and augmentation; a trainer sets it before training.
        notices: One line for each thing that was left out or looks strange.
        problems: The images that cannot be read.
        arguments: What the constructor was given, for a run's ``config.yaml``.

    Raises:
        UsageError: If an argument is out of range.
    """

    # With several processes a small validation set may leave one of them without a batch.
    allow_zero_length_dataloader_with_multiple_devices = True

    recognized: Recognized | None = None
    """What the data were recognized as, with the listing to read them from; ``None`` once they are read."""

    def __init__(
        self,
        *,
        image_size: int = 224,
        batch_size: int = 32,
        eval_batch_size: int = 16,
        num_workers: int | None = None,
        seed: int | None = 42,
        val_split: float = 0.1,
        test_split: float = 0.0,
        train_transforms: Callable[..., Any] | None = None,
        eval_transforms: Callable[..., Any] | None = None,
        augmentation: str = "default",
        balanced_sampling: bool = False,
        strict: bool = False,
        drop_last: bool = False,
        persistent_workers: bool = True,
        pin_memory: bool | None = None,
        crop_pct: float = 0.875,
        interpolation: str = "bilinear",
        **unknown: Any,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        own = {*inspect.signature(type(self)).parameters, *inspect.signature(DataModule.__init__).parameters}
        refuse_unknown(unknown, owner, own - {"self", "common", "unknown"})
        sizes = {"image_size": image_size, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for name, value in sizes.items():
            require(is_whole(value, 1), name, owner, "a whole number, 1 or more", value, "Give for example 32.")
        require(
            num_workers is None or is_whole(num_workers, 0), "num_workers", owner, "a whole number, 0 or more, or None",
            num_workers, "Give 0 to load in the main process.",
        )  # fmt: skip
        require(
            0 < number(crop_pct) <= 1,
            "crop_pct",
            owner,
            "a number in (0, 1]",
            crop_pct,
            "Give 1 to keep the whole square.",
        )
        check_shares(val_split, test_split, owner)
        require_flags(owner, strict=strict, drop_last=drop_last, balanced_sampling=balanced_sampling)
        self.image_size, self.batch_size, self.eval_batch_size = image_size, batch_size, eval_batch_size
        self.num_workers, self.persistent_workers, self.pin_memory = num_workers, persistent_workers, pin_memory
        self.seed, self.val_split, self.test_split = seed, val_split, test_split
        self.augmentation, self.balanced_sampling = augmentation, balanced_sampling
        self.strict, self.drop_last, self.crop_pct, self.interpolation = strict, drop_last, crop_pct, interpolation
        self.data_seed = self.run_seed = root_seed(seed, owner)
        self.arguments = self._called_with(DataModule.__init__)
        self._train = self.sample_transform(train_transforms, "train_transforms")
        self._eval = self.sample_transform(eval_transforms, "eval_transforms")
        self.notices: list[str] = []
        self.problems: list[Problem] = []
        self._tables: dict[str, Table] = {}
        self._loaders: weakref.WeakSet[KeyedLoader] = weakref.WeakSet()

    # What a subclass says

    @abstractmethod
    def read(self, split: str) -> Table | None:
        """Return the samples of ``train``, ``val`` or ``test``; ``None`` where there is no such data.

        ``train`` is asked for first. Lines for people go to :attr:`notices`.

        Raises:
            DataError: If the data cannot be used.
        """

    def sample_transform(self, given: Callable[..., Any] | None, name: str) -> SampleTransform:
        """What samples go through in training (``train_transforms``) or else (``eval_transforms``).

        By default the caller's transform or the built-in one, of the image alone. Data whose targets move with the
        pixels replace this. It is called by the constructor, before that of a subclass has gone on.

        Args:
            given: The caller's transform, or ``None``.
            name: Which of the two.

        Raises:
            UsageError: If the transform, or the name of an augmentation, cannot be used.
        """
        if given is None and name == "train_transforms":
            given = train_transform(self.augmentation, self.image_size, self.interpolation, self.crop_pct)
        elif given is None:
            given = eval_transform(self.image_size, self.crop_pct, self.interpolation)
        return ImageTransform(given, name, type(self).__name__)

    def collate(self, samples: Sequence[Any], transforms: str = "transforms") -> Any:
        """Make a batch of samples; ``transforms`` is what to call them in an error."""
        return collate_samples(samples, transforms)

    def setup(self, stage: str | None = None) -> None:
        """Read, check and split the data; the second time nothing happens.

        Args:
            stage: Ignored: every stage needs the same.

        Raises:
            DataError: If the data cannot be used.
        """
        if self._tables:
            return
        self.notices.clear()
        tables = {split: table for split in ("train", "val", "test") if (table := self.read(split)) is not None}
        require("train" in tables, "read", type(self).__name__, "a table for train", None, "Return one.")
        tables, self.problems = readable(tables, self.notices, self.strict)
        check_classes(tables["train"], self.notices)
        self._tables = split_off(tables, self.val_split, self.test_split, self.data_seed, self.notices)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, in this process or another, has neither the trainer nor the loading processes of the original."""
        return {**vars(self), "trainer": None, "_loaders": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _loaders=weakref.WeakSet())

    @property
    def tables(self) -> dict[str, Table]:
        """The samples of each split that there is; reads the data if that was not done."""
        self.setup()
        return self._tables

    @property
    def source_name(self) -> str:
        """A short name for run folders: that of the folder, the table or the data set that the samples come from."""
        for key in ("data_dir", "train_csv", "dataset_name"):
            if source := self.arguments.get(key):
                path = Path(source).resolve()
                return path.name if path.is_dir() else path.stem
        return "run"

    @property
    def transforms(self) -> dict[str, SampleTransform]:
        """What happens to the samples of training (``train``) and of everything else (``eval``)."""
        return {"train": self._train, "eval": self._eval}

    # Loaders

    def _loader(self, table: Table, batches: KeyedBatchSampler, transform: SampleTransform, stream: str) -> KeyedLoader:
        processes = self.trainer.num_devices if self.trainer is not None else 1
        loader = transformed_loader(
            table,
            batches,
            transform,
            stream=stream,
            collate=self.collate,
            num_workers=default_workers(processes) if self.num_workers is None else self.num_workers,
            persistent_workers=self.persistent_workers,
            pin_memory=self._pins(),
        )
        self._loaders.add(loader)
        return loader

    def _pins(self) -> bool:
        if self.pin_memory is not None:
            return self.pin_memory
        if self.trainer is not None:
            return bool(self.trainer.strategy.root_device.type == "cuda")
        return torch.cuda.is_available()

    @property
    def _share(self) -> tuple[int, int]:
        """Which of how many processes this is."""
        return (0, 1) if self.trainer is None else (int(self.trainer.global_rank), int(self.trainer.world_size))

    def train_dataloader(self) -> KeyedLoader:
        """Training batches: shuffled or balanced, augmented."""
        table = self.tables["train"]
        # Overfitting on purpose means the same few batches in each epoch.
        fixed = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]  # set at run time
        batches = KeyedBatchSampler(
            len(table),
            self.batch_size,
            self.run_seed,
            shuffle=not fixed,
            weights=balanced_weights(table) if self.balanced_sampling and not fixed else None,
            drop_last=self.drop_last,
            rank=self._share[0],
            world_size=self._share[1],
        )
        return self._loader(table, batches, self._train, "augment")

    def eval_loader(self, table: Table) -> KeyedLoader:
        """Batches of a table as validation, test and prediction see it: in its order, each sample exactly once."""
        batches = KeyedBatchSampler(
            len(table),
            self.eval_batch_size,
            self.run_seed,
            shuffle=False,
            rank=self._share[0],
            world_size=self._share[1],
        )
        return self._loader(table, batches, self._eval, "eval")

    def val_dataloader(self) -> KeyedLoader | list[Any]:
        """Validation batches; an empty list if there is no validation data."""
        return self.eval_loader(self.tables["val"]) if "val" in self.tables else []

    def test_dataloader(self) -> KeyedLoader:
        """Test batches.

        Raises:
            DataError: If there is no test data; validation data never stands in for it.
        """
        if "test" not in self.tables:
            raise DataError(
                "There is no test data. Add a test/ folder or a `test_csv`, or split some off with test_split=0.1."
            )
        return self.eval_loader(self.tables["test"])

    def predict_table(self, paths: str | Path | Sequence[str | Path]) -> Table:
        """List images to predict: a file, a folder (searched to any depth), or several.

        Raises:
            DataError: If there is nothing to predict, or the only image cannot be read.
        """
        return read_paths(paths, self.notices, self.strict)

    def predict_loader(self, paths: str | Path | Sequence[str | Path]) -> KeyedLoader:
        """Batches of images to predict; targets are ``None``. Needs no training data."""
        return self.eval_loader(self.predict_table(paths))

    def teardown(self, stage: str | None = None) -> None:
        """End the loading processes; the data stays read."""
        for loader in list(self._loaders):
            loader.close()
