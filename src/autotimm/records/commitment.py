"""A commitment: the digest of data, code, options and seeds of a run, made before its first step, to be published.

There are two. The *plan* is everything but the seeds and what follows from them; it is equal for all runs that differ
in their seeds alone. The *commitment* is the plan with the seeds and the split. Both are functions of the manifest, so
that whoever has the run can compute them again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotimm.errors import UsageError, sentence
from autotimm.records.atomic import write_text
from autotimm.records.digest import config_digest
from autotimm.records.manifest import Manifest
from autotimm.records.readers import read_text

__all__ = ["COMMITMENT", "Commitment", "commitment_of", "compare_commitment", "require_digest", "write_commitment"]

COMMITMENT = "commitment.json"
"""The file of a run that was committed to: what the digests are of."""

_VERSION = 1
_SURROUNDINGS = ("package", "git", "versions", "replay_versions", "callbacks", "precision", "processes", "threads",
                 "device")  # fmt: skip


@dataclass(frozen=True)
class Commitment:
    """What a run is committed to.

    Attributes:
        plan: The digest of everything but the seeds.
        digest: The digest of everything.
        content: What they are of, as plain data.
    """

    plan: str
    digest: str
    content: Mapping[str, Any]

    def text(self) -> str:
        """The content of its file."""
        return json.dumps({"commitment": self.digest, **self.content}, indent=2, sort_keys=True) + "\n"


def commitment_of(manifest: Manifest) -> Commitment:
    """The commitment of a run, computed from its manifest.

    Where the data lies is no part of it, since its content is; nor are the initial weights, which the seeds decide, but
    for pretrained ones.
    """
    inputs, around = manifest.inputs, manifest.environment
    weights = manifest.decisions.get("weights") or {}
    plan = {
        "version": _VERSION,
        "options": _options(inputs.get("config", {})),
        "data": inputs.get("data"),
        "transforms": inputs.get("transforms"),
        "code": {"task": inputs.get("code"), **{name: around.get(name) for name in _SURROUNDINGS}},
        "weights": weights.get("sha256") if isinstance(weights, Mapping) else None,
        "start": inputs.get("start"),
    }
    digest = config_digest(plan)
    seeds = {"plan": digest, "seeds": inputs.get("seeds"), "splits": inputs.get("splits")}
    return Commitment(digest, config_digest(seeds), {"content": plan, **seeds})


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of data, model and trainer without seeds, which classes of the user's own may take, too."""
    return {
        part: {name: value for name, value in arguments.items() if name != "seed"}
        if isinstance(arguments, Mapping) else arguments
        for part, arguments in config.items()
    }  # fmt: skip


def write_commitment(folder: Path, commitment: Commitment) -> None:
    """Write the file of a commitment."""
    write_text(folder / COMMITMENT, commitment.text())


def compare_commitment(folder: Path, manifest: Manifest, published: str | None = None) -> tuple[list[str], list[str]]:
    """Whether a run kept to what it was committed to.

    Args:
        folder: The run.
        manifest: Its manifest.
        published: The digest that was published, of the plan or of everything; ``None`` if nobody knows.

    Returns:
        What does not agree, and notes; nothing for a run without a commitment, if none was published.
    """
    recorded, path = manifest.decisions.get("commitment"), folder / COMMITMENT
    found = commitment_of(manifest)
    if recorded is None and not path.exists():
        return ([], []) if published is None else (["the run was not committed to"], [])
    problems = list(_broken(recorded, path, found))
    if published is not None and published not in (found.digest, found.plan):
        problems.append(f"it was published as {published}, and is {found.digest} with the plan {found.plan}")
    if problems:
        return problems, []
    kept = {found.digest: "as published", found.plan: "whose plan was published"}.get(published or "", "")
    return [], [f"commitment: kept, {found.digest}{f', {kept}' if kept else ''} (plan {found.plan})"]


def _broken(recorded: object, path: Path, found: Commitment) -> Iterator[str]:
    if recorded != found.digest:
        yield f"it was committed to {recorded}, and its record is {found.digest}"
    if not path.is_file():
        yield f"{COMMITMENT} is missing"
    elif read_text(path, "the commitment") != found.text():
        yield f"{COMMITMENT} says something else than the record"


def require_digest(value: object, name: str, owner: str) -> None:
    """Refuse what is no digest.

    Raises:
        UsageError: If it is none.
    """
    fine = value is None or (isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"))
    if not fine:
        raise UsageError(sentence(name, owner, "the 64 digits that fit --commit has printed", value, "Copy all of it."))
