"""Labels that are probably wrong: those that were swapped, by the predictions of a run."""

import sys

import numpy as np
import pytest
import torch

from autotimm import inspect_data
from autotimm.data.table import ImageTable
from autotimm.data.toy import write_toy_folder
from autotimm.errors import UsageError
from autotimm.evidence import Evidence
from autotimm.inspection.label_checks import check_labels, require_cleanlab
from training import small_fit

NAMES, SIZE = ("cat", "dog", "fox"), 120


def evidence_of(true: np.ndarray, labels: np.ndarray, seed: int = 0) -> Evidence:
    """Predictions that favor what is true, with some doubt."""
    scores = np.random.default_rng(seed).uniform(0, 0.4, (SIZE, 3)).astype(np.float32)
    scores[np.arange(SIZE), true] += 1
    scores /= scores.sum(1, keepdims=True)
    ids = tuple(f"{number:03d}.png" for number in range(SIZE))
    return Evidence("val", "classes", False, None, NAMES, ids, {"scores": scores, "targets": labels})


def test_swapped_labels_are_found() -> None:
    pytest.importorskip("cleanlab")
    true = np.arange(SIZE) % 3
    labels, swapped = true.copy(), [4, 31, 77, 90, 111, 118]
    labels[swapped] = (labels[swapped] + 1) % 3
    evidence = evidence_of(true, labels)
    table = ImageTable(evidence.ids, evidence.ids, torch.from_numpy(labels), NAMES)
    (finding,) = check_labels(evidence, {"train": table, "val": table})
    listed = {case.id for case in finding.cases}
    assert finding.check == "label_errors"
    assert listed <= {evidence.ids[at] for at in swapped}
    assert len(listed) == finding.count >= 4  # cleanlab's default is careful
    assert finding.cases[0].note.startswith("is ")
    right = ImageTable(evidence.ids, evidence.ids, torch.from_numpy(true), NAMES)
    assert check_labels(evidence_of(true, true), {"val": right}) == []
    assert check_labels(evidence, {"val": right}) == []  # the labels were corrected since the run
    with pytest.raises(UsageError, match="validated on images that are inspected"):
        check_labels(evidence, {"train": table})
    other = ImageTable(evidence.ids, evidence.ids, torch.from_numpy(labels), (*NAMES, "zebra"))
    with pytest.raises(UsageError, match=r"must know the classes of the data\. It has 3, and the data have 4"):
        check_labels(evidence, {"val": other})


def test_the_label_that_disagrees_is_named() -> None:
    pytest.importorskip("cleanlab")
    true = np.random.default_rng(1).integers(0, 2, (SIZE, 3))
    labels = true.copy()
    labels[7] = 1 - labels[7]
    scores = np.abs(true - np.random.default_rng(2).uniform(0.01, 0.3, true.shape)).astype(np.float32)
    scores[7, 2] = 0.005 if labels[7, 2] else 0.995
    ids = tuple(f"{number:03d}.png" for number in range(SIZE))
    evidence = Evidence("val", "classes", True, 0.5, NAMES, ids, {"scores": scores, "targets": labels})
    table = ImageTable(ids, ids, torch.from_numpy(labels), NAMES)
    (finding,) = check_labels(evidence, {"val": table})
    case = next(case for case in finding.cases if case.id == "007.png")
    assert case.note.endswith(f"; {NAMES[2]} has a score of {scores[7, 2]:.0%}")


def test_a_run_on_the_data_is_taken(tmp_path) -> None:
    pytest.importorskip("cleanlab")
    write_toy_folder(tmp_path / "toy", splits={"train": 9, "val": 6}, num_classes=3, seed=7)
    run = small_fit(tmp_path / "toy", tmp_path, val_split=None)
    found = inspect_data(tmp_path / "toy", run=run.path, image_size=32).findings
    assert {finding.check for finding in found} <= {"label_errors"}


def test_missing_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)  # as if it were not installed
    with pytest.raises(UsageError, match=r"The option run of inspect needs .*pip install 'autotimm\[inspect\]'"):
        require_cleanlab()
