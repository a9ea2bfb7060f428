"""Read a weights file without executing code, and load it into a backbone strictly."""

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

from autotimm.errors import WeightsError, join_names
from autotimm.models.backbone.architectures import Architecture

__all__ = ["load_weights", "read_weights"]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file. Pickles are read with ``weights_only=True`` and cannot execute code.

    The file may be a dictionary of tensors, have one under ``state_dict`` or ``model`` as training scripts save it, or
    be a checkpoint or an exported file of autotimm, of which the weights of ``backbone`` are read.

    Args:
        path: A .safetensors file, or one written by ``torch.save``.

    Returns:
        The tensors by name.

    Raises:
        WeightsError: If the file is damaged, contains no tensors, or contains objects other than plain data.
    """
    try:
        state: Mapping[str, Any] = load_state_dict(str(path), use_ema=True, device="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, SafetensorError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"The weights file {path} cannot be read: {reason}. It must be complete and contain tensors and plain data "
            "only. Use a file from a source that you trust, preferably .safetensors."
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError):  # readable, but not a dictionary of tensors
        state = {}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in ("network.backbone.", "backbone."):
        if inner := {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}:
            tensors = inner
    if not tensors:
        raise WeightsError(f"The weights file {path} contains no dictionary of tensors. Save `model.state_dict()`.")
    return tensors


def load_weights(backbone: nn.Module, path: Path, architecture: Architecture, arguments: Mapping[str, Any]) -> None:
    """Load a weights file into a backbone without a classifier.

    A classifier in the file is ignored, and may be missing. timm resamples position embeddings to the backbone's image
    size and translates the names of other code bases.

    Args:
        backbone: The module to fill, from :func:`autotimm.models.backbone.model_args.create`.
        path: A file that :func:`read_weights` can read.
        architecture: The architecture of the backbone.
        arguments: The arguments that the backbone was created with.

    Raises:
        WeightsError: If keys are missing or unexpected, or shapes differ.
    """
    state, expected = read_weights(path), backbone.state_dict()
    with torch.device("meta"):
        complete = _with_classifier(architecture, arguments).state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in complete]
    if not missing and not unexpected and all(state[name].shape == expected[name].shape for name in expected):
        backbone.load_state_dict({name: state[name] for name in expected})
        return
    if missing and not unexpected:  # no foreign names that timm could translate
        raise WeightsError(_mismatch(path, architecture, missing, unexpected))
    # timm loads strictly, and its checkpoint filters recognize their format, only with a classifier that fits.
    for name, value in complete.items():
        if name not in expected and (name not in state or state[name].shape != value.shape):
            state[name] = torch.zeros(value.shape, dtype=value.dtype)
    try:
        loaded = _with_classifier(architecture, arguments, state).state_dict()
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        reason = "" if missing or unexpected else f" ({str(error).strip().splitlines()[-1].strip()})"
        raise WeightsError(_mismatch(path, architecture, missing, unexpected) + reason) from None
    backbone.load_state_dict({name: loaded[name] for name in expected})


def _with_classifier(
    architecture: Architecture, arguments: Mapping[str, Any], state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Create the model with its original classifier and, if ``state`` is given, let timm load these weights."""
    source = {} if state is None else {"state_dict": state, "label_offset": 0}
    classes = {"num_classes": architecture.config.get("num_classes", 1000)}
    model: nn.Module = timm.create_model(
        architecture.timm_name,
        pretrained=state is not None,
        pretrained_cfg_overlay={**architecture.overlay, **source},
        **{**arguments, **classes},
    )
    return model


def _mismatch(path: Path, architecture: Architecture, missing: list[str], unexpected: list[str]) -> str:
    differences = [
        f"{verb} {join_names(names)}" for verb, names in (("lacks", missing), ("also has", unexpected)) if names
    ]
    return (
        f"The weights file {path} does not fit {architecture.name}: it "
        f"{' and '.join(differences) or 'has other shapes'}. Give the backbone that the file was saved from."
    )
