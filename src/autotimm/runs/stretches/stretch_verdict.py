"""Verify a run in stretches: the verdict is `consistent`, or `different` at a step."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotimm.data.data_facts import Snapshot
from autotimm.errors import (
    AutotimmError,
    DataError,
    DifferentError,
    IncompleteError,
    ModelError,
    UsageError,
    require,
)
from autotimm.records.bit_factors import FACTORS, known_to_both
from autotimm.records.imports import admission
from autotimm.records.ledger_diff import Difference
from autotimm.records.manifest import Manifest
from autotimm.records.replay_versions import not_replayable
from autotimm.records.run_folder import RunFolder
from autotimm.records.trust import OfRun
from autotimm.runs.parent import check_parent
from autotimm.runs.recorded_run import RecordedRun, export_findings, read_recorded
from autotimm.runs.restore import Rebuilt
from autotimm.runs.stretches.choice import Stretch, draw, new_challenge, passing_chance, recorded_stretches
from autotimm.runs.stretches.judgement import Judged, StretchDistance, judge_stretch
from autotimm.runs.stretches.measure import Elsewhere, Measurement
from autotimm.runs.stretches.process import Processes, other_instructions
from autotimm.runs.stretches.replay import Variant, rebuild_here, rounding_unit, variants
from autotimm.runs.verdict import Verdict, describe
from autotimm.runs.verify import other_data, other_settings
from autotimm.train.progress import say
from autotimm.train.run_description import surroundings

__all__ = ["CONSISTENT", "StretchProof", "pixel_factors_apart", "verify_stretches"]

CONSISTENT = 7
"""The exit code: never 0, since `consistent` is less than `identical`."""
_SHARES = (0.01, 0.1, 0.5)


@dataclass(frozen=True)
class StretchProof:
    """What the verification of stretches has shown.

    Attributes:
        challenge: The seed that the stretches were drawn with.
        drawn: The number of stretches that were replayed.
        of_stretches: The number of stretches that the record allows for.
        within_reach: The number of optimizer steps that a stretch could have reached.
        of_steps: The number of optimizer steps of the record.
        chances: By the share of invented steps among those within reach, the chance that no drawn stretch has one.
        stretches: The distances.
    """

    challenge: int
    drawn: int
    of_stretches: int
    within_reach: int
    of_steps: int
    chances: dict[float, float]
    stretches: tuple[StretchDistance, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for other programs."""
        return {
            "challenge": self.challenge, "drawn": self.drawn, "of_stretches": self.of_stretches,
            "within_reach": self.within_reach, "of_steps": self.of_steps,
            "chances": {f"{share:g}": chance for share, chance in self.chances.items()},
            "stretches": [each.as_dict() for each in self.stretches],
        }  # fmt: skip

    @property
    def lines(self) -> list[str]:
        """What it has shown in words, a line each."""
        lines = [f"challenge: {self.challenge} ({self.drawn} of {self.of_stretches} stretches)"]
        lines += [f"  {each}" for each in self.stretches]
        lines.append(
            f"reach: {self.within_reach} of {self.of_steps} steps lie in one of the stretches that could be drawn"
        )
        shares = ", ".join(f"{share:.0%}: {chance:.2g}" for share, chance in self.chances.items())
        lines.append(f"chance that no drawn stretch meets an invented step, by their share within reach: {shares}")
        if self.stretches and all(each.equal_bits for each in self.stretches):
            lines.append("all bits that were compared are equal; for `identical`, verify without --stretches")
        return lines


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
        court = _Court(asked, apart, _device(rebuilt), jobs)
        proof = _proof(run, choices, drawn, challenge)
        try:
            return court.verdict(drawn, proof, chain.notes)
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


# What makes pixels of files. The model of a processor is not among them: instructions are.
_NO_PIXELS = ("hardware.cpu", "hardware.devices", "versions.autotimm", "versions.python", "libraries.mkl",
              "libraries.blas")  # fmt: skip


def pixel_factors_apart(manifest: Manifest, now: dict[str, Any]) -> list[str]:
    """What differs here of all that makes pixels: versions of libraries, and the instruction set; in words."""
    then, words = manifest.environment, []
    for factor in FACTORS:
        if factor.section not in ("hardware", "versions", "libraries") or factor.key in _NO_PIXELS:
            continue
        if factor.acts("inputs") and known_to_both(factor.key, then, now):
            a, b = ((around.get(factor.section) or {}).get(factor.name) for around in (then, now))
            words += [f"{factor.words}: {a} was recorded, {b} is used"] if a != b else []
    return words


def _proof(run: RecordedRun, choices: Sequence[Stretch], drawn: Sequence[Stretch], challenge: int) -> StretchProof:
    return StretchProof(
        challenge, len(drawn), len(choices), sum(each.steps for each in choices),
        sum(each.length for each in choices),
        {share: passing_chance(choices, len(drawn), share) for share in _SHARES},
    )  # fmt: skip


@dataclass(frozen=True)
class _Court:
    """Measures stretches and judges them.

    Attributes:
        asked: What is measured.
        apart: What differs here of all that makes pixels.
        device: The kind of device that is used.
        jobs: Processes at a time.
    """

    asked: Measurement
    apart: list[str]
    device: str
    jobs: int

    def verdict(self, drawn: Sequence[Stretch], proof: StretchProof, notes: Sequence[str]) -> Verdict:
        """Measure and judge stretches, up to the first that differs."""
        run, judged, texts = self.asked.run, [], [*export_findings(self.asked.run.folder)]
        findings = [*run.findings, *texts]
        wrong = [str(finding) for finding in findings if not finding.damage]
        damages = [str(finding) for finding in findings if finding.damage]
        said: dict[str, Any] = {"notes": (*damages, *notes), "of_steps": run.steps}
        for stretch, measured in self._measured(drawn):
            verdict = self._judge(stretch, measured)
            judged.append(verdict.distance)
            shown = replace(proof, stretches=tuple(judged))
            wrong += [text for text in measured.findings if text not in wrong]
            steps = sum(each.steps for each in judged)
            said |= {"steps": steps, "proof": shown, "findings": tuple(wrong + damages)}
            if measured.wrong is not None:
                first = Difference(*measured.wrong)
                reason = f"{describe(first)} That follows from the options alone."
                return Verdict("different", DifferentError.exit_code, reason, first, **said)
            if verdict.difference is not None:
                if verdict.difference.stage in ("forward", "update") and not verdict.distance.inputs:
                    return self._other_images(verdict, said)
                return Verdict("different", DifferentError.exit_code, verdict.reason, verdict.difference, **said)
        said["not_checked"] = self._not_checked(judged)
        if wrong:
            reason = f"The steps are consistent, and other values contradict each other: {'; '.join(wrong[:5])}."
            return Verdict("different", DifferentError.exit_code, reason, **said)
        if damages or run.ledger.problem:
            reason = "What could be replayed is consistent."
            return Verdict("incomplete", IncompleteError.exit_code, reason, **said)
        return Verdict("consistent", CONSISTENT, **said)

    def _other_images(self, judged: Judged, said: dict[str, Any]) -> Verdict:
        """The verdict where images have other pixels here, and the losses are farther away than these explain."""
        reason = (
            f"{judged.reason} But the images have other pixels here ({'; '.join(self.apart[:3])}), and may explain it. "
            "Verify where these are as recorded."
        )
        return Verdict("not comparable", ModelError.exit_code, reason, judged.difference, **said)

    def _judge(self, stretch: Stretch, measured: Any) -> Judged:
        unit = rounding_unit(self.asked.run.manifest)
        lines = self.asked.run.ledger.lines
        judged = judge_stretch(lines, stretch, measured, unit=unit, same_pixels=self.asked.same_pixels)
        reason = judged.reason
        if judged.difference is not None:
            place = judged.difference
            if place.stage == "update":
                words = f"The weights differ: after {place.place}, stage update ({place.field})."
            else:
                words = describe(place)
            reason = f"{words} {reason}." if reason else words
        elif not stretch.start and not self.apart and measured.initial != self._initial:
            place = Difference("start", None, None, None, "weights", self._initial, measured.initial)
            return Judged(judged.distance, place, describe(place))
        return replace(judged, reason=reason)

    @property
    def _initial(self) -> Any:
        first = self.asked.run.ledger.lines[0]
        return first.get("weights") if first["kind"] == "start" else None

    def _not_checked(self, judged: Sequence[StretchDistance]) -> tuple[str, ...]:
        texts = ["the steps of no drawn stretch, but for their samples and learning rates", "validation and test"]
        if not all(each.inputs for each in judged):
            texts.append(f"the pixels of the images, which are made otherwise here ({'; '.join(self.apart)})")
        return tuple(texts)

    def _measured(self, drawn: Sequence[Stretch]) -> Any:
        run, around = self.asked.run, self.asked.run.manifest.environment
        threads = around.get("threads")
        others = variants(threads if isinstance(threads, int) else 1, self.device)
        trust = admission()
        processes = Processes(self.asked, self.jobs, isinstance(trust, OfRun) and trust.trust)
        variables, name = other_instructions(str((around.get("hardware") or {}).get("instructions")), self.device)
        elsewhere: list[Elsewhere] = []
        if variables:
            say(f"replaying {run.folder} with {' '.join(f'{key}={value}' for key, value in variables.items())}")
            elsewhere = processes.elsewhere(drawn, variables, name)
        if self.jobs > 1:
            yield from zip(drawn, processes.measure(drawn, others, elsewhere), strict=True)
            return
        for index, stretch in enumerate(drawn):
            other = elsewhere[index] if elsewhere else None
            yield stretch, self._one(stretch, others, other, every=index == 0)

    def _one(self, stretch: Stretch, others: Sequence[Variant], other: Elsewhere | None, *, every: bool) -> Any:
        return self.asked.measure(stretch, others, other, every=every)
