"""What a run may claim: `expected` or `no` stands in its manifest, and `checked` in the state of the user who did.

A manifest may come from anybody, so that nothing in it says that a run was verified. What was checked here is kept with
the digests of the files that were compared: if one of them has changed, nothing is known of the run any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotimm.records.digest import file_digest
from autotimm.records.manifest import Manifest
from autotimm.records.user_state import read_state, write_state

__all__ = ["LEVELS", "keep_checked", "level_claims"]

LEVELS = {
    "R0": "seeded",
    "R1": "the same bits from run to run on one machine",
    "R2": "also after a restart, even of a killed run",
    "R3": "also with other workers, validation, loggers, metrics and callbacks",
    "R4": "also with another number of processes",
    "R5": "also with other thread counts and instruction sets",
    "R6": "also on another GPU of the same model and driver",
    "R7": "also on other hardware and with other versions of torch",
}
"""The levels of reproducibility: what a run that claims one promises."""

# Small, and rewritten whenever a run goes on; of weights and checkpoints the list of digests is here.
_FILES = (
    "manifest.json", "config.yaml", "ledger.jsonl", "files.csv", "splits.csv", "metrics.csv", "checkpoints/sha256.txt"
)  # fmt: skip


def level_claims(folder: Path) -> dict[str, str]:
    """What a run may claim for R0 to R7: ``checked``, ``expected`` or ``no, because ...``.

    Raises:
        ModelError: If the folder has no manifest that can be read.
    """
    manifest = Manifest.load(folder / "manifest.json")
    return {name: _unchecked(name, claim) for name, claim in manifest.levels.items()} | _checked(folder, manifest)


def _unchecked(level: str, claim: str) -> str:
    """A claim of a manifest: earlier versions wrote there what was checked, and anybody can."""
    return "expected" if claim.startswith("checked") and level != "R0" else claim


def _checked(folder: Path, manifest: Manifest) -> dict[str, str]:
    """What was checked of a run, if its files are still those that were compared."""
    files = _digests(folder)
    record = _records(manifest).get(files["manifest.json"])
    if not isinstance(record, Mapping) or record.get("files") != files or not isinstance(record.get("levels"), Mapping):
        return {}
    return {str(level): str(claim) for level, claim in record["levels"].items()}


def _records(manifest: Manifest) -> Mapping[str, Any]:
    records = read_state("checked", manifest.run_id).get("records")
    return records if isinstance(records, Mapping) else {}


def keep_checked(folder: Path, levels: Mapping[str, str]) -> None:
    """Keep what was checked of a run, for as long as its record stays as it is.

    Raises:
        OSError: If the user's state cannot be written.
    """
    manifest, files = Manifest.load(folder / "manifest.json"), _digests(folder)
    record = {"files": files, "levels": {**_checked(folder, manifest), **levels}}
    # Runs with equal inputs have one id, and each of them its own record.
    write_state("checked", manifest.run_id, {"records": {**_records(manifest), files["manifest.json"]: record}})


def _digests(folder: Path) -> dict[str, str]:
    return {name: file_digest(path) if (path := folder / name).is_file() else "" for name in _FILES}
