"""Pooled features of images: the same bits alone and among others, those of the evidence, and never written over."""

import csv
import json

import numpy as np
import pytest
from safetensors import safe_open

from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.errors import UsageError
from autotimm.records.digest import file_digest
from training import small_fit


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings") / "photos"
    return write_toy_folder(folder, splits={"train": 12, "val": 5}, num_classes=3, seed=7)


@pytest.fixture(scope="module")
def run(photos):
    return small_fit(photos, photos.parent / "runs", name="photos", val_split=None)


@pytest.fixture(scope="module", params=["regions", pytest.param("objects", marks=pytest.mark.slow)])
def dense_run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write = write_toy_objects if request.param == "objects" else write_toy_segmentation
    data = write(folder / "data", splits={"train": 4, "val": 3}, image_size=64)
    return small_fit(data, folder / "runs", image_size=64, batch_size=4, val_split=None)


def images_of(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))


def test_bits_depend_neither_on_other_images_nor_on_their_order(run, photos):
    files = images_of(photos)
    ids, features = run.embed(files)
    assert ids == tuple(path.as_posix() for path in files)
    assert (features.shape, features.dtype) == ((17, 96), np.float32)
    assert len(np.unique(features, axis=0)) > 10, "features that are all alike prove nothing"
    for at in (0, 9, 16):
        assert np.array_equal(run.embed(files[at]).features[0], features[at])
    assert np.array_equal(run.embed(files[::-1]).features[::-1], features)


def test_they_are_those_of_the_evidence(run, photos):
    evidence = run.evidence()
    assert np.array_equal(run.embed([photos / id for id in evidence.ids]).features, evidence.features)


def test_of_detectors_and_segmenters(dense_run):
    data = dense_run.data()
    data.setup("fit")
    files = data.tables["train"].files()[:3]
    _, features = dense_run.embed(files)
    assert features.ndim == 2
    assert np.isfinite(features).all()
    assert len(np.unique(features, axis=0)) == 3
    assert np.array_equal(dense_run.embed(files[1]).features, features[1:2])


def test_files_hold_every_bit(run, photos, tmp_path, capfd):
    ids, features = run.embed([photos])
    words = ["predict", str(run.path), str(photos), "--embeddings"]
    assert main([*words, str(tmp_path / "f.safetensors")]) == 0
    shown = capfd.readouterr()
    assert len(shown.out.splitlines()) == 18, "the table alone"
    assert f"embeddings: {tmp_path / 'f.safetensors'} (17 images)" in shown.err
    with safe_open(tmp_path / "f.safetensors", framework="numpy") as file:
        about = json.loads(file.metadata()["autotimm"])
        assert np.array_equal(file.get_tensor("features"), features)
    assert tuple(about["ids"]) == ids
    assert about["checkpoint"] == file_digest(run.checkpoint())
    assert main([*words, str(tmp_path / "f.csv"), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["embeddings"] == str(tmp_path / "f.csv")
    assert [each["name"] for each in answer["predictions"]] == [*ids]
    titles, *rows = csv.reader((tmp_path / "f.csv").read_text().splitlines())
    assert titles == ["path", *map(str, range(96))]
    assert [row[0] for row in rows] == [*ids]
    assert np.array_equal(np.array([row[1:] for row in rows], np.float32), features)


def test_predictions_are_the_same_with_them(run, photos, tmp_path):
    assert run.predict(photos, embeddings=tmp_path / "f.safetensors") == run.predict(photos)
    first = (tmp_path / "f.safetensors").read_bytes()
    run.predict(photos, embeddings=tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == first


@pytest.mark.parametrize(
    ("name", "must"),
    [("old.csv", "must be a file that is not there yet"), ("f.npy", "must be a file that ends in .safetensors or .csv"),
     ("no/f.csv", "must be a file that can be written"), ("out.csv", "must be another file than --out")],
)  # fmt: skip
def test_wrong_files_are_refused_before_anything_is_loaded(name, must, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.csv").write_text("mine")
    assert main(["predict", "no-run", "photos", "--out", "out.csv", "--embeddings", name]) == 2
    assert f"The `--embeddings` of autotimm predict {must}" in capsys.readouterr().err
    assert (tmp_path / "old.csv").read_text() == "mine"


def test_tiles_are_refused(tmp_path):
    data = write_toy_segmentation(tmp_path / "data", splits={"train": 2, "val": 2}, image_size=64)
    run = small_fit(data, tmp_path / "runs", image_size=None, tile=64, batch_size=2, val_split=None)
    with pytest.raises(UsageError, match="sees tiles of images"):
        run.embed(data)
