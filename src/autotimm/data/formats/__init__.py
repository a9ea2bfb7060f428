"""Readers of data formats: each gives tables, one per split that it finds."""

from autotimm.data.formats.builtin import read_builtin
from autotimm.data.formats.csv import read_csv
from autotimm.data.formats.folder import read_folder
from autotimm.data.formats.paths import read_paths

__all__ = ["read_builtin", "read_csv", "read_folder", "read_paths"]
