"""Loaders whose batches do not depend on which process loads them, and whose position in an epoch can be restored.

A :class:`KeyedDataset` draws the random numbers of a sample from its own stream; a :class:`KeyedLoader` makes batches
of its samples, and can be resumed; :func:`transformed_loader` builds both for a table.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler, default_collate, get_worker_info

from autotimm.data.data_facts import original_sizes
from autotimm.data.loading_processes import (
    killed_process,
    leave_signals_to_training,
    loading_context,
    sigterm_blocked,
)
from autotimm.data.table import AT_ONCE, Table
from autotimm.data.transforms.image_transforms import SampleTransform
from autotimm.errors import AutotimmError, DataError, UnreadableSampleError, UsageError
from autotimm.records.digest import state_digest
from autotimm.repro.sampler import Draw, KeyedBatchSampler
from autotimm.repro.seed import fixed_threads
from autotimm.repro.streams import preserve_generators, reseed
from autotimm.types import Batch, Sample

__all__ = [
    "InOrder",
    "KeyedDataset",
    "KeyedLoader",
    "Position",
    "Shuffled",
    "collate_samples",
    "default_workers",
    "transformed_loader",
    "with_fingerprints",
    "workers_for_whole_images",
]

_SHARED_BYTES = 2**30  # of all whole images that wait for the network
_PREFETCHED = 2  # images that wait for each loading process, which is torch's default


def _targets(targets: list[Any]) -> Any:
    """The targets of a batch, see :func:`collate_samples`."""
    if any(target is None for target in targets):
        return None
    if isinstance(targets[0], dict):
        return targets  # objects, whose number differs from image to image
    return torch.stack(targets) if isinstance(targets[0], Tensor) else torch.tensor(targets, dtype=torch.int64)


def _placements(samples: Sequence[Sample]) -> Tensor | None:
    """Where images are in the network's input, ``int64`` (N, 6); ``None`` if one does not say."""
    if any(sample.placement is None for sample in samples):
        return None
    return torch.tensor([sample.placement for sample in samples], dtype=torch.int64)


def collate_samples(samples: Sequence[Sample], transforms: str = "transforms") -> Batch:
    """Stack samples to a :class:`Batch`.

    Args:
        samples: Samples whose images have one shape (3, H, W) and one data type.
        transforms: The name of the transforms for an error.

    Returns:
        Images (N, 3, H, W); targets ``int64`` (N,), or stacked tensors, or a list of dictionaries, or ``None`` if one
        is unknown.

    Raises:
        UsageError: If shapes or data types differ.
    """
    images = [sample.image for sample in samples]
    for sample in samples:
        if sample.image.shape != images[0].shape or sample.image.dtype != images[0].dtype:
            kinds = [f"{tuple(each.image.shape)} {each.image.dtype} ({each.id})" for each in (samples[0], sample)]
            raise UsageError(
                f"The `{transforms}` must give images of one size and data type. Got {' and '.join(kinds)} instead. "
                "Let them end with a resize or crop to a fixed (height, width)."
            )
    targets = _targets([sample.target for sample in samples])
    ids = tuple(sample.id for sample in samples)
    truths = None if any(sample.truth is None for sample in samples) else tuple(sample.truth for sample in samples)
    tiling = samples[0].tiling
    # An image of 400 megapixels takes 1.2 GB, and a stack of one would copy it.
    stacked = torch.stack(images) if tiling is None or len(images) > 1 else images[0][None]
    return Batch(stacked, targets, ids, placements=_placements(samples), truths=truths, tiling=tiling)


def with_fingerprints(batch: Batch) -> Batch:
    """Add the digest of each sample's image and target to a batch.

    One digest per sample and none of the batch: several processes each hold a part of a global batch, and the parts
    must add up to the record of one process.

    Example:
        >>> batch = Batch(torch.zeros(2, 3, 1, 1), torch.tensor([0, 1]))
        >>> len(with_fingerprints(batch).fingerprints)
        32
    """
    if batch.fingerprints:
        return batch
    images = batch.images
    kind = f"{images.dtype}{tuple(images.shape[1:])}".encode()
    if isinstance(batch.targets, Tensor):
        targets = [row.tobytes() for row in batch.targets.numpy()]
    else:
        given = batch.targets or [None] * len(images)
        targets = [state_digest(target if isinstance(target, dict) else {"": target}).encode() for target in given]
    digests = (_fingerprint(kind + target, image) for image, target in zip(images, targets, strict=True))
    return batch._replace(fingerprints="".join(digests))


def _fingerprint(head: bytes, image: Tensor) -> str:
    """16 digits of the digest of some bytes and an image, without a copy of all of its pixels."""
    digest = sha256(head)
    planes: Sequence[Any] = (image,) if image.is_contiguous() else tuple(image)
    for plane in planes:
        digest.update(plane.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def default_workers(processes: int = 1) -> int:
    """Return the loading processes per training process on this machine: one per available CPU, at most 8."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = allowed // max(processes, 1)
    return 0 if share <= 1 else min(share, 8)


def workers_for_whole_images(table: Table, most: int, shared_bytes: int = _SHARED_BYTES) -> int:
    """How many processes may load whole images, which they hand over through shared memory: none if they are huge.

    Args:
        table: The images.
        most: The number of processes otherwise.
        shared_bytes: Memory for the images that wait for the network.
    """
    largest = max((size[0] * size[1] for size in original_sizes(table) if size is not None), default=1)
    return min(most, shared_bytes // (3 * largest * _PREFETCHED))


class _MapStyle(Protocol):
    """A data set of the caller's own, indexed by a plain integer."""

    def __getitem__(self, index: int, /) -> Any: ...
    def __len__(self) -> int: ...


class _Failure(NamedTuple):
    """Carries an error of ours from a worker; if it were raised there, torch would wrap it in a traceback."""

    error: AutotimmError


class KeyedDataset(Dataset[Any]):
    """Samples whose randomness is a function of the seed, the epoch, their position in it and their id.

    All three global generators are put on the sample's stream before it is read and transformed, so that your own
    transforms are reproducible too, whether they draw from ``random``, NumPy or torch. In the main process the
    generators are restored afterwards, and the work is done by one thread, as in a worker: 0 workers give the bits
    of 2.

    Args:
        source: A :class:`Table`, or a map-style data set of your own, which still receives a plain integer.
        transform: Applied to each sample (for a table) or item (for your own data set). If it has an attribute
            ``torch_only`` that is true, ``random`` and NumPy are not reseeded, which saves time.
        seed: The root seed.
        stream: ``augment`` is keyed by (epoch, position, id). Any other stream is keyed by the id alone, so that a
            sample is the same in each epoch, batch and order of evaluation.
    """

    def __init__(
        self,
        source: Table | _MapStyle,
        transform: Callable[[Any], Any] | None = None,
        *,
        seed: int,
        stream: str = "augment",
    ) -> None:
        self.source, self.transform, self.seed, self.stream = source, transform, seed, stream
        quiet_source = isinstance(source, Table) and not source.draws_random
        self.torch_only = quiet_source and (transform is None or bool(getattr(transform, "torch_only", False)))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int | Draw) -> Any:
        draw = index if isinstance(index, Draw) else Draw(0, int(index), int(index))
        return self._load([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> Any:
        """Load a batch of samples; torch's loader calls this."""
        if get_worker_info() is None:
            return self._load(draws)
        try:
            return self._load(draws)
        except AutotimmError as error:
            return _Failure(error)

    def _load(self, draws: Sequence[Draw]) -> list[Any]:
        with ExitStack() as stack:
            if get_worker_info() is None:  # a worker has one thread anyway, and generators of its own
                stack.enter_context(preserve_generators(torch_only=self.torch_only))
                stack.enter_context(fixed_threads(1))
            samples = []
            for first in range(0, len(draws), AT_ONCE):
                some = draws[first : first + AT_ONCE]
                if isinstance(self.source, Table):
                    self.source.read_ahead([draw.index for draw in some])
                samples += [self._sample(draw) for draw in some]
        if isinstance(self.source, Table) and self.source.cache is not None:
            self.source.cache.flush()
        return samples

    def _sample(self, draw: Draw) -> Any:
        table = self.source if isinstance(self.source, Table) else None
        name = str(draw.index) if table is None else table.ids[draw.index]
        position = (draw.epoch, draw.position, name) if self.stream == "augment" else (name,)
        reseed(self.seed, self.stream, *position, torch_only=self.torch_only)
        item = self.source[draw.index] if not isinstance(self.source, Table) else _loaded(self.source, draw.index)
        return item if self.transform is None else self.transform(item)


def _loaded(table: Table, index: int) -> Sample:
    """Load a sample; an error of its files knows its id."""
    try:
        return table.load(index)
    except DataError as error:
        raise UnreadableSampleError.of(table.ids[index], error) from error


def _next(batches: Iterator[Any]) -> Any:
    """The next batch; says so in our words if a loading process was killed."""
    try:
        return next(batches)
    except (RuntimeError, OSError, EOFError) as error:
        if (killed := killed_process(error)) is None:
            raise
        raise killed from error


class _Collate:
    """Makes a batch in a worker: with fingerprints, which take time there and not in the training's process."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        if isinstance(samples, _Failure):
            return samples
        try:
            batch = self.collate(samples)
        except AutotimmError as error:
            return _Failure(error)
        return with_fingerprints(batch) if isinstance(batch, Batch) else batch


class KeyedLoader:
    """Batches in the order of a :class:`KeyedBatchSampler`, with a position in the epoch that can be restored.

    It wraps a torch ``DataLoader`` and is none itself: Lightning rebuilds the loaders it knows, and would lose the
    position. Iterating is lazy: nothing is started or decided before the first batch is requested, so that an epoch
    set, or a state loaded, after ``iter()`` still counts. By default an iteration is the next epoch, from its first
    batch, also if the one before was left early.

    Args:
        dataset: The samples.
        batch_sampler: Which samples, in which order.
        collate: Makes a batch of a list of samples. Default: :func:`collate_samples` for tables, torch's own for your
            own data sets.
        num_workers: Loading processes; 0 loads in this one. The batches are the same.
        persistent_workers: Keep the processes from one epoch to the next.
        pin_memory: Copy batches to page-locked memory, from which copies to a GPU are faster.

    Example:
        >>> loader = KeyedLoader(KeyedDataset(range(6), seed=1), KeyedBatchSampler(6, 2, seed=1))
        >>> whole = [batch.tolist() for batch in loader]
        >>> loader.load_state_dict({"epoch": 0, "batch": 1})
        >>> [batch.tolist() for batch in loader] == whole[1:]
        True
    """

    def __init__(
        self,
        dataset: KeyedDataset,
        batch_sampler: KeyedBatchSampler,
        *,
        collate: Callable[[Any], Any] | None = None,
        num_workers: int = 0,
        persistent_workers: bool = True,
        pin_memory: bool = False,
    ) -> None:
        self.dataset, self.batch_sampler, self.num_workers = dataset, batch_sampler, num_workers
        self.collate = collate or (collate_samples if isinstance(dataset.source, Table) else default_collate)
        self.persistent_workers, self.pin_memory = persistent_workers and num_workers > 0, pin_memory
        self._position = Position()
        in_order = not batch_sampler.shuffle and batch_sampler.weights is None
        self.sampler = (InOrder if in_order else Shuffled)(self._position, batch_sampler)
        self._inner: DataLoader[Any] | None = None
        self._turn = 0

    @property
    def batch_size(self) -> int:
        """Samples per batch and process."""
        return self.batch_sampler.batch_size

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        self._turn = turn = self._turn + 1
        epoch, start = self._position.begin()
        # A running iteration has read both already.
        self.batch_sampler.epoch, self.batch_sampler.start = epoch, start
        source = self._start() if start < len(self) else None
        try:
            for done in range(start + 1, len(self) + 1):
                batch = _next(source) if source is not None else None
                if isinstance(batch, _Failure):
                    raise batch.error
                if done == len(self):
                    # Lightning does not iterate to the end, so workers that are not to persist are released here.
                    source = None
                self._position.batch, self._position.running = done, source is not None
                yield batch.part(0, 0) if batch is not None and self.batch_sampler.is_empty(done - 1) else batch
                self._check_turn(turn)
        finally:
            # A traceback would keep this frame, and with it the workers, which the garbage collector ends slowly.
            source = None
            if turn == self._turn:
                self._position.running = False

    def _check_turn(self, turn: int) -> None:
        if turn != self._turn:
            raise UsageError(
                "A KeyedLoader must be read by one loop at a time, since it has one position in one epoch. Make a "
                "second loader, or end the first loop before the next."
            )

    def _start(self) -> Iterator[Any]:
        with warnings.catch_warnings():
            # torch compares the number of workers with that of the cores, which is taken into account already.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            with sigterm_blocked():
                return iter(self._torch_loader())

    def _torch_loader(self) -> DataLoader[Any]:
        if self._inner is None:
            self._inner = DataLoader(
                self.dataset,
                batch_sampler=self.batch_sampler,
                collate_fn=_Collate(self.collate),
                num_workers=self.num_workers,
                persistent_workers=self.persistent_workers,
                pin_memory=self.pin_memory,
                worker_init_fn=leave_signals_to_training,
                multiprocessing_context=loading_context(self.dataset.source) if self.num_workers else None,
                # torch draws the workers' seeds, which nothing of ours reads; not from the caller's generator.
                generator=torch.Generator(),
            )
        return self._inner

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its batches were returned; what workers have prefetched does not count."""
        return self._position.state()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Begin the next iteration at the position of the state."""
        self._position.following = (int(state["epoch"]), int(state["batch"]))

    def close(self) -> None:
        """End the loading processes; iterating again starts new ones."""
        self._turn += 1
        self._inner = None


class Position:
    """The position of a loader: the running epoch, its batches so far, and the start of the next iteration."""

    def __init__(self) -> None:
        self.epoch, self.batch = 0, 0
        self.running = False
        self.following: tuple[int, int] | None = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with this epoch, at its first batch unless a state of this epoch was loaded."""
        # Lightning sets the epoch after a state was loaded: the same epoch must not reset the position in it.
        if self.following is None or self.following[0] != epoch:
            self.following = (epoch, 0)

    def begin(self) -> tuple[int, int]:
        """Start an iteration; return the epoch, and how many of its batches to skip."""
        self.epoch, self.batch = self.following or (self.epoch + 1, 0)
        self.following, self.running = None, True
        return self.epoch, self.batch

    def state(self) -> dict[str, int]:
        """Return plain data for a checkpoint."""
        is_pending = self.following is not None and not self.running  # a state was loaded, or an epoch set
        epoch, batch = self.following if is_pending and self.following else (self.epoch, self.batch)
        return {"epoch": epoch, "batch": batch}


class Shuffled(Sampler[int]):
    """What Lightning sees as ``loader.sampler``; its ``set_epoch`` sets the loader's position."""

    def __init__(self, position: Position, batches: KeyedBatchSampler) -> None:
        self._position, self._batches = position, batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self._position.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        return (draw.index for batch in self._batches for draw in batch)

    def __len__(self) -> int:
        return self._batches.size


class InOrder(SequentialSampler):
    """The same for a loader that does not shuffle; ``overfit_batches`` of Lightning requires this very type."""

    def __init__(self, position: Position, batches: KeyedBatchSampler) -> None:
        super().__init__(range(batches.size))
        self._position = position

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self._position.set_epoch(epoch)


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
        batches: Which of them, in which order; its seed is also that of the samples' streams.
        transform: Applied to each sample.
        stream: ``augment`` in training, else ``eval``, see :class:`KeyedDataset`.
        collate: Makes a batch; its argument ``transforms`` is the name of the transforms for an error.
        loading: Options of :class:`KeyedLoader`, such as ``num_workers``.

    Raises:
        UsageError: If the transform does not turn the first sample into an image.
    """
    dataset = KeyedDataset(table, transform, seed=batches.seed, stream=stream)
    first = next(index for index in range(len(table)) if index not in batches.dropped)
    transform.check(dataset[first])  # a wrong transform is refused here, not in a worker
    return KeyedLoader(dataset, batches, collate=partial(collate, transforms=transform.name), **loading)
