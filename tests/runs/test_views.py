"""``predict(tta=...)`` for all tasks: mirrored and in other sizes, with the same bits alone or among others."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as transforms

from autotimm import ImageClassifier
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.errors import UsageError
from autotimm.tasks.views import View, check_sizes, merged_objects, views_of
from autotimm.types import Placement
from training import small_fit

SIZE = 96
WRITERS = {"boxes": write_toy_objects, "masks": write_toy_objects, "pixels": write_toy_segmentation}
TASKS = {"boxes": {"task": "detection"}, "masks": {"task": "instance"}, "pixels": {}}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Pictures without any symmetry, as they are and mirrored; one is wider than high."""
    folder, drawn = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, shape in (("a", (SIZE, SIZE)), ("b", (SIZE, SIZE)), ("c", (SIZE, 2 * SIZE))):
        image = Image.fromarray(drawn.integers(0, 256, (*shape, 3), np.uint8))
        image.save(folder / f"{name}.png")
        ImageOps.mirror(image).save(folder / f"{name}-mirrored.png")
    return folder


@pytest.fixture(scope="module", params=WRITERS)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    data = WRITERS[request.param](folder / "data", splits={"train": 4, "val": 2}, image_size=SIZE)
    options = {"image_size": SIZE, "batch_size": 2, "val_split": None, "width": 64, "eval_batch_size": 2}
    return small_fit(data, folder / "runs", calibrate=None, **options, **TASKS[request.param])


def threshold(run):
    return None if run.config["task"] == "segmentation" else 0.02


def plain(prediction):
    return prediction._replace(id="")


@pytest.mark.parametrize("tta", ["flip", "multiscale"])
def test_bits_do_not_depend_on_the_other_images(run, images, tta):
    every = {each.id: each for each in run.predict(images, tta=tta, threshold=threshold(run))}
    (alone,) = run.predict([images / "c.png"], tta=tta, threshold=threshold(run))
    assert plain(alone) == plain(every["c.png"])
    once = run.predict([images / "c.png"], threshold=threshold(run))[0]
    assert plain(once) != plain(alone), "views that change nothing prove nothing"


def test_a_mirrored_image_has_mirrored_predictions(run, images):
    found = {each.id: each for each in run.predict(images, tta="flip", threshold=threshold(run))}
    for name, width in (("a", SIZE), ("b", SIZE), ("c", 2 * SIZE)):
        one, other = found[f"{name}.png"], found[f"{name}-mirrored.png"]
        if run.config["task"] == "segmentation":
            # The two views are added in the other order, which can change the last bit where two classes are alike.
            assert (one.mask() == other.mask().flip(-1)).float().mean() > 0.999
            continue
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
        assert one.scores, "no objects prove nothing"
        for (x1, y1, x2, y2), box in zip(one.boxes, other.boxes, strict=True):
            assert box == pytest.approx((width - x2, y1, width - x1, y2), abs=1e-2)


def test_pixels_have_the_mean_of_the_probabilities(run, images):
    if run.config["task"] != "segmentation":
        pytest.skip("objects are merged")
    task = run.model()
    image = transforms.to_dtype(transforms.pil_to_tensor(Image.open(images / "a.png")), torch.uint8)[None]
    sizes = [view[:2] for view in views_of("multiscale", SIZE)]
    assert sizes == [(96, 96), (64, 64), (128, 128)]
    mean = torch.zeros(1, len(task.class_names), SIZE, SIZE)
    with torch.no_grad():
        for size in sizes:
            shown = image if size == (SIZE, SIZE) else transforms.resize(image, list(size), antialias=True)
            probabilities = task.infer(shown).softmax(1)
            mean += torch.nn.functional.interpolate(probabilities, (SIZE, SIZE), mode="bilinear") / len(sizes)
    found = run.predict([images / "a.png"], tta="multiscale")[0].mask()
    assert (found == mean.argmax(1)[0]).float().mean() > 0.999


def test_boxes_of_two_views_are_merged():
    first, mirrored, larger = View(100, 200), View(100, 200, mirrored=True), View(200, 400)
    masks = torch.zeros(1, 2, 2)
    masks[0, 0, 0] = 1
    found = [
        {"boxes": torch.tensor([[10.0, 10, 50, 50]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([0]),
         "masks": masks},
        {"boxes": torch.tensor([[150.0, 11, 190, 50]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([0]),
         "masks": masks},
        {"boxes": torch.tensor([[20.0, 20, 100, 100]]), "scores": torch.tensor([0.7]), "labels": torch.tensor([1]),
         "masks": masks},
    ]  # fmt: skip
    place = Placement(100, 200, 0, 0, 100, 200)
    merged = merged_objects(found, (first, mirrored, larger), place, 0.5, 100)
    assert merged["boxes"].tolist() == [[10, 11, 50, 50], [10, 10, 50, 50]]  # one of each class
    assert merged["scores"].tolist() == pytest.approx([0.9, 0.7])
    assert merged["masks"][0].tolist() == [[0, 1], [0, 0]]
    assert len(merged_objects(found, (first, mirrored, larger), place, 0.5, 1)["boxes"]) == 1


def test_classes_in_other_sizes(tmp_path):
    photos = write_toy_folder(tmp_path / "photos", n=16, num_classes=3, image_size=32, seed=7)
    run = small_fit(photos, tmp_path, calibrate=None)
    assert views_of("multiscale", 32) == (View(32, 32), View(64, 64))
    task, paths = run.model(), sorted(photos.rglob("*.png"))[:3]
    found = run.predict(paths, tta="multiscale")
    assert run.predict(paths[1:2], tta="multiscale")[0].scores == found[1].scores
    images = next(iter(run.data().predict_loader(paths))).images
    with torch.no_grad():
        views = [task.infer(images), task.infer(transforms.resize(images, [64, 64], antialias=True))]
    mean = torch.stack(views).softmax(-1).mean(0)
    assert torch.allclose(torch.tensor([[*each.scores.values()] for each in found]), mean, atol=1e-5)


def test_sizes_that_a_network_does_not_take_are_refused():
    task = ImageClassifier("mixer_s16_224", 3, pretrained=False, image_size=96)  # mixes a fixed number of patches
    with pytest.raises(UsageError, match=r"does not take images of 64 x 64 pixels.*Give flip"):
        check_sizes(task.network, views_of("multiscale", 96), 3)
    check_sizes(task.network, views_of("flip", 96), 3)


def test_tiles_are_refused(images, tmp_path, capfd):
    data = write_toy_segmentation(tmp_path / "data", splits={"train": 2, "val": 2}, image_size=SIZE)
    run = small_fit(data, tmp_path / "runs", tile=64, image_size=None, batch_size=2, val_split=None, width=64)
    assert main(["predict", str(run.path), str(images), "--tta", "flip"]) == 2
    assert "must be left out for images in tiles" in capfd.readouterr().err
