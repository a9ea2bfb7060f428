"""Readers of data formats: each gives tables, one per split that it finds."""

from autotimm.data.formats.boxes_csv import read_boxes_csv
from autotimm.data.formats.builtin import read_builtin
from autotimm.data.formats.cityscapes import read_cityscapes
from autotimm.data.formats.coco import read_coco
from autotimm.data.formats.csv import read_csv
from autotimm.data.formats.folder import read_folder
from autotimm.data.formats.instance_masks import read_instance_masks
from autotimm.data.formats.label_images import read_label_images
from autotimm.data.formats.paths import read_paths
from autotimm.data.formats.recognize import Recognized, recognize
from autotimm.data.formats.voc import read_voc
from autotimm.data.formats.yolo import read_yolo

__all__ = [
    "MASK_FORMATS",
    "OBJECT_FORMATS",
    "Recognized",
    "read_boxes_csv",
    "read_builtin",
    "read_cityscapes",
    "read_coco",
    "read_csv",
    "read_folder",
    "read_instance_masks",
    "read_label_images",
    "read_paths",
    "read_voc",
    "read_yolo",
    "recognize",
]

OBJECT_FORMATS = {
    "coco": read_coco,
    "voc": read_voc,
    "yolo": read_yolo,
    "csv": read_boxes_csv,
    "masks": read_instance_masks,
}
"""Readers of boxes and outlines by the name of the format."""

MASK_FORMATS = {"masks": read_label_images, "cityscapes": read_cityscapes}
"""Readers of a mask per image by the name of the format."""
