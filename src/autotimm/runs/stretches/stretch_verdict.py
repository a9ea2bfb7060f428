"""Verify a run in stretches: the verdict is `consistent`, or `different` at a step."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autotimm.constants import LAUNCHERS
from autotimm.data.data_facts import Snapshot
from autotimm.errors import (
    AutotimmError,
    DataError,
    DifferentError,
    ModelError,
    UsageError,
    is_whole,
    number,
    require,
    require_choice,
)
from autotimm.records.replay_versions import not_replayable
from autotimm.records.run_folder import RunFolder
from autotimm.runs.compare_settings import is_portable
from autotimm.runs.parent import check_parent
from autotimm.runs.ray_cluster import require_ray
from autotimm.runs.recorded_run import RecordedRun, read_recorded
from autotimm.runs.restore import Rebuilt
from autotimm.runs.stretches.choice import Choice, Stretch, choose, new_challenge, passing_chance, within_budget
from autotimm.runs.stretches.court import (
    Court,
    StretchProof,
    bit_factors_apart,
    pixel_factors_apart,
    versions_apart,
)
from autotimm.runs.stretches.measure import Measurement
from autotimm.runs.stretches.replay import rebuild_here
from autotimm.runs.verdict import Verdict
from autotimm.runs.verify import other_data, other_settings
from autotimm.train.run_description import surroundings

__all__ = ["verify_stretches"]

_STEPS = 5
_SHARES = (0.01, 0.1, 0.5)


def verify_stretches(
    folder: Path,
    *,
    stretches: int = 8,
    steps: int | None = None,
    budget: float | None = None,
    challenge: int | None = None,
    data: str | Path | None = None,
    workers: int | None = None,
    jobs: int = 1,
    launcher: str = "local",
) -> Verdict:
    """Replay a few steps from some recorded checkpoints, and compare with what rounding alone does here.

    Nothing is written into the run's folder.

    Args:
        folder: The run's folder.
        stretches: The number of stretches to draw.
        steps: Optimizer steps of each; it ends earlier where the next checkpoint comes first. ``None`` for 5; with a
            budget for all up to the next checkpoint where this machine is like that of the run.
        budget: Instead of a number of stretches, the share of the run's steps to compare, above 0 and at most 1. Then a
            stretch is replayed with other roundings only if its bits are not the recorded ones.
        challenge: The seed that they are drawn with; ``None`` draws one from the system.
        data: The folder of the data, if it was moved.
        workers: Loading processes instead of the recorded number.
        jobs: Processes that replay stretches at a time; with 1 they are replayed in this one.
        launcher: ``"local"``, or ``"ray"`` for processes on the machines of a cluster.

    Raises:
        UsageError: If an argument is wrong.
        ModelError: If the folder has no record of a run.
    """
    for name, value in (("stretches", stretches), ("steps", _STEPS if steps is None else steps), ("jobs", jobs)):
        require(is_whole(value, 1), name, "verify", "an integer of at least 1", value, "Give for example 8.")
    require_choice("launcher", "verify", launcher, LAUNCHERS)
    if launcher == "ray":
        require_ray()
    if budget is not None:
        fine = 0 < number(budget) <= 1
        require(fine, "budget", "verify", "a share above 0 and at most 1", budget, "Give for example 0.1.")
    run = read_recorded(folder)
    notes = tuple(str(finding) for finding in run.findings)
    challenge = new_challenge() if challenge is None else challenge
    if budget is None:
        near = choice = choose(run, challenge, number=stretches, steps=steps or _STEPS)
    else:
        near = within_budget(run, challenge, budget, steps or _STEPS)
        choice = within_budget(run, challenge, budget, steps)
    if reason := _not_comparable(run, choice.drawn):
        return Verdict("not comparable", ModelError.exit_code, reason, notes=notes)
    if reason := run.manifest.changed_files:
        return Verdict("not comparable", DataError.exit_code, reason, notes=notes)
    with tempfile.TemporaryDirectory(prefix="autotimm-verify-") as scratch:
        place = RunFolder(Path(scratch) / "look", Path(scratch))
        try:
            begins = not all(each.start for each in (*choice.drawn, *near.drawn))
            rebuilt = rebuild_here(folder, place, data=data, workers=workers, weights_needed=begins)
        except AutotimmError as error:
            if isinstance(error, UsageError):
                raise
            return Verdict("not comparable", error.exit_code, str(error), notes=notes)
        snapshot = Snapshot(rebuilt.data.tables.values(), cached=False)
        refusal = other_data(run, snapshot.content) or _settings(run, rebuilt)
        chain = check_parent(folder, run.manifest, rebuilt)
        if refusal is None and chain.problem:
            refusal = Verdict("different", DifferentError.exit_code, chain.problem, notes=notes)
        if refusal is not None:
            return refusal
        around = surroundings(rebuilt.trainer)
        apart = pixel_factors_apart(run.manifest, around)
        exact = is_portable(run.manifest) and not versions_apart(run.manifest, around)
        if not exact and bit_factors_apart(run.manifest, around):  # far from a checkpoint rounding hides more
            choice = near
        device = _device(rebuilt)
        moved = None if data is None else str(data)
        asked = Measurement(run, Path(scratch), moved, workers, not apart, gpus=int(device != "cpu"))
        court = Court(
            asked, apart, device, jobs, launcher=launcher, exact_first=exact or budget is not None, exact=exact
        )
        try:
            return court.verdict(court.measured(choice.drawn), _proof(choice, challenge), chain.notes)
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
    shards = run.manifest.inputs.get("config", {}).get("trainer", {}).get("shards")
    if processes != 1 and shards is None:
        return (
            f"A stretch is replayed by one process. The run was made by {processes}, and has no shards, without which "
            "bits depend on their number. Verify it without --stretches and --budget."
        )
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


def _proof(choice: Choice, challenge: int) -> StretchProof:
    number, lengths = len(choice.drawn), [each.steps for each in choice.stretches]
    return StretchProof(
        challenge, number, len(lengths), sum(lengths), sum(each.length for each in choice.stretches), choice.budget,
        max(lengths), {share: passing_chance(choice.stretches, number, share) for share in _SHARES},
    )  # fmt: skip
