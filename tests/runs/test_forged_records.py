"""A forger edits every value of a run, one at a time, raw and with all digests computed anew: none goes unnoticed.

An edit that does not change what is replayed is judged against one replay of the run, as `verify` would judge it. Edits
of settings are replayed, each for itself, in the slow tests.
"""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from autotimm.config.record import completed
from autotimm.data.data_facts import content
from autotimm.data.toy import write_toy_folder
from autotimm.errors import AutotimmError, IncompleteError
from autotimm.records.manifest import SOURCES, Manifest
from autotimm.records.replay_versions import require_replayable
from autotimm.records.run_folder import RunFolder
from autotimm.runs.compare_folders import BOUND
from autotimm.runs.judge import judge
from autotimm.runs.recorded_run import read_recorded
from autotimm.runs.replaying import replay_run
from autotimm.runs.restore import rebuild
from autotimm.runs.run import Run, diff
from autotimm.runs.verify import other_data, other_settings
from autotimm.train.run_description import describe, surroundings
from forger import SETTINGS, all_edits, sign, write
from training import small_fit

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "proof.md"
OUTCOMES = ("different", "incomplete", "refused", "named", "no meaning", "unnoticed")
ROWS = {
    "settings": "a setting in `config.yaml` or `manifest.json`",
    "manifest": "another value in `manifest.json`",
    "ledger": "a field or a line of `ledger.jsonl`",
    "files": "another file, or a value in it",
}

OF_MACHINE = re.compile(r"environment\.(variables|git)\b|volatile\.compute\b")

# What may be edited without anybody being told something that is not so, and why.
MEANINGLESS = {
    r"manifest.json: volatile\..*": "clock, names of machine, user and folder: part of no digest, and said to vary",
    r"manifest.json: inputs.config.trainer.use_autotimm_seeding": "the replay obeys it, and no task draws from it",
    r"config.yaml: (num_workers|cache|cache_size|check|progress|loggers|strict|out|name)": "changes no bit of a run",
    r"report(\.html|/classes\.csv) .*": "made of the other files, by `autotimm report` again; no verdict depends on it",
    r"config.yaml: \w+ \(by another, signed\)": "whether somebody asked for what is the default anyway",
    r"config.yaml: keep": "the replay obeys it, and keeps the same checkpoints",
}


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    splits = {"train": 18, "val": 6, "test": 6}
    return write_toy_folder(tmp_path_factory.mktemp("toy") / "photos", splits=splits, num_classes=3, seed=7)


def fit(photos, out, **options):
    run = small_fit(photos, out, **{"epochs": 2, "val_split": None, "patience": 5, **options})
    run.test()
    return run.path


@pytest.fixture(scope="session")
def run(photos, tmp_path_factory):
    return fit(photos, tmp_path_factory.mktemp("runs"), name="run")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """Another run, whose files a forger may take."""
    folder, splits = tmp_path_factory.mktemp("stranger"), {"train": 21, "val": 6, "test": 6}
    photos = write_toy_folder(folder / "photos", splits=splits, num_classes=3, seed=8)
    return fit(photos, folder, name="run", seed=1)


@pytest.fixture(scope="session")
def edits(run, stranger):
    return all_edits(run, stranger)


class Court:
    """Judges forged copies of a run against one replay of it."""

    def __init__(self, run, place):
        record, folder = read_recorded(run), RunFolder(place / "replay", place)
        self.rebuilt, self.run, self.place = rebuild(run, folder), run, place
        self.objects = objects(self.rebuilt)
        self.content = content(self.rebuilt.data.tables.values())
        self.replay = replay_run(record, self.rebuilt, folder)
        self.untouched = judge(record, self.replay)

    def judge(self, forged: Path, name: str):
        """The outcome of a forged copy; `None` if it has to be replayed, since other objects would be built from it."""
        try:
            record = read_recorded(forged)
            require_replayable(record.manifest.environment, forged)
            rebuilt = self.rebuilt
            if SETTINGS.fullmatch(name):
                rebuilt = rebuild(forged, RunFolder(self.place / "other", self.place))
                if (verdict := other_settings(record, rebuilt)) is not None:
                    return self.said(verdict, name)
                if objects(rebuilt) != self.objects:
                    return None
            refusal = other_data(record, self.content) if name.startswith("files.csv") else None
            verdict = refusal or judge(record, self.replay)
        except AutotimmError as error:
            return refused(error)
        return self.said(verdict, name)

    def replayed(self, forged: Path, name: str):
        """The outcome of `verify`."""
        try:
            verdict = Run(forged).verify()
        except AutotimmError as error:
            return refused(error)
        return self.said(verdict, name)

    def said(self, verdict, name):
        if verdict.verdict == "not comparable":
            return "refused"
        if not verdict.identical:
            assert verdict.exit_code == {"different": 5, "incomplete": 6}[verdict.verdict]
            return verdict.verdict
        if set(verdict.not_checked) - set(self.untouched.not_checked):
            return "named"
        return "no meaning" if any(re.fullmatch(pattern, name) for pattern in MEANINGLESS) else "unnoticed"


def refused(error: AutotimmError) -> str:
    assert error.exit_code in (2, 3, 4)
    assert str(error).endswith((".", "?"))
    return "refused"


def objects(rebuilt):
    """What a replay is made of, as plain data."""
    parts = describe(rebuilt.task, rebuilt.data, rebuilt.trainer)
    settled = rebuilt.task.decided, rebuilt.task.weights, rebuilt.trainer.tuner
    return parts, settled, surroundings(rebuilt.trainer)["callbacks"]


@pytest.fixture(scope="session")
def court(run, tmp_path_factory):
    return Court(run, tmp_path_factory.mktemp("court"))


def try_all(court, edits, folder):
    """The outcome of each edit."""
    outcomes = {}
    for number, edit in enumerate(edits):
        forged = edit.apply(court.run, folder / f"{number}" / "run")
        outcome = court.judge(forged, edit.name) or court.replayed(forged, edit.name)
        outcomes[edit.name, edit.signed] = outcome
        shutil.rmtree(forged)
    assert len(outcomes) == len(edits)
    return outcomes


def unnoticed(outcomes):
    return sorted(name for name, outcome in outcomes.items() if outcome == "unnoticed")


def test_the_run_itself_is_identical(court):
    assert str(court.untouched) == "verdict: identical (6 steps compared)"
    assert court.untouched.exit_code == 0


def test_a_replay_is_built_from_two_files(court, run, tmp_path):
    for name in ("config.yaml", "manifest.json"):
        shutil.copy(run / name, tmp_path / name)
    assert objects(rebuild(tmp_path, RunFolder(tmp_path / "replay", tmp_path))) == court.objects


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_no_edit_goes_unnoticed(kind, court, edits, tmp_path):
    outcomes = try_all(court, [edit for edit in edits if edit.kind == kind], tmp_path)
    assert unnoticed(outcomes) == []
    assert counts(outcomes) == shown_counts()[kind]


BRIEF = ("manifest", "ledger", "files")


@pytest.mark.parametrize("kind", BRIEF)
def test_no_third_edit_goes_unnoticed(kind, court, edits, tmp_path):
    """In brief, and all of them in the slow tests."""
    assert unnoticed(try_all(court, [edit for edit in edits if edit.kind == kind][::3], tmp_path)) == []


def test_the_documentation_counts_the_edits(edits):
    counted = Counter(edit.kind for edit in edits if not OF_MACHINE.search(edit.name))
    shown = {kind: figures[0] for kind, figures in shown_counts().items()}
    assert {kind: counted[kind] for kind in BRIEF} == {kind: shown[kind] for kind in BRIEF}


def test_each_reason_why_an_edit_has_no_meaning_is_one_of_an_edit(edits):
    assert all(any(re.fullmatch(pattern, edit.name) for edit in edits) for pattern in MEANINGLESS)


def counts(outcomes):
    """How often each outcome occurs; how many variables, commits and costs are recorded depends on the machine."""
    counted = Counter(outcome for (name, _), outcome in outcomes.items() if not OF_MACHINE.search(name))
    return [sum(counted.values()), *(counted[outcome] for outcome in OUTCOMES)]


def shown_counts():
    """The figures of the table in the documentation, by kind."""
    text = PAGE.read_text()
    rows = {}
    for kind, title in ROWS.items():
        cells = next(line for line in text.splitlines() if line.startswith(f"| {title} |")).split("|")[2:-1]
        rows[kind] = [int(cell) for cell in cells]
    return rows


def test_the_documentation_shows_what_each_file_is_bound_to():
    text = PAGE.read_text()
    for binding in BOUND:
        assert f"| `{binding.file}` | {binding.to} |" in text


# The examples of which the others are generalizations, by `verify` itself


@pytest.mark.parametrize(
    ("name", "signed", "code"),
    [
        ("ledger.jsonl: invented steps in place of all", True, 5),
        ("ledger.jsonl: better steps in place of all", True, 5),
        ("ledger.jsonl: start and gap", True, 6),
        ("ledger.jsonl: step.ids (null)", True, 5),
        ("ledger.jsonl: a gap in place of a line", True, 6),
        ("results.json (accuracy 0.99)", True, 5),
        ("model.safetensors (zero tensors)", True, 5),
        ("checkpoints/best.ckpt (zero tensors)", True, 5),
        ("splits.csv (removed)", False, 6),
        ("metrics.csv (val/accuracy)", False, 5),
    ],
)  # fmt: skip
def test_an_example_of_the_attack(name, signed, code, run, edits, tmp_path):
    edit = next(edit for edit in edits if (edit.name, edit.signed) == (name, signed))
    copy = Run(edit.apply(run, tmp_path / "forged"))
    verdict = copy.verify()
    assert verdict.exit_code == code, str(verdict)
    assert copy.level()["R1"] == "expected"
    comparison = diff(run, copy.path)
    assert comparison.exit_code == code, str(comparison)


def test_who_decided_an_option_is_bound(court, run, tmp_path):
    def said(folder):
        return court.judge(folder, "")

    copy = shutil.copytree(run, tmp_path / "copy")
    assert said(copy) == "unnoticed"  # there is nothing to notice
    text = (copy / "config.yaml").read_text()
    write(copy / "config.yaml", text.replace("  # argument", "  # somebody", 1))
    assert said(copy) == "incomplete"
    (finding,) = read_findings(court, copy)
    assert finding.endswith("who decided its options is not what the manifest refers to")
    moved = completed(text, {"seed": 42}, "moved data")  # as a resumed run writes where its data is now
    write(copy / "config.yaml", moved)
    RunFolder(copy, tmp_path).bind_sources("path: a  # somebody\n", moved)  # it was edited before: nothing is bound
    assert said(copy) == "incomplete"
    RunFolder(copy, tmp_path).bind_sources(text, moved)
    assert said(copy) == "unnoticed"


def read_findings(court, folder):
    return [str(finding) for finding in judge(read_recorded(folder), court.replay).findings]


def test_records_of_earlier_versions_do_not_say_who_decided_an_option(court, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    manifest = Manifest.load(copy / "manifest.json")
    results = {name: value for name, value in manifest.results.items() if name != SOURCES}
    replace(manifest, results=results).save(copy / "manifest.json")
    assert court.judge(copy, "") == "incomplete"  # this version has written it
    earlier = {**manifest.environment, "package": "0" * 16}
    replace(manifest, results=results, environment=earlier).save(copy / "manifest.json")
    assert court.judge(copy, "") in ("named", "unnoticed")


def test_a_damaged_byte_in_the_second_line(run, tmp_path):
    copy = Run(shutil.copytree(run, tmp_path / "copy"))
    lines = (copy.path / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"batch":0', b'"batch":1')
    (copy.path / "ledger.jsonl").write_bytes(b"".join(lines))
    verdict = copy.verify()
    assert (verdict.verdict, verdict.exit_code, verdict.steps) == ("incomplete", 6, 0)
    assert str(verdict).endswith("verdict: incomplete (0 steps compared)")
    assert diff(run, copy.path).exit_code == 6
    with pytest.raises(IncompleteError, match="line 2 was changed"):
        verdict.require_identical()


def test_a_record_with_an_honest_gap_counts_what_was_compared(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    lines = [json.loads(line) for line in (copy / "ledger.jsonl").read_text().splitlines()]
    steps = [number for number, line in enumerate(lines) if line["kind"] == "step"]
    gap = {
        "kind": "gap",
        "prev": "",
        "step": 2,
        "reason": "its ledger does not hold what the checkpoint was written with",
    }
    kept = [*lines[: steps[1]], gap, *lines[steps[3] :]]
    write(copy / "ledger.jsonl", "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept))
    sign(copy, "ledger.jsonl")
    verdict = Run(copy).verify()
    assert (verdict.verdict, verdict.exit_code, verdict.steps, verdict.of_steps) == ("incomplete", 6, 4, 6)
    assert str(verdict).endswith("verdict: incomplete (4 of 6 steps compared)")
    assert "the record says that lines are missing before step 2" in verdict.notes[0]


def test_verify_writes_nothing_into_the_run(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    copy = Run(shutil.copytree(run, tmp_path / "copy"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in copy.path.rglob("*") if path.is_file()}
    assert copy.level()["R1"] == "expected"
    assert copy.verify().identical
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in copy.path.rglob("*") if path.is_file()
    } == before
    assert copy.level()["R1"] == "checked"
    manifest = Manifest.load(copy.path / "manifest.json")
    replace(manifest, volatile={**manifest.volatile, "host": "another"}).save(copy.path / "manifest.json")
    assert copy.level()["R1"] == "expected"


def test_a_manifest_that_says_checked_is_not_believed(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    manifest = Manifest.load(copy / "manifest.json")
    replace(manifest, levels={**manifest.levels, "R1": "checked", "R2": "checked"}).save(copy / "manifest.json")
    assert Run(copy).level() == Manifest.load(run / "manifest.json").levels
