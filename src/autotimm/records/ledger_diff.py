"""The first difference of two ledgers, and the distance of their numbers.

Lines are compared in order, and the first difference names the stage of training in which it arose::

    start        initial weights                       update      weights, buffers, optimizer, moving average
    order        which samples are in a batch          rate        learning rate
    inputs       their content, after augmentation     validation  metrics, with equal weights
    forward      loss, with equal inputs               length      one run is longer

The likely cause is named by :mod:`autotimm.records.causes`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Comparer", "Difference", "Distance", "first_difference", "numbers"]

_Line = Mapping[str, Any]

# The fields of a line in the order of comparison, with the stage of a difference. The loss comes before the rate, which
# acts on the next step only.
_UPDATE = (("weights", "update"), ("buffers", "update"), ("optimizer", "update"), ("averaged", "update"))
_FIELDS = {
    "start": (("weights", "start"), ("world_size", "start")),
    "step": (("ids", "order"), ("inputs", "inputs"), ("loss", "forward"), ("lr", "rate"), ("step", "update")),
    "weights": (("step", "length"), *_UPDATE[:2]),
    "val": (("epoch", "length"), ("step", "length"), ("metrics", "validation")),
    "epoch": (("epoch", "length"), ("step", "length"), *_UPDATE, ("metrics", "validation")),
    "end": (("step", "length"),),
}
_OPTIONAL = ("ids", "inputs")  # unknown with loaders of the caller's own


class Difference(NamedTuple):
    """The first difference of two ledgers.

    Attributes:
        stage: The stage of training, see the top of this module; ``ledger`` for a line of an unknown kind.
        epoch: The epoch, from 0; ``None`` if the line has none.
        batch: The batch in its epoch, from 0; ``None`` if the line has none.
        step: Optimizer steps done; ``None`` if the line has none.
        field: The field that differs; for metrics the metric's name.
        recorded: Its value in the first ledger; ``None`` if it is missing.
        found: Its value in the second.
        equal_until: The last step at which the digests of the weights were equal, or ``None``.
    """

    stage: str
    epoch: int | None
    batch: int | None
    step: int | None
    field: str
    recorded: Any
    found: Any
    equal_until: int | None = None

    @property
    def place(self) -> str:
        """The place in words, all counted from 1: ``step 12 (epoch 2, batch 4)``."""
        inner = [
            f"{name} {value + 1}" for name, value in (("epoch", self.epoch), ("batch", self.batch)) if value is not None
        ]
        if self.stage == "start" or (self.step is None and not inner):
            return "the start"
        return f"step {self.step}" + (f" ({', '.join(inner)})" if inner else "")


class Comparer:
    """Compares a run with a recorded one while it trains.

    A difference of a metric is reported one line later, when it is known whether the weights differ too.

    Args:
        recorded: The lines of the recorded ledger.

    Example:
        >>> comparer = Comparer([{"kind": "step", "epoch": 0, "batch": 0, "step": 1, "loss": "0x1p+0"}])
        >>> comparer.take({"kind": "step", "epoch": 0, "batch": 0, "step": 1, "loss": "0x1.8p+0"}).stage
        'forward'
    """

    def __init__(self, recorded: Sequence[_Line]) -> None:
        self._recorded = recorded
        self._at = 0
        self._pending: Difference | None = None
        self._equal_until: int | None = None
        self._places: dict[str, int] | None = None
        self._after_gap = False  # lines of a ledger were lost: find the next place in common

    @property
    def remaining(self) -> int:
        """The number of recorded lines not reached yet."""
        return len(self._recorded) - self._at

    def take(self, line: _Line) -> Difference | None:
        """Compare the next line; nothing is compared after the first difference.

        Returns:
            The first difference, ``None`` so far.
        """
        while self.remaining and self._recorded[self._at]["kind"] == "gap":
            self._at, self._after_gap = self._at + 1, True
        if line["kind"] == "gap":
            self._after_gap = True
            return None
        if self._after_gap and not self._meet(line):
            return None
        if not self.remaining:
            return self._pending or _at(line, "length", "lines", None, line["kind"], self._equal_until)
        recorded = self._recorded[self._at]
        self._at += 1
        difference = _compare(recorded, line, self._equal_until)
        if difference is None and "weights" in line:
            self._equal_until = line.get("step", 0)
        if self._pending is not None:
            if line["kind"] == "val":
                return None
            earlier = difference is not None and difference.stage in ("forward", "update")
            return difference if earlier else self._pending
        if difference is not None and difference.stage == "validation" and recorded["kind"] == line["kind"] == "val":
            self._pending = difference
            return None
        return difference

    def _meet(self, line: _Line) -> bool:
        """After a gap in either ledger, find the next place that both have."""
        if self._places is None:
            self._places = {_place(recorded): at for at, recorded in enumerate(self._recorded)}
        at = self._places.get(_place(line), -1)
        if at < self._at:
            return False
        self._at, self._after_gap = at, False
        return True

    def finish(self) -> Difference | None:
        """Compare the ends: the run is over.

        Returns:
            The first difference, which may be that the recorded run is longer.
        """
        while self.remaining and self._recorded[self._at]["kind"] == "gap":
            self._at, self._after_gap = self._at + 1, True
        if self._pending is None and self.remaining and not self._after_gap:
            line = self._recorded[self._at]
            return _at(line, "length", "lines", line["kind"], None, self._equal_until)
        return self._pending


def first_difference(recorded: Sequence[_Line], other: Iterable[_Line]) -> Difference | None:
    """The first difference of two ledgers, or ``None`` if they are equal.

    The chain and the ids of the runs are not compared, nor are digests of samples and inputs that only one of them has.
    Around a ``gap`` the lines that both have are compared.
    """
    comparer = Comparer(recorded)
    for line in other:
        if (difference := comparer.take(line)) is not None:
            return difference
    return comparer.finish()


def _place(line: _Line) -> str:
    return repr([line.get(name) for name in ("kind", "epoch", "batch", "step")])


def _at(line: _Line, stage: str, field: str, recorded: Any, found: Any, equal_until: int | None) -> Difference:
    epoch, batch, step = (line.get(name) for name in ("epoch", "batch", "step"))
    return Difference(stage, epoch, batch, step, field, recorded, found, equal_until)


def _compare(recorded: _Line, line: _Line, equal_until: int | None) -> Difference | None:
    """The first field in which two lines differ."""
    kinds = recorded["kind"], line["kind"]
    if kinds[0] != kinds[1]:
        # Only one of them validated; or one has ended, or its epoch has more batches.
        stage = "validation" if "val" in kinds else "length"
        return _at(line, stage, "kind", *kinds, equal_until)
    if kinds[0] == "step":
        for name in ("epoch", "batch"):
            if recorded.get(name) != line.get(name):
                return _at(line, "length", name, recorded.get(name), line.get(name), equal_until)
    all_fields = sorted((recorded.keys() | line.keys()) - {"kind", "prev"})
    for name, stage in _FIELDS.get(kinds[0], [(name, "ledger") for name in all_fields]):
        a, b = recorded.get(name), line.get(name)
        if a == b or (name in _OPTIONAL and (a is None or b is None)):
            continue
        if name == "metrics" and isinstance(a, Mapping) and isinstance(b, Mapping):
            return _at(line, stage, *_metric(a, b), equal_until)
        return _at(line, stage, name, a, b, equal_until)
    return None


def _metric(a: _Line, b: _Line) -> tuple[str, Any, Any]:
    """A metric that differs, preferably one that both runs have."""
    differing = [name for name in a.keys() | b.keys() if name not in a or name not in b or a[name] != b[name]]
    name = min(differing, key=lambda metric: (metric not in a or metric not in b, metric))
    return name, a.get(name), b.get(name)


class Distance(NamedTuple):
    """The distance of the losses of one step.

    Attributes:
        step: Optimizer steps done after this one.
        recorded: The loss in the first ledger.
        found: The loss in the second.
        relative: Their distance divided by the larger one; 0 if they are equal, infinite if only one is finite.
    """

    step: int
    recorded: float
    found: float
    relative: float


def numbers(recorded: Iterable[_Line], other: Iterable[_Line]) -> list[Distance]:
    """The numerical distance per step, for runs on different hardware, which cannot be equal bit for bit.

    Steps that only one run has are left out, as are losses that cannot be parsed.

    Example:
        >>> line = {"kind": "step", "epoch": 0, "batch": 0, "step": 1}
        >>> numbers([line | {"loss": "0x1p+2"}], [line | {"loss": "0x1.8p+1"}])
        [Distance(step=1, recorded=4.0, found=3.0, relative=0.25)]
    """
    losses = {_place(line): _number(line.get("loss")) for line in recorded if line["kind"] == "step"}
    distances = []
    for line in other:
        a, b = losses.get(_place(line)), _number(line.get("loss"))
        if a is not None and b is not None:
            distances.append(Distance(line["step"], a, b, _relative(a, b)))
    return distances


def _number(text: object) -> float | None:
    try:
        return float.fromhex(text) if isinstance(text, str) else None
    except (ValueError, OverflowError):
        return None


def _relative(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    # Divided before subtracting: the difference of two large numbers may be out of range.
    largest = max(abs(a), abs(b))
    return abs(a / largest - b / largest) if math.isfinite(a) and math.isfinite(b) else math.inf
