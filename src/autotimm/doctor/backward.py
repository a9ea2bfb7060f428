"""A backward pass in Python, for fake CUDA tensors on a machine without a GPU.

torch's autograd engine asks the device for its context and its stream first, and fails without a GPU
("hasPrimaryContext expects a valid device index"). The nodes of the graph do not ask the device, so they are called one
by one here. On CPU tensors the gradients equal those of the engine bit for bit, as the tests check.

Experimental: nodes, their metadata and their order are no public interface of torch, and a new release may change them.
torch's own tracer of both passes, AOTAutograd's joint graph, does not reach as far (torch 2.14, tried on every
architecture of the tests). It calls the same engine, so that fake CUDA tensors fail without a GPU. On fake CPU tensors
it shows the operators of the CPU, decomposes the backward pass of bicubic and linear interpolation, so that two of the
sixteen raising operations in the tests are missed, and fails in each step that branches on values, as those of all
detectors do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

__all__ = ["backward"]

_LEAF = "torch::autograd::AccumulateGrad"


def backward(loss: Tensor, before: Callable[[Node], None] = lambda node: None) -> None:
    """Set the ``grad`` of every leaf, as ``loss.backward()`` does. Hooks on tensors are not called.

    Args:
        loss: A scalar.
        before: Called with each node before it runs.
    """
    if loss.grad_fn is None:
        return
    waiting = _consumers(loss.grad_fn)
    arrived: dict[Node, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            before(node)
            outputs = _run(node, arrived.pop(node, {}))
            for output, (target, slot) in zip(outputs, node.next_functions, strict=False):
                if target is None:
                    continue
                if output is not None:
                    _add(arrived.setdefault(target, {}), slot, _fitted(output, target, slot))
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)


def _consumers(start: Node) -> dict[Node, int]:
    """The number of edges that lead to each node."""
    edges: dict[Node, int] = defaultdict(int)
    seen, stack = {start}, [start]
    while stack:
        for target, _ in stack.pop().next_functions:
            if target is not None:
                edges[target] += 1
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
    return edges


def _run(node: Node, gradients: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """Call a node with the gradients that have arrived; without any, it passes none on."""
    unchecked: Any = node
    if node.name() == _LEAF:
        if gradients:
            leaf = unchecked.variable
            leaf.grad = gradients[0] if leaf.grad is None else leaf.grad + gradients[0]
        return ()
    if not gradients:
        return (None,) * len(node.next_functions)
    arguments = [gradients.get(slot) for slot in range(len(unchecked._input_metadata))]
    # The node of a torch.autograd.Function is not callable; its `apply` runs the backward function.
    outputs = unchecked.apply(*arguments) if isinstance(unchecked, BackwardCFunction) else unchecked(*arguments)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _fitted(gradient: Tensor, target: Node, slot: int) -> Tensor:
    """Undo broadcasting and promotion, as the engine does between two nodes."""
    unchecked: Any = target
    expected = unchecked._input_metadata[slot]
    if gradient.shape != expected.shape:
        gradient = gradient.sum_to_size(expected.shape)
    return gradient if gradient.dtype == expected.dtype else gradient.to(expected.dtype)


def _add(gradients: dict[int, Tensor], slot: int, gradient: Tensor) -> None:
    gradients[slot] = gradients[slot] + gradient if slot in gradients else gradient
