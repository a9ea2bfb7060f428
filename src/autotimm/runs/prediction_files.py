"""Names for files that are made from images: inside of one folder, and never twice the same.

Where results may be written: nothing that is there is ever written over.

Predictions as tables: CSV for programs, rows for people.

Predicted objects as a COCO file: images, categories, and annotations with scores.

Files of predictions, written whole or not at all, where there was nothing before.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeGuard

from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.transforms.v2 import functional as F

from autotimm.data.image_channels import read_picture
from autotimm.data.image_reading import UPRIGHT_RGB, ImageReading
from autotimm.errors import DataError, RunError, join_names
from autotimm.records.atomic import atomic_path, write_text
from autotimm.records.csv_cells import csv_text, safe_cell
from autotimm.report.class_colors import class_colors
from autotimm.runs.draw import draw_prediction
from autotimm.runs.output_paths import require_new_file, require_new_folder
from autotimm.serialization import read_json
from autotimm.types import ObjectPrediction, PixelPrediction, Prediction

__all__ = [
    "CocoIds",
    "as_csv",
    "as_rows",
    "coco_results",
    "file_names",
    "write_json",
    "write_labels",
    "write_pictures",
    "write_table",
]


def file_names(ids: Sequence[str], suffix: str = ".png") -> list[str]:
    """Name a file for each image: its place below the folder that all are in, with another ending.

    Images that differ in their endings alone keep them, since their files must differ.

    Args:
        ids: Distinct ``/``-separated names of images, relative to one folder or as somebody typed them.
        suffix: The ending.

    Example:
        >>> file_names(["a/1.jpg", "b/1.jpg"]), file_names(["1.jpg", "1.png"])
        (['a/1.png', 'b/1.png'], ['1.jpg.png', '1.png.png'])
        >>> file_names(["../x/1.jpg", "/data/2.jpg"])[0].startswith("..")
        False
    """
    paths = [PurePosixPath(id) for id in _inside(ids)]
    whole: set[int] = set()
    while True:
        names = [f"{path if at in whole else path.with_suffix('')}{suffix}" for at, path in enumerate(paths)]
        # Systems that do not tell a.png from A.png would write one over the other.
        counts = Counter(name.casefold() for name in names)
        twice = {at for at, name in enumerate(names) if counts[name.casefold()] > 1}
        if twice <= whole:
            return [f"{index}-{name}" if index in twice else name for index, name in enumerate(names)]
        whole |= twice


def _inside(ids: Sequence[str]) -> list[str]:
    """The names below the folder that all are in, so that none leads out of it."""
    full = [os.path.abspath(id) for id in ids]
    common = os.path.commonpath([os.path.dirname(one) for one in full])
    return [os.path.relpath(one, common).replace(os.sep, "/") for one in full]


_BOX = ("x1", "y1", "x2", "y2")


def as_csv(predictions: Sequence[Prediction | PixelPrediction | ObjectPrediction]) -> str:
    """Write predictions as a table.

    For classes: path, label, score, and the probability of each class, or the share of the pixels that it has. Several
    labels are joined with ``|``, none at all is an empty cell. The score is that of the likeliest class. Sets of
    classes, if there are any, have a column ``set`` behind the score, joined in the same way.

    The column ``novelty``, if it was asked for, comes next. Nearest training images have three columns behind these,
    joined in the same way from the nearest on: ``neighbours``, their ids; ``neighbour_labels``, with ``&`` between the
    classes of one image; and ``similarities``.

    For objects: path, label, score, x1, y1, x2, y2 in pixels of the original image, a line per object. Images without
    objects have none; with novelty or neighbours, which are those of the image, they have one without label and box.

    Paths and names that a spreadsheet would take for formulas get an apostrophe in front, see
    :mod:`autotimm.records.csv_cells`. Nine digits are what a 32-bit float needs to be read back to the bit.
    """
    rows: list[list[str]] = []
    for prediction in predictions:
        titles, lines = _lines(prediction)
        more = _more_cells(prediction)
        if not rows:
            rows.append(["path", "label", "score", *more, *map(safe_cell, titles)])
        path = safe_cell(prediction.id)
        before = len(rows)
        for label, score, *values in lines:
            numbers = (f"{value:.9g}" for value in values)
            rows.append([path, safe_cell(label), f"{score:.9g}", *more.values(), *numbers])
        if more and len(rows) == before:
            rows.append([path, "", "", *more.values(), *("" for _ in titles)])
    return csv_text(rows)


def _more_cells(one: Prediction | PixelPrediction | ObjectPrediction) -> dict[str, str]:
    """What was asked for beside the scores: the cell of each further column, by its title."""
    cells = {"set": safe_cell("|".join(one.members))} if _has_set(one) else {}
    if one.novelty is not None:
        cells["novelty"] = f"{one.novelty:.9g}"
    if one.neighbours:
        cells["neighbours"] = safe_cell("|".join(each.id for each in one.neighbours))
        cells["neighbour_labels"] = safe_cell("|".join("&".join(each.labels) for each in one.neighbours))
        cells["similarities"] = "|".join(f"{each.similarity:.9g}" for each in one.neighbours)
    return cells


def _has_set(one: Prediction | PixelPrediction | ObjectPrediction) -> TypeGuard[Prediction]:
    return isinstance(one, Prediction) and bool(one.members)


def _lines(one: Prediction | PixelPrediction | ObjectPrediction) -> tuple[Iterable[str], Iterable[tuple[Any, ...]]]:
    """What the columns behind the score are called, and what stands behind the path of an image."""
    if isinstance(one, ObjectPrediction):
        found = zip(one.labels, one.scores, one.boxes, strict=True)
        return _BOX, [(label, score, *box) for label, score, box in found]
    return one.scores, [("|".join(one.labels), max(one.scores.values()), *one.scores.values())]


def as_rows(
    predictions: Iterable[Prediction | PixelPrediction | ObjectPrediction],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The titles of a table for people, and its rows; ``-`` stands for nothing."""
    titles: tuple[str, ...] = ("path", "label", "score")
    rows: list[tuple[str, ...]] = []
    for one in predictions:
        start = len(rows)
        if isinstance(one, ObjectPrediction):
            titles = ("path", "label", "score", *_BOX)
            found = zip(one.labels, one.scores, one.boxes, strict=True)
            objects = [(one.id, label, f"{score:.3f}", *(f"{x:.0f}" for x in box)) for label, score, box in found]
            rows += objects or [(one.id, *("-" for _ in titles[1:]))]
        elif isinstance(one, PixelPrediction):
            titles = ("path", "labels")
            rows.append((one.id, ", ".join(f"{name} {one.scores[name]:.1%}" for name in one.labels)))
        else:
            titles = ("path", "label", "score", *(("set",) if one.members else ()))
            members = (", ".join(one.members),) if one.members else ()
            rows.append((one.id, ", ".join(one.labels) or "-", f"{max(one.scores.values()):.3f}", *members))
        if one.novelty is not None:
            titles = (*titles, "novelty")
            rows[start:] = [(*row, f"{one.novelty:.3f}") for row in rows[start:]]
        if one.neighbours:
            near = (f"{each.id} ({', '.join(each.labels)}) {each.similarity:.3f}" for each in one.neighbours)
            titles, text = (*titles, "neighbours"), ", ".join(near)
            rows[start:] = [(*row, text) for row in rows[start:]]
    return titles, rows


class CocoIds(NamedTuple):
    """The numbers that an annotation file gives its images and categories, which results must have to be compared.

    Attributes:
        images: The number of each image, by its ``file_name``.
        categories: The number of each category, by its name.
    """

    images: Mapping[str, int | str]
    categories: Mapping[str, int]

    @classmethod
    def read(cls, path: str | Path) -> CocoIds:
        """Read them from a COCO file.

        Raises:
            DataError: If it cannot be read, or is no such file.
        """
        try:
            content = read_json(Path(path), largest=None)
            images = {str(image["file_name"]): image["id"] for image in content["images"]}
            categories: dict[str, int] = {}
            for category in content["categories"]:
                categories.setdefault(str(category["name"]), category["id"])
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"{path} must be a COCO file: images and categories, each with an id and a name. It is not ({error}). "
                "Give the annotation file that the predictions will be compared with."
            ) from error
        return cls(images, categories)

    def of_images(self, ids: Sequence[str], path: str | Path) -> list[int | str]:
        """The number of each predicted image: that of the image whose name shares the longest end of the path with it.

        Raises:
            DataError: If the file does not list an image, or lists several that it may be.
        """
        by_name: dict[str, list[str]] = {}
        for name in self.images:
            by_name.setdefault(PurePosixPath(name).name, []).append(name)
        found = [_longest_end(id, by_name.get(PurePosixPath(id).name, [])) for id in ids]
        if lost := [id for id, names in zip(ids, found, strict=True) if len(names) != 1]:
            raise DataError(
                f"{path} must list each predicted image once. {len(lost)} are not in it or cannot be told from "
                f"others: {join_names(lost)}. Predict the images of that file."
            )
        return [self.images[name] for (name,) in found]


def _longest_end(id: str, names: Sequence[str]) -> list[str]:
    """Of names of files with the same last part, those that share most of their last parts with an id."""
    parts = PurePosixPath(os.path.normpath(id)).parts[::-1]
    common = {name: _equal_parts(parts, PurePosixPath(os.path.normpath(name)).parts[::-1]) for name in names}
    return [name for name in names if common[name] == max(common.values())]


def _equal_parts(a: Sequence[str], b: Sequence[str]) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def coco_results(
    predictions: Sequence[ObjectPrediction], class_names: Sequence[str], *, category_ids: Sequence[int] = (),
    ids: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Put predictions into COCO's layout, as plain data for a JSON file.

    The ``annotations`` are at the same time COCO's results, which ``COCO.loadRes`` takes. Images without objects are
    listed too.

    Args:
        predictions: One per image.
        class_names: All classes, in the order of the model.
        category_ids: The number of each class, as in the file that the model was trained on; without any they start at
            1, in the order of the classes.
        ids: A COCO file that the results will be compared with: images and categories have its numbers. Without one,
            numbers of images start at 1, in the order of the predictions.

    Returns:
        ``images`` (``file_name`` is the id of the prediction; ``neighbours`` are there if they were asked for),
        ``categories`` and ``annotations``, whose ``bbox`` is x, y, width, height in pixels of the original image, with
        ``segmentation`` as run lengths if there are masks.

    Example:
        >>> found = ObjectPrediction("a/1.jpg", ("cat",), (0.5,), ((1.0, 2.0, 4.0, 6.0),), (8, 9))
        >>> coco_results([found], ["cat"], category_ids=[17])["annotations"][0]["bbox"]
        [1.0, 2.0, 3.0, 4.0]
    """
    numbers = dict(zip(class_names, category_ids or range(1, len(class_names) + 1), strict=True))
    images: Sequence[int | str] = range(1, len(predictions) + 1)
    if ids is not None:
        of_file = CocoIds.read(ids)
        images = of_file.of_images([found.id for found in predictions], ids)
        if unknown := [name for name in class_names if name not in of_file.categories]:
            raise DataError(
                f"{ids} must have the classes of the model among its categories. It lacks {join_names(unknown)}. Give "
                "the file that the model was trained on, or one with the same names."
            )
        numbers = {name: of_file.categories[name] for name in class_names}
    annotations: list[dict[str, Any]] = []
    for image, found in zip(images, predictions, strict=True):
        for index, label in enumerate(found.labels):
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": numbers[label],
                                **_object(found, index)})  # fmt: skip
    return {
        "images": [
            {"id": number, "file_name": found.id, "height": found.size[0], "width": found.size[1], **_near(found)}
            for number, found in zip(images, predictions, strict=True)
        ],
        "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in numbers.items()],
        "annotations": annotations,
    }


def _near(found: ObjectPrediction) -> dict[str, Any]:
    """What COCO does not know: novelty and the nearest training images, if they were asked for."""
    more: dict[str, Any] = {} if found.novelty is None else {"novelty": found.novelty}
    return more | ({"neighbours": [each.as_plain() for each in found.neighbours]} if found.neighbours else {})


def _object(found: ObjectPrediction, index: int) -> dict[str, Any]:
    x1, y1, x2, y2 = found.boxes[index]
    width, height = x2 - x1, y2 - y1
    fields = {"bbox": [x1, y1, width, height], "area": width * height, "iscrowd": 0, "score": found.scores[index]}
    if found.masks:
        outline = {"size": list(found.size), "counts": found.masks[index]}
        fields |= {"segmentation": outline, "area": float(coco_mask.area(outline))}
    return fields


CLASSES = "_classes.csv"


def write_table(path: str | Path, table: str) -> None:
    """Write a table to a new file.

    Raises:
        UsageError: If there is something already, or no folder to write to.
        RunError: If it cannot be written.
    """
    require_new_file(str(path), "path", "write_table")
    with _said(path):
        write_text(path, table)


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write plain data to a new JSON file; errors are those of :func:`write_table`."""
    write_table(path, json.dumps(data, ensure_ascii=False) + "\n")


def write_labels(folder: str | Path, predictions: Sequence[PixelPrediction], class_names: Sequence[str]) -> None:
    """Write a label image per image, and ``_classes.csv``, which says what their values stand for.

    The images are PNG files of 8 bits whose values are class indices; a palette lets viewers show colors. They are
    called as :func:`autotimm.runs.prediction_files.file_names` says.

    Args:
        folder: A new or empty folder; it is made.
        predictions: One per image.
        class_names: All classes in the order of the model.

    Raises:
        UsageError: If there is something in the folder.
        RunError: If it cannot be written to.
    """
    require_new_folder(str(folder), "folder", "write_labels")
    palette = [level for color in class_colors(class_names) for level in color]
    names = file_names([found.id for found in predictions])
    with _said(folder):
        for name, found in zip(names, predictions, strict=True):
            with Image.open(BytesIO(found.png)) as labels:
                labels.putpalette(palette)
                _save(labels, Path(folder, name))
        # As our own reader of label images expects it.
        lines = (f"{index}, {csv_text([[safe_cell(name)]])}" for index, name in enumerate(class_names))
        write_text(Path(folder, CLASSES), "".join(["Pixel Value, Class\n", *lines]))


def write_pictures(
    folder: str | Path,
    predictions: Sequence[ObjectPrediction | PixelPrediction],
    class_names: Sequence[str],
    sources: Mapping[str, str | Path],
    reading: ImageReading = UPRIGHT_RGB,
) -> None:
    """Write every image with what was found in it, as :func:`autotimm.runs.draw.draw_prediction` draws it.

    Args:
        folder: A new or empty folder; it is made.
        predictions: One per image.
        class_names: All classes in the order of the model.
        sources: The image file of each id.
        reading: How the files are read.

    Raises:
        UsageError: If there is something in the folder.
        DataError: If an image cannot be read any more.
        RunError: If the folder cannot be written to.
    """
    require_new_folder(str(folder), "folder", "write_pictures")
    names = file_names([found.id for found in predictions])
    for name, found in zip(names, predictions, strict=True):
        picture = draw_prediction(read_picture(sources[found.id], reading), found, class_names)
        with _said(folder):
            _save(F.to_pil_image(picture), Path(folder, name))


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        image.save(temporary, "png")


@contextmanager
def _said(place: str | Path) -> Iterator[None]:
    """Turn a failure to write into our own error."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{place} cannot be written to: {error.strerror}. Give another place.") from None
