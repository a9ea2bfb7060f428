"""Make a timm model fit an image size, and measure what comes out, without computing anything.

Everything here runs on torch's meta device: shapes are checked in milliseconds, before any weight is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import timm
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from autotimm.errors import ModelError, UsageError, sentence
from autotimm.models.backbone.architectures import Architecture

__all__ = ["at_size", "create", "fitting_arguments", "measure_features"]

# timm's models fail on an image size that they cannot take in these ways, deep inside.
_SIZE_ERRORS = (AssertionError, RuntimeError, ValueError, ZeroDivisionError, IndexError)
Result = TypeVar("Result")
_STEPS = (32, 16, 14, 64)  # strides and patch sizes that image sizes must usually be a multiple of


def create(architecture: Architecture, arguments: dict[str, Any]) -> nn.Module:
    """Make the model without a classifier, with random weights from the global generators."""
    model: nn.Module = timm.create_model(
        architecture.timm_name, num_classes=0, pretrained_cfg_overlay=architecture.overlay, **arguments
    )
    return model


def _parameters(model: nn.Module) -> set[str]:
    """Names of all arguments that a model's class takes, those of its base classes included."""
    own = [vars(cls)["__init__"] for cls in type(model).__mro__ if "__init__" in vars(cls)]
    return {name for init in own for name in inspect.signature(init).parameters}


def fitting_arguments(architecture: Architecture, image_size: int | None, drop_path_rate: float) -> dict[str, Any]:
    """Choose the arguments of ``timm.create_model`` for an image size and stochastic depth.

    Args:
        architecture: What to build.
        image_size: Side of the square images in pixels; ``None`` is the model's own.
        drop_path_rate: Probability of skipping a residual block.

    Raises:
        UsageError: If stochastic depth is asked for and the model has none.
    """
    arguments = dict(architecture.arguments)
    with torch.device("meta"):
        known = _parameters(create(architecture, arguments))
    if "img_size" in known and image_size is not None:
        arguments["img_size"] = image_size
    # Lets position embeddings (ViT) or windows (Swin) follow images of another size than the one said here.
    for flexible, value in (("strict_img_size", False), ("dynamic_img_size", True)):
        if flexible in known:
            arguments[flexible] = value
            break
    if drop_path_rate:
        arguments["drop_path_rate"] = drop_path_rate
        _check_drop_path(architecture, arguments)
    return arguments


def _check_drop_path(architecture: Architecture, arguments: dict[str, Any]) -> None:
    try:
        with torch.device("meta"):
            supported = any(isinstance(module, DropPath) for module in create(architecture, arguments).modules())
    except TypeError:
        supported = False
    if not supported:
        got, do = arguments["drop_path_rate"], "It has no stochastic depth; use `head_dropout`, or another backbone."
        raise UsageError(sentence("drop_path_rate", architecture.name, "0", got, do))


def at_size(
    architecture: Architecture,
    arguments: dict[str, Any],
    image_size: int | None,
    run: Callable[[nn.Module, Tensor], Result],
) -> Result:
    """Make the model for images of one size and run it on the meta device: shapes without numbers.

    Args:
        architecture: What to build.
        arguments: See :func:`fitting_arguments`.
        image_size: Side of the square images in pixels; ``None`` is the model's own.
        run: Takes the model, in evaluation mode, and two images. A ``ValueError`` that it raises speaks of the size.

    Returns:
        What ``run`` returned.

    Raises:
        ModelError: If the model cannot take images of this size; the nearest that it can take are given.
    """
    own = int((architecture.config.get("input_size") or (3, 224, 224))[-1])
    size = image_size or int(arguments.get("img_size") or own)

    def attempt(size: int) -> Result:
        fitted = {**arguments, "img_size": size} if "img_size" in arguments else arguments
        with torch.device("meta"), torch.no_grad():
            return run(create(architecture, fitted).eval(), torch.empty(2, 3, size, size))

    try:
        return attempt(size)
    except _SIZE_ERRORS as error:
        sizes = _sizes_that_work(attempt, size, own)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not sizes:
            raise ModelError(f"The `backbone` {architecture.name} must run. It does not ({reason}).") from None
        choice = " or ".join(map(str, sizes))
        raise ModelError(
            f"The `image_size` of {architecture.name} must suit it. Got {size} instead ({reason}). Give {choice}."
        ) from None


def measure_features(architecture: Architecture, arguments: dict[str, Any], image_size: int | None) -> int:
    """Measure the number of features D that a model gives for images of this size.

    Args:
        architecture: What to build.
        arguments: See :func:`fitting_arguments`.
        image_size: Side of the square images in pixels; ``None`` is the model's own.

    Raises:
        ModelError: If the model does not give (N, D) features, or cannot take images of this size.
    """
    output = at_size(architecture, arguments, image_size, lambda model, images: model(images))
    shape = tuple(getattr(output, "shape", ()))
    if len(shape) != 2:
        what = f"features of shape (N, {', '.join(map(str, shape[1:]))})" if shape else type(output).__name__
        raise ModelError(
            f"The `backbone` {architecture.name} must pool to a vector per image. It gives {what} instead. Choose "
            "another; `list_backbones()` lists them."
        )
    return int(shape[1])


def _sizes_that_work(attempt: Callable[[int], object], size: int, own: int) -> list[int]:
    """The nearest image sizes below and above that the model can take, as far as a short search finds them."""
    multiples = {step * (size // step + more) for step in _STEPS for more in (0, 1, 2)} | {own, 2 * size}
    found: dict[bool, int] = {}
    for candidate in sorted(multiples - {0, size}, key=lambda other: abs(other - size)):
        if (candidate > size) in found:
            continue
        try:
            attempt(candidate)
        except (*_SIZE_ERRORS, ModelError):
            continue
        found[candidate > size] = candidate
    return sorted(found.values())
