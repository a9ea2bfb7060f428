"""Measure drawn stretches and judge them: the verdict on what was measured, and what it proves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autotimm.errors import DifferentError, IncompleteError, ModelError
from autotimm.records.bit_factors import FACTORS, known_to_both
from autotimm.records.imports import admission
from autotimm.records.ledger_diff import Difference
from autotimm.records.manifest import Manifest
from autotimm.records.trust import OfRun
from autotimm.runs.recorded_run import export_findings
from autotimm.runs.stretches.choice import Stretch
from autotimm.runs.stretches.judgement import Judged, StretchDistance, judge_stretch
from autotimm.runs.stretches.measure import Measured, Measurement
from autotimm.runs.stretches.process import Launch, Processes, other_instructions, run_process
from autotimm.runs.stretches.replay import Variant, rounding_unit, variants
from autotimm.runs.verdict import Verdict, describe
from autotimm.train.progress import say

__all__ = ["CONSISTENT", "Court", "StretchProof", "bit_factors_apart", "pixel_factors_apart", "versions_apart"]

_TOO_NOISY = 0.01  # of a loss; most changes of one step are smaller
CONSISTENT = 7
"""The exit code: never 0, since `consistent` is less than `identical`."""


@dataclass(frozen=True)
class StretchProof:
    """What the verification of stretches has shown.

    Attributes:
        challenge: The seed that the stretches were drawn with.
        drawn: The number of stretches that were replayed.
        of_stretches: The number of stretches that the record allows for.
        within_reach: The number of optimizer steps that a stretch could have reached.
        of_steps: The number of optimizer steps of the record.
        budget: The share of these that may be compared; ``None`` if a number of stretches was given.
        longest: The number of steps of the longest of all stretches.
        chances: By the share of invented steps among those within reach, the chance that no drawn stretch has one.
        stretches: The distances.
    """

    challenge: int
    drawn: int
    of_stretches: int
    within_reach: int
    of_steps: int
    budget: float | None
    longest: int
    chances: dict[float, float]
    stretches: tuple[StretchDistance, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for other programs."""
        return {
            "challenge": self.challenge, "drawn": self.drawn, "of_stretches": self.of_stretches,
            "within_reach": self.within_reach, "of_steps": self.of_steps, "budget": self.budget,
            "longest": self.longest,
            "chances": {f"{share:g}": chance for share, chance in self.chances.items()},
            "stretches": [each.as_dict() for each in self.stretches],
        }  # fmt: skip

    @property
    def lines(self) -> list[str]:
        """What it has shown in words, a line each."""
        lines = [f"challenge: {self.challenge} ({self.drawn} of {self.of_stretches} stretches)"]
        if self.budget is not None:
            drawn = sum(each.steps for each in self.stretches)
            steps = f"stretches of up to {self.longest} step{'s' * (self.longest > 1)}"
            lines.append(f"budget: {self.budget:.2%} of {self.of_steps} steps, {drawn} spent on {steps}")
        lines += [f"  {each}" for each in self.stretches]
        lines.append(
            f"reach: {self.within_reach} of {self.of_steps} steps lie in one of the stretches that could be drawn"
        )
        shares = ", ".join(f"{share:.0%}: {chance:.2g}" for share, chance in self.chances.items())
        lines.append(f"chance that no drawn stretch meets an invented step, by their share within reach: {shares}")
        if self.stretches and all(each.equal_bits for each in self.stretches):
            lines.append("all bits that were compared are equal; for `identical`, verify the whole run")
        return lines


# What makes pixels of files. The model of a processor is not among them: instructions are.
_NO_PIXELS = ("hardware.cpu", "hardware.devices", "versions.autotimm", "versions.python", "libraries.mkl",
              "libraries.blas")  # fmt: skip


def pixel_factors_apart(manifest: Manifest, now: dict[str, Any]) -> list[str]:
    """What differs here of all that makes pixels: versions of libraries, and the instruction set; in words."""
    return [*_apart(manifest, now, ("inputs",), _NO_PIXELS)]


def bit_factors_apart(manifest: Manifest, now: dict[str, Any]) -> list[str]:
    """What differs here of all that makes pixels, losses and updates, in words."""
    return [*_apart(manifest, now, ("inputs", "forward", "update"), ("versions.autotimm", "versions.python"))]


def versions_apart(manifest: Manifest, now: dict[str, Any]) -> list[str]:
    """What differs here of the versions of packages that make pixels, losses and updates, in words."""
    left_out = ["versions.python", *(factor.key for factor in FACTORS if factor.section != "versions")]
    return [*_apart(manifest, now, ("inputs", "forward", "update"), left_out)]


def _apart(manifest: Manifest, now: dict[str, Any], stages: Sequence[str], left_out: Sequence[str]) -> Iterator[str]:
    then = manifest.environment
    for factor in FACTORS:
        if factor.section not in ("hardware", "versions", "libraries", "") or factor.key in left_out:
            continue
        if any(factor.acts(stage) for stage in stages) and known_to_both(factor.key, then, now):
            a, b = (_value(around, factor.section, factor.name) for around in (then, now))
            if a != b:
                yield f"{factor.words}: {a} was recorded, {b} is used"


def _value(around: Mapping[str, Any], section: str, name: str) -> Any:
    return ((around.get(section) or {}) if section else around).get(name)


@dataclass(frozen=True)
class Court:
    """Measures stretches and judges them.

    Attributes:
        asked: What is measured.
        apart: What differs here of all that makes pixels.
        device: The kind of device that is used.
        jobs: Processes at a time.
        launch: What starts them.
        launcher: ``"local"``, or ``"ray"`` for processes on a cluster.
        exact_first: Whether a stretch is replayed with other roundings only if its bits are not the recorded ones.
        exact: Whether equal images must lead to equal bits, as in a portable run.
    """

    asked: Measurement
    apart: list[str]
    device: str
    jobs: int
    launch: Launch = run_process
    launcher: str = "local"
    exact_first: bool = False
    exact: bool = False

    def verdict(
        self, pairs: Iterable[tuple[Stretch, Measured]], proof: StretchProof, notes: Sequence[str] = ()
    ) -> Verdict:
        """Judge what was measured of stretches, up to the first that differs."""
        run, judged, texts = self.asked.run, [], [*export_findings(self.asked.run.folder)]
        findings = [*run.findings, *texts]
        wrong = [str(finding) for finding in findings if not finding.damage]
        damages = [str(finding) for finding in findings if finding.damage]
        said: dict[str, Any] = {"notes": (*damages, *notes), "of_steps": run.steps}
        rates = True
        for stretch, measured in pairs:
            rates &= measured.rates
            verdict = self.judge(stretch, measured)
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
        said["not_checked"] = self._not_checked(judged, rates=rates)
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

    def judge(self, stretch: Stretch, measured: Measured) -> Judged:
        """Judge one stretch."""
        unit = rounding_unit(self.asked.run.manifest)
        lines = self.asked.run.ledger.lines
        judged = judge_stretch(
            lines, stretch, measured, unit=unit, same_pixels=self.asked.same_pixels, exact=self.exact
        )
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

    def _not_checked(self, judged: Sequence[StretchDistance], *, rates: bool) -> tuple[str, ...]:
        texts = ["validation and test"]
        if sum(each.steps for each in judged) < self.asked.run.steps:
            known = "their samples and learning rates" if rates else "their samples"
            texts.insert(0, f"the steps of no drawn stretch, but for {known}")
        for each in judged:
            if each.loss_noise > _TOO_NOISY:
                moves = f"rounding alone moves their losses by up to {each.loss_noise:.0%}"
                texts.append(f"what is smaller than rounding in {each.stretch}, where {moves}; fewer --steps show more")
        if not all(each.inputs for each in judged):
            texts.append(f"the pixels of the images, which are made otherwise here ({'; '.join(self.apart)})")
        return tuple(texts)

    def measured(self, drawn: Sequence[Stretch]) -> Iterator[tuple[Stretch, Measured]]:
        """Measure stretches in their order; in this process each when it is asked for."""
        trust = admission()
        trusted = isinstance(trust, OfRun) and trust.trust
        processes = Processes(self.asked, self.jobs, trusted, self.launch, self.launcher)
        if self.jobs > 1 or self.launcher != "local":
            yield from self._in_parallel(processes, drawn)
            return
        rest = [*drawn]
        while self.exact_first and rest:
            found = self.asked.measure(rest[0], (), every=rest[0] == drawn[0])
            if not found.exact:
                break  # nor will the others be, most likely
            yield rest.pop(0), found
        if not rest:
            return
        variables, name = self._other_instructions()
        elsewhere = processes.elsewhere(rest, variables, name) if variables else []
        for index, stretch in enumerate(rest):
            other = elsewhere[index] if elsewhere else None
            yield stretch, self.asked.measure(stretch, self._others, other, every=stretch == drawn[0])

    def _in_parallel(self, processes: Processes, drawn: Sequence[Stretch]) -> Iterator[tuple[Stretch, Measured]]:
        known: dict[Stretch, Measured] = {}
        if self.exact_first:
            found = zip(drawn, processes.measure(drawn, (), {}, ""), strict=True)
            known = {stretch: each for stretch, each in found if each.exact}
        rest = [stretch for stretch in drawn if stretch not in known]
        if rest:
            measured = processes.measure(rest, self._others, *self._other_instructions())
            known |= dict(zip(rest, measured, strict=True))
        yield from ((stretch, known[stretch]) for stretch in drawn)

    @property
    def _others(self) -> list[Variant]:
        threads = self.asked.run.manifest.environment.get("threads")
        return variants(threads if isinstance(threads, int) else 1, self.device)

    def _other_instructions(self) -> tuple[dict[str, str], str]:
        """The environment variables of a process with another instruction set, and their words; said aloud."""
        run = self.asked.run
        recorded = str((run.manifest.environment.get("hardware") or {}).get("instructions"))
        variables, name = other_instructions(recorded, self.device)
        if variables:
            say(f"replaying {run.folder} with {' '.join(f'{key}={value}' for key, value in variables.items())}")
        return variables, name
