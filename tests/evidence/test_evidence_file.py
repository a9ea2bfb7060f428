"""The file of evidence: it gives back what was written, and refuses what a stranger may have changed."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from autotimm.errors import ModelError, UsageError
from autotimm.evidence import Evidence, evidence_path, read_evidence, write_evidence
from autotimm.evidence.label_runs import LabelRuns

FEATURES = np.arange(6, dtype=np.float32).reshape(2, 3)
CLASSES = Evidence(
    "val", "classes", False, None, ("<script>", "dog"), ("a\udcff.png", "b.png"),
    {"scores": np.array([[0.25, 0.75], [0.5, 0.5]], np.float32), "targets": np.array([1, 0]),
     "losses": np.array([0.5, 1.0], np.float32), "features": FEATURES},
)  # fmt: skip
OBJECTS = Evidence(
    "val", "instances", False, 0.5, ("cat",), ("a.png", "b.png"),
    {"sizes": np.array([[2, 3], [4, 4]]), "offsets": np.array([0, 1, 1]), "true_offsets": np.array([0, 0, 1]),
     "boxes": np.array([[0, 0, 2, 2]], np.float32), "scores": np.array([0.5], np.float32), "labels": np.array([0]),
     "true_boxes": np.array([[1, 1, 2, 2]], np.float32), "true_labels": np.array([0]),
     "true_crowd": np.array([0], np.uint8), "true_area": np.array([0], np.float32),
     "masks": np.frombuffer(b"06", np.uint8), "mask_offsets": np.array([0, 2]),
     "true_masks": np.frombuffer(b"0`0", np.uint8), "true_mask_offsets": np.array([0, 3])},
)  # fmt: skip


def test_what_is_read_is_what_was_written(tmp_path):
    digest = write_evidence(tmp_path, CLASSES)
    found = read_evidence(evidence_path(tmp_path, "val"))
    assert (found.ids, found.class_names, found.threshold) == (CLASSES.ids, CLASSES.class_names, None)
    assert all(np.array_equal(found[name], array) and found[name].dtype == array.dtype
               for name, array in CLASSES.arrays.items())  # fmt: skip
    assert found.features is not None
    assert write_evidence(tmp_path, CLASSES) == digest  # also in a file that holds something


def damaged(change, evidence=CLASSES):
    """A change of arrays and of what is said about them; what is wrong with the result."""

    def apply(folder):
        write_evidence(folder, evidence)
        path = evidence_path(folder, "val")
        arrays = load_file(path)
        about = json.loads(read_header(path)["__metadata__"]["autotimm"])
        change(arrays, about)
        save_file(arrays, path, {"autotimm": json.dumps(about)})
        return path

    return apply


def read_header(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


@pytest.mark.parametrize(
    ("evidence", "change", "words"),
    [
        (CLASSES, lambda arrays, about: about["ids"].append("c"), "`scores` has the shape"),
        (CLASSES, lambda arrays, about: about.update(version=2), "a later version"),
        (CLASSES, lambda arrays, about: about.update(ids=[1, 2]), "`ids.0`|ids"),
        (CLASSES, lambda arrays, about: arrays.pop("losses"), "not the tensors of its kind"),
        (CLASSES, lambda arrays, about: arrays.update(code=FEATURES), "not the tensors of its kind"),
        (CLASSES, lambda arrays, about: arrays.update(losses=FEATURES), "`losses` is of another type"),
        (CLASSES, lambda arrays, about: arrays["targets"].__setitem__(0, 2), "`targets` has impossible values"),
        (CLASSES, lambda arrays, about: arrays["scores"].__setitem__((0, 0), np.nan), "not finite"),
        (OBJECTS, lambda arrays, about: arrays["offsets"].__setitem__(1, 9), "`offsets` has impossible values"),
        (OBJECTS, lambda arrays, about: arrays["true_labels"].__setitem__(0, -1), "`true_labels` has impossible"),
        (OBJECTS, lambda arrays, about: arrays["masks"].__setitem__(1, 120), "damaged"),
        (OBJECTS, lambda arrays, about: arrays["sizes"].__setitem__((1, 0), 9), "do not fill"),
    ],
)  # fmt: skip
def test_damage_is_one_sentence(evidence, change, words, tmp_path):
    path = damaged(change, evidence)(tmp_path)
    with pytest.raises(ModelError, match=words):
        read_evidence(path)


def test_a_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "val.safetensors"
    with pytest.raises(ModelError, match="it is no file"):
        read_evidence(path)
    for content in (b"", b"\x80\x04\x95pickle", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="must be a file that autotimm wrote"):
            read_evidence(path)


def test_masks_are_kept(tmp_path):
    write_evidence(tmp_path, OBJECTS)
    found = read_evidence(evidence_path(tmp_path, "val"))
    assert found.mask(0) == b"06"
    assert found.of_image(1) == slice(1, 1)
    assert found.of_image(1, true=True) == slice(0, 1)


def test_a_data_frame_needs_pandas():
    pandas = None
    try:
        import pandas
    except ModuleNotFoundError:
        with pytest.raises(UsageError, match=re.escape("needs pandas")):
            CLASSES.to_pandas()
        return
    frame = CLASSES.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == [
        "scores.<script>",
        "scores.dog",
        "targets",
        "losses",
        *(f"features.{i}" for i in range(3)),
    ]


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=6))
def test_runs_give_back_a_small_map(rows):
    labels = np.array(rows, np.uint8)
    runs = LabelRuns.of(labels)
    assert np.array_equal(runs.labels(), labels)
    assert (np.diff(runs.values.astype(int)) != 0).all()


def test_a_large_map_is_reduced_to_pixels_of_it():
    labels = np.zeros((100, 1000), np.uint8)
    labels[:, 500:] = 3
    runs = LabelRuns.of(labels)
    assert (runs.height, runs.width) == (26, 256)
    assert runs.labels()[:, 127].max() == 0
    assert runs.labels()[:, 128].min() == 3
