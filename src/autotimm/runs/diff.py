"""Compare two runs: their manifests, the first step that differs, and their metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotimm.records.causes import ManifestDifference, differences, likely_cause
from autotimm.records.ledger_diff import Difference, first_difference
from autotimm.records.run_folder import RunFolder
from autotimm.runs.parent import check_parent
from autotimm.runs.restore import read_manifest
from autotimm.runs.verdict import describe, worth_naming
from autotimm.runs.verify import read_run_ledger

__all__ = ["Comparison", "compare"]

_SHOWN = 12  # differences of a kind; further ones are only counted


@dataclass(frozen=True)
class Comparison:
    """The differences of two runs.

    Attributes:
        manifests: The values in which the manifests differ.
        files: The samples that are changed, missing or new, a line each.
        difference: The first difference of the ledgers, or ``None``.
        cause: The likely cause, in words.
        metrics: Metrics of the best epochs, side by side; ``None`` for a run that has none.
        notes: Problems of the records.
        confirmed: The confirmed cause (`--explain`); empty if it was not asked for.
    """

    manifests: tuple[ManifestDifference, ...]
    files: tuple[str, ...]
    difference: Difference | None
    cause: str
    metrics: Mapping[str, tuple[float | None, float | None]]
    notes: tuple[str, ...]
    confirmed: str = ""

    @property
    def equal(self) -> bool:
        """Whether both have trained alike, bit for bit."""
        return self.difference is None and not self.files

    @property
    def exit_code(self) -> int:
        """0 for equal runs, 5 for others."""
        return 0 if self.equal else 5

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for other programs."""
        return {
            "equal": self.equal,
            "manifests": [difference._asdict() for difference in self.manifests],
            "files": list(self.files),
            "difference": self.difference._asdict() if self.difference else None,
            "cause": self.cause,
            "confirmed": self.confirmed,
            "metrics": {name: list(pair) for name, pair in self.metrics.items()},
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = list(self.notes)
        for section in ("inputs", "environment", "decisions"):
            words = [difference.words for difference in self.manifests if difference.section == section]
            lines += [f"{section}: {text}" for text in words[:_SHOWN]]
            lines += [f"{section}: and {len(words) - _SHOWN} more"] if len(words) > _SHOWN else []
        lines += [f"data: {line}" for line in self.files[:_SHOWN]]
        lines += [f"data: and {len(self.files) - _SHOWN} more"] if len(self.files) > _SHOWN else []
        width = max(map(len, self.metrics), default=0)
        for name, pair in self.metrics.items():
            a, b = ("-" if value is None else f"{value:.4f}" for value in pair)
            lines.append(f"{name:<{width}}  {a}  {b}" + ("" if pair[0] == pair[1] else "  differs"))
        if self.difference is not None:
            lines += [text for text in (describe(self.difference), self.cause, self.confirmed) if text]
        return "\n".join([*lines, "equal" if self.equal else "different"])


def compare(a: Path, b: Path) -> Comparison:
    """Compare two run folders.

    Raises:
        ModelError: If one of them has no record of a run.
    """
    manifests = [read_manifest(folder) for folder in (a, b)]
    read = [read_run_ledger(folder, manifest) for folder, manifest in zip((a, b), manifests, strict=True)]
    notes = [f"{folder}: {note}" for folder, (_, problems) in zip((a, b), read, strict=True) for note in problems]
    for folder, manifest in zip((a, b), manifests, strict=True):
        chain = check_parent(folder, manifest)
        notes += [f"{folder}: {note}" for note in (chain.problem, *chain.notes) if note]
    contents = [RunFolder(folder, folder.parent).samples.content() for folder in (a, b)]
    files = contents[0].changed(contents[1]) if contents[0] is not None and contents[1] is not None else []
    difference = first_difference(read[0][0].lines, read[1][0].lines)
    if difference is not None and difference.field == "lines":  # one is longer: no difference if the other was cut
        shorter = read[0][0] if difference.recorded is None else read[1][0]
        difference = None if shorter.problem else difference
    differing = worth_naming(differences(*manifests))
    names = [line.partition(": ")[2] for line in files]
    cause = likely_cause(difference, differing, recorded=manifests[0], files=names) if difference else ""
    best, other = (RunFolder(folder, folder.parent).results().get("best", {}) for folder in (a, b))
    metrics = {name: (best.get(name), other.get(name)) for name in dict.fromkeys([*best, *other])}
    return Comparison(tuple(differing), tuple(files), difference, cause, metrics, tuple(notes))
