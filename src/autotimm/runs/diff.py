"""Compare two runs: their manifests, the first step that differs, and their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotimm.errors import DifferentError, IncompleteError
from autotimm.records.causes import ManifestDifference, differences, likely_cause
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.records.ledger import Line
from autotimm.records.ledger_diff import Difference, first_difference
from autotimm.records.run_folder import VIEWED
from autotimm.records.sample_index import Content
from autotimm.runs.file_contents import (
    Finding,
    checkpoint_tensors,
    data_findings,
    printable,
    read_data,
    read_rows,
    same,
    same_bytes,
    text_findings,
    weights_findings,
)
from autotimm.runs.parent import check_parent
from autotimm.runs.recorded_run import RecordedRun, export_findings, read_recorded
from autotimm.runs.verdict import describe, worth_naming

__all__ = ["Comparison", "compare"]

_SHOWN = 12  # differences of a kind; further ones are only counted


@dataclass(frozen=True)
class Comparison:
    """The differences of two runs.

    Attributes:
        manifests: The values in which the manifests differ.
        files: The samples that are changed, missing or new, a line each.
        difference: The first difference of the ledgers, or ``None``.
        cause: The likely cause, in words.
        metrics: Metrics of the best epochs, side by side; ``None`` for a run that has none.
        notes: Problems of the records.
        confirmed: The confirmed cause (`--explain`); empty if it was not asked for.
        findings: With equal ledgers, what differs in other files of the two runs, and what contradicts itself within
            one of them; a line each.
        missing: What is damaged, missing or unfinished in one of the records, a line each.
    """

    manifests: tuple[ManifestDifference, ...]
    files: tuple[str, ...]
    difference: Difference | None
    cause: str
    metrics: Mapping[str, tuple[float | None, float | None]]
    notes: tuple[str, ...]
    confirmed: str = ""
    findings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether both have trained alike, bit for bit, and have complete records that say so."""
        return self.verdict == "equal"

    @property
    def verdict(self) -> str:
        """``"equal"``, ``"different"``, or ``"incomplete"``: equal as far as the records go."""
        if self.difference is not None or self.files or self.findings:
            return "different"
        return "incomplete" if self.missing else "equal"

    @property
    def exit_code(self) -> int:
        """0 for equal runs, 5 for different ones, 6 if a record is incomplete."""
        codes = {"equal": 0, "different": DifferentError.exit_code, "incomplete": IncompleteError.exit_code}
        return codes[self.verdict]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for other programs."""
        return {
            "verdict": self.verdict,
            "equal": self.equal,
            "manifests": [difference._asdict() for difference in self.manifests],
            "files": list(self.files),
            "difference": self.difference._asdict() if self.difference else None,
            "cause": self.cause,
            "confirmed": self.confirmed,
            "metrics": {name: list(pair) for name, pair in self.metrics.items()},
            "findings": list(self.findings),
            "missing": list(self.missing),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = list(self.notes)
        for section in ("inputs", "environment", "decisions"):
            words = [difference.words for difference in self.manifests if difference.section == section]
            lines += _shortened([f"{section}: {text}" for text in words], section)
        lines += _shortened([f"data: {line}" for line in self.files], "data")
        width = max(map(len, self.metrics), default=0)
        for name, pair in self.metrics.items():
            a, b = ("-" if value is None else f"{value:.4f}" for value in pair)
            lines.append(f"{name:<{width}}  {a}  {b}" + ("" if pair[0] == pair[1] else "  differs"))
        lines += _shortened([f"files: {line}" for line in self.findings], "files")
        if self.difference is not None:
            lines += [text for text in (describe(self.difference), self.cause, self.confirmed) if text]
        return "\n".join([*map(printable, lines), self.verdict])


def _shortened(lines: list[str], kind: str) -> list[str]:
    return lines[:_SHOWN] + ([f"{kind}: and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])


def compare(a: Path, b: Path) -> Comparison:
    """Compare two run folders.

    Raises:
        ModelError: If one of them has no record of a run.
    """
    runs = read_recorded(a), read_recorded(b)
    contents = [_content(run) for run in runs]
    files = contents[0].changed(contents[1]) if contents[0] is not None and contents[1] is not None else []
    difference = _first_difference(*runs)
    differing = worth_naming(differences(runs[0].manifest, runs[1].manifest))
    names = [line.partition(": ")[2] for line in files]
    cause = likely_cause(difference, differing, recorded=runs[0].manifest, files=names) if difference else ""
    best = [_best(run) for run in runs]
    metrics = {name: (best[0].get(name), best[1].get(name)) for name in dict.fromkeys([*best[0], *best[1]])}
    missing = [f"{run.folder}: {each}" for run in runs for each in run.findings if each.damage]
    missing += [f"{run.folder}: the run did not finish" for run in runs if not run.finished]
    missing += [f"{run.folder}: {reason}" for run in runs if (reason := run.manifest.changed_files)]
    contradictions = [f"{run.folder}: {each}" for run in runs for each in _own(run) if not each.damage]
    chains = [(run.folder, check_parent(run.folder, run.manifest)) for run in runs]
    contradictions += [f"{folder}: {chain.problem}" for folder, chain in chains if chain.problem]
    notes = missing + [f"{folder}: {note}" for folder, chain in chains for note in chain.notes]
    findings = contradictions + ([] if difference or files else [str(each) for each in _outcomes(*runs)])
    return Comparison(
        tuple(differing), tuple(files), difference, cause, metrics, tuple(notes), findings=tuple(findings),
        missing=tuple(missing),
    )  # fmt: skip


def _first_difference(a: RecordedRun, b: RecordedRun) -> Difference | None:
    """The first difference of the ledgers, as far as both are intact."""
    # A loader of the caller's own tells no ids, and on a device nothing of its batches.
    known = all(run.manifest.inputs.get("keyed") is True for run in (a, b))
    device = [run.manifest.environment.get("device") for run in (a, b)]
    every_field = known and device[0] == device[1]
    gapped = [any(line["kind"] == "gap" for line in run.ledger.lines) for run in (a, b)]
    if gapped == [False, True]:  # lines that only the second has count where the first has no gap
        swapped = _first_difference(b, a)
        return swapped and swapped._replace(recorded=swapped.found, found=swapped.recorded)
    difference = first_difference(*_without_lone_evidence(a.ledger.lines, b.ledger.lines), every_field=every_field)
    if difference is not None and difference.field == "lines":  # one is longer: no difference if the other was cut
        shorter = a if difference.recorded is None else b
        return None if shorter.ledger.problem else difference
    return difference


def _without_lone_evidence(a: list[Line], b: list[Line]) -> tuple[list[Line], list[Line]]:
    """The lines of two ledgers, without the digest of evidence that only one of them has: it is made by an option."""
    if {bool(lines) and "evidence" in lines[-1] for lines in (a, b)} != {True, False}:
        return a, b
    last = [{name: value for name, value in lines[-1].items() if name != "evidence"} for lines in (a, b)]
    return [*a[:-1], last[0]], [*b[:-1], last[1]]


def _content(run: RecordedRun) -> Content | None:
    """The digests of the samples of a run; ``None`` without a list of them that can be read."""
    try:
        return Content((row["id"], row["sha256"]) for row in read_rows(run.folder / "files.csv"))
    except (ValueError, KeyError):
        return None


def _results(run: RecordedRun) -> Mapping[str, Any]:
    try:
        results = read_data(run.folder / "results.json")
    except ValueError:
        return {}
    return results if isinstance(results, Mapping) else {}


def _best(run: RecordedRun) -> dict[str, float]:
    best = _results(run).get("best")
    numbers = best.items() if isinstance(best, Mapping) else ()
    return {name: value for name, value in numbers if isinstance(value, (int, float))}


def _own(run: RecordedRun) -> Iterator[Finding]:
    """What contradicts itself within one run."""
    yield from run.findings
    yield from export_findings(run.folder)


def _outcomes(a: RecordedRun, b: RecordedRun) -> Iterator[Finding]:
    """What differs in the files that both runs have, although their ledgers are equal."""
    for file in ("splits.csv", "metrics.csv", "model.safetensors"):
        paths = a.folder / file, b.folder / file
        if all(path.is_file() for path in paths):
            yield from (weights_findings if file.endswith(".safetensors") else text_findings)(file, *paths)
    results = _results(a), _results(b)
    yield from data_findings("results.json", *_common(*results))
    stores = [CheckpointStore(run.folder / "checkpoints") for run in (a, b)]
    names = [{path.name for path in store.files()} if store.folder.is_dir() else set() for store in stores]
    for name in sorted({*names[0] & names[1], "best.ckpt", "last.ckpt"}):
        paths = stores[0].folder / name, stores[1].folder / name
        if all(path.is_file() for path in paths):
            yield from _weights_apart(f"checkpoints/{name}", *paths)


def _common(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The groups of results that both runs have; of tests of several views those of the same ones."""
    common = _in_both(a, b)
    ours, theirs = (groups.get(VIEWED) for groups in common)
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        common[0][VIEWED], common[1][VIEWED] = _in_both(ours, theirs)
    return common


def _in_both(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = [name for name in a if name in b]
    return {name: a[name] for name in names}, {name: b[name] for name in names}


def _weights_apart(file: str, a: Path, b: Path) -> Iterator[Finding]:
    """Whether two checkpoints hold other weights: what else they hold depends on options that change no bit."""
    if same_bytes(a, b):
        return
    try:
        states = checkpoint_tensors(a), checkpoint_tensors(b)
    except ValueError as error:
        yield Finding(file, str(error))
        return
    if states[0].keys() != states[1].keys() or not all(same(states[0][name], states[1][name]) for name in states[0]):
        yield Finding(file, "its weights differ")
