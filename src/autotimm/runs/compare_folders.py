"""Compare the folder of a run with that of its replay, file by file: what each file is bound to.

A file that no replay writes, and a value that no replay can tell, is never taken for checked: it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from autotimm.constants import VIEWS
from autotimm.errors import join_names
from autotimm.evidence import EVIDENCE
from autotimm.records.atomic import SEAL, SIGNATURE
from autotimm.records.checkpoint_store import AVERAGE, CheckpointStore
from autotimm.records.commitment import COMMITMENT
from autotimm.records.digest import file_digest
from autotimm.records.run_folder import DIGESTS, FOLDS, PER_CLASS, VIEWED
from autotimm.runs.compare_settings import config_findings, manifest_findings
from autotimm.runs.cross_validation import fold_findings, folds_of
from autotimm.runs.file_contents import (
    Finding,
    checkpoint_findings,
    data_findings,
    differs,
    read_data,
    same_bytes,
    text_findings,
    weights_findings,
)
from autotimm.runs.recorded_run import RecordedRun, tested_evidence
from autotimm.runs.replayed_run import Replay
from autotimm.tasks.start import INITIAL

__all__ = ["BOUND", "Binding", "Outcome", "compare_folders"]

Findings = Iterator["Finding | str"]  # text names what is not checked
_Compare = Callable[[RecordedRun, Replay, str], Findings]
_MEASURED = ("test", PER_CLASS, DIGESTS)
_DERIVED = {"report.html", "report"}  # made of the other files, by `autotimm report`


class Binding(NamedTuple):
    """What a file of a run is bound to.

    Attributes:
        file: Its path in the folder; one that ends in ``*.ckpt`` stands for all checkpoints beside best and last.
        to: What it must agree with, in words.
        compare: Gives what does not agree, and in words what is not checked; ``None`` if it is compared elsewhere.
        at_end: Whether only a replay that reached the end of the training can tell.
        alone: Whether the file is compared whether or not the replay has written it.
    """

    file: str
    to: str
    compare: _Compare | None
    at_end: bool = False
    alone: bool = False


class Outcome(NamedTuple):
    """The result of a comparison of two folders.

    Attributes:
        findings: What differs, is missing or is damaged.
        not_checked: What no one can tell from this replay.
    """

    findings: list[Finding]
    not_checked: list[str]


def compare_folders(run: RecordedRun, replay: Replay) -> Outcome:
    """Compare all files of a run with those of its replay, the ledger excepted."""
    outcome = Outcome([], [])
    for binding in BOUND:
        for found in _compared(binding, run, replay):
            outcome.findings.append(found) if isinstance(found, Finding) else outcome.not_checked.append(found)
    if others := _others(run):
        outcome.not_checked.append(join_names(others))
    return outcome


def _compared(binding: Binding, run: RecordedRun, replay: Replay) -> Findings:
    """What does not agree in a file, or that it is missing on one side."""
    if binding.compare is None:
        return
    recorded, found = (folder / binding.file for folder in (run.folder, replay.folder))
    if binding.alone:
        yield from binding.compare(run, replay, binding.file)
    elif binding.at_end and not (replay.ended and run.finished):
        if recorded.exists():
            yield binding.file
    elif not recorded.exists():
        if binding.file in run.left_out:
            yield f"{binding.file} (left out by whoever published the run)"
        elif found.exists():
            yield Finding(binding.file, "it is missing", damage=True)
    elif not found.exists():
        yield Finding(binding.file, "the replay has written none")
    else:
        yield from binding.compare(run, replay, binding.file)


def _text(run: RecordedRun, replay: Replay, file: str) -> Findings:
    yield from text_findings(file, run.folder / file, replay.folder / file)


def _exported(run: RecordedRun, replay: Replay, file: str) -> Findings:
    paths = run.folder / file, replay.folder / file
    findings = list(weights_findings(file, *paths))
    yield from findings
    if not findings and not same_bytes(*paths):
        yield f"{file}: bytes that hold no value"


def _manifest(run: RecordedRun, replay: Replay, file: str) -> Findings:
    yield from manifest_findings(run, replay)


def _config(run: RecordedRun, replay: Replay, file: str) -> Findings:
    yield from config_findings(run, replay)


def _results(run: RecordedRun, replay: Replay, file: str) -> Findings:
    """Compare the metrics of the best and the last epoch, and those of the test if it was made again."""
    try:
        recorded = read_data(run.folder / file)
    except ValueError as error:
        yield Finding(file, str(error), damage=True)
        return
    found = read_data(replay.folder / file)
    if isinstance(recorded, Mapping):
        recorded = _without_folds(recorded)
        recorded, unchecked = _without_unmeasured_views(recorded, replay)
        yield from (f"{file}: {VIEWED}.{name}" for name in unchecked)
    if replay.views:
        found |= {VIEWED: replay.views}
    tested = [name for name in _MEASURED if isinstance(recorded, Mapping) and name in recorded]
    if tested and replay.test is None:
        yield from (f"{file}: {name}" for name in tested)
        recorded = {name: value for name, value in recorded.items() if name not in _MEASURED}
    elif tested:
        found |= replay.test
    yield from data_findings(file, recorded, found)


def _without_folds(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Results without those of the folds, which :func:`_folds` compares."""
    results = {name: value for name, value in recorded.items() if name != FOLDS}
    digests = results.get(DIGESTS)
    if isinstance(digests, Mapping) and FOLDS in digests:
        results[DIGESTS] = {split: digest for split, digest in digests.items() if split != FOLDS}
        if not results[DIGESTS]:
            del results[DIGESTS]
    return results


def _without_unmeasured_views(recorded: Mapping[str, Any], replay: Replay) -> tuple[dict[str, Any], list[str]]:
    """Results without the tests of several views that were not made again, and the names of these views."""
    results, of_views = dict(recorded), recorded.get(VIEWED)
    if not isinstance(of_views, Mapping):
        return results, []
    unchecked = [name for name in VIEWS if name in of_views and name not in replay.views]
    if unchecked:
        results[VIEWED] = {name: measured for name, measured in of_views.items() if name not in unchecked}
        if not results[VIEWED]:
            del results[VIEWED]
    return results, unchecked


def _folds(run: RecordedRun, replay: Replay, file: str) -> Findings:
    """Compare what a run has joined of its folds with the folds, which are runs of their own and are not replayed."""
    try:
        results = read_data(run.folder / "results.json")
    except (OSError, ValueError):  # said of that file
        return
    joined = isinstance(results, Mapping) and FOLDS in results
    if not joined:
        if (run.folder / file).exists():
            yield f"{file} (there are no folds)"
        return
    folds = folds_of(run.folder)
    if folds is None:
        yield Finding(f"results.json: {FOLDS}", "the run has none")
        return
    yield from fold_findings(run.folder, folds, results)
    if file in run.left_out and not (run.folder / file).exists():
        yield f"{file} (left out by whoever published the run)"
    first = run.folder / "fold-1"
    yield f"how its {folds} folds were trained{f' (autotimm verify {first})' if first.is_dir() else ''}"


def _evidence(run: RecordedRun, replay: Replay, file: str) -> Findings:
    if not same_bytes(run.folder / file, replay.folder / file):
        yield Finding(file, "it is not what the weights predict")


def _test_evidence(run: RecordedRun, replay: Replay, file: str) -> Findings:
    """Compare the evidence of a test with that of the test that was made again, if it was."""
    recorded, found = (folder / file for folder in (run.folder, replay.folder))
    if replay.test is not None and DIGESTS in replay.test and not recorded.exists():
        if file in run.left_out:
            yield f"{file} (left out by whoever published the run)"
        elif "test" in (tested_evidence(run.folder) or {}):
            yield Finding(file, "it is missing", damage=True)
    elif recorded.exists():
        if replay.test is None:
            yield f"test: {file}"
        elif not found.exists():
            yield Finding(file, "the replay has written none")
        else:
            yield from _evidence(run, replay, file)


def _checkpoint(run: RecordedRun, replay: Replay, file: str) -> Findings:
    yield from _of_checkpoint(run, replay, file)


def _of_checkpoint(run: RecordedRun, replay: Replay, file: str) -> Findings:
    """What differs in a checkpoint that both have; or that it has bytes of which nothing is read."""
    paths, ignored = (run.folder / file, replay.folder / file), _ignored(run, replay)
    findings = list(checkpoint_findings(file, *paths, ignored))
    yield from findings
    if not findings and not ignored and not same_bytes(*paths):
        yield f"{file}: bytes that hold no value"


_VALIDATED = ("loops", "fit_loop", "epoch_loop.val_loop.batch_progress")


def _ignored(run: RecordedRun, replay: Replay) -> set[tuple[Any, ...]]:
    """What depends on the version of autotimm or Lightning, and is no part of the training."""
    ignored: set[tuple[Any, ...]] = set()
    if replay.first_epoch or any(line["kind"] == "gap" for line in run.ledger.lines):
        ignored |= {("callbacks", "Recorder", name) for name in ("bytes", "last", "lines")}  # of another ledger
    versions = [manifest.environment.get("versions") or {} for manifest in (run.manifest, replay.manifest)]
    if versions[0] != versions[1] or run.manifest.volatile.get("resumes"):
        ignored.add(("pytorch-lightning_version",))
    if replay.first_epoch or run.manifest.volatile.get("resumes"):  # what the process has validated before
        ignored |= {(*_VALIDATED, "is_last_batch")}
        ignored |= {(*_VALIDATED, "current", name) for name in ("ready", "started", "processed", "completed")}
    if run.manifest.run_id != replay.manifest.run_id:  # the id is in the first line, whose digest is in the next
        ignored.add(("callbacks", "Recorder", "last"))
    return ignored


def _earlier_checkpoints(run: RecordedRun, replay: Replay, file: str) -> Findings:
    """Compare each kept checkpoint with that of the replay, if it has one of the same step."""
    store = CheckpointStore(run.folder / "checkpoints")
    recorded = {path.name: path for path in store.files()} if store.folder.is_dir() else {}
    folder = replay.folder / "checkpoints"
    written = {path.name for path in CheckpointStore(folder).files()} if folder.is_dir() else set()
    for name in (name for name in recorded if name in written):
        yield from _of_checkpoint(run, replay, f"checkpoints/{name}")
    if others := [f"checkpoints/{name}" for name in recorded if name not in written]:
        yield f"{join_names(others, 3)} (not written by the replay)"
    missing = sorted(written - recorded.keys()) if replay.whole and run.finished else []
    yield from (f"checkpoints/{name} (it is missing)" for name in missing)


def _digests(run: RecordedRun, replay: Replay, file: str) -> Findings:
    """The digests of files that are there were compared with their bytes; others are of files that were removed."""
    if not (run.folder / file).exists():
        return
    names = {path.name for path in CheckpointStore(run.folder / "checkpoints").with_digests()}
    lines = (run.folder / file).read_bytes().decode(errors="backslashreplace").splitlines()
    others = [line for line in lines if line[64:66] != "  " or line[66:] not in names]
    # A checkpoint that a resumed run has written anew has two: one of them is that of the file.
    others += lines[len(names) + len(others) :]
    if others:
        yield f"{file}: {len(others)} line{'' if len(others) == 1 else 's'} about files that are not there any more"


def _start(run: RecordedRun, replay: Replay, file: str) -> Findings:
    """Compare what a run keeps of its start with the digest in its manifest, which is compared with the replay's."""
    path, start = run.folder / file, run.manifest.inputs.get("start")
    if not (isinstance(start, Mapping) and INITIAL.get(str(start.get("kind"))) == file):
        if path.exists():
            yield f"{file} (the run has not begun with it)"
    elif not path.is_file():
        yield Finding(file, "it is missing", damage=True)
    elif (found := file_digest(path)) != start.get("sha256"):
        yield differs(file, start.get("sha256"), found)


#: What each file of a run is bound to.
BOUND: tuple[Binding, ...] = (
    Binding("config.yaml", "the options in the manifest, and those that the replay was built from; who decided them, "
            "by a digest there", _config),
    Binding("manifest.json", "the manifest of the replay: inputs, decisions, surroundings, levels, results", _manifest),
    Binding("ledger.jsonl", "the lines that the replay writes, each in every field", None),
    Binding("files.csv", "the images that the replay has read", _text),
    Binding("splits.csv", "the split that the replay has made", _text),
    *(Binding(file, "its digest in the manifest, which is that of the replay's beginning", _start, alone=True)
      for file in INITIAL.values()),
    Binding("metrics.csv", "the table that the replay has written", _text, at_end=True),
    Binding("results.json", "the metrics of the replay; the test is made again", _results, at_end=True),
    Binding("model.safetensors", "the weights of the best epoch of the replay", _exported, at_end=True),
    Binding("evidence/val.safetensors", "what the best weights of the replay predict, and its digest in the ledger",
            _evidence, at_end=True),
    Binding("evidence/test.safetensors", "what they predict in the test, which is made again", _test_evidence,
            alone=True),
    Binding("evidence/folds.safetensors", "the validation evidence of the folds, joined again", _folds, alone=True),
    Binding("checkpoints/best.ckpt", "everything in the checkpoint of the replay", _checkpoint, at_end=True),
    Binding(f"checkpoints/{AVERAGE}", "the average that the replay has made", _checkpoint, at_end=True),
    Binding("checkpoints/last.ckpt", "everything in the checkpoint of the replay", _checkpoint, at_end=True),
    Binding("checkpoints/*.ckpt", "the checkpoint of the replay at the same step", _earlier_checkpoints,
            alone=True),
    Binding("checkpoints/sha256.txt", "the bytes of the checkpoints that it lists", _digests, alone=True),
)  # fmt: skip

_KNOWN = {binding.file for binding in BOUND} | {
    ".lock",
    SEAL,
    SIGNATURE,
    COMMITMENT,
}  # what others publish was compared before the replay


def _others(run: RecordedRun) -> list[str]:
    """The files in the folder of a run that no run writes, and the folders in it."""
    folders = (run.folder, run.folder / "checkpoints", run.folder / EVIDENCE)
    inside = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    names = {path.relative_to(run.folder).as_posix(): path for path in inside}
    folds = {f"fold-{number}" for number in range(1, 1 + (folds_of(run.folder) or 0))}  # runs of their own
    names = {name: path for name, path in names.items() if not (name in folds and path.is_dir())}
    kept = {f"checkpoints/{path.name}" for path in CheckpointStore(run.folder / "checkpoints").files()}
    return sorted(name for name in names if name not in _KNOWN | _DERIVED | kept | {"checkpoints", EVIDENCE})
