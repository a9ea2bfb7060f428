"""The manifest of a run that is being made: written when it begins, completed when it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytorch_lightning as pl

from autotimm.data.module import DataModule
from autotimm.repro.digest import config_digest
from autotimm.repro.environment import volatile
from autotimm.repro.ledger import read_ledger
from autotimm.repro.manifest import Manifest
from autotimm.train.declare import decisions, inputs, levels, surroundings, timestamp
from autotimm.train.folder import RunFolder

__all__ = ["conclude", "declare", "level_lines"]


def declare(folder: RunFolder, trainer: Any, model: pl.LightningModule, data: DataModule | None, initial: str) -> str:
    """Write the manifest of a run that begins or goes on, and return the run's id."""
    before = Manifest.load(folder.manifest) if folder.manifest.exists() else None
    found = folder.content()
    splits = folder.path / "splits.csv"
    data_facts: dict[str, Any] = {"data": {"digest": found and found.digest, "samples": found and len(found)}}
    data_facts["splits"] = config_digest(splits.read_text()) if splits.exists() else None
    if before is not None and trainer.global_step:
        initial = before.inputs["initial"]
    clock = {"started": timestamp(), "folder": str(folder.path.resolve()), **volatile()}
    if before is not None and trainer.global_step:
        clock = before.volatile | {"resumes": [*before.volatile.get("resumes", []), timestamp()]}
    manifest = Manifest(
        inputs=inputs(trainer, model, data, content=data_facts, initial=initial),
        environment=surroundings(trainer),
        decisions=decisions(model, data),
        results={"status": "running"},
        levels=levels(trainer, model, data),
        volatile=clock,
    )
    manifest.save(folder.manifest)
    return manifest.run_id


def level_lines(folder: RunFolder) -> list[str]:
    """What a run may claim and what not, for people: a line for all levels of which the same is said."""
    manifest = Manifest.load(folder.manifest)
    groups: dict[str, list[str]] = {}
    for name, said in manifest.levels.items():
        groups.setdefault(said, []).append(name)
    rows = [(" ".join(names), said) for said, names in groups.items()]
    wide = max(len(names) for names, _ in rows)
    # A replay cannot build the caller's own loaders again; two runs can be compared.
    verb = "verify" if manifest.inputs.get("keyed", True) else "diff"
    return [
        f"reproducibility (autotimm {verb} {folder.path} checks it)",
        *(f"  {names:{wide}}  {said}" for names, said in rows),
    ]


def conclude(folder: RunFolder, status: str, steps: int) -> None:
    """Write how a run ended into its manifest."""
    if folder.manifest.exists():
        found = Manifest.load(folder.manifest)
        # From the file: in a run with spawned processes this one has not written it.
        ledger = read_ledger(folder.ledger)
        metrics = {name: value.hex() for name, value in folder.results().get("best", {}).items()}
        results = {"status": status, "steps": steps, "ledger": ledger.last, "metrics": metrics}
        replace(found, results=results, volatile=found.volatile | {"ended": timestamp()}).save(folder.manifest)
