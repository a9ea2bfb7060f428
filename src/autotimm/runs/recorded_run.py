"""The record of a run as it is read for a comparison: its lines up to the first damage, and what contradicts itself.

What is wrong with a record by itself is found here, without a replay: damage, lines that are missing, digests that do
not fit, and files that tell different stories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotimm.constants import VIEWS
from autotimm.errors import ModelError
from autotimm.evidence import evidence_path
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.records.digest import config_digest, file_digest
from autotimm.records.ledger import ReadLedger, malformed, read_ledger
from autotimm.records.manifest import Manifest
from autotimm.records.replay_versions import replay_versions
from autotimm.records.run_folder import DIGESTS, VIEWED
from autotimm.records.sample_index import Content
from autotimm.runs.file_contents import Finding, checkpoint_tensors, differs, read_data, read_rows, read_tensors, same
from autotimm.runs.restore import read_manifest

__all__ = ["RecordedRun", "export_findings", "read_recorded", "tested_evidence", "tested_views"]


_MAY_BE_LEFT_OUT = {"evidence/val.safetensors", "evidence/test.safetensors", "evidence/folds.safetensors"}


@dataclass(frozen=True)
class RecordedRun:
    """The record of a run.

    Attributes:
        folder: The run's folder.
        manifest: Its manifest.
        ledger: The lines of its ledger up to the first damage.
        findings: What is damaged, missing or contradictory within the record.
    """

    folder: Path
    manifest: Manifest
    ledger: ReadLedger
    findings: tuple[Finding, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the run has reached its end, as it says itself."""
        return self.manifest.results.get("status") == "finished"

    @property
    def whole(self) -> bool:
        """Whether its lines reach the end of the run."""
        return self.finished and not self.ledger.problem

    @property
    def has_test(self) -> bool:
        """Whether it says what the test has measured."""
        try:
            results = read_data(self.folder / "results.json")
        except ValueError:
            return False
        return isinstance(results, Mapping) and "test" in results

    @property
    def left_out(self) -> set[str]:
        """Evidence that whoever published the run has left out.

        That of validation and test is made again by the replay; that of folds is named as not checked.
        """
        names = self.manifest.volatile.get("left_out")
        return {str(name) for name in names} & _MAY_BE_LEFT_OUT if isinstance(names, list) else set()

    @property
    def steps(self) -> int:
        """The number of steps that it has."""
        return sum(line["kind"] == "step" for line in self.ledger.lines)


def read_recorded(folder: Path) -> RecordedRun:
    """Read the record of a run, and look for damage and contradictions.

    Raises:
        ModelError: If it has no manifest that can be read, or no line.
    """
    manifest = read_manifest(folder)
    run = RecordedRun(folder, manifest, _ledger(folder, manifest))
    if not run.ledger.lines:
        raise ModelError(f"The run {folder} must have a ledger to compare with. It has none: {run.ledger.problem}. "
                         "Make the run again.")  # fmt: skip
    parts = (_damage(run), _results(run), _epochs(run), _samples(run), _checkpoints(run), _evidence(run))
    return replace(run, findings=tuple(finding for part in parts for finding in part))


def _ledger(folder: Path, manifest: Manifest) -> ReadLedger:
    """The lines up to the first that is damaged or not of its kind, also of a ledger that was cut between two lines."""
    ledger = read_ledger(folder / "ledger.jsonl")
    if (wrong := malformed(ledger.lines, _version(manifest))) is not None:
        index, problem = wrong
        return ReadLedger(ledger.lines[:index], problem, "")
    if not ledger.problem and manifest.results.get("ledger") not in (None, ledger.last):
        return ledger._replace(problem="its last lines are not the ones that the manifest refers to")
    return ledger


def _version(manifest: Manifest) -> int:
    version = replay_versions(manifest.environment)["ledger"]
    return version if isinstance(version, int) else 0


def _damage(run: RecordedRun) -> Iterator[Finding]:
    if problem := run.manifest.problem():
        yield Finding("manifest.json", problem, damage=True)
    if run.ledger.problem:
        yield Finding("ledger.jsonl", f"{run.ledger.problem}; compared up to there", damage=True)
    for line in run.ledger.lines:
        if line["kind"] == "gap":
            what = f"the record says that lines are missing before step {line.get('step')} ({line.get('reason')})"
            yield Finding("ledger.jsonl", what, damage=True)
    first = run.ledger.lines[0]
    if first["kind"] == "start" and first.get("run") != run.manifest.run_id:
        yield differs("ledger.jsonl: run", first.get("run"), run.manifest.run_id)


def _results(run: RecordedRun) -> Iterator[Finding]:
    """What `results.json` says, and what the manifest says of it."""
    path, recorded = run.folder / "results.json", run.manifest.results.get("metrics")
    if not path.exists():
        if recorded:
            yield Finding("results.json", "it is missing", damage=True)
        return
    try:
        groups = read_data(path)
    except ValueError as error:
        yield Finding("results.json", str(error), damage=True)
        return
    best = groups.get("best") if isinstance(groups, Mapping) else None
    best = best if isinstance(best, Mapping) else {}
    exact = {name: float(value).hex() for name, value in best.items() if type(value) in (int, float)}
    if recorded is not None and not (exact == recorded and exact.keys() == best.keys()):
        yield Finding("results.json: best", "its values are not those of the manifest")


def _epochs(run: RecordedRun) -> Iterator[Finding]:
    """What the table of metrics says of each epoch, and what the ledger says."""
    path, epochs = run.folder / "metrics.csv", [line for line in run.ledger.lines if line["kind"] == "epoch"]
    if not path.exists():
        if epochs and run.finished:
            yield Finding("metrics.csv", "it is missing", damage=True)
        return
    try:
        rows = {row.get("epoch"): row for row in read_rows(path)}
    except ValueError as error:
        yield Finding("metrics.csv", str(error), damage=True)
        return
    for line in epochs:
        row = rows.get(str(line["epoch"]))
        if row is None:  # a killed process may have written the line, and not the row
            if run.finished:
                yield Finding("metrics.csv", f"it lacks epoch {line['epoch'] + 1}", damage=True)
            continue
        table = {name: _exact(text) for name, text in row.items() if name not in ("epoch", "step", "lr") and text}
        if table != line["metrics"]:
            yield Finding("metrics.csv", f"epoch {line['epoch'] + 1} has other values than in the ledger")


def _evidence(run: RecordedRun) -> Iterator[Finding]:
    """The bytes of the evidence, and their digests in the last line of the ledger and in the results."""
    ends = [line for line in run.ledger.lines if line["kind"] == "end"]
    digests: dict[str, Any] = {"val": ends[-1].get("evidence")} if ends and run.whole else {}
    if (tested := tested_evidence(run.folder)) is not None:
        digests |= {split: tested.get(split) for split in ("test", "folds")}
    for split, digest in digests.items():  # of a split whose digest cannot be read nothing is said
        path = evidence_path(run.folder, split)
        name = path.relative_to(run.folder).as_posix()
        if path.is_file():
            if digest != file_digest(path):
                yield Finding(name, "it is not the file that the record refers to")
        elif digest is not None and name not in run.left_out:
            yield Finding(name, "it is missing", damage=True)


def tested_evidence(folder: Path) -> Mapping[str, Any] | None:
    """The digests of evidence in ``results.json``; ``None`` if that cannot be read."""
    try:
        results = read_data(folder / "results.json")
    except ValueError:
        return None
    digests = results.get(DIGESTS, {}) if isinstance(results, Mapping) else None
    return digests if isinstance(digests, Mapping) else None


def tested_views(folder: Path) -> list[str]:
    """The names of the views that a test was made with, by ``results.json``; none if that cannot be read."""
    try:
        results = read_data(folder / "results.json")
    except ValueError:
        return []
    recorded = results.get(VIEWED) if isinstance(results, Mapping) else None
    return [name for name in VIEWS if isinstance(recorded, Mapping) and name in recorded]


def _exact(text: str) -> str:
    try:
        return float(text).hex()
    except ValueError:
        return text


def _samples(run: RecordedRun) -> Iterator[Finding]:
    """The tables of samples, and their digests in the manifest."""
    files, splits = run.folder / "files.csv", run.folder / "splits.csv"
    data = run.manifest.inputs.get("data")
    digests = {"files.csv": data.get("digest") if isinstance(data, Mapping) else None}
    digests["splits.csv"] = run.manifest.inputs.get("splits")
    for path in (files, splits):
        if not path.exists():
            if digests[path.name] is not None:
                yield Finding(path.name, "it is missing", damage=True)
            continue
        try:
            digest = _digest_of(path)
        except (ValueError, KeyError) as error:
            reason = "it is damaged: it has other columns" if isinstance(error, KeyError) else str(error)
            yield Finding(path.name, reason, damage=True)
            continue
        if digest != digests[path.name]:
            yield Finding(path.name, "it is not the file that the manifest refers to")


def _digest_of(path: Path) -> str:
    rows = read_rows(path)
    if path.name == "files.csv":
        return Content((row["id"], row["sha256"]) for row in rows).digest
    return config_digest(path.read_text(encoding="utf-8"))


def _checkpoints(run: RecordedRun) -> Iterator[Finding]:
    """The bytes of the checkpoints, and their list of digests."""
    store = CheckpointStore(run.folder / "checkpoints")
    files = store.files() if store.folder.is_dir() else []
    if files and not store.lists_digests:
        yield Finding("checkpoints/sha256.txt", "it is missing", damage=True)
        return
    for path in store.with_digests():
        if path.is_file() and (problem := store.problem(path)):
            yield Finding(f"checkpoints/{path.name}", problem, damage=True)


def export_findings(folder: Path) -> Iterator[Finding]:
    """Whether the exported weights are those of the best checkpoint; nothing if a run lacks one of the two."""
    best, exported = folder / "checkpoints" / "best.ckpt", folder / "model.safetensors"
    if not (best.is_file() and exported.is_file()):
        return
    try:
        tensors, state = read_tensors(exported), checkpoint_tensors(best)
    except ValueError as error:
        yield Finding("model.safetensors", str(error))
        return
    if tensors.keys() != state.keys() or not all(same(tensors[name], state[name]) for name in tensors):
        yield Finding("model.safetensors", "it has not the weights of checkpoints/best.ckpt")
