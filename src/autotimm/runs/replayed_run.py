"""What a replay leaves, for a comparison with the record of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotimm.config import FitConfig
from autotimm.models.backbone.weights import Weights
from autotimm.records.ledger import Line
from autotimm.records.manifest import Manifest

__all__ = ["Replay"]


@dataclass(frozen=True)
class Replay:
    """A replay of a run, to its end or of a part.

    Attributes:
        folder: The folder that it has written.
        lines: The lines of its ledger.
        manifest: Its manifest.
        ended: Whether it has reached the end of the training.
        first_epoch: The number of epochs before its first step; it has begun at a checkpoint unless it is 0.
        part: What was asked for, in words, if not the whole run.
        other_hardware: Whether it was made on other hardware than the run, or on another kind of device.
        config: The options that it was built from, settled; ``None`` for a run that was made from objects.
        weights: The origin of the initial weights as it was found again; ``None`` for a module that records none.
        recipe: What would be chosen now for the values that were left open, as plain data.
        test: ``test`` and ``per_class`` of ``results.json``, measured again; ``None`` if they were not.
        views: The same of each test of several views that was made again, by the name of the views.
    """

    folder: Path
    lines: list[Line]
    manifest: Manifest
    ended: bool
    first_epoch: int = 0
    part: str = ""
    other_hardware: bool = False
    config: FitConfig | None = None
    weights: Weights | None = None
    recipe: Mapping[str, Any] | None = None
    test: Mapping[str, Any] | None = None
    views: Mapping[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether it covers the run from its first step to its last."""
        return self.ended and not self.first_epoch
