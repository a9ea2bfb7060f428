"""Boxes, masks and regions move with the pixels, and find back to those of the original image."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from autotimm.constants import IGNORE_INDEX
from autotimm.data.annotations.objects import Annotation, ObjectTable
from autotimm.data.dense import DetectionDataModule, InstanceSegmentationDataModule, SegmentationDataModule
from autotimm.data.toy import write_toy_objects, write_toy_segmentation
from autotimm.data.transforms.spatial_transforms import (
    GRAY,
    SPATIAL_AUGMENTATIONS,
    SpatialTransform,
    place,
    spatial_augmentation,
)
from autotimm.errors import DataError, UsageError
from autotimm.metrics import MeanAP
from autotimm.tasks.letterbox import paste, to_original
from autotimm.types import Sample

SIDE = 64
SIZES = [(37, 91), (91, 37), (64, 64), (1, 200), (33, 32), (640, 427), (5, 7)]


def letterbox(transform=None, side: int = SIDE, **options) -> SpatialTransform:
    return SpatialTransform(transform, side, "train_transforms", "a test", **options)


def scene(height: int, width: int, boxes: list[list[int]], crowd: list[bool] | None = None) -> Sample:
    """Bright rectangles on black, each of a class of its own, with masks and boxes around them."""
    image, masks = torch.zeros(3, height, width, dtype=torch.uint8), torch.zeros(len(boxes), height, width)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
        image[:, y1:y2, x1:x2] = 255
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=(height, width)
        ),
        "labels": torch.arange(len(boxes)),
        "crowd": torch.tensor(crowd or [False] * len(boxes), dtype=torch.bool),
        "masks": tv_tensors.Mask(masks.to(torch.uint8)),
    }
    return Sample(tv_tensors.Image(image), target, "1.png")


def tight(mask: Tensor) -> Tensor:
    """The smallest box around a mask."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


class TestLetterbox:
    @pytest.mark.parametrize(("height", "width"), SIZES)
    @pytest.mark.parametrize("side", [64, 65])
    def test_boxes_can_be_mapped_back(self, height, width, side):
        box = [width // 5, height // 3, max(width // 5 + 1, 4 * width // 5), max(height // 3 + 1, 2 * height // 3)]
        # A box that is thinner than a pixel of the square is dropped: draw one that is not.
        scale = side / max(height, width)
        box[3] = min(height, max(box[3], box[1] + int(1 / scale) + 1))
        moved = letterbox(side=side)(scene(height, width, [box]))
        assert moved.image.shape == (3, side, side)
        if len(moved.target["boxes"]):
            back = to_original(moved.target["boxes"], moved.placement)
            assert (back - torch.tensor([box]).float()).abs().max() < 1
        else:
            assert min(height, width) * scale < 1

    @pytest.mark.parametrize(("height", "width"), [(37, 91), (91, 37), (63, 65), (640, 427)])
    def test_pixels_and_box_stay_together(self, height, width):
        box = [width // 5, height // 3, 4 * width // 5, 2 * height // 3]
        moved = letterbox()(scene(height, width, [box]))
        pixel = max(1.0, max(height, width) / SIDE)  # of the square, in pixels of the original
        for visible in (moved.image[0] > GRAY + 20, moved.target["masks"][0].bool()):
            back = to_original(tight(visible)[None], moved.placement)[0]
            assert (back - torch.tensor(box).float()).abs().max() <= pixel

    def test_the_border_is_gray_and_unknown(self):
        sample = Sample(tv_tensors.Image(torch.zeros(3, 20, 60, dtype=torch.uint8)),
                        tv_tensors.Mask(torch.full((20, 60), 3, dtype=torch.uint8)), "1.png")  # fmt: skip
        moved = letterbox()(sample)
        at = moved.placement
        inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        inside[at.top : at.top + at.shown_height, at.left : at.left + at.shown_width] = True
        assert (moved.image[:, ~inside] == GRAY).all()
        assert (moved.image[:, inside] == 0).all()
        assert moved.target.dtype == torch.int64
        assert (moved.target == torch.where(inside, 3, IGNORE_INDEX)).all()

    def test_masks_can_be_pasted_back(self):
        box = [11, 7, 70, 30]
        at = place(37, 91, SIDE)
        moved = letterbox()(scene(37, 91, [box])).target["boxes"]
        (mask,) = paste(torch.ones(1, 28, 28), to_original(moved, at), 37, 91)
        assert (tight(mask) - torch.tensor(box).float()).abs().max() <= 1
        assert paste(torch.ones(0, 28, 28), torch.zeros(0, 4), 37, 91).shape == (0, 37, 91)

    def test_boxes_are_clipped_to_the_image(self):
        at = place(20, 40, 40)
        back = to_original(torch.tensor([[-5.0, -5.0, 50.0, 50.0], [0.0, 0.0, 40.0, 9.0]]), at)
        assert back.tolist() == [[0, 0, 40, 20], [0, 0, 40, 0]]
        assert to_original(torch.zeros(0, 4), at).shape == (0, 4)

    def test_an_image_without_objects(self):
        moved = letterbox()(scene(37, 91, []))
        assert [tuple(moved.target[name].shape) for name in ("boxes", "labels", "crowd", "masks")] == [
            (0, 4), (0,), (0,), (0, SIDE, SIDE),
        ]  # fmt: skip

    def test_a_rotated_photograph_is_read_upright(self, tmp_path: Path):
        """Annotations are drawn on what viewers show: 40 wide, 60 high, for a file of 60 x 40 that says so."""
        pixels = torch.zeros(60, 40, 3, dtype=torch.uint8)
        pixels[10:20, 5:35] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees clockwise to show
        lying = Image.fromarray(pixels.numpy()).transpose(Image.Transpose.ROTATE_90)
        lying.save(tmp_path / "1.png", exif=exif)
        table = ObjectTable([tmp_path / "1.png"], ["1.png"], ["bar"], [[Annotation("bar", (5, 10, 35, 20))]])
        moved = letterbox()(table.load(0))
        assert moved.placement[:2] == (60, 40)
        visible = to_original(tight(moved.image[0] > 200)[None], moved.placement)[0]
        assert (visible - torch.tensor([5.0, 10.0, 35.0, 20.0])).abs().max() <= 1


TINY = [[10, 10, 410, 310], [500, 20, 504, 21], [300, 300, 302, 302]]  # of 640x480: the second and third under 1 px


def test_training_leaves_out_what_evaluation_must_find():
    sample = scene(480, 640, TINY, [False, False, True])
    assert letterbox()(sample).target["labels"].tolist() == [0]
    kept = letterbox(keep_all=True)(sample)
    assert {name: len(value) for name, value in kept.target.items()} == dict.fromkeys(sample.target, 3)
    assert to_original(kept.target["boxes"], kept.placement).tolist() == [pytest.approx(box, abs=1e-3) for box in TINY]
    assert kept.target["masks"].flatten(1).any(1).tolist() == [True, False, False]  # no center of a pixel is in them


def write_boxes(folder: Path, boxes: dict[str, list[list[int]]]) -> Path:
    """One image of 640x480 pixels per split, with boxes, as a COCO file each."""
    for split, of_split in boxes.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (640, 480)).save(folder / split / f"{split}.png")
        entries = [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for number, (x1, y1, x2, y2) in enumerate(of_split)
        ]
        content = {
            "images": [{"id": 1, "file_name": f"{split}.png"}],
            "annotations": entries,
            "categories": [{"id": 1, "name": "cat"}],
        }
        (folder / split / "coco.json").write_text(json.dumps(content))
    return folder


def small_objects(folder: Path, side: int, **boxes: list[list[int]]) -> DetectionDataModule:
    data = DetectionDataModule(
        write_boxes(folder, boxes), image_size=side, batch_size=1, num_workers=0, augmentation="none"
    )
    data.setup()
    data.notices[:] = [line for line in data.notices if "px" in line]
    return data


def test_every_true_object_is_in_the_truth_of_evaluation(tmp_path: Path):
    data = small_objects(tmp_path, SIDE, train=TINY, val=TINY, test=TINY)
    assert data.notices == [
        "6 of 9 objects are under 1 px (6 under 2 px) at image_size 64: give a larger --image-size, or --tile. They "
        "are counted in evaluation, and not learned in training."
    ]
    assert len(next(iter(data.train_dataloader())).targets[0]["boxes"]) == 1
    for loader in (data.val_dataloader(), data.test_dataloader()):
        (target,) = next(iter(loader)).targets
        assert len(target["boxes"]) == 3
        best = {"boxes": target["boxes"][:1], "labels": target["labels"][:1], "scores": torch.ones(1)}
        score = MeanAP(1)
        score.update([best], [{"boxes": target["boxes"], "labels": target["labels"]}])
        assert score.compute()["recall"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("side", "said"),
    [(640, []), (320, ["1 of 4 objects are under 1 px (2 under 2 px)"]), (500, ["1 of 4 objects are under 1 px"])],
)
def test_objects_that_are_small_for_the_network_are_counted(tmp_path: Path, side: int, said: list[str]):
    line = [[0, 0, 30, 30], [10, 10, 410, 310], [0, 5, 640, 6], [20, 20, 23, 24]]
    if side == 640:
        line = line[:2]
    notices = small_objects(tmp_path, side, train=line).notices
    assert len(notices) == len(said)
    assert all(notice.startswith(start) for notice, start in zip(notices, said, strict=True))
    assert all(f"at image_size {side}: give a larger --image-size" in notice for notice in notices)


def test_objects_between_one_and_two_pixels_are_counted_alone(tmp_path: Path):
    (notice,) = small_objects(tmp_path, 320, train=[[0, 0, 30, 30], [20, 20, 23, 24]]).notices
    assert notice == "1 of 2 objects are under 2 px at image_size 320: give a larger --image-size, or --tile."


def test_nothing_left_to_learn_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"^All 2 objects of the training images are under 1 px at image_size 64: give"):
        small_objects(tmp_path, SIDE, train=TINY[1:])


def disc(side: int) -> Tensor:
    """A disc off the middle, whose pixels are those with their center in it (side, side)."""
    at = torch.arange(side) + 0.5
    return (at[:, None] - 0.45 * side) ** 2 + (at - 0.55 * side) ** 2 < (0.2 * side) ** 2


def middle(drawn: Tensor) -> Tensor:
    """The mean of the pixel centers of a drawn shape."""
    return drawn.nonzero().double().mean(0) + 0.5


@pytest.mark.parametrize("name", SPATIAL_AUGMENTATIONS)
@pytest.mark.parametrize("side", [270, 333, 500])
def test_masks_lie_on_their_image(name, side):
    """``NEAREST`` of torchvision puts them half a pixel of the square beside it, in the letterbox and in the jitter."""
    image = tv_tensors.Image(255 * disc(side).to(torch.uint8).expand(3, -1, -1))
    masks = tv_tensors.Mask(torch.stack([disc(side).to(torch.uint8)]))
    rows, columns = disc(side).any(1).nonzero(), disc(side).any(0).nonzero()
    corners = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    boxes = tv_tensors.BoundingBoxes(torch.tensor([corners]).float(), format="XYXY", canvas_size=(side, side))
    move = letterbox(spatial_augmentation(name, SIDE, "a test", IGNORE_INDEX))
    torch.manual_seed(0)
    beside = []
    for draw in range(30):
        state = torch.get_rng_state()
        moved = move(Sample(image, tv_tensors.Mask(masks[0]), "1.png"))
        shape = moved.target == 1
        if shape.sum() < 100 or any(edge.any() for edge in (shape[0], shape[-1], shape[:, 0], shape[:, -1])):
            continue  # cut off: the middle says nothing
        torch.set_rng_state(state)
        labels = {"labels": torch.zeros(1, dtype=torch.int64), "crowd": torch.zeros(1, dtype=torch.bool)}
        objects = move(Sample(image, {"boxes": boxes, "masks": masks, **labels}, "1.png"))
        assert torch.equal(objects.image, moved.image), "what is drawn does not depend on the target"
        assert torch.equal(objects.target["masks"][0] == 1, shape)
        (x1, y1, x2, y2), visible = objects.target["boxes"][0].tolist(), moved.image[0] > 128
        of_box, of_mask = torch.tensor([(y1 + y2) / 2, (x1 + x2) / 2]), middle(shape)
        assert (of_box - of_mask).abs().max() < 0.3, draw
        beside.append(middle(visible & (moved.target != IGNORE_INDEX)) - of_mask)
    assert len(beside) > 5
    assert torch.stack(beside).mean(0).abs().max() < 0.15


@pytest.mark.parametrize("size", [(1, 400), (400, 1)])
def test_a_line_of_pixels_does_not_vanish(size):
    sample = Sample(tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8)),
                    tv_tensors.Mask(torch.ones(size, dtype=torch.uint8)), "1.png")  # fmt: skip
    move = letterbox(spatial_augmentation("strong", SIDE, "a test", IGNORE_INDEX))
    torch.manual_seed(0)
    assert all((move(sample).target == 1).any() for _ in range(10))


class TestAugmentation:
    @pytest.mark.parametrize("name", SPATIAL_AUGMENTATIONS)
    @pytest.mark.parametrize("size", [(80, 120), (61, 47)])
    def test_masks_boxes_labels_and_crowds_move_together(self, name, size):
        height, width = size
        starts = product((0.05, 0.5), (0.1, 0.6))
        boxes = [[int(x * width), int(y * height), int((x + 0.3) * width), int((y + 0.3) * height)] for x, y in starts]
        sample = scene(height, width, boxes, crowd=[False, True, False, True])
        move, visible = letterbox(spatial_augmentation(name, SIDE, "a test")), 0
        torch.manual_seed(0)
        for _ in range(40):
            moved = move(sample)
            target = moved.target
            assert {len(value) for value in target.values()} == {len(target["labels"])}
            assert torch.equal(target["crowd"], target["labels"] % 2 == 1)
            for box, mask in zip(target["boxes"], target["masks"], strict=True):
                assert (box - tight(mask)).abs().max() <= 2
                assert (box[2:] - box[:2]).min() >= 1
                x1, y1, x2, y2 = tight(mask).int().tolist()
                if min(x2 - x1, y2 - y1) > 4:  # the image has moved with them
                    inside = moved.image[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].float().mean()
                    assert inside > 150
            visible += len(target["labels"])
            assert (moved.placement is None) == (name != "none"), "what was cropped cannot be mapped back"
        assert visible >= 40
        assert name != "strong" or visible < 160, "no object ever left the image"

    @pytest.mark.parametrize("name", SPATIAL_AUGMENTATIONS)
    def test_pixels_added_by_a_crop_are_unknown(self, name):
        image = tv_tensors.Image(torch.zeros(3, 80, 120, dtype=torch.uint8))
        classes = torch.full((80, 120), 7, dtype=torch.uint8)
        classes[:, :60] = 0
        sample = Sample(image, tv_tensors.Mask(classes), "1.png")
        move, unknown = letterbox(spatial_augmentation(name, SIDE, "a test", IGNORE_INDEX)), []
        torch.manual_seed(0)
        for _ in range(30):
            target = move(sample).target
            assert target.dtype == torch.int64
            assert set(target.unique().tolist()) <= {0, 7, IGNORE_INDEX}
            unknown.append((target == IGNORE_INDEX).float().mean().item())
        assert len({round(share, 3) for share in unknown}) == 1 or name != "none"
        if name == "strong":
            assert max(unknown) > 0.9
            assert min(unknown) == 0

    def test_a_transform_that_keeps_labels_of_dropped_boxes_is_refused(self):
        def careless(image, target):
            return image, {**target, "boxes": target["boxes"][:0]}

        with pytest.raises(UsageError, match="labels_getter"):
            letterbox(careless).check(Sample(None, careless(None, scene(20, 20, [[2, 2, 9, 9]]).target)[1], "1.png"))

    @pytest.mark.parametrize("name", SPATIAL_AUGMENTATIONS)
    def test_augmentations_draw_from_torch_only(self, name):
        assert letterbox(spatial_augmentation(name, SIDE, "a test")).torch_only

    @pytest.mark.parametrize(
        "wrong", [lambda image, target: image, lambda image, target: (image.float() / 255, target)]
    )
    def test_a_result_other_than_image_and_target_is_refused(self, wrong):
        with pytest.raises(UsageError, match="must take and give"):
            letterbox(wrong)(scene(20, 20, [[2, 2, 9, 9]]))

    def test_transforms_of_torchvision_are_accepted(self):
        move = letterbox(v2.Compose([v2.RandomHorizontalFlip(1.0), v2.RandomZoomOut(p=1.0, side_range=(2.0, 2.0))]))
        torch.manual_seed(0)
        moved = move(scene(40, 40, [[4, 4, 20, 30]]))
        assert (moved.target["boxes"][0] - tight(moved.target["masks"][0])).abs().max() <= 2


MODULES = {
    "boxes": (DetectionDataModule, write_toy_objects),
    "instances": (InstanceSegmentationDataModule, write_toy_objects),
    "pixels": (SegmentationDataModule, write_toy_segmentation),
}


@pytest.mark.parametrize("kind", MODULES)
def test_augmentation_does_not_depend_on_workers(kind, tmp_path):
    module, write = MODULES[kind]
    folder = write(tmp_path / "toys", splits={"train": 8, "val": 2}, image_size=(48, 72))
    visible = []
    for workers in (0, 2):
        data = module(folder, image_size=SIDE, batch_size=4, num_workers=workers, augmentation="strong")
        loader = data.train_dataloader()
        batches = [batch for _ in range(2) for batch in loader]
        data.teardown()
        visible.append([(batch.ids, batch.images, batch.targets) for batch in batches])
    for (ids, images, targets), (other_ids, other_images, other_targets) in zip(*visible, strict=True):
        assert ids == other_ids
        assert torch.equal(images, other_images)
        if kind == "pixels":
            assert torch.equal(targets, other_targets)
            continue
        for target, other_target in zip(targets, other_targets, strict=True):
            assert target.keys() == other_target.keys()
            assert all(torch.equal(target[name], other_target[name]) for name in target)
