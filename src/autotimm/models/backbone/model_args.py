"""Choose the arguments of ``timm.create_model`` for an image size, and measure the shapes of a model's output.

Models are created and run on torch's meta device, so that shapes are checked before any weight is allocated.
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
from autotimm.image_size import ImageSize, height_and_width, read_image_size, written_size
from autotimm.models.backbone.architectures import Architecture

__all__ = ["at_size", "create", "fitting_arguments", "measure_features", "remembered"]

Result = TypeVar("Result")

# timm's models raise any of these for an image size that they do not support.
_SIZE_ERRORS = (AssertionError, RuntimeError, ValueError, ZeroDivisionError, IndexError)
_STEPS = (32, 16, 14, 64)  # usual strides and patch sizes, of which image sizes must be multiples


def create(architecture: Architecture, arguments: dict[str, Any]) -> nn.Module:
    """Create the model without its classifier, with random weights from the global generators."""
    model: nn.Module = timm.create_model(
        architecture.timm_name, num_classes=0, pretrained_cfg_overlay=architecture.overlay, **arguments
    )
    return model


def fitting_arguments(
    architecture: Architecture, image_size: ImageSize | None, drop_path_rate: float, in_chans: int = 3
) -> dict[str, Any]:
    """Choose the arguments of ``timm.create_model`` for an image size and stochastic depth.

    Args:
        architecture: The architecture of the model.
        image_size: Size of the images in pixels; ``None`` is the model's own size.
        drop_path_rate: Probability in [0, 1) of skipping a residual block.
        in_chans: Channels of the images.

    Raises:
        UsageError: If ``drop_path_rate`` is above 0 and the model does not support stochastic depth.
    """
    arguments = {**architecture.arguments, **({} if in_chans == 3 else {"in_chans": in_chans})}
    known = remembered("parameters", architecture, arguments, None, lambda: _parameter_names(architecture, arguments))
    if "img_size" in known and image_size is not None:
        arguments["img_size"] = image_size
    # Lets position embeddings (ViT) or windows (Swin) adapt to images of another size.
    for flexible, value in (("strict_img_size", False), ("dynamic_img_size", True)):
        if flexible in known:
            arguments[flexible] = value
            break
    if drop_path_rate:
        arguments["drop_path_rate"] = drop_path_rate
        _check_drop_path(architecture, arguments)
    return arguments


_KNOWN: dict[tuple[str, str], Any] = {}


def remembered(
    what: str, architecture: Architecture, arguments: dict[str, Any], image_size: ImageSize | None,
    find: Callable[[], Result],
) -> Result:  # fmt: skip
    """Find something out about a model, once per process if it is one of timm's own: another may be defined anew."""
    name = architecture.timm_name
    if not timm.is_model(name) or not timm.model_entrypoint(name).__module__.startswith("timm."):
        return find()
    key = what, repr((architecture, sorted(arguments.items()), image_size))
    if key not in _KNOWN:
        _KNOWN[key] = find()
    found: Result = _KNOWN[key]
    return found


def _parameter_names(architecture: Architecture, arguments: dict[str, Any]) -> frozenset[str]:
    """Return the argument names of a model's class and of its base classes."""
    with torch.device("meta"):
        model = create(architecture, arguments)
    inits = [vars(cls)["__init__"] for cls in type(model).__mro__ if "__init__" in vars(cls)]
    return frozenset(name for init in inits for name in inspect.signature(init).parameters)


def _check_drop_path(architecture: Architecture, arguments: dict[str, Any]) -> None:
    try:
        with torch.device("meta"):
            supported = any(isinstance(module, DropPath) for module in create(architecture, arguments).modules())
    except TypeError:
        supported = False
    if not supported:
        do = "It has no stochastic depth; use `head_dropout`, or another backbone."
        raise UsageError(sentence("drop_path_rate", architecture.name, "0", arguments["drop_path_rate"], do))


def at_size(
    architecture: Architecture,
    arguments: dict[str, Any],
    image_size: ImageSize | None,
    run: Callable[[nn.Module, Tensor], Result],
) -> Result:
    """Create the model on the meta device and run it on images of one size, to get shapes without computation.

    Args:
        architecture: The architecture of the model.
        arguments: Arguments of ``timm.create_model``, see :func:`fitting_arguments`.
        image_size: Size of the images in pixels; ``None`` is the model's own size.
        run: Takes the model, in evaluation mode, and two images. It may raise ``ValueError`` for an unsupported size.

    Returns:
        The result of ``run``.

    Raises:
        ModelError: If the model does not support this image size. The message suggests the nearest sizes.
    """
    default_size = int((architecture.config.get("input_size") or (3, 224, 224))[-1])
    size: ImageSize = image_size or arguments.get("img_size") or default_size

    def attempt(size: ImageSize) -> Result:
        fitted = {**arguments, "img_size": size} if "img_size" in arguments else arguments
        with torch.device("meta"), torch.no_grad():
            images = torch.empty(2, arguments.get("in_chans", 3), *height_and_width(size))
            return run(create(architecture, fitted).eval(), images)

    try:
        return attempt(size)
    except _SIZE_ERRORS as error:
        sizes = _supported_sizes(attempt, size, default_size)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not sizes:
            raise ModelError(f"The `backbone` {architecture.name} cannot run: {reason}. Choose another.") from None
        suggestions = " or ".join(map(written_size, sizes))
        raise ModelError(
            f"The `backbone` {architecture.name} does not support an `image_size` of {written_size(size)} ({reason}). "
            f"Give {suggestions}."
        ) from None


def _supported_sizes(attempt: Callable[[ImageSize], object], size: ImageSize, default_size: int) -> list[ImageSize]:
    """Search for the nearest supported image sizes below and above, among a few candidates."""
    height, width = height_and_width(size)
    multiples = {
        (step * (height // step + more), step * (width // step + more)) for step in _STEPS for more in (0, 1, 2)
    } | {(default_size, default_size), (2 * height, 2 * width)}
    nearest: dict[bool, tuple[int, int]] = {}
    for candidate in sorted(multiples, key=lambda sides: (abs(sides[0] - height) + abs(sides[1] - width), sides)):
        larger = sum(candidate) > height + width
        if larger in nearest or 0 in candidate or candidate == (height, width):
            continue
        try:
            attempt(read_image_size(candidate))
        except (*_SIZE_ERRORS, ModelError):
            continue
        nearest[larger] = candidate
    return [read_image_size(nearest[larger]) for larger in (False, True) if larger in nearest]


def measure_features(architecture: Architecture, arguments: dict[str, Any], image_size: ImageSize | None) -> int:
    """Measure the number of features D of a model for images of one size.

    Args:
        architecture: The architecture of the model.
        arguments: Arguments of ``timm.create_model``, see :func:`fitting_arguments`.
        image_size: Size of the images in pixels; ``None`` is the model's own size.

    Raises:
        ModelError: If the output is not (N, D), or the model does not support this image size.
    """
    return remembered(
        "features", architecture, arguments, image_size, lambda: _measured(architecture, arguments, image_size)
    )


def _measured(architecture: Architecture, arguments: dict[str, Any], image_size: ImageSize | None) -> int:
    output = at_size(architecture, arguments, image_size, lambda model, images: model(images))
    shape = tuple(getattr(output, "shape", ()))
    if len(shape) != 2:
        got = f"features of shape (N, {', '.join(map(str, shape[1:]))})" if shape else type(output).__name__
        raise ModelError(
            f"The `backbone` {architecture.name} must pool to a vector per image. Got {got} instead. Choose another; "
            "`list_backbones()` lists them."
        )
    return int(shape[1])
