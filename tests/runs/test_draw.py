"""Pictures: colors that can be told apart, names that can be read, and the original's pixels."""

import itertools
import math
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from autotimm.report.class_colors import class_colors, readable_on
from autotimm.runs.draw import draw_prediction
from autotimm.types import ObjectPrediction, PixelPrediction

NAMES = ("background", "cat", "dog")
GRAY = torch.full((3, 150, 200), 128, dtype=torch.uint8)


def objects(labels, boxes, scores, masked=False, size=(150, 200)):
    masks = ()
    if masked:
        drawn = np.zeros((len(boxes), *size), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(drawn, boxes, strict=True):
            mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
        masks = tuple(coco_mask.encode(np.asfortranarray(one))["counts"].decode() for one in drawn)
    return ObjectPrediction("1.png", labels, scores, boxes, size, masks)


def is_color(picture, x, y, name):
    return tuple(picture[:, y, x].tolist()) == class_colors(NAMES)[NAMES.index(name)]


class TestColors:
    def test_they_are_stable_and_far_apart(self):
        many = [str(number) for number in range(80)]
        colors = class_colors(many)
        assert colors[:5] == class_colors(many[:5])
        distances = [math.dist(*pair) for pair in itertools.combinations(colors[:20], 2)]
        assert min(distances) > 60
        assert len(set(colors)) == 80

    @pytest.mark.parametrize("name", ["background", "Background", "_background_", "unlabeled"])
    def test_a_background_is_black(self, name):
        assert class_colors([name, "cat"])[0] == (0, 0, 0)

    def test_letters_can_be_read_on_each(self):
        def light(color):  # WCAG 2.1, relative luminance
            linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in color)]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        for color in class_colors([str(number) for number in range(80)]):
            dark, bright = sorted([light(color), light(readable_on(color))])
            assert (bright + 0.05) / (dark + 0.05) > 3


class TestObjects:
    def test_boxes_have_the_color_of_their_class_where_they_are(self):
        found = objects(("cat", "dog"), ((20.0, 60.0, 90.0, 120.0), (110.0, 50.0, 180.0, 140.0)), (0.9, 0.8))
        picture = draw_prediction(GRAY, found, NAMES)
        assert picture.shape == GRAY.shape
        assert is_color(picture, 20, 100, "cat")
        assert is_color(picture, 60, 120, "cat")
        assert is_color(picture, 180, 100, "dog")
        assert tuple(picture[:, 90, 50].tolist()) == (128, 128, 128), "without masks the inside stays as it is"
        assert torch.equal(GRAY, torch.full_like(GRAY, 128)), "the image itself was drawn into"

    def test_small_objects_in_a_large_picture_are_not_covered(self):
        boxes = tuple((100.0 * x, 100.0 * y, 100.0 * x + 7, 100.0 * y + 7) for x in range(1, 15) for y in range(1, 10))
        large = torch.full((3, 1000, 1500), 128, dtype=torch.uint8)
        picture = draw_prediction(large, objects(("cat",) * len(boxes), boxes, (0.9,) * len(boxes)), NAMES)
        assert is_color(picture, 100, 103, "cat")
        assert tuple(picture[:, 103, 103].tolist()) == (128, 128, 128)
        assert (picture != 128).any(0).sum() <= len(boxes) * 64, "there is something beside the boxes"

    def test_masks_are_seen_through_and_have_an_edge(self):
        found = objects(("cat",), ((40.0, 60.0, 120.0, 130.0),), (0.9,), masked=True)
        picture = draw_prediction(GRAY, found, NAMES)
        color, inside = torch.tensor(class_colors(NAMES)[1]), picture[:, 95, 80]
        assert (inside.float() - (0.4 * color + 0.6 * 128)).abs().max() <= 1
        assert is_color(picture, 40, 95, "cat")
        assert tuple(picture[:, 95, 150].tolist()) == (128, 128, 128)

    def test_the_best_lies_above_the_others(self):
        boxes = ((40.0, 50.0, 120.0, 130.0), (60.0, 70.0, 140.0, 145.0))
        picture = draw_prediction(GRAY, objects(("cat", "dog"), boxes, (0.9, 0.8), masked=True), NAMES)
        alone = draw_prediction(GRAY, objects(("cat",), boxes[:1], (0.9,), masked=True), NAMES)
        assert torch.equal(picture[:, 100, 100], alone[:, 100, 100])

    @pytest.mark.parametrize("box", [(0.0, 0.0, 15.0, 10.0), (190.0, 0.0, 200.0, 150.0), (0.0, 140.0, 9.0, 150.0)])
    def test_names_stay_inside_of_the_picture(self, box):
        picture = draw_prediction(GRAY, objects(("dog",), (box,), (0.55,)), NAMES)
        color = torch.tensor(class_colors(NAMES)[2], dtype=torch.uint8)[:, None, None]
        rows, columns = (picture == color).all(0).nonzero().T
        shown = picture[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        letters = torch.tensor(readable_on(class_colors(NAMES)[2]), dtype=torch.uint8)[:, None, None]
        assert ((shown.int() - letters.int()).abs() < 60).all(0).sum() > 20, "there are no letters"
        plate = (picture == color).all(0).any(0).sum()
        assert plate >= 40, "the plate of the name is cut off"

    def test_names_avoid_each_other(self):
        boxes = ((30.0, 60.0, 100.0, 120.0), (32.0, 62.0, 102.0, 122.0), (34.0, 64.0, 104.0, 124.0))
        picture = draw_prediction(GRAY, objects(("cat", "dog", "dog"), boxes, (0.9, 0.8, 0.7)), NAMES)
        for name in ("cat", "dog"):
            color = torch.tensor(class_colors(NAMES)[NAMES.index(name)], dtype=torch.uint8)[:, None, None]
            assert (picture == color).all(0).sum() > 500

    def test_nothing_found_is_the_image(self):
        assert torch.equal(draw_prediction(GRAY, objects((), (), ()), NAMES), GRAY)

    @pytest.mark.parametrize("name", ["Käfer", "猫", "x" * 80, "a\nb"])
    def test_any_name_can_be_written(self, name):
        found = objects((name,), ((20.0, 60.0, 90.0, 120.0),), (0.9,))
        assert draw_prediction(GRAY, found, (name,)).shape == GRAY.shape

    @pytest.mark.parametrize("size", [(7, 5), (1, 300), (3000, 40)])
    def test_any_size(self, size):
        image = torch.zeros(3, *size, dtype=torch.uint8)
        found = objects(("cat",), ((0.0, 0.0, float(size[1]), float(size[0])),), (0.9,), masked=True, size=size)
        assert draw_prediction(image, found, NAMES).shape == image.shape


class TestPixels:
    def found(self, classes):
        file = BytesIO()
        Image.fromarray(classes).save(file, "png")
        shares = np.bincount(classes.ravel(), minlength=len(NAMES)) / classes.size
        scores = dict(zip(NAMES, shares.tolist(), strict=True))
        return PixelPrediction("1.png", tuple(name for name in NAMES if scores[name]), scores, file.getvalue())

    def test_regions_are_painted_and_a_background_is_not(self):
        classes = np.zeros((150, 200), np.uint8)
        classes[20:140, 100:190] = 2
        picture = draw_prediction(GRAY, self.found(classes), NAMES)
        color = torch.tensor(class_colors(NAMES)[2])
        assert (picture[:, 25, 105].float() - (0.4 * color + 0.6 * 128)).abs().max() <= 1
        assert torch.equal(picture[:, :, :90], GRAY[:, :, :90])
        assert is_color(picture, 145, 80 - 7, "dog"), "the name stands in the middle of its region"

    def test_background_alone_is_the_image(self):
        assert torch.equal(draw_prediction(GRAY, self.found(np.zeros((150, 200), np.uint8)), NAMES), GRAY)

    def test_single_pixels(self):
        classes = np.zeros((150, 200), np.uint8)
        classes[0, 0], classes[149, 199] = 1, 2
        assert draw_prediction(GRAY, self.found(classes), NAMES).shape == GRAY.shape
