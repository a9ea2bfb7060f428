"""Tables of objects and of masks as such, and what is looked up in files for them."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from autotimm.data.annotations.masks import MaskCode, MaskFacts, MaskTable, facts_of, read_pixels
from autotimm.data.annotations.objects import Annotation, ObjectTable
from autotimm.data.annotations.outlines import MaskFile, Outlines, Polygons, RunLengths
from autotimm.data.file_facts import Problem, image_sizes, mask_facts, object_bounds
from autotimm.data.table import Subset
from autotimm.errors import DataError

Picture = Callable[..., Path]
SQUARE = Polygons((np.array([[2.0, 3], [10, 3], [10, 8], [2, 8]]),))


def table(paths: list[Path], with_masks: bool = True) -> ObjectTable:
    objects = [
        [Annotation("cat", (2, 3, 10, 8), outline=SQUARE), Annotation("dog", (0, 0, 40, 4), crowd=True)],
        [],
        [Annotation("dog", (1, 1, 2, 2), outline=SQUARE), Annotation("cat", (1, 1, 5, 5), outline=SQUARE)],
        [Annotation("cat", (1, 1, 5, 5), outline=SQUARE)],
    ]
    return ObjectTable(paths, [path.name for path in paths], ["cat", "dog", "eel"], objects, with_masks)


@pytest.fixture
def paths(tmp_path: Path, picture: Picture) -> list[Path]:
    return [picture(tmp_path / f"{name}.png") for name in "abcd"]


def test_a_sample(paths: list[Path]) -> None:
    sample = table(paths).load(0)
    target = sample.target
    assert sample.id == "a.png"
    assert sample.image.shape == (3, 16, 20)
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].canvas_size == (16, 20)
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].tolist() == [[2, 3, 10, 8], [0, 0, 20, 4]]  # cut at the border
    assert (target["labels"].dtype, target["labels"].tolist()) == (torch.int64, [0, 1])
    assert (target["crowd"].dtype, target["crowd"].tolist()) == (torch.bool, [False, True])
    assert isinstance(target["masks"], tv_tensors.Mask)
    assert target["masks"].dtype == torch.uint8
    assert target["masks"].sum((1, 2)).tolist() == [40, 80]
    assert set(table(paths, with_masks=False).load(0).target) == {"boxes", "labels", "crowd"}


def test_no_objects(paths: list[Path]) -> None:
    target = table(paths).load(1).target
    shapes = {name: tuple(value.shape) for name, value in target.items()}
    assert shapes == {"boxes": (0, 4), "labels": (0,), "crowd": (0,), "masks": (0, 16, 20)}


def test_changing_a_sample_does_not_change_the_table(paths: list[Path]) -> None:
    objects = table(paths)
    target = objects.load(0).target
    for name in target:
        target[name].zero_()
    assert objects.load(0).target["boxes"].sum() > 0
    assert objects.load(0).target["labels"].tolist() == [0, 1]


def test_counts_and_strata(paths: list[Path]) -> None:
    objects = table(paths)
    assert objects.strata == [0, 3, 1, 0]  # the rarest class; the number of classes for an image without objects
    assert objects.labels(0) == ("cat",)  # a crowd does not count
    assert objects.labels(2) == ("cat", "dog")
    assert objects.counts() == (3, 1, 0)
    assert objects.object_counts() == (3, 1, 0)
    assert (objects.kind, table(paths, with_masks=False).kind) == ("instances", "boxes")
    part = Subset(objects, [2, 1])
    assert (part.strata, part.labels(0), part.kind) == ([1, 3], ("cat", "dog"), "instances")


def test_tables_can_be_pickled(paths: list[Path]) -> None:
    objects = table(paths)
    other = pickle.loads(pickle.dumps(objects))
    for row in range(4):
        a, b = objects.load(row).target, other.load(row).target
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert objects.target_digest(row) == other.target_digest(row)


def test_many_outlines_are_small() -> None:
    outlines = Outlines([SQUARE] * 1000 + [None])
    assert len(pickle.dumps(outlines)) < 90_000
    assert len(outlines) == 1001
    assert outlines[1000] is None
    assert [part.tolist() for part in outlines[999].parts] == [part.tolist() for part in SQUARE.parts]


def test_every_kind_of_outline_is_kept() -> None:
    mask = np.zeros((5, 7), np.uint8)
    mask[1:3, 2:6] = 1
    given = [
        Polygons((SQUARE.parts[0], SQUARE.parts[0] + 0.25)),
        RunLengths.of_mask(mask),
        MaskFile("a\udcff.png", (1, 2, 3, 4)),
    ]
    outlines = list(Outlines(given))
    assert [part.tolist() for part in outlines[0].parts] == [part.tolist() for part in given[0].parts]
    assert outlines[1:] == given[1:]
    assert np.array_equal(outlines[1].mask(5, 7), mask)
    assert outlines[1].box() == (2, 1, 6, 3)
    with pytest.raises(DataError, match="run lengths is 7x5 pixels, its image 5x7"):
        outlines[1].mask(7, 5)


def test_the_target_digest_covers_every_annotation(paths: list[Path]) -> None:
    def digest(**change: object) -> str:
        annotation = Annotation("cat", (2, 3, 10, 8), outline=SQUARE)._replace(**change)
        return ObjectTable(paths[:1], ["a"], ["cat", "dog"], [[annotation]], True).target_digest(0)

    other = Polygons((SQUARE.parts[0] + 1,))
    changed = [digest(label="dog"), digest(box=(2, 3, 10, 9)), digest(crowd=True), digest(outline=other)]
    assert len({digest(), *changed}) == 5
    # The number of a class may differ where another one was added; its name counts.
    alone = ObjectTable(paths[:1], ["a"], ["ant", "cat"], [[Annotation("cat", (2, 3, 10, 8), outline=SQUARE)]], True)
    assert alone.target_digest(0) == digest()


def test_an_unreadable_image_or_mask(tmp_path: Path, picture: Picture) -> None:
    path = picture(tmp_path / "a.png")
    masks = MaskTable([path], [tmp_path / "gone.png"], ["a"], ["x", "y"], MaskCode(False, (0, 1), (0, 1)), [{0: 320}])
    with pytest.raises(DataError, match=r"gone\.png cannot be read as a mask: there is no such file"):
        masks.load(0)
    Image.new("L", (3, 4)).save(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"gone\.png is 3x4 pixels, its image 20x16"):
        masks.load(0)


def test_mask_tables_count_classes(tmp_path: Path, picture: Picture) -> None:
    path = picture(tmp_path / "a.png")
    Image.new("L", (20, 16), 1).save(tmp_path / "m.png")
    code = MaskCode(False, (0, 1), (0, 1))
    masks = MaskTable(
        [path] * 3, [tmp_path / "m.png"] * 3, ["a", "b", "c"], ["x", "y"], code, [{0: 8, 1: 312}, {0: 320}, {}]
    )
    assert (masks.strata, masks.counts(), masks.kind) == ([1, 0, 2], (2, 1), "pixels")
    before = masks.target_digest(0)
    assert pickle.loads(pickle.dumps(masks)).target_digest(0) == before
    Image.new("L", (20, 16), 0).save(tmp_path / "m.png")
    assert masks.target_digest(0) != before


# Codes


def test_colors_are_looked_up_exactly(tmp_path: Path) -> None:
    pixels = np.array([[[1, 2, 3], [1, 2, 4], [224, 224, 192]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    code = MaskCode(True, (0x010203,), (0,))
    assert code.decode(read_pixels(tmp_path / "a.png")).tolist() == [[0, 255, 255]]
    # The border of PASCAL VOC is known to be unknown.
    facts = MaskFacts(3, 2, None, (0x010203, 0x010204, 0xE0E0C0), counts=(1, 2, 3))
    assert code.classes_in(facts) == ({0: 1}, [0x010204])


def test_values_do_not_wrap_around(tmp_path: Path) -> None:
    Image.fromarray(np.array([[256, 0, -1, 70_000]], np.int32)).save(tmp_path / "a.tif")
    assert MaskCode(False, (0,), (0,)).decode(read_pixels(tmp_path / "a.tif")).tolist() == [[255, 0, 255, 255]]


# What is looked up


def test_sizes_are_those_of_upright_images(tmp_path: Path, picture: Picture) -> None:
    plain, turned = picture(tmp_path / "a.jpg"), picture(tmp_path / "b.jpg")
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.open(turned).save(turned, exif=exif)
    png = picture(tmp_path / "c.png")
    Image.open(png).save(png, exif=exif)
    (tmp_path / "broken.png").write_bytes(b"no")
    files = [plain, turned, png, tmp_path / "broken.png", tmp_path / "gone.png"]
    assert image_sizes(files) == {plain: (20, 16), turned: (16, 20), png: (16, 20)}
    assert image_sizes(files) == {plain: (20, 16), turned: (16, 20), png: (16, 20)}


def test_facts_of_a_changed_mask_are_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 3]], np.uint8)).save(path)
    facts, bounds, sizes = mask_facts([path]), object_bounds([path]), image_sizes([path])
    assert facts == {path: MaskFacts(2, 1, (0, 3), (0, 0x030303), False, (1, 1), (0, 0), (1, 1))}
    assert bounds == {path: (2, 1, 1, 0, 2, 1)}
    assert (mask_facts([path]), object_bounds([path]), image_sizes([path])) == (facts, bounds, sizes)
    stamp, size = path.stat().st_mtime_ns, path.stat().st_size
    path.write_bytes(bytes(size))
    os.utime(path, ns=(stamp, stamp))  # ctime differs nevertheless
    assert mask_facts([path]) == {path: Problem(path, "not an image")}
    assert object_bounds([path]) == {path: Problem(path, "not an image")}
    assert image_sizes([path]) == {}


def test_facts_of_each_mode(tmp_path: Path) -> None:
    values = np.array([[7, 7, 2]], np.uint8)
    gray = Image.fromarray(values)
    indexed = Image.fromarray(values, "P")
    indexed.putpalette([0] * 6 + [1, 2, 3] + [0] * 12 + [9, 9, 9])
    colored = Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9], [9, 9, 9]]], np.uint8))
    for name, image in {
        "L": gray,
        "LA": gray.convert("LA"),
        "RGB": gray.convert("RGB"),
        "P": indexed,
        "C": colored,
    }.items():
        image.save(tmp_path / f"{name}.png")
    facts = mask_facts([tmp_path / f"{name}.png" for name in ("L", "LA", "RGB", "P", "C")]).values()
    grays, shapes = (0x020202, 0x070707), ((1, 2), (0, 0), (1, 1))
    assert list(facts) == [
        MaskFacts(3, 1, (2, 7), grays, False, *shapes),
        MaskFacts(3, 1, (2, 7), grays, False, *shapes),
        MaskFacts(3, 1, (2, 7), grays, False, *shapes),
        MaskFacts(3, 1, (2, 7), (0x010203, 0x090909), False, *shapes, palette=True),
        MaskFacts(3, 1, None, (0x010203, 0x090909), False, *shapes),
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_shapes_of_values(tmp_path: Path, dtype: type) -> None:
    """A ring of a hole, two dots that touch at a corner, and an area with an edge of 1 pixel."""
    values = np.zeros((12, 14), dtype)
    values[1:6, 1:6], values[3, 3] = 5, 0
    values[8, 1] = values[9, 2] = 7
    values[1:11, 8:12], values[1:11, 12] = 9, 8
    Image.fromarray(values).save(tmp_path / "a.tif")
    facts = facts_of(tmp_path / "a.tif")
    assert facts.values == (0, 5, 7, 8, 9)
    assert facts.counts == (12 * 14 - 24 - 2 - 50, 24, 2, 10, 40)
    assert facts.solid[1:] == (12, 0, 0, 27)
    assert facts.pieces == (2 - 3, 0, 2, 1, 1)


def test_run_lengths_of_a_part_equal_those_of_the_whole_mask() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 8, 2).tolist()
        top, left = rng.integers(0, height), rng.integers(0, width)
        crop = rng.random((rng.integers(1, height - top + 1), rng.integers(1, width - left + 1))) < 0.7
        mask = np.zeros((height, width), np.uint8)
        mask[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        assert RunLengths.of_crop(crop, int(left), int(top), height, width) == RunLengths.of_mask(mask)
    for place in ((-1, 0), (0, -1), (3, 0), (0, 2)):
        with pytest.raises(ValueError, match="beyond its image"):
            RunLengths.of_crop(np.ones((2, 2), bool), *place, 3, 4)
    large = RunLengths.of_crop(np.ones((2, 2), bool), 5, 7, 60_000, 60_000)  # takes no memory
    assert large.box() == (5, 7, 7, 9)
