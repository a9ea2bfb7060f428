"""Where a backbone's first weights come from: decided once, recorded, and never decided again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.errors import WeightsError, require
from autotimm.models.backbone.architectures import Architecture, find_architecture
from autotimm.models.backbone.hub import cached_file, cached_url, download_file, download_url, hub_state
from autotimm.records.digest import file_digest

__all__ = ["RANDOM", "SUFFIXES", "Weights", "as_recorded", "resolve_weights"]

RANDOM = "random"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Weights:
    """Where the weights of a backbone come from.

    Attributes:
        source: ``"random"``, ``"cache"``, ``"hub"`` or ``"file"``.
        sha256: Digest of the file, ``None`` for random weights.
        file: The file on this machine. It never enters a checkpoint.
        note: One line for the header of a run.
        architecture: For ``hf-hub:`` names, what the repository said of its architecture; see
            :func:`autotimm.models.backbone.architectures.remember_architecture`.
    """

    source: str = RANDOM
    sha256: str | None = None
    file: str | None = None
    note: str = "weights: random"
    architecture: dict[str, Any] | None = None

    @property
    def pretrained(self) -> bool:
        """Whether the weights are anything but random."""
        return self.source != RANDOM

    @property
    def recorded(self) -> str:
        """What a replay passes as ``expected_sha256``: the digest, or ``"random"``."""
        return self.sha256 or RANDOM

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a manifest, without the path of this machine."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "note": self.note,
            "architecture": self.architecture,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Weights:
        """Undo :meth:`as_dict`."""
        return cls(**data)


class _Record(NamedTuple):
    weights: Weights
    file_needed: bool


_RECORDED: ContextVar[_Record | None] = ContextVar("recorded", default=None)


@contextmanager
def as_recorded(weights: Weights, file_needed: bool = True) -> Iterator[None]:
    """Let :func:`resolve_weights` give what an earlier run was given, and decide nothing.

    Args:
        weights: What the run recorded.
        file_needed: Whether the file must be had, and have the recorded digest; not where the weights come from a
            checkpoint anyway.
    """
    token = _RECORDED.set(_Record(weights, file_needed))
    try:
        yield
    finally:
        _RECORDED.reset(token)


def resolve_weights(
    backbone: str, pretrained: bool | str | os.PathLike[str] | None = None, *, expected_sha256: str | None = None
) -> Weights:
    """Decide which weights a backbone starts from, and get hold of them.

    The cache of ``huggingface_hub`` (and of ``torch.hub`` for the few models that are elsewhere) is looked into first.
    Only what is not there is asked for at the hub, after at most one probe of three seconds per process.

    Args:
        backbone: Name of the backbone, see :func:`autotimm.models.backbone.architectures.find_architecture`.
        pretrained: ``None`` takes pretrained weights if they can be had and else random ones; ``True`` insists on them;
            ``False`` never takes them; a path takes that file (.safetensors, .pth, .pt, .bin, .ckpt; read with
            ``weights_only=True``).
        expected_sha256: What an earlier run recorded, :attr:`Weights.recorded`. Nothing is decided then: ``"random"``
            gives random weights, and a digest must be met.

    Raises:
        ModelError: If the backbone is unknown.
        WeightsError: If weights were insisted on and cannot be had, or differ from the expected ones.
        UsageError: If ``pretrained`` is none of these.

    Example:
        >>> resolve_weights("test_resnet", pretrained=False).note
        'weights: random (pretrained is off)'
    """
    if (record := _RECORDED.get()) is not None:
        if not record.file_needed:
            return record.weights
        expected_sha256 = expected_sha256 or record.weights.recorded
    known = isinstance(pretrained, (bool, str, os.PathLike, type(None)))
    do = "None takes pretrained weights if they can be had."
    require(known, "pretrained", backbone, "True, False, None or the path of a file", pretrained, do)
    architecture = find_architecture(backbone)
    described = architecture.as_dict() if architecture.repo else None
    if expected_sha256 == RANDOM:
        return Weights(note="weights: random (as recorded)", architecture=described)
    if isinstance(pretrained, (str, os.PathLike)):
        path, source = _given(Path(pretrained).expanduser()), "file"
    elif pretrained is False and expected_sha256 is None:
        return Weights(note="weights: random (pretrained is off)", architecture=described)
    else:
        try:
            path, source = _find(architecture)
        except WeightsError as error:
            if pretrained or expected_sha256:
                raise
            return Weights(note=f"weights: random ({_short(error)})", architecture=described)
    digest = file_digest(path)
    if expected_sha256 not in (None, digest):
        raise WeightsError(
            f"The weights of {backbone} must have the sha256 {expected_sha256}, as recorded. Those found ({path.name}) "
            f"have {digest}. Give the path of the original file as `pretrained`."
        )
    what = path.name if source == "file" else _place(architecture)
    return Weights(source, digest, str(path), f"weights: {what} ({source}, sha256 {digest[:12]})", described)


class _UnavailableError(WeightsError):
    """Weights cannot be had; ``why`` fits into the header of a run, which is no place for the cure."""

    def __init__(self, why: str, cure: str) -> None:
        super().__init__(
            f"The pretrained weights must be in the cache or on the hub. {why[0].upper()}{why[1:]}. {cure}"
        )
        self.why = why


def _short(error: WeightsError) -> str:
    return error.why if isinstance(error, _UnavailableError) else str(error).partition(". ")[0]


def _given(path: Path) -> Path:
    if not path.is_file():
        raise WeightsError(
            f"The weights file {path} must exist. There is no such file. Check the path, or leave `pretrained` out."
        )
    if path.suffix not in SUFFIXES:
        raise WeightsError(
            f"The weights file {path} must end in one of {', '.join(SUFFIXES)}. It ends in {path.suffix!r}. "
            "Save the weights as safetensors."
        )
    return path


def _place(architecture: Architecture) -> str:
    """Where weights are kept, in one word: a hub repository, or else a URL; empty if there are none."""
    config = architecture.config
    return str(architecture.repo or config.get("hf_hub_id") or config.get("url") or "")


def _hub_files(config: Mapping[str, Any]) -> list[str]:
    """File names to try, in timm's order: the safe format first."""
    override = config.get("hf_hub_filename")
    if not override:
        return list(_HUB_FILES)
    return [*([override[:-4] + ".safetensors"] if override.endswith(".bin") else []), override]


def _find(architecture: Architecture) -> tuple[Path, str]:
    """The file with the pretrained weights and how it was had: from the cache, or from the hub."""
    place, config = _place(architecture), architecture.config
    if not place:
        raise _UnavailableError(
            f"timm has no pretrained weights for {architecture.name}",
            "Use pretrained=None or False, or choose one of `list_backbones(pretrained=True)`.",
        )
    is_url = place.startswith(("http://", "https://"))
    files = _hub_files(config if architecture.repo is None else {})
    found = cached_url(place) if is_url else cached_file(place, files)
    if found is not None:
        return found, "cache"
    if reason := hub_state():
        raise _UnavailableError(
            f"{place.rpartition('/')[2]} is not cached and {reason}",
            "Connect once, give the path of a weights file as `pretrained`, or use pretrained=None or False.",
        )
    return (download_url(place) if is_url else download_file(place, files)), "hub"
