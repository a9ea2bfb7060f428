"""Files of predictions, written whole or not at all, where there was nothing before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms.v2 import functional as F

from autotimm.data.read import read_image
from autotimm.errors import RunError
from autotimm.output.colors import class_colors
from autotimm.output.draw import draw_prediction
from autotimm.output.names import file_names
from autotimm.output.places import require_new_file, require_new_folder
from autotimm.repro.files import atomic_path, write_text
from autotimm.types import ObjectPrediction, PixelPrediction

__all__ = ["write_json", "write_labels", "write_pictures", "write_table"]

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
    called as :func:`autotimm.output.names.file_names` says.

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
        lines = ["Pixel Value, Class", *(f"{index}, {name}" for index, name in enumerate(class_names))]
        write_text(Path(folder, CLASSES), "\n".join(lines) + "\n")


def write_pictures(
    folder: str | Path,
    predictions: Sequence[ObjectPrediction | PixelPrediction],
    class_names: Sequence[str],
    sources: Mapping[str, str | Path],
) -> None:
    """Write every image with what was found in it, as :func:`autotimm.output.draw.draw_prediction` draws it.

    Args:
        folder: A new or empty folder; it is made.
        predictions: One per image.
        class_names: All classes in the order of the model.
        sources: The image file of each id.

    Raises:
        UsageError: If there is something in the folder.
        DataError: If an image cannot be read any more.
        RunError: If the folder cannot be written to.
    """
    require_new_folder(str(folder), "folder", "write_pictures")
    names = file_names([found.id for found in predictions])
    for name, found in zip(names, predictions, strict=True):
        picture = draw_prediction(read_image(sources[found.id]), found, class_names)
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
