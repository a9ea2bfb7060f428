"""The report: figures that are right for a reason, names that are escaped, one file that loads nothing."""

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, f1_score

import autotimm
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder
from autotimm.errors import ModelError, RunError
from autotimm.evidence import Evidence, write_evidence
from autotimm.evidence.object_matches import match_objects, object_pairs
from autotimm.evidence.reliability import expected_calibration_error, reliability
from autotimm.metrics import default_metrics
from autotimm.report import compare_runs, write_report
from autotimm.report.class_content import class_content
from autotimm.report.class_figures import average_precision, selective
from autotimm.report.intervals import bootstrap, bootstrap_share
from autotimm.report.object_content import object_headline
from autotimm.report.pictures import Pictures
from autotimm.types import Calibration
from training import small_fit

SCRIPT = "<script>alert(1)</script>"
SPLITS = {"train": 18, "val": 6, "test": 6}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = write_toy_folder(tmp_path_factory.mktemp("toy") / "photos", splits=SPLITS, num_classes=3, seed=7)
    for split in SPLITS:  # a slash cannot be part of a name
        (folder / split / "blue_circle").rename(folder / split / "<script>alert(1)<")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    return small_fit(photos, tmp_path_factory.mktemp("runs"), name="one", epochs=2, val_split=None)


def page_of(run):
    return (run.path / "report.html").read_text()


@pytest.mark.filterwarnings("ignore:No positive samples found")
def test_classes_that_no_image_has_are_named_where_the_metric_counts_zeros():
    rng = np.random.default_rng(0)
    true, scores = (rng.random((60, 3)) < 0.4).astype(np.uint8), rng.random((60, 3)).astype(np.float32)
    true[:, 2] = 0
    (config, _) = default_metrics(3, multi_label=True)
    metric = config.build()
    metric.update(torch.from_numpy(scores), torch.from_numpy(true).long())
    arrays = {"scores": scores, "targets": true, "losses": np.zeros(60, np.float32)}
    evidence = Evidence("val", "classes", True, 0.5, ("a", "b", "c"), tuple(map(str, range(60))), arrays)
    content = class_content(evidence, Pictures({}, 8, square=True), 0)
    assert content.headline.figure.value == pytest.approx(1.5 * float(metric.compute()))
    assert "No image has 1 of the 3 classes: the result is the mean over the others" in content.classes_text


def test_f1_is_that_at_the_very_threshold_of_the_run():
    rng = np.random.default_rng(0)
    true, scores = (rng.random((60, 2)) < 0.4).astype(np.uint8), rng.random((60, 2)).astype(np.float32)
    scores[:20] = np.linspace(0.33, 0.34, 20)[:, None]
    arrays = {"scores": scores, "targets": true, "losses": np.zeros(60, np.float32)}
    evidence = Evidence("val", "classes", True, 0.3351, ("a", "b"), tuple(map(str, range(60))), arrays)
    table, _ = class_content(evidence, Pictures({}, 8, square=True), 0).tables["Thresholds per class"]
    assert table.titles[-1] == "F1 at 0.3351"
    expected = f1_score(true, scores.astype(np.float64) >= 0.3351, average=None)
    assert [row[-1] for row in table.rows] == pytest.approx(expected.tolist())


def one_label(classes, samples, seed=0, temperature=1.0):
    """Evidence of a classifier whose scores are right as often as they say, at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (samples, classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = np.array([rng.choice(classes, p=row) for row in shares])
    scores = np.exp(logits / temperature) / np.exp(logits / temperature).sum(axis=1, keepdims=True)
    arrays = {"scores": scores.astype(np.float32), "targets": targets, "losses": np.zeros(samples, np.float32)}
    names, ids = (tuple(f"{kind}{at}" for at in range(count)) for kind, count in (("c", classes), ("", samples)))
    return Evidence("val", "classes", False, None, names, ids, arrays)


def test_of_many_classes_the_largest_mistakes_are_shown():
    evidence = one_label(30, 400)
    matrix = class_content(evidence, Pictures({}, 8, square=True), 0).matrix
    assert len(matrix.pairs) == 40
    assert [*matrix.rows, *matrix.counts] == []
    counts = [count for _, _, count, _ in matrix.pairs]
    assert counts == sorted(counts, reverse=True)
    winners = evidence.scores.argmax(axis=1)
    for true, found, count, token in matrix.pairs[:5]:
        at = int(true[1:]), int(found[1:])
        assert true != found
        assert token == f"c{at[0]}-{at[1]}"
        assert count == ((evidence.targets == at[0]) & (winners == at[1])).sum()


def test_calibrated_scores_have_a_chart_of_their_own():
    evidence = one_label(4, 600, temperature=0.25)  # far too sure
    calibration = Calibration(4.0, samples=600)
    content = class_content(evidence, Pictures({}, 8, square=True), 0, calibration)
    before, after = content.panels[:2]
    assert (before.title, after.title) == ("Reliability", "Reliability, calibrated")
    assert "at a temperature of 4; each half of the images with the temperature of the other one" in after.text
    errors = [float(re.search(r"calibration error ([\d.]+)", panel.text)[1].rstrip(".")) for panel in (before, after)]
    assert errors[0] > 0.2
    assert errors[1] < 0.1
    assert sum(row[2] for row in content.numbers["reliability_calibrated"][1:]) == 600
    fewer = class_content(evidence, Pictures({}, 8, square=True), 0, Calibration(4.0, samples=30))
    assert "; fitted on validation images. Expected" in fewer.panels[1].text  # on others
    assert "Thresholds that predict uses" not in fewer.tables


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        (Calibration(1.0, (0.25, 0.75), "f1", 9), "Fitted on 9 validation images for F1, and used by predict. "),
        (Calibration(1.0, (0.25, 0.75), "precision 0.9", 9), "Fitted on 9 validation images for a precision 0.9, and "),
        (Calibration(1.0, (0.5, 0.5), "f1", 9), "That of the run, moved by the temperature: the same labels. "),
    ],
)
def test_thresholds_that_predict_uses_are_listed(calibration, said):
    evidence = labels_of([[0.9, 0.6], [0.1, 0.2]], [[1, 0], [0, 1]], ("a", "b"))
    content = class_content(evidence, Pictures({}, 8, square=True), 0, calibration)
    table, text = content.tables["Thresholds that predict uses"]
    assert table.rows == [["cat", calibration.thresholds[0]], ["dog", calibration.thresholds[1]]]
    assert text.startswith(said)
    assert "Reliability, calibrated" not in [panel.title for panel in content.panels]


def test_every_fit_leaves_a_page_that_loads_nothing(run):
    page = page_of(run)
    links = re.findall(r"""(?:src|href)=["']?([^"'>]*)""", page)
    assert all((run.path / link).is_file() for link in links if not link.startswith(("#", "data:")))
    assert "url(data:image/webp;base64," in page
    assert not re.findall(r"url\((?!data:)|@import", page)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert f"{run.metrics['val/accuracy']:.3f}" in page


def test_names_are_escaped(run):
    page = page_of(run)
    assert page.count("<script") == 1  # our own
    assert "&lt;script&gt;alert(1)&lt;" in page


def test_the_numbers_of_each_chart_lie_beside_it(run):
    names = {path.name for path in (run.path / "report").iterdir()}
    assert names == {"classes.csv", "confusion.csv", "reliability.csv", "samples.csv", "thresholds.csv"}
    rows = [line.split(",") for line in (run.path / "report" / "confusion.csv").read_text().splitlines()[1:]]
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows])
    assert counts.sum() == 6
    assert counts.trace() / 6 == pytest.approx(run.metrics["val/accuracy"], abs=1e-6)


def test_curves_of_the_validation_alone_say_so_and_have_its_color(run):
    page = page_of(run)
    (loss,) = re.findall(r"<figcaption>loss</figcaption>.*?</figure>", page, flags=re.DOTALL)
    (accuracy,) = re.findall(r"<figcaption>accuracy, validation</figcaption>.*?</figure>", page, flags=re.DOTALL)
    assert '<li class="s1">validation</li>' in loss
    assert set(re.findall(r'class="line (s\d)"', accuracy)) == {"s1"}


def test_a_test_is_what_the_page_is_about(run, photos, tmp_path):
    copy = autotimm.Run(shutil.copytree(run.path, tmp_path / "copy"))
    copy.test()
    page = page_of(copy)
    assert "6 test images" in page
    assert "Accuracy in validation" in page


def test_the_page_is_the_same_when_it_is_made_again(run, capsys):
    before = page_of(run)
    assert main(["report", str(run.path)]) == 0
    assert capsys.readouterr().out == f"report: {run.path / 'report.html'}\n"
    assert page_of(run) == before
    assert "srcdoc=" in run.report()._repr_html_()


def test_damaged_evidence_is_named_and_not_believed(run, tmp_path):
    copy = autotimm.Run(shutil.copytree(run.path, tmp_path / "copy"))
    (copy.path / "evidence/val.safetensors").write_bytes(b"none")
    assert "is damaged" in copy.report().path.read_text()


def test_without_images_there_are_no_pictures(run, tmp_path, capsys):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    page = write_report(copy).path.read_text()
    assert "data:image/webp" not in page
    assert "there are no pictures" in page


def test_two_runs_are_compared(run, photos, tmp_path, capsys):
    other = small_fit(photos, tmp_path, name="two", epochs=1, val_split=None, lr=1e-5)
    out = tmp_path / "comparison.html"
    assert main(["report", str(run.path), str(other.path), "--out", str(out)]) == 0
    page = out.read_text()
    assert "Differences to one" in page
    settings = page[page.index("Settings that differ") :]
    assert re.findall(r'<th scope="row">(\w+)</th>', settings) == ["epochs", "lr"]
    assert main(["report", str(run.path), str(other.path), "--out", str(out)]) == 2  # nothing is written over
    assert main(["report", str(run.path), "--out", str(tmp_path / "x.html")]) == 0


def test_images_of_one_name_and_other_files_are_not_called_the_same(run, tmp_path):
    first, second = (with_evidence(run, tmp_path / name, run.evidence()) for name in ("first", "second"))
    page = compare_runs([first, second], tmp_path / "a.html").path.read_text()
    assert "All runs were measured on the same images." in page
    lines = (second / "files.csv").read_text().splitlines()
    (second / "files.csv").write_text("\n".join([lines[0], *(f"{line[:-1]}x" for line in lines[1:])]) + "\n")
    page = compare_runs([first, second], tmp_path / "b.html").path.read_text()
    assert "images that the runs call by one name have other files or annotations in them" in page
    assert "2 runs share the highest accuracy, first among them." in page


def with_evidence(run, folder, *evidence):
    """A copy of a run with other evidence, or with none."""
    copy = Path(shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("checkpoints", "*.safetensors")))
    for each in evidence:
        write_evidence(copy, each)
    return copy


def test_runs_without_evidence_are_compared_by_their_settings(run, tmp_path):
    copies = [with_evidence(run, tmp_path / place / "one") for place in "ab"]
    page = compare_runs(copies, tmp_path / "page.html").path.read_text()
    assert "None of the runs has evidence, so that only curves and settings can be compared." in page
    assert all(str(copy) in page for copy in copies)  # equal names are told apart by their places
    with pytest.raises(RunError, match=r"could not be written: .* Give another place"):
        compare_runs(copies, copies[0] / "manifest.json" / "page.html")


def compared(run, folder, first, second):
    """Two runs of the names `first` and `second` with some evidence, and the text of the page that compares them."""
    named = {"first": first, "second": second}
    copies = [with_evidence(run, folder / name, each) for name, each in named.items()]
    return copies, " ".join(compare_runs(copies, folder / "page.html").path.read_text().split())


def test_objects_of_two_runs_are_compared_by_image(run, tmp_path):
    """The first has found one of two objects and one too many, the second both."""
    first = objects()
    second = objects(boxes=first["true_boxes"], labels=np.array([0, 0]))
    copies, page = compared(run, tmp_path, first, second)
    assert "All runs were measured on the same images." in page
    assert "difference in F1 per image" in page
    assert "Better in second: 1; in first: 0; images compared: 2." in page
    assert "0.50 → 1.00" in page
    assert "second reaches the highest box mAP." in page
    confused = with_evidence(run, tmp_path / "confused", objects(boxes=first["true_boxes"], labels=np.array([1, 0])))
    page = compare_runs([confused, copies[1]], tmp_path / "confused.html").path.read_text()
    assert "0.50 → 1.00" in page  # an object of another class is one too many, and one is not found
    other = with_evidence(run, tmp_path / "other", labels_of([[0.9, 0.9]], [[1, 1]], ids=("a",)))
    with pytest.raises(ModelError, match=r"must be of one task\. They are of boxes and classes"):
        compare_runs([copies[0], other], tmp_path / "page.html")


def labels_of(scores, targets, ids, threshold=0.5):
    """Evidence of several labels per image."""
    arrays = {"scores": np.array(scores, np.float32), "targets": np.array(targets, np.uint8),
              "losses": np.zeros(len(scores), np.float32)}  # fmt: skip
    return Evidence("val", "classes", True, threshold, ("cat", "dog"), ids, arrays)


def test_labels_of_two_runs_are_compared_on_the_images_of_both(run, tmp_path):
    first = labels_of([[0.9, 0.6], [0.1, 0.2]], [[1, 0], [0, 0]], ("a", "b"))
    second = labels_of([[0.9, 0.6], [0.9, 0.4]], [[1, 0], [1, 0]], ("a", "c"), threshold=0.65)
    copies, page = compared(run, tmp_path, first, second)
    assert "The runs were measured on different images; differences are of those that both have." in page
    assert "difference in share of right labels" in page
    assert "Better in second: 1; in first: 0; images compared: 1." in page
    assert "0.50 → 1.00" in page
    apart = with_evidence(run, tmp_path / "apart", labels_of([[0.9, 0.9]], [[1, 1]], ids=("d",)))
    page = compare_runs([copies[0], apart], tmp_path / "apart.html").path.read_text()
    assert "difference in" not in page  # no image of one is an image of the other


def test_labels_that_are_not_there_are_no_wrong_predictions():
    evidence = labels_of([[0.9, 0.05], [0.95, 0.02]], [[1, 0], [0, 0]], ("a", "b"))
    panel = class_content(evidence, Pictures({}, 8, square=True), 0).panels[0]
    assert "<title>Share of labels that are there by confidence</title>" in panel.chart
    assert "<title>90% to 100%: 50% of 2 there</title>" in panel.chart
    assert "<title>0% to 10%: 0% of 2 there</title>" in panel.chart
    assert panel.text.startswith("Bars on the line are as often there as they say.")


def test_a_label_map_keeps_its_colors_and_what_is_hidden():
    pictures = Pictures({}, 8, square=False)
    pictures.of_labels(np.array([[0, 255], [1, 254]], np.uint8), [(255, 0, 0), (0, 255, 0)], hidden=255)
    data = base64.b64decode(re.search(r"base64,([^)]*)", pictures.style)[1])
    pixels = np.array(Image.open(io.BytesIO(data)).convert("RGBA"))
    assert pixels[0, 0].tolist() == [255, 0, 0, 255]
    assert pixels[1, 0].tolist() == [0, 255, 0, 255]
    assert pixels[..., 3].tolist() == [[255, 0], [255, 255]]


# Figures


def test_the_interval_is_that_of_the_seed():
    right = np.array([1.0] * 80 + [0.0] * 20)
    estimates = [bootstrap(lambda weights: weights @ right / 100, 100, seed, "val") for seed in (1, 1, 2)]
    assert estimates[0] == estimates[1] != estimates[2]
    for estimate in estimates:  # the normal approximation is 0.8 ± 0.078
        assert (estimate.low, estimate.high) == pytest.approx((0.72, 0.88), abs=0.02)


def test_images_that_are_all_alike_have_an_exact_interval_or_none():
    """Their resamples are all the same: four right ones of four are no proof of an accuracy of 1."""
    every, none = (bootstrap_share(np.full(20, value), 42, "val") for value in (1.0, 0.0))
    expected = binomtest(20, 20).proportion_ci(0.95, "exact")
    assert (every.value, every.low, every.high) == (1, pytest.approx(expected.low), 1)
    assert (none.value, none.low, none.high) == (0, 0, pytest.approx(1 - expected.low))
    assert every.has_interval
    alike = bootstrap(lambda weights: weights @ np.full(5, 0.5) / 5, 5, 42, "val")
    assert (alike.has_interval, str(alike)) == (False, "0.500")


def test_average_precision_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    scores, true = random.random(60).round(1), random.integers(0, 2, 60)
    weights = random.integers(0, 3, (4, 60))
    expected = [average_precision_score(true, scores, sample_weight=row) for row in weights]
    assert average_precision(scores, true, weights) == pytest.approx(expected)


def test_calibration_counts_what_is_right():
    bins = reliability(np.array([0.95, 0.95, 0.55, 1.0]), np.array([1.0, 0.0, 1.0, 1.0]))
    assert [(each.size, each.correct) for each in bins if each.size] == [(1, 1.0), (3, pytest.approx(2 / 3))]
    assert expected_calibration_error(bins) == pytest.approx(0.45 / 4 + 3 / 4 * abs(2.9 / 3 - 2 / 3))
    assert selective(np.array([0.9, 0.6]), np.array([1.0, 0.0]), np.array([0.95]))[0, 0] == 0


def objects(**arrays):
    """Two images: in the first one of two objects is found, and one that is not there; the second is empty."""
    given = {
        "sizes": np.array([[100, 100], [100, 100]]), "offsets": np.array([0, 2, 2]),
        "true_offsets": np.array([0, 2, 2]),
        "boxes": np.array([[10, 10, 30, 30], [60, 60, 90, 90]], np.float32), "scores": np.array([0.9, 0.8], np.float32),
        "labels": np.array([0, 1]), "true_boxes": np.array([[10, 10, 30, 30], [40, 10, 60, 30]], np.float32),
        "true_labels": np.array([0, 0]), "true_crowd": np.zeros(2, np.uint8), "true_area": np.zeros(2, np.float32),
    }  # fmt: skip
    return Evidence("val", "boxes", False, 0.5, ("cat", "dog"), ("a", "b"), given | arrays)


def test_objects_are_paired_and_counted():
    evidence = objects()
    pairs = {(pair.true, pair.found) for pair in object_pairs(evidence, 0.5)}
    assert pairs == {(0, 0), (-1, 1), (1, -1)}
    cat = match_objects(evidence)[0, "all"].average_precision(np.ones((1, 2)))[0]
    assert cat == pytest.approx(51 / 101)  # a precision of 1 up to a recall of one half
    assert object_headline(evidence, 42).figure.value == pytest.approx(51 / 101)  # no dog is there in truth


def test_what_lies_in_a_crowd_counts_neither_way():
    evidence = objects(true_boxes=np.array([[10, 10, 30, 30], [50, 50, 99, 99]], np.float32),
                       true_labels=np.array([0, 1]), true_crowd=np.array([0, 1], np.uint8))  # fmt: skip
    assert {(pair.true, pair.found) for pair in object_pairs(evidence, 0.5)} == {(0, 0)}


def test_a_page_of_a_thousand_images_stays_small(run, photos, tmp_path):
    """With the pictures of one sample many times: what counts is how much a page takes."""
    copy = shutil.copytree(run.path, tmp_path / "copy")
    evidence, count = run.evidence(), 1000
    rows = np.arange(count) % len(evidence)
    arrays = {name: array[rows] for name, array in evidence.arrays.items()}
    ids = tuple(evidence.ids[row] for row in rows)
    write_evidence(copy, Evidence("val", "classes", False, None, evidence.class_names, ids, arrays))
    page = write_report(copy, run.data().tables).path
    assert page.stat().st_size < 5_000_000
