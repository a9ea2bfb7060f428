"""The three numbers that say whether a run can be replayed by this version: those of streams, pipeline and ledger.

Whoever changes how random numbers are drawn, how samples are read, targets are made or metrics are computed, or what a
line of the ledger holds, raises its number here and ``autotimm.__version__`` in the same commit, and enters the new
triple in :data:`RELEASES`. Older runs then still load, predict and test, and ``verify`` answers ``not comparable`` and
names the version that can replay them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import autotimm
from autotimm.errors import ModelError

__all__ = [
    "CURRENT",
    "LEDGER",
    "PIPELINE",
    "RELEASES",
    "STREAMS",
    "not_replayable",
    "replay_versions",
    "require_replayable",
]

STREAMS = 2
"""How random numbers are drawn: names and positions of the streams, and the generators on them."""
PIPELINE = 3
"""How samples become numbers: reading, transforms, targets, and the metrics of evaluation."""
LEDGER = 1
"""What the lines of a ledger hold, and how they are digested."""

CURRENT: Mapping[str, int] = {"streams": STREAMS, "pipeline": PIPELINE, "ledger": LEDGER}

#: The last release that replays runs of a triple (streams, pipeline, ledger). The current triple has the current one.
RELEASES: dict[tuple[int | str, ...], str] = {(1, 1, 1): "0.1.0", (1, 2, 1): "0.2.0", (2, 3, 1): "0.3.0"}

_WORDS = {
    "streams": "the definition of random streams",
    "pipeline": "the pipeline (reading, targets, evaluation metrics)",
    "ledger": "the ledger",
}


def replay_versions(environment: Mapping[str, Any]) -> dict[str, int | str]:
    """The three versions of a recorded environment; 1 where the record does not say.

    Args:
        environment: The section ``environment`` of a manifest. What is no whole number there comes back as text.

    Example:
        >>> replay_versions({"replay_versions": {"pipeline": 2}})
        {'streams': 1, 'pipeline': 2, 'ledger': 1}
    """
    recorded = environment.get("replay_versions")
    values = {name: recorded.get(name, 1) if isinstance(recorded, Mapping) else 1 for name in CURRENT}
    return {name: value if type(value) is int else str(value) for name, value in values.items()}


def not_replayable(environment: Mapping[str, Any]) -> str:
    """Why this version cannot replay a run, and which release can, in a few sentences; empty if it can.

    Args:
        environment: The section ``environment`` of the run's manifest.
    """
    recorded = replay_versions(environment)
    differing = [
        f"{_WORDS[name]} has version {recorded[name]} there and {current} here"
        for name, current in CURRENT.items()
        if recorded[name] != current
    ]
    if not differing:
        return ""
    # Of a triple that is not in the table at least the version that made the run can replay it.
    made_by = (environment.get("versions") or {}).get("autotimm")
    release = RELEASES.get((recorded["streams"], recorded["pipeline"], recorded["ledger"]), made_by)
    cure = f'Use the release that can replay it: pip install "autotimm=={release}".' if release else (
        "Use the version that made it."
    )  # fmt: skip
    here = f"autotimm {autotimm.__version__}"
    return f"The run was made by other rules than those of {here}: {'; '.join(differing)}. {cure}"


def require_replayable(environment: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a run that this version would continue by other rules.

    Args:
        environment: The section ``environment`` of the run's manifest.
        folder: The run's folder.

    Raises:
        ModelError: If its streams, pipeline or ledger have other versions.
    """
    if reason := not_replayable(environment):
        raise ModelError(f"{folder} cannot be resumed or replayed here. {reason}")
