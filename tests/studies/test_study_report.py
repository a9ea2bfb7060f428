"""What a study says: shares of the variance, where the shares come from, and the files for programs."""

import csv
import json
import math
from dataclasses import replace

import pytest

from autotimm import FitConfig
from autotimm.errors import DataError
from autotimm.records.manifest import Manifest
from autotimm.studies.statistics import compare_pairs, share_variance, summarize
from autotimm.studies.study_report import Results, _panel, as_data, as_text, draw, write_csv, write_json
from autotimm.studies.trials import make_plan

STREAMS = ("init", "order")
ACCURACY = {
    "seed-42": 0.5, "seed-42-init-43": 0.75, "seed-42-order-43": 0.5, "seed-42-init-order-43": 0.625,
}  # fmt: skip


def planned(folder, b=None, **given):
    settings = {"seeds": 2, "vary": STREAMS, "decompose": b is None, "jobs": 1, "name": "one", **given}
    return make_plan(FitConfig(path="photos"), b, out=folder, **settings)


def write_runs(plan, metrics, splits=lambda name: "a"):
    """What the runs of a study have left."""
    for trial in plan.trials:
        trial.folder.mkdir(parents=True)
        (trial.folder / "config.yaml").write_text(trial.config.to_yaml())
        Manifest({"splits": splits(trial.name)}, {}).save(trial.folder / "manifest.json")
        (trial.folder / "results.json").write_text(json.dumps(metrics(trial.name)))


@pytest.fixture
def decomposed(tmp_path):
    """Two streams varied alone and together: one of them decides nothing."""
    plan = planned(tmp_path)
    write_runs(plan, lambda name: {"best": {"epoch": 1, "val/loss": 1.0, "val/accuracy": ACCURACY[name]}})
    return Results.read(plan)


def test_metrics_are_those_of_validation_with_losses_last(decomposed):
    assert decomposed.names == ["val/accuracy", "val/loss"]
    assert decomposed.values("a", "val/accuracy") == [0.5, 0.625]
    assert decomposed.values("a", "val/accuracy", "init") == [0.5, 0.75]
    assert decomposed.summaries["a"]["val/accuracy"] == summarize([0.5, 0.625])
    assert decomposed.splits == 1


def test_a_stream_has_the_share_that_it_causes_alone(decomposed):
    expected = share_variance({"init": [0.5, 0.75], "order": [0.5, 0.5]}, [0.5, 0.625])
    assert decomposed.shares["val/accuracy"] == expected
    assert [round(share.share, 9) for share in expected.values()] == [4, 0]
    assert decomposed.shares["val/loss"]["init"].share is None  # there is nothing to share
    rows = [line.split() for line in as_text(decomposed).splitlines()]
    of_streams = [row[1:] for row in rows if row and row[0].startswith("val/") and row[1] in STREAMS]
    assert [(row[0], row[1]) for row in of_streams] == [
        ("init", "0.1768"), ("order", "0.0000"), ("init", "0.0000"), ("order", "0.0000")
    ]  # fmt: skip
    assert of_streams[0][2:4] == ["400", "%"]
    assert of_streams[2][2:] == ["-", "-"]
    assert "2 seeds of init, order" in as_text(decomposed)
    assert "With 2 seeds per stream a share is a rough estimate" in as_text(decomposed)


def test_a_share_beyond_any_percentage_is_a_factor(decomposed):
    init = replace(decomposed.shares["val/accuracy"]["init"], share=12.4, low=0.5, high=99.0)
    text = as_text(replace(decomposed, shares={"val/accuracy": {"init": init}}))
    assert " 12 times   50 % to 99 times" in text


def test_files_hold_the_shares_and_every_run_of_every_group(decomposed, tmp_path):
    data = as_data(decomposed)
    assert data["status"] == "finished"
    assert data["shares"]["val/accuracy"]["init"]["share"] == pytest.approx(4)
    assert [group["vary"] for group in data["groups"]] == ["init", "order", "init+order"]
    write_csv(tmp_path / "study.csv", decomposed)
    rows = [*csv.DictReader((tmp_path / "study.csv").read_text().splitlines())]
    assert [(row["vary"], row["seed"], float(row["val/accuracy"])) for row in rows] == [
        ("init", "42", 0.5), ("init", "43", 0.75), ("order", "42", 0.5), ("order", "43", 0.5),
        ("init+order", "42", 0.5), ("init+order", "43", 0.625),
    ]  # fmt: skip
    assert as_data(Results(decomposed.plan))["status"] == "running"


def test_a_plot_has_a_column_for_each_stream(decomposed, tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure
    axes = figure().add_subplot()
    _panel(axes, decomposed, "val/accuracy")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["init", "order", "together"]
    assert axes.get_title() == "val/accuracy"
    dots = [(round(x), y) for points in axes.collections[::2] for x, y in points.get_offsets().tolist()]
    assert dots == [(0, 0.5), (0, 0.75), (1, 0.5), (1, 0.5), (2, 0.5), (2, 0.625)]
    equal = axes.collections[2].get_offsets()[:, 0]
    assert equal[0] != equal[1]  # equal values do not hide each other
    assert draw(tmp_path / "plot.png", decomposed)
    first = (tmp_path / "plot.png").read_bytes()
    assert draw(tmp_path / "again.png", decomposed)
    assert (tmp_path / "again.png").read_bytes() == first


def test_runs_with_other_metrics_are_not_compared(tmp_path):
    plan = planned(tmp_path)
    write_runs(plan, lambda name: {"best": {"val/accuracy": 0.5} if name == "seed-42" else {"val/f1": 0.5}})
    with pytest.raises(DataError, match="must have the same metrics, but some have others"):
        Results.read(plan)


def test_metrics_that_are_not_defined_have_no_statistics(tmp_path):
    """Such as Cohen's kappa of a validation that shows one class: it is NaN."""
    plan = planned(tmp_path)
    write_runs(plan, lambda name: {"best": {"val/loss": 1.0, "val/kappa": math.nan if name == "seed-42" else 1.0}})
    results = Results.read(plan)
    assert results.names == [*results.summaries["a"]] == [*results.shares] == ["val/loss"]
    assert "val/kappa has no statistics: it is not a finite number in 1 of 4 runs." in as_text(results).replace(
        "\n", " "
    )
    write_json(tmp_path / "study.json", results)
    assert json.loads((tmp_path / "study.json").read_text())["metrics"]["seed-42"]["val/kappa"] is None
    write_csv(tmp_path / "study.csv", results)
    rows = [*csv.DictReader((tmp_path / "study.csv").read_text().splitlines())]
    assert rows[0]["val/kappa"] == "nan"
    pytest.importorskip("matplotlib")
    assert draw(tmp_path / "plot.png", results)


def test_runs_without_a_defined_metric_are_refused(tmp_path):
    plan = planned(tmp_path)
    write_runs(plan, lambda name: {"best": {"val/kappa": math.nan}})
    with pytest.raises(DataError, match=r"must have a metric that is a number in each of them\. They have val/kappa"):
        Results.read(plan)


def test_without_validation_metrics_are_those_of_training_and_splits_are_counted(tmp_path):
    plan = planned(tmp_path, decompose=False, vary=("all",))
    write_runs(plan, lambda name: {"best": {"train/loss": 0.5}}, splits=lambda name: name)
    results = Results.read(plan)
    assert results.names == ["train/loss"]
    assert results.splits == 2
    assert "The split varies with the seed: each run was evaluated on other images." in results.notes
    assert "2 seeds of everything" in as_text(results)


def test_two_configurations_are_compared_seed_by_seed(tmp_path):
    plan = planned(tmp_path, b=FitConfig(path="photos", lr=0.25), seeds=18, vary=("all",))
    better = {name: 0.5 + 0.01 * (number % 3) for number, name in enumerate(trial.name for trial in plan.trials)}
    metrics = {name: {"val/f1": value + 0.25 * name.startswith("vs-")} for name, value in better.items()}
    metrics = {name: {**values, "val/same": 1.0} for name, values in metrics.items()}
    values = {arm: [metrics[trial.name]["val/f1"] for trial in plan.groups[arm, "all"]] for arm in "ab"}
    paired = {"val/f1": compare_pairs(values["a"], values["b"]), "val/same": compare_pairs([1.0] * 18, [1.0] * 18)}
    summaries = {arm: {"val/f1": summarize(values[arm]), "val/same": summarize([1.0] * 18)} for arm in "ab"}
    text = as_text(Results(plan, metrics, summaries, paired))
    assert "B has lr 0.25 instead of auto" in text
    differences = [line.split() for line in text.splitlines() if "+0." in line]
    assert [line[0] for line in differences] == ["val/f1", "val/same"]
    assert differences[1][-1] == "-"  # no number of seeds detects no difference
