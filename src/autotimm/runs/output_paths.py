"""Where results may be written: existing files and folders are never overwritten. Nothing here imports torch."""

from __future__ import annotations

import os

from autotimm.errors import UsageError, sentence
from autotimm.records.atomic import refuse_sealed

__all__ = ["require_features_file", "require_new_file", "require_new_folder"]

_FEATURES = (".safetensors", ".csv")


def require_features_file(path: str, option: str, owner: str) -> None:
    """Refuse a path that cannot become a new file of features.

    Raises:
        UsageError: If it has another ending, there is something already, or the folder cannot be written to.
    """
    if not path.lower().endswith(_FEATURES):
        cure = "The first keeps every bit and is read fast, the second can be read by everything."
        raise UsageError(sentence(option, owner, "a file that ends in .safetensors or .csv", path, cure))
    require_new_file(path, option, owner)


def require_new_file(path: str, option: str, owner: str) -> None:
    """Refuse a path that cannot become a new file.

    Raises:
        UsageError: If there is something already, or the folder is missing, sealed or cannot be written to.
    """
    refuse_sealed(path, f"Give another `{option.lstrip('-')}`.")
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        cure = "Give the name of a new file in a folder that exists and can be written to."
        raise UsageError(sentence(option, owner, "a file that can be written", path, cure))
    if os.path.lexists(path):
        raise UsageError(sentence(option, owner, "a file that is not there yet", path,
                                  "Nothing is written over: give another name, or remove the file."))  # fmt: skip


def require_new_folder(path: str, option: str, owner: str) -> None:
    """Refuse a path that cannot become, or is not, an empty folder.

    Raises:
        UsageError: If there is a file, or a folder with something in it, or it cannot be made.
    """
    refuse_sealed(path, f"Give another `{option.lstrip('-')}`.")
    if os.path.isdir(path) and not os.listdir(path) and os.access(path, os.W_OK):
        return
    if os.path.lexists(path):
        raise UsageError(sentence(option, owner, "a new or empty folder", path,
                                  "Nothing is written over: give another name."))  # fmt: skip
    above = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above) or not os.access(above, os.W_OK):
        raise UsageError(sentence(option, owner, "a folder that can be made", path,
                                  f"{above} cannot be written to: give a place elsewhere."))  # fmt: skip
