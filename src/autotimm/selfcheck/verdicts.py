"""The report of a check, and the comparisons of trainings that it consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from autotimm.records.causes import differences, likely_cause
from autotimm.records.ledger import Line, read_ledger
from autotimm.records.ledger_diff import Difference, first_difference
from autotimm.records.manifest import Manifest
from autotimm.runs.verdict import describe, worth_naming
from autotimm.serialization import read_json

__all__ = [
    "Report",
    "Result",
    "TrainingRecord",
    "compare_trainings",
    "judge_next_epoch",
    "judge_pairs",
    "judge_stream",
]


@dataclass(frozen=True)
class Report:
    """The result of a check. Printed, it is a table.

    Attributes:
        results: A line for each variation.
        levels: The reproducibility levels of the setup, ``R0`` to ``R7``: ``checked``, or ``no, because ...``.
    """

    results: tuple[Result, ...]
    levels: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    @property
    def problems(self) -> tuple[Result, ...]:
        """The lines that are problems."""
        return tuple(result for result in self.results if result.verdict == "problem")

    @property
    def causes(self) -> dict[str, list[str]]:
        """The likely causes of the problems, each with the names of the lines it explains."""
        names: dict[str, list[str]] = {}
        for result in self.problems:
            names.setdefault(result.cause, []).append(result.name)
        return names

    @property
    def exit_code(self) -> int:
        """0 without problems, 5 if something differs."""
        return 0 if self.passed else 5

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {
            "passed": self.passed,
            "results": [asdict(result) for result in self.results],
            "levels": dict(self.levels),
        }

    def __str__(self) -> str:
        width = max(len(result.name) for result in self.results)
        lines = [f"{result.name:<{width}}  {result.text}" for result in self.results]
        if self.problems:
            lines += ["", *(f"{', '.join(names)}: {cause}" for cause, names in self.causes.items())]
        lines += ["", *(f"{level}  {text}" for level, text in self.levels.items())]
        return "\n".join([*lines, "", "reproducible" if self.passed else "not reproducible"])


@dataclass(frozen=True)
class Result:
    """One line of the report.

    Attributes:
        name: What was varied.
        level: The reproducibility level that it belongs to; empty for what must change the result.
        verdict: ``ok``; ``problem``; ``skipped`` if it could not be checked.
        text: The outcome: ``same``, or the first difference of the two trainings.
        cause: The likely cause of a problem, as a sentence.
    """

    name: str
    level: str
    verdict: Literal["ok", "problem", "skipped"]
    text: str
    cause: str = ""


@dataclass(frozen=True)
class TrainingRecord:
    """The records of one training.

    Attributes:
        folder: Its run folder.
    """

    folder: Path

    @cached_property
    def lines(self) -> list[Line]:
        """The intact lines of its ledger."""
        return read_ledger(self.folder / "ledger.jsonl").lines

    @cached_property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return Manifest.load(self.folder / "manifest.json")

    def content(self, metrics: bool = True) -> list[Line]:
        """The ledger without chain digests and run id; without ``metrics`` also without metrics and validation."""
        left_out = {"prev", "run"} if metrics else {"prev", "run", "metrics"}
        return [
            {name: value for name, value in line.items() if name not in left_out}
            for line in self.lines
            if metrics or line["kind"] != "val"
        ]

    @property
    def split(self) -> str:
        """The table of samples and splits, as text."""
        path = self.folder / "splits.csv"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def initial(self) -> Any:
        """The digest of the initial weights."""
        return next((line["weights"] for line in self.lines if line["kind"] == "start"), None)

    def steps(self, *names: str) -> dict[tuple[int, int], tuple[Any, ...]]:
        """Fields of the steps, by epoch and batch, both counted from 0."""
        steps = [line for line in self.lines if line["kind"] == "step"]
        return {(line["epoch"], line["batch"]): tuple(line[name] for name in names) for line in steps}

    @cached_property
    def samples(self) -> dict[int, dict[str, str]]:
        """Digests of the samples' pixels by epoch and id; empty if the data loader does not record them."""
        by_epoch: dict[int, dict[str, str]] = {}
        recorded = read_json(self.folder.with_suffix(".json"), largest=None)
        for epoch, name, digest in recorded["samples"]:
            by_epoch.setdefault(epoch, {})[name] = digest
        return by_epoch


_UNSTABLE_READ = (
    "The files are equal, but a sample has other pixels each time it is read: the data set draws from a generator of "
    "its own. Draw from torch, numpy.random or random in `load`: they are seeded for each sample there."
)


def compare_trainings(
    reference: TrainingRecord, training: TrainingRecord, metrics: bool
) -> tuple[Difference, str] | None:
    """The first difference of two trainings and its likely cause, or ``None`` if they are equal.

    Args:
        reference: The training to compare with.
        training: The other training.
        metrics: Whether metrics are compared.
    """
    difference = first_difference(reference.content(metrics), training.content(metrics))
    if difference is None:
        return None
    candidates = worth_naming(differences(reference.manifest, training.manifest))
    data = [change for change in candidates if change.section == "inputs" and change.name.startswith("data.")]
    if data and difference.stage == "inputs":
        return difference, _UNSTABLE_READ  # both trainings read the same files
    # Other initial weights are a part of the difference, not its cause.
    candidates = [change for change in candidates if change not in data and change.name != "initial"]
    return difference, likely_cause(difference, candidates, recorded=reference.manifest)


def judge_pairs(single: TrainingRecord, pair: TrainingRecord, other: TrainingRecord) -> list[Result]:
    """Check two trainings by two processes each: equal to each other, with the samples that one process sees."""
    name, difference = "2 processes, twice", compare_trainings(pair, other, metrics=True)
    results = [
        Result(name, "R1", "ok", "same")
        if difference is None
        else Result(name, "R1", "problem", describe(difference[0]), difference[1])
    ]
    name = "2 processes see what 1 sees"
    by_one, by_two = (training.steps("ids", "inputs") for training in (single, pair))
    common = [step for step in by_one if step in by_two]
    differing = next((step for step in common if by_one[step] != by_two[step]), None)
    if not common or None in by_one[common[0]]:
        return [*results, Result(name, "", "skipped", "not checked: the data loader does not record its samples")]
    if differing is None:
        return [*results, Result(name, "", "ok", f"same samples and pixels in {len(common)} global batches")]
    what = "order" if by_one[differing][0] != by_two[differing][0] else "inputs"
    text = f"different at epoch {differing[0] + 1}, batch {differing[1] + 1}: {what}"
    cause = "Something depends on the process: draw order and augmentation from the streams, by the sample's id."
    return [*results, Result(name, "", "problem", text, cause)]


def judge_next_epoch(reference: TrainingRecord, reseeded: TrainingRecord) -> Result:
    """Check that a sample is augmented differently in the next epoch."""
    name = "the next epoch"
    changed, common = _changed_samples(reference)
    if not common:
        return Result(name, "", "skipped", "not checked: the data loader does not record its samples")
    if changed:
        return Result(name, "", "ok", f"augments {changed} of {common} samples differently")
    if reference.steps("inputs") == reseeded.steps("inputs"):
        return Result(name, "", "skipped", "not checked: images are not augmented")
    cause = "The augmentation depends on the seed but not on the epoch: draw in the transform, from a global generator."
    return Result(name, "", "problem", "every sample is augmented as in the epoch before", cause)


def _changed_samples(training: TrainingRecord) -> tuple[int, int]:
    """The number of samples with other pixels in the second epoch, and the number of samples in both epochs."""
    first, second = (training.samples.get(epoch, {}) for epoch in (0, 1))
    common = [sample for sample in first if sample in second]
    return sum(first[sample] != second[sample] for sample in common), len(common)


_DECIDES = {
    "init": "the initial weights",
    "split": "the split",
    "order": "the order",
    "augment": "the augmentation",
    "step": "the steps",
    "eval": "the validation",
}
# What may change too, since it comes later in training.
_MAY_CHANGE = {
    "init": ("the steps", "the validation"),
    "split": ("the order", "the augmentation", "the steps", "the validation"),
    "order": ("the augmentation", "the steps", "the validation"),
    "augment": ("the steps", "the validation"),
    "step": ("the validation",),
    "eval": (),
}
_ALWAYS_USED = ("init", "order")  # every training draws weights and an order


def judge_stream(stream: str, reference: TrainingRecord, reseeded: TrainingRecord) -> Result:
    """Check that another seed of a stream changes what the stream decides, and nothing else."""
    name, decided = f"another seed of `{stream}`", _DECIDES[stream]
    differs = {
        "the initial weights": reference.initial != reseeded.initial,
        "the split": reference.split != reseeded.split,
        "the order": reference.steps("ids") != reseeded.steps("ids"),
        "the augmentation": reference.steps("ids", "inputs") != reseeded.steps("ids", "inputs"),
        "the steps": reference.content(metrics=False) != reseeded.content(metrics=False),
        "the validation": reference.content() != reseeded.content(),
    }
    allowed = {decided, *_MAY_CHANGE[stream]}
    wrong = [part for part, different in differs.items() if different and part not in allowed]
    if wrong:
        cause = f"{wrong[0].capitalize()} must not depend on the seed of `{stream}`: draw it from a stream of its own."
        return Result(name, "", "problem", f"changes {' and '.join(wrong)} too", cause)
    if differs[decided]:
        return Result(name, "", "ok", f"changes {decided}, and nothing before it")
    # Samples that change from epoch to epoch, but not with the seed, are augmented from an unseeded generator.
    unseeded = stream == "augment" and _changed_samples(reference)[0]
    if stream not in _ALWAYS_USED and not unseeded:
        return Result(name, "", "skipped", "changes nothing: no random numbers are drawn there")
    cause = (
        f"{decided.capitalize()} must follow the seed: draw from torch, numpy.random or random while the stream is set."
    )
    return Result(name, "", "problem", "changes nothing", cause)
