"""The result of a verification, and the words for a difference of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from autotimm.errors import DifferentError, IncompleteError
from autotimm.records.causes import ManifestDifference
from autotimm.records.ledger_diff import Difference, Distance
from autotimm.records.run_seal import SealCheck
from autotimm.runs.file_contents import printable

__all__ = ["Verdict", "broken_commitment", "broken_seal", "describe", "worth_naming"]

_SHOWN = 12  # lines about what was not checked; further ones are only counted


class Proof(Protocol):
    """What the verification of a drawn part of a run has shown."""

    @property
    def lines(self) -> list[str]:
        """In words, a line each."""

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""


@dataclass(frozen=True)
class Verdict:
    """The result of a verification.

    Attributes:
        verdict: ``"identical"``, ``"consistent"``, ``"different"``, ``"incomplete"`` or ``"not comparable"``.
        exit_code: 0 for identical, 7 for consistent and 5 for different runs; 6 if the record is damaged, cut or
            unfinished, and what is there equals the replay; 3 if the data, 4 if anything else cannot be compared.
        reason: One or a few sentences; empty if there is nothing to say.
        difference: The first difference of the ledgers.
        steps: Number of steps compared.
        notes: Other remarks, a line each.
        distances: On other hardware, the distance of the losses per step.
        metrics: On other hardware, metrics side by side.
        confirmed: The confirmed cause (`--explain`); empty if it was not asked for.
        findings: What differs or is missing outside of the ledger, a line each.
        not_checked: What the replay could not tell, in a few words each.
        of_steps: Number of steps of the whole run, if fewer were compared and it is known.
        partial: Whether only a part of the run was to be verified, by `steps` or `epochs`.
        proof: What was drawn and how far apart it is, if stretches were verified.
    """

    verdict: str
    exit_code: int
    reason: str = ""
    difference: Difference | None = None
    steps: int = 0
    notes: tuple[str, ...] = ()
    distances: tuple[Distance, ...] = ()
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    confirmed: str = ""
    findings: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    of_steps: int | None = None
    partial: bool = False
    proof: Proof | None = None

    @property
    def identical(self) -> bool:
        """Whether all bits are equal that were to be compared; see :attr:`partial`."""
        return self.verdict == "identical"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for other programs."""
        return {
            "verdict": self.verdict, "words": self.words, "identical": self.identical, "partial": self.partial,
            "reason": self.reason, "steps": self.steps, "of_steps": self.of_steps,
            "difference": self.difference._asdict() if self.difference else None,
            "distances": [distance._asdict() for distance in self.distances],
            "metrics": {name: list(pair) for name, pair in self.metrics.items()},
            "confirmed": self.confirmed, "findings": list(self.findings), "not_checked": list(self.not_checked),
            "notes": list(self.notes), **({} if self.proof is None else self.proof.as_dict()),
        }  # fmt: skip

    def require_identical(self) -> None:
        """Raise unless the run is identical.

        Raises:
            DifferentError: If it differs or cannot be compared, with the reason.
            IncompleteError: If its record is incomplete.
        """
        if self.verdict == "incomplete":
            raise IncompleteError(f"The record of the run must be complete. {' '.join([*self.notes, self.reason])}")
        if not self.identical:
            raise DifferentError(f"The run must be identical to its record. It is {self.verdict}. {self.reason}")

    def __str__(self) -> str:
        not_checked = [f"not checked: {text}" for text in self.not_checked[:_SHOWN]]
        not_checked += [f"not checked: {len(self.not_checked) - _SHOWN} more"] if self.not_checked[_SHOWN:] else []
        shown = [] if self.proof is None else self.proof.lines
        lines = [*self.notes, *self._side_by_side(), *shown, *not_checked, self.reason, self.confirmed]
        return "\n".join([*(printable(line) for line in lines if line), f"verdict: {self.words}"])

    @property
    def words(self) -> str:
        """The verdict in words: ``identical in part (3 of 12 steps compared)``."""
        name = f"{self.verdict} in part" if self.partial and self.identical else self.verdict
        if not self.steps and self.verdict != "incomplete":
            return name
        return f"{name} ({self.steps}{f' of {self.of_steps}' if self.of_steps else ''} steps compared)"

    def _side_by_side(self) -> list[str]:
        if not self.distances:
            return []
        worst = max(self.distances, key=lambda distance: distance.relative)
        lines = [f"other hardware: losses of {len(self.distances)} steps are apart by at most {worst.relative:.2e} of "
                 f"their size (step {worst.step}: {worst.recorded:.6g} and {worst.found:.6g})"]  # fmt: skip
        lines.append("another machine rounds otherwise; whether that explains the distance is judged by --stretches 8")
        return lines + [f"  {name}: {a:.4f} recorded, {b:.4f} found" for name, (a, b) in self.metrics.items()]


def broken_seal(seal: SealCheck, folder: Path, *, wanted: bool) -> Verdict | None:
    """The verdict on a run that is not as it was sealed, before it is replayed; ``None`` if it is.

    Args:
        seal: What was found.
        folder: The run.
        wanted: Whether a signature was asked for.
    """
    if seal.findings:
        listed = "; ".join(seal.findings[:_SHOWN])
        reason = f"The run is not what was sealed: {listed}. It was not replayed."
        return Verdict("different", DifferentError.exit_code, reason, findings=seal.findings)
    if wanted and not seal.sealed:
        reason = f"The run {folder} is not sealed, so that no key can be compared with. It was not replayed."
        return Verdict("incomplete", IncompleteError.exit_code, reason, findings=("it has no seal",))
    return None


def broken_commitment(problems: list[str]) -> Verdict:
    """The verdict on a run that did not keep to its commitment, before it is replayed."""
    reason = f"The run did not keep to its commitment: {'; '.join(problems)}. It was not replayed."
    return Verdict("different", DifferentError.exit_code, reason, findings=tuple(problems))


def worth_naming(manifests: list[ManifestDifference]) -> list[ManifestDifference]:
    """The differences of two manifests without results, and without explanations of other values."""
    texts = ("reason", "note")
    return [
        difference
        for difference in manifests
        if difference.section not in ("results", "levels") and difference.name.split(".")[-1] not in texts
    ]


_STAGES = {
    "start": "The initial weights differ",
    "order": "The samples of a batch differ",
    "inputs": "The same samples have other pixels or targets",
    "forward": "The loss differs, for the same samples",
    "update": "The weights differ, after equal losses",
    "rate": "The learning rate differs",
    "validation": "The validation metrics differ",
    "length": "One of the two is longer",
    "ledger": "The records differ",
}


def describe(difference: Difference) -> str:
    """A difference in words: where, and in which stage of training."""
    values = f"{_shown(difference.recorded)} was recorded, {_shown(difference.found)} found"
    where = f"first at {difference.place}, stage {difference.stage}"
    return f"{_STAGES[difference.stage]}: {where} ({difference.field}: {values})."


def _shown(value: Any) -> str:
    try:
        return f"{float.fromhex(value):.9g}" if isinstance(value, str) and "0x" in value else str(value)
    except ValueError:
        return str(value)
