"""Find the factor that is the cause: with it set back, a replay has the bits of the other run."""

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
from autotimm.runs.recorded_run import read_recorded
from autotimm.runs.restore import read_manifest
from autotimm.train.progress import say

__all__ = ["confirm_difference", "confirm_replay"]

MOST = 8  # factors that are tried: each costs a replay
_NONE = "Not confirmed: no recorded factor restores the bits"


@dataclass(frozen=True)
class _Question:
    """The question whether one of some factors restores the bits of the other run.

    Attributes:
        case: Which run is replayed, and what it is compared with.
        base: How it is replayed before a factor is set back.
        factors: What differs and can be set back.
        fixed: What differs and cannot be set back, in words.
        bits: Whose bits are to be restored, in words.
        difference: The first difference of the two runs.
    """

    case: Case
    base: Setup
    factors: Sequence[Factor]
    fixed: Sequence[str]
    bits: str
    difference: Difference


def confirm_difference(a: Path, b: Path, difference: Difference) -> str:
    """Name the factor that makes two runs differ, by replaying the second with the factors of the first.

    If the second cannot be replayed, the first is replayed with the factors of the second.

    Args:
        a: The folder of the first run.
        b: That of the second.
        difference: Their first difference.
    """
    manifests = {folder: read_manifest(folder) for folder in (a, b)}
    ledgers = {folder: read_recorded(folder).ledger.lines for folder in (a, b)}
    if any(line["kind"] == "gap" for lines in ledgers.values() for line in lines):
        return "Not confirmed: a ledger has a gap, so that a replay cannot be compared with it."
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
        answer, problem = _answer(question)
        if answer:
            return " ".join([*problems, answer])
        problems.append(f"{replayed} cannot be replayed here: {problem}")
        say(f"explain: {problems[-1]}")
    return f"Not confirmed: neither run can be replayed. {' '.join(problems)}"


def confirm_replay(
    folder: Path, difference: Difference, *, data: str | Path | None = None, workers: int | None = None
) -> str:
    """Name the factor of the surroundings that makes a replay differ from its record.

    Args:
        folder: The run's folder.
        difference: The first difference of the replay.
        data: The folder of the data, if it was moved.
        workers: Loading processes instead of the recorded number.
    """
    manifest = read_manifest(folder)
    lines = read_recorded(folder).ledger.lines
    case = Case(folder, folder, lines, _lines_at(lines, difference)[0], data, workers)
    try:
        surroundings = now(case)
    except AutotimmError as error:
        return f"Not confirmed: the run cannot be replayed here. {error}"
    factors = surroundings_apart(surroundings, manifest.environment)
    fixed = unsettable(replace(manifest, environment=surroundings), manifest)
    answer, problem = _answer(_Question(case, Setup({}, {}), factors, fixed, "the recorded bits", difference))
    return answer or f"Not confirmed: the run cannot be replayed here. {problem}"


def _threads(environment: dict[str, Any]) -> dict[str, Any]:
    threads = environment.get("threads")
    return {} if threads is None else {"threads": threads}


def _goal(recorded: Sequence[Line], other: Sequence[Line]) -> int:
    """The number of the line at which the first difference of two ledgers shows."""
    comparer = Comparer(recorded)
    for number, line in enumerate(other):
        if comparer.take(line) is not None:
            return number
    return len(other)


def _lines_at(lines: Sequence[Line], difference: Difference) -> tuple[int, int]:
    """The first and the last line to which a difference may belong."""
    place = difference.epoch, difference.batch, difference.step
    if difference.stage == "start":
        return 0, 0
    numbers = [
        number for number, line in enumerate(lines) if (line.get("epoch"), line.get("batch"), line.get("step")) == place
    ]
    return (numbers[0], numbers[-1]) if numbers else (len(lines), len(lines))


def _answer(question: _Question) -> tuple[str, str]:
    """The cause in words; or an empty text, and why the run cannot be replayed."""
    case, start = question.case, nearest_start(question.case)
    if case.replayed == case.other:
        case = replace(case, goal=_lines_at(case.recorded, question.difference)[1])
    say(f"explain: replaying {case.replayed} without changes, {start}, up to {question.difference.place}")
    plain = replay_up_to(case, question.base, start)
    if plain.restored and start.checkpoint is not None:
        start = Start(0, None)  # the cause acted before the checkpoint, and left no line
        say(f"explain: no difference from there on; once more {start}")
        plain = replay_up_to(case, question.base, start)
    if plain.problem:
        return "", plain.problem
    if plain.restored:
        suspects = _fixed(question) or "a callback, another process or chance"
        answer = f"{_NONE}: {case.replayed}, replayed without changes, already has {question.bits}"
        return f"{answer}. The cause of the difference cannot be set back: likely {suspects}.", ""
    return _try_factors(replace(question, case=case), start, plain), ""


def _try_factors(question: _Question, start: Start, plain: Played) -> str:
    tried = list(question.factors[:MOST])
    restoring: dict[Factor, Played] = {}
    refused = []
    for number, factor in enumerate(tried, 1):
        played = replay_up_to(question.case, question.base.with_([factor]), start)
        if played.problem:
            refused.append(f"{factor} could not be tried: {played.problem}")
        if played.restored:
            restoring[factor] = played
        what = "restores" if played.restored else "does not restore"
        say(f"explain: {number}/{len(tried)} {refused[-1] if played.problem else f'{factor} {what} {question.bits}'}")
    until = f"{question.bits} up to {question.difference.place}, replayed {start}"
    if restoring:
        single = [*restoring]
        names = str(single[0]) if len(single) == 1 else f"each of these alone: {'; '.join(map(str, single))};"
        answer = f"Confirmed: {names} restores {until}."
        return f"{answer} {_operator(question, start, plain, single[:1], restoring[single[0]])}".strip()
    if len(tried) > 1:
        played = replay_up_to(question.case, question.base.with_(tried), start)
        if played.restored:
            answer = (
                f"Confirmed: no single factor restores the bits, but all together do: {'; '.join(map(str, tried))};"
            )
            answer = f"{answer} they restore {until}."
            return f"{answer} {_operator(question, start, plain, tried, played)}".strip()
    more = f"{len(question.factors) - MOST} more were not tried" if len(question.factors) > MOST else ""
    names = f"tried: {'; '.join(map(str, tried))}" if tried else "there is none that could be set back"
    fixed = f"what differs and cannot be set back here: {fixed}" if (fixed := _fixed(question)) else ""
    return f"{_NONE}; {'; '.join(text for text in (names, more, *refused, fixed) if text)}."


def _fixed(question: _Question) -> str:
    return ", ".join(question.fixed[:5])


def _operator(question: _Question, start: Start, plain: Played, factors: Sequence[Factor], restored: Played) -> str:
    """The first operator that differs, in the step after which the weights differ."""
    if question.difference.stage not in ("forward", "update", "rate"):
        return ""  # the batch or a metric differs: no operator of the step is the cause
    if why := missing():
        return why
    place = None
    for step in sorted(plain.states):
        if plain.states[step] != restored.states.get(step):
            break
        place = step
    if place is None:
        return ""
    say(f"explain: recording the operators of epoch {place[0] + 1}, batch {place[1] + 1}, with and without")
    setups = question.base.with_(factors), question.base
    logs = [replay_up_to(question.case, setup, start, place) for setup in setups]
    if why := next((log.problem for log in logs if log.problem), ""):
        return f"The first operator that differs could not be found: {why}"
    sentence = first_operator(*(log.operators for log in logs))
    return f"{sentence[:-1]}; epoch {place[0] + 1}, batch {place[1] + 1}."
