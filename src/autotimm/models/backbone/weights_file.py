"""Read a file of weights safely and put it into a backbone, completely or not at all."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from autotimm.errors import WeightsError
from autotimm.models.backbone.architectures import Architecture

__all__ = ["load_weights", "read_weights"]

_SHOWN = 5


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, never code: pickles are read with ``weights_only=True``.

    The file may hold them bare, under ``state_dict`` or ``model`` as training scripts save them, or be a checkpoint or
    an exported file of autotimm, of which the part named ``backbone`` is taken.

    Args:
        path: A .safetensors file, or a file of ``torch.save``.

    Raises:
        WeightsError: If the file is damaged, holds no tensors, or would run code.
    """
    try:
        state: Mapping[str, Any] = load_state_dict(str(path), use_ema=True, device="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, SafetensorError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"The weights file {path} must hold tensors and plain data only, and be whole. It could not be read "
            f"({reason}). Use a file that you trust, best a .safetensors."
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError):  # readable, but no dictionary of tensors
        state = {}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in ("network.backbone.", "backbone."):
        if inner := {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}:
            tensors = inner
    if not tensors:
        raise WeightsError(
            f"The weights file {path} must hold a dictionary of tensors. It does not. Save `model.state_dict()`."
        )
    return tensors


def load_weights(backbone: nn.Module, path: Path, architecture: Architecture, arguments: Mapping[str, Any]) -> None:
    """Put the weights of a file into a backbone without a classifier.

    A classifier in the file is ignored, and may be absent. Position embeddings are resampled to the backbone's image
    size, and foreign names are translated, by timm.

    Args:
        backbone: The module to fill, made by :func:`autotimm.models.backbone.model_args.create`.
        path: A file that :func:`read_weights` can read.
        architecture: What the backbone is.
        arguments: The arguments that the backbone was made with.

    Raises:
        WeightsError: If keys are missing or unexpected, or shapes do not fit.
    """
    state, wanted = read_weights(path), backbone.state_dict()
    with torch.device("meta"):
        whole = _with_classifier(architecture, arguments).state_dict()
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in whole]
    if not missing and not unexpected and all(state[name].shape == wanted[name].shape for name in wanted):
        backbone.load_state_dict({name: state[name] for name in wanted})
        return
    if missing and not unexpected:  # not names that timm could translate, just not all of them
        raise WeightsError(_misfit(path, architecture, missing, unexpected))
    # With a classifier of the right shape timm loads strictly, and its filters recognize their own format by it.
    for name, value in whole.items():
        if name not in wanted and (name not in state or state[name].shape != value.shape):
            state[name] = torch.zeros(value.shape, dtype=value.dtype)
    try:
        filled = _with_classifier(architecture, arguments, state).state_dict()
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        reason = "" if missing or unexpected else f" ({str(error).strip().splitlines()[-1].strip()})"
        raise WeightsError(_misfit(path, architecture, missing, unexpected) + reason) from None
    backbone.load_state_dict({name: filled[name] for name in wanted})


def _with_classifier(
    architecture: Architecture, arguments: Mapping[str, Any], state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """The model as it was trained, with its classifier, and with the given weights as timm would load them."""
    source = {} if state is None else {"state_dict": state, "label_offset": 0}
    classes = {"num_classes": architecture.config.get("num_classes", 1000)}
    model: nn.Module = timm.create_model(
        architecture.timm_name,
        pretrained=state is not None,
        pretrained_cfg_overlay={**architecture.overlay, **source},
        **{**arguments, **classes},
    )
    return model


def _misfit(path: Path, architecture: Architecture, missing: list[str], unexpected: list[str]) -> str:
    found = [f"{what} {_shown(names)}" for what, names in (("lacks", missing), ("also has", unexpected)) if names]
    return (
        f"The weights file {path} must fit {architecture.name}. It {' and '.join(found) or 'has other shapes'}. "
        "Give the backbone that the file was saved from."
    )


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
