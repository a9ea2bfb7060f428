"""The weights that a training starts from, where they are not those of the constructor.

They may come from a run, whose weights are then kept in the new run's folder; from a checkpoint with everything in it,
which is kept too; or from the program, which no file can repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from autotimm.errors import ModelError, join_names
from autotimm.records.atomic import atomic_path, link_or_copy
from autotimm.records.digest import config_digest, file_digest, state_digest
from autotimm.records.manifest import Manifest
from autotimm.tasks.checkpoint import read_checkpoint

__all__ = [
    "CHECKPOINT", "INITIAL", "PROGRAM", "WEIGHTS", "Start", "describe_parent", "frozen_parameters", "load_start",
    "network_digest", "network_weights", "read_weights", "recorded_start", "say_frozen", "store_start", "unrepeatable",
]  # fmt: skip

PROGRAM, WEIGHTS, CHECKPOINT = "program", "weights", "checkpoint"
"""The kinds of starts: weights that a program has set, weights out of a checkpoint, and a whole checkpoint, with its
optimizer and its position."""

INITIAL = {WEIGHTS: "initial.safetensors", CHECKPOINT: "initial.ckpt"}
"""The file in the run's folder that holds what a run has started from, by the kind of the start."""

_NAMED = 20  # names of frozen parameters that a manifest lists


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Attributes:
        record: What the manifest says of it, as ``inputs.start``.
        file: The checkpoint of a start of that kind, on this machine; ``None`` for the others.
        parent: The folder of the run that it comes from, or that of a checkpoint that stands alone.
        network: The digest of the network's state, for weights.
    """

    record: Mapping[str, Any]
    file: Path | None = None
    parent: Path | None = None
    network: str = field(default="", repr=False)

    @property
    def kind(self) -> str:
        """``program``, ``weights`` or ``checkpoint``."""
        return str(self.record["kind"])

    def is_file(self, path: Any) -> bool:
        """Whether a path names the file that this is about."""
        return path is not None and self.file is not None and Path(path).is_file() and self.file.samefile(path)


def network_digest(network: nn.Module) -> str:
    """A digest of all weights and stored buffers; empty for a network that has none yet, as a lazy one."""
    tensors: dict[str, Tensor] = network.state_dict()
    unknown = any(tensor.is_meta or is_lazy(tensor) for tensor in tensors.values())
    return "" if unknown else state_digest(tensors)


def frozen_parameters(network: nn.Module) -> frozenset[str]:
    """The names of the parameters that are not trained."""
    return frozenset(name for name, parameter in network.named_parameters() if not parameter.requires_grad)


def say_frozen(names: frozenset[str]) -> dict[str, Any]:
    """Frozen parameters for a manifest: a count, a digest of the names, and the names if they are few."""
    listed = sorted(names)
    record: dict[str, Any] = {"count": len(listed), "digest": config_digest(listed)[:16]}
    return record | ({"names": listed} if len(listed) <= _NAMED else {})


def describe_parent(checkpoint: Path) -> dict[str, Any]:
    """Where a checkpoint comes from, for a manifest: its name and digest, and id and digest of its run if it has one.

    Raises:
        ModelError: If the run's manifest cannot be read.
    """
    described: dict[str, Any] = {"checkpoint": checkpoint.name, "sha256": file_digest(checkpoint)}
    manifest = checkpoint.parent.parent / "manifest.json"
    if checkpoint.parent.name == "checkpoints" and manifest.exists():
        parent = Manifest.load(manifest)
        described |= {"run_id": parent.run_id, "manifest": parent.digest}
    return described


def network_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The network's weights and buffers in a checkpoint, by their names in the network.

    Raises:
        ModelError: If the file is no checkpoint that can be read.
    """
    state = read_checkpoint(checkpoint)["state_dict"]
    return {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}


def store_start(folder: Path, start: Start, network: nn.Module | None) -> Start:
    """Keep in a run's folder what it starts from; the record then says the digest of that file.

    Raises:
        OSError: If it cannot be written.
    """
    if start.kind == PROGRAM:
        return start
    path = folder / INITIAL[start.kind]
    with atomic_path(path) as temporary:
        if start.kind == WEIGHTS:
            assert network is not None, "weights belong to a task"
            # No metadata: safetensors writes it in random order, and equal runs must give equal bytes.
            tensors = {name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()}
            temporary.write_bytes(save(tensors))
        else:
            assert start.file is not None, "a checkpoint is a file"
            link_or_copy(start.file, temporary)
    return Start({**start.record, "sha256": file_digest(path)}, start.file, start.parent, start.network)


def recorded_start(folder: Path, manifest: Manifest, *, needed: bool) -> Start | None:
    """What a recorded run has started from; ``None`` for the weights of the constructor.

    Args:
        folder: The run's folder.
        manifest: Its manifest.
        needed: Whether the run is to be trained from its start, rather than from a checkpoint of its own.

    Raises:
        ModelError: If no file can repeat that start, or the file that holds it is missing or was changed.
    """
    if reason := unrepeatable(manifest, needed=needed):
        raise ModelError(
            f"{folder} cannot be built again from its folder: {reason}. Run your program again with another `run_dir`, "
            "and compare the two with `autotimm diff`."
        )
    record = manifest.inputs.get("start")
    if record is None or record["kind"] == PROGRAM:
        return None
    start = Start(record, folder / INITIAL[record["kind"]])
    if needed and not (start.file is not None and start.file.is_file()):
        raise ModelError(f"{folder} must hold what the run started from. {start.file} is missing. Copy it too.")
    if needed and file_digest(folder / INITIAL[start.kind]) != record.get("sha256"):
        raise ModelError(
            f"{folder} must hold what the run started from. {start.file} was changed since the run began. "
            "Use an intact copy."
        )
    return start


def unrepeatable(manifest: Manifest, *, needed: bool = True) -> str:
    """Why the start of a recorded run cannot be repeated from its folder, as a part of a sentence; empty if it can."""
    record, frozen = manifest.inputs.get("start"), manifest.inputs.get("frozen")
    if frozen is not None:
        names = frozen.get("names") if isinstance(frozen, Mapping) else None
        which = f" ({join_names(names)})" if isinstance(names, list) and names else ""
        return f"which parameters are trained was set by hand, not by an option{which}"
    if record is None:
        return ""
    if not isinstance(record, Mapping) or record.get("kind") not in (PROGRAM, WEIGHTS, CHECKPOINT):
        return "its manifest says of a start that this version does not know"
    if record["kind"] == PROGRAM and needed:
        return "its weights at the start are not those of the constructor, and no file holds them"
    return ""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights that a run keeps of its start.

    Raises:
        ModelError: If the file is missing or damaged.
    """
    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise _unfit(path, error) from None


def load_start(network: nn.Module, start: Start) -> None:
    """Load the weights that a run started from into its network.

    Raises:
        ModelError: If the file is damaged, or does not fit.
    """
    assert start.file is not None, "weights are in a file"
    try:
        network.load_state_dict(read_weights(start.file))
    except RuntimeError as error:
        raise _unfit(start.file, error) from None


def _unfit(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"The file {path} must hold the weights that the run started from. It does not "
        f"({(str(error).splitlines() or [type(error).__name__])[0]}). Use an intact copy."
    )
