"""Data formats: each is recognized in a listing of a folder, and read into one table per split."""

from autotimm.data.formats.box_csv import read_boxes_csv
from autotimm.data.formats.cityscapes import read_cityscapes
from autotimm.data.formats.class_csv import read_csv
from autotimm.data.formats.class_folders import read_folder
from autotimm.data.formats.coco import read_coco
from autotimm.data.formats.data_format import Format, ReadOptions, Sighting
from autotimm.data.formats.image_paths import read_paths
from autotimm.data.formats.instance_ids import read_instance_ids
from autotimm.data.formats.instance_masks import read_instance_masks
from autotimm.data.formats.label_images import read_label_images
from autotimm.data.formats.listing import Listing
from autotimm.data.formats.recognize import FORMATS, Recognized, recognize
from autotimm.data.formats.torchvision_sets import read_builtin
from autotimm.data.formats.voc import read_voc
from autotimm.data.formats.yolo import read_yolo

__all__ = [
    "FORMATS",
    "Format",
    "Listing",
    "ReadOptions",
    "Recognized",
    "Sighting",
    "read_boxes_csv",
    "read_builtin",
    "read_cityscapes",
    "read_coco",
    "read_csv",
    "read_folder",
    "read_instance_ids",
    "read_instance_masks",
    "read_label_images",
    "read_paths",
    "read_voc",
    "read_yolo",
    "recognize",
]
