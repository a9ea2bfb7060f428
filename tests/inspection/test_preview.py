"""The preview has the pixels of the training loader, and of a training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autotimm.cli.main import main
from autotimm.data.dense import DetectionDataModule, SegmentationDataModule
from autotimm.data.image import ImageDataModule
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation

SIZE, GAP = 48, 4


def cell(grid: torch.Tensor, number: int, columns: int, copies: int) -> torch.Tensor:
    top = GAP + number // columns * (SIZE + GAP)
    left = GAP + number % columns * (copies * SIZE + GAP)
    return grid[:, top : top + SIZE, left : left + SIZE]


@pytest.mark.parametrize(
    ("write", "module", "copies"),
    [
        (write_toy_folder, ImageDataModule, 1),
        (write_toy_objects, DetectionDataModule, 2),
        (write_toy_segmentation, SegmentationDataModule, 2),
    ],
)
def test_pixels_are_those_of_the_training_loader(write, module, copies: int, tmp_path: Path) -> None:
    write(tmp_path / "toy", splits={"train": 10, "val": 2}, image_size=64, num_classes=2, seed=2)
    file = tmp_path / "grid.png"
    options = ["--image-size", str(SIZE), "--batch-size", "4", "--seed", "3"]
    assert main(["inspect", str(tmp_path / "toy"), "--preview", str(file), *options]) == 0
    grid = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    data = module(tmp_path / "toy", image_size=SIZE, batch_size=4, num_workers=0, seed=3)
    images = torch.cat([batch.images for batch in data.train_dataloader()])
    assert len(images) == 10
    assert all(torch.equal(cell(grid, number, 6, copies), image) for number, image in enumerate(images))
    other = module(tmp_path / "toy", image_size=SIZE, batch_size=4, num_workers=0, seed=4)
    assert not torch.equal(next(iter(other.train_dataloader())).images[0], images[0])
