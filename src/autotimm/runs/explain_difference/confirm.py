"""Which factor is the cause: the one with which the other run's bits come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotimm.errors import AutotimmError
from autotimm.records.ledger import Line
from autotimm.records.ledger_diff import Comparer, Difference
from autotimm.runs.explain_difference.operators import first_operator, missing
from autotimm.runs.explain_difference.partial_replay import (
    Case,
    Factor,
    Played,
    Setup,
    Start,
    nearest_start,
    now,
    options_apart,
    recorded_switches,
    replay_up_to,
    surroundings_apart,
    unsettable,
)
from autotimm.runs.restore import read_manifest
from autotimm.runs.verify import read_run_ledger
from autotimm.train.progress import say

__all__ = ["confirm_difference", "confirm_replay"]

MOST = 8  # factors that are tried: each costs a replay
_NONE = "Not confirmed: no recorded factor restores the bits"


@dataclass(frozen=True)
class _Question:
    """What is asked: whether one of these factors restores the bits.

    Attributes:
        case: Which run is replayed, and what it is compared with.
        base: How it is replayed before anything is set back.
        factors: What can be set back.
        fixed: What differs and cannot be, in words.
        bits: Whose bits are to come back, in words.
        difference: The first difference of the two.
    """

    case: Case
    base: Setup
    factors: Sequence[Factor]
    fixed: Sequence[str]
    bits: str
    difference: Difference


def confirm_difference(a: Path, b: Path, difference: Difference) -> str:
    """Say which factor makes two runs differ, by replaying the second with the factors of the first.

    Where the second cannot be made again, the first is replayed with the factors of the second.

    Args:
        a: The folder of the first run.
        b: That of the second.
        difference: Their first difference.
    """
    manifests = {folder: read_manifest(folder) for folder in (a, b)}
    ledgers = {folder: read_run_ledger(folder, manifests[folder])[0].lines for folder in (a, b)}
    if any(line["kind"] == "gap" for lines in ledgers.values() for line in lines):
        return "Not confirmed: a ledger has a gap, so that no line of it can be reached again."
    goal, problems = _goal(ledgers[a], ledgers[b]), list[str]()
    for replayed, other in ((b, a), (a, b)):
        here, there = manifests[replayed], manifests[other]
        surroundings = surroundings_apart(here.environment, there.environment)
        options = options_apart(replayed, other, (here, there))
        kernels = difference.stage in ("forward", "update")
        question = _Question(
            Case(replayed, other, ledgers[other], goal),
            Setup(_threads(here.environment), recorded_switches(here)),
            [*surroundings, *options] if kernels else [*options, *surroundings],
            unsettable(here, there), f"the bits of {other}", difference,
        )  # fmt: skip
        said, problem = _answer(question)
        if said:
            return " ".join([*problems, said])
        problems.append(f"{replayed} cannot be made again here: {problem}")
        say(f"explain: {problems[-1]}")
    return f"Not confirmed: neither run can be replayed. {' '.join(problems)}"


def confirm_replay(
    folder: Path, difference: Difference, *, data: str | Path | None = None, workers: int | None = None
) -> str:
    """Say which factor of the surroundings makes a replay differ from its record.

    Args:
        folder: The run's folder.
        difference: The first difference of the replay.
        data: Where the data is now, if it was moved.
        workers: Loading processes instead of the recorded number.
    """
    manifest = read_manifest(folder)
    lines = read_run_ledger(folder, manifest)[0].lines
    case = Case(folder, folder, lines, _lines_at(lines, difference)[0], data, workers)
    try:
        found = now(case)
    except AutotimmError as error:
        return f"Not confirmed: the run cannot be made again here. {error}"
    factors = surroundings_apart(found, manifest.environment)
    fixed = unsettable(replace(manifest, environment=found), manifest)
    said, problem = _answer(_Question(case, Setup({}, {}), factors, fixed, "the recorded bits", difference))
    return said or f"Not confirmed: the run cannot be made again here. {problem}"


def _threads(environment: dict[str, Any]) -> dict[str, Any]:
    found = environment.get("threads")
    return {} if found is None else {"threads": found}


def _goal(recorded: Sequence[Line], other: Sequence[Line]) -> int:
    """The line at which the first difference of two ledgers is known."""
    comparer = Comparer(recorded)
    for number, line in enumerate(other):
        if comparer.take(line) is not None:
            return number
    return len(other)


def _lines_at(lines: Sequence[Line], difference: Difference) -> tuple[int, int]:
    """The first and the last line that a difference may mean."""
    place = difference.epoch, difference.batch, difference.step
    if difference.stage == "start":
        return 0, 0
    found = [
        number for number, line in enumerate(lines) if (line.get("epoch"), line.get("batch"), line.get("step")) == place
    ]
    return (found[0], found[-1]) if found else (len(lines), len(lines))


def _answer(question: _Question) -> tuple[str, str]:
    """The cause in words; or nothing, and why the run cannot be replayed."""
    case, start = question.case, nearest_start(question.case)
    if case.replayed == case.other:
        case = replace(case, goal=_lines_at(case.recorded, question.difference)[1])
    say(f"explain: replaying {case.replayed} as it is, {start}, up to {question.difference.place}")
    plain = replay_up_to(case, question.base, start)
    if plain.restored and start.checkpoint is not None:
        start = Start(0, None)  # what makes the difference happened before the checkpoint, and left no line
        say(f"explain: no difference from there on; once more {start}")
        plain = replay_up_to(case, question.base, start)
    if plain.problem:
        return "", plain.problem
    if plain.restored:
        suspects = _fixed(question) or "a callback, another process or chance"
        said = f"{_NONE}: {case.replayed}, replayed as it is, already has {question.bits}"
        return f"{said}. What made the difference cannot be set back: likely {suspects}.", ""
    return _try_factors(replace(question, case=case), start, plain), ""


def _try_factors(question: _Question, start: Start, plain: Played) -> str:
    tried = list(question.factors[:MOST])
    found: dict[Factor, Played] = {}
    refused = []
    for number, factor in enumerate(tried, 1):
        played = replay_up_to(question.case, question.base.with_([factor]), start)
        if played.problem:
            refused.append(f"{factor} could not be tried: {played.problem}")
        if played.restored:
            found[factor] = played
        what = "restores" if played.restored else "does not restore"
        say(f"explain: {number}/{len(tried)} {refused[-1] if played.problem else f'{factor} {what} {question.bits}'}")
    until = f"{question.bits} up to {question.difference.place}, replayed {start}"
    if found:
        single = [*found]
        names = str(single[0]) if len(single) == 1 else f"each of these alone: {'; '.join(map(str, single))};"
        said = f"Confirmed: {names} restores {until}."
        return f"{said} {_operator(question, start, plain, single[:1], found[single[0]])}".strip()
    if len(tried) > 1:
        played = replay_up_to(question.case, question.base.with_(tried), start)
        if played.restored:
            said = f"Confirmed: no single factor restores the bits, but all together do: {'; '.join(map(str, tried))};"
            said = f"{said} they restore {until}."
            return f"{said} {_operator(question, start, plain, tried, played)}".strip()
    more = f"{len(question.factors) - MOST} more were not tried" if len(question.factors) > MOST else ""
    names = f"tried: {'; '.join(map(str, tried))}" if tried else "there is none that could be set back"
    fixed = f"what differs and cannot be set back here: {fixed}" if (fixed := _fixed(question)) else ""
    return f"{_NONE}; {'; '.join(one for one in (names, more, *refused, fixed) if one)}."


def _fixed(question: _Question) -> str:
    return ", ".join(question.fixed[:5])


def _operator(question: _Question, start: Start, plain: Played, factors: Sequence[Factor], restored: Played) -> str:
    """The first operator that differs, in the step from which on the weights differ."""
    if question.difference.stage not in ("forward", "update", "rate"):
        return ""  # the batch, or what was measured, differs: no operator of the step did it
    if why := missing():
        return why
    place = None
    for one in sorted(plain.states):
        if plain.states[one] != restored.states.get(one):
            break
        place = one
    if place is None:
        return ""
    say(f"explain: recording the operators of epoch {place[0]}, batch {place[1]}, with and without")
    setups = question.base.with_(factors), question.base
    logs = [replay_up_to(question.case, setup, start, place) for setup in setups]
    if why := next((one.problem for one in logs if one.problem), ""):
        return f"The first operator that differs could not be found: {why}"
    said = first_operator(*(one.operators for one in logs))
    return f"{said[:-1]}; epoch {place[0]}, batch {place[1]}."
