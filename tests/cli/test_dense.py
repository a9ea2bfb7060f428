"""The verbs on boxes, outlines and regions: one small run of each, and what is said, written and drawn of it."""

import csv
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from autotimm import Run
from autotimm.cli.main import main
from autotimm.cli.measure import class_lines
from autotimm.data.toy_objects import write_toy_objects, write_toy_segmentation
from autotimm.errors import DataError
from autotimm.types import ObjectPrediction, PixelPrediction
from training import small_fit

SIZE = (48, 72)
SPLITS = {"train": 8, "val": 4, "test": 4}
DENSE = {"image_size": 64, "width": 64, "batch_size": 4, "lr": 1e-2, "val_split": None}
# One epoch teaches little: low thresholds, and a Mask R-CNN that has not yet learned to call everything background.
TASKS = {"detection": {"threshold": 0.05}, "instance": {"threshold": 0.06, "lr": 1e-5}, "segmentation": {}}


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dense")
    objects = write_toy_objects(folder / "objects", splits=SPLITS, image_size=SIZE)
    regions = write_toy_segmentation(folder / "regions", splits=SPLITS, image_size=SIZE)
    return {"detection": objects, "instance": objects, "segmentation": regions}


@pytest.fixture(scope="module")
def runs(toys, tmp_path_factory) -> dict[str, Run]:
    out = tmp_path_factory.mktemp("runs")
    return {
        task: small_fit(toys[task], out, **(DENSE | options), task=task, name=task) for task, options in TASKS.items()
    }


@pytest.fixture
def photos(toys, tmp_path) -> Path:
    """Two images of one name in two folders, and one without a folder."""
    for place, number in (("a/1.png", 0), ("b/1.png", 1), ("2.png", 2)):
        (tmp_path / "photos" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(toys["detection"] / "test" / f"{number:05d}.png", tmp_path / "photos" / place)
    return tmp_path / "photos"


each_task = pytest.mark.parametrize("task", TASKS)


class TestPerClass:
    @each_task
    def test_it_is_kept_with_the_run_and_read_again(self, task, runs, tmp_path):
        shutil.copytree(runs[task].path, tmp_path / "copy")
        run = Run(tmp_path / "copy")
        assert run.per_class == {}
        found = run.test()
        assert all(type(value) is float for value in found.values())
        names = run.model().class_names
        assert tuple(run.per_class) == names
        titles = {"detection": ["AP"], "instance": ["mask_mAP AP", "mAP AP"], "segmentation": ["IoU"]}[task]
        assert all(list(row) == titles for row in run.per_class.values())
        again = Run(tmp_path / "copy").per_class
        assert list(again) == list(names)
        assert str(again) == str(run.per_class)  # NaN is not NaN
        assert "NaN" not in (tmp_path / "copy" / "results.json").read_text()
        mean = found["test/mIoU" if task == "segmentation" else "test/mAP"]
        known = [one for row in again.values() if not math.isnan(one := [*row.values()][-1])]
        assert sum(known) / len(known) == pytest.approx(mean, abs=1e-6)

    def test_it_is_printed_below_the_metrics(self, runs, capsys):
        for verb in ("test", "validate"):
            assert main([verb, str(runs["segmentation"].path)]) == 0
            above, below = capsys.readouterr().out.split("\n\n")
            assert above.splitlines()[1].split()[0].endswith("/mIoU")
            assert [line.split()[0] for line in below.splitlines()] == [
                "class",
                *runs["segmentation"].model().class_names,
            ]

    def test_eighty_classes_are_a_line_each_or_as_many_blocks_as_fit(self):
        table = {f"class {number}": {"AP": number / 80} for number in range(80)}
        assert len(class_lines(table)) == 81
        for width, high in ((60, 27), (80, 20), (200, 20)):
            lines = class_lines(table, width)
            assert len(lines) == 1 + high
            assert all(len(line) <= width for line in lines)
            text = "\n".join(lines[1:]).split()
            assert sorted(map(int, text[1::3])) == [*range(80)]
        assert len(class_lines({"x" * 99: {"AP": 0.5}}, 10)[1]) < 60


class TestPredictions:
    def test_of_objects_in_pixels_of_the_original(self, runs, photos):
        for task in ("detection", "instance"):
            found = runs[task].predict(photos)
            assert [one.id for one in found] == ["2.png", "a/1.png", "b/1.png"]
            assert any(one.labels for one in found), "nothing to test with"
            for one in found:
                assert isinstance(one, ObjectPrediction)
                assert one.size == SIZE
                assert list(one.scores) == sorted(one.scores, reverse=True)
                for x1, y1, x2, y2 in one.boxes:
                    assert 0 <= x1 <= x2 <= SIZE[1]
                    assert 0 <= y1 <= y2 <= SIZE[0]
                assert len(one.masks) == (len(one.boxes) if task == "instance" else 0)
                assert all(one.mask(index).shape == SIZE for index in range(len(one.masks)))

    def test_of_regions_in_pixels_of_the_original(self, runs, photos):
        for one in runs["segmentation"].predict(photos):
            assert isinstance(one, PixelPrediction)
            assert one.mask().shape == SIZE
            shares = torch.bincount(one.mask().flatten().long(), minlength=4) / one.mask().numel()
            assert list(one.scores.values()) == pytest.approx(shares.tolist())


class TestPredictVerb:
    def test_objects_as_coco_and_pictures(self, runs, photos, tmp_path, capsys):
        out, pictures = tmp_path / "found.json", tmp_path / "pictures"
        words = ["predict", str(runs["instance"].path), str(photos), "--out", str(out), "--draw", str(pictures)]
        assert main(words) == 0
        assert capsys.readouterr().out == f"predictions: {out} (3 images)\npictures: {pictures} (3 images)\n"
        read = COCO(str(out))
        assert [one["file_name"] for one in read.dataset["images"]] == [str(photos / name) for name in
                                                                        ("2.png", "a/1.png", "b/1.png")]  # fmt: skip
        assert {one["name"] for one in read.dataset["categories"]} == set(runs["instance"].model().class_names)
        found = runs["instance"].predict(photos)
        assert len(read.dataset["annotations"]) == sum(len(one.labels) for one in found)
        assert sorted(one.relative_to(pictures).as_posix() for one in pictures.rglob("*.*")) == [
            "2.png", "a/1.png", "b/1.png",
        ]  # fmt: skip
        for name, one in zip(("2.png", "a/1.png", "b/1.png"), found, strict=True):
            with Image.open(photos / name) as old, Image.open(pictures / name) as new:
                assert new.size == old.size
                assert np.array_equal(np.array(new), np.array(old)) == (not one.labels)
        assert main(words) == 2
        assert "must be a file that is not there yet" in capsys.readouterr().err

    def test_objects_as_a_table(self, runs, photos, tmp_path, capsys):
        assert main(["predict", str(runs["detection"].path), str(photos)]) == 0
        text = capsys.readouterr().out
        rows = list(csv.DictReader(io.StringIO(text)))
        assert list(rows[0]) == ["path", "label", "score", "x1", "y1", "x2", "y2"]
        assert main(["predict", str(runs["detection"].path), str(photos), "--out", str(tmp_path / "t.csv")]) == 0
        assert (tmp_path / "t.csv").read_text() == text

    def test_objects_from_another_score_on(self, runs, photos, capsys):
        run = runs["detection"]
        known = [score for one in run.predict(photos) for score in one.scores]
        middle = sorted(known)[len(known) // 2]
        fewer = [score for one in run.predict(photos, threshold=middle) for score in one.scores]
        assert fewer == [score for score in known if score >= middle]
        assert 0 < len(fewer) < len(known)
        high = max(known) - 1e-6
        assert main(["predict", str(run.path), str(photos), "--threshold", f"{high:.9f}"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2  # the titles, and one object
        assert main(["predict", str(run.path), str(photos), "--threshold", "1"]) == 2
        assert "must be a number in (0, 1)" in capsys.readouterr().err

    def test_regions_have_no_threshold(self, runs, photos, capsys):
        assert main(["predict", str(runs["segmentation"].path), str(photos), "--threshold", "0.5"]) == 2
        assert "The `threshold` of SemanticSegmentor must be left out. Got 0.5" in capsys.readouterr().err

    def test_regions_as_label_images_and_pictures(self, runs, photos, tmp_path, capsys):
        labels, pictures = tmp_path / "labels", tmp_path / "pictures"
        words = ["predict", str(runs["segmentation"].path), str(photos), "--out", str(labels), "--draw", str(pictures)]
        assert main(words) == 0
        names = ("2.png", "a/1.png", "b/1.png")
        for name, found in zip(names, runs["segmentation"].predict(photos), strict=True):
            with Image.open(labels / name) as image:
                assert image.mode == "P"
                assert np.array_equal(np.array(image), found.mask().numpy())
            assert (pictures / name).is_file()
        lines = (labels / "_classes.csv").read_text().splitlines()[1:]
        assert [line.split(", ")[1] for line in lines] == list(runs["segmentation"].model().class_names)

    def test_regions_as_a_table_of_shares(self, runs, photos, capsys):
        assert main(["predict", str(runs["segmentation"].path), str(photos)]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        names = runs["segmentation"].model().class_names
        assert [sum(float(row[name]) for name in names) for row in rows] == pytest.approx([1, 1, 1])

    @pytest.mark.parametrize(
        ("task", "words", "must"),
        [
            ("detection", ["--out", "labels"], "must be a file that ends in .json or .csv"),
            ("segmentation", ["--out", "found.json"], "must be a folder, or a file that ends in .csv"),
            ("segmentation", ["--out", "same", "--draw", "same"], "must be another folder than --out"),
            ("detection", ["--draw", "photos"], "must be a new or empty folder"),
            ("detection", ["--draw", "photos/2.png/x"], "must be a folder that can be made"),
        ],
    )
    def test_what_does_not_go_is_said_before_the_work(self, task, words, must, runs, photos, monkeypatch, capsys):
        monkeypatch.chdir(photos.parent)
        before = sorted(photos.parent.rglob("*"))
        assert main(["predict", str(runs[task].path), "photos", *words]) == 2
        assert must in capsys.readouterr().err
        assert sorted(photos.parent.rglob("*")) == before


def renamed_objects(source: Path, target: Path) -> None:
    """The same objects by other numbers: categories are listed the other way round, with one more in the file."""
    shutil.copytree(source, target)
    for file in (target / "annotations").iterdir():
        sheet = json.loads(file.read_text())
        number = {one["id"]: 100 - one["id"] for one in sheet["categories"]}
        sheet["categories"] = [{**one, "id": number[one["id"]]} for one in sheet["categories"]][::-1]
        for one in sheet["annotations"]:
            one["category_id"] = number[one["category_id"]]
        file.write_text(json.dumps(sheet))


def renumbered_regions(source: Path, target: Path) -> None:
    """The same regions by other numbers."""
    shutil.copytree(source, target)
    new = np.array([2, 0, 3, 1], np.uint8)
    names = [line.split(", ")[1] for line in (source / "test" / "_classes.csv").read_text().splitlines()[1:]]
    lines = ["Pixel Value, Class", *(f"{number}, {names[new.tolist().index(number)]}" for number in range(4))]
    for split in SPLITS:
        (target / split / "_classes.csv").write_text("\n".join(lines) + "\n")
        for file in (target / split).glob("*_mask.png"):
            Image.fromarray(new[np.array(Image.open(file))]).save(file)


class TestOtherData:
    @each_task
    def test_the_run_s_own_data_gives_the_same(self, task, runs, toys):
        assert runs[task].validate(toys[task]) == runs[task].validate()

    @each_task
    def test_classes_are_found_by_their_names(self, task, runs, toys, tmp_path):
        write = renumbered_regions if task == "segmentation" else renamed_objects
        write(toys[task], tmp_path / "other")
        expected = runs[task].validate(toys[task])
        rows = runs[task].per_class
        assert runs[task].validate(tmp_path / "other") == expected
        assert str(runs[task].per_class) == str(rows)

    def test_a_class_may_be_missing(self, runs, toys, tmp_path):
        shutil.copytree(toys["detection"], tmp_path / "fewer")
        file = tmp_path / "fewer" / "annotations" / "instances_val.json"
        sheet = json.loads(file.read_text())
        gone = sheet["categories"].pop(0)["id"]
        sheet["annotations"] = [one for one in sheet["annotations"] if one["category_id"] != gone]
        file.write_text(json.dumps(sheet))
        run = Run(runs["detection"].path)
        run.validate(tmp_path / "fewer")
        assert tuple(run.per_class) == run.model().class_names

    @each_task
    def test_a_class_that_the_model_does_not_know_is_refused(self, task, runs, tmp_path):
        write = write_toy_segmentation if task == "segmentation" else write_toy_objects
        write(tmp_path / "more", splits={"train": 6, "test": 6}, image_size=SIZE, num_classes=6)
        with pytest.raises(DataError, match="has classes that the model does not know"):
            runs[task].test(tmp_path / "more")

    @each_task
    def test_a_split_that_is_not_there_is_not_replaced(self, task, runs, toys, tmp_path):
        shutil.copytree(toys[task], tmp_path / "some")
        shutil.rmtree(tmp_path / "some" / "test")
        (tmp_path / "some" / "annotations" / "instances_test.json").unlink(missing_ok=True)
        with pytest.raises(DataError, match="There is no test data in"):
            runs[task].test(tmp_path / "some")
