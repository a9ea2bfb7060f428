"""Large JPEGs are decoded at the smallest scale that has the pixels which the network sees."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import autotimm
from autotimm import FitConfig, ImageDataModule
from autotimm.data.image_io import read_image
from autotimm.data.inference_loaders import predict_loader
from autotimm.data.toy import write_toy_folder
from autotimm.data.transforms.image_transforms import RandomView, pixels_needed, train_transform
from autotimm.image_size import height_and_width


def write_jpeg(path: Path, width: int, height: int, mode: str = "RGB", orientation: int = 1) -> Path:
    gradient = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * turn) for turn in range(3)])
    tags = Image.Exif()
    tags[0x0112] = orientation
    gradient.resize((width, height)).convert(mode).save(path, exif=tags, quality=95)
    return path


@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [
        ((400, 300), (300, 400), (300, 400)),
        ((400, 300), (150, 200), (150, 200)),
        ((400, 300), (151, 10), (300, 400)),  # one side would have too little
        ((400, 300), (75, 75), (75, 100)),
        ((403, 301), (37, 50), (38, 51)),  # libjpeg rounds up
        ((400, 300), (1, 1), (38, 50)),  # an eighth is the smallest
        ((40, 30), (50, 50), (30, 40)),  # never enlarged
    ],
)
def test_the_smallest_scale_that_has_enough(tmp_path, size, least, expected):
    image = read_image(write_jpeg(tmp_path / "a.jpg", *size), least=least)
    assert tuple(image.shape) == (3, *expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_picture_stays_the_same(tmp_path, mode):
    path = write_jpeg(tmp_path / "a.jpg", 400, 304, mode)
    whole, reduced = read_image(path).float(), read_image(path, least=(50, 50)).float()
    assert reduced.shape == (3, 76, 100)
    averages = torch.nn.functional.avg_pool2d(whole, 4)
    assert (averages - reduced).abs().mean() < 1.5  # of 255


def test_a_turned_photograph_keeps_the_sides_that_were_asked_for(tmp_path):
    path = write_jpeg(tmp_path / "a.jpg", 400, 200, orientation=6)
    assert tuple(read_image(path, least=(200, 100)).shape) == (3, 200, 100)
    assert tuple(read_image(path, least=(100, 101)).shape) == (3, 400, 200)
    assert tuple(read_image(path, upright=False, least=(50, 100)).shape) == (3, 50, 100)


def test_other_formats_are_decoded_in_full(tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "a.png")
    assert tuple(read_image(tmp_path / "a.png", least=(10, 10)).shape) == (3, 300, 400)


@pytest.mark.parametrize("image_size", [64, (48, 96)])
@pytest.mark.parametrize("augmentation", ["default", "strong", "randaugment"])
def test_no_crop_is_enlarged(augmentation, image_size):
    """Drawn from the transform that trains: the smallest crops come close to the network's size, and never below."""
    transform = train_transform(augmentation, image_size)
    view = next(part for part in transform.transforms if isinstance(part, RandomView))
    torch.manual_seed(0)
    drawn = [view.draw(*pixels_needed(image_size, 0.875, augmentation)) for _ in range(500)]
    smallest = [min(getattr(part, side) for part in drawn) for side in ("height", "width")]
    for least, side in zip(smallest, height_and_width(image_size), strict=True):
        assert side - 1 <= least < 1.1 * side  # sides are rounded


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of 200 pixels, of which a quarter is decoded at 32."""
    root = write_toy_folder(tmp_path_factory.mktemp("reduced") / "photos", n=24, num_classes=2, image_size=200)
    for path in sorted(root.rglob("*.png")):
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    return root


OPTIONS = {"image_size": 32, "batch_size": 4, "val_split": 0.5, "num_workers": 0}


def test_a_data_module_reduces_only_beside_its_own_transforms(photos):
    needed = {"train_transforms": (53, 53), "eval_transforms": (37, 37)}
    data = ImageDataModule(photos, decode="reduced", **OPTIONS)
    assert {name: data.pixels_needed(name) for name in needed} == needed
    for other in (
        ImageDataModule(photos, **OPTIONS),
        ImageDataModule(photos, decode="reduced", in_chans=1, **OPTIONS),
        ImageDataModule(photos, decode="reduced", train_transforms=v2.CenterCrop(32),
                        eval_transforms=v2.CenterCrop(32), **OPTIONS),
    ):  # fmt: skip
        assert [other.pixels_needed(name) for name in needed] == [None, None]
    with pytest.raises(autotimm.UsageError, match="`decode` of ImageDataModule must be one of reduced, full"):
        ImageDataModule(photos, decode="half", **OPTIONS)


def test_a_run_predicts_and_repeats_what_it_was_trained_on(photos, tmp_path):
    options = {"backbone": "test_resnet", "pretrained": False, "epochs": 1, "threads": 1, "progress": False, **OPTIONS}
    run = autotimm.fit(photos, out=tmp_path, **options)
    spec = run.model().spec
    assert spec is not None
    assert spec.decode == "reduced"
    with_workers = autotimm.fit(photos, out=tmp_path, name="workers", **options | {"num_workers": 2})
    ledgers = [(each.path / "ledger.jsonl").read_bytes() for each in (run, with_workers)]
    assert ledgers[0] == ledgers[1]
    assert run.verify().verdict == "identical"
    full = autotimm.fit(photos, out=tmp_path, name="full", decode="full", **options)
    assert (full.path / "ledger.jsonl").read_bytes() != ledgers[0]


def test_prediction_decodes_as_evaluation_did(photos, tmp_path):
    data = ImageDataModule(photos, decode="reduced", **OPTIONS)
    task = autotimm.ImageClassifier("test_resnet", num_classes=2)
    autotimm.AutoTrainer(1, threads=1, run_dir=tmp_path / "run", enable_progress_bar=False).fit(task, datamodule=data)
    validated = next(iter(data.val_dataloader()))
    path = photos / validated.ids[0]
    (image,) = (batch.images[0] for batch in predict_loader([path], task.spec, notices=[], num_workers=0))
    assert image.equal(validated.images[0])


def test_a_record_from_before_decodes_in_full(tmp_path):
    config = FitConfig(path=str(tmp_path))
    assert config.decode == "reduced"
    record = {"record": "2", "path": str(tmp_path), "task": "classification"}
    assert FitConfig.layered([("file config.yaml", record)]).decode == "full"
