"""Tables that a trained model is evaluated on: columns and image folder follow the training's."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autotimm.data.relabelled import read_labelled, read_relabelled
from autotimm.errors import DataError
from autotimm.types import DataSpec

SPEC = DataSpec(("blue_circle", "green_cross", "orange_square"))


def table_of(file: Path, toy: Path, header: str = "photo,kind") -> Path:
    names = [path.relative_to(toy).as_posix() for path in sorted(toy.rglob("*.png"))]
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{header}\n" + "".join(f"{name},{name.partition('/')[0]}\n" for name in names))
    return file


@pytest.mark.parametrize("label", ["kind", ["kind"], ("kind",)])
def test_columns_and_folder_of_the_run_are_used(toy: Path, tmp_path: Path, label: object) -> None:
    table = table_of(tmp_path / "tables" / "new.csv", toy)
    recorded = {"train_csv": "old.csv", "image_dir": str(toy), "image_column": "photo", "label_column": label}
    images = read_labelled(table, SPEC, "val", [], recorded)
    assert (len(images), images.class_names) == (24, SPEC.class_names)
    assert images.files()[0] == toy / "blue_circle" / "00000.png"


@pytest.mark.parametrize(
    "recorded",
    [
        lambda toy: {"path": str(toy), "train_csv": "old.csv"},
        lambda toy: {"path": str(toy / "old.csv")},
        lambda toy: {"train_csv": str(toy / "old.csv"), "path": None},
        lambda toy: {"data_dir": str(toy / "old.csv")},
    ],
)
def test_the_image_folder_follows_from_other_arguments(toy: Path, tmp_path: Path, recorded) -> None:
    table = table_of(tmp_path / "tables" / "new.csv", toy, "file,label")
    assert len(read_labelled(table, SPEC, "val", [], recorded(toy))) == 24


def test_images_beside_the_table_and_usual_column_names_are_used(toy: Path, tmp_path: Path) -> None:
    table = table_of(toy / "new.csv", toy, "image,class")
    recorded = {
        "train_csv": "old.csv",
        "image_dir": str(tmp_path / "gone"),
        "image_column": "photo",
        "label_column": "x",
    }
    assert len(read_labelled(table, SPEC, "test", [], recorded)) == 24


def test_missing_columns_and_files_are_named_with_a_cure(toy: Path, tmp_path: Path) -> None:
    table = table_of(toy / "new.csv", toy)
    with pytest.raises(DataError, match=r"has no column .image. of image paths, but photo, kind\. Rename"):
        read_labelled(table, SPEC, "test", [])
    with pytest.raises(DataError, match="has no column 'sort' of classes"):
        read_labelled(table, SPEC, "test", [], {"image_column": "photo", "label_column": "sort"})
    away = table_of(tmp_path / "tables" / "new.csv", toy, "image,class")
    with pytest.raises(DataError, match=r"none of its 24 files is in .*tables nor in .*gone.* Put the table where"):
        read_labelled(away, SPEC, "test", [], {"image_dir": str(tmp_path / "gone"), "train_csv": "x.csv"})


@pytest.mark.parametrize(
    ("highest", "said"),
    [(3, "1 wall, 2 sky, 3 sea"), (2, "0 wall, 1 sky, 2 sea")],
    ids=["all", "without the last"],
)
def test_values_of_label_images_are_said(tmp_path: Path, highest: int, said: str) -> None:
    for folder, pixels in (
        ("images", np.zeros((8, 9, 3), np.uint8)),
        ("masks", np.eye(8, 9, dtype=np.uint8) * highest),
    ):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "1.png")
    (tmp_path / "classes.txt").write_text("wall\nsky\nsea\n")
    notices: list[str] = []
    read_relabelled(tmp_path, DataSpec(("wall", "sky", "sea"), kind="pixels"), "test", notices)
    assert notices[-1] == f"Pixel values are read as: {said}."
