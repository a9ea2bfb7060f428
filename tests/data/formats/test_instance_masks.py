"""One picture per object."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.formats import read_instance_masks, recognize
from autotimm.errors import DataError

Picture = Callable[..., Path]


def save(path: Path, box: tuple[int, int, int, int], value: int = 255, mode: str = "L", size: Any = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = value
    Image.fromarray(mask).convert(mode).save(path)


def read(root: Path, **options: bool) -> tuple[dict[str, ObjectTable], list[str]]:
    notices: list[str] = []
    return read_instance_masks(root, notices, **options), notices  # type: ignore[return-value]


BOXES = [(2, 3, 10, 8), (0, 0, 20, 16), (19, 15, 20, 16)]
LAYOUTS = {
    "bowl": ("train/{0}/images/{0}.png", "train/{0}/masks/{1}.png"),
    "folders": ("train/images/{0}.png", "train/masks/{0}/{1}.png"),
    "names": ("images/train/{0}.png", "masks/train/{0}_{1}.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "LA", "P"])
def test_layouts(tmp_path: Path, picture: Picture, layout: str, mode: str) -> None:
    image, mask = LAYOUTS[layout]
    for name in ("a", "a_1", "b"):
        picture(tmp_path / image.format(name))
    for number, box in enumerate(BOXES):
        save(tmp_path / mask.format("a", number), box, value=1 if mode == "L" else 255, mode=mode)
        save(tmp_path / mask.format("a_1", number), box)
    assert recognize(tmp_path)[:2] == ("instance", "masks")
    tables, notices = read(tmp_path, strict=True)
    table = tables["train"]
    assert table.ids == tuple(sorted(image.format(name) for name in ("a", "a_1", "b")))
    assert table.class_names == ("object",)
    for row in (0, 1):
        target = table.load(row).target
        assert target["boxes"].tolist() == [list(box) for box in BOXES]
        assert target["masks"].sum((1, 2)).tolist() == [40, 320, 1]
    assert table.load(2).target["masks"].shape == (0, 16, 20)
    assert notices == ["Classes by the names of the masks: object."]
    assert "masks" not in read(tmp_path, masks=False)[0]["train"].load(0).target


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("cat_1", "cat_2", "guinea pig"), ("cat", "guinea pig")),
        (("mask_1", "2", "Object 3"), ("object",)),
        (("07a9bf1d", "cat", "0b2e702f"), ("object",)),
        (("straße1", "cat-2", "cat"), ("cat", "straße")),
    ],
)
def test_classes_by_name(tmp_path: Path, picture: Picture, names: tuple[str, ...], classes: tuple[str, ...]) -> None:
    picture(tmp_path / "images" / "a.png")
    for name, box in zip(names, BOXES, strict=True):
        save(tmp_path / "masks" / "a" / f"{name}.png", box)
    assert read(tmp_path)[0]["train"].class_names == classes


def test_problems_are_reported_with_file_names(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "images" / "a.png")
    for number, box in enumerate(BOXES):
        save(tmp_path / "masks" / "a" / f"{number}.png", box)
    save(tmp_path / "masks" / "a" / "small.png", (0, 0, 5, 5), size=(19, 16))
    save(tmp_path / "masks" / "a" / "empty.png", (0, 0, 0, 0))
    (tmp_path / "masks" / "a" / "broken.png").write_bytes(b"")
    save(tmp_path / "masks" / "z" / "1.png", (0, 0, 5, 5))
    tables, notices = read(tmp_path)
    assert len(tables["train"].load(0).target["boxes"]) == 3
    assert notices[1:] == [
        "1 masks without an image, left out: masks/z/1.png.",
        "1 masks that cannot be read, left out: masks/a/broken.png (the file is empty).",
        "1 empty masks, left out: masks/a/empty.png.",
        "1 masks of another size than their image, left out: masks/a/small.png (19x16).",
    ]
    with pytest.raises(DataError, match=r"1 masks that cannot be read: masks/a/broken.png"):
        read(tmp_path, strict=True)


def test_masks_drawn_in_their_transparency_get_their_reason(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "images" / "a.png")
    for number, box in enumerate(BOXES):
        save(tmp_path / "masks" / "a" / f"{number}.png", box)
    alpha = np.zeros((16, 20, 4), np.uint8)
    alpha[3:9, 2:8, 3] = 255
    Image.fromarray(alpha).save(tmp_path / "masks" / "a" / "alpha.png")
    assert read(tmp_path)[1][1:] == [
        "1 masks that cannot be read, left out: masks/a/alpha.png (it is drawn in the transparency, and all its colors "
        "are equal)."
    ]


def test_split_lists(tmp_path: Path, picture: Picture) -> None:
    for name in "ab":
        picture(tmp_path / "images" / f"{name}.png")
        for number in range(2):
            save(tmp_path / "masks" / name / f"{number}.png", BOXES[number])
    (tmp_path / "train.txt").write_text("b\n")
    (tmp_path / "val.txt").write_text("a.png\n")
    tables, _ = read(tmp_path)
    assert {split: table.ids for split, table in tables.items()} == {
        "train": ("images/b.png",),
        "val": ("images/a.png",),
    }


def test_one_mask_per_image_is_a_label_image(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "images" / "a.png")
    save(tmp_path / "masks" / "a.png", BOXES[0])
    with pytest.raises(DataError, match="no folder with a mask per object"):
        read(tmp_path)


def test_masks_named_like_their_images_are_label_images(tmp_path: Path, picture: Picture) -> None:
    for name in ("img", "img_1", "img_2"):
        picture(tmp_path / "images" / f"{name}.jpg")
        save(tmp_path / "masks" / f"{name}.png", BOXES[0])
    assert recognize(tmp_path)[:2] == ("segmentation", "masks")


def test_a_mask_that_changed_is_refused_when_it_is_loaded(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "images" / "a.png")
    for number, box in enumerate(BOXES):
        save(tmp_path / "masks" / "a" / f"{number}.png", box)
    table = read(tmp_path)[0]["train"]
    before = table.target_digest(0)
    save(tmp_path / "masks" / "a" / "1.png", (0, 0, 3, 3))
    assert table.target_digest(0) != before
    save(tmp_path / "masks" / "a" / "1.png", BOXES[1], size=(30, 30))
    with pytest.raises(DataError, match=r"1.png is 30x30 pixels, its image 20x16"):
        table.load(0)
    (tmp_path / "masks" / "a" / "1.png").unlink()
    with pytest.raises(DataError, match="cannot be read as a mask: there is no such file"):
        table.load(0)
