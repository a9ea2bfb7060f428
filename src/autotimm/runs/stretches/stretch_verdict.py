"""Verify a run in stretches: the verdict is `consistent`, or `different` at a step."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autotimm.data.data_facts import Snapshot
from autotimm.errors import (
    AutotimmError,
    DataError,
    DifferentError,
    ModelError,
    UsageError,
    require,
)
from autotimm.records.replay_versions import not_replayable
from autotimm.records.run_folder import RunFolder
from autotimm.runs.parent import check_parent
from autotimm.runs.recorded_run import RecordedRun, read_recorded
from autotimm.runs.restore import Rebuilt
from autotimm.runs.stretches.choice import Stretch, draw, new_challenge, passing_chance, recorded_stretches
from autotimm.runs.stretches.court import Court, StretchProof, pixel_factors_apart
from autotimm.runs.stretches.measure import Measurement
from autotimm.runs.stretches.replay import rebuild_here
from autotimm.runs.verdict import Verdict
from autotimm.runs.verify import other_data, other_settings
from autotimm.train.run_description import surroundings

__all__ = ["verify_stretches"]

_SHARES = (0.01, 0.1, 0.5)


def verify_stretches(
    folder: Path,
    *,
    stretches: int = 8,
    steps: int = 5,
    challenge: int | None = None,
    data: str | Path | None = None,
    workers: int | None = None,
    jobs: int = 1,
) -> Verdict:
    """Replay a few steps from some recorded checkpoints, and compare with what rounding alone does here.

    Nothing is written into the run's folder.

    Args:
        folder: The run's folder.
        stretches: The number of stretches to draw.
        steps: Optimizer steps of each; it ends earlier where the next checkpoint comes first.
        challenge: The seed that they are drawn with; ``None`` draws one from the system.
        data: The folder of the data, if it was moved.
        workers: Loading processes instead of the recorded number.
        jobs: Processes that replay stretches at a time; with 1 they are replayed in this one.

    Raises:
        UsageError: If an argument is wrong.
        ModelError: If the folder has no record of a run.
    """
    for name, value in (("stretches", stretches), ("steps", steps), ("jobs", jobs)):
        require(value >= 1, name, "verify", "an integer of at least 1", value, "Give for example 8.")
    run = read_recorded(folder)
    notes = tuple(str(finding) for finding in run.findings)
    challenge = new_challenge() if challenge is None else challenge
    choices = recorded_stretches(run, steps)
    drawn = draw(choices, stretches, challenge)
    if reason := _not_comparable(run, drawn):
        return Verdict("not comparable", ModelError.exit_code, reason, notes=notes)
    if reason := run.manifest.changed_files:
        return Verdict("not comparable", DataError.exit_code, reason, notes=notes)
    with tempfile.TemporaryDirectory(prefix="autotimm-verify-") as scratch:
        place = RunFolder(Path(scratch) / "look", Path(scratch))
        try:
            rebuilt = rebuild_here(
                folder, place, data=data, workers=workers, weights_needed=not all(each.start for each in drawn)
            )
        except AutotimmError as error:
            if isinstance(error, UsageError):
                raise
            return Verdict("not comparable", error.exit_code, str(error), notes=notes)
        snapshot = Snapshot(rebuilt.data.tables.values(), cached=False)
        refusal = other_data(run, snapshot.content) or _settings(run, rebuilt)
        chain = check_parent(folder, run.manifest)
        if refusal is None and chain.problem:
            refusal = Verdict("different", DifferentError.exit_code, chain.problem, notes=notes)
        if refusal is not None:
            return refusal
        apart = pixel_factors_apart(run.manifest, surroundings(rebuilt.trainer))
        asked = Measurement(run, Path(scratch), None if data is None else str(data), workers, not apart)
        court = Court(asked, apart, _device(rebuilt), jobs)
        proof = _proof(run, choices, drawn, challenge)
        try:
            return court.verdict(court.measured(drawn), proof, chain.notes)
        except AutotimmError as error:
            if isinstance(error, UsageError):
                raise
            return Verdict("not comparable", error.exit_code, str(error), notes=notes)


def _not_comparable(run: RecordedRun, drawn: Sequence[Stretch]) -> str:
    """Why no stretch can be replayed; empty if one can."""
    if reason := not_replayable(run.manifest.environment):
        return str(reason)
    if not drawn:
        return "The record must have steps after a checkpoint that is intact, or after its start. It has none."
    processes = run.manifest.environment.get("processes", 1)
    if processes != 1:
        return f"A stretch is replayed by one process. The run was made by {processes}. Verify it without --stretches."
    return ""


def _settings(run: RecordedRun, rebuilt: Rebuilt) -> Verdict | None:
    """The verdict on settings that contradict each other; threads and device may be those of this machine."""
    verdict = other_settings(run, rebuilt)
    if verdict is None:
        return None
    ours = ("environment.threads", "inputs.config.trainer.threads", "inputs.config.trainer.accelerator")
    left = [text for text in verdict.findings if not any(name in text for name in ours)]
    return replace(verdict, findings=tuple(left)) if left else None


def _device(rebuilt: Rebuilt) -> str:
    return str(rebuilt.trainer.strategy.root_device.type)


def _proof(run: RecordedRun, choices: Sequence[Stretch], drawn: Sequence[Stretch], challenge: int) -> StretchProof:
    return StretchProof(
        challenge, len(drawn), len(choices), sum(each.steps for each in choices),
        sum(each.length for each in choices),
        {share: passing_chance(choices, len(drawn), share) for share in _SHARES},
    )  # fmt: skip
