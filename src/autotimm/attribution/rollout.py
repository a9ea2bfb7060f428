"""Attention rollout: how much of each patch has reached the output through all layers of attention.

Abnar and Zuidema, "Quantifying attention flow in transformers", ACL 2020. captum has no such method.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autotimm.attribution.feature_taps import grid_of
from autotimm.errors import UsageError

__all__ = ["attention_rollout", "has_attention"]

_NEED = "The method attention-rollout needs a ViT whose blocks all look at the whole image."


def has_attention(backbone: nn.Module) -> bool:
    """Whether a backbone has layers of attention at all."""
    return bool(_layers(backbone))


def _layers(backbone: nn.Module) -> list[nn.Module]:
    """The layers of attention as timm builds them: their weights are the input of ``attn_drop``."""
    return [
        module
        for module in backbone.modules()
        if hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module)
    ]


@torch.no_grad()
def attention_rollout(network: nn.Module, backbone: nn.Module, image: Tensor) -> Tensor:
    """Multiply the attention of all blocks, each the mean over heads and half of it the shortcut.

    Args:
        network: The network, which is run once.
        backbone: The part of it with the attention.
        image: The input, (1, C, H, W).

    Returns:
        The share of each patch in what the class token is made of, or in the mean over the patches of a network without
        one, (h, w).

    Raises:
        UsageError: If the backbone has no attention, or its layers of attention do not see the whole image.
    """
    layers = _layers(backbone)
    if not layers:
        raise UsageError(f"{_NEED} {type(backbone).__name__} has no attention. Take gradcam.")
    weights: list[Tensor] = []
    with _unfused(layers, weights):
        network(image)
    height, width = image.shape[-2:]
    grid = grid_of(weights[0].shape[-1], height, width) if weights else None
    square = all(each.ndim == 4 and len(each) == 1 and each.shape[-2:] == weights[0].shape[-2:] for each in weights)
    if grid is None or not square or weights[0].shape[-1] != weights[0].shape[-2]:
        raise UsageError(f"{_NEED} Those of {type(backbone).__name__} look at parts of it. Take gradcam.")
    prefix, rows, columns = grid
    tokens = weights[0].shape[-1]
    rollout = torch.eye(tokens, dtype=torch.float64, device=image.device)
    for layer in weights:
        attention = layer[0].double().mean(dim=0) + torch.eye(tokens, dtype=torch.float64, device=image.device)
        rollout = attention / attention.sum(dim=-1, keepdim=True) @ rollout
    reached = rollout[0, prefix:] if prefix else rollout.mean(dim=0)
    return reached.reshape(rows, columns).float()


@contextmanager
def _unfused(layers: list[nn.Module], weights: list[Tensor]) -> Iterator[None]:
    """Let the layers compute their weights one by one and collect them, as fused kernels never hold them."""

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        weights.append(inputs[0].detach())

    before = [layer.fused_attn for layer in layers]
    handles = [layer.get_submodule("attn_drop").register_forward_pre_hook(note) for layer in layers]
    for layer in layers:
        vars(layer)["fused_attn"] = False
    try:
        yield
    finally:
        for layer, fused, handle in zip(layers, before, handles, strict=True):
            vars(layer)["fused_attn"] = fused
            handle.remove()
