"""Masks that do not fit their class table, and masks with soft edges: read right, or refused with the values found."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from autotimm.data.annotations.masks import MaskTable
from autotimm.data.formats import read_label_images
from autotimm.data.formats.mask_values import is_stretched
from autotimm.errors import DataError

Picture = Callable[..., Path]
PURPLE, YELLOW, BLACK = (60, 16, 152), (226, 169, 41), (0, 0, 0)
SIZE = (60, 80)


def discs(seed: int, values: Sequence[int], size: tuple[int, int] = SIZE) -> NDArray[np.int64]:
    """The first value with a disc of each other one, which may overlap the ones before."""
    random, mask = np.random.default_rng(seed), np.full(size, values[0])
    rows, columns = np.ogrid[: size[0], : size[1]]
    for at, value in enumerate(values[1:]):
        center = (
            random.integers(16, size[0] - 16),
            random.integers(16, 24) + at * (size[1] - 40) // max(len(values) - 2, 1),
        )
        mask[(rows - center[0]) ** 2 + (columns - center[1]) ** 2 < random.integers(10, 15) ** 2] = value
    return mask


def write(root: Path, picture: Picture, number: int, mask: Image.Image, suffix: str = ".png", **options: Any) -> None:
    picture(root / "images" / f"{number}.png", mask.size)
    (root / "masks").mkdir(exist_ok=True)
    mask.save(root / "masks" / f"{number}{suffix}", **options)


def colored(classes: NDArray[np.int64], colors: Sequence[tuple[int, int, int]]) -> Image.Image:
    return Image.fromarray(np.array(colors, np.uint8)[classes])


def indexed(classes: NDArray[np.int64], colors: Sequence[tuple[int, int, int]], order: Sequence[int]) -> Image.Image:
    """A palette image: class c has the index order[c]."""
    image = Image.fromarray(np.array(order, np.uint8)[classes], "P")
    palette = np.full((256, 3), 9, np.uint8)
    palette[list(order)] = colors
    image.putpalette(palette.ravel().tolist())
    return image


def read(root: Path, **options: Any) -> tuple[MaskTable, list[str]]:
    notices: list[str] = []
    return read_label_images(root, notices, **options)["train"], notices  # type: ignore[return-value]


def target(table: MaskTable, row: int = 0) -> NDArray[np.uint8]:
    return table.load(row).target.numpy()  # type: ignore[no-any-return]


# Colors


def mixed_masks(root: Path, picture: Picture) -> list[NDArray[np.int64]]:
    """RGB masks and palette masks with an order each, as exports of the same project by two programs."""
    classes = [discs(seed, (0, 1)) for seed in range(4)]
    for number, (mask, order) in enumerate(zip(classes, [None, (0, 1), (1, 0), (7, 3)], strict=True)):
        colors = (PURPLE, YELLOW)
        write(root, picture, number, colored(mask, colors) if order is None else indexed(mask, colors, order))
    return classes


OTHER_COLORS = {
    "classes.json": '{"land": "#8429f6", "road": [110, 193, 228], "water": [254, 221, 58]}',
    "class_dict.csv": "name,r,g,b\nland,132,41,246\nroad,110,193,228\n",
    "labelmap.txt": "land:132,41,246::\nroad:110,193,228::\n",
    "meta.json": '{"classes": [{"title": "land", "color": "#8429F6"}, {"title": "road", "color": "#6EC1E4"}]}',
}


@pytest.mark.parametrize("name", OTHER_COLORS)
def test_a_table_of_other_colors_is_refused(tmp_path: Path, picture: Picture, name: str) -> None:
    classes = mixed_masks(tmp_path, picture)
    (tmp_path / name).write_text(OTHER_COLORS[name])
    pixels = sum(mask.sum() for mask in classes)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert f"do not fit {tmp_path / name}: of its colors (#8429f6, #6ec1e4" in message
    assert f"They have #3c1098 ({4 * 60 * 80 - pixels} pixels), #e2a929 ({pixels} pixels). Name" in message
    assert caught.value.exit_code == 3


def test_soft_edges_do_not_make_a_table_fit(tmp_path: Path, picture: Picture) -> None:
    image = colored(discs(1, (0, 1), (120, 160)), (BLACK, YELLOW)).resize((323, 243), Image.Resampling.NEAREST)
    write(tmp_path, picture, 0, image.resize((160, 120), Image.Resampling.BILINEAR))
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nroad:0,0,200::\n")
    with pytest.raises(DataError, match=r"no other than background\. They have #000000 \(\d+ pixels\), #e2a929"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["gray", "palette"])
def test_places_of_a_table_of_colors_are_never_values(tmp_path: Path, picture: Picture, kind: str) -> None:
    mask = discs(0, (0, 1, 2))
    image = Image.fromarray(mask.astype(np.uint8))
    write(tmp_path, picture, 0, image if kind == "gray" else indexed(mask, (BLACK, PURPLE, YELLOW), (0, 1, 2)))
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nwater,110,193,228\nland,0,0,0\nroad,8,8,8\n")
    with pytest.raises(DataError, match=r"they have no other than land\. .* give each class its `value` there"):
        read(tmp_path)
    (tmp_path / "class_dict.csv").write_text("value,name,r,g,b\n0,water,1,1,1\n1,land,2,2,2\n2,road,8,8,8\n")
    table, _ = read(tmp_path)
    assert table.class_names == ("water", "land", "road")
    assert np.array_equal(target(table), mask)


def test_a_table_of_fewer_colors_than_the_masks_have(tmp_path: Path, picture: Picture) -> None:
    """Black alone, which every table has, does not make a table fit."""
    write(tmp_path, picture, 0, colored(discs(0, (0, 1)), (BLACK, YELLOW)))
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nroad:1,2,3::\n")
    with pytest.raises(DataError, match=r"no other than background\. They have #000000 \(\d+ pixels\), #e2a929"):
        read(tmp_path)


def test_palettes_that_differ_are_read_by_color(tmp_path: Path, picture: Picture) -> None:
    classes = mixed_masks(tmp_path, picture)
    with pytest.raises(DataError, match=r"no file says which color is which class: #3c1098 \(\d+ pixels\), #e2a929"):
        read(tmp_path)
    (tmp_path / "masks" / "0.png").unlink()  # palettes alone
    with pytest.raises(DataError, match=r"palettes that differ, .* #3c1098 \(\d+ pixels\), #e2a929"):
        read(tmp_path)
    (tmp_path / "classes.json").write_text('[{"name": "land", "color": "#3c1098", "id": 0}, '
                                           '{"name": "road", "color": "#e2a929", "id": 1}]')  # fmt: skip
    table, notices = read(tmp_path)
    assert [np.array_equal(target(table, row), classes[row + 1]) for row in range(3)] == [True] * 3
    assert notices == ["1 images without a mask, left out: images/0.png."]
    (tmp_path / "classes.json").write_text('{"land": 0, "road": 1, "sky": 3, "sea": 7}')
    assert "The masks have different palettes" in read(tmp_path)[1][0]
    (tmp_path / "classes.json").write_text('["land", "road", "sky", "sea"]')
    with pytest.raises(DataError, match=r"classes\.json has none\. They have #3c1098 \(\d+ pixels\), #e2a929"):
        read(tmp_path)


def test_palettes_that_differ_in_unused_colors_are_the_same(tmp_path: Path, picture: Picture) -> None:
    for number in range(2):
        image = indexed(discs(number, (0, 1, 2)), (BLACK, PURPLE, YELLOW), (0, 1, 2))
        palette = image.getpalette() or []
        image.putpalette([*palette[:30], *(number for _ in palette[30:])])
        write(tmp_path, picture, number, image)
    assert read(tmp_path)[0].class_names == ("0", "1", "2")


def test_a_mask_without_a_known_pixel_is_left_out(tmp_path: Path, picture: Picture) -> None:
    for number in range(3):
        colors = ((1, 1, 1), (2, 2, 2)) if number == 1 else (PURPLE, YELLOW)
        write(tmp_path, picture, number, colored(discs(number, (0, 1)), colors))
    (tmp_path / "labelmap.txt").write_text("land:60,16,152::\nroad:226,169,41::\n")
    table, notices = read(tmp_path)
    assert table.ids == ("images/0.png", "images/2.png")
    assert notices == [
        "1 masks without a pixel of a class, left out with their images: masks/1.png (#010101, #020202)."
    ]
    with pytest.raises(DataError, match=r"1 masks without a pixel of a class: masks/1\.png"):
        read(tmp_path, strict=True)


def test_a_mask_of_unknown_pixels_alone_is_left_out(tmp_path: Path, picture: Picture) -> None:
    for number in range(3):
        mask = discs(number, (0, 1, 2)) if number != 1 else np.full(SIZE, 255)
        write(tmp_path, picture, number, Image.fromarray(np.uint8(mask)))
    table, notices = read(tmp_path)
    assert table.ids == ("images/0.png", "images/2.png")
    assert "1 masks without a pixel of a class, left out with their images: masks/1.png." in notices


# 255


def test_255_is_a_class_where_no_two_others_are_left(tmp_path: Path, picture: Picture) -> None:
    write(tmp_path, picture, 0, Image.fromarray(np.uint8(discs(0, (0, 255)))))
    (tmp_path / "_classes.csv").write_text("value,name\n0,background\n1,road\n")
    with pytest.raises(DataError, match=r"of its values \(0, 1\) they have no other than background\. They have 0 \("):
        read(tmp_path)
    (tmp_path / "_classes.csv").write_text("value,name\n0,background\n255,road\n")
    assert read(tmp_path)[0].counts() == (1, 1)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ((0, 255), ("background", "foreground")),
        ((4, 255), ("4", "255")),
        ((0, 1, 255), ("0", "1")),
        ((0, 128, 255), ("0", "128", "255")),
        ((0, 85, 170, 255), ("0", "85", "170", "255")),
        ((0, 128, 192, 255), ("0", "128", "192")),
    ],
)
def test_255_without_a_table(tmp_path: Path, picture: Picture, values: tuple[int, ...], names: tuple[str, ...]) -> None:
    write(tmp_path, picture, 0, Image.fromarray(np.uint8(discs(0, values))))
    table, notices = read(tmp_path)
    assert table.class_names == names
    assert any("255" in notice for notice in notices) == (len(values) > 2)


def test_stretched_values() -> None:
    assert is_stretched([0, 127, 255])
    assert not is_stretched([0, 255])
    assert not is_stretched([0, 1, 2, 255])


# Soft edges


def softened(mask: NDArray[np.int64], how: str) -> Image.Image:
    """A mask of 8 bits with smooth edges, of the same size."""
    image = Image.fromarray(np.uint8(mask))
    height, width = mask.shape
    if how == "jpeg":
        return image
    if how == "up":
        small = image.resize((width // 3, height // 3), Image.Resampling.NEAREST)
        return small.resize((width, height), Image.Resampling.BILINEAR)
    large = image.resize((2 * width + 9, 2 * height + 9), Image.Resampling.NEAREST)
    return large.resize((width, height), {"down": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}[how])


@pytest.mark.parametrize("how", ["down", "lanczos", "up", "jpeg"])
@pytest.mark.parametrize("values", [(0, 255), (0, 90), (0, 128, 255), (0, 100, 255), (0, 85, 170, 255), (10, 100, 200)])
def test_soft_edges_belong_to_the_nearest_class(
    tmp_path: Path, picture: Picture, how: str, values: tuple[int, ...]
) -> None:
    masks = [discs(seed, values, (120, 160)) for seed in range(3)]
    for number, mask in enumerate(masks):
        suffix, options = (".jpg", {"quality": 85}) if how == "jpeg" else (".png", {})
        write(tmp_path, picture, number, softened(mask, how), suffix, **options)
    table, notices = read(tmp_path)
    names = ("background", "foreground") if len(values) == 2 else tuple(map(str, values))
    assert table.class_names == names
    for row, mask in enumerate(masks):
        classes = target(table, row)
        assert classes.max() < len(values)  # no pixel is unknown
        assert (classes != np.searchsorted(values, mask)).mean() < 0.03
    listed = ", ".join(map(str, values))
    assert f"3 masks with soft edges, whose other pixels count as the nearest of {listed}: masks/0." in notices[-1]
    with pytest.raises(DataError, match="3 masks with soft edges: masks/0"):
        read(tmp_path, strict=True)


@pytest.mark.parametrize("quality", [40, 60, 70, 95])
def test_255_of_jpeg_masks_is_a_class(tmp_path: Path, picture: Picture, quality: int) -> None:
    """The values in between are hardly ever those that were painted."""
    masks = [discs(seed, (0, 128, 255), (120, 160)) for seed in range(2)]
    for number, mask in enumerate(masks):
        write(tmp_path, picture, number, softened(mask, "jpeg"), ".jpg", quality=quality)
    table, _ = read(tmp_path)
    assert len(table.class_names) == 3
    assert (target(table) != np.searchsorted((0, 128, 255), masks[0])).mean() < 0.005


def test_soft_edges_with_a_table_of_values(tmp_path: Path, picture: Picture) -> None:
    mask = discs(0, (0, 100, 200), (120, 160))
    soft = np.array(softened(mask, "down"))
    soft[:20, :20] = 240  # an area of something that the table does not name
    write(tmp_path, picture, 0, Image.fromarray(soft))
    (tmp_path / "_classes.csv").write_text("value,name\n0,land\n100,road\n200,car\n")
    table, notices = read(tmp_path)
    classes = target(table)
    assert (classes[:18, :18] == 255).all()
    known = classes[20:]
    assert known.max() < 3
    assert (known * 100 != mask[20:]).mean() < 0.02
    assert [notice.split(",")[0] for notice in notices] == [
        "1 masks with soft edges",
        "1 masks with values that stand for no class",
    ]


@pytest.mark.parametrize("lossy", [False, True])
def test_soft_edges_with_a_table_of_colors(tmp_path: Path, picture: Picture, lossy: bool) -> None:
    mask = discs(1, (0, 1), (120, 160))
    image = colored(mask, (PURPLE, YELLOW))
    large = image.resize((323, 243), Image.Resampling.NEAREST)
    suffix, options = (".jpg", {"quality": 90}) if lossy else (".png", {})
    write(tmp_path, picture, 0, large.resize((160, 120), Image.Resampling.BILINEAR), suffix, **options)
    (tmp_path / "labelmap.txt").write_text("land:60,16,152::\nroad:226,169,41::\n")
    table, notices = read(tmp_path)
    classes = target(table)
    assert classes.max() == 1
    assert (classes != mask).mean() < 0.02
    assert table.counts() == (1, 1)
    assert any(
        notice.startswith("1 masks with soft edges, whose other pixels count as the nearest of #3c1098, #e2a929")
        for notice in notices
    )


def test_many_soft_colors_are_counted_by_frequency(tmp_path: Path, picture: Picture) -> None:
    """More colors than are listed: those of classes are among the listed ones, wherever they are in the order."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    pixels = np.array(colored(discs(1, (0, 1), (120, 160)), (PURPLE, (250, 169, 41))))
    pixels[:10] = noise[:10]
    write(tmp_path, picture, 0, Image.fromarray(pixels))
    (tmp_path / "labelmap.txt").write_text("land:60,16,152::\nroad:250,169,41::\n")
    assert read(tmp_path)[0].counts() == (1, 1)


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 1, 2, 3, 4, 5, 255), (0, 20, 40), (0, 300, 40_000), (3, 9)])
def test_hard_edges_stay_as_they_are(tmp_path: Path, picture: Picture, values: tuple[int, ...]) -> None:
    """Also where a class has only lines of one pixel, which have no squares either."""
    mask = discs(0, values)
    mask[5, 3:50] = mask[10:40, 2] = values[1]
    mask[50] = 7
    write(tmp_path, picture, 0, Image.fromarray(mask.astype(np.int32)), ".tif")
    table, notices = read(tmp_path)
    assert not any("soft" in notice for notice in notices)
    classes = sorted({*values, 7} - {255})
    assert table.class_names == tuple(map(str, classes))
    known = mask != 255
    assert np.array_equal(target(table)[known], np.searchsorted(classes, mask[known]))


@pytest.mark.parametrize("how", ["down", "lanczos", "up"])
def test_soft_edges_between_indices_and_255_are_refused(tmp_path: Path, picture: Picture, how: str) -> None:
    """An edge from 0 to 255 passes 1 and 2, which are classes."""
    write(tmp_path, picture, 0, softened(discs(0, (0, 1, 2, 255), (120, 160)), how))
    with pytest.raises(DataError, match=r"no file says which are classes: 0 \(\d+ pixels\), .* without soft edges"):
        read(tmp_path)


def test_blurred_masks_are_refused(tmp_path: Path, picture: Picture) -> None:
    gradient = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (60, 1)) + np.arange(60, dtype=np.uint8)[:, None]
    write(tmp_path, picture, 0, Image.fromarray(gradient))
    with pytest.raises(DataError, match=r"no file says which are classes: .* write masks without soft edges"):
        read(tmp_path)


def test_negative_values_are_unknown(tmp_path: Path, picture: Picture) -> None:
    mask = discs(0, (0, 1, 2))
    mask[:9] = -1
    write(tmp_path, picture, 0, Image.fromarray(mask.astype(np.int32)), ".tif")
    table, notices = read(tmp_path)
    assert table.class_names == ("0", "1", "2")
    assert np.array_equal(target(table), np.where(mask < 0, 255, mask))
    assert notices == ["Pixels of negative values are treated as unknown, since no file names the classes."]
    (tmp_path / "classes.txt").write_text("land\nroad\ncar\n")
    table, notices = read(tmp_path, strict=True)
    assert np.array_equal(target(table), np.where(mask < 0, 255, mask))
    assert notices == []


# Lists of names


@pytest.mark.parametrize("name", ["classes.txt", "class_names.txt", "labels.txt", "classes.json"])
def test_a_list_of_names_may_count_from_1(tmp_path: Path, picture: Picture, name: str) -> None:
    """As long as the list is as long as the highest value says; 0 is unknown then."""
    mask = discs(0, (0, 1, 2, 3))
    write(tmp_path, picture, 0, Image.fromarray(np.uint8(mask)))
    names = ["wall", "sky", "sea"]
    text = '["wall", "sky", "sea"]' if name.endswith("json") else "\n".join(names)
    (tmp_path / name).write_text(text)
    table, notices = read(tmp_path, strict=True)
    assert table.class_names == tuple(names)
    assert np.array_equal(target(table), np.uint8(mask) - 1)
    assert notices == [f"{tmp_path / name} has a line for each of the values 1 to 3; 0 is unknown."]


def test_a_list_of_names_that_counts_from_0(tmp_path: Path, picture: Picture) -> None:
    mask = discs(0, (0, 1, 2))
    write(tmp_path, picture, 0, Image.fromarray(np.uint8(mask)))
    (tmp_path / "class_names.txt").write_text("wall\nsky\nsea\n")
    table, notices = read(tmp_path, strict=True)
    assert np.array_equal(target(table), mask)
    assert notices == []


@pytest.mark.parametrize("name", ["objectInfo150.txt", "class_names.txt"])
def test_ade20k(tmp_path: Path, picture: Picture, name: str) -> None:
    """Its 0 is unknown, also where the last classes do not occur."""
    mask = discs(0, (0, 1, 2))
    for split, folder in (("training", "ADE_train"), ("validation", "ADE_val")):
        picture(tmp_path / "images" / split / f"{folder}_1.jpg", SIZE[::-1])
        (tmp_path / "annotations" / split).mkdir(parents=True)
        Image.fromarray(np.uint8(mask)).save(tmp_path / "annotations" / split / f"{folder}_1.png")
    names = ["wall", "building", *(f"thing {number}" for number in range(148))]
    if name == "class_names.txt":
        lines = names
    else:
        cells = [f"{number}\t0.1\t100\t10\t1\t{label}" for number, label in enumerate(names, 1)]
        lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *cells]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    table, _ = read(tmp_path, strict=True)
    assert table.class_names == tuple(names)
    assert np.array_equal(target(table), np.uint8(mask) - 1)


# Masks that cannot be read


def test_masks_of_fractions_and_of_transparency_get_their_reason(tmp_path: Path, picture: Picture) -> None:
    mask = discs(0, (0, 255))
    alpha = np.zeros((*SIZE, 4), np.uint8)
    alpha[..., 3] = mask
    fractions = Image.fromarray((mask / 255).astype(np.float32))
    write(tmp_path, picture, 0, fractions, ".tif")
    with pytest.raises(DataError, match=r"None of the masks .* masks/0\.tif \(its pixels are fractions, not whole"):
        read(tmp_path)
    for number, image in {1: Image.fromarray(alpha), 2: Image.fromarray(alpha).convert("LA")}.items():
        write(tmp_path, picture, number, image)
    with pytest.raises(
        DataError, match=r"masks/1\.png \(it is drawn in the transparency, and all its colors are equal"
    ):
        read(tmp_path)
    write(tmp_path, picture, 3, Image.fromarray(np.uint8(mask)))
    table, notices = read(tmp_path)
    assert table.ids == ("images/3.png",)
    assert notices[0].startswith("3 masks that cannot be read, left out with their images: masks/0.tif")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_soft_edges_of_small_masks_are_no_classes(tmp_path: Path, picture: Picture, suffix: str) -> None:
    """A straight edge of a small mask has few values, and every tenth pixel lies on it."""
    for number in range(4):
        mask = np.zeros((30, 40), np.int64)
        mask[5:20, 5 + number : 25] = 255
        twice = Image.fromarray(np.uint8(mask)).resize((80, 60), Image.Resampling.BILINEAR)
        write(tmp_path, picture, number, twice.resize((40, 30), Image.Resampling.BILINEAR), suffix)
    table, notices = read(tmp_path)
    assert table.class_names == ("background", "foreground")
    assert any("4 masks with soft edges" in notice for notice in notices)
    assert (target(table)[6:19, 9:24] == 1).all()
