"""Sets of classes: they are those of the textbook, and contain the true class as often as was asked for."""

import csv

import numpy as np
import pytest

from autotimm import Run
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder
from autotimm.errors import UsageError
from autotimm.evidence import Evidence
from autotimm.evidence.calibration import halves
from autotimm.evidence.conformal import least_score
from training import small_fit


def sample(samples, seed):
    """Scores of a model that is too sure of itself, ids and the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(samples, 5)) * 1.5
    truth = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.array([rng.choice(5, p=row) for row in truth])
    scores = np.exp(3 * logits) / np.exp(3 * logits).sum(1, keepdims=True)
    return evidence(scores.astype(np.float32), targets, [str(at) for at in range(samples)])


def evidence(scores, targets, ids):
    names = tuple("abcde"[: scores.shape[1]])
    return Evidence("val", "classes", False, None, names, tuple(ids), {"scores": scores, "targets": targets})


def part(whole, kept):
    ids = [id for id, keep in zip(whole.ids, kept, strict=True) if keep]
    return evidence(whole.scores[kept], whole.targets[kept], ids)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_coverage_is_reached_on_the_other_half(coverage):
    reached = []
    for seed in range(20):
        whole = sample(400, seed)
        half = halves(whole)
        least, other = least_score(part(whole, half), coverage), part(whole, ~half)
        reached.append((other.scores[np.arange(len(other)), other.targets] >= least - 1e-6).mean())
    assert np.mean(reached) == pytest.approx(coverage, abs=0.02)


def test_it_is_the_conformal_quantile():
    whole = sample(199, 0)
    misfits = 1 - whole.scores[np.arange(199), whole.targets].astype(np.float64)
    quantile = np.quantile(misfits, np.ceil(200 * 0.9) / 199, method="inverted_cdf")  # as in the papers
    assert least_score(whole, 0.9) == pytest.approx(1 - quantile, abs=1e-7)
    assert least_score(part(whole, np.arange(199) < 8), 0.9) == 0  # nine would do


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, splits = tmp_path_factory.mktemp("runs"), {"train": 18, "val": 24, "test": 6}
    photos = write_toy_folder(folder / "photos", splits=splits, num_classes=3, seed=7)
    return small_fit(photos, folder, name="one", val_split=None)


def test_sets_of_predictions(run: Run, capsys):
    test = run.path.parent / "photos" / "test"
    small, large = (run.predict(test, coverage=coverage) for coverage in (0.3, 0.95))
    for one, other in zip(small, large, strict=True):
        assert one.labels == one.members[:1]
        assert set(one.members) <= set(other.members)
        assert [*one.members] == sorted(one.members, key=one.scores.__getitem__, reverse=True)
    assert sum(len(each.members) for each in large) > len(large)
    capsys.readouterr()
    assert main(["predict", str(run.path), str(test), "--coverage", "0.95"]) == 0
    rows = [*csv.DictReader(capsys.readouterr().out.splitlines())]
    assert [row["set"] for row in rows] == ["|".join(each.members) for each in large]
    assert {len(each.members) for each in run.predict(test, coverage=0.99)} == {3}
    assert "24 validation images are too few for a coverage of 0.99" in capsys.readouterr().err


def test_what_has_no_sets(run: Run):
    best = run.path / "checkpoints" / "best.ckpt"
    with pytest.raises(UsageError, match="The `coverage` of predict must be left out"):
        Run(best).predict(run.path.parent / "photos" / "test", coverage=0.9)
    several = Evidence("val", "classes", True, 0.5, ("a",), (), {})
    with pytest.raises(UsageError, match="sets are of images that have one class each"):
        least_score(several, 0.9)
    with pytest.raises(UsageError, match=r"in \(0, 1\)"):
        least_score(several, 1.5)
