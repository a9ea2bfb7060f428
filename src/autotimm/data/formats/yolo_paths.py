"""Where YOLO's files lead: to images, lists and labels whose paths were often written on another computer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from autotimm.data.formats.splits import relative, split_of
from autotimm.data.formats.walk import Found, some
from autotimm.data.read import is_image_name

__all__ = ["find_place", "label_file", "label_lines", "label_places", "listed_images", "yaml_lacking"]


def _ways(entry: str, split: str) -> list[str]:
    """A path as it stands, with slashes, then with fewer and fewer of its first folders: those of another computer.

    The folder that says the split stays: ``valid/images`` is not ``images``.
    """
    parts = _slashed(entry).parts
    ways = [entry, str(_slashed(entry))]
    for start in range(1, len(parts)):
        rest = parts[start:-1] if is_image_name(parts[-1]) else parts[start:]
        left = {split_of(part) for part in rest} - {None}
        lost = split_of(parts[start - 1])
        if lost and lost not in left and (lost == split or not left):
            break
        ways.append("/".join(parts[start:]))
    return ways


def _slashed(entry: str) -> PurePosixPath:
    return PurePosixPath(entry.replace("\\", "/"))


def find_place(entry: str, bases: Sequence[Path], split: str) -> Path:
    r"""The file or folder that an entry of the YAML file names; where it should be if there is none.

    Roboflow writes ``../train/images`` beside ``train/``, others ``/content/data/train/images`` or ``train\images``.
    """
    tries = [base / way for way in _ways(entry, split) for base in bases]
    return next((Path(os.path.normpath(place)) for place in tries if place.exists()), tries[0])


def listed_images(file: Path, root: Path, split: str) -> list[Path]:
    """The images that a list names, relative to the root of the data, or to the list if they begin with ``./``.

    If not one is there, the same number of first folders is left out of all lines: ``data/images/1.png`` is what
    darknet is given in the folder above.
    """
    text = file.read_bytes().decode("utf-8-sig", "surrogateescape")
    lines = list(
        dict.fromkeys(line for line in map(str.strip, text.splitlines()) if is_image_name(_slashed(line).name))
    )
    written = [file.parent / line if line.startswith("./") else root / line for line in lines]
    if not any(path.is_file() for path in written):
        ways = [_ways(line, split) for line in lines]
        for number in range(1, max(map(len, ways), default=0)):
            for base in (root, file.parent):
                tries = [base / way[min(number, len(way) - 1)] for way in ways]
                # Lines that become one have lost what tells them apart.
                if any(path.is_file() for path in tries) and len(set(tries)) == len(tries):
                    return tries
    return [Path(os.path.normpath(path)) for path in written]


def label_places(image: Path) -> list[Path]:
    """Where the labels of an image may be: in ``labels`` instead of ``images``, then beside it."""
    beside = image.with_suffix(".txt")
    head, folder, tail = str(beside).rpartition(f"{os.sep}images{os.sep}")
    return [Path(head + f"{os.sep}labels{os.sep}" + tail), beside] if folder else [beside]


def label_file(image: Path) -> Path | None:
    """The file with the labels of an image, if there is one."""
    return next((path for path in label_places(image) if path.is_file()), None)


def label_lines(path: Path) -> list[str]:
    """The lines of a label file that are not empty."""
    return [line for line in path.read_text("utf-8-sig", "replace").splitlines() if line.strip()]


def yaml_lacking(root: Path, images: Sequence[Found]) -> str:
    """What to write if there are YOLO labels and nothing names their classes, as Label Studio and CVAT leave them.

    Args:
        root: The root of the data.
        images: The images below it.

    Returns:
        A sentence, or nothing if there are no labels.
    """
    labelled = [(one, label) for one in images[:200] if (label := label_file(one.path)) is not None and _is_yolo(label)]
    if not labelled:
        return ""
    image, label = min(labelled, key=lambda one: split_of(one[0].name) != "train")
    folder = image.name.rpartition("/")[0] or "."
    train = "train.txt" if (root / "train.txt").is_file() else folder
    names = [place / name for place in (root, label.parent) for name in ("classes.txt", "obj.names")]
    stated = next(
        (label_lines(path) for path in names if path.is_file()), ["name of class 0", "name of class 1", "..."]
    )
    return (
        f"There are YOLO labels ({relative(label, root)}), and no YAML file says the classes and where the images are: "
        f"write a data.yaml with the lines `names: [{some(stated, 20)}]` and `train: {train}`."
    )


def _is_yolo(label: Path) -> bool:
    try:
        numbers = [[float(word) for word in line.split()] for line in label_lines(label)[:5]]
    except (OSError, ValueError):
        return False
    return any(numbers) and all(len(line) >= 5 and line[0].is_integer() for line in numbers)
