"""What the self-check concludes from records of trainings: real ones, and copies in which one thing is another."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import autotimm.selfcheck.check as check_module
from autotimm.cli import selfcheck as command
from autotimm.data.toy import write_toy_folder
from autotimm.selfcheck import Report, training_process
from autotimm.selfcheck.processes import Child, TrainingProcesses
from autotimm.selfcheck.setup import TOY, Setup
from autotimm.selfcheck.variations import CHECKS, Variation
from autotimm.selfcheck.verdicts import (
    TrainingRecord,
    compare_trainings,
    judge_next_epoch,
    judge_pairs,
    judge_stream,
)
from forger import chain

Change = Callable[[list[dict[str, Any]]], object]

TRAININGS = {
    "reference": Variation(),
    "seed_init": Variation(stream="init"),
    "seed_order": Variation(stream="order"),
    "seed_augment": Variation(stream="augment"),
    "seed_step": Variation(stream="step"),
    "disturbed": Variation(pollute=True, draws=True, metric=True),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, classes, size = TOY
    return write_toy_folder(tmp_path_factory.mktemp("toy"), n=images, num_classes=classes, image_size=size, seed=7)


def train(setup: Setup, trainings: Mapping[str, Variation], toy: Path, folder: Path) -> int:
    jobs = [{"variation": asdict(each), "run_dir": str(folder / name)} for name, each in trainings.items()]
    job = folder / "job.json"
    job.write_text(json.dumps({"setup": asdict(setup), "toy": str(toy), "path": [], "trainings": jobs}))
    return training_process.main(str(job))


@pytest.fixture(scope="module")
def records(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingRecord]:
    folder = tmp_path_factory.mktemp("trainings")
    assert train(Setup(), TRAININGS, toy, folder) == 0
    return {name: TrainingRecord(folder / name) for name in TRAININGS}


@pytest.fixture(scope="module")
def reference(records: dict[str, TrainingRecord]) -> TrainingRecord:
    return records["reference"]


def edited(record: TrainingRecord, folder: Path, change: Change | None = None) -> TrainingRecord:
    """A copy with other lines in its ledger."""
    shutil.copytree(record.folder, folder, ignore=shutil.ignore_patterns("checkpoints", "*.safetensors"))
    shutil.copy(record.folder.with_suffix(".json"), folder.with_suffix(".json"))
    if change is not None:
        lines = deepcopy(record.lines)
        change(lines)
        (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        chain(folder, None)
    return TrainingRecord(folder)


def of_step(number: int, **fields: Any) -> Change:
    return lambda lines: [line for line in lines if line["kind"] == "step"][number - 1].update(fields)


def of_validation(lines: list[dict[str, Any]]) -> None:
    next(line for line in lines if line["kind"] == "val")["metrics"]["val/loss"] = (0.5).hex()


def with_samples(record: TrainingRecord, samples: list[tuple[int, str, str]]) -> TrainingRecord:
    record.folder.with_suffix(".json").write_text(json.dumps({"samples": samples}))
    return record


# Two trainings


def test_equal_trainings_are_equal_also_if_disturbed(records, reference):
    assert compare_trainings(reference, reference, metrics=True) is None
    assert compare_trainings(reference, records["disturbed"], metrics=False) is None
    difference, _ = compare_trainings(reference, records["disturbed"], metrics=True)
    assert difference.stage == "validation"  # it has one metric more


def test_metrics_count_only_where_the_validation_is_the_same(reference, tmp_path):
    other = edited(reference, tmp_path / "other", of_validation)
    assert compare_trainings(reference, other, metrics=False) is None
    difference, _ = compare_trainings(reference, other, metrics=True)
    assert (difference.stage, difference.epoch) == ("validation", 0)


def test_other_pixels_of_the_same_files_come_from_the_data_set(reference, tmp_path):
    other = edited(reference, tmp_path / "other", of_step(2, inputs="0" * 16))
    manifest = other.manifest
    data = {**manifest.inputs["data"], "digest": "0" * 64}
    replace(manifest, inputs={**manifest.inputs, "data": data}).save(other.folder / "manifest.json")
    difference, cause = compare_trainings(reference, TrainingRecord(other.folder), metrics=True)
    assert (difference.stage, difference.step) == ("inputs", 2)
    assert cause.startswith("The files are equal, but a sample has other pixels each time it is read")


def test_a_training_that_cannot_begin_says_why_in_one_line(toy, tmp_path, capsys):
    setup = Setup(options={"path": str(tmp_path / "gone"), "backbone": "test_resnet"}, file="a.yaml")
    assert train(setup, {"reference": Variation()}, toy, tmp_path) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "gone") in line
    assert not (tmp_path / "reference.json").exists()


# Another seed of a stream


@pytest.mark.parametrize(
    ("stream", "decided"),
    [("init", "the initial weights"), ("order", "the order"), ("augment", "the augmentation"), ("step", "the steps")],
)
def test_another_seed_changes_what_its_stream_decides(stream, decided, records, reference):
    result = judge_stream(stream, reference, records[f"seed_{stream}"])
    assert (result.verdict, result.text) == ("ok", f"changes {decided}, and nothing before it")


def test_split_and_validation_are_decided_by_streams_of_their_own(reference, tmp_path):
    other = edited(reference, tmp_path / "split")
    (other.folder / "splits.csv").write_text("id,split\n")
    assert judge_stream("split", reference, other).text == "changes the split, and nothing before it"
    assert judge_stream("init", reference, other).text == "changes the split too"
    other = edited(reference, tmp_path / "val", of_validation)
    assert judge_stream("eval", reference, other).text == "changes the validation, and nothing before it"


def test_a_stream_that_reaches_what_comes_before_it_is_a_problem(records, reference):
    result = judge_stream("order", reference, records["seed_init"])
    assert (result.verdict, result.text) == ("problem", "changes the initial weights too")
    assert result.cause.startswith("The initial weights must not depend on the seed of `order`: draw it from a stream")
    assert judge_stream("step", reference, records["seed_order"]).text == "changes the order and the augmentation too"


def test_a_seed_without_effect_is_a_problem_where_something_is_always_drawn(reference, tmp_path):
    for stream, decided in (("init", "The initial weights"), ("order", "The order"), ("augment", "The augmentation")):
        result = judge_stream(stream, reference, reference)
        assert (result.verdict, result.text) == ("problem", "changes nothing")
        assert result.cause.startswith(f"{decided} must follow the seed")
    result = judge_stream("eval", reference, reference)
    assert (result.verdict, result.text) == ("skipped", "changes nothing: no random numbers are drawn there")
    plain = with_samples(edited(reference, tmp_path / "plain"), [(0, "a", "1"), (1, "a", "1")])
    assert judge_stream("augment", plain, plain).verdict == "skipped"  # no epoch differs: nothing is augmented


# The next epoch


def test_the_next_epoch_sees_other_pixels(records, reference, tmp_path):
    result = judge_next_epoch(reference, records["seed_augment"])
    assert result.verdict == "ok"
    assert result.text == "augments 20 of 20 samples differently"
    twice = edited(reference, tmp_path / "twice")
    with_samples(twice, [(epoch, name, "1") for epoch in (0, 1) for name in "ab"])
    result = judge_next_epoch(twice, records["seed_augment"])
    assert (result.verdict, result.text) == ("problem", "every sample is augmented as in the epoch before")
    assert "depends on the seed but not on the epoch" in result.cause
    assert judge_next_epoch(twice, twice).text == "not checked: images are not augmented"
    unknown = with_samples(edited(reference, tmp_path / "unknown"), [])
    assert judge_next_epoch(unknown, unknown).text == "not checked: the data loader does not record its samples"


# Two processes


def test_two_processes_see_what_one_sees(records, reference, tmp_path):
    same, seen = judge_pairs(reference, reference, reference)
    assert (same.verdict, same.text, same.level) == ("ok", "same", "R1")
    assert (seen.verdict, seen.text) == ("ok", "same samples and pixels in 6 global batches")
    same, _ = judge_pairs(reference, reference, edited(reference, tmp_path / "late", of_step(6, loss=(0.5).hex())))
    assert same.verdict == "problem"
    assert same.text.startswith("The loss differs, for the same samples: first at step 6 (epoch 2, batch 3)")
    _, seen = judge_pairs(reference, records["seed_order"], records["seed_order"])
    assert (seen.verdict, seen.text) == ("problem", "different at epoch 1, batch 1: order")
    _, seen = judge_pairs(reference, edited(reference, tmp_path / "other", of_step(5, inputs="0" * 16)), reference)
    assert seen.text == "different at epoch 2, batch 2: inputs"
    assert seen.cause.startswith("Something depends on the process")


def test_samples_that_are_not_recorded_are_not_compared(reference, tmp_path):
    def forget(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            line.update({"ids": None, "inputs": None} if line["kind"] == "step" else {})

    unknown = edited(reference, tmp_path / "unknown", forget)
    same, seen = judge_pairs(unknown, unknown, unknown)
    assert same.verdict == "ok"
    assert (seen.verdict, seen.text) == ("skipped", "not checked: the data loader does not record its samples")


# The report of them all


class Trained(TrainingProcesses):
    """Processes that have trained already: each of their trainings is a copy of a record.

    Args:
        folder: Where the copies are.
        records: Records by name of the training; others are copies of the reference.
        changes: What is another in a copy, by name of the training.
        fails: Messages of trainings that fail; those after them in the same process do not begin.
        setup: The setup.
    """

    def __init__(
        self, folder: Path, records: Mapping[str, TrainingRecord], changes: Mapping[str, Change] | None = None,
        fails: Mapping[str, str] | None = None, setup: Setup | None = None,
    ):  # fmt: skip
        super().__init__(folder, setup or Setup(), lambda line: None)
        self.records, self.changes, self.fails = records, changes or {}, fails or {}
        self.trained: list[str] = []

    def run(self, children: Iterable[Child]) -> None:
        for first in children:
            for child in filter(None, (first, first.then)):
                self._copy(child)

    def _copy(self, child: Child) -> None:
        for name, variation in child.trainings.items():
            if name in self.fails:
                self.failures[name] = self.fails[name]
                return
            if not variation.killed:
                self.trained.append(child.name)
                edited(self.records.get(name, self.records["reference"]), self.run_dir(name), self.changes.get(name))


def report_of(processes: TrainingProcesses) -> Report:
    return check_module._Checker(processes).report()


def alone(name: str) -> str:
    """The training that varies only what a check varies."""
    return check_module._isolated_name(next(check for check in CHECKS if check.name == name))


def test_a_reproducible_setup_has_the_levels_that_were_checked(records, tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "available_cores", lambda: 1)
    report = report_of(Trained(tmp_path, records))
    assert (report.passed, report.exit_code) == (True, 0)
    skipped = {result.name: result.text for result in report.results if result.verdict == "skipped"}
    assert skipped == {
        "one free core, 2 threads": "not checked: only one core is available",
        "another seed of `split`": "changes nothing: no random numbers are drawn there",
        "another seed of `eval`": "changes nothing: no random numbers are drawn there",
    }
    assert [report.levels[level] for level in ("R0", "R1", "R2", "R3")] == ["checked"] * 4
    assert str(report).endswith("\n\nreproducible")


def test_each_difference_is_traced_to_what_alone_makes_it(records, tmp_path, monkeypatch):
    """Several checks share a training that differs; only one of them differs when it is made alone."""
    monkeypatch.setattr(check_module, "available_cores", lambda: 2)
    other = of_step(1, ids="0" * 16)
    changes = {"surrounded": other, alone("another time zone"): other, "again": of_step(4, loss=(0.5).hex())}
    changes |= {"workers1": of_step(1, inputs="0" * 16), alone("1 worker"): of_step(1, inputs="0" * 16)}
    fails = {"resumed": "No space left", "seed_order": "No memory", "pair": "No fork"}
    processes = Trained(tmp_path, records, changes, fails)
    report = report_of(processes)
    problems = {result.name: result for result in report.problems}
    assert set(problems) == {
        "once more in one process", "SIGKILL in the second epoch, and resume", "1 worker", "another time zone",
        "another seed of `order`", "another seed of `augment`", "another seed of `step`", "another seed of `eval`",
        "one free core, 2 threads",
    }  # fmt: skip
    assert problems["another time zone"].cause == "Something depends on the clock."
    assert problems["once more in one process"].cause.startswith("State in a module or a class survives")
    assert problems["1 worker"].cause.startswith("A data set or a transform keeps a generator")
    resumed = problems["SIGKILL in the second epoch, and resume"]
    assert (resumed.text, resumed.cause) == ("fails", "The training fails: No space left")
    assert problems["another seed of `order`"].cause == "The training fails: No memory"
    assert problems["another seed of `step`"].cause.endswith("an earlier training in the same process failed")
    assert problems["one free core, 2 threads"].text == "fails"  # what it is compared with was not trained
    pairs = next(result for result in report.results if result.name == "2 processes, twice")
    assert (pairs.verdict, pairs.text) == ("skipped", "not checked: training fails there (No fork)")
    assert report.levels["R1"] == "no, because this changes the result: once more in one process"
    assert report.levels["R3"] == report.levels["R1"]  # each level includes the one before
    assert processes.trained[-1] == "other file times, alone"  # it changes the images that all others see
    assert "once more in one process, alone" not in processes.trained  # that would be another process


def test_nothing_else_is_trained_where_equal_trainings_differ(records, tmp_path):
    processes = Trained(tmp_path, records, {"restart": lambda lines: lines[0].update(weights="0" * 16)})
    report = report_of(processes)
    assert [result.name for result in report.problems] == ["another process"]
    assert {result.text for result in report.results[1:]} == {"not checked: equal trainings differ already"}
    assert "other seeds" not in processes.trained


def test_own_images_are_neither_moved_nor_touched(records, toy, tmp_path):
    report = report_of(Trained(tmp_path, records, setup=Setup(options={"path": str(toy)})))
    own = [result.name for result in report.results if result.text == "not checked: the images are your own"]
    assert own == ["images in another folder", "other file times"]


def test_a_terminal_shows_what_the_file_has(records, tmp_path, monkeypatch, capsys):
    report = report_of(Trained(tmp_path, records, {"again": of_step(1, loss=(0.5).hex())}))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    command._show(report)
    shown = " ".join(re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).split())
    for result in report.results:
        assert f"{result.name} {' '.join(result.text.split()[:6])}" in shown
    assert "once more in one process: State in a module or a class survives" in shown
    assert f"R1 {report.levels['R1']}" in shown
    assert shown.endswith("not reproducible")
