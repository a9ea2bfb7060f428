"""Names that a spreadsheet would take for formulas, written harmlessly and read back."""

import csv
import io

import pytest

from autotimm.records.csv_cells import csv_text, safe_cell, true_cell

FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-1.jpg", "@SUM(A1)", "\tx", "\r=1", "=", "'=1", "''=1", "'-"]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_begins_like_a_formula(name):
    assert safe_cell(name)[0] == "'"
    assert true_cell(safe_cell(name)) == name


@pytest.mark.parametrize("name", ["cat", "", "'quoted'", "a=b", "1-2", "it's", "'", "é", " =1"])
def test_other_names_stay_as_they_are(name):
    assert safe_cell(name) == name
    assert true_cell(name) == name


def test_text_reads_back(tmp_path):
    rows = [[name, "x, y"] for name in FORMULAS]
    text = csv_text([map(safe_cell, row) for row in rows])
    assert [[*map(true_cell, row)] for row in csv.reader(io.StringIO(text, newline=""))] == rows
