"""The manifest of a run: its inputs, its surroundings, what was decided, and the results.

It is one JSON file with sorted keys, ``manifest.json`` in the run's folder, described for other programs by
``docs/reference/manifest.schema.json``. Everything but ``volatile`` (clock, names of machine, user and folder) is part
of its digest, which is in the file too, so that an edit by hand is detected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotimm.errors import ModelError, join_names, nearest, sentence
from autotimm.records.atomic import write_text
from autotimm.records.digest import config_digest
from autotimm.records.readers import EachOf, Fields, read_json, require_shape

__all__ = ["SCHEMA", "SECTIONS", "SOURCES", "Manifest"]

#: The version of the format. It grows when an older reader would misunderstand a file.
SCHEMA = 1
SECTIONS = ("inputs", "environment", "decisions", "results", "levels", "volatile")
SOURCES = "sources"
"""The entry of ``results`` with the digest of who decided each option; earlier versions have written none."""

_NONE = type(None)
_RECIPE = {
    "optimizer": str, "lr": float, "weight_decay": float, "layer_decay": float, "backbone_scale": float,
    "schedule": str, "warmup_epochs": (float, _NONE), "gradient_clip": float, "reason": str,
}  # fmt: skip
_WEIGHTS = {"source": str, "sha256": (str, _NONE), "note": str, "architecture": (dict, _NONE)}
_SHAPE = {
    "inputs": {
        "config": {"model": dict, "data": dict, "trainer": dict, "model_class": str, "data_class": str},
        "seeds": EachOf((int, EachOf(int))),
        "data": {"digest": (str, _NONE), "samples": (int, _NONE)},
        "splits": (str, _NONE),
        "initial": str,
        "transforms": dict,
    },
    "environment": {
        "versions": EachOf((str, _NONE)), "libraries": dict, "hardware": dict, "switches": dict,
        "variables": EachOf((str, _NONE)), "threads": int, "processes": int, "precision": str, "device": str,
        "git": (dict, _NONE), "callbacks": dict, "replay_versions": EachOf(int),
    },
    "decisions": {
        "lr": (float, _NONE), "batch_size": int, "recipe": (Fields(_RECIPE), _NONE),
        "weights": (Fields(_WEIGHTS, ("source",)), _NONE), "commitment": str,
        "search": dict,
    },
    "results": {
        "status": str, "steps": float, "ledger": (str, _NONE), "metrics": EachOf((str, float)),
        "changed_files": Fields({"count": int, "ids": [str]}, ("count", "ids")), "sources": str,
    },
    "levels": EachOf(str),
    "volatile": {"resumes": [str], "compute": [dict]},
}  # fmt: skip
"""The types that the readers of a manifest rely on; what they only compare or show may be anything."""


@dataclass(frozen=True)
class Manifest:
    """The record of a run, as plain data.

    Its values are copied, in the form in which a file returns them: tuples become lists, and numbers that are not
    finite, which JSON lacks, become text. Use :func:`dataclasses.replace` to change one.

    Args:
        inputs: All that decides the numbers: configuration, seeds, data, split, transforms, code, initial weights.
        environment: Its surroundings, see :func:`autotimm.records.environment.environment`.
        decisions: What was decided by a search or from the data: learning rate, batch size, recipe, pretrained weights.
        results: The last digest of the ledger, the digest of the final weights, metrics, steps, status, the files that
            changed while the run trained, and the digest of who decided each option.
        levels: The levels of reproducibility that the run claims, for example ``{"R0": "checked"}``.
        volatile: What differs between equal runs: clock, names of machine, user and folder, resumes.
        schema: The version of the format.

    Raises:
        TypeError: If a value is not plain data.

    Example:
        >>> manifest = Manifest(inputs={"config": {"lr": 0.1}}, environment={"threads": 2})
        >>> manifest.run_id
        '3c7745c39e8bc47b'
        >>> manifest.problem() is None
        True
    """

    inputs: dict[str, Any]
    environment: dict[str, Any]
    decisions: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    levels: dict[str, str] = field(default_factory=dict)
    volatile: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    # Digest and id as the file has them; a changed copy has none.
    _stored: dict[str, Any] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in SECTIONS:
            object.__setattr__(self, name, _plain(getattr(self, name), name))

    @property
    def changed_files(self) -> str:
        """A sentence about the files that changed while the run trained on them; empty if the record names none."""
        if (changed := self.results.get("changed_files")) is None:
            return ""
        count, ids = changed["count"], changed["ids"]
        files = f"{count} file{'' if count == 1 else 's'}"
        why = "so that the recorded digests do not hold for what it has read"
        return f"{files} changed while the run trained, {why}: {join_names(ids)}."

    @property
    def run_id(self) -> str:
        """The first 16 digits of the digest of the inputs. Equal inputs have equal ids."""
        return config_digest(self.inputs)[:16]

    @property
    def digest(self) -> str:
        """The digest of everything but ``volatile``."""
        return config_digest({name: value for name, value in self._content().items() if name != "volatile"})

    def _content(self) -> dict[str, Any]:
        sections = {name: getattr(self, name) for name in SECTIONS}
        return {"schema": self.schema, "run_id": self.run_id, **sections}

    def save(self, path: str | Path) -> None:
        """Write the manifest atomically, with its digest; equal manifests give equal bytes.

        Raises:
            OSError: If it cannot be written. The old file is kept.
        """
        write_text(path, self.text())

    def text(self) -> str:
        """The content of its file."""
        # ASCII: a path need not be text that UTF-8 can hold.
        content = {**self._content(), "digest": self.digest}
        return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read a manifest, also an edited one: see :meth:`problem`.

        Raises:
            ModelError: If it cannot be read, is damaged, or was written by a later version.
        """
        content = _read(path)
        _check_schema(content.get("schema"), path)
        known = {"schema", "run_id", "digest", *SECTIONS}
        for name in sorted(content.keys() - known):
            raise ModelError(
                f"The manifest {path} has a key `{name}`, which is unknown. {nearest(name, known)}".rstrip()
            )
        for name in SECTIONS:
            if not isinstance(content.get(name), dict):
                got = content.get(name)
                raise ModelError(
                    sentence(name, f"the manifest {path}", "an object", got, "Use the file of another run.")
                )
        require_shape(content, _SHAPE, f"the manifest {path}")
        manifest = cls(**{name: content[name] for name in SECTIONS}, schema=content["schema"])
        stored = {"digest": content.get("digest"), "run_id": content.get("run_id")}
        object.__setattr__(manifest, "_stored", stored)
        return manifest

    def problem(self) -> str | None:
        """What is wrong with the file that the manifest was read from, as a part of a sentence.

        A change of ``volatile`` is not detected. Nor is an edit that also updates the digest: the digest protects
        against accidents, and is no signature.

        Returns:
            ``it was edited after it was written``; ``None`` if nothing is wrong or the manifest is not from a file.
        """
        wrong = self._stored is not None and self._stored != {"digest": self.digest, "run_id": self.run_id}
        return "it was edited after it was written" if wrong else None


def _plain(value: Any, where: str) -> Any:
    """A copy in the form in which JSON returns it."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}.{index}") for index, item in enumerate(value)]
    raise TypeError(sentence(where, "Manifest", "plain data", value, "Give numbers, text, lists and dictionaries."))


def _read(path: str | Path) -> dict[str, Any]:
    try:
        content = _plain(read_json(Path(path), "the manifest"), "manifest")
    except RecursionError:
        raise ModelError(f"The manifest {path} must be JSON. It is nested too deeply. Use an intact copy.") from None
    if not isinstance(content, dict):
        raise ModelError(f"The manifest {path} must be a JSON object. It is something else. Use an intact copy.")
    return content


def _check_schema(schema: object, path: str | Path) -> None:
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise ModelError(sentence("schema", f"the manifest {path}", "a whole number from 1", schema,
                                  "Use the file of another run."))  # fmt: skip
    if schema > SCHEMA:
        raise ModelError(sentence("schema", f"the manifest {path}", f"at most {SCHEMA}", schema,
                                  "A later version wrote it: update autotimm."))  # fmt: skip
