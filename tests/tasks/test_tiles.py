"""Tiles: where they lie, how predictions are merged whatever the order, and what training crops show."""

import random

import pytest
import torch
from torchvision import tv_tensors
from torchvision.ops import nms

from autotimm.constants import IGNORE_INDEX
from autotimm.data.formats.image_paths import read_paths
from autotimm.data.loader import workers_for_whole_images
from autotimm.data.toy import write_toy_folder
from autotimm.data.transforms.tile_transforms import TileCrop
from autotimm.repro.streams import scope
from autotimm.tasks.tiles import TileLabels, column_blocks, cut, merge_objects, placement, tile_windows
from autotimm.types import Tiling

TILING = Tiling(40, 48, 0.25)
HEIGHT, WIDTH = 130, 170


class TestWindows:
    def test_every_pixel_is_shown_and_neighbours_overlap(self):
        seen = torch.zeros(HEIGHT, WIDTH)
        windows = tile_windows(HEIGHT, WIDTH, TILING)
        for window in windows:
            seen[window.top : window.top + window.height, window.left : window.left + window.width] += 1
        assert seen.min() == 1
        tops = sorted({window.top for window in windows})
        assert tops == [0, 30, 60, 90]
        assert {window[2:] for window in windows} == {(40, 48)}

    def test_a_small_image_is_padded_and_not_enlarged(self):
        image = torch.full((3, 20, 30), 7, dtype=torch.uint8)
        (window,) = tile_windows(20, 30, TILING)
        tile = cut(image, window, TILING)
        assert tile.shape == (3, 40, 48)
        assert (tile == 7).sum() == image.numel()
        assert placement(window, TILING)[:4] == (20, 30, 10, 9)


def objects_of_tiles(boxes, scores, labels):
    """What a perfect detector sees in each tile: the visible part of each box of at least 2 pixels."""
    found = []
    for window in tile_windows(HEIGHT, WIDTH, TILING):
        low = torch.tensor([window.left, window.top] * 2).float()
        high = torch.tensor([window.width, window.height] * 2).float()
        seen = torch.minimum((boxes - low).clamp(min=0), high)
        kept = (seen[:, 2:] - seen[:, :2] >= 2).all(1)
        found.append((window, {"boxes": seen[kept], "scores": scores[kept], "labels": labels[kept]}))
    return found


class TestObjects:
    boxes = torch.tensor(
        [[5.0, 5, 12, 12], [44, 36, 51, 43], [100, 26, 107, 33], [160, 120, 170, 130], [20, 50, 110, 120]]
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.95])
    labels = torch.tensor([0, 1, 0, 1, 1])

    def test_objects_that_tiles_cut_are_found_once_and_whole(self):
        small = slice(0, 4)
        found = objects_of_tiles(self.boxes[small], self.scores[small], self.labels[small])
        assert sum(len(objects["boxes"]) for _, objects in found) > 4
        merged = merge_objects(found, HEIGHT, WIDTH, TILING, 0.5, 100)
        assert torch.equal(merged["boxes"], self.boxes[small])
        assert torch.equal(merged["labels"], self.labels[small])

    def test_an_object_larger_than_the_overlap_keeps_its_parts(self):
        found = objects_of_tiles(self.boxes[4:], self.scores[4:], self.labels[4:])
        merged = merge_objects(found, HEIGHT, WIDTH, TILING, 0.5, 100)["boxes"]
        assert merged[:, 0].min() == 20
        assert merged[:, 3].max() == 120

    def test_the_order_of_tiles_changes_no_bit(self):
        with scope(0, "test"):
            corners = torch.rand(400, 2) * torch.tensor([WIDTH - 20.0, HEIGHT - 20.0])
            boxes = torch.cat([corners, corners + 4 + 16 * torch.rand(400, 2)], 1)
            scores, labels = torch.randint(5, (400,)) / 10 + 0.1, torch.randint(3, (400,))  # many equal scores
        found = objects_of_tiles(boxes, scores, labels)
        once = merge_objects(found, HEIGHT, WIDTH, TILING, 0.3, 50)
        random.Random(1).shuffle(found)
        again = merge_objects(found, HEIGHT, WIDTH, TILING, 0.3, 50)
        assert all(torch.equal(once[name], again[name]) for name in once)
        assert len(once["boxes"]) == 50

    def test_the_best_survivors_are_those_of_all_boxes(self):
        with scope(0, "test"):
            corners = torch.rand(500, 2) * 100
            boxes, scores = torch.cat([corners, corners + 20], 1), torch.rand(500)
        window = tile_windows(130, 130, Tiling(130, 130, 0.0))[0]
        found = [(window, {"boxes": boxes, "scores": scores, "labels": torch.zeros(500, dtype=torch.int64)})]
        merged = merge_objects(found, 130, 130, Tiling(130, 130, 0.0), 0.2, 3)
        assert torch.equal(merged["boxes"], boxes[nms(boxes, scores, 0.2)[:3]])


class TestPixels:
    def logits(self):
        with scope(0, "test"):
            return {window: torch.randn(3, 40, 48) for window in tile_windows(HEIGHT, WIDTH, TILING)}

    def merged(self, logits, most_bytes=1 << 30, backwards=False):
        labels = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
        for left, right in column_blocks(WIDTH, 3, TILING, most_bytes):
            block = TileLabels(labels, left, right, 3, TILING)
            within = [window for window in logits if window.left < right and window.left + window.width > left]
            for window in sorted(within, key=lambda one: (one.top, one.left * (-1 if backwards else 1))):
                block.add(window, logits[window])
            block.finish()
        return labels

    def test_the_likeliest_class_of_the_mean_probability(self):
        logits = self.logits()
        total, seen = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.float64), torch.zeros(HEIGHT, WIDTH)
        for window, of_tile in logits.items():
            rows, columns = slice(window.top, window.top + 40), slice(window.left, window.left + 48)
            total[:, rows, columns] += of_tile.double().softmax(0)
            seen[rows, columns] += 1
        best = (total / seen).sort(0).values
        clear = best[2] - best[1] > 1e-5
        assert clear.float().mean() > 0.999
        assert torch.equal(self.merged(logits)[clear], (total / seen).argmax(0).to(torch.uint8)[clear])

    def test_neither_order_nor_memory_changes_a_pixel(self):
        logits = self.logits()
        once = self.merged(logits)
        assert torch.equal(once, self.merged(logits, backwards=True))
        assert len(column_blocks(WIDTH, 3, TILING, 3 * 40 * 4 * 60)) == 3
        assert torch.equal(once, self.merged(logits, 3 * 40 * 4 * 60))


def test_huge_images_are_loaded_by_the_process_that_needs_them(tmp_path):
    path = write_toy_folder(tmp_path / "photos", n=4, num_classes=2, image_size=100)
    table = read_paths(path, [])
    bytes_of_four = 4 * 2 * 3 * 100 * 100  # two images wait for each of four processes
    assert workers_for_whole_images(table, 8, bytes_of_four) == 4
    assert workers_for_whole_images(table, 8) == 8
    assert workers_for_whole_images(table, 8, 1000) == 0


class TestTrainingCrops:
    image = tv_tensors.Image(torch.arange(3 * 100 * 160).reshape(3, 100, 160).remainder(251).to(torch.uint8))

    def target(self, boxes):
        count = len(boxes)
        masks = torch.zeros(count, 100, 160, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[y1:y2, x1:x2] = 1
        coordinates = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return {
            "boxes": tv_tensors.BoundingBoxes(coordinates, format="XYXY", canvas_size=(100, 160)),
            "labels": torch.arange(count),
            "crowd": torch.zeros(count, dtype=torch.bool),
            "masks": tv_tensors.Mask(masks),
        }

    def test_pixels_boxes_and_masks_move_together_at_full_resolution(self):
        target, crop = self.target([(70, 40, 77, 47)]), TileCrop((32, 48))
        shown = 0
        for number in range(40):
            with scope(0, "test", number):
                image, moved = crop(self.image, target)
            assert image.shape == (3, 32, 48)
            if len(moved["boxes"]) and (moved["boxes"][0, 2:] - moved["boxes"][0, :2] == 7).all():
                shown += 1
                x1, y1, x2, y2 = moved["boxes"][0].int().tolist()
                assert torch.equal(image[:, y1:y2, x1:x2], self.image[:, 40:47, 70:77])
                assert moved["masks"][0, y1:y2, x1:x2].all()
                assert moved["masks"].sum() == 49
        assert shown >= 30  # three of four, and those that show it by chance

    def test_a_crop_is_a_function_of_its_stream(self):
        crop, target = TileCrop(32, 0.8, 1.25), self.target([(70, 40, 77, 47)])

        def drawn(number):
            with scope(3, "test", number):
                return crop(self.image, target)[0]

        assert torch.equal(drawn(1), drawn(1))
        assert not torch.equal(drawn(1), drawn(2))

    def test_slivers_are_no_objects_and_none_is_fine(self):
        crop = TileCrop(32)
        for number in range(60):
            with scope(1, "test", number):
                _, moved = crop(self.image, self.target([(0, 0, 20, 20), (15, 15, 35, 35), (0, 0, 160, 100)]))
            sides = (moved["boxes"][:, 2:] - moved["boxes"][:, :2]).prod(1)
            assert (sides >= 100).all()  # a quarter of 20 x 20
            assert 2 in moved["labels"]  # larger than a tile, of which it fills all
        image, moved = crop(self.image, self.target([]))
        assert (image.shape, moved["masks"].shape, len(moved["labels"])) == ((3, 32, 32), (0, 32, 32), 0)

    def test_rare_classes_are_shown(self):
        classes = torch.full((100, 160), IGNORE_INDEX, dtype=torch.uint8)
        classes[:, :80], classes[90, 150] = 0, 1
        crop, shown = TileCrop(16, outside=IGNORE_INDEX), 0
        for number in range(40):
            with scope(2, "test", number):
                image, moved = crop(self.image, tv_tensors.Mask(classes))
            assert (image.shape, moved.shape) == ((3, 16, 16), (16, 16))
            shown += bool((moved == 1).any())
        assert shown >= 10  # half of three quarters of the crops, of a class with one pixel

    @pytest.mark.parametrize("size", [(20, 160), (100, 10), (10, 10)])
    def test_images_smaller_than_a_tile_are_padded(self, size):
        small = tv_tensors.Image(self.image[:, : size[0], : size[1]])
        image, moved = TileCrop(32, outside=IGNORE_INDEX)(small, tv_tensors.Mask(torch.zeros(size, dtype=torch.uint8)))
        assert image.shape == (3, 32, 32)
        assert (moved == 0).sum() == min(32, size[0]) * min(32, size[1])
