"""Reading data with boxes, outlines or regions by the name of their format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autotimm.data.formats.box_csv import read_boxes_csv
from autotimm.data.formats.cityscapes import read_cityscapes
from autotimm.data.formats.coco import read_coco
from autotimm.data.formats.instance_masks import read_instance_masks
from autotimm.data.formats.label_images import read_label_images
from autotimm.data.formats.recognize import recognize
from autotimm.data.formats.voc import read_voc
from autotimm.data.formats.yolo import read_yolo
from autotimm.data.table import Table
from autotimm.errors import DataError, UsageError, require_choice
from autotimm.serialization import import_object

__all__ = ["FORMATS", "read_spatial"]

_OBJECTS = {"coco": read_coco, "voc": read_voc, "yolo": read_yolo, "csv": read_boxes_csv}
_READERS: dict[str, dict[str, Callable[..., dict[str, Table]]]] = {
    "boxes": {**_OBJECTS, "masks": read_instance_masks},
    "instances": {"coco": read_coco, "yolo": read_yolo, "masks": read_instance_masks},
    "pixels": {"masks": read_label_images, "cityscapes": read_cityscapes},
}
_TASKS = {"boxes": "detection", "instances": "instance", "pixels": "segmentation"}
FORMATS = {kind: tuple(readers) for kind, readers in _READERS.items()}
"""Names of the formats by kind of data."""


def read_spatial(
    path: str | Path, format: str, kind: str, notices: list[str], *, strict: bool = False, **options: Any
) -> Mapping[str, Table]:
    """Read data of one kind.

    Args:
        path: A folder, or a file that names the rest.
        format: One of :data:`FORMATS` for the kind; ``auto`` looks what is there, and says so; or the import path of a
            reader of your own, called with the path and the list of notices.
        kind: ``boxes``, ``instances`` or ``pixels``.
        notices: Receives one line for each thing that was left out or looks strange.
        strict: Refuse what is wrong instead of leaving it out.
        options: What the reader takes beside, such as ``colors`` of label images.

    Returns:
        A table per split; ``train`` is among them.

    Raises:
        DataError: If the data cannot be used.
        UsageError: If there is no such format.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path} must be a folder of data. There is none. Check the path.")
    if "." in format:
        own: dict[str, Table] = _own(format)(path, notices)
        return own
    if format == "auto":
        found = recognize(path, _TASKS[kind])
        notices.append(found.sentence)
        format = found.format
    require_choice("format", f"data with {kind}", format, _READERS[kind])
    return _READERS[kind][format](path, notices, masks=kind == "instances", strict=strict, **options)


def _own(name: str) -> Callable[..., Any]:
    try:
        reader: Callable[..., Any] = import_object(name)
    except ImportError as error:
        raise UsageError(
            f"The format {name!r} must be a name or the import path of a reader. It is not ({error}). Give for example "
            "coco, or my_package.data.read."
        ) from None
    return reader
