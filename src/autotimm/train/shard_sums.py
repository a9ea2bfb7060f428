"""What the shards of a training step add up: gradients, changes of buffers, and losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autotimm.errors import UsageError
from autotimm.repro.shards import nodes_within, sum_in_tree

__all__ = ["Pool", "ShardStep", "Sums", "sum_of_processes", "trained_parameters"]

_MOST_LOSSES = 16  # of a step
_MOST_COUNTED = 8  # a buffer with more whole numbers is no counter


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that have gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class Pool:
    """Memory that is used again in each step: to get that of all gradients anew costs more than to fill it."""

    def __init__(self) -> None:
        self._free: dict[tuple[torch.dtype, int], list[Tensor]] = {}

    def take(self, kind: torch.dtype, size: int, device: torch.device) -> Tensor:
        """Return a vector with any content."""
        free = self._free.get((kind, size))
        return free.pop() if free else torch.empty(size, dtype=kind, device=device)

    def give(self, vectors: Iterable[Tensor]) -> None:
        """Take vectors back."""
        for vector in vectors:
            self._free.setdefault((vector.dtype, len(vector)), []).append(vector)


class Sums:
    """All numbers of a shard, or their sums over several: a vector for each type of number.

    Args:
        vectors: The vectors; their lengths are multiples of the number of processes.
        pool: Where they are from.
    """

    def __init__(self, vectors: Sequence[Tensor], pool: Pool) -> None:
        self.vectors, self.pool = list(vectors), pool

    def add_(self, other: Sums) -> Sums:
        """Add the numbers of other shards in place; their memory is used again."""
        for vector, summand in zip(self.vectors, other.vectors, strict=True):
            vector.add_(summand)
        self.pool.give(other.vectors)
        return self


class _Buffers:
    """Buffers of one type, as they were before a step."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self.buffers, self._sizes = buffers, [buffer.numel() for buffer in buffers]
        self.before = self._now()

    def _now(self) -> Tensor:
        return torch.cat([buffer.reshape(-1) for buffer in self.buffers])

    def set(self, values: Tensor) -> None:
        """Set all of them."""
        for buffer, part in zip(self.buffers, values.split(self._sizes), strict=True):
            buffer.copy_(part.view(buffer.shape))

    def take_change(self) -> Tensor:
        """Return what has changed, and undo it."""
        now = self._now()
        change = torch.where(now == self.before, 0, now - self.before)  # infinite numbers of a mask are no change
        self.set(self.before)
        return change


def _alike(buffers: Iterable[Tensor]) -> list[_Buffers]:
    """The buffers by their types."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for buffer in buffers:
        groups.setdefault(buffer.dtype, []).append(buffer)
    return [_Buffers(group) for group in groups.values()]


class ShardStep:
    """Takes what each shard of a step has left in a module, so that the next one finds the module as it was.

    Args:
        module: The module, before the first shard. It has no gradients afterwards.
        processes: The number of processes.
        pool: Memory for the numbers.
    """

    def __init__(self, module: nn.Module, processes: int, pool: Pool) -> None:
        self._module, self._pool = module, pool
        self._parameters = trained_parameters(module)
        for parameter in self._parameters:
            parameter.grad = None
        self._buffers = list(module.buffers())
        self._averaged = _alike(buffer for buffer in self._buffers if buffer.is_floating_point())
        self._counters = _alike(buffer for buffer in self._buffers if _is_counter(buffer))
        summed = {id(buffer) for group in (*self._averaged, *self._counters) for buffer in group.buffers}
        self._fixed = [(buffer, buffer._version) for buffer in self._buffers if id(buffer) not in summed]
        self._device, whole = self._parameters[0].device, torch.float32
        # What is summed, in this order: its type and its size.
        self._fields = [
            *((parameter.dtype, parameter.numel()) for parameter in self._parameters),
            (whole, len(self._parameters)),
            *((group.before.dtype, len(group.before)) for group in self._averaged),
            *((whole, len(group.before)) for group in self._counters),
            (whole, _MOST_LOSSES),
        ]
        self._sizes = dict.fromkeys(sorted({kind for kind, _ in self._fields}, key=str), 0)
        for kind, size in self._fields:
            self._sizes[kind] += size
        self._padding = {kind: -size % processes for kind, size in self._sizes.items()}

    def _vectors(self) -> dict[torch.dtype, Tensor]:
        sizes = ((kind, size + self._padding[kind]) for kind, size in self._sizes.items())
        return {kind: self._pool.take(kind, size, self._device) for kind, size in sizes}

    def nothing(self) -> Sums:
        """What an empty shard adds."""
        return Sums([vector.zero_() for vector in self._vectors().values()], self._pool)

    @torch.no_grad()
    def take(self, losses: Sequence[Tensor], share: float, *, counts: bool) -> Sums:
        """Take the gradients, the changes of buffers and the losses of a shard.

        Args:
            losses: Its losses.
            share: Its share of the images, in (0, 1]; gradients have that factor already.
            counts: Whether what it adds to counters of steps is what the whole step adds.

        Raises:
            UsageError: If it has changed something that cannot be summed.
        """
        self._require_same_buffers(len(losses))
        gradients = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        known = torch.tensor([float(gradient is not None) for gradient in gradients], device=self._device)
        averaged = [group.take_change() * share for group in self._averaged]
        counted = [group.take_change() * int(counts) for group in self._counters]
        shown = torch.zeros(_MOST_LOSSES, device=self._device)
        shown[: len(losses)] = torch.stack([loss.detach().float() for loss in losses]) * share
        filled = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self._parameters, gradients, strict=True)
        ]
        parts: dict[torch.dtype, list[Tensor]] = {kind: [] for kind in self._sizes}
        for (kind, _), part in zip(self._fields, (*filled, known, *averaged, *counted, shown), strict=True):
            parts[kind].append(part.reshape(-1).to(kind))
        vectors = self._vectors()
        for kind, vector in vectors.items():
            torch.cat([*parts[kind], vector.new_zeros(self._padding[kind])], out=vector)
        return Sums([*vectors.values()], self._pool)

    def _require_same_buffers(self, losses: int) -> None:
        now = list(self._module.buffers())
        replaced = len(now) != len(self._buffers) or any(a is not b for a, b in zip(now, self._buffers, strict=True))
        if replaced or any(buffer._version != version for buffer, version in self._fixed):
            raise UsageError(
                "The `shards` of AutoTrainer need buffers that a training step changes in place, and that are floats "
                "or counters: what shards do to others cannot be summed. Leave `shards` out."
            )
        if losses > _MOST_LOSSES:
            raise UsageError(f"A step must have at most {_MOST_LOSSES - 1} losses with `shards`. Got {losses - 1}.")

    @torch.no_grad()
    def finish(self, total: Sums) -> tuple[list[Tensor | None], list[Tensor]]:
        """Apply the changes of buffers, and return the gradients and the losses of the whole batch.

        Args:
            total: The sums over all shards, the same in every process. The gradients are in its memory.
        """
        vectors = dict(zip(self._sizes, total.vectors, strict=True))
        cut = {
            kind: iter(vector.split([*(size for each, size in self._fields if each is kind), self._padding[kind]]))
            for kind, vector in vectors.items()
        }
        parts = [next(cut[kind]) for kind, _ in self._fields]
        number = len(self._parameters)
        known = parts[number].tolist()
        gradients = [
            part.view(parameter.shape) if shards else None
            for parameter, part, shards in zip(self._parameters, parts, known, strict=False)
        ]
        for group, change in zip((*self._averaged, *self._counters), parts[number + 1 : -1], strict=True):
            group.set(group.before + change.to(group.before.dtype))
        return gradients, list(parts[-1].clone())


def _is_counter(buffer: Tensor) -> bool:
    whole = not (buffer.is_floating_point() or buffer.is_complex() or buffer.dtype == torch.bool)
    return whole and buffer.numel() <= _MOST_COUNTED


def sum_of_processes(nodes: Mapping[tuple[int, int], Sums], shards: int, rank: int, processes: int) -> Sums:
    """Add up what all processes have; every one must take part, and gets the same bits.

    Each process adds up one part of the numbers, in the order of the tree, and gives the sums to the others. Bytes are
    exchanged, not numbers: no library adds anything.

    Args:
        nodes: The largest nodes of the tree that lie within the shards of this process, in order.
        shards: The number of all shards.
        rank: The number of this process.
        processes: The number of processes.
    """
    if processes == 1:
        return next(iter(nodes.values()))
    held = shards // processes
    of_all = [nodes_within(each * held, (each + 1) * held, shards) for each in range(processes)]
    pool, total = next(iter(nodes.values())).pool, []
    for kind in range(len(next(iter(nodes.values())).vectors)):
        ours = [sums.vectors[kind] for sums in nodes.values()]
        total.append(_sum_of_vectors(ours, of_all, shards, rank, pool))
        pool.give(ours)
    return Sums(total, pool)


def _sum_of_vectors(
    ours: Sequence[Tensor], of_all: Sequence[Sequence[tuple[int, int]]], shards: int, rank: int, pool: Pool
) -> Tensor:
    """Add up vectors of all processes, one for each of their nodes."""
    processes, kind, device = len(of_all), ours[0].dtype, ours[0].device
    size, others = len(ours[0]) // processes, [other for other in range(processes) if other != rank]
    memory = {other: pool.take(kind, size * len(of_all[other]), device) for other in others}
    # To each process goes its part of each of our nodes.
    cut = [vector.view(processes, size) for vector in ours]
    sent = {other: cut[0][other] if len(cut) == 1 else torch.stack([each[other] for each in cut]) for other in others}
    _exchange(sent, memory)
    parts = dict(zip(of_all[rank], (each[rank] for each in cut), strict=True))
    for other in others:
        parts |= zip(of_all[other], memory[other].view(-1, size), strict=True)
    total = sum_in_tree(0, shards, lambda first, end: parts.get((first, end)))
    whole = pool.take(kind, size * processes, device)
    rows = whole.view(processes, size)
    rows[rank].copy_(total)
    _exchange(dict.fromkeys(others, rows[rank]), {other: rows[other] for other in others})
    pool.give(memory.values())
    return whole


def _exchange(sent: Mapping[int, Tensor], received: Mapping[int, Tensor]) -> None:
    """Send to each other process what is meant for it, and receive what it has sent.

    From one process to another: gloo takes several times as long for `all_to_all` and `all_gather`.
    """
    operations = [dist.P2POp(dist.isend, tensor.view(torch.uint8), other) for other, tensor in sent.items()]
    operations += [dist.P2POp(dist.irecv, tensor.view(torch.uint8), other) for other, tensor in received.items()]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
