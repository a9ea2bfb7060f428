"""Look up backbones by name, in timm's registry and in hub repositories."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.errors import HFValidationError
from timm.models import get_deprecated_models, get_pretrained_cfg, is_model

from autotimm.errors import ModelError, WeightsError, nearest
from autotimm.models.backbone.hub import cached_file, download_file, hub_state
from autotimm.serialization import read_json

__all__ = ["Architecture", "find_architecture", "list_backbones", "remember_architecture"]

HUB_PREFIXES = ("hf-hub:", "hf_hub:")
_CONFIG = "config.json"
# Entries of a hub repository's configuration that describe its weights. The others concern training.
_CONFIG_KEYS = (
    "input_size", "test_input_size", "min_input_size", "fixed_input_size", "interpolation", "crop_pct", "mean", "std",
    "num_classes", "label_offset", "pool_size", "first_conv", "classifier",
)  # fmt: skip
# Arguments that the caller decides, whatever the repository was saved with. Those of `create_model` itself say where
# weights and configurations are read from: a file of somebody else must not.
_CALLER_ARGUMENTS = {
    "in_chans", "num_classes", "drop_rate", "drop_path_rate", *inspect.signature(timm.create_model).parameters
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """The description of a backbone, without its weights. It consists of plain data.

    Attributes:
        name: The name that was requested.
        timm_name: The name in timm's registry, with a tag if one was given.
        arguments: Arguments of ``timm.create_model`` stored in a hub repository.
        overlay: Entries of timm's ``pretrained_cfg`` stored in a hub repository.
    """

    name: str
    timm_name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    overlay: dict[str, Any] = field(default_factory=dict)

    @property
    def repo(self) -> str | None:
        """The hub repository, if ``name`` is that of one."""
        prefix, _, repo = self.name.partition(":")
        return repo if f"{prefix}:" in HUB_PREFIXES else None

    @property
    def config(self) -> dict[str, Any]:
        """Preprocessing, image sizes and location of pretrained weights, as timm's ``pretrained_cfg``."""
        known = get_pretrained_cfg(self.timm_name)
        return ({} if known is None else asdict(known)) | self.overlay

    def as_dict(self) -> dict[str, Any]:
        """Convert to a dictionary of plain data, for a checkpoint."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]  # a dictionary


_remembered: dict[str, Architecture] = {}


def remember_architecture(data: Mapping[str, Any]) -> None:
    """Register the architecture of a hub name, so that later lookups do not contact the hub.

    Checkpoints record architectures, so that they load without network access.

    Args:
        data: The result of :meth:`Architecture.as_dict`.

    Raises:
        ModelError: If it is something else, names no hub repository, or an architecture that timm does not have. A
            checkpoint may come from a stranger: it must not say what a name of timm means, nor where weights are.
    """
    try:
        name, timm_name = str(data["name"]), str(data["timm_name"])
        arguments, overlay = dict(data.get("arguments") or {}), dict(data.get("overlay") or {})
    except (KeyError, TypeError, ValueError):
        raise ModelError(
            "The record of the architecture must hold a name, a name of timm and arguments. It does not: the "
            "checkpoint is damaged. Use another one."
        ) from None
    if not name.startswith(HUB_PREFIXES):
        raise ModelError(
            f"The record of the architecture must be that of a hub repository. It is of {name!r}: the checkpoint is "
            "damaged. Use another one."
        )
    kept = {key: value for key, value in overlay.items() if key in _CONFIG_KEYS}
    _remembered[name] = Architecture(name, _registered(timm_name), _model_arguments(arguments), _tuples(kept))


def _model_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in _CALLER_ARGUMENTS}


def _tuples(overlay: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in overlay.items()}


# Modules of timm, of each of which a backbone was trained by `benchmarks/portable.py`, with the same bits everywhere.
_PORTABLE_FAMILIES = (
    "byobnet",
    "convnext",
    "deit",
    "densenet",
    "dla",
    "efficientnet",
    "fastvit",
    "ghostnet",
    "hgnet",
    "inception_next",
    "levit",
    "metaformer",
    "mlp_mixer",
    "mobilenetv3",
    "mobilevit",
    "regnet",
    "resnet",
    "resnetv2",
    "rexnet",
    "starnet",
    "swin_transformer",
    "tiny_vit",
    "vision_transformer",
)


def list_backbones(pattern: str = "*", pretrained: bool = False, portable: bool = False) -> list[str]:
    """List the names of timm's backbones, in natural order.

    Args:
        pattern: A shell pattern, such as ``"*vit*"``.
        pretrained: Whether to list only those with pretrained weights, with their tags (``resnet18.a1_in1k``).
        portable: Whether to list only families of which one was measured to hold in a portable run. A run with another
            either holds too, or is refused with the name of an operator.

    Example:
        >>> list_backbones("resnet1??")
        ['resnet10t', 'resnet14t', 'resnet18d', 'resnet101', 'resnet152']
    """
    return list(timm.list_models(pattern, pretrained=pretrained, module=_PORTABLE_FAMILIES if portable else ""))


def find_architecture(name: str) -> Architecture:
    """Look up a backbone by name.

    Args:
        name: A name in timm's registry, with or without a tag (``resnet18``, ``resnet18.a1_in1k``), or
            ``hf-hub:owner/name`` for a hub repository that was saved by timm. The configuration of a repository is
            taken from a checkpoint that was loaded (see :func:`remember_architecture`), from the cache, or from the
            hub, in this order.

    Raises:
        ModelError: If there is no such backbone, with suggestions, or the hub cannot be reached.
    """
    if not name:
        raise ModelError(f"The `backbone` must be a name. Got {name!r} instead. `list_backbones('*vit*')` lists them.")
    if name in _remembered:
        return _remembered[name]
    if name.startswith(HUB_PREFIXES):
        return _from_hub(name)
    if any(character in name for character in "/\\:"):
        raise ModelError(
            f"The `backbone` must be a name of timm or `hf-hub:owner/name`. Got {name!r} instead. "
            f"Write 'hf-hub:{name.rpartition(':')[2]}' for a hub repository. Give a weights file as `pretrained`."
        )
    return Architecture(name, _registered(name))


def _registered(name: str) -> str:
    """Return the name in timm's registry, after resolving renamed models."""
    renamed = get_deprecated_models()
    if name in renamed:
        if renamed[name] is None:
            raise ModelError(f"The `backbone` {name!r} was removed from timm. Choose another.")
        name = str(renamed[name])
    architecture, _, tag = name.partition(".")
    if not is_model(architecture):
        suggestion = (
            nearest(architecture, timm.list_models()) or "`list_backbones('*vit*')` lists those with vit in the name."
        )
        raise ModelError(f"The `backbone` must be a model of timm. There is no {name!r}. {suggestion}")
    if tag and name not in (tagged := timm.list_models(f"{architecture}.*", include_tags=True)):
        available = ", ".join(tagged[:5]) or f"{architecture} without a tag"
        suggestion = nearest(name, tagged) or f"Available: {available}."
        raise ModelError(f"The `backbone` {architecture!r} has no weights {tag!r}. {suggestion}")
    return name


def _from_hub(name: str) -> Architecture:
    repo = name.partition(":")[2]
    try:
        path = cached_file(repo, [_CONFIG])
    except HFValidationError:
        raise ModelError(
            f"The `backbone` {name!r} must name a hub repository, as in hf-hub:owner/name. It does not. Check the name."
        ) from None
    if path is None:
        if reason := hub_state():
            raise ModelError(
                f"The `backbone` {name!r} is not cached and {reason}. Connect to the hub once, or use a name from "
                "`list_backbones()`."
            )
        try:
            path = download_file(repo, [_CONFIG])
        except WeightsError as error:
            raise ModelError(f"The `backbone` {name!r} must be a hub repository saved by timm. {error}") from None
    return _read_config(name, path)


def _read_config(name: str, path: Path) -> Architecture:
    try:
        data = read_json(path)
        architecture = str(data["architecture"])
        arguments, stored = dict(data.get("model_args") or {}), dict(data.get("pretrained_cfg") or data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"The `config.json` of {name} must name an `architecture` of timm, but reading it failed: {error!r}. Use a "
            "repository that was saved by timm."
        ) from None
    stored.setdefault("num_classes", data.get("num_classes", 1000))
    if arguments.get("in_chans", 3) != 3:
        raise ModelError(
            f"The `backbone` {name} must accept RGB images. It has {arguments['in_chans']} input channels. Choose "
            "another."
        )
    overlay = {key: stored[key] for key in _CONFIG_KEYS if stored.get(key) is not None}
    return Architecture(name, _registered(architecture), _model_arguments(arguments), _tuples(overlay))
