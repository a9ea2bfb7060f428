"""Images to predict: a file, a folder or a list of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autotimm.data.file_facts import scan
from autotimm.data.formats.listing import Found, Walker, text
from autotimm.data.table import ImageTable, Subset, Table
from autotimm.errors import DataError, join_names

__all__ = ["read_paths"]


def _list(path: Path, prefix: str, notices: list[str]) -> list[Found]:
    if path.is_dir():
        walker = Walker()
        found = [Found(one.path, prefix + one.name) for one in walker.images([path])[0]]
        notices.extend(walker.notices(text(str(path))))
        if not found:
            raise DataError(f"The folder {path} holds no images. Give a folder with images, or image files.")
        return found
    if not path.exists():
        raise DataError(f"There is no file or folder {path}. Check the path; relative paths start at {Path.cwd()}.")
    return [Found(path, text(path.as_posix()))]


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
        found = (
            _list(path, "", notices)
            if path.is_dir()
            else [one._replace(name=text(path.name)) for one in _list(path, "", notices)]
        )
    else:
        found = [one for path in map(Path, paths) for one in _list(path, f"{text(path.as_posix())}/", notices)]
    unique = {one.name: one for one in found}
    if len(unique) < len(found):
        notices.append(f"{len(found) - len(unique)} images were listed twice and are predicted once.")
    table = ImageTable([one.path for one in unique.values()], list(unique))
    problems = {str(problem.path): problem.reason for problem in scan(table.files(), progress)}
    bad = [f"{one.path} ({problems[str(one.path)]})" for one in unique.values() if str(one.path) in problems]
    if not len(table) or len(bad) == len(table) or (bad and strict):
        raise DataError(
            f"Images that cannot be read: {join_names(bad, 20)}. Replace them or leave them out."
            if bad
            else "No paths to predict were given. Give an image or a folder."
        )
    if bad:
        notices.append(f"{len(bad)} of {len(table)} images cannot be read and are left out: {join_names(bad, 10)}.")
        return Subset(table, [index for index, path in enumerate(table.paths) if path not in problems])
    return table
