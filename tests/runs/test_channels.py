"""Runs on images of other channels than RGB, and on images as they are stored: recorded, predicted and replayed."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from autotimm.cli.main import main
from autotimm.data.dense import SegmentationDataModule
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.errors import DataError
from autotimm.runs.predict import data_of_checkpoint
from training import small_fit

DENSE = {"image_size": 64, "batch_size": 4, "eval_batch_size": 2, "width": 64, "val_split": None}


def with_alpha(folder: Path) -> Path:
    """Turn the RGB images below a folder into RGBA; label images stay as they are."""
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            if image.mode == "RGB":
                image.load()
                image.putalpha(image.getchannel("G"))
                image.save(path)
    return folder


def draw_data(task: str, folder: Path) -> Path:
    if task == "classification":
        return with_alpha(write_toy_folder(folder, n=16, num_classes=2))
    if task == "segmentation":
        return with_alpha(write_toy_segmentation(folder, splits={"train": 8, "val": 2}, image_size=64))
    return with_alpha(write_toy_objects(folder, splits={"train": 8, "val": 2}, image_size=64))


@pytest.mark.parametrize("task", ["classification", "detection", "instance", "segmentation"])
def test_four_channels_are_recorded_predicted_and_replayed(task: str, tmp_path: Path) -> None:
    folder = draw_data(task, tmp_path / "data")
    options = {} if task == "classification" else DENSE
    run = small_fit(folder, tmp_path, name="run", task=task, in_chans=4, **options)
    assert run.verify().identical
    checkpoint = run.checkpoint("last")
    assert data_of_checkpoint(checkpoint).in_chans == 4
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    stem = next(value for name, value in weights.items() if "backbone" in name and value.ndim == 4)
    assert stem.shape[1] == 4
    image = next(path for path in sorted(folder.rglob("*.png")) if Image.open(path).mode == "RGBA")
    pictures = [] if task == "classification" else ["--draw", str(tmp_path / "pictures")]
    assert main(["predict", str(run.path), str(image), "--out", str(tmp_path / "found.csv"), *pictures]) == 0
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == bool(pictures)


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """Scenes of 96 x 64 pixels with a tag that asks for a quarter turn, and annotations of the stored images."""
    folder = write_toy_objects(tmp_path / "data", splits={"train": 8, "val": 2}, image_size=(64, 96))
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            image.load()
            image.save(path, exif=exif)
    return folder


def test_images_are_read_as_stored_where_their_annotations_are_not_turned(turned: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"10 images that an EXIF tag turns, and whose annotations do not.*--ignore-exif"
    ):
        small_fit(turned, tmp_path, task="detection", **DENSE)
    run = small_fit(turned, tmp_path, name="run", task="detection", ignore_exif=True, threshold=0.01, **DENSE)
    assert run.verify().identical
    spec = data_of_checkpoint(run.checkpoint("last"))
    assert spec.ignore_exif
    image = min(turned.rglob("*.png"))
    found = run.predict(image)[0]
    assert found.size == (64, 96)
    assert main(["predict", str(run.path), str(image), "--draw", str(tmp_path / "pictures")]) == 0
    with Image.open(next((tmp_path / "pictures").rglob("*.png"))) as picture:
        assert picture.size == (96, 64)


def test_masks_of_stored_images_are_named_and_read(tmp_path: Path) -> None:
    folder, exif = tmp_path / "data", Image.Exif()
    exif[0x0112] = 8
    for index in range(6):
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        picture, mask = Image.new("RGB", (32, 16), (90, 20 * index, 0)), Image.new("L", (32, 16))
        picture.paste((255, 255, 255), (0, 0, 8, 8))
        mask.paste(1, (0, 0, 8, 8))
        picture.save(folder / "images" / f"{index}.jpg", exif=exif, quality=95)
        mask.save(folder / "masks" / f"{index}.png")
    with pytest.raises(DataError, match=r"6 masks of images that an EXIF tag turns.*--ignore-exif"):
        SegmentationDataModule(folder, image_size=32, num_workers=0).setup()
    data = SegmentationDataModule(folder, image_size=32, num_workers=0, ignore_exif=True)
    sample = data.tables["train"].load(0)
    assert sample.image.shape[-2:] == sample.target.shape == (16, 32)
    assert (sample.image.min(0).values > 200).equal(sample.target == 1)
