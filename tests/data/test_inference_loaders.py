"""Data as a model or a run remembers them."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from autotimm import ImageDataModule
from autotimm.data.inference_loaders import predict_loader, recorded_data
from autotimm.data.toy import write_toy_segmentation
from autotimm.data.transforms import eval_transform
from autotimm.errors import DataError, ModelError, UsageError
from autotimm.serialization import import_name, plain_value
from autotimm.types import DataSpec


def halve(image: torch.Tensor) -> torch.Tensor:
    """An importable transform."""
    return eval_transform(16)(image)


def too_large(image: torch.Tensor) -> torch.Tensor:
    """A transform that the network would normalize a second time."""
    return halve(image).float()


def record(data: ImageDataModule) -> dict[str, object]:
    return {"class_path": import_name(type(data)), "init_args": plain_value(data.arguments)}


def test_a_data_module_is_built_from_its_record(toy: Path) -> None:
    data = ImageDataModule(toy, image_size=32, batch_size=5, val_split=0.25)
    again = recorded_data(record(data))
    assert type(again) is ImageDataModule
    assert (again.assignments(), again.spec, again.batch_size) == (data.assignments(), data.spec, 5)


@pytest.mark.parametrize("name", ["train_transforms", "eval_transforms"])
def test_an_object_must_be_given_again(toy: Path, name: str) -> None:
    data = ImageDataModule(toy, image_size=32, **{name: v2.Resize((32, 32))})
    with pytest.raises(DataError, match=f"The `{name}` of the run's data, an object, must be given again"):
        recorded_data(record(data))


def test_a_class_that_cannot_be_imported() -> None:
    with pytest.raises(ModelError, match=r"names the data module not_installed\.Data"):
        recorded_data({"class_path": "not_installed.Data", "init_args": {}})


def test_prediction_checks_transforms_as_training_does(toy: Path) -> None:
    data = ImageDataModule(toy, image_size=16, num_workers=0, eval_transforms=halve)
    assert next(iter(predict_loader(toy, data.spec, notices=[], num_workers=0))).images.shape[2:] == (16, 16)
    spec = ImageDataModule(toy, image_size=16, eval_transforms=too_large).spec
    with pytest.raises(UsageError, match="`eval_transforms` of the model's data must give a tensor"):
        predict_loader(toy, spec, notices=[], num_workers=0)


def test_masks_beside_their_images_are_not_predicted(tmp_path):
    write_toy_segmentation(tmp_path, splits={"train": 3}, image_size=32)
    Image.new("RGB", (32, 32)).save(tmp_path / "train" / "alone_mask.png")
    notices = []
    spec = DataSpec(("background", "blue_circle"), image_size=32, kind="pixels")
    loader = predict_loader(tmp_path / "train", spec, notices=notices, num_workers=0)
    assert [id for batch in loader for id in batch.ids] == ["00000.png", "00001.png", "00002.png", "alone_mask.png"]
    assert notices[-1] == "3 masks beside their images are left out."
