"""Tables of labels as people have them: splits in a column, several labels in a cell, missing ones, ids and paths."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotimm.data import ImageDataModule
from autotimm.data.formats.class_csv import read_csv
from autotimm.data.formats.csv_table import open_table
from autotimm.data.relabelled import read_labelled
from autotimm.data.table import ImageTable
from autotimm.errors import DataError, UsageError
from autotimm.types import DataSpec

Write = Callable[..., Path]
IMAGES = ("cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a table beside four files, which are only listed here."""
    for name in IMAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def table(*lines: str, name: str = "labels.csv") -> Path:
        (tmp_path / name).write_bytes("\n".join([*lines, ""]).encode())
        return tmp_path / name

    return table


def read(path: Path, notices: list[str] | None = None, **options: Any) -> ImageTable:
    return read_csv({"train": path}, [] if notices is None else notices, **options)["train"]


def labels(table: ImageTable) -> list[tuple[str, ...]]:
    return [table.labels(index) for index in range(len(table))]


# Splits


@pytest.mark.parametrize("column", ["split", "Set", "subset", "fold"])
def test_a_column_of_splits_is_used_and_said(write: Write, column: str) -> None:
    splits = ("train", "Validation", "training", "TEST")
    path = write(
        f"image,label,{column}", *(f"{name},{name[:3]},{split}" for name, split in zip(IMAGES, splits, strict=True))
    )
    notices: list[str] = []
    tables = read_csv({"train": path}, notices)
    assert {split: table.ids for split, table in tables.items()} == {
        "train": ("cat/1.jpg", "dog/3.jpg"),
        "val": ("cat/2.jpg",),
        "test": ("dog/4.jpg",),
    }
    assert notices == [f"labels.csv: rows are split by column '{column}': 2 train, 1 val, 1 test."]
    spec = DataSpec(("cat", "dog"))
    assert read_labelled(path, spec, "test", []).ids == ("dog/4.jpg",)
    assert read_labelled(path, spec, "val", []).ids == ("cat/2.jpg",)


def test_a_table_of_one_split_alone(write: Write) -> None:
    path = write("image,label,split", *(f"{name},{name[:3]},test" for name in IMAGES))
    assert len(read_labelled(path, DataSpec(("cat", "dog")), "test", [])) == 4
    with pytest.raises(DataError, match=r"no row is of the split val; column 'split' has test"):
        read_labelled(path, DataSpec(("cat", "dog")), "val", [])
    with pytest.raises(DataError, match="no row is of the split train"):
        read(path)


def test_numbered_folds_are_not_used_and_mixed_ones_refused(write: Write) -> None:
    path = write("image,label,fold", *(f"{name},{name[:3]},{index}" for index, name in enumerate(IMAGES)))
    notices: list[str] = []
    assert len(read(path, notices)) == 4
    assert notices == ["labels.csv: column 'fold' names no splits but '0', '1', '2', '3', and is not used."]
    path = write(
        "image,label,set", *(f"{name},{name[:3]},{'train' if index else 'extra'}" for index, name in enumerate(IMAGES))
    )
    with pytest.raises(DataError, match=r"column 'set' has 'extra' besides names of splits\. Write train, val or test"):
        read(path)
    assert read(path, label_column="set").class_names == ("extra", "train")


# Several labels in a cell


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (("rain|night", "night", "fog|rain", "fog"), "|"),
        (("rain;night", "night", "fog;rain", "fog"), ";"),
        (('"rain,night"', "night", '"fog, rain"', "fog"), ","),
        (("rain night", "night", "fog rain", "fog"), " "),
    ],
)
def test_combinations_are_refused_and_read_with_the_separator(
    write: Write, cells: tuple[str, ...], separator: str
) -> None:
    path = write("image,label", *(f"{name},{cell}" for name, cell in zip(IMAGES, cells, strict=True)))
    with pytest.raises(DataError, match=r"each of 4 combinations would be a class: .*Give label_separator='"):
        read(path)
    table = read(path, label_separator=separator)
    assert (table.multi_label, table.class_names) == (True, ("fog", "night", "rain"))
    assert labels(table) == [("night", "rain"), ("night",), ("fog", "rain"), ("fog",)]
    held_out = read_labelled(
        path, DataSpec(("fog", "night", "rain"), multi_label=True), "test", [], {"label_separator": separator}
    )
    assert labels(held_out) == labels(table)


@pytest.mark.parametrize(
    "cells",
    [
        ("blue circle", "red circle", "red square", "blue square"),
        ("Sparrow\\, House", "Sparrow\\, Song", "Wren", "Robin"),
        ("New York", "York Minster", "York", "Bath"),
        ("a|b", "c|d", "a|b", "c|d"),
    ],
)
def test_names_of_several_words_are_classes(write: Write, cells: tuple[str, ...]) -> None:
    names = [cell.replace("\\", "") for cell in cells]
    path = write("image,label", *(f'{name},"{cell}"' for name, cell in zip(IMAGES, names, strict=True)))
    assert set(read(path).class_names) == set(names)


def test_the_separator_is_of_a_single_column(write: Write) -> None:
    path = write("image,a,b", *(f"{name},0,1" for name in IMAGES))
    with pytest.raises(UsageError, match="left out with several label columns"):
        read(path, label_column=["a", "b"], label_separator="|")
    with pytest.raises(UsageError, match=r"`label_separator` of ImageDataModule must be a text"):
        ImageDataModule(train_csv=path, label_separator="")
    with pytest.raises(UsageError, match="`train_csv`"):
        ImageDataModule(path.parent, label_separator="|")


def test_true_and_false_are_bits(write: Write) -> None:
    path = write(
        "image,a,b",
        *(f"{name},{bits}" for name, bits in zip(IMAGES, ("True,False", "FALSE,true", "1,0", "0.0,1.0"), strict=True)),
    )
    assert labels(read(path, label_column=["a", "b"])) == [("a",), ("b",), ("a",), ("b",)]
    with pytest.raises(DataError, match=r"For several labels per image: label_column=\['a', 'b'\]"):
        read(path)


# Missing labels


@pytest.mark.parametrize("cell", ["NaN", "nan", "None", "", "  ", "N/A", "null"])
def test_missing_labels_are_named_and_left_out(write: Write, cell: str) -> None:
    path = write("image,label", *(f"{name},{name[:3]}" for name in IMAGES), f"cat/5.jpg,{cell}")
    notices: list[str] = []
    table = read(path, notices)
    assert (table.ids, table.class_names) == (IMAGES, ("cat", "dog"))
    assert notices == ["1 rows without a label in column label, left out: labels.csv, line 6."]
    with pytest.raises(DataError, match="1 rows without a label"):
        read(path, strict=True)


def test_a_class_called_none_is_a_class(write: Write) -> None:
    path = write(
        "image,label", *(f"{name},{label}" for name, label in zip(IMAGES, ("none", "NA", "none", "NA"), strict=True))
    )
    assert read(path).class_names == ("NA", "none")


def test_a_table_without_any_label(write: Write) -> None:
    with pytest.raises(DataError, match="no row has a label in column label"):
        read(write("image,label", *(f"{name},NaN" for name in IMAGES)))


def test_labels_in_two_encodings_are_one_class(write: Write) -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    path = write(
        "image,label", *(f"{name},{label}" for name, label in zip(IMAGES, [*forms, "bar", "bar"], strict=True))
    )
    assert read(path).class_names == ("bar", forms[0])


# Images


@pytest.mark.parametrize(
    "cells",
    [
        ("1", "2", "3", "4"),
        ("cat/1", "cat/2", "dog/3", "dog/4"),
        (r"cat\1.jpg", r"cat\2.jpg", r"dog\3.jpg", r"dog\4.jpg"),
        (r"C:\data\cat\1.jpg", r"C:\data\cat\2.jpg", r"C:\data\dog\3.jpg", r"C:\data\dog\4.jpg"),
        ("/home/ann/set/cat/1.jpg", "/home/ann/set/cat/2.jpg", "/home/ann/set/dog/3.jpg", "/home/ann/set/dog/4.jpg"),
        ("../elsewhere/1.jpg", "../elsewhere/2.jpg", "../elsewhere/3.jpg", "../elsewhere/4.jpg"),
        ("1.JPG", "2.JPG", "3.JPG", "4.JPG"),
    ],
)
def test_images_are_found_by_name(write: Write, cells: tuple[str, ...]) -> None:
    path = write("image,label", *(f"{cell},{name[:3]}" for cell, name in zip(cells, IMAGES, strict=True)))
    notices: list[str] = []
    assert read(path, notices).ids == IMAGES
    assert "labels.csv: 4 files are not where it says, and found by their names: " in notices[-1]
    assert len(read_labelled(path, DataSpec(("cat", "dog")), "test", [])) == 4


def test_images_of_one_name_are_told_apart_by_their_folders(write: Write, tmp_path: Path) -> None:
    (tmp_path / "dog" / "1.jpg").write_bytes(b"")
    path = write("image,label", r"D:\x\cat\1.jpg,cat", r"D:\x\dog\1.jpg,dog")
    assert read(path).ids == ("cat/1.jpg", "dog/1.jpg")


def test_ambiguous_ids_are_left_out_with_the_reason(write: Write, tmp_path: Path) -> None:
    (tmp_path / "cat" / "1.png").write_bytes(b"")
    (tmp_path / "dog" / "2.jpg").write_bytes(b"")
    path = write("image,label", "1,cat", "2,cat", "3,dog", "4,dog")
    notices: list[str] = []
    assert read(path, notices).ids == ("dog/3.jpg", "dog/4.jpg")
    assert notices[0] == "1 ids that several images have, ambiguous and left out: 1."
    assert notices[1] == "1 file names that several images have, ambiguous and left out: 2.jpg (cat/2.jpg, dog/2.jpg)."


def test_no_image_is_found(write: Write) -> None:
    path = write("image,label", "/home/ann/a.jpg,cat", "/home/ann/b.jpg,dog")
    with pytest.raises(
        DataError, match=r"none of its 2 files is in .*, for example /home/ann/a\.jpg\. Give `image_dir`"
    ):
        read(path)


# The file itself


def test_blank_columns_lines_and_separators_of_lines(write: Write) -> None:
    path = write("", "  ", "image,label,,", "cat/1.jpg,a\u2028b,,", "dog/3.jpg,c\u0085d,,", "dog/4.jpg,c\u0085d,,,")
    table = open_table(path)
    assert table.columns == ["image", "label"]
    assert [(row.line, row.cells["label"]) for row in table.rows] == [(4, "a\u2028b"), (5, "c\x85d"), (6, "c\x85d")]
    with pytest.raises(DataError, match="lines that do not have 2 cells like the header: 3, 4"):
        open_table(write("image,label", "cat/1.jpg,cat", "cat/2.jpg", "dog/3.jpg,dog,x"))
