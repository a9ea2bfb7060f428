"""The base of every data module: what is done once, whatever the task and the format."""

from __future__ import annotations

import inspect
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pytorch_lightning as pl
import torch
from typing_extensions import Never

from autotimm.config.byte_size import BYTES_MUST, read_bytes
from autotimm.constants import CACHES, CHECKS
from autotimm.data.data_facts import Facts
from autotimm.data.dropped import chosen_ids, dropped_notices, is_readable, refuse_readable, without
from autotimm.data.file_facts import Problem
from autotimm.data.folds import Division, check_division
from autotimm.data.formats.image_paths import read_paths
from autotimm.data.formats.recognize import Recognized
from autotimm.data.image_reading import ImageReading, reading_as
from autotimm.data.keyed_split import check_shares
from autotimm.data.learnable import check_classes
from autotimm.data.loader import (
    KeyedLoader,
    collate_samples,
    default_workers,
    transformed_loader,
    workers_for_whole_images,
)
from autotimm.data.pixel_cache import PixelCache, open_cache
from autotimm.data.splits import split_off
from autotimm.data.table import Subset, Table, balanced_weights
from autotimm.data.transforms.image_transforms import (
    ImageTransform,
    SampleTransform,
    eval_transform,
    train_transform,
    without_colors,
)  # fmt: skip
from autotimm.data.unreadable_images import leave_out_unreadable
from autotimm.errors import (
    DataError,
    UsageError,
    is_whole,
    number,
    refuse_unknown,
    require,
    require_choice,
    require_flags,
    sentence,
)  # fmt: skip
from autotimm.image_size import ImageSize
from autotimm.repro.sampler import KeyedBatchSampler
from autotimm.repro.seed import most_on_cpu, root_seed
from autotimm.serialization import CapturesArguments
from autotimm.types import check_image_size

__all__ = ["CommonDataOptions", "DataModule", "DataOptions", "default_workers"]


class CommonDataOptions(TypedDict, total=False):
    """The options of :class:`DataModule` whose defaults are the same for images with classes, objects and regions."""

    num_workers: int | None
    seed: int | None
    val_split: float
    test_split: float
    group: str | None
    folds: int | None
    fold: int | None
    eval_transforms: Callable[..., Any] | None
    balanced_sampling: bool
    strict: bool
    drop_last: bool
    persistent_workers: bool
    pin_memory: bool | None
    crop_pct: float
    interpolation: str
    in_chans: int
    ignore_exif: bool
    cache: str
    cache_size: int | str
    check: str


class DataOptions(CommonDataOptions, total=False):
    """The options that all data modules share, for ``**options: Unpack[DataOptions]``.

    :class:`DataModule` says what they do and states their defaults; a test compares the two.
    """

    image_size: ImageSize
    batch_size: int
    eval_batch_size: int
    train_transforms: Callable[..., Any] | None
    augmentation: str


class DataModule(CapturesArguments, pl.LightningDataModule, Facts, ABC):
    """Data for training, validation, test and prediction; which process loads a sample does not matter.

    A subclass implements :meth:`read`. The rest is done here: unreadable images are found before training and left
    out; validation and test samples are split off by id where there are none; training transforms are applied to the
    training side only; every random number is keyed (see :class:`autotimm.data.loader.KeyedDataset`).

    The keyword arguments are the options that all data modules share. A subclass takes them as ``**options``, or as
    ``**options: Unpack[DataOptions]`` for type checkers, and passes them on.

    Args:
        image_size: Size in pixels of what the network sees: the side of a square, or height and width.
        batch_size: Training samples per step and process.
        eval_batch_size: Samples per batch in validation, test and prediction; does not change training.
        num_workers: Loading processes, at most 4 per CPU core. ``None`` chooses by the number of cores. Never changes a
            result.
        seed: Root seed of the split, and of order and augmentation unless a trainer gives its own (``run_seed``).
            ``None`` draws one from Python's ``random``.
        val_split: Share in [0, 1) of the training samples of each class to validate on, if there is no validation data.
        test_split: The same for the test.
        group: Keep samples together that belong together, such as those of a patient: a column of a table, or a regex
            on ids whose first group is the group. No group is split.
        folds: Divide the training samples into folds for cross-validation, in place of ``val_split``, see
            :func:`autotimm.data.folds.assign_folds`.
        fold: The fold to validate on, counted from 1; all others train. ``None`` trains on all.
        train_transforms: A callable from a ``uint8`` ``tv_tensors.Image`` (3, H, W) to a tensor of a fixed size, in
            place of the augmentation. No normalization: the network does that.
        eval_transforms: The same for validation, test and prediction.
        augmentation: See :func:`autotimm.data.transforms.train_transform`.
        balanced_sampling: Draw every class equally often, with replacement.
        strict: Refuse doubtful data, such as unreadable images, instead of repairing it with a notice.
        drop_last: Drop a last training batch that is not full.
        persistent_workers: Keep the loading processes from one epoch to the next.
        pin_memory: Copy batches to page-locked memory. ``None``: if the training runs on a GPU.
        crop_pct: Share of the resized image that evaluation's central crop keeps.
        interpolation: How images are resized: ``nearest``, ``nearest-exact``, ``bilinear`` or ``bicubic``.
        in_chans: Channels of the images. 3 is RGB, to which every file is converted. With another number files must
            have as many, see :mod:`autotimm.data.image_channels`, and NumPy arrays (``.npy``) are images too.
        ignore_exif: Read images as they are stored, without the turn that an EXIF tag asks for; for annotations that
            were made on the stored images.
        cache: Whether decoded images are kept for later epochs and runs, see :mod:`autotimm.data.pixel_cache`: ``off``,
            on ``disk`` in the user's cache folder, or in ``ram`` until the program ends; ``auto`` chooses between
            ``disk`` and ``off``, and says why in :attr:`notices`. Never changes a result.
        cache_size: The most that the decoded images of all data sets take, in bytes or as text such as ``20GB``.
        check: How image files are checked before training. ``full`` decodes all of them. ``headers`` finds files that
            are empty, cut off or no images; one that is damaged further on ends the training, with its name, when it
            is met, and :meth:`drop` leaves it out. ``auto`` is ``full`` up to 20,000 images and 5 GB.

    Attributes:
        run_seed: Root seed of order and augmentation; a trainer sets it before training.
        notices: One line for each problem or peculiarity of the data.
        problems: The images that cannot be read.
        arguments: The arguments of the constructor, defaults included, for a run's ``config.yaml``.

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
        image_size: ImageSize = 224,
        batch_size: int = 32,
        eval_batch_size: int = 16,
        num_workers: int | None = None,
        seed: int | None = 42,
        val_split: float = 0.1,
        test_split: float = 0.0,
        group: str | None = None,
        folds: int | None = None,
        fold: int | None = None,
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
        in_chans: int = 3,
        ignore_exif: bool = False,
        cache: str = "off",
        cache_size: int | str = "20GB",
        check: str = "auto",
        **unknown: Never,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        refuse_unknown(unknown, owner, inspect.signature(type(self)).parameters)
        _check_numbers(owner, batch_size, eval_batch_size, in_chans, num_workers, crop_pct)
        check_shares(val_split, test_split, owner)
        self.division = Division(group, folds, fold)
        check_division(self.division, owner)
        require_choice("cache", owner, cache, CACHES)
        require_choice("check", owner, check, CHECKS)
        self.cache, self.cache_size, self.check = cache, _bytes_given(cache_size, owner), check
        require_flags(
            owner, strict=strict, drop_last=drop_last, balanced_sampling=balanced_sampling, ignore_exif=ignore_exif
        )
        self.image_size = check_image_size(image_size, owner)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.persistent_workers, self.pin_memory = num_workers, persistent_workers, pin_memory
        self.seed, self.val_split, self.test_split = seed, val_split, test_split
        self.augmentation, self.balanced_sampling = augmentation, balanced_sampling
        self.strict, self.drop_last, self.crop_pct, self.interpolation = strict, drop_last, crop_pct, interpolation
        self.in_chans, self.ignore_exif = in_chans, ignore_exif
        self.data_seed = self.run_seed = root_seed(seed, owner)
        self.arguments = self._captured_arguments(DataOptions.__annotations__)
        self._given_transforms = {"train_transforms": train_transforms, "eval_transforms": eval_transforms}
        self.notices: list[str] = []
        self.problems: list[Problem] = []
        self._tables: dict[str, Table] = {}
        self._dropped: frozenset[str] = frozenset()
        self._cache: PixelCache | None = None
        self._loaders: weakref.WeakSet[KeyedLoader] = weakref.WeakSet()

    def _constructed(self) -> None:
        """Build the transforms: only now is a subclass complete, and can be asked for its own."""
        self._train, self._eval = (self.sample_transform(given, name) for name, given in self._given_transforms.items())

    # What a subclass defines

    @abstractmethod
    def read(self, split: str) -> Table | None:
        """Return the samples of ``train``, ``val`` or ``test``; ``None`` where there is no such data.

        ``train`` is asked for first. Lines for people belong in :attr:`notices`.

        Raises:
            DataError: If the data cannot be used.
        """

    def sample_transform(self, given: Callable[..., Any] | None, name: str) -> SampleTransform:
        """Return the transform of training samples (``train_transforms``) or of all others (``eval_transforms``).

        By default that is the caller's transform or the built-in one, of the image alone. Data modules whose targets
        move with the pixels override this. It is called twice, when the data module has been constructed.

        Args:
            given: The caller's transform, or ``None``.
            name: Which of the two.

        Raises:
            UsageError: If the transform, or the name of an augmentation, cannot be used.
        """
        if given is None and name == "train_transforms":
            given = train_transform(
                self.augmentation, self.image_size, self.interpolation, self.crop_pct, self.in_chans
            )
        elif given is None:
            given = eval_transform(self.image_size, self.crop_pct, self.interpolation)
        return ImageTransform(given, name, type(self).__name__, self.in_chans)

    def pixels_needed(self, name: str) -> tuple[int, int] | None:
        """Return height and width that images must keep for ``train_transforms`` or ``eval_transforms``.

        JPEGs may then be decoded at a reduced scale. ``None``, which it is here, decodes all of each image.
        """
        return None

    def collate(self, samples: Sequence[Any], transforms: str = "transforms") -> Any:
        """Make a batch of samples; ``transforms`` is the name of the transforms for an error."""
        return collate_samples(samples, transforms)

    def setup(self, stage: str | None = None) -> None:
        """Read, check and split the data; does nothing when called again.

        Args:
            stage: Ignored, since every stage needs the same.

        Raises:
            DataError: If the data cannot be used.
        """
        if self._tables:
            return
        tables = self.own_tables()
        if self._given_transforms["train_transforms"] is None:
            self.notices += without_colors(self.augmentation, self.in_chans)
        check_classes(tables["train"], self.notices)
        self._open_cache(tables)
        self._tables = split_off(
            tables, self.val_split, self.test_split, self.data_seed, self.notices, self.division, type(self).__name__
        )

    def borrow(self, other: DataModule, tables: Mapping[str, Table]) -> None:
        """Use samples that another data module has read and checked, in place of reading any.

        Args:
            other: The other data module, which may augment in another way.
            tables: Samples of its tables, by split.
        """
        self._tables = dict(tables)
        self._dropped = other._dropped
        # Pictures of another scale are other pictures.
        is_same_scale = self.pixels_needed("train_transforms") == other.pixels_needed("train_transforms")
        self._cache = other._cache if is_same_scale else None

    def drop(self, ids: str | Sequence[str], *, recorded: bool = False) -> None:
        """Leave out samples whose files cannot be read, found by a loader since only headers were checked.

        Length and order of the epochs stay: the place of a training sample is taken by the next of the same epoch, see
        :class:`autotimm.repro.KeyedBatchSampler`. Samples of validation and test are left out of evaluation. They stay
        in :attr:`tables`, and a line of :attr:`notices` names them.

        Args:
            ids: The ids of the samples: one, several with commas between them, or a list.
            recorded: Whether they are those of a record, whose files were looked at when they were dropped.

        Raises:
            UsageError: If there is no such sample, or its file can be read.
            DataError: If the data cannot be used, or no sample of a split is left.
        """
        if not ids:
            return
        tables = self.tables
        chosen = chosen_ids(ids, tables, recorded=recorded)
        for id in chosen if not recorded else ():
            refuse_readable(id, self._as_loaded())
        said_before = dropped_notices(self.dropped, tables)
        self._dropped |= {*chosen}
        for table in tables.values():
            without(table, self._dropped)  # refuses a split of which nothing is left
        self.notices[:] = [line for line in self.notices if line not in said_before]
        self.notices += dropped_notices(self.dropped, tables)

    def inherit_drops(self, ids: Sequence[str]) -> None:
        """Drop those of the samples that another run has dropped that are here, and still cannot be read.

        Raises:
            DataError: If the data cannot be used, or no sample of a split is left.
        """
        here = chosen_ids(ids, self.tables, recorded=True) if ids else []
        self.drop([id for id in here if not is_readable(id, self._as_loaded())], recorded=True)

    def _as_loaded(self) -> list[Table]:
        """The tables, each as the loaders of training and of evaluation read it."""
        sizes = [self.pixels_needed(name) for name in self._given_transforms]
        return [table.at_least(size) for table in self.tables.values() for size in sizes]

    @property
    def dropped(self) -> dict[str, list[str]]:
        """The ids of the dropped samples by split, in the order of the tables; only splits that have some."""
        if not self._dropped:
            return {}
        found = {split: [id for id in table.ids if id in self._dropped] for split, table in self._tables.items()}
        return {split: ids for split, ids in found.items() if ids}

    def without_dropped(self, table: Table) -> Table:
        """Return those samples of one of :attr:`tables`, or of a part of one, that are not dropped."""
        return without(table, self._dropped) if self._dropped and self._is_own(table) else table

    def _is_own(self, table: Table) -> bool:
        """Whether a table is one of this data module, or a part of one."""
        if any(table is own for own in self._tables.values()):
            return True
        return isinstance(table, Subset) and self._is_own(table.table)

    def own_tables(self) -> dict[str, Table]:
        """Read and check the samples of the splits that the data have of their own, before any are split off.

        Raises:
            DataError: If the data cannot be used.
        """
        self.notices.clear()
        with reading_as(self._reading):
            tables = {split: table for split in ("train", "val", "test") if (table := self.read(split)) is not None}
            require("train" in tables, "read", type(self).__name__, "a table for train", None, "Return one.")
            tables, self.problems = leave_out_unreadable(tables, self.notices, self.strict, check=self.check)
        return tables

    def _open_cache(self, tables: Mapping[str, Table]) -> None:
        files = [path for table in tables.values() for path in table.files()] if self.cache != "off" else ()
        reading = self._reading._replace(least=self.pixels_needed("train_transforms"))
        self._cache, line = open_cache(self.cache, self.cache_size, files, reading)
        self.notices += [line] if line else []

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the trainer and the loading processes, which belong to the original alone."""
        return {**vars(self), "trainer": None, "_loaders": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _loaders=weakref.WeakSet())

    @property
    def tables(self) -> dict[str, Table]:
        """The samples of each split; reads the data at the first use."""
        self.setup()
        return self._tables

    @property
    def source_name(self) -> str:
        """A short name for run folders: that of the folder, table or data set with the samples."""
        for key in ("data_dir", "train_csv", "dataset_name"):
            if source := self.arguments.get(key):
                path = Path(source).resolve()
                return path.name if os.path.isdir(path) else path.stem
        return "run"

    @property
    def transforms(self) -> dict[str, SampleTransform]:
        """The transforms of training samples (``train``) and of all others (``eval``)."""
        return {"train": self._train, "eval": self._eval}

    # Loaders

    def _loader(self, table: Table, batches: KeyedBatchSampler, transform: SampleTransform, stream: str) -> KeyedLoader:
        source = table.at_least(self.pixels_needed(transform.name))
        if self._cache is not None and self._is_own(table):  # images to predict are read once
            source = source.cached(self._cache)
        loads_whole = stream == "eval" and self.overlap is not None  # the network's process cuts them into tiles
        loader = transformed_loader(
            source,
            batches,
            transform,
            stream=stream,
            collate=self.collate,
            num_workers=self._workers(table, loads_whole),
            persistent_workers=self.persistent_workers,
            pin_memory=self._pins(),
        )
        self._loaders.add(loader)
        return loader

    def _workers(self, table: Table, loads_whole: bool) -> int:
        """Loading processes; fewer for whole images, if nobody has given a number."""
        if self.num_workers is not None:
            return self.num_workers
        most = default_workers(self.trainer.num_devices if self.trainer is not None else 1)
        return workers_for_whole_images(table, most) if loads_whole else most

    def _pins(self) -> bool:
        if self.pin_memory is not None:
            return self.pin_memory
        if self.trainer is not None:
            return bool(self.trainer.strategy.root_device.type == "cuda")
        return torch.cuda.is_available()

    @property
    def _reading(self) -> ImageReading:
        return ImageReading(self.in_chans, not self.ignore_exif)

    @property
    def _share(self) -> tuple[int, int]:
        """The rank of this process, and the number of processes."""
        return (0, 1) if self.trainer is None else (int(self.trainer.global_rank), int(self.trainer.world_size))

    @property
    def _shards(self) -> int | None:
        """The number of shards that the trainer cuts batches into, if it does."""
        return getattr(self.trainer, "shards", None)  # Lightning's trainer has none

    def train_dataloader(self) -> KeyedLoader:
        """Training batches: shuffled or balanced, and augmented."""
        table = self.tables["train"]
        # `overfit_batches` means the same few batches in each epoch.
        fixed = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]  # set at run time
        rank, world_size = self._share
        batches = KeyedBatchSampler(
            len(table),
            self.batch_size,
            self.run_seed,
            shuffle=not fixed,
            weights=balanced_weights(table) if self.balanced_sampling and not fixed else None,
            drop_last=self.drop_last,
            rank=rank,
            world_size=world_size,
            shards=self._shards,
            # Of AutoTrainer alone, too: what batch normalization needs.
            least=1 if self._shards is None else self.trainer.least_in_shard,  # type: ignore[union-attr]
            dropped=[index for index, id in enumerate(table.ids) if id in self._dropped] if self._dropped else (),
        )
        return self._loader(table, batches, self._train, "augment")

    def eval_loader(self, table: Table, *, whole: bool = False) -> KeyedLoader:
        """Batches of a table for validation, test and prediction: in its order, each sample exactly once.

        Args:
            table: The samples.
            whole: Whether this process gets all of them, rather than its share.
        """
        table = self.without_dropped(table)
        rank, world_size = (0, 1) if whole else self._share
        batches = KeyedBatchSampler(
            len(table),
            self.eval_batch_size if self.overlap is None else 1,  # a whole image gives batches of tiles
            self.run_seed,
            shuffle=False,
            rank=rank,
            world_size=world_size,
            shards=None if whole else self._shards,
        )
        return self._loader(table, batches, self._eval, "eval")

    def val_dataloader(self) -> KeyedLoader | list[Any]:
        """Validation batches; an empty list if there is no validation data."""
        return self.eval_loader(self.tables["val"]) if "val" in self.tables else []

    def test_dataloader(self) -> KeyedLoader:
        """Test batches.

        Raises:
            DataError: If there is no test data; validation data never replaces it.
        """
        if "test" not in self.tables:
            raise DataError(
                "There is no test data. Add a test/ folder or a `test_csv`, or split some off with test_split=0.1."
            )
        return self.eval_loader(self.tables["test"])

    def predict_table(self, paths: str | Path | Sequence[str | Path]) -> Table:
        """List images to predict: a file, a folder with all its subfolders, or several.

        Raises:
            DataError: If there is nothing to predict, or the only image cannot be read.
        """
        with reading_as(self._reading):
            return read_paths(paths, self.notices, self.strict)

    def predict_loader(self, paths: str | Path | Sequence[str | Path]) -> KeyedLoader:
        """Batches of images to predict; targets are ``None``. Needs no training data."""
        return self.eval_loader(self.predict_table(paths))

    def teardown(self, stage: str | None = None) -> None:
        """End the loading processes; the data is kept."""
        self.end_loading()

    def end_loading(self) -> None:
        """End the loading processes, which start again when a loader is read."""
        for loader in list(self._loaders):
            loader.close()


def _check_numbers(
    owner: str, batch_size: object, eval_batch_size: object, in_chans: object, num_workers: object, crop_pct: object
) -> None:
    """Refuse numbers that are out of range, or none."""
    for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
        require(is_whole(value, 1), name, owner, "a whole number, 1 or more", value, "Give for example 32.")
    require(is_whole(in_chans, 1), "in_chans", owner, "a whole number, 1 or more", in_chans, "Give 3 for RGB.")
    require(
        num_workers is None or is_whole(num_workers, 0), "num_workers", owner, "a whole number, 0 or more, or None",
        num_workers, "Give 0 to load in the main process.",
    )  # fmt: skip
    require(
        not is_whole(num_workers, most_on_cpu() + 1), "num_workers", owner,
        f"at most {most_on_cpu()} on this machine, which has {os.cpu_count()} CPU cores", num_workers,
        "Leave it out for one per core.",
    )  # fmt: skip
    require(
        0 < number(crop_pct) <= 1, "crop_pct", owner, "a number in (0, 1]", crop_pct,
        "Give 1 to keep the whole square.",
    )  # fmt: skip


def _bytes_given(value: object, owner: str) -> int:
    """The option ``cache_size`` in bytes.

    Raises:
        UsageError: If it is no size.
    """
    try:
        return read_bytes(value)
    except (TypeError, ValueError):
        raise UsageError(sentence("cache_size", owner, BYTES_MUST, value, "Give for example 20GB.")) from None
