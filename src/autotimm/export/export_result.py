"""What an export has written, and what its comparison with the run found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Check", "Export"]

# Multiples of the tolerance of scores, for boxes as a share of their side and for 1 - IoU of masks.
_LOOSER = {"boxes": 10, "masks": 100}


@dataclass
class Check:
    """What a comparison found.

    Attributes:
        source: Where the images come from.
        images: How many were compared.
        differences: The largest difference of each kind, such as ``scores``.
        undecided: Labels, objects or pixels that differ where scores or overlaps lie within the tolerance of each other
            or of a threshold.
        disagreements: Those that differ though they do not.
        metrics: Each metric of the run's validation, from ``run`` and from ``file``; none on seeded images.
        tolerance: What was allowed.
        problem: Why the file is refused, as the end of a sentence; empty if it is not.
    """

    source: str
    tolerance: float
    images: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    undecided: int = 0
    disagreements: int = 0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    problem: str = ""

    def add(self, differences: dict[str, float], undecided: int, disagreements: int) -> None:
        """Add what the comparison of some images found."""
        for name, value in differences.items():
            self.differences[name] = max(value, self.differences.get(name, 0.0))
        self.undecided += undecided
        self.disagreements += disagreements

    def beyond(self) -> str:
        """What is beyond the tolerance, as the end of a sentence; empty if nothing is."""
        for name, largest in self.differences.items():
            if not largest <= self.tolerance * _LOOSER.get(name, 1):  # NaN is no agreement
                return f"its {name} differ by {largest:.2g}"
        return f"{self.disagreements} of its labels differ" if self.disagreements else ""

    def as_dict(self) -> dict[str, Any]:
        """As plain data for ``export.json``."""
        return {name: value for name, value in asdict(self).items() if name != "problem"}

    def __str__(self) -> str:
        """One line for people."""
        parts = [f"{name} differ by at most {value:.2g}" for name, value in self.differences.items()]
        parts.append(f"{self.disagreements + self.undecided} labels differ")
        parts += [f"{name} {value['run']:.4f} and {value['file']:.4f}" for name, value in self.metrics.items()]
        return f"checked on {self.images} {self.source}: {', '.join(parts)}"


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        path: The file, or the folder for timm.
        check: What the comparison with the run found.
        runner: The program that predicts with it; ``None`` unless it was asked for.
        weights: The second file of OpenVINO; ``None`` for other formats.
    """

    path: Path
    check: Check
    runner: Path | None = None
    weights: Path | None = None

    def __str__(self) -> str:
        """What people want to know of it."""
        return f"{self.check}"
