"""Trains on virtual shards of each batch, with the same bits on any number of processes.

A shard has its own statistics of batch normalization and its own random numbers. Gradients, and what a step adds to
buffers, are weighted by each shard's share of the images and added up in one binary tree over the shards. One process
goes through all shards in turn; of several, each adds up what lies within its own shards, and they exchange the rest:
each gets a part of the numbers from all others, adds it up in the order of the tree, and gives the sums to all.
Torch's own reducer is not used: it adds in the order of a ring, and groups gradients anew after the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from lightning_fabric.utilities.distributed import (
    _get_default_process_group_backend_for_device,
    _init_dist_connection,
    _sync_ddp_if_available,
)
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

from autotimm.data.loader import KeyedLoader
from autotimm.errors import UsageError, require, sentence
from autotimm.repro.shards import nodes_within, shard_range, sum_in_tree
from autotimm.tasks import Task
from autotimm.tasks.parts import Parts, compute_alone
from autotimm.train.shard_sums import Pool, ShardStep, Sums, sum_of_processes, trained_parameters
from autotimm.types import Batch

__all__ = ["ShardedStrategy", "check_trainer", "least_in_shard"]

_Object = TypeVar("_Object")


def check_trainer(shards: int, given: Mapping[str, Any]) -> None:
    """Refuse arguments of a trainer that cannot be used with shards.

    Raises:
        UsageError: If there is one.
    """
    whole_val = all(
        isinstance(given.get(name), int) or given.get(name) in (None, 1.0)
        for name in ("limit_val_batches", "limit_test_batches")
    )
    wrong = {
        "strategy": given.get("strategy", "auto") != "auto",
        "sync_batchnorm": bool(given.get("sync_batchnorm")),
        "overfit_batches": bool(given.get("overfit_batches")),
        "precision": str(given.get("precision")) in ("16-mixed", "16"),
        "limit_val_batches": not whole_val,
        "plugins": bool(given.get("plugins")),
    }
    why = {
        "strategy": "shards have a strategy of their own",
        "sync_batchnorm": "a shard has statistics of its own, whatever process it is in",
        "overfit_batches": "a fixed batch is cut as in evaluation",
        "precision": "the scale of 16-bit gradients is found by trying; bf16-mixed needs none",
        "limit_val_batches": "a share of the batches of one process depends on the number of processes; give a number",
        "plugins": "they change how processes work together",
    }
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        must = f"left out with shards={shards}, since {why[name]}"
        raise UsageError(sentence(name, "AutoTrainer", must, given.get(name), "Leave it out, or leave `shards` out."))


def least_in_shard(task: Task, recipe: str) -> int:
    """The images that a shard must have: two where batch normalization takes statistics from them."""
    return 2 if recipe == "plain" and task.learns_statistics else 1


class ShardedStrategy(ParallelStrategy):
    """Cuts each training batch into shards, and gives equally many to each process.

    Args:
        shards: Number of shards, a multiple of the number of processes.
    """

    def __init__(self, shards: int) -> None:
        super().__init__()
        self.shards, self.num_nodes = shards, 1
        self._losses: list[str] | None = None
        self._gradients: list[Tensor | None] = []
        self._total: Sums | None = None
        self._pool = Pool()
        self._undo: Callable[[], None] | None = None

    # Processes: as Lightning's strategy for DDP starts and connects them, which cannot be had without its reducer.

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""
        assert self.parallel_devices is not None
        return self.parallel_devices[self.local_rank]

    @property
    def num_processes(self) -> int:
        """Processes of this machine."""
        return len(self.parallel_devices or ())

    def set_world_ranks(self) -> None:
        """Tell Lightning the number of this process, and how many there are."""
        if self.cluster_environment is not None:
            self.cluster_environment.set_global_rank(self.node_rank * self.num_processes + self.local_rank)
            self.cluster_environment.set_world_size(self.num_nodes * self.num_processes)
        rank_zero_only.rank = self.global_rank  # type: ignore[attr-defined]  # as Lightning's own strategies do

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        require(
            self.shards % self.world_size == 0, "shards", "AutoTrainer",
            f"a multiple of the number of processes, {self.world_size}", self.shards,
            "Give another number of `devices`: it never changes a result.",
        )  # fmt: skip
        if self.world_size > 1:
            self._launcher = _SubprocessScriptLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        """Connect the processes."""
        super().setup_environment()
        self.set_world_ranks()
        if self.world_size > 1:
            assert self.cluster_environment is not None
            backend = _get_default_process_group_backend_for_device(self.root_device)
            device = None if self.root_device.type == "cpu" else self.root_device
            _init_dist_connection(self.cluster_environment, backend, timeout=timedelta(minutes=30), device_id=device)

    def model_to_device(self) -> None:
        """Move the model to the device of this process."""
        assert self.model is not None
        self.model.to(self.root_device)

    def barrier(self, name: str | None = None) -> None:
        """Wait for the other processes."""
        if self.world_size > 1 and dist.is_initialized():
            dist.barrier(device_ids=None if self.root_device.type == "cpu" else [self.root_device.index])

    def broadcast(self, obj: _Object, src: int = 0) -> _Object:
        """Give an object of one process to all."""
        if self.world_size == 1 or not dist.is_initialized():
            return obj
        shared: list[Any] = [obj]
        dist.broadcast_object_list(shared, src)
        return cast(_Object, shared[0])

    def reduce(self, tensor: Tensor | Any, group: Any = None, reduce_op: Any = "mean") -> Tensor | Any:
        """Reduce what Lightning reduces itself; nothing of a training or of its metrics."""
        return _sync_ddp_if_available(tensor, group, reduce_op=reduce_op) if isinstance(tensor, Tensor) else tensor

    # A run

    @property
    def _task(self) -> Task:
        task = self.lightning_module
        if not isinstance(task, Task):
            raise UsageError("The `shards` of AutoTrainer need a Task of autotimm. Leave `shards` out.")
        return task

    def setup(self, trainer: Any) -> None:
        """Prepare the task to be measured in parts, and its training."""
        task = self._task
        if trainer.state.fn == TrainerFn.FITTING:
            _refuse_shared_statistics(task)
            self._losses = None
        if trainer.state.fn != TrainerFn.PREDICTING:
            task.check_parts()
            task.parts = Parts(self.world_size)
            self._undo = compute_alone(task)
        super().setup(trainer)
        if self.world_size > 1:
            for tensor in task.state_dict().values():
                dist.broadcast(tensor, 0)

    def teardown(self) -> None:
        """Give the task back as it was."""
        if isinstance(task := self.lightning_module, Task):
            task.parts, self._gradients, self._total, self._pool = None, [], None, Pool()
        if self._undo is not None:
            self._undo()
        super().teardown()

    # A step

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Make the forward and backward passes of all shards, add them up, and return the loss of the whole batch."""
        batch, number, task = Batch.of(args[0]), int(args[1]), self._task
        accumulated = self._begin(task)
        images, step = self._images(number), ShardStep(task, self.world_size, self._pool)
        own = self._own_shards
        start = shard_range(images, own.start, self.shards).start
        require_images(len(batch.images), shard_range(images, own.stop - 1, self.shards).stop - start)

        def leaf(shard: int, end: int) -> Sums | None:
            if end - shard > 1:
                return None
            within = shard_range(images, shard, self.shards)
            if not within:
                return step.nothing()
            loss = self._forward(batch.part(within.start - start, within.stop - start), shard, number)
            share = len(within) / images
            self.precision_plugin.backward(loss * share, task, None)
            assert task.parts is not None
            return step.take([*task.parts.losses.values()], share, counts=within.start == 0)

        nodes = {node: sum_in_tree(*node, leaf) for node in nodes_within(own.start, own.stop, self.shards)}
        self._total = sum_of_processes(nodes, self.shards, self.global_rank, self.world_size)
        self._gradients, losses = step.finish(self._total)
        for parameter, gradient in accumulated:
            parameter.grad = gradient
        whole = dict(zip(self._names_of_losses(), losses, strict=False))
        task.log_whole(whole, images)
        return whole["loss"]

    def _begin(self, task: Task) -> list[tuple[nn.Parameter, Tensor | None]]:
        """Return the gradients of batches before this one that belong to the same step of the optimizer."""
        if self._total is not None:  # gradients in its memory were used by the step before
            self._pool.give(self._total.vectors)
            self._total = None
        batches = task.trainer.accumulate_grad_batches
        return [(each, each.grad) for each in trained_parameters(task)] if batches > 1 else []

    @property
    def _own_shards(self) -> range:
        """The shards of this process."""
        held = self.shards // self.world_size
        return range(self.global_rank * held, (self.global_rank + 1) * held)

    def _images(self, number: int) -> int:
        """The images of a whole training batch."""
        loader = self._task.trainer.train_dataloader
        if not isinstance(loader, KeyedLoader):
            raise UsageError("The `shards` of AutoTrainer need the loaders of a data module of autotimm. Leave it out.")
        return len(loader.batch_sampler.whole(number))

    def _forward(self, part: Batch, shard: int, number: int) -> Tensor:
        """The loss of a shard, with its graph."""
        task = self._task
        assert task.parts is not None
        task.shard, task.parts.position = shard, (number, shard)
        try:
            with self.precision_plugin.train_step_context():
                return task.training_step(part, number)
        finally:
            task.shard = None

    def _names_of_losses(self) -> list[str]:
        """The names of the losses of each step, which a process without a share of the first does not know."""
        if self._losses is None:
            assert self._task.parts is not None
            ours = [*self._task.parts.losses]
            names: list[Any] = [ours]
            if self.world_size > 1:
                names = [None] * self.world_size
                dist.all_gather_object(names, ours)
            self._losses = next(each for each in names if each)
        return self._losses

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Give the parameters the gradients of the whole batch, which :meth:`training_step` has computed."""
        task = self._task
        closure_loss = self.precision_plugin.pre_backward(closure_loss, task)
        batches = task.trainer.accumulate_grad_batches
        for parameter, gradient in zip(trained_parameters(task), self._gradients, strict=True):
            if gradient is not None:
                part = gradient / batches if batches > 1 else gradient
                parameter.grad = part if parameter.grad is None else parameter.grad + part
        self._gradients = []
        return self.precision_plugin.post_backward(closure_loss, task)

    # Evaluation: whole batches in turn

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Measure a batch of this process, unless there is none left for it."""
        args, limit = self._of_all(args), self._task.trainer.limit_val_batches
        return super().validation_step(*args, **kwargs) if self._counts(args, limit) else None

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Measure a batch of this process, unless there is none left for it."""
        args, limit = self._of_all(args), self._task.trainer.limit_test_batches
        return super().test_step(*args, **kwargs) if self._counts(args, limit) else None

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Predict a batch of this process, unless there is none left for it."""
        args = self._of_all(args)
        return super().predict_step(*args, **kwargs) if self._counts(args, 1.0) else []

    def _of_all(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replace the number of a batch in this process by that among the batches of all."""
        batch, number, *others = args
        number = number * self.world_size + self.global_rank
        if self._task.parts is not None:
            self._task.parts.position = (number,)
        return (batch, number, *others)

    @staticmethod
    def _counts(args: tuple[Any, ...], limit: int | float) -> bool:
        within = not isinstance(limit, int) or args[1] < limit
        return within and len(Batch.of(args[0]).images) > 0


def require_images(found: int, expected: int) -> None:
    """Refuse a batch with other images than the shards of this process have."""
    if found != expected:
        raise UsageError(
            f"A training batch must have {expected} images for the shards of a process. Got {found} instead. Give the "
            "loader of a data module of autotimm as it is, or leave `shards` out."
        )


def _refuse_shared_statistics(task: Task) -> None:
    if any(isinstance(module, nn.SyncBatchNorm) for module in task.modules()):
        raise UsageError(
            "The `shards` of AutoTrainer must be left out with SyncBatchNorm, whose statistics are those of all "
            "processes: a shard has statistics of its own. Use BatchNorm2d."
        )
    if task.loss_over_batch:
        raise UsageError(
            f"The `shards` of AutoTrainer must be left out with {type(task).__name__}, whose loss compares the images "
            "of the whole batch: a shard does not see those of the others. Leave `shards` out."
        )
