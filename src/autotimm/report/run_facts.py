"""What a run folder says, read for a report: settings, results, epochs, samples, claims and evidence."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from autotimm.config import defaults, options
from autotimm.config.yaml import load_yaml
from autotimm.errors import ModelError
from autotimm.evidence import Evidence, evidence_path, read_evidence
from autotimm.records.checked_levels import level_claims
from autotimm.records.ledger import read_ledger
from autotimm.records.manifest import Manifest
from autotimm.records.readers import read_table, read_text
from autotimm.records.run_folder import FOLDS, read_results
from autotimm.types import Calibration

__all__ = ["Epoch", "RunFacts", "Setting", "read_run"]

_LINE = re.compile(r"(?P<name>\w+): (?P<value>.*?) +# (?P<source>\S.*)")
_SPLITS = ("id", "class", "split")


class Setting(NamedTuple):
    """A setting of a run.

    Attributes:
        name: The option, or the argument with its part in front.
        value: Its value as it stands in the record.
        source: Who decided it: ``default``, ``command line``, ``recipe``, ...
        group: The heading of the option in the help; empty for an argument.
        help: What it is.
    """

    name: str
    value: str
    source: str
    group: str = ""
    help: str = ""

    @property
    def is_default(self) -> bool:
        """Whether nobody decided it."""
        return self.source == "default"


class Epoch(NamedTuple):
    """A row of ``metrics.csv``: the epoch, counted from 1, and its finite values by name."""

    number: int
    values: dict[str, float]


@dataclass(frozen=True)
class RunFacts:
    """What a run folder says.

    Attributes:
        folder: The folder.
        manifest: Its manifest.
        settings: Every setting, in the order of the record.
        results: The groups of ``results.json``.
        epochs: The rows of ``metrics.csv``.
        classes: The number of samples by class and split; a sample of several classes counts in each.
        samples: The number of samples by split.
        levels: What the run may claim, for R0 to R7.
        evidence: The evidence by split.
        problems: What of the evidence cannot be read, a sentence each.
        calibration: What the best weights predict with, as the ledger says; ``None`` if nothing was fitted.
    """

    folder: Path
    manifest: Manifest
    settings: tuple[Setting, ...]
    results: Mapping[str, Any]
    epochs: tuple[Epoch, ...]
    classes: Mapping[str, Mapping[str, int]]
    samples: Mapping[str, int]
    levels: Mapping[str, str]
    evidence: Mapping[str, Evidence]
    problems: tuple[str, ...] = ()
    calibration: Calibration | None = None

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.absolute().name

    @property
    def seed(self) -> int:
        """The trainer's root seed; 0 if a damaged record has none."""
        seed = self.manifest.inputs.get("seeds", {}).get("trainer")
        return seed if isinstance(seed, int) else 0

    @property
    def notices(self) -> list[str]:
        """What was said about the data when the run began."""
        notices = self.manifest.volatile.get("notices")
        return [str(line) for line in notices] if isinstance(notices, list) else []

    def value(self, name: str) -> str:
        """The value of a setting as text; empty if the record has none."""
        return next((setting.value for setting in self.settings if setting.name.rpartition(".")[-1] == name), "")


def read_run(folder: Path) -> RunFacts:
    """Read a run folder, which anybody may have written.

    Raises:
        ModelError: If it has no manifest, or a file of it is damaged; damaged evidence is a problem that is named.
    """
    if not (folder / "manifest.json").is_file():
        raise ModelError(f"{folder} has no manifest.json. Give the folder of a run that has begun to train.")
    classes, samples = _samples(folder)
    evidence, problems = {}, []
    for split in ("val", "test", FOLDS):
        path = evidence_path(folder, split)
        if path.exists():
            try:
                evidence[split] = read_evidence(path)
            except ModelError as error:
                problems.append(str(error))
    results = read_results(folder / "results.json")
    return RunFacts(
        folder, Manifest.load(folder / "manifest.json"), tuple(_settings(folder)), results, tuple(_epochs(folder)),
        classes, samples, level_claims(folder), evidence, tuple(problems), _calibration(folder),
    )  # fmt: skip


def _calibration(folder: Path) -> Calibration | None:
    """The calibration in the last line of the ledger; ``None`` where it cannot be read."""
    lines = read_ledger(folder / "ledger.jsonl").lines
    said = lines[-1].get("calibration") if lines else None
    try:
        if not isinstance(said, Mapping):
            return None
        exact = {
            "temperature": float.fromhex(said["temperature"]),
            "thresholds": map(float.fromhex, said["thresholds"]),
        }
        return Calibration.from_dict({**said, **exact})
    except (KeyError, TypeError, ValueError):
        return None


def _settings(folder: Path) -> Iterator[Setting]:
    path = folder / "config.yaml"
    if not path.exists():
        return
    lines = [found for line in read_text(path, "the options").splitlines() if (found := _LINE.fullmatch(line))]
    known = options()
    of_options = [line for line in lines if line["name"] in known]
    if of_options:
        for line in of_options:
            option = known[line["name"]]
            yield Setting(line["name"], line["value"], line["source"], option.group, option.explained)
        return
    try:
        parts = load_yaml(path)
    except (OSError, yaml.YAMLError) as error:
        raise ModelError(f"The options {path} must be YAML. They are damaged ({error}). Use an intact copy.") from None
    for part, content in parts.items() if isinstance(parts, Mapping) else ():
        arguments = content.get("init_args", content) if isinstance(content, Mapping) else {}
        if isinstance(content, Mapping) and "class_path" in content:
            yield Setting(part, str(content["class_path"]), "your program", part)
        for name, value in arguments.items() if isinstance(arguments, Mapping) else ():
            is_default = name in defaults() and value == defaults()[name]
            yield Setting(f"{part}.{name}", str(value), "default" if is_default else "your program", part)


def _epochs(folder: Path) -> Iterator[Epoch]:
    path = folder / "metrics.csv"
    if not path.exists():
        return
    try:
        for row in csv.DictReader(io.StringIO(read_text(path, "the metrics"), newline="")):
            numbers = {name: float(text) for name, text in row.items() if name and isinstance(text, str) and text}
            values = {name: value for name, value in numbers.items() if math.isfinite(value)}
            yield Epoch(int(values.pop("epoch")) + 1, values)
    except (ValueError, KeyError, csv.Error):
        raise ModelError(
            f"The metrics {path} must be a table of numbers. They are damaged. Use an intact copy."
        ) from None


def _samples(folder: Path) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Samples by class and split, and by split."""
    path = folder / "splits.csv"
    rows = read_table(path, _SPLITS, "the list of splits") if path.exists() else []
    counted: Counter[tuple[str, str]] = Counter()
    for _, names, split in rows:
        counted.update((name, split) for name in names.split("|") if name)
    classes: dict[str, dict[str, int]] = {}
    for (name, split), count in counted.items():
        classes.setdefault(name, {})[split] = count
    totals = Counter(split for _, _, split in rows)
    order = [split for split in ("train", "val", "test") if split in totals]
    return classes, {split: totals[split] for split in order}
