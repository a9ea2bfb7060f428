"""The origin of a backbone's initial weights: chosen once, recorded, and repeated by a replay.

A weights file is read without executing code, and loaded into a backbone strictly.
"""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from autotimm.errors import WeightsError, join_names, require
from autotimm.models.backbone.architectures import Architecture, find_architecture
from autotimm.models.backbone.hub import cached_file, cached_url, download_file, download_url, hub_state
from autotimm.records.digest import file_digest

__all__ = [
    "RANDOM", "RANDOM_BY_CHOICE", "RANDOM_BY_RECORD", "SUFFIXES", "Weights", "as_recorded", "load_weights",
    "read_weights", "resolve_weights"
]  # fmt: skip


RANDOM = "random"
RANDOM_BY_CHOICE = "weights: random (pretrained is off)"
"""The note of random weights that were asked for."""
RANDOM_BY_RECORD = "weights: random (as recorded)"
"""The note of random weights that a replay is told to take."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
# Wrappers of other trainers put these before the name of every tensor. No backbone of timm has them itself.
_PREFIXES = ("model.", "net.", "module.", "_orig_mod.", "student.", "teacher.")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Weights:
    """The origin of a backbone's initial weights.

    Attributes:
        source: ``"random"``, ``"cache"``, ``"hub"`` or ``"file"``; ``"run"`` for those of another run, which a run that
            trains on from it keeps.
        sha256: Digest of the weights file or of the checkpoint; ``None`` for random weights.
        file: Path of the file on this machine, which is not stored in checkpoints; ``None`` for random weights.
        note: Description in one line, for the header of a run.
        architecture: For ``hf-hub:`` names, the architecture stored in the repository; see
            :func:`autotimm.models.remember_architecture`.
    """

    source: str = RANDOM
    sha256: str | None = None
    file: str | None = None
    note: str = "weights: random"
    architecture: dict[str, Any] | None = None

    @property
    def pretrained(self) -> bool:
        """Whether the weights are not random."""
        return self.source != RANDOM

    @property
    def recorded(self) -> str:
        """The value of ``expected_sha256`` for a replay: the digest, or ``"random"``."""
        return self.sha256 or RANDOM

    def as_dict(self) -> dict[str, Any]:
        """Convert to a dictionary of plain data, for a checkpoint or a manifest, without ``file``."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "note": self.note,
            "architecture": self.architecture,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Weights:
        """Create an object from the result of :meth:`as_dict`; fields of a later version are left out."""
        known = [name for name in ("source", "sha256", "note", "architecture") if name in data]
        return cls(**{name: data[name] for name in known})


class _Record(NamedTuple):
    weights: Weights
    file_needed: bool


# A context variable, since a task resolves its weights in its constructor, which a replay calls with recorded options.
_RECORDED: ContextVar[_Record | None] = ContextVar("recorded", default=None)


@contextmanager
def as_recorded(weights: Weights, file_needed: bool = True) -> Iterator[None]:
    """Make :func:`resolve_weights` return the weights that an earlier run recorded.

    Args:
        weights: The recorded weights.
        file_needed: Whether the file must be available, with the recorded digest. ``False`` if the weights are loaded
            from a checkpoint afterwards.
    """
    token = _RECORDED.set(_Record(weights, file_needed))
    try:
        yield
    finally:
        _RECORDED.reset(token)


def resolve_weights(
    backbone: str, pretrained: bool | str | os.PathLike[str] | None = None, *, expected_sha256: str | None = None
) -> Weights:
    """Choose the initial weights of a backbone, and download them if necessary.

    The cache of ``huggingface_hub`` (or of ``torch.hub``, for the few models that are hosted elsewhere) is searched
    first. The hub is contacted only for files that are not cached, after one probe of at most three seconds per
    process.

    Args:
        backbone: Name of the backbone, see :func:`autotimm.models.find_architecture`.
        pretrained: ``None`` uses pretrained weights if they are available and random ones otherwise; ``True`` requires
            pretrained weights; ``False`` uses random ones; a path uses that file (.safetensors, .pth, .pt, .bin, .ckpt
            or .tar; read with ``weights_only=True``).
        expected_sha256: The value that an earlier run recorded, :attr:`Weights.recorded`. ``"random"`` returns random
            weights whatever ``pretrained`` is; with a digest, the file must match it.

    Returns:
        The weights. Their file has been downloaded.

    Raises:
        ModelError: If the backbone is unknown.
        WeightsError: If required weights are not available, or differ from the expected ones.
        UsageError: If ``pretrained`` has another type.

    Example:
        >>> resolve_weights("test_resnet", pretrained=False).note
        'weights: random (pretrained is off)'
    """
    if (record := _RECORDED.get()) is not None:
        if not record.file_needed or (record.weights.recorded == RANDOM and expected_sha256 in (None, RANDOM)):
            return record.weights
        expected_sha256 = expected_sha256 or record.weights.recorded
    valid = isinstance(pretrained, (bool, str, os.PathLike, type(None)))
    do = "None uses pretrained weights if they are available."
    require(valid, "pretrained", backbone, "True, False, None or the path of a file", pretrained, do)
    architecture = find_architecture(backbone)
    hub_architecture = architecture.as_dict() if architecture.repo else None
    if expected_sha256 == RANDOM:
        return Weights(note=RANDOM_BY_RECORD, architecture=hub_architecture)
    if isinstance(pretrained, (str, os.PathLike)):
        path, source = _check_file(Path(pretrained).expanduser()), "file"
    elif pretrained is False and expected_sha256 is None:
        return Weights(note=RANDOM_BY_CHOICE, architecture=hub_architecture)
    else:
        try:
            path, source = _fetch(architecture)
        except WeightsError as error:
            if pretrained or expected_sha256:
                raise
            return Weights(note=f"weights: random ({_reason(error)})", architecture=hub_architecture)
    digest = file_digest(path)
    if expected_sha256 not in (None, digest):
        raise WeightsError(
            f"The weights of {backbone} must have the recorded sha256 {expected_sha256}. {path.name} has {digest}. "
            "Give the path of the original file as `pretrained`."
        )
    if record is not None and digest == record.weights.sha256:
        return replace(record.weights, file=str(path))  # a run that starts over has the record of one that did not
    origin = path.name if source == "file" else _location(architecture)
    stripped = _prefix_of(path) if source == "file" else ""
    without = f", without the prefix {stripped!r} of its names" if stripped else ""
    note = f"weights: {origin} ({source}, sha256 {digest[:12]}{without})"
    return Weights(source, digest, str(path), note, hub_architecture)


class _UnavailableError(WeightsError):
    """Weights are not available. ``reason`` is the message without the advice, for the header of a run."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"The pretrained weights are not available: {reason}. {advice}")
        self.reason = reason


def _reason(error: WeightsError) -> str:
    return error.reason if isinstance(error, _UnavailableError) else str(error).partition(". ")[0]


def _check_file(path: Path) -> Path:
    if not os.path.isfile(path):
        raise WeightsError(f"There is no weights file {path}. Check the path, or leave `pretrained` out.")
    if path.suffix not in SUFFIXES:
        raise WeightsError(
            f"The name of the weights file {path} must end in one of {', '.join(SUFFIXES)}. It ends in "
            f"{path.suffix!r}. Save the weights as safetensors."
        )
    return path


def _location(architecture: Architecture) -> str:
    """Return the hub repository or the URL of the pretrained weights; an empty string if there are none."""
    config = architecture.config
    return str(architecture.repo or config.get("hf_hub_id") or config.get("url") or "")


def _hub_files(config: Mapping[str, Any]) -> list[str]:
    """Return the file names to try, in timm's order, safetensors first."""
    override = config.get("hf_hub_filename")
    if not override:
        return list(_HUB_FILES)
    return [*([override[:-4] + ".safetensors"] if override.endswith(".bin") else []), override]


def _fetch(architecture: Architecture) -> tuple[Path, str]:
    """Return the file with the pretrained weights and its source, ``"cache"`` or ``"hub"``."""
    location, config = _location(architecture), architecture.config
    if not location:
        raise _UnavailableError(
            f"timm has no pretrained weights for {architecture.name}",
            "Use pretrained=None or False, or choose one of `list_backbones(pretrained=True)`.",
        )
    is_url = location.startswith(("http://", "https://"))
    files = _hub_files(config if architecture.repo is None else {})
    cached = cached_url(location) if is_url else cached_file(location, files)
    if cached is not None:
        return cached, "cache"
    if reason := hub_state():
        raise _UnavailableError(
            f"{location.rpartition('/')[2]} is not cached and {reason}",
            "Connect to the hub once, give the path of a weights file as `pretrained`, or use pretrained=None or "
            "False.",
        )
    return (download_url(location) if is_url else download_file(location, files)), "hub"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file. Pickles are read with ``weights_only=True`` and cannot execute code.

    The file may be a dictionary of tensors, have one under ``state_dict`` or ``model`` as training scripts save it, or
    be a checkpoint or an exported file of autotimm, of which the weights of ``backbone`` are read. A prefix that other
    trainers put before all names, such as ``model.``, ``module.`` or ``student.``, is left out.

    Args:
        path: A .safetensors file, or one written by ``torch.save``.

    Returns:
        The tensors by name.

    Raises:
        WeightsError: If the file is damaged, contains no tensors, or contains objects other than plain data.
    """
    return _read(path).tensors


class _Read(NamedTuple):
    """The tensors of a weights file by name, and the prefix that is left out of all names."""

    tensors: dict[str, Tensor]
    prefix: str


def _read(path: Path) -> _Read:
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
    if not tensors:
        raise WeightsError(f"The weights file {path} contains no dictionary of tensors. Save `model.state_dict()`.")
    prefix = _shared_prefix(tensors)
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    for part in ("network.backbone.", "backbone."):
        if inner := {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}:
            tensors = inner
    return _Read(tensors, prefix)


def _shared_prefix(names: Collection[str]) -> str:
    """The known prefixes that all names have, one after the other."""
    shared = ""
    while prefix := next((known for known in _PREFIXES if all(name.startswith(shared + known) for name in names)), ""):
        shared += prefix
    return shared


def _prefix_of(path: Path) -> str:
    """The prefix that is left out of a file's names; empty for a file that cannot be read, which is reported later."""
    try:
        return _read(path).prefix
    except WeightsError:
        return ""


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
        _check_grid(backbone, arguments)
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


def _check_grid(backbone: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Refuse a grid of patches that is no square but has as many patches as one.

    Position embeddings of another grid are resampled, which timm knows by their number alone. Of as many, those of a
    square would be taken for those of the grid, row after row.
    """
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    if "pos_embed" not in backbone.state_dict() or not grid or grid[0] == grid[1]:
        return
    if math.isqrt(grid[0] * grid[1]) ** 2 == grid[0] * grid[1]:
        side = math.isqrt(grid[0] * grid[1])
        raise WeightsError(
            f"The `image_size` {arguments.get('img_size')} has {grid[0]} x {grid[1]} patches, as many as a square of "
            f"{side} x {side}, so that the position embeddings of the weights cannot be told from those of the "
            "square. Give another size, or pretrained=False."
        )


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
