"""Records that somebody else has written: another encoding, other columns, values of other types."""

import json
from pathlib import Path

import pytest

from autotimm.errors import ModelError
from autotimm.records.csv_cells import csv_text
from autotimm.records.readers import EachOf, Fields, Misfit, misfit, read_json, read_table, read_text, require_shape

NONE = type(None)


@pytest.mark.parametrize(
    ("value", "shape", "wrong"),
    [
        (1, float, None),
        (True, float, Misfit("", "a number", True)),
        (True, int, Misfit("", "a whole number", True)),
        (True, bool, None),
        (None, (float, NONE), None),
        ("1", (float, NONE), Misfit("", "a number or null", "1")),
        ({"a": 1, "more": "x"}, {"a": int}, None),
        ({"a": [1, "x"]}, {"a": [int]}, Misfit("a.1", "a whole number", "x")),
        ({}, Fields({"a": int}, ("a",)), Misfit("a", "given", None)),
        ([], {"a": int}, Misfit("", "an object", [])),
        ({"x": {"y": []}}, EachOf(EachOf(str)), Misfit("x.y", "text", [])),
        (
            {"recipe": {"lr": "fast"}},
            {"recipe": (Fields({"lr": float}), NONE)},
            Misfit("recipe.lr", "a number", "fast"),
        ),
    ],
)
def test_the_first_value_of_another_type_is_named(value, shape, wrong):
    assert misfit(value, shape) == wrong


def test_the_error_names_the_place_and_the_file():
    message = r"The `best\.loss` of the results r\.json must be a number\. Got 'low' instead\. Use an intact copy"
    with pytest.raises(ModelError, match=message):
        require_shape({"best": {"loss": "low"}}, EachOf(EachOf(float)), "the results r.json")
    with pytest.raises(ModelError, match=r"The results r\.json must be an object\. It is something else"):
        require_shape([], EachOf(float), "the results r.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{}", "must be JSON. It is damaged"),
        (b"{", "must be JSON. It is damaged .line 1: "),
        (b"[" * 100_000 + b"]" * 100_000, "must be JSON. It is damaged .it is nested more than 100 levels deep"),
        (None, "must be readable. It is not .No such file"),
    ],
)
def test_json_that_is_none(tmp_path: Path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"^The results .*results\.json {message}"):
        read_json(tmp_path / "results.json", "the results")


def test_a_folder_in_place_of_a_file(tmp_path: Path):
    with pytest.raises(ModelError, match=r"must be readable\. It is not .Is a directory"):
        read_text(tmp_path, "the results")


@pytest.mark.parametrize(
    ("content", "row"),
    [("", 1), ("name,digest\na,1\n", 1), ("id,sha256\na\n", 2), ("id,sha256\na,1,2\n", 2), ("id,sha256\n\n", 2)],
)
def test_tables_with_other_columns_are_refused(tmp_path: Path, content, row):
    (tmp_path / "files.csv").write_text(content)
    with pytest.raises(ModelError, match=rf"must have the columns id, sha256\. Row {row} has other ones"):
        read_table(tmp_path / "files.csv", ("id", "sha256"), "the list of samples")


def test_tables_of_other_encodings_and_broken_quotes(tmp_path: Path):
    file = tmp_path / "files.csv"
    file.write_bytes("id,sha256\né,1\n".encode("latin-1"))
    with pytest.raises(ModelError, match="UTF-8"):
        read_table(file, ("id", "sha256"), "the list of samples")
    file.write_text('id,sha256\n"a,1\n')
    with pytest.raises(ModelError, match=r"must be CSV\. It is damaged"):
        read_table(file, ("id", "sha256"), "the list of samples")


def test_long_cells_and_separators_inside_of_names_are_read(tmp_path: Path):
    names = ["a" * 200_000, "one\u2028name", "\x0b", '"quoted", and more', "two\nlines"]
    rows = [("id", "sha256"), *((name, "1") for name in names)]
    (tmp_path / "files.csv").write_bytes(csv_text(rows).encode())
    assert read_table(tmp_path / "files.csv", ("id", "sha256"), "x") == [(name, "1") for name in names]


def test_numbers_that_json_reads_and_floats_cannot_hold(tmp_path: Path):
    (tmp_path / "x.json").write_text(json.dumps({"a": 10**400}))
    assert misfit(read_json(tmp_path / "x.json", "x"), EachOf(int)) is None
