"""Images to predict: a file, a folder or a list of both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from autotimm.data.file_facts import Oddity
from autotimm.data.formats.listing import ListedFile, Listing, text
from autotimm.data.image_facts import scan
from autotimm.data.table import ImageTable, Subset, Table
from autotimm.data.unreadable_images import odd_image_notices
from autotimm.errors import DataError, join_names

__all__ = ["read_paths"]


def read_paths(
    paths: str | Path | Sequence[str | Path], notices: list[str], strict: bool = False, progress: bool = True
) -> Table:
    """List the images to predict, and leave out those that cannot be read.

    Ids are paths relative to the folder if one folder is given, the file's name if one file is given, and the paths as
    given for a list. Folders are searched to any depth.

    Args:
        paths: A file, a folder, or several.
        notices: Receives a line about what was left out.
        strict: Refuse an unreadable image instead of leaving it out.
        progress: Whether a progress bar may appear.

    Raises:
        DataError: If there is nothing to predict, if the only image cannot be read, or with ``strict`` if any cannot.
    """
    if isinstance(paths, (str, Path)):
        path = Path(paths)
        files = _images_in(path, "", notices) if os.path.isdir(path) else [_image(path, text(path.name))]
    else:
        files = [file for path in map(Path, paths) for file in _images_at(path, notices)]
    unique = {file.name: file for file in files}
    if len(unique) < len(files):
        notices.append(f"{len(files) - len(unique)} images were listed twice and are predicted once.")
    table = ImageTable([file.path for file in unique.values()], list(unique))
    oddities: dict[Path, Oddity] = {}
    problems = {str(problem.path): problem.reason for problem in scan(table.files(), progress, oddities)}
    named = zip(table.ids, table.files(), strict=True)
    notices += odd_image_notices({name: oddities[file] for name, file in named if file in oddities}, len(table))
    unreadable = [f"{path} ({problems[path]})" for path in table.paths if path in problems]
    if not len(table):
        raise DataError("No images to predict were given. Give an image or a folder.")
    if unreadable and (strict or len(unreadable) == len(table)):
        raise DataError(f"Images that cannot be read: {join_names(unreadable, 20)}. Replace them or leave them out.")
    if unreadable:
        count = f"{len(unreadable)} of {len(table)} images cannot be read and are left out"
        notices.append(f"{count}: {join_names(unreadable, 10)}.")
        return Subset(table, [index for index, path in enumerate(table.paths) if path not in problems])
    return table


def _images_at(path: Path, notices: list[str]) -> list[ListedFile]:
    name = text(path.as_posix())
    return _images_in(path, f"{name}/", notices) if os.path.isdir(path) else [_image(path, name)]


def _images_in(folder: Path, prefix: str, notices: list[str]) -> list[ListedFile]:
    search = Listing(folder).search_images([folder])
    notices.extend(search.notices(text(str(folder))))
    if not search.images[0]:
        raise DataError(f"The folder {folder} holds no images. Give a folder with images, or image files.")
    return [ListedFile(image.path, prefix + image.name) for image in search.images[0]]


def _image(path: Path, name: str) -> ListedFile:
    if not os.path.exists(path):
        raise DataError(f"There is no file or folder {path}. Check the path; relative paths start at {Path.cwd()}.")
    return ListedFile(path, name)
