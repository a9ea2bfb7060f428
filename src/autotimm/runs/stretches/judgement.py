"""Judge a stretch: whether what was recorded is as near to a replay as rounding alone would leave it.

The distance of a recorded loss is compared with the largest distance up to that step of replays that differ in rounding
alone, and the distance of recorded weights with that of theirs. Over honest runs of many architectures on stand-ins for
other hardware the ratio was hardly ever above 3 (``benchmarks/consistent.py``); the limits leave room for machines that
differ more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autotimm.records.ledger import Line
from autotimm.records.ledger_diff import Difference
from autotimm.runs.stretches.choice import Stretch
from autotimm.runs.stretches.measure import Measured
from autotimm.runs.stretches.replay import AS_RECORDED

__all__ = ["LIMIT", "StretchDistance", "judge_stretch"]

LIMIT = 8.0
"""How many times the noise a loss, or all weights together, may be away."""
_TENSOR_LIMIT = 16.0  # of each of a hundred tensors: the largest of a hundred ratios is larger
_RATE = 1e-12  # of a rate: the last bits of a cosine depend on the C library
_MORE_THAN_ROUNDING = 2.0**12  # units of roundoff in the first loss: a replay that is farther away differs in more


@dataclass(frozen=True)
class StretchDistance:
    """How far the record of a stretch is from its replay, beside what rounding alone does.

    Attributes:
        stretch: Its steps in words.
        start: The checkpoint that it begins at; empty for the start of the run.
        steps: The number of steps (lines of the ledger) that were compared.
        loss: The largest distance of a recorded loss, relative to the loss.
        loss_noise: The largest distance of a loss of other roundings.
        ratio: The largest ratio of the two, taken step by step; more than :data:`LIMIT` is ``different``.
        weights: The distance of the recorded weights after the last step, relative to the distance that these steps
            have moved them; ``None`` if the stretch does not reach a checkpoint.
        weights_noise: That of other roundings.
        weights_ratio: The ratio of the two.
        equal_bits: Whether all losses and weights have the recorded bits.
        inputs: Whether the images were compared exactly.
        roundings: What was varied, in words.
    """

    stretch: str
    start: str
    steps: int
    loss: float
    loss_noise: float
    ratio: float
    weights: float | None
    weights_noise: float | None
    weights_ratio: float | None
    equal_bits: bool
    inputs: bool
    roundings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        where = f"{self.stretch}, from {self.start or 'the start'}"
        if self.equal_bits and not self.roundings:
            return f"{where}: all bits equal"
        losses = f"losses apart by {self.loss:.1e}, by rounding alone {self.loss_noise:.1e}"
        if self.weights is None or self.weights_noise is None:
            return f"{where}: {losses}"
        return f"{where}: {losses}; updates by {self.weights:.1e}, by rounding alone {self.weights_noise:.1e}"


@dataclass(frozen=True)
class Judged:
    """The judgement of a stretch.

    Attributes:
        distance: The distances.
        difference: The first difference that rounding does not explain; ``None`` if there is none.
        reason: That difference in words.
    """

    distance: StretchDistance
    difference: Difference | None = None
    reason: str = ""


def judge_stretch(
    recorded: Sequence[Line],
    stretch: Stretch,
    measured: Measured,
    *,
    unit: float,
    same_pixels: bool,
    exact: bool = False,
) -> Judged:
    """Compare what was recorded of a stretch with its replays.

    Args:
        recorded: The lines of the ledger.
        stretch: The stretch.
        measured: What was measured in it.
        unit: The unit roundoff of the arithmetic of the run.
        same_pixels: Whether images must have the recorded digests.
        exact: Whether images with the recorded digests must lead to the recorded bits.
    """
    steps = {(line["epoch"], line["batch"]): line for line in recorded if line["kind"] == "step"}
    lines = measured.lines[AS_RECORDED.name]
    pairs = [(steps.get((line["epoch"], line["batch"])), line) for line in lines]
    others = _others(measured, unit)
    first, reason = None, ""
    inputs = all(a is not None and a["inputs"] == b["inputs"] for a, b in pairs)
    exact = exact and inputs
    losses: list[tuple[float, float, float]] = []  # distance, noise and size of each loss
    noise = 0.0
    for index, (a, b) in enumerate(pairs):
        loss = _number(b["loss"])
        noise = max([noise, *(abs(_number(other[index]["loss"]) - loss) for other in others.values())])
        found = _compared(a, b, same_pixels)
        if found is None and a is not None:
            away, floor = abs(_number(a["loss"]) - loss), 4 * unit * abs(loss)
            losses.append((away, max(noise, floor), abs(loss)))
            if not away <= (0 if exact else LIMIT * max(noise, floor)):
                found = "forward", "loss", a["loss"], b["loss"]
                reason = f"It is {away:.2g} away from a replay, and {_allowed(exact, noise)}"
        if found is not None:
            first = Difference(found[0], b["epoch"], b["batch"], b["step"], *found[1:])
            break
    distance = _distance(stretch, measured, losses, others, inputs, len(pairs))
    if first is None and exact and (apart := [name for name, away in measured.recorded.items() if away]):
        line = lines[-1]
        first = Difference("update", line["epoch"], line["batch"], line["step"], apart[0], "", "")
        reason = (
            f"The recorded tensor is {measured.recorded[apart[0]]:.2g} away from a replay, and {_allowed(exact, 0)}"
        )
    elif first is None and measured.recorded:
        first, reason = _weights(measured, others, lines[-1], unit)
    return Judged(distance, first, reason)


def _allowed(exact: bool, noise: float) -> str:
    if exact:
        return "a portable run has the same bits on every processor"
    return f"other roundings are {noise:.2g} away at most"


def _others(measured: Measured, unit: float) -> dict[str, list[Line]]:
    """The replays that differ in rounding alone, as their first loss tells.

    One that is farther away has, for example, dropped other parts of the network. It would hide everything.
    """
    loss = _number(measured.lines[AS_RECORDED.name][0]["loss"])
    most = min(_MORE_THAN_ROUNDING * unit, 0.1) * max(abs(loss), 1e-3)
    return {
        name: lines for name, lines in measured.lines.items()
        if name != AS_RECORDED.name and (
            name.startswith("pixels") or abs(_number(lines[0]["loss"]) - loss) <= most
        )
    }  # fmt: skip


def _compared(a: Line | None, b: Line, same_pixels: bool) -> tuple[str, str, Any, Any] | None:
    """The first field of a step, but for its loss, that differs: its stage, its name and both values."""
    if a is None:
        return "length", "lines", None, "step"
    if a["ids"] != b["ids"]:
        return "order", "ids", a["ids"], b["ids"]
    if same_pixels and a["inputs"] != b["inputs"]:
        return "inputs", "inputs", a["inputs"], b["inputs"]
    if not math.isclose(_number(a["lr"]), _number(b["lr"]), rel_tol=_RATE, abs_tol=1e-300):
        return "rate", "lr", a["lr"], b["lr"]
    if a["step"] != b["step"]:
        return "length", "step", a["step"], b["step"]
    return None


def _weights(measured: Measured, others: Mapping[str, Any], line: Line, unit: float) -> tuple[Difference | None, str]:
    """Whether the tensors of the checkpoint after the stretch are as near as other roundings leave them."""
    apart = [each for name, each in measured.apart.items() if name in others]
    worst, ratio = "", 0.0
    for name, away in measured.recorded.items():
        noise = max([_floor(measured.sizes.get(name, 0.0), unit), *(each.get(name, 0.0) for each in apart)])
        found = away / noise if noise else (math.inf if away else 0.0)
        if found > ratio:
            worst, ratio = name, found
    whole = _whole(measured, others, unit)
    if ratio <= _TENSOR_LIMIT and whole[0] <= LIMIT * whole[1]:
        return None, ""
    difference = Difference("update", line["epoch"], line["batch"], line["step"], worst, "", "")
    return difference, f"The recorded tensor is {ratio:.2g} times as far from a replay as other roundings are"


def _floor(size: float, unit: float) -> float:
    return 2 * unit * size


def _whole(measured: Measured, others: Mapping[str, Any], unit: float) -> tuple[float, float]:
    """The distance of all weights and buffers together, and the noise."""
    names = [name for name in measured.recorded if not name.startswith(("optimizer ", "average."))]
    apart = [each for name, each in measured.apart.items() if name in others]
    noise = max(
        [math.hypot(*(_floor(measured.sizes.get(name, 0.0), unit) for name in names)),
         *(math.hypot(*(each.get(name, 0.0) for name in names)) for each in apart)]
    )  # fmt: skip
    return math.hypot(*(measured.recorded[name] for name in names)), noise


def _distance(
    stretch: Stretch, measured: Measured, losses: list[tuple[float, float, float]], others: Mapping[str, Any],
    inputs: bool, steps: int,
) -> StretchDistance:  # fmt: skip
    weights: tuple[float | None, float | None, float | None] = (None, None, None)
    if measured.recorded:
        away, noise = _whole(measured, others, 0.0)
        moved = math.hypot(*(d for name, d in measured.updates.items() if not name.startswith(("opt", "average."))))
        weights = away / max(moved, 1e-30), noise / max(moved, 1e-30), away / noise if noise else 0.0
    return StretchDistance(
        str(stretch), stretch.start, steps,
        loss=max((away / max(size, 1e-30) for away, _, size in losses), default=0.0),
        loss_noise=max((noise / max(size, 1e-30) for _, noise, size in losses), default=0.0),
        ratio=max((away / noise if noise else (math.inf if away else 0.0) for away, noise, _ in losses), default=0.0),
        weights=weights[0], weights_noise=weights[1], weights_ratio=weights[2],
        equal_bits=not any(away for away, _, _ in losses) and not any(measured.recorded.values()),
        inputs=inputs, roundings=tuple(others),
    )  # fmt: skip


def _number(text: Any) -> float:
    """A number of the ledger; one that is missing or none is far from all."""
    try:
        return float.fromhex(text)
    except (TypeError, ValueError, OverflowError):
        return math.inf
