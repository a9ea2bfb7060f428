"""Data: from files on disk to batches, in a way that does not depend on who loads them."""

from autotimm.data.image import ImageDataModule
from autotimm.data.loader import KeyedDataset, KeyedLoader
from autotimm.data.module import DataModule, DataOptions
from autotimm.data.table import ImageTable, Subset, Table
from autotimm.data.toy import toy_images, write_toy_folder
from autotimm.data.transforms.image_transforms import AUGMENTATIONS

__all__ = [
    "AUGMENTATIONS",
    "DataModule",
    "DataOptions",
    "ImageDataModule",
    "ImageTable",
    "KeyedDataset",
    "KeyedLoader",
    "Subset",
    "Table",
    "toy_images",
    "write_toy_folder",
]
