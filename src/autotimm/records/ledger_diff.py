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
    "dropped": (("step", "length"), *((name, "order") for name in ("split", "epoch", "batch", "ids", "by"))),
    "weights": (("step", "length"), *_UPDATE[:2]),
    "val": (("epoch", "length"), ("step", "length"), ("metrics", "validation")),
    "epoch": (("epoch", "length"), ("step", "length"), *_UPDATE, ("metrics", "validation")),
    "head": (*((name, "start") for name in ("features", "losses", "penalty", "weights")), ("metrics", "validation")),
    "choice": (("step", "length"), ("metrics", "validation"), ("tried", "validation"), ("epochs", "validation")),
    "end": (("step", "length"), ("evidence", "validation"), ("calibration", "validation")),
}
# Unknown with loaders of the caller's own, or without that option.
_OPTIONAL = ("ids", "inputs", "evidence", "calibration")


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

    A record with a ``gap`` consists of several stretches of lines. Each is compared from where it begins in the run,
    and each of its lines must be met: a gap excuses lines that are missing, and none that are there.

    A difference of a metric is reported one line later, when it is known whether the weights differ too.

    Args:
        recorded: The lines of the recorded ledger.
        every_field: Compare also fields that are unknown in one of the two, and those that no line of its kind has.
            Only the run's id is left out, which depends on the version of autotimm.

    Attributes:
        steps: The number of steps that were compared.
        missing: The number of steps that the record lacks, because of its gaps.

    Example:
        >>> comparer = Comparer([{"kind": "step", "epoch": 0, "batch": 0, "step": 1, "loss": "0x1p+0"}])
        >>> comparer.take({"kind": "step", "epoch": 0, "batch": 0, "step": 1, "loss": "0x1.8p+0"}).stage
        'forward'
    """

    def __init__(self, recorded: Sequence[_Line], *, every_field: bool = False) -> None:
        self._stretches = _stretches(recorded)
        self._every_field = every_field
        self._from_start = True  # whether the run that is compared has no gap itself
        self._pending: Difference | None = None
        self._equal_until: int | None = None
        self.steps = self.missing = 0

    @property
    def remaining(self) -> int:
        """The number of recorded lines that were not met."""
        return sum(stretch.met.count(0) for stretch in self._stretches)

    @property
    def exhausted(self) -> bool:
        """Whether no further line of the record can be met."""
        return self._stretches[-1].over if not self._from_start else not self.remaining

    def take(self, line: _Line) -> Difference | None:
        """Compare the next line; nothing is compared after the first difference.

        Returns:
            The first difference, ``None`` so far.
        """
        if line["kind"] == "gap":
            self._from_start = False
            for stretch in self._stretches:
                stretch.at = None
            return None
        pairs = [recorded for stretch in self._stretches if (recorded := stretch.meet(line)) is not None]
        if not pairs:
            return self._unmet(line)
        self.steps += line["kind"] == "step"
        found = (_compare(recorded, line, self._equal_until, self._every_field) for recorded in pairs)
        difference = next((each for each in found if each is not None), None)
        if difference is None and "weights" in line:
            self._equal_until = line.get("step", 0)
        if self._pending is not None:
            if line["kind"] == "val":
                return None
            earlier = difference is not None and difference.stage in ("forward", "update")
            return difference if earlier else self._pending
        if difference is not None and difference.stage == "validation" and pairs[0]["kind"] == line["kind"] == "val":
            self._pending = difference
            return None
        return difference

    def _unmet(self, line: _Line) -> Difference | None:
        """The difference that a line makes which the record does not have: none in a gap of one of the two."""
        if self._pending is not None:
            return self._pending
        if self._stretches[-1].over:
            return _at(line, "length", "lines", None, line["kind"], self._equal_until)
        self.missing += line["kind"] == "step"
        return None

    @property
    def pending(self) -> Difference | None:
        """A difference of a metric that has not been reported yet."""
        return self._pending

    def finish(self) -> Difference | None:
        """Compare the ends: the run is over.

        Returns:
            The first difference, which may be that the recorded run has lines that this one does not have.
        """
        if self._pending is not None:
            return self._pending
        for stretch in self._stretches:
            line = stretch.left_over(everywhere=self._from_start)
            if line is not None:
                return _at(line, "length", "lines", line["kind"], None, self._equal_until)
        return None


class _Stretch:
    """Lines of a record between two gaps, and how far they have been met."""

    def __init__(self, lines: Sequence[_Line], at: int | None) -> None:
        self.lines, self.at = lines, at  # the next line to meet; None until one of them is met
        self.met = bytearray(len(lines))
        self._places: dict[str, int] | None = None

    @property
    def over(self) -> bool:
        return self.at is not None and self.at >= len(self.lines)

    def meet(self, line: _Line) -> _Line | None:
        """The recorded line that stands where this one does, if it is in this stretch."""
        if self.at is None:
            if self._places is None:
                self._places = {_place(recorded): at for at, recorded in enumerate(self.lines)}
            self.at = self._places.get(_place(line))
        if self.at is None or self.over:
            return None
        recorded = self.lines[self.at]
        self.met[self.at] = 1
        self.at += 1
        return recorded

    def left_over(self, *, everywhere: bool) -> _Line | None:
        """The first line that was not met; unless ``everywhere`` only after lines that were."""
        first = self.met.find(0) if everywhere else self.at
        return None if first is None or not 0 <= first < len(self.lines) else self.lines[first]


def _stretches(recorded: Sequence[_Line]) -> list[_Stretch]:
    """The stretches of a record, of which the first begins with the run."""
    gaps = [index for index, line in enumerate(recorded) if line["kind"] == "gap"]
    begins, ends = [0, *(index + 1 for index in gaps)], [*gaps, len(recorded)]
    bounds = zip(begins, ends, strict=True)
    return [_Stretch(recorded[begin:end], None if number else 0) for number, (begin, end) in enumerate(bounds)]


def first_difference(
    recorded: Sequence[_Line], other: Iterable[_Line], *, every_field: bool = False
) -> Difference | None:
    """The first difference of two ledgers, or ``None`` if they are equal.

    The chain and the ids of the runs are not compared, nor, unless ``every_field``, digests of samples and inputs that
    only one of them has. Around a ``gap`` the lines that both have are compared.
    """
    comparer = Comparer(recorded, every_field=every_field)
    for line in other:
        if (difference := comparer.take(line)) is not None:
            return difference
    return comparer.finish()


def _place(line: _Line) -> str:
    return repr([line.get(name) for name in ("kind", "epoch", "batch", "step")])


def _at(line: _Line, stage: str, field: str, recorded: Any, found: Any, equal_until: int | None) -> Difference:
    epoch, batch, step = (line.get(name) for name in ("epoch", "batch", "step"))
    return Difference(stage, epoch, batch, step, field, recorded, found, equal_until)


def _compare(recorded: _Line, line: _Line, equal_until: int | None, every_field: bool) -> Difference | None:
    """The first field in which two lines differ."""
    kinds = recorded["kind"], line["kind"]
    if kinds[0] != kinds[1]:
        # Only one of them dropped a sample, or validated; or one has ended, or its epoch has more batches.
        stage = "order" if "dropped" in kinds else "validation" if "val" in kinds else "length"
        return _at(line, stage, "kind", *kinds, equal_until)
    if kinds[0] == "step":
        for name in ("epoch", "batch"):
            if not _same(recorded.get(name), line.get(name)):
                return _at(line, "length", name, recorded.get(name), line.get(name), equal_until)
    for name, stage in _fields(recorded, line, every_field):
        a, b = recorded.get(name), line.get(name)
        unknown = not every_field and name in _OPTIONAL and (a is None or b is None)
        one_sided = every_field and (name in recorded) != (name in line)
        if unknown or (_same(a, b) and not one_sided):
            continue
        if name == "metrics" and isinstance(a, Mapping) and isinstance(b, Mapping):
            return _at(line, stage, *_metric(a, b), equal_until)
        return _at(line, stage, name, a, b, equal_until)
    return None


def _fields(recorded: _Line, line: _Line, every_field: bool) -> list[tuple[str, str]]:
    """The fields to compare, with the stage of a difference."""
    fields = list(_FIELDS.get(recorded["kind"], ()))
    if every_field or not fields:
        known = {"kind", "prev", "run", *(name for name, _ in fields)}
        fields += [(name, "ledger") for name in sorted((recorded.keys() | line.keys()) - known)]
    return fields


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal, also in their types: True == 1 == 1.0 in Python."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    return type(a) is type(b) and bool(a == b)


def _metric(a: _Line, b: _Line) -> tuple[str, Any, Any]:
    """A metric that differs, preferably one that both runs have."""
    differing = [name for name in a.keys() | b.keys() if name not in a or name not in b or not _same(a[name], b[name])]
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
