"""Detectors: their outputs, that they learn, and that detections do not depend on the other images."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, box_iou

from autotimm.errors import ModelError, UsageError
from autotimm.models import DETECTORS, build_detector
from autotimm.models.detection.detector import Detector
from autotimm.records.digest import state_digest
from dense import images, nothing, squares

LOSSES = {
    "fcos": {"classification", "box", "centerness"},
    "retinanet": {"classification", "box"},
    "faster_rcnn": {"objectness", "region", "classification", "box"},
    "mask_rcnn": {"objectness", "region", "classification", "box", "mask"},
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(arch: str, backbone: str = "test_resnet", **options) -> Detector:
    return build_detector(arch, backbone, 2, **{"image_size": 64, "width": 64, **options})


def train(network: Detector, steps: int, number: int = 4) -> tuple[Tensor, list[dict[str, Tensor]]]:
    pictures, targets = squares(number)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    torch.manual_seed(0)
    network.train()
    for _ in range(steps):
        loss = sum(network(pictures, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return pictures, targets


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("arch", DETECTORS)
def test_losses_and_detections_have_the_documented_form(arch: str, backbone: str) -> None:
    network = build(arch, backbone, score_threshold=0.0, max_objects=7)
    losses = network.train()(*squares(3))
    assert losses.keys() == LOSSES[arch]
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        detections = network.eval()(images(3).float() / 255)
    assert len(detections) == 3
    for image in detections:
        assert image["boxes"].shape == (7, 4)
        assert image["scores"].tolist() == sorted(image["scores"].tolist(), reverse=True)
        assert set(image["labels"].tolist()) <= {0, 1}
        assert ("masks" in image) == (arch == "mask_rcnn")
        assert 0 <= image["boxes"].min() <= image["boxes"].max() <= 64
    if arch == "mask_rcnn":
        assert detections[0]["masks"].shape == (7, 28, 28)
        assert 0 <= detections[0]["masks"].min() <= detections[0]["masks"].max() <= 1


@pytest.mark.parametrize("arch", ["fcos", *(pytest.param(arch, marks=pytest.mark.slow) for arch in DETECTORS[1:])])
def test_detectors_learn_boxes_labels_and_masks(arch: str) -> None:
    network = build(arch)
    pictures, targets = train(network, 50, number=2)
    with torch.no_grad():
        detections = network.eval()(pictures)
    for image, target in zip(detections, targets, strict=True):
        iou, best = box_iou(target["boxes"], image["boxes"][image["scores"] > 0.3]).max(dim=1)
        assert iou.min() > 0.5
        assert torch.equal(image["labels"][best], target["labels"])
        if arch == "mask_rcnn":  # the squares fill their boxes
            assert image["masks"][best][:, 8:20, 8:20].mean() > 0.8


@pytest.mark.parametrize("arch", DETECTORS)
def test_images_without_objects_have_finite_losses(arch: str) -> None:
    network = build(arch).train()
    mixed = [squares(1)[1][0], nothing()]
    for targets in (mixed, [nothing(), nothing()]):
        network.zero_grad()
        losses = network(images(2), targets)
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert all(value.grad is None or value.grad.isfinite().all() for value in network.parameters())


def test_images_without_detections_have_empty_tensors() -> None:
    with torch.no_grad():
        detections = build("mask_rcnn", score_threshold=0.99).eval()(images(1))[0]
    assert {name: tuple(value.shape) for name, value in detections.items()} == {
        "boxes": (0, 4), "scores": (0,), "labels": (0,), "masks": (0, 28, 28)
    }  # fmt: skip


@pytest.mark.parametrize("backbone", ["test_resnet", pytest.param("test_vit", marks=pytest.mark.slow)])
@pytest.mark.parametrize("arch", DETECTORS)
def test_detections_do_not_depend_on_the_other_images(arch: str, backbone: str) -> None:
    network = build(arch, backbone, score_threshold=0.001)
    train(network, 3)
    pictures, _ = squares(4)
    others = torch.cat([torch.zeros_like(pictures[:1]), images(1, seed=5), pictures[2:3], pictures[:1]])
    with torch.no_grad():
        first, second = network.eval()(pictures), network(others)
    for a, b in ((first[2], second[2]), (first[0], second[3])):
        assert len(a["boxes"]) > 0
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("arch", DETECTORS)
def test_training_is_reproducible_bit_for_bit(arch: str) -> None:
    digests = set()
    for _ in range(2):
        network = build(arch, seed=3)
        train(network, 3)
        digests.add(state_digest(network.state_dict()))
    assert len(digests) == 1


def test_roi_heads_match_torchvision() -> None:
    """Losses and detections are those of torchvision's RoIHeads.forward with its own pooling."""
    network = build("mask_rcnn", score_threshold=0.0)
    pictures, targets = train(network, 2)
    heads = copy.deepcopy(network.heads)
    heads.box_roi_pool = MultiScaleRoIAlign(list("0123"), 7, 2)
    heads.mask_roi_pool = MultiScaleRoIAlign(list("0123"), 14, 2)
    with_background = [{**target, "labels": target["labels"] + 1} for target in targets]
    network.eval()
    with torch.no_grad():
        maps = network.pyramid(network.maps(pictures))
        regions, _ = network._propose(maps, (64, 64))
        named = OrderedDict((str(index), level) for index, level in enumerate(maps))
        expected = heads.eval()(named, list(regions), [(64, 64)] * 4)[0]
        for detections, reference in zip(network.detect(maps, (64, 64)), expected, strict=True):
            torch.testing.assert_close(detections["boxes"], reference["boxes"])
            assert torch.equal(detections["labels"] + 1, reference["labels"])
            torch.testing.assert_close(detections["masks"], reference["masks"][:, 0])
        network.proposals.train()
        network.heads.train()
        torch.manual_seed(5)
        losses = network.losses(maps, (64, 64), targets)
        torch.manual_seed(5)
        regions, _ = network._propose(maps, (64, 64), with_background)
        reference = heads.train()(named, regions, [(64, 64)] * 4, with_background)[1]
    for name, torchvision_name in (
        ("classification", "loss_classifier"),
        ("box", "loss_box_reg"),
        ("mask", "loss_mask"),
    ):
        torch.testing.assert_close(losses[name], reference[torchvision_name])


def test_invalid_targets_are_rejected() -> None:
    network = build("faster_rcnn").train()
    with pytest.raises(UsageError, match=r"must be those of its 2 images. Got none instead. Give one dictionary"):
        network(images(2))
    with pytest.raises(UsageError, match=r"Got those of 1 instead"):
        network(images(2), [nothing()])
    with pytest.raises(UsageError, match=r"must have `boxes` of shape \(K, 4\)"):
        network(images(1), [{"boxes": torch.zeros(3)}])
    flat = {"boxes": torch.tensor([[4.0, 4.0, 4.0, 9.0]]), "labels": torch.tensor([0])}
    with pytest.raises(UsageError, match=r"At least one of them has no area. Remove it"):
        network(images(1), [flat])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "retina"}, r"`arch` of a detector must be one of fcos.* Did you mean 'retinanet'"),
        ({"num_classes": 0}, r"`num_classes` of a detector must be an integer of at least 1"),
        ({"width": 100}, r"`width` of a detector must be a multiple of 64"),
        ({"score_threshold": 1.0}, r"`score_threshold` of a detector must be in \[0, 1\)"),
        ({"max_objects": 0}, r"`max_objects` of a detector must be an integer of at least 1"),
        ({"drop_path_rate": 2.0}, r"`drop_path_rate` of test_resnet must be in"),
    ],
)
def test_invalid_arguments_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_detector(**{"arch": "fcos", "backbone": "test_resnet", "num_classes": 2, "image_size": 64, **options})


def test_unknown_backbones_get_a_suggestion() -> None:
    with pytest.raises(ModelError, match=r"Did you mean"):
        build_detector("fcos", "resnet81", 2)


def test_width_sets_the_sizes_of_heads_and_samples() -> None:
    network = build("mask_rcnn", width=128)
    assert network.heads.fg_bg_sampler.batch_size_per_image == 256
    assert network.proposals.fg_bg_sampler.batch_size_per_image == 128
    assert network.heads.box_head.fc6.out_features == 512
    default = build("faster_rcnn", width=256)
    assert default.heads.fg_bg_sampler.batch_size_per_image == 512
    assert default.proposals._pre_nms_top_n == {"training": 2000, "testing": 1000}


@pytest.mark.parametrize("arch", DETECTORS)
def test_coordinates_have_full_precision_under_autocast(arch: str) -> None:
    network = build(arch, score_threshold=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = network.train()(*squares(2))
        sum(losses.values()).backward()
        with torch.no_grad():
            detections = network.eval()(images(2))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {image["boxes"].dtype for image in detections} == {torch.float32}
    assert (detections[0]["boxes"] != detections[0]["boxes"].bfloat16()).any()
