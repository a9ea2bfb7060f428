"""``test --tta`` measures what ``predict --tta`` predicts, apart from the plain test; ``verify`` makes it again."""

import json
import shutil
from math import nan
from pathlib import Path

import jsonschema
import pytest
import torch

from autotimm import ImageClassifier, Run, Step
from autotimm.cli.main import main
from autotimm.data.image import ImageDataModule
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.errors import ModelError, UsageError
from autotimm.metrics import build_metrics
from autotimm.records.run_folder import RunFolder, read_results, write_results
from autotimm.runs.judge import judge
from autotimm.runs.recorded_run import read_recorded
from autotimm.runs.replaying import replay_run
from autotimm.runs.restore import rebuild
from autotimm.runs.run import diff
from autotimm.types import Stage
from forger import json_edits, write
from training import multi_label_data, small_fit, toy_data, trainer

SIZE, DENSE = 96, {"image_size": 96, "batch_size": 4, "val_split": None, "width": 64, "eval_batch_size": 2, "lr": 3e-3}
SPLITS = {"train": 12, "val": 2, "test": 4}


def fit_dense(folder, write_toy, **options):
    data = write_toy(folder / "data", splits=SPLITS, image_size=SIZE)
    return small_fit(data, folder / "runs", **DENSE, **options), data / "test"


def fit_classes(folder, epochs=2):
    data = write_toy_folder(folder / "data", splits={"train": 24, "val": 6, "test": 12}, num_classes=3, seed=7)
    run = small_fit(data, folder / "runs", val_split=None, metrics=["AUROC", "Accuracy"], epochs=epochs)
    return run, data / "test"


FITS = {
    "classes": fit_classes,
    "boxes": lambda folder: fit_dense(folder, write_toy_objects, task="detection", epochs=4),
    "masks": lambda folder: fit_dense(folder, write_toy_objects, task="instance", epochs=2),
    "pixels": lambda folder: fit_dense(folder, write_toy_segmentation, epochs=2),
}


KINDS = ["classes", "boxes", pytest.param("masks", marks=pytest.mark.slow), "pixels"]


@pytest.fixture(scope="module", params=KINDS)
def tested(request, tmp_path_factory):
    """A run, its test images, and what its tests have measured: looked at once, and mirrored too."""
    run, images = FITS[request.param](tmp_path_factory.mktemp(request.param))
    return run, images, run.test(), run.test(tta="flip")


def measured(run, predictions):
    """The metrics of predictions, computed from what `predict` has returned and the truth that the data have."""
    task, data = run.model(), run.data()
    data.setup()
    found = {each.id.rpartition("/")[2]: each for each in predictions}
    metrics = build_metrics(task.metric_configs, Stage.TEST)
    for batch in data.test_dataloader():
        predicted = [found[id.rpartition("/")[2]] for id in batch.ids]
        truths = batch.targets if batch.truths is None else batch.truths
        pairs = {
            "classes": lambda p, t: [(torch.tensor([[*each.scores.values()] for each in p]), t)],
            "pixels": lambda p, t: [(p.mask()[None], t[None]) for p, t in zip(p, t, strict=True)],
        }.get(data.spec.kind, lambda p, t: [([as_found(each, task) for each in p], [as_true(each) for each in t])])
        for metric in metrics.values():
            for pair in pairs(predicted, truths):
                metric.update(*pair)
    values = {}
    for name, metric in metrics.items():
        value = metric.compute()
        several = {name if key == "mean" else f"{name}_{key}" if metric.prefixed else key: each
                   for key, each in value.items()} if isinstance(value, dict) else {name: value}  # fmt: skip
        values |= {f"test/{key}": float(each) for key, each in several.items()}
    return values


def as_found(prediction, task):
    objects = {
        "boxes": torch.tensor(prediction.boxes).reshape(-1, 4),
        "scores": torch.tensor(prediction.scores),
        "labels": torch.tensor([task.class_names.index(label) for label in prediction.labels], dtype=torch.long),
    }
    masks = [(prediction.size, counts.encode()) for counts in prediction.masks]
    return objects | ({"masks": masks} if prediction.masks else {})


def as_true(truth):
    return {name: value for name, value in truth.items() if name != "crowd"} | {"iscrowd": truth["crowd"].long()}


def test_metrics_are_those_of_the_predictions(tested):
    run, images, once, flipped = tested
    least = 1e-9 if run.model().threshold else None
    assert flipped == measured(run, run.predict(images, tta="flip", threshold=least))
    assert {name: value for name, value in once.items() if "loss" not in name} == measured(
        run, run.predict(images, threshold=least)
    )
    assert flipped != {name: once[name] for name in flipped}, "views that change nothing prove nothing"


def test_there_are_no_losses_and_the_plain_test_stays(tested):
    run, _, once, flipped = tested
    results = read_results(run.path / "results.json")
    assert not [name for name in flipped if "loss" in name]
    assert results["test"] == once
    assert results["views"]["flip"]["test"] == flipped
    assert run.metrics.items() >= once.items()
    assert "test/loss" in run.test() or run.model().threshold
    assert read_results(run.path / "results.json")["views"] == results["views"], "the plain test leaves them"


def test_verify_makes_both_tests_again(tested):
    run = tested[0]
    verdict = run.verify()
    assert (verdict.verdict, verdict.not_checked) == ("identical", ())


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    run, _ = fit_classes(tmp_path_factory.mktemp("classes"), epochs=3)
    run.test()
    for tta in ("multiscale", "flip"):
        run.test(tta=tta)
    return run


@pytest.fixture(scope="module")
def replay(classes, tmp_path_factory):
    place = RunFolder(tmp_path_factory.mktemp("replay") / "replay", tmp_path_factory.mktemp("place"))
    return replay_run(read_recorded(classes.path), rebuild(classes.path, place), place)


def forged(run, folder, results):
    shutil.copytree(run.path, folder)
    write(folder / "results.json", json.dumps(results, indent=2) + "\n")
    return read_recorded(folder)


def test_results_name_their_views(classes):
    results = json.loads((classes.path / "results.json").read_text())
    assert list(results["views"]) == ["flip", "multiscale"]
    schema = json.loads((Path(__file__).parents[2] / "docs/reference/results.schema.json").read_text())
    jsonschema.validate(results, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"views": {"mirror": results["views"]["flip"]}}, schema)


def test_every_edited_value_is_found(classes, replay, tmp_path):
    assert judge(read_recorded(classes.path), replay).verdict == "identical"
    edits = [(name, change) for name, change in json_edits(classes.path, "results.json") if ": views." in name]
    assert len(edits) == 4
    for number, (name, change) in enumerate(edits):
        shutil.copytree(classes.path, tmp_path / str(number))
        change(tmp_path / str(number))
        verdict = judge(read_recorded(tmp_path / str(number)), replay)
        assert verdict.verdict == "different", name
        assert any(finding.startswith(name) for finding in verdict.findings)


@pytest.mark.parametrize(
    "views",
    [
        3,
        {},
        [],
        {"flip": 3},
        {"flip": {}},
        {"mirror": {"test": {"test/accuracy": 1.0}}},
        {"flip": {"test": {"test/accuracy": "1.0"}}},
        {"flip": {"val": {"val/accuracy": 1.0}}},
    ],
)
def test_another_form_is_found(views, classes, replay, tmp_path):
    results = json.loads((classes.path / "results.json").read_text())
    verdict = judge(forged(classes, tmp_path / "run", results | {"views": views}), replay)
    assert verdict.verdict == "different"
    assert any("results.json: views" in finding for finding in verdict.findings)


def test_views_are_never_taken_for_the_plain_test(classes, replay, tmp_path):
    results = json.loads((classes.path / "results.json").read_text())
    swapped = results | {"test": results["views"]["multiscale"]["test"]}
    assert judge(forged(classes, tmp_path / "swapped", swapped), replay).verdict == "different"
    moved = {name: group for name, group in results.items() if name != "test"}
    verdict = judge(forged(classes, tmp_path / "moved", moved), replay)
    assert verdict.verdict == "different"
    assert any(finding.startswith("results.json: test") for finding in verdict.findings)


def test_views_that_would_take_longer_than_the_training_are_named(tmp_path):
    data = write_toy_folder(tmp_path / "data", splits={"train": 8, "val": 2, "test": 8}, num_classes=2)
    run = small_fit(data, tmp_path / "runs", val_split=None)
    run.test()
    run.test(tta="flip")
    verdict = run.verify()
    assert verdict.verdict == "identical"
    assert verdict.not_checked == ("results.json: views.flip",)


def test_views_that_the_task_refuses_are_not_taken_for_tested(tmp_path):
    data = write_toy_segmentation(tmp_path / "data", splits={"train": 4, "val": 2, "test": 1}, image_size=SIZE)
    run = small_fit(data, tmp_path / "runs", **DENSE | {"image_size": None}, tile=64)
    once = run.test()
    with pytest.raises(UsageError, match="`tta` of test must be left out for images in tiles"):
        run.test(tta="flip")
    results = json.loads((run.path / "results.json").read_text())
    write(run.path / "results.json", json.dumps(results | {"views": {"flip": {"test": once}}}))
    assert run.verify().verdict == "different"


def test_values_per_class_that_nothing_was_measured_for(tmp_path):
    measured = {"test": {"test/mAP": 0.5}, "per_class": {"cat": {"AP": nan}, "ant": {"AP": 0.5}}}
    write_results(tmp_path / "results.json", {"views": {"flip": measured}})
    assert json.loads((tmp_path / "results.json").read_text())["views"]["flip"]["per_class"]["cat"] == {"AP": None}
    table = read_results(tmp_path / "results.json")["views"]["flip"]["per_class"]
    assert str(table) == str(measured["per_class"])  # as text, since NaN is not equal to NaN


def test_damaged_results_are_an_error(classes, tmp_path):
    shutil.copytree(classes.path, tmp_path / "run")
    for damaged in (3, {"flip": {}}, {"flip": {"test": {"accuracy": "much"}}}):
        (tmp_path / "run" / "results.json").write_text(json.dumps({"views": damaged}))
        with pytest.raises(ModelError, match=r"`views.*results"):
            _ = Run(tmp_path / "run").metrics


def test_runs_are_compared_by_the_views_that_both_have(classes, tmp_path):
    results = json.loads((classes.path / "results.json").read_text())
    forged(classes, tmp_path / "other", results | {"views": {"flip": results["views"]["flip"]}})
    assert diff(classes.path, tmp_path / "other").equal
    forged(classes, tmp_path / "apart", results | {"views": {"flip": results["views"]["multiscale"]}})
    assert not diff(classes.path, tmp_path / "apart").equal


def test_several_labels_and_the_temperature_of_predictions(tmp_path):
    photos = write_toy_folder(tmp_path / "photos", n=160, num_classes=3, image_size=32, seed=7)
    data = multi_label_data(photos, tmp_path, val_split=0.4, test_split=0.1)
    task = ImageClassifier("test_resnet", 2, multi_label=True, pretrained=False, image_size=32)
    trainer(3, run_dir=tmp_path / "run", evidence=True, calibrate="f1").fit(task, datamodule=data)
    run = Run(tmp_path / "run")
    calibrated = run.model()
    assert calibrated.temperature != 1
    data.setup()
    targets = torch.cat([batch.targets for batch in data.test_dataloader()])
    found = run.predict([*data.tables["test"].files()], tta="flip")
    metrics = build_metrics(calibrated.metric_configs, Stage.TEST)
    for metric in metrics.values():
        metric.update(torch.tensor([[*each.scores.values()] for each in found]), targets.long())
    flipped = run.test(tta="flip")
    assert flipped == {f"test/{name}": float(metric.compute()) for name, metric in metrics.items()}
    assert run.verify().verdict == "identical"


def test_validation_files_and_checkpoints(classes, tmp_path):
    results = (classes.path / "results.json").read_text()
    assert classes.validate(tta="flip").keys() == {"val/auroc", "val/accuracy"}
    folder = classes.config["path"]
    kept = json.loads(results)["views"]["flip"]["test"]
    assert classes.test(folder, tta="flip") == kept
    assert Run(classes.checkpoint()).test(folder, tta="flip") == kept
    assert classes.test(tta="flip", out=tmp_path / "out.json") == kept
    assert json.loads((tmp_path / "out.json").read_text()) == {"views": {"flip": {"test": kept}}}
    assert (classes.path / "results.json").read_text() == results


def test_a_data_module_with_images_of_another_size(classes):
    data = ImageDataModule(classes.config["path"], image_size=64, batch_size=4, num_workers=0)
    assert classes.test(data, tta="flip").keys() == {"test/auroc", "test/accuracy"}


def test_the_command(classes, capfd):
    assert main(["test", str(classes.path), "--tta", "flip", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["tta"] == "flip"
    assert answer["metrics"].keys() == {"test/auroc", "test/accuracy"}
    assert main(["validate", str(classes.path), "--tta", "flip"]) == 0
    assert "val/auroc" in capfd.readouterr().out
    assert main(["test", str(classes.path), "--tta", "mirror"]) == 2
    assert "--tta" in capfd.readouterr().err


def test_the_report_shows_them_in_a_line(classes):
    page = classes.report().path.read_text()
    value = json.loads((classes.path / "results.json").read_text())["views"]["flip"]["test"]["test/accuracy"]
    assert "Test of several views, flip" in page
    assert f"accuracy {value:.4f} (once " in page


class OwnStep(ImageClassifier):
    def step(self, batch, stage):
        return Step({"loss": torch.zeros((), requires_grad=True)}, self.infer(batch.images), batch.targets)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [(OwnStep, {}, "a task with a `step` of its own"), (ImageClassifier, {"metrics": []}, "a task without metrics")],
)
def test_what_has_nothing_to_measure_is_refused(task, options, words, tmp_path):
    photos = write_toy_folder(tmp_path / "photos", n=12, num_classes=2, image_size=32)
    model = task("test_resnet", 2, pretrained=False, image_size=32, **options)
    trainer(1, run_dir=tmp_path / "run").fit(model, datamodule=toy_data(photos))
    with pytest.raises(UsageError, match=f"`tta` of validate must be left out for {words}"):
        Run(tmp_path / "run", trust=True).validate(tta="flip")
