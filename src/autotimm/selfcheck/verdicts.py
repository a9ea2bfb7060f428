"""What a check found, as data and as a table.

What the records of the trainings say.
"""

from __future__ import annotations

import json
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

__all__ = ["Report", "Result", "Trained", "apart", "judge_next_epoch", "judge_pairs", "judge_stream"]


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        name: What was varied.
        level: The level of reproducibility that it belongs to; empty for what must change something.
        verdict: ``ok``; ``problem``; ``skipped`` for what could not be checked.
        text: What was found: ``same``, or where the two trainings part.
        cause: What is likely behind a problem, as a sentence.
    """

    name: str
    level: str
    verdict: Literal["ok", "problem", "skipped"]
    text: str
    cause: str = ""


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        results: A line for each thing that was varied.
        levels: What the set-up may claim, ``R0`` to ``R7``: ``checked``, or ``no, because ...``.
    """

    results: tuple[Result, ...]
    levels: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether no line is a problem."""
        return not self.problems

    @property
    def problems(self) -> tuple[Result, ...]:
        """The lines that are problems."""
        return tuple(one for one in self.results if one.verdict == "problem")

    @property
    def causes(self) -> dict[str, list[str]]:
        """What is likely behind the problems, each with the lines that point to it."""
        found: dict[str, list[str]] = {}
        for one in self.problems:
            found.setdefault(one.cause, []).append(one.name)
        return found

    @property
    def exit_code(self) -> int:
        """0 if all is well, 5 if something differs."""
        return 0 if self.passed else 5

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for other programs."""
        return {
            "passed": self.passed,
            "results": [asdict(one) for one in self.results],
            "levels": dict(self.levels),
        }

    def __str__(self) -> str:
        width = max(len(one.name) for one in self.results)
        lines = [f"{one.name:<{width}}  {one.text}" for one in self.results]
        if self.problems:
            lines += ["", *(f"{', '.join(names)}: {cause}" for cause, names in self.causes.items())]
        lines += ["", *(f"{level}  {text}" for level, text in self.levels.items())]
        return "\n".join([*lines, "", "reproducible" if self.passed else "not reproducible"])


@dataclass(frozen=True)
class Trained:
    """The records of one training.

    Attributes:
        folder: Its run folder.
    """

    folder: Path

    @cached_property
    def lines(self) -> list[Line]:
        """Its ledger, as far as it is whole."""
        return read_ledger(self.folder / "ledger.jsonl").lines

    @cached_property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return Manifest.load(self.folder / "manifest.json")

    def content(self, metrics: bool = True) -> list[Line]:
        """The ledger without its chain and the run's id; without ``metrics`` also without what was measured."""
        left_out = {"prev", "run"} if metrics else {"prev", "run", "metrics"}
        return [
            {name: value for name, value in line.items() if name not in left_out}
            for line in self.lines
            if metrics or line["kind"] != "val"
        ]

    @property
    def split(self) -> str:
        """Which samples validate."""
        path = self.folder / "splits.csv"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def initial(self) -> Any:
        """The digest of the initial weights."""
        return next((line["weights"] for line in self.lines if line["kind"] == "start"), None)

    def steps(self, *names: str) -> dict[tuple[int, int], tuple[Any, ...]]:
        """Fields of the steps, by epoch and batch."""
        found = [line for line in self.lines if line["kind"] == "step"]
        return {(line["epoch"], line["batch"]): tuple(line[name] for name in names) for line in found}

    @cached_property
    def samples(self) -> dict[int, dict[str, str]]:
        """What the samples looked like: digests by epoch and id; nothing where a loader does not say."""
        out: dict[int, dict[str, str]] = {}
        notes = json.loads(self.folder.with_suffix(".json").read_text(encoding="utf-8"))
        for epoch, name, digest in notes["samples"]:
            out.setdefault(epoch, {})[name] = digest
        return out


def apart(recorded: Trained, found: Trained, metrics: bool) -> tuple[Difference, str] | None:
    """The first difference of two trainings and its likely cause, or ``None`` if they are the same.

    Args:
        recorded: The one that is compared with.
        found: The other.
        metrics: Whether metrics count.
    """
    difference = first_difference(recorded.content(metrics), found.content(metrics))
    if difference is None:
        return None
    named = worth_naming(differences(recorded.manifest, found.manifest))
    files = [one for one in named if one.section == "inputs" and one.name.startswith("data.")]
    if files and difference.stage == "inputs":
        return difference, _READ  # the files are the same ones
    # That the initial weights differ is what the ledgers say, and no cause of it.
    rest = [one for one in named if one not in files and one.name != "initial"]
    return difference, likely_cause(difference, rest, recorded=recorded.manifest)


_READ = (
    "The files are the same, and reading a sample gives something else each time: the data set draws from a generator "
    "of its own. Draw from torch, numpy.random or random in `load`: there they stand on the stream of the sample."
)


def judge_pairs(one: Trained, pair: Trained, other: Trained) -> list[Result]:
    """Two trainings of two processes each: equal to each other, and on the samples that one process sees."""
    name, found = "2 processes, twice", apart(pair, other, metrics=True)
    results = [
        Result(name, "R1", "ok", "same")
        if found is None
        else Result(name, "R1", "problem", describe(found[0]), found[1])
    ]
    name = "2 processes see what 1 sees"
    alone, together = (trained.steps("ids", "inputs") for trained in (one, pair))
    common = [place for place in alone if place in together]
    differing = next((place for place in common if alone[place] != together[place]), None)
    if not common or None in alone[common[0]]:
        return [*results, Result(name, "", "skipped", "not checked: the data loader does not name its samples")]
    if differing is None:
        return [*results, Result(name, "", "ok", f"same samples and pixels in {len(common)} global batches")]
    what = "order" if alone[differing][0] != together[differing][0] else "inputs"
    text = f"different at epoch {differing[0]}, batch {differing[1]}: {what}"
    cause = "Something depends on the process: draw order and augmentation from the streams, by the sample's id."
    return [*results, Result(name, "", "problem", text, cause)]


def judge_next_epoch(plain: Trained, reseeded: Trained) -> Result:
    """Whether a sample is augmented differently in the next epoch."""
    name = "the next epoch"
    changed, both = _changed(plain)
    if not both:
        return Result(name, "", "skipped", "not checked: the data loader does not name its samples")
    if changed:
        return Result(name, "", "ok", f"augments {changed} of {both} samples differently")
    if plain.steps("inputs") == reseeded.steps("inputs"):
        return Result(name, "", "skipped", "not checked: images are not augmented")
    cause = "The augmentation reads the seed and not the epoch: draw inside of the transform, from a global generator."
    return Result(name, "", "problem", "every sample is augmented as in the epoch before", cause)


def _changed(trained: Trained) -> tuple[int, int]:
    """How many samples looked different in the second epoch, of how many that both epochs had."""
    first, second = (trained.samples.get(epoch, {}) for epoch in (0, 1))
    common = [one for one in first if one in second]
    return sum(first[one] != second[one] for one in common), len(common)


_CHANGES = {
    "init": "the initial weights",
    "split": "the split",
    "order": "the order",
    "augment": "the augmentation",
    "step": "the steps",
    "eval": "the validation",
}
_NEEDED = ("init", "order")  # there are always weights to draw, and an order


def judge_stream(stream: str, plain: Trained, other: Trained) -> Result:
    """Whether another seed of a stream changes what the stream is for, and nothing else."""
    name, what = f"another seed of `{stream}`", _CHANGES[stream]
    differs = {
        "the initial weights": plain.initial != other.initial,
        "the split": plain.split != other.split,
        "the order": plain.steps("ids") != other.steps("ids"),
        "the augmentation": plain.steps("ids", "inputs") != other.steps("ids", "inputs"),
        "the steps": plain.content(metrics=False) != other.content(metrics=False),
        "the validation": plain.content() != other.content(),
    }
    # What comes later in a training follows from what comes before.
    follows = {
        "init": ("the steps", "the validation"),
        "split": ("the order", "the augmentation", "the steps", "the validation"),
        "order": ("the augmentation", "the steps", "the validation"),
        "augment": ("the steps", "the validation"),
        "step": ("the validation",),
        "eval": (),
    }
    wrong = [one for one, yes in differs.items() if yes and one != what and one not in follows[stream]]
    if wrong:
        cause = f"{wrong[0].capitalize()} must not depend on the seed of `{stream}`: draw it from a stream of its own."
        return Result(name, "", "problem", f"changes {' and '.join(wrong)} too", cause)
    if differs[what]:
        return Result(name, "", "ok", f"changes {what}, and nothing before it")
    unkeyed = stream == "augment" and _changed(plain)[0]  # augmented in another way each time, but not by the seed
    if stream not in _NEEDED and not unkeyed:
        return Result(name, "", "skipped", "changes nothing: nothing is drawn there")
    cause = (
        f"{what.capitalize()} must follow the seed: draw from torch, numpy.random or random while the stream is set."
    )
    return Result(name, "", "problem", "changes nothing", cause)
