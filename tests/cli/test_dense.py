"""The verbs on detection, instance and semantic segmentation: a small run of each, its metrics, files and pictures."""

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

import autotimm
from autotimm import Run
from autotimm.cli.main import main
from autotimm.cli.run_args import class_lines
from autotimm.data.toy import write_toy_objects, write_toy_segmentation
from autotimm.errors import DataError
from autotimm.types import ObjectPrediction, PixelPrediction
from training import SMALL as SMALL_FIT

SIZE = (48, 72)
SPLITS = {"train": 8, "val": 4, "test": 4}
SMALL = {**SMALL_FIT, "image_size": 64, "width": 64, "batch_size": 4, "lr": 1e-2}
del SMALL["val_split"]  # the scenes have a validation split
# One epoch teaches little, so thresholds are low, and the Mask R-CNN learns slowly: it would call all of it background.
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
        task: autotimm.fit(toys[task], task=task, name=task, out=str(out), **(SMALL | options))
        for task, options in TASKS.items()
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
    def test_values_are_saved_with_the_run(self, task, runs, tmp_path):
        shutil.copytree(runs[task].path, tmp_path / "copy")
        run = Run(tmp_path / "copy")
        assert run.per_class == {}
        metrics = run.test()
        assert all(type(value) is float for value in metrics.values())
        names = run.model().class_names
        assert tuple(run.per_class) == names
        titles = {"detection": ["AP"], "instance": ["mask_mAP AP", "mAP AP"], "segmentation": ["IoU"]}[task]
        assert all(list(row) == titles for row in run.per_class.values())
        again = Run(tmp_path / "copy").per_class
        assert list(again) == list(names)
        assert str(again) == str(run.per_class)  # as text, since NaN is not equal to NaN
        assert "NaN" not in (tmp_path / "copy" / "results.json").read_text()
        mean = metrics["test/mIoU" if task == "segmentation" else "test/mAP"]
        known = [value for row in again.values() if not math.isnan(value := [*row.values()][-1])]
        assert sum(known) / len(known) == pytest.approx(mean, abs=1e-6)

    def test_values_are_printed_below_the_metrics(self, runs, capsys):
        for verb in ("test", "validate"):
            assert main([verb, str(runs["segmentation"].path)]) == 0
            above, below = capsys.readouterr().out.split("\n\n")
            assert above.splitlines()[1].split()[0].endswith("/mIoU")
            assert [line.split()[0] for line in below.splitlines()] == [
                "class",
                *runs["segmentation"].model().class_names,
            ]

    def test_eighty_classes_take_a_line_each_or_as_many_blocks_as_fit(self):
        table = {f"class {number}": {"AP": number / 80} for number in range(80)}
        assert len(class_lines(table)) == 81
        for width, height in ((60, 27), (80, 20), (200, 20)):
            lines = class_lines(table, width)
            assert len(lines) == 1 + height
            assert all(len(line) <= width for line in lines)
            text = "\n".join(lines[1:]).split()
            assert sorted(map(int, text[1::3])) == [*range(80)]
        assert len(class_lines({"x" * 99: {"AP": 0.5}}, 10)[1]) < 60


class TestPredictions:
    def test_objects_are_in_pixels_of_the_original(self, runs, photos):
        for task in ("detection", "instance"):
            predictions = runs[task].predict(photos)
            assert [prediction.id for prediction in predictions] == ["2.png", "a/1.png", "b/1.png"]
            assert any(prediction.labels for prediction in predictions), "nothing to test with"
            for prediction in predictions:
                assert isinstance(prediction, ObjectPrediction)
                assert prediction.size == SIZE
                assert list(prediction.scores) == sorted(prediction.scores, reverse=True)
                for x1, y1, x2, y2 in prediction.boxes:
                    assert 0 <= x1 <= x2 <= SIZE[1]
                    assert 0 <= y1 <= y2 <= SIZE[0]
                assert len(prediction.masks) == (len(prediction.boxes) if task == "instance" else 0)
                assert all(prediction.mask(index).shape == SIZE for index in range(len(prediction.masks)))

    def test_masks_are_in_pixels_of_the_original(self, runs, photos):
        for prediction in runs["segmentation"].predict(photos):
            assert isinstance(prediction, PixelPrediction)
            assert prediction.mask().shape == SIZE
            shares = torch.bincount(prediction.mask().flatten().long(), minlength=4) / prediction.mask().numel()
            assert list(prediction.scores.values()) == pytest.approx(shares.tolist())


class TestPredictVerb:
    def test_objects_as_coco_and_pictures(self, runs, photos, tmp_path, capsys):
        out, pictures = tmp_path / "found.json", tmp_path / "pictures"
        words = ["predict", str(runs["instance"].path), str(photos), "--out", str(out), "--draw", str(pictures)]
        assert main(words) == 0
        assert capsys.readouterr().out == f"predictions: {out} (3 images)\npictures: {pictures} (3 images)\n"
        names = ["2.png", "a/1.png", "b/1.png"]
        coco = COCO(str(out)).dataset
        assert [image["file_name"] for image in coco["images"]] == [str(photos / name) for name in names]
        assert {category["name"] for category in coco["categories"]} == set(runs["instance"].model().class_names)
        predictions = runs["instance"].predict(photos)
        assert len(coco["annotations"]) == sum(len(prediction.labels) for prediction in predictions)
        assert sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*")) == names
        for name, prediction in zip(names, predictions, strict=True):
            with Image.open(photos / name) as old, Image.open(pictures / name) as new:
                assert new.size == old.size
                assert np.array_equal(np.array(new), np.array(old)) == (not prediction.labels)
        assert main(words) == 2
        assert "must be a file that is not there yet" in capsys.readouterr().err

    def test_objects_as_a_table(self, runs, photos, tmp_path, capsys):
        assert main(["predict", str(runs["detection"].path), str(photos)]) == 0
        text = capsys.readouterr().out
        rows = list(csv.DictReader(io.StringIO(text)))
        assert list(rows[0]) == ["path", "label", "score", "x1", "y1", "x2", "y2"]
        assert main(["predict", str(runs["detection"].path), str(photos), "--out", str(tmp_path / "t.csv")]) == 0
        assert (tmp_path / "t.csv").read_text() == text

    def test_objects_with_another_threshold(self, runs, photos, capsys):
        run = runs["detection"]
        known = [score for prediction in run.predict(photos) for score in prediction.scores]
        middle = sorted(known)[len(known) // 2]
        fewer = [score for prediction in run.predict(photos, threshold=middle) for score in prediction.scores]
        assert fewer == [score for score in known if score >= middle]
        assert 0 < len(fewer) < len(known)
        high = max(known) - 1e-6
        assert main(["predict", str(run.path), str(photos), "--threshold", f"{high:.9f}"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2  # the header and one object
        assert main(["predict", str(run.path), str(photos), "--threshold", "1"]) == 2
        assert "must be a number in (0, 1)" in capsys.readouterr().err

    def test_images_beyond_the_limit_of_pillow(self, runs, photos, capsys, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        words = ["predict", str(runs["detection"].path), str(photos / "2.png")]
        assert main(words) == 3
        assert "it has 3,456 pixels, and Pillow's decompression bomb limit" in capsys.readouterr().err
        assert main([*words, "--max-pixels", "3456"]) == 0

    def test_segmentation_has_no_threshold(self, runs, photos, capsys):
        assert main(["predict", str(runs["segmentation"].path), str(photos), "--threshold", "0.5"]) == 2
        assert "The `threshold` of SemanticSegmentor must be left out. Got 0.5" in capsys.readouterr().err

    def test_segmentation_as_label_images_and_pictures(self, runs, photos, tmp_path, capsys):
        labels, pictures = tmp_path / "labels", tmp_path / "pictures"
        words = ["predict", str(runs["segmentation"].path), str(photos), "--out", str(labels), "--draw", str(pictures)]
        assert main(words) == 0
        names = ("2.png", "a/1.png", "b/1.png")
        for name, prediction in zip(names, runs["segmentation"].predict(photos), strict=True):
            with Image.open(labels / name) as image:
                assert image.mode == "P"
                assert np.array_equal(np.array(image), prediction.mask().numpy())
            assert (pictures / name).is_file()
        lines = (labels / "_classes.csv").read_text().splitlines()[1:]
        assert [line.split(", ")[1] for line in lines] == list(runs["segmentation"].model().class_names)

    def test_segmentation_as_a_table_of_class_shares(self, runs, photos, capsys):
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
    def test_impossible_outputs_are_refused_first(self, task, words, must, runs, photos, monkeypatch, capsys):
        monkeypatch.chdir(photos.parent)
        before = sorted(photos.parent.rglob("*"))
        assert main(["predict", str(runs[task].path), "photos", *words]) == 2
        assert must in capsys.readouterr().err
        assert sorted(photos.parent.rglob("*")) == before


def renumbered_objects(source: Path, target: Path) -> None:
    """Copy a data set with other category ids, in reverse order."""
    shutil.copytree(source, target)
    for file in (target / "annotations").iterdir():
        coco = json.loads(file.read_text())
        new_ids = {category["id"]: 100 - category["id"] for category in coco["categories"]}
        coco["categories"] = [{**category, "id": new_ids[category["id"]]} for category in coco["categories"]][::-1]
        for annotation in coco["annotations"]:
            annotation["category_id"] = new_ids[annotation["category_id"]]
        file.write_text(json.dumps(coco))


def renumbered_regions(source: Path, target: Path) -> None:
    """Copy a data set with other class indices."""
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
    def test_path_of_the_own_data_gives_equal_metrics(self, task, runs, toys):
        assert runs[task].validate(toys[task]) == runs[task].validate()

    @each_task
    def test_classes_are_matched_by_name(self, task, runs, toys, tmp_path):
        write = renumbered_regions if task == "segmentation" else renumbered_objects
        write(toys[task], tmp_path / "other")
        expected = runs[task].validate(toys[task])
        rows = runs[task].per_class
        assert runs[task].validate(tmp_path / "other") == expected
        assert str(runs[task].per_class) == str(rows)

    def test_a_class_may_be_missing(self, runs, toys, tmp_path):
        shutil.copytree(toys["detection"], tmp_path / "fewer")
        file = tmp_path / "fewer" / "annotations" / "instances_val.json"
        coco = json.loads(file.read_text())
        removed = coco["categories"].pop(0)["id"]
        coco["annotations"] = [annotation for annotation in coco["annotations"] if annotation["category_id"] != removed]
        file.write_text(json.dumps(coco))
        run = Run(runs["detection"].path)
        run.validate(tmp_path / "fewer")
        assert tuple(run.per_class) == run.model().class_names

    @each_task
    def test_unknown_class_is_refused(self, task, runs, tmp_path):
        write = write_toy_segmentation if task == "segmentation" else write_toy_objects
        write(tmp_path / "more", splits={"train": 6, "test": 6}, image_size=SIZE, num_classes=6)
        with pytest.raises(DataError, match="has classes that the model does not know"):
            runs[task].test(tmp_path / "more")

    @each_task
    def test_missing_split_is_not_replaced_by_another(self, task, runs, toys, tmp_path):
        shutil.copytree(toys[task], tmp_path / "some")
        shutil.rmtree(tmp_path / "some" / "test")
        (tmp_path / "some" / "annotations" / "instances_test.json").unlink(missing_ok=True)
        with pytest.raises(DataError, match="There is no test data in"):
            runs[task].test(tmp_path / "some")
