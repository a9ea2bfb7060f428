"""Which stretches of a run are replayed, and the chance that none of them meets an invented step."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autotimm.errors import is_whole, require
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.repro.streams import key
from autotimm.runs.recorded_run import RecordedRun

__all__ = [
    "Choice", "Stretch", "choose", "draw", "new_challenge", "passing_chance", "recorded_stretches", "steps_before",
    "within_budget",
]  # fmt: skip


@dataclass(frozen=True)
class Stretch:
    """A few steps from a recorded checkpoint on.

    Attributes:
        start: The name of the checkpoint; empty for the start of the run.
        first: The number of optimizer steps before it.
        steps: The number of optimizer steps to replay.
        length: The number of optimizer steps up to the next recorded checkpoint, or to the end of the record.
        end: The name of the next checkpoint; empty if there is none.
    """

    start: str
    first: int
    steps: int
    length: int
    end: str

    @property
    def reaches_end(self) -> bool:
        """Whether its last step leads to a recorded checkpoint, so that weights can be compared."""
        return bool(self.end) and self.steps == self.length

    def __str__(self) -> str:
        return f"steps {self.first + 1} to {self.first + self.steps}"


def new_challenge() -> int:
    """A challenge that nobody could know before, from the system's random numbers."""
    return secrets.randbits(48)


def recorded_stretches(run: RecordedRun, steps: int | None) -> list[Stretch]:
    """All stretches that the record of a run allows for, in their order.

    One begins at each intact checkpoint that is followed by a step, and one at the start of the run. Each ends after
    the given number of optimizer steps, or at the next checkpoint if that comes first; ``None`` ends all there.
    """
    lines = [line for line in run.ledger.lines if line["kind"] == "step"]
    if not lines:
        return []
    last, first = max(line["step"] for line in lines), steps_before(run)
    places = {first: ""} | {step: path.name for path, step in _checkpoints(run.folder) if first <= step}
    begins = sorted(step for step in places if step < last)
    stretches = []
    for begin in begins:
        end = min((step for step in places if step > begin), default=last)
        end = min(end, last)
        number = end - begin if steps is None else min(steps, end - begin)
        stretches.append(Stretch(places[begin], begin, number, end - begin, places.get(end, "")))
    return stretches


def _checkpoints(folder: Path) -> list[tuple[Path, int]]:
    """The intact checkpoints with their numbers of optimizer steps; the end of an epoch comes after its last batch."""
    store = CheckpointStore(folder / "checkpoints")
    if not store.folder.is_dir():
        return []
    return [(path, int(path.stem.rpartition("-")[2])) for path in store.files() if store.whole(path)]


def steps_before(run: RecordedRun) -> int:
    """The number of optimizer steps before the first line: those of another run, if it has begun at its checkpoint."""
    first = min(line["step"] for line in run.ledger.lines if line["kind"] == "step")
    arguments = run.manifest.inputs.get("config", {}).get("trainer", {})
    accumulates = arguments.get("accumulate_grad_batches") not in (None, 1)
    return int(first) if accumulates else int(first) - 1


def draw(stretches: Sequence[Stretch], number: int, challenge: int) -> list[Stretch]:
    """Draw stretches without replacement, each equally likely.

    Args:
        stretches: All of them.
        number: How many to draw; all if there are fewer.
        challenge: Whoever knows it knows the result: a run must be made before it.

    Example:
        >>> stretches = [Stretch("", first, 5, 5, "") for first in (0, 5, 10)]
        >>> [each.first for each in draw(stretches, 2, challenge=1)] == [each.first for each in draw(stretches, 2, 1)]
        True
    """
    fine = is_whole(challenge, 0)
    require(fine, "challenge", "verify", "an integer of at least 0", challenge, "Leave it out to draw one.")
    ranked = sorted(stretches, key=lambda stretch: key(challenge, "stretches", stretch.first))
    return sorted(ranked[:number], key=lambda stretch: stretch.first)


@dataclass(frozen=True)
class Choice:
    """What is replayed of a run.

    Attributes:
        stretches: All stretches that could be drawn.
        drawn: Those that are.
        budget: The share of the run's steps that may be compared; ``None`` if a number of stretches was given.
    """

    stretches: Sequence[Stretch]
    drawn: Sequence[Stretch]
    budget: float | None = None


def choose(run: RecordedRun, challenge: int, *, number: int, steps: int) -> Choice:
    """Draw a number of stretches of some steps each."""
    stretches = recorded_stretches(run, steps)
    return Choice(stretches, draw(stretches, number, challenge))


def within_budget(run: RecordedRun, challenge: int, budget: float, steps: int | None) -> Choice:
    """Draw as many stretches as a budget allows for.

    Their number does not depend on the challenge: it is that of the longest ones that have no more steps together than
    the budget. So the chance of :func:`passing_chance` holds, and whatever is drawn stays within the budget.

    Args:
        run: The record.
        challenge: The seed of the draw.
        budget: A share of the optimizer steps of the record, above 0 and at most 1; at least one step is drawn.
        steps: Optimizer steps of each stretch; ``None`` for all up to the next checkpoint, as far as the budget allows.
    """
    whole = recorded_stretches(run, None)
    most = max(math.floor(budget * sum(each.length for each in whole) + 1e-9), 1)
    stretches = recorded_stretches(run, min(steps or most, most))
    number = spent = 0
    for length in sorted((each.steps for each in stretches), reverse=True):
        number, spent = number + (spent + length <= most), spent + length
    return Choice(stretches, draw(stretches, number, challenge), budget)


def passing_chance(stretches: Sequence[Stretch], drawn: int, share: float) -> float:
    """The chance that no drawn stretch has an invented step, if a share of the steps within reach is invented.

    Whoever invents steps does best to put them into as few stretches as possible, the longest first. If these are
    ``b`` of ``m`` stretches, and ``k`` are drawn, the chance is that of drawing ``k`` of the other ``m - b``
    (hypergeometric distribution).

    Args:
        stretches: All stretches of the record.
        drawn: The number that is drawn.
        share: The share of invented steps, above 0.

    Example:
        >>> stretches = [Stretch("", first, 5, 5, "") for first in range(0, 50, 5)]
        >>> [round(passing_chance(stretches, 2, share), 3) for share in (0.01, 0.1, 0.5)]
        [0.8, 0.8, 0.222]
    """
    invented = share * sum(stretch.steps for stretch in stretches)
    bad = 0
    for length in sorted((stretch.steps for stretch in stretches), reverse=True):
        if invented <= 1e-9:
            break
        invented, bad = invented - length, bad + 1
    return math.comb(len(stretches) - bad, drawn) / math.comb(len(stretches), drawn)
