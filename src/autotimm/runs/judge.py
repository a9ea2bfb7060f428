"""Judge a run by a replay of it: compare each line of the ledger, then each file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from autotimm.errors import DifferentError, IncompleteError
from autotimm.records.causes import differences, likely_cause
from autotimm.records.ledger import Line
from autotimm.records.ledger_diff import Comparer, Difference, numbers
from autotimm.runs.compare_folders import compare_folders
from autotimm.runs.file_contents import Finding
from autotimm.runs.recorded_run import RecordedRun, export_findings
from autotimm.runs.replayed_run import Replay
from autotimm.runs.verdict import Verdict, describe, worth_naming

__all__ = ["judge", "listed"]

_NAMED = 5  # differences of files in the reason; all are in `findings`


def judge(run: RecordedRun, replay: Replay) -> Verdict:
    """Compare a record with a replay of it: each line of the ledger, then each file.

    It depends on the two alone, and trains nothing.
    """
    comparer = Comparer(run.ledger.lines, every_field=True)
    difference = next((each for line in replay.lines if (each := comparer.take(line)) is not None), None)
    if difference is None:
        difference = comparer.finish() if replay.ended else comparer.pending
    if difference is not None:
        return _different(run, replay, difference, comparer.steps)
    outcome = compare_folders(run, replay)
    findings = [*run.findings, *outcome.findings]
    if not replay.ended:
        findings += export_findings(run.folder)
    findings = list(dict.fromkeys(findings))
    not_checked = (*_lines_not_met(run, replay, comparer), *outcome.not_checked)
    return _verdict(run, replay, comparer, findings, not_checked)


def _lines_not_met(run: RecordedRun, replay: Replay, comparer: Comparer) -> list[str]:
    """The part of the ledger that was not to be compared."""
    if not (replay.part and comparer.remaining):
        return []
    return [f"{comparer.remaining} of {len(run.ledger.lines)} lines of ledger.jsonl"]


def _verdict(
    run: RecordedRun, replay: Replay, comparer: Comparer, findings: list[Finding], not_checked: tuple[str, ...]
) -> Verdict:
    """The verdict on a record whose lines are those of the replay, as far as they were compared."""
    contradictions = [str(finding) for finding in findings if not finding.damage]
    damages = [str(finding) for finding in findings if finding.damage]
    if not (run.finished or replay.part):
        damages.append("the run did not finish; compared up to where it stopped")
    total = run.steps if replay.part and not run.ledger.problem else None
    total = comparer.steps + comparer.missing if replay.whole else total
    said: dict[str, Any] = {
        "steps": comparer.steps, "of_steps": total if total != comparer.steps or replay.part else None,
        "notes": tuple(damages), "findings": tuple(contradictions + damages), "not_checked": not_checked,
        "partial": bool(replay.part),
    }  # fmt: skip
    if contradictions:
        reason = f"The steps are those of the record, and other values are not: {listed(contradictions)}."
        return Verdict("different", DifferentError.exit_code, reason, **said)
    if damages or comparer.missing:
        reason = "What could be compared equals the replay."
        return Verdict("incomplete", IncompleteError.exit_code, reason, **said)
    return Verdict("identical", 0, **said)


def _different(run: RecordedRun, replay: Replay, difference: Difference, steps: int) -> Verdict:
    """The verdict at the first line that differs, with its likely cause."""
    # Initial weights are compared by the ledgers; a replay that begins at a checkpoint has others.
    apart = worth_naming(differences(run.manifest, replay.manifest))
    apart = [value for value in apart if value.name not in ("initial", "weights.source")]
    reason = f"{describe(difference)} {likely_cause(difference, apart, recorded=run.manifest)}"
    verdict = Verdict(
        "different", DifferentError.exit_code, reason, difference, steps, tuple(map(str, run.findings)),
        findings=tuple(map(str, run.findings)), partial=bool(replay.part),
    )  # fmt: skip
    if not replay.other_hardware:
        return verdict
    lines = [*run.ledger.lines]
    return replace(verdict, distances=tuple(numbers(lines, replay.lines)), metrics=_metrics(lines, replay.lines))


def _metrics(recorded: list[Line], taken: list[Line]) -> dict[str, tuple[float, float]]:
    ends = [[line for line in lines if line["kind"] == "epoch"] for lines in (recorded, taken)]
    if not all(ends):
        return {}
    same = [line for line in ends[0] if line["epoch"] == ends[1][-1]["epoch"]]
    if not same:
        return {}
    a, b = same[0]["metrics"], ends[1][-1]["metrics"]
    return {name: (float.fromhex(a[name]), float.fromhex(b[name])) for name in a.keys() & b.keys()}


def listed(findings: list[str]) -> str:
    """The first findings, and the number of the others."""
    more = f"; and {len(findings) - _NAMED} more" if len(findings) > _NAMED else ""
    return f"{'; '.join(findings[:_NAMED])}{more}"
