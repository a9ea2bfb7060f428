"""Label images by index, by palette and by color, and their layouts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autotimm.data.annotations.masks import MaskTable
from autotimm.data.formats import read_cityscapes, read_label_images
from autotimm.data.table import Subset
from autotimm.errors import DataError

Picture = Callable[..., Path]
ROAD, CAR = (128, 64, 128), (0, 0, 142)
VALUES = np.zeros((16, 20), np.uint8)
VALUES[4:, :10], VALUES[:, 15:] = 1, 2


def save(
    path: Path, values: Any = VALUES, mode: str = "L", palette: Mapping[int, tuple[int, int, int]] | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values))
    if palette is not None:
        image = Image.fromarray(np.asarray(values), mode="P")
        image.putpalette([part for value in range(256) for part in palette.get(value, (9, 9, 9))])
    (image if palette is not None else image.convert(mode)).save(path)
    return path


def painted(*colors: tuple[int, int, int], values: Any = VALUES) -> Any:
    return np.array(colors, np.uint8)[values]


def read(root: Path, **options: Any) -> tuple[dict[str, MaskTable], list[str]]:
    notices: list[str] = []
    return read_label_images(root, notices, **options), notices  # type: ignore[return-value]


def target(tables: dict[str, MaskTable], row: int = 0, split: str = "train") -> torch.Tensor:
    return tables[split].load(row).target  # type: ignore[no-any-return]


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Callable[..., Path]:
    """One image and its mask, which the caller writes."""

    def made(table: str = "", name: str = "_classes.csv", mask: Callable[[Path], Any] | None = None) -> Path:
        picture(tmp_path / "a.png")
        (mask or save)(tmp_path / "a_mask.png")
        if table:
            (tmp_path / name).write_text(table)
        return tmp_path

    return made


# Real data


def test_dhcn(real: Callable[[str], Path]) -> None:
    root = real("seg_dhcn")
    tables, notices = read(root, strict=True)
    assert {split: len(table) for split, table in tables.items()} == {"train": 90, "val": 60, "test": 60}
    names = (
        "background",
        "cabinet",
        "ceiling",
        "chair",
        "door",
        "elevator",
        "railing",
        "road",
        "stair",
        "tree",
        "wall",
    )
    assert tables["train"].class_names == names
    assert notices == []
    shares = [2.62, 2.1, 0.5, 3.22, 13.72, 0.07, 4.9, 52.17, 0.71, 1.54, 18.46]
    pixels = torch.zeros(256, dtype=torch.int64)
    for row in range(90):
        classes = target(tables, row)
        pixels += torch.bincount(classes.flatten(), minlength=256)
        by_hand = torch.from_numpy(np.array(Image.open(tables["train"].mask_paths[row])))
        assert torch.equal(classes.as_subclass(torch.Tensor), by_hand)
        present = tuple(names[index] for index in by_hand.unique().tolist())
        assert tables["train"].labels(row) == present
    assert (pixels[:11] / pixels.sum() * 100).tolist() == pytest.approx(shares, abs=0.006)


# What values mean


@pytest.mark.parametrize("header", ["Pixel Value, Class", "id,name", "index, label"])
def test_by_index(folder: Callable[..., Path], header: str) -> None:
    tables, notices = read(folder(f"{header}\n1, road\n0, background\n2, car\n7, moon"))
    assert tables["train"].class_names == ("background", "road", "car", "moon")
    assert torch.equal(target(tables), torch.from_numpy(VALUES))
    assert target(tables).dtype == torch.uint8
    assert tables["train"].counts() == (1, 1, 1, 0)
    assert notices == []


def test_by_palette(folder: Callable[..., Path]) -> None:
    """The indices count, whatever the colors; 255 is unknown, as PASCAL VOC paints borders."""
    values = np.where(VALUES == 2, 255, VALUES)
    tables, notices = read(folder(mask=lambda path: save(path, values, palette={0: (0, 0, 0), 1: ROAD, 255: CAR})))
    assert tables["train"].class_names == ("0", "1")
    assert torch.equal(target(tables), torch.from_numpy(values))
    assert notices == ["Pixels of value 255 are treated as unknown, since no file names the classes."]


COLOR_TABLES = {
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\ncar:0,0,142::\n",
    "class_dict.csv": "name,r,g,b\nbackground,0,0,0\nroad,128,64,128\ncar,0,0,142\n",
    "label_colors.txt": "0 0 0\tbackground\n128 64 128\troad\n0 0 142\tcar\n",
    "classes.json": '{"background": [0, 0, 0], "road": "#804080", "car": [0, 0, 142]}',
    "meta.json": '{"classes": [{"title": "background", "color": "#000000"}, {"title": "road", "color": "#804080"}, '
    '{"title": "car", "color": "#00008E"}]}',
}


@pytest.mark.parametrize("name", COLOR_TABLES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_by_color_table(folder: Callable[..., Path], name: str, mode: str) -> None:
    def mask(path: Path) -> None:
        if mode == "P":  # numbered as the program liked: the colors count
            save(path, np.array([5, 9, 3], np.uint8)[VALUES], palette={5: (0, 0, 0), 9: ROAD, 3: CAR})
        else:
            save(path, painted((0, 0, 0), ROAD, CAR), mode)

    tables, notices = read(folder(COLOR_TABLES[name], name, mask))
    assert tables["train"].class_names == ("background", "road", "car")
    assert torch.equal(target(tables), torch.from_numpy(VALUES))
    assert tables["train"].counts() == (1, 1, 1)
    assert notices == []


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("classes.txt", "background\nroad\ncar\n"),
        ("labels.txt", "0 background\n1 road\n2 car\n"),
        ("classes.json", '["background", "road", "car"]'),
        ("labels.json", '{"0": "background", "1": "road", "2": "car"}'),
        ("classes.json", '{"background": 0, "road": 1, "car": 2}'),
        ("classes.json", '[{"name": "background", "id": 0}, {"name": "car", "id": 2}, {"name": "road", "id": 1}]'),
    ],
)
def test_tables_of_names(folder: Callable[..., Path], name: str, table: str) -> None:
    tables, _ = read(folder(table, name))
    assert tables["train"].class_names == ("background", "road", "car")
    assert torch.equal(target(tables), torch.from_numpy(VALUES))


def test_a_name_that_begins_with_a_number_has_the_value_of_its_line(folder: Callable[..., Path]) -> None:
    tables, notices = read(folder("background\n3 wheeler\ncar\n", "classes.txt"))
    assert (tables["train"].class_names, notices) == (("background", "3 wheeler", "car"), [])
    assert torch.equal(target(tables), torch.from_numpy(VALUES))


def test_colors_can_be_given(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder(mask=lambda path: save(path, painted((0, 0, 0), ROAD, CAR), "RGB"))
    with pytest.raises(
        DataError, match=r"colored, .*: #000000 \(120 pixels\), #804080 \(120 pixels\), #00008e .*`colors`"
    ):
        read(root)
    tables, notices = read(root, colors={"road": ROAD, "car": "#00008e", "void": (0, 0, 0)})
    assert tables["train"].class_names == ("road", "car")
    assert torch.equal(target(tables), torch.tensor([255, 0, 1], dtype=torch.uint8)[torch.from_numpy(VALUES).long()])
    assert notices == []
    (tmp_path.parent / "my.json").write_text('{"road": [128, 64, 128]}')
    tables, notices = read(root, colors=str(tmp_path.parent / "my.json"))
    assert notices == [
        "1 masks with values that stand for no class, which are unknown there: a_mask.png (#000000, #00008e)."
    ]


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_black_and_white_are_background_and_foreground(folder: Callable[..., Path], mode: str) -> None:
    tables, notices = read(folder(mask=lambda path: save(path, (VALUES > 0).astype(np.uint8) * 255, mode)))
    assert tables["train"].class_names == ("background", "foreground")
    assert torch.equal(target(tables), torch.from_numpy((VALUES > 0).astype(np.uint8)))
    assert notices == []


def test_values_with_gaps_and_beyond_a_byte(folder: Callable[..., Path]) -> None:
    values = np.array([0, 300, 40_000], np.uint16)[VALUES]
    tables, _ = read(folder(mask=lambda path: Image.fromarray(values).save(path)))
    assert tables["train"].class_names == ("0", "300", "40000")
    assert torch.equal(target(tables), torch.from_numpy(VALUES))


def test_values_of_more_than_16_bits(folder: Callable[..., Path]) -> None:
    values = np.array([0, 300, 70_000], np.int32)[VALUES]
    tables, _ = read(folder(mask=lambda path: Image.fromarray(values).save(path.with_suffix(".tif"))))
    assert tables["train"].class_names == ("0", "300", "70000")
    assert torch.equal(target(tables), torch.from_numpy(VALUES))
    assert tables["train"].present(0) == {label: int((label == VALUES).sum()) for label in range(3)}


def test_soft_edges_are_refused(folder: Callable[..., Path]) -> None:
    values = np.arange(320, dtype=np.uint8).reshape(16, 20)
    with pytest.raises(DataError, match="have 255 values, and no file says which are classes"):
        read(folder(mask=lambda path: save(path, values)))
    with pytest.raises(DataError, match=r"do not fit .*_classes.csv: .* They have 255 \(320 pixels\)"):
        read(folder("id,name\n3,road", mask=lambda path: save(path, np.full((16, 20), 255, np.uint8))))


# What is wrong


def test_problems_are_reported_with_file_names(tmp_path: Path, picture: Picture) -> None:
    for name in "abcdefg":
        picture(tmp_path / "train" / f"{name}.png")
        save(tmp_path / "train" / f"{name}_mask.png")
    save(tmp_path / "train" / "b_mask.png", VALUES[:, :19])
    (tmp_path / "train" / "c_mask.png").write_bytes(b"broken")
    save(tmp_path / "train" / "d_mask.png", VALUES * 20)
    (tmp_path / "train" / "e_mask.png").unlink()
    (tmp_path / "train" / "f.png").unlink()
    Image.fromarray(np.zeros((16, 20), np.float32), "F").save(tmp_path / "train" / "g_mask.tif")
    (tmp_path / "train" / "g_mask.png").unlink()
    (tmp_path / "_classes.csv").write_text("id,name\n0,a\n1,b\n2,c\n")
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("train/a.png", "train/d.png")
    assert target(tables, 1).unique().tolist() == [0, 255]
    assert notices == [
        "1 images without a mask, left out: train/e.png.",
        "1 masks without an image, left out: train/f_mask.png.",
        "1 masks of another size than their image, left out with it: train/b_mask.png (19x16, the image 20x16).",
        "2 masks that cannot be read, left out with their images: train/c_mask.png (not an image), "
        "train/g_mask.tif (its pixels are fractions, not whole numbers).",
        "1 masks with values that stand for no class, which are unknown there: train/d_mask.png (20, 40).",
    ]
    with pytest.raises(
        DataError, match=r"1 images without a mask: train/e\.png\. 1 masks without .* leave out `strict`"
    ):
        read(tmp_path, strict=True)
    assert read(tmp_path)[1] == notices  # what is wrong is not remembered


def test_a_rotated_photograph_has_an_upright_mask(tmp_path: Path, picture: Picture) -> None:
    path = picture(tmp_path / "a.jpg", size=(20, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    save(tmp_path / "a_mask.png", VALUES.T)
    tables, notices = read(tmp_path, strict=True)
    assert target(tables).shape == (20, 16) == tables["train"].load(0).image.shape[1:]
    assert notices == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,name\n0,a\n0,b\n", "gives two classes the same value"),
        ("id\n0\n", "no column is named one of"),
        ("name,r,g,b\na,0,0,256\n", "'256' is not a number from 0 to 255"),
        ("id,name\nx,a\n", "is not a class table"),
        (
            "id,name\n" + "".join(f"{value},{value}\n" for value in range(300)),
            "has 300 classes, and 255 is the maximum",
        ),
    ],
)
def test_invalid_class_tables_are_refused(folder: Callable[..., Path], table: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(folder(table))


def test_colors_that_are_none_are_refused(folder: Callable[..., Path]) -> None:
    for colors in ({"road": "red"}, {"road": (1, 2)}, {"road": None}):
        with pytest.raises(DataError, match="What is given as `colors` is not a class table: "):
            read(folder(), colors=colors)
    with pytest.raises(DataError, match=r"classes.json is not a class table: cannot convert"):
        read(folder('{"road": [1e999, 0, 0]}', "classes.json"))


@pytest.mark.parametrize("content", ["Pixel Value, Class\n", "", "\n\n"])
def test_a_class_table_with_a_header_alone_is_not_used(folder: Callable[..., Path], content: str) -> None:
    root = folder()
    (root / "_classes.csv").write_text(content)
    (root / "classes.txt").write_text("ground\nroad\ncar\n")
    tables, notices = read(root)
    assert tables["train"].class_names == ("ground", "road", "car")
    assert "_classes.csv names no class, and is not used." in notices
    (root / "classes.txt").unlink()
    assert read(root)[0]["train"].class_names == ("0", "1", "2")


def test_contradicting_class_tables_are_refused(tmp_path: Path, picture: Picture) -> None:
    for split, name in {"train": "road", "valid": "lane"}.items():
        picture(tmp_path / split / "a.png")
        save(tmp_path / split / "a_mask.png")
        (tmp_path / split / "_classes.csv").write_text(f"id,name\n0,{name}\n")
    with pytest.raises(DataError, match="disagree on the classes"):
        read(tmp_path)


def test_jpeg_masks_are_reported(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "images" / "a.png")
    save(tmp_path / "masks" / "a.jpg", np.zeros((16, 20), np.uint8))
    assert "1 masks are JPEG files, which do not keep values exactly: a.jpg." in read(tmp_path)[1]


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_masks_of_two_values_are_background_and_foreground(tmp_path: Path, mode: str, quality: int) -> None:
    """The layout of Kvasir-SEG: 0 and 255 have become dozens of values."""
    at, seen = np.arange(120), set()
    for number in range(4):
        disc = (at[:, None] - 60) ** 2 + (at[:100] - 40 - 5 * number) ** 2 < 30**2
        for folder, image, options in (
            ("images", Image.new("RGB", (100, 120)), {}),
            ("masks", Image.fromarray(np.uint8(255) * disc).convert(mode), {"quality": quality}),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            image.save(tmp_path / folder / f"{number}.jpg", **options)
        seen |= set(np.unique(np.array(Image.open(tmp_path / "masks" / f"{number}.jpg"))).tolist())
    assert len(seen) > 10
    tables, notices = read(tmp_path)
    assert tables["train"].class_names == ("background", "foreground")
    assert (target(tables, 3).as_subclass(torch.Tensor) != torch.from_numpy(disc)).float().mean() < 0.005
    assert notices == [
        "4 masks are JPEG files, which do not keep values exactly: 0.jpg, 1.jpg, 2.jpg, 3.jpg.",
        "4 masks with soft edges, whose other pixels count as the nearest of 0, 255: masks/0.jpg, masks/1.jpg, "
        "masks/2.jpg, masks/3.jpg.",
    ]
    with pytest.raises(DataError, match=r"4 masks with soft edges: masks/0\.jpg"):
        read(tmp_path, strict=True)


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 3, 9)])
def test_jpeg_masks_of_more_classes_are_refused(tmp_path: Path, picture: Picture, values: tuple[int, ...]) -> None:
    picture(tmp_path / "images" / "a.png")
    save(tmp_path / "masks" / "a.jpg", np.array(values, np.uint8)[VALUES])
    with pytest.raises(DataError, match=r"are JPEG files, .* no file says which of their \d+ values .* as PNG files"):
        read(tmp_path)
    (tmp_path / "_classes.csv").write_text("id,name\n" + "".join(f"{value},{value}\n" for value in values))
    assert read(tmp_path)[0]["train"].class_names == tuple(map(str, values))


def test_pixels_are_counted(tmp_path: Path, picture: Picture) -> None:
    for name, values in {"a": VALUES, "b": VALUES * 0, "c": np.where(VALUES == 2, 255, 0).astype(np.uint8)}.items():
        picture(tmp_path / f"{name}.png")
        save(tmp_path / f"{name}_mask.png", values)
    (tmp_path / "_classes.csv").write_text("id,name\n0,ground\n1,road\n2,car\n3,moon\n")
    train = read(tmp_path)[0]["train"]
    assert train.amounts(0) == {"ground": 120, "road": 120, "car": 80}
    assert [Subset(train, [2, 1]).amounts(row) for row in (0, 1)] == [{"ground": 240}, {"ground": 320}]
    assert train.counts() == (3, 1, 1, 0)


# Where masks lie


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{}/a.png", "{}/a_mask.png"),
        ("{}/images/a.jpg", "{}/masks/a.png"),
        ("images/{}/a.jpg", "annotations/{}/a.png"),
        ("{}/JPEGImages/a.jpg", "{}/SegmentationClass/a.png"),
        ("{}/a.png", "{}_labels/a_L.png"),
        ("{}/a.png", "{}annot/a.png"),
        ("{}_images/a.png", "{}_masks/a.png"),
        ("{}/images/x/a.png", "{}/labels/x/a.png"),
        ("{}/PNGImages/a.png", "{}/PNGMasks/a.png"),
        ("PNGImages_{}/a.png", "ped_masks_{}/a_mask.png"),
        ("{}/image_1.png", "{}/mask_1.png"),
        ("{}/img1.png", "{}/1_label.png"),
    ],
)
def test_layouts(tmp_path: Path, picture: Picture, image: str, mask: str) -> None:
    for split in ("train", "val"):
        picture(tmp_path / image.format(split))
        save(tmp_path / mask.format(split))
        save(tmp_path / split / "SegmentationObject" / "a.png")
    tables, notices = read(tmp_path)
    assert {split: table.ids for split, table in tables.items()} == {
        split: (image.format(split),) for split in ("train", "val")
    }
    assert tables["val"].mask_paths == (str(tmp_path / mask.format("val")),)
    assert notices == []


def test_split_lists(tmp_path: Path, picture: Picture) -> None:
    for name in "abc":
        picture(tmp_path / "JPEGImages" / f"{name}.png")
        save(tmp_path / "SegmentationClass" / f"{name}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("c\nb\n")
    (lists / "val.txt").write_text("a\n")
    tables, _ = read(tmp_path)
    assert tables["train"].ids == ("JPEGImages/c.png", "JPEGImages/b.png")
    assert tables["val"].ids == ("JPEGImages/a.png",)
    (lists / "val.txt").write_text("a\nzz\n")
    assert "1 split-list entries that match no file, left out: zz." in read(tmp_path)[1]
    with pytest.raises(DataError, match="1 split-list entries that match no file: zz"):
        read(tmp_path, strict=True)


def test_two_masks_for_one_image_are_refused(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "images" / "a.png")
    save(tmp_path / "masks" / "a.png")
    save(tmp_path / "labels" / "a.png")
    with pytest.raises(DataError, match=r"two files for one image or mask: labels/a\.png and masks/a\.png"):
        read(tmp_path)


def test_images_without_masks_are_refused(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "cats" / "a.png")
    with pytest.raises(DataError, match="no images with masks"):
        read(tmp_path)


# Cityscapes


def test_cityscapes(tmp_path: Path, picture: Picture) -> None:
    values = np.array([7, 0, 33], np.uint8)[VALUES]
    for split in ("train", "val", "test"):
        stem = f"{split}/bonn/bonn_000000_000019"
        picture(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png")
        save(tmp_path / "gtFine" / f"{stem}_gtFine_labelIds.png", values if split != "test" else values * 0)
        save(tmp_path / "gtFine" / f"{stem}_gtFine_instanceIds.png", values)
    picture(tmp_path / "leftImg8bit" / "train_extra" / "ulm" / "ulm_1_leftImg8bit.png")
    notices: list[str] = []
    tables: Any = read_cityscapes(tmp_path, notices, strict=True)
    assert list(tables) == ["train", "val"]
    assert len(tables["train"].class_names) == 19
    assert tables["train"].labels(0) == ("road", "bicycle")
    assert torch.equal(target(tables), torch.tensor([0, 255, 18], dtype=torch.uint8)[torch.from_numpy(VALUES).long()])
    assert tables["train"].ids == ("leftImg8bit/train/bonn/bonn_000000_000019_leftImg8bit.png",)
    assert notices == ["test: left out, since none of its masks has a pixel of a class."]
    with pytest.raises(DataError, match="has no leftImg8bit/ and gtFine/"):
        read_cityscapes(tmp_path / "gtFine", [])


def test_cityscapes_by_train_ids(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "leftImg8bit" / "train" / "bonn" / "b_leftImg8bit.png")
    values = np.array([0, 255, 18], np.uint8)[VALUES]
    save(tmp_path / "gtFine" / "train" / "bonn" / "b_gtFine_labelTrainIds.png", values)
    tables: Any = read_cityscapes(tmp_path, [], strict=True)
    assert torch.equal(target(tables), torch.from_numpy(values))
