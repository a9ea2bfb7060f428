"""Check what a run claims: its seal, its commitment, and then a replay of the whole or of stretches drawn at random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from autotimm.errors import UsageError, sentence
from autotimm.records.commitment import compare_commitment, require_digest
from autotimm.records.run_seal import check_seal
from autotimm.runs.explain_difference import confirm_replay
from autotimm.runs.restore import read_manifest
from autotimm.runs.stretches import verify_stretches
from autotimm.runs.verdict import Verdict, broken_commitment, broken_seal
from autotimm.runs.verify import verify

__all__ = ["check_proof"]


def check_proof(
    folder: Path, *, key: str | Path | None, commitment: str | None, stretches: int | None, budget: float | None,
    challenge: int | None, jobs: int, launcher: str, data: str | Path | None, steps: int | None,
    epochs: tuple[int, int] | None, workers: int | None, devices: int | None, threads: int | None, explain: bool,
) -> Verdict:  # fmt: skip
    """Check a run, see :meth:`autotimm.Run.verify` for the arguments.

    What needs no replay comes first: nothing is trained of a run whose seal or commitment is broken.

    Raises:
        UsageError: If an argument is wrong, or does not go together with others.
        ModelError: If the folder has no record of a run.
    """
    require_digest(commitment, "commitment", "verify")
    _check_drawing(
        stretches=stretches, budget=budget, challenge=challenge, jobs=jobs, launcher=launcher, epochs=epochs,
        explain=explain, devices=devices, threads=threads,
    )  # fmt: skip
    seal = check_seal(folder, key)
    if broken := broken_seal(seal, folder, wanted=key is not None):
        return broken
    problems, kept = compare_commitment(folder, read_manifest(folder), commitment)
    if problems:
        return broken_commitment(problems)
    if stretches is not None or budget is not None:
        verdict = verify_stretches(
            folder, stretches=1 if stretches is None else stretches, steps=steps, budget=budget, challenge=challenge,
            data=data, workers=workers, jobs=jobs, launcher=launcher,
        )  # fmt: skip
    else:
        verdict = verify(
            folder, data=data, steps=steps, epochs=epochs, workers=workers, devices=devices, threads=threads
        )
    verdict = replace(verdict, notes=(*seal.notes, *kept, *verdict.notes))
    if not explain or verdict.difference is None:
        return verdict
    return replace(verdict, confirmed=confirm_replay(folder, verdict.difference, data=data, workers=workers))


def _check_drawing(**given: Any) -> None:
    """Refuse arguments that mean nothing with stretches, or nothing without them."""
    drawing = [name for name in ("stretches", "budget") if given[name] is not None]
    with_stretches = {"challenge": None, "jobs": 1, "launcher": "local"}
    without = ("epochs", "explain", "devices", "threads")
    if not drawing:
        wrong = [name for name, default in with_stretches.items() if given[name] != default]
        must, cure = "left out without `stretches` and `budget`", "Give for example stretches=8 too."
    else:
        wrong = [*drawing[1:], *(name for name in without if given[name] not in (None, False))]
        must, cure = f"left out with `{drawing[0]}`", "Leave one of them out."
    if wrong:
        raise UsageError(sentence(wrong[0], "verify", must, given[wrong[0]], cure))
