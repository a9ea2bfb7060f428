"""What was predicted as files: names, tables, COCO, label images, and that nothing is written over."""

import csv
import io
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from autotimm.data.formats.class_tables import class_table
from autotimm.data.formats.recognize import read_spatial
from autotimm.errors import UsageError
from autotimm.records.csv_cells import true_cell
from autotimm.runs.output_paths import require_new_file, require_new_folder
from autotimm.runs.prediction_files import (
    as_csv,
    as_rows,
    coco_results,
    file_names,
    write_json,
    write_labels,
    write_pictures,
    write_table,
)
from autotimm.types import Neighbour, ObjectPrediction, PixelPrediction, Prediction

NAMES = ("cat", "dog", "ship")


def objects(id: str = "a/1.png", masks: bool = True) -> ObjectPrediction:
    """Two objects in an image of 20 x 30 pixels; the mask of the first lacks a pixel of its box."""
    drawn = np.zeros((2, 20, 30), np.uint8)
    drawn[0, 2:8, 3:13] = 1
    drawn[0, 2, 3] = 0
    drawn[1, 10:20, 20:30] = 1
    outlines = tuple(coco_mask.encode(np.asfortranarray(one))["counts"].decode() for one in drawn)
    boxes = ((3.0, 2.0, 13.0, 8.0), (20.0, 10.0, 30.0, 20.0))
    return ObjectPrediction(id, ("ship", "cat"), (0.75, 0.5), boxes, (20, 30), outlines if masks else ())


def pixels(id: str = "a/1.png") -> PixelPrediction:
    classes = np.zeros((4, 6), np.uint8)
    classes[1:, 2:] = 2
    file = BytesIO()
    Image.fromarray(classes).save(file, "png")
    return PixelPrediction(id, ("ship", "cat"), {"cat": 0.5, "dog": 0.0, "ship": 0.5}, file.getvalue())


class TestNames:
    def test_folders_stay_apart(self):
        assert file_names(["a/1.jpg", "b/1.jpg", "1.JPG"]) == ["a/1.png", "b/1.png", "1.png"]

    def test_endings_stay_where_only_they_differ(self):
        assert file_names(["1.jpg", "1.png", "2.png"]) == ["1.jpg.png", "1.png.png", "2.png"]
        # The stem of the last one is the whole name of the first.
        assert len(set(file_names(["1.jpg", "1.png", "1.jpg.png"]))) == 3

    def test_a_system_may_not_tell_capitals_from_small_letters(self):
        names = file_names(["A.png", "a.png", "a.PNG"])
        assert len({name.casefold() for name in names}) == 3

    @pytest.mark.parametrize(
        ("ids", "names"),
        [
            (["/data/x/1.jpg", "/data/y/1.jpg"], ["x/1.png", "y/1.png"]),
            (["/data/x/1.jpg"], ["1.png"]),
            (["../x/1.jpg", "../y/2.jpg"], ["x/1.png", "y/2.png"]),
            (["./a/1.jpg", "b/../1.jpg"], ["a/1.png", "1.png"]),
            (["photo.v2.jpg"], ["photo.v2.png"]),
        ],
    )
    def test_no_name_leads_out_of_the_folder(self, ids, names):
        assert file_names(ids) == names


class TestTables:
    def test_of_classes(self):
        found = [
            Prediction("a,b.png", ("cat", "dog"), {"cat": 0.75, "dog": 0.5}),
            Prediction("c.png", (), {"cat": 0.25, "dog": 0.0}),
        ]
        assert as_csv(found) == 'path,label,score,cat,dog\n"a,b.png",cat|dog,0.75,0.75,0.5\nc.png,,0.25,0.25,0\n'
        assert as_rows(found) == (
            ("path", "label", "score"),
            [("a,b.png", "cat, dog", "0.750"), ("c.png", "-", "0.250")],
        )

    def test_of_objects_a_line_each(self):
        none = ObjectPrediction("none.png", (), (), (), (20, 30))
        assert as_csv([none, objects()]) == (
            "path,label,score,x1,y1,x2,y2\na/1.png,ship,0.75,3,2,13,8\na/1.png,cat,0.5,20,10,30,20\n"
        )
        titles, rows = as_rows([none, objects()])
        assert titles == ("path", "label", "score", "x1", "y1", "x2", "y2")
        assert rows == [("none.png", *"------"), ("a/1.png", "ship", "0.750", "3", "2", "13", "8"),
                        ("a/1.png", "cat", "0.500", "20", "10", "30", "20")]  # fmt: skip

    def test_what_was_asked_for_of_an_image_without_objects_has_a_row(self):
        near = {"neighbours": (Neighbour("t.png", ("cat", "dog"), 0.5),), "novelty": 0.25}
        none = ObjectPrediction("none.png", (), (), (), (20, 30), **near)
        assert as_csv([none, objects()._replace(**near)]).splitlines() == [
            "path,label,score,novelty,neighbours,neighbour_labels,similarities,x1,y1,x2,y2",
            "none.png,,,0.25,t.png,cat&dog,0.5,,,,",
            "a/1.png,ship,0.75,0.25,t.png,cat&dog,0.5,3,2,13,8",
            "a/1.png,cat,0.5,0.25,t.png,cat&dog,0.5,20,10,30,20",
        ]

    def test_of_regions_the_shares(self):
        assert as_csv([pixels()]) == "path,label,score,cat,dog,ship\na/1.png,ship|cat,0.5,0.5,0,0.5\n"
        assert as_rows([pixels()]) == (("path", "labels"), [("a/1.png", "ship 50.0%, cat 50.0%")])


class TestCoco:
    def test_it_is_a_file_that_pycocotools_reads(self, tmp_path: Path):
        none = ObjectPrediction("b/1.png", (), (), (), (8, 9))
        write_json(tmp_path / "found.json", coco_results([objects("é/1.png"), none], NAMES))
        read = COCO(str(tmp_path / "found.json"))
        assert [(one["file_name"], one["height"], one["width"]) for one in read.dataset["images"]] == [
            ("é/1.png", 20, 30), ("b/1.png", 8, 9),
        ]  # fmt: skip
        assert [one["name"] for one in read.loadCats(read.getCatIds())] == list(NAMES)
        first, second = read.loadAnns(read.getAnnIds(imgIds=[1]))
        assert (first["bbox"], first["score"], first["category_id"]) == ([3, 2, 10, 6], 0.75, 3)
        assert (first["area"], second["area"]) == (59, 100)
        assert read.annToMask(first).sum() == 59
        assert np.array_equal(read.annToMask(first), objects().mask(0).numpy())
        assert read.getAnnIds(imgIds=[2]) == []
        # The same list is what COCO calls results.
        assert len(read.loadRes(read.dataset["annotations"]).getAnnIds()) == 2

    def test_boxes_alone_have_no_segmentation(self):
        (first, _) = coco_results([objects(masks=False)], NAMES)["annotations"]
        assert "segmentation" not in first
        assert first["area"] == 60

    def test_our_own_reader_takes_it_as_data(self, tmp_path: Path):
        (tmp_path / "a").mkdir()
        Image.new("RGB", (30, 20)).save(tmp_path / "a" / "1.png")
        write_json(tmp_path / "found.json", coco_results([objects()], NAMES))
        sample = read_spatial(tmp_path, "coco", "instances", [])["train"].load(0)
        assert sample.target["boxes"].tolist() == [list(box) for box in objects().boxes]
        assert torch.equal(sample.target["masks"][0].bool(), objects().mask(0))


class TestLabels:
    def test_indices_with_a_palette_and_the_names(self, tmp_path: Path):
        write_labels(tmp_path / "out", [pixels("a/1.jpg"), pixels("b/1.jpg")], ("background", "dog", "ship"))
        assert sorted(one.relative_to(tmp_path / "out").as_posix() for one in tmp_path.rglob("out/**/*.*")) == [
            "_classes.csv", "a/1.png", "b/1.png",
        ]  # fmt: skip
        with Image.open(tmp_path / "out" / "a" / "1.png") as image:
            assert image.mode == "P"
            assert np.array_equal(np.array(image), pixels().mask().numpy())
            assert image.convert("RGB").getpixel((0, 0)) == (0, 0, 0)  # the background
            assert max(image.convert("RGB").getpixel((5, 3))) > 100
        assert (tmp_path / "out" / "_classes.csv").read_text().splitlines()[1:] == [
            "0, background",
            "1, dog",
            "2, ship",
        ]

    def test_our_own_reader_takes_them_as_masks(self, tmp_path: Path):
        write_labels(tmp_path / "masks", [pixels("1.jpg")], NAMES)
        (tmp_path / "images").mkdir()
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / "1.jpg")
        (tmp_path / "masks" / "_classes.csv").rename(tmp_path / "_classes.csv")
        table = read_spatial(tmp_path, "masks", "pixels", [])["train"]
        assert table.class_names == NAMES
        assert torch.equal(table.load(0).target.as_subclass(torch.Tensor), pixels().mask())


class TestPlaces:
    def test_nothing_is_written_over(self, tmp_path: Path):
        (tmp_path / "old.csv").write_text("old")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "photo.png").write_text("mine")
        with pytest.raises(UsageError, match="must be a file that is not there yet"):
            write_table(tmp_path / "old.csv", "new")
        for write in (
            lambda: write_labels(tmp_path / "full", [pixels("photo.png")], NAMES),
            lambda: write_pictures(tmp_path / "full", [objects("photo.png")], NAMES, {}),
            lambda: write_labels(tmp_path / "old.csv", [pixels()], NAMES),
        ):
            with pytest.raises(UsageError, match="must be a new or empty folder"):
                write()
        assert (tmp_path / "old.csv").read_text() == "old"
        assert [one.name for one in (tmp_path / "full").iterdir()] == ["photo.png"]

    @pytest.mark.parametrize("path", [".", "nowhere/found.json", "empty"])
    def test_a_file_needs_a_folder_and_a_name(self, path: str, tmp_path: Path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match="must be a file that can be written"):
            require_new_file(path, "--out", "autotimm predict")

    def test_a_folder_is_made_with_those_above_it(self, tmp_path: Path):
        require_new_folder(str(tmp_path / "a" / "b"), "--draw", "autotimm predict")
        write_labels(tmp_path / "a" / "b", [pixels("1.png")], NAMES)
        assert (tmp_path / "a" / "b" / "1.png").is_file()
        with pytest.raises(UsageError, match="must be a folder that can be made"):
            require_new_folder(str(tmp_path / "a" / "b" / "1.png" / "c"), "--draw", "autotimm predict")


def test_json_is_one_that_others_read(tmp_path: Path):
    write_json(tmp_path / "x.json", {"name": "é", "values": [0.5]})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"name": "é", "values": [0.5]}


class TestFormulas:
    """Names that a spreadsheet would take for formulas."""

    HOSTILE = ("=cmd|' /C calc'!A0", "+1, or more", "-", "@SUM(A1)", "'=quoted", "plain")

    def test_no_cell_of_a_table_is_one(self):
        scores = {name: 1 / len(self.HOSTILE) for name in self.HOSTILE}
        table = as_csv([Prediction("=1.png", ("-",), scores), Prediction("a\rb.png", ("plain",), scores)])
        rows = [*csv.reader(io.StringIO(table, newline=""))]
        assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
        assert [true_cell(cell) for cell in rows[0][3:]] == [*self.HOSTILE]
        assert [true_cell(row[0]) for row in rows[1:]] == ["=1.png", "a\rb.png"]
        assert true_cell(rows[1][1]) == "-"

    def test_our_own_reader_takes_the_true_names(self, tmp_path: Path):
        write_labels(tmp_path / "labels", [pixels("a.png")], self.HOSTILE)
        text = (tmp_path / "labels" / "_classes.csv").read_text()
        assert text.splitlines()[1] == "0, '=cmd|' /C calc'!A0"
        assert class_table(tmp_path / "labels" / "_classes.csv").names == self.HOSTILE
