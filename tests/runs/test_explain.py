"""Explanations: a planted patch is found, formulas agree with plain ones, and what does not fit is refused."""

import csv
import json
from math import isnan

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import autotimm
from autotimm.attribution import METHODS, ShuffledWeights, attribute
from autotimm.attribution.feature_taps import grid_of, tapped
from autotimm.cli.explain import METHODS as OFFERED
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_objects, write_toy_segmentation
from autotimm.data.transforms.image_transforms import eval_placement, eval_transform
from autotimm.errors import DataError, UsageError
from autotimm.models.detection import build_detector
from autotimm.types import ExplainedScore, ObjectPrediction, PixelPrediction
from dense import squares
from training import classifier, small_fit

SIZE = 128
PATCH = slice(64, 96), slice(32, 64)  # rows and columns; one place of the last feature map


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise; the class is the color of a square at one place, all else is the same."""
    folder = tmp_path_factory.mktemp("planted") / "photos"
    drawn = np.random.default_rng(0)
    for split, count in {"train": 12, "val": 6}.items():
        for name, color in {"blue": (0, 0, 255), "red": (255, 0, 0)}.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = drawn.integers(90, 150, (SIZE, SIZE, 3)).astype(np.uint8)
                pixels[PATCH] = color
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos):
    return small_fit(photos, photos.parent / "runs", name="planted", image_size=SIZE, epochs=6, val_split=None, lr=3e-3)


@pytest.fixture(scope="module")
def vit(photos):
    return small_fit(photos, photos.parent / "runs", name="vit", backbone="test_vit", image_size=64, val_split=None)


def test_the_planted_patch_is_found(run, photos):
    files = sorted((photos / "val").rglob("*.png"))[::6]
    assert run.metrics["val/accuracy"] == 1
    for method, least in (("gradcam", 3), ("integrated-gradients", 4)):
        for one in run.explain(files, method=method):
            places, row = np.clip(np.nan_to_num(one.map), 0, None), one.faithfulness
            scale = places.shape[0] / SIZE
            rows, columns = (slice(round(part.start * scale), round(part.stop * scale)) for part in PATCH)
            share, area = places[rows, columns].sum() / places.sum(), (32 / SIZE) ** 2
            assert share > least * area, f"{method}: {share:.2f} of the map lies in {area:.2f} of the image"
            assert row.deletion < row.random_deletion
            assert one.label == one.id.rsplit("/", 2)[-2]


def test_two_calls_write_the_same_bytes(run, photos, tmp_path):
    files = sorted((photos / "val").rglob("*.png"))[::6]
    run.explain(files, tmp_path / "a")
    run.explain(files[::-1], tmp_path / "b")
    run.explain(files, tmp_path / "c")
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert sorted(name.suffix for name in names) == [".csv", ".npy", ".npy", ".png", ".png"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
        if name.suffix != ".csv":  # whose lines are in the order of the images
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_command_line_and_its_files(run, photos, tmp_path, capfd):
    image = sorted((photos / "val").rglob("*.png"))[0]
    (expected,) = run.explain(image)
    words = ["explain", str(run.path), str(image)]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    (plain,) = answer["explanations"]
    assert (plain["label"], plain["score"], plain["method"]) == (expected.label, expected.score, "gradcam")
    assert plain["score"] == run.predict(image)[0].scores[plain["label"]]
    picture, numbers = plain["files"]
    assert np.array_equal(np.load(numbers, allow_pickle=False), expected.map, equal_nan=True)
    with Image.open(picture) as page:
        assert page.width > 2 * 448
    (row,) = csv.DictReader((tmp_path / "out" / "explanations.csv").read_text().splitlines())
    assert float(row["deletion"]) == pytest.approx(expected.faithfulness.deletion, rel=1e-5)
    assert main(words) == 0
    captured = capfd.readouterr()
    assert captured.out.startswith("path,label,score,method,deletion")
    assert "sanity check: rank correlation with shuffled weights" in captured.err + captured.out
    assert main([*words, "--checks", "false", "--target", "red"]) == 0
    (row,) = csv.DictReader(capfd.readouterr().out.splitlines())
    assert (row["label"], row["deletion"]) == ("red", "")
    assert main([*words, "--out", str(tmp_path / "out")]) == 2


def test_gradcam_agrees_with_a_plain_computation():
    network = classifier(image_size=64).eval().network
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    score = ExplainedScore("1", 0.0, lambda images: network(images)[:, 1], lambda images: network(images)[:, 1])
    found = attribute(network, score, image, "gradcam").values
    features = network.backbone.forward_features(network.normalize(image)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network.head(network.backbone.forward_head(features))[0, 1], features)
    cells = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1, keepdim=True).detach()
    plain = F.interpolate(cells, (64, 64), mode="bilinear", align_corners=False)[0, 0]
    assert torch.allclose(found, plain, atol=1e-6)
    assert "forward_features" not in vars(network.backbone)


def test_attention_rollout_needs_a_backbone():
    network, image = torch.nn.Flatten(), torch.zeros(1, 3, 8, 8)
    score = ExplainedScore("1", 0.0, network, network)
    with pytest.raises(UsageError, match=r"attention-rollout needs a timm backbone. Flatten has none"):
        attribute(network, score, image, "attention-rollout")


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_integrated_gradients_are_complete(backbone):
    network = classifier(backbone, image_size=64).eval().network
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    score = ExplainedScore("1", 0.0, lambda images: network(images)[:, 1], lambda images: network(images)[:, 1])
    values, completeness = attribute(network, score, image, "integrated-gradients")
    gray = network.normalize.mean.expand_as(image)
    with torch.no_grad():
        difference = float(score.logit(image) - score.logit(gray))
    assert float(values.sum()) == pytest.approx(difference, rel=0.02)
    assert completeness < 0.02


def test_rollout_follows_the_attention_of_every_block(vit, photos):
    image = sorted((photos / "val").rglob("*.png"))[0]
    (one,) = vit.explain(image, method="attention-rollout")
    assert one.map.shape == (73, 73)
    seen = one.map[~np.isnan(one.map)]
    assert seen.size == 64 * 64
    assert (seen >= 0).all()
    assert one.faithfulness.shuffled_head == pytest.approx(1)
    blocks = vit.model().backbone.blocks
    assert all(block.attn.fused_attn for block in blocks)
    (cam,) = vit.explain(image)
    assert cam.method == "gradcam"
    assert not isnan(cam.faithfulness.insertion)


def test_shuffled_weights_come_back():
    task = classifier().eval()
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    shuffled = ShuffledWeights(task.network, task.head, 42)
    with shuffled.head():
        changed = {name for name, value in task.network.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {"head.weight", "head.bias"}
    with shuffled.all():
        name, weight = next(iter(task.network.named_parameters()))
        assert not torch.equal(weight, before[name])
        assert torch.equal(weight.flatten().sort().values, before[name].flatten().sort().values)
    assert all(torch.equal(value, before[name]) for name, value in task.network.state_dict().items())


@pytest.mark.parametrize("arch", ["fcos", "retinanet", "faster_rcnn", "mask_rcnn"])
def test_scores_of_objects_are_functions_of_the_pixels(arch):
    network = build_detector(arch, "test_resnet", 2, image_size=64, width=64, score_threshold=0.0).eval()
    image = squares(1)[0]
    with torch.no_grad():
        (found,) = network(image)
    assert len(found["scores"]) > 10
    for at in (0, 5, 10):
        score = network.object_score(image, {name: values[at] for name, values in found.items()})
        pair = torch.cat([image, image]).float() / 255
        with torch.no_grad():
            assert score.probability(pair).tolist() == pytest.approx([float(found["scores"][at])] * 2, abs=1e-5)
        pair.requires_grad_()
        score.logit(pair)[1].backward()
        assert not pair.grad[0].any()
        assert pair.grad[1].any()


@pytest.mark.parametrize(
    ("task", "arch"), [("detection", "fcos"), pytest.param("instance", None, marks=pytest.mark.slow)]
)
def test_objects_of_a_run(task, arch, tmp_path):
    data = write_toy_objects(tmp_path / "data", splits={"train": 8, "val": 2}, image_size=64)
    run = small_fit(data, tmp_path / "runs", task=task, arch=arch, image_size=64, width=64, batch_size=4,
                    val_split=None, threshold=0.05, epochs=2)  # fmt: skip
    files = sorted((data / "val").glob("*.png"))
    predicted = [one for one in run.predict(files) if isinstance(one, ObjectPrediction) and one.labels]
    found = run.explain(files, tmp_path / "out", checks=arch == "fcos")
    assert [one.id for one in found] == [one.id for one in predicted]
    for one, prediction in zip(found, predicted, strict=True):
        assert (one.label, one.score, one.box) == (prediction.labels[0], prediction.scores[0], prediction.boxes[0])
        assert one.map.shape == (64, 64)
    rows = [*csv.DictReader((tmp_path / "out" / "explanations.csv").read_text().splitlines())]
    assert [float(row["x2"]) for row in rows] == pytest.approx([one.box[2] for one in found])


def test_regions_and_unknown_classes(tmp_path):
    data = write_toy_segmentation(tmp_path / "data", splits={"train": 6, "val": 2}, image_size=64)
    run = small_fit(data, tmp_path / "runs", image_size=64, width=64, batch_size=4, val_split=None, epochs=2)
    file = sorted(path for path in (data / "val").glob("*.png") if "mask" not in path.name)[0]
    (prediction,) = run.predict(file)
    assert isinstance(prediction, PixelPrediction)
    (one,) = run.explain(file, tmp_path / "out")
    wanted = next((name for name in prediction.labels if name != "background"), "background")
    assert one.label == wanted
    assert 0 < one.score <= 1
    absent = set(run.data().spec.class_names) - {*prediction.labels}
    if absent:
        with pytest.raises(DataError, match="nothing to explain"):
            run.explain(file, target=sorted(absent)[0])


def test_what_does_not_fit_is_refused(run, photos, tmp_path):
    image = sorted((photos / "val").rglob("*.png"))[0]
    with pytest.raises(UsageError, match=r"needs a ViT .* ResNet has no attention. Take gradcam"):
        run.explain(image, method="attention-rollout")
    with pytest.raises(UsageError, match=r"`target` of explain must be a class of the model. Got 'redd' .*'red'"):
        run.explain(image, target="redd")
    with pytest.raises(UsageError, match="`method` of explain"):
        run.explain(image, method="lime")
    with pytest.raises(DataError):
        run.explain(tmp_path)
    assert ("auto", *METHODS) == OFFERED


class OwnTask(autotimm.ImageClassifier):
    explained = autotimm.Task.explained


def test_tasks_of_ones_own_say_what_they_lack():
    task = OwnTask("test_resnet", 2, pretrained=False)
    with pytest.raises(UsageError, match=r"OwnTask has no score to explain. Define its method `explained`"):
        task.explained(None, None, None)


def test_placement_is_where_the_transform_puts_pixels():
    for height, width, size, crop in ((50, 70, 32, 0.875), (64, 64, 32, 1.0), (90, 41, (24, 32), 0.9)):
        rows = torch.arange(height).mul(255 / height)[:, None].expand(height, width)
        columns = torch.arange(width).mul(255 / width)[None].expand(height, width)
        shown = eval_transform(size, crop)(torch.stack([rows, columns, rows]).round().to(torch.uint8)).double()
        place = eval_placement(height, width, size, crop)
        down = (torch.arange(shown.shape[1]) + 0.5 - place.top) / place.shown_height * height - 0.5
        along = (torch.arange(shown.shape[2]) + 0.5 - place.left) / place.shown_width * width - 0.5
        inner = slice(2, -2)
        assert (shown[0, inner, 5] * height / 255 - down[inner]).abs().max() < 0.6
        assert (shown[1, 5, inner] * width / 255 - along[inner]).abs().max() < 0.6


def test_exif_turns_and_oblong_photographs(run, photos, tmp_path):
    pixels = np.full((40, 100, 3), 120, np.uint8)
    upright = Image.fromarray(pixels)
    upright.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "b.png", exif=exif)
    a, b = run.explain([tmp_path / "a.png", tmp_path / "b.png"], checks=False)
    assert a.size == b.size == (40, 100)
    assert np.array_equal(a.map, b.map, equal_nan=True)
    assert a.map.shape == (146, 365)
    assert np.isnan(a.map[:, :112]).all()


@pytest.mark.parametrize(
    ("tokens", "height", "width", "expected"),
    [(197, 224, 224, (1, 14, 14)), (196, 224, 224, (0, 14, 14)), (9, 32, 64, (1, 2, 4)), (7, 64, 64, (3, 2, 2))],
)
def test_grids_of_tokens(tokens, height, width, expected):
    assert grid_of(tokens, height, width) == expected


def test_networks_of_another_form_have_no_tap():
    with tapped(torch.nn.Flatten(), 8, 8) as tap:
        assert tap is None
