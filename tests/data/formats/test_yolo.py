"""YOLO's text files, with all the ways to name the images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.formats import read_yolo
from autotimm.errors import DataError

Picture = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, picture: Picture) -> Callable[..., Path]:
    """Two images to train on and one to validate; the label file of the second is empty."""

    def written(first: str = "1 0.5 0.5 0.5 0.25\n", **content: Any) -> Path:
        for name in ("train/images/a.png", "train/images/b.png", "valid/images/c.png"):
            picture(tmp_path / name)
        labels = {"train/labels/a.txt": first, "train/labels/b.txt": "", "valid/labels/c.txt": "0 0.5 0.5 1 1"}
        for name, lines in labels.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(lines)
        given = {"train": "train/images", "val": "valid/images", "names": ["zebra", "ant"], "nc": 2} | content
        (tmp_path / "data.yaml").write_text(
            yaml.safe_dump({key: value for key, value in given.items() if value is not None})
        )
        return tmp_path

    return written


def read(root: Path, **options: bool) -> tuple[dict[str, ObjectTable], list[str]]:
    notices: list[str] = []
    return read_yolo(root, notices, **options), notices  # type: ignore[return-value]


def test_boxes_are_fractions_of_the_image(write: Callable[..., Path]) -> None:
    tables, notices = read(write())
    assert {split: table.ids for split, table in tables.items()} == {
        "train": ("train/images/a.png", "train/images/b.png"),
        "val": ("valid/images/c.png",),
    }
    assert tables["train"].class_names == ("zebra", "ant")  # in the order of the file
    target = tables["train"].load(0).target
    assert target["boxes"].tolist() == [[5, 6, 15, 10]]
    assert target["labels"].tolist() == [1]
    assert tables["train"].load(1).target["boxes"].shape == (0, 4)
    assert tables["val"].load(0).target["boxes"].tolist() == [[0, 0, 20, 16]]
    assert notices == []


def test_polygons(write: Callable[..., Path]) -> None:
    root = write("0 0.1 0.25 0.5 0.25 0.5 0.75 0.1 0.75\n1 0.5 0.5 0.5 0.25\n")
    tables, notices = read(root, masks=True)
    target = tables["train"].load(0).target
    assert target["masks"][0].sum() == 8 * 8
    assert target["boxes"].tolist() == [[2, 4, 10, 12], [5, 6, 15, 10]]
    assert target["crowd"].tolist() == [False, True]
    both = "train/images/a.png, valid/images/c.png"
    assert notices == [
        f"2 objects without an outline, neither learned nor counted: {both}.",
        "No image of val has an object that counts: its average precision will be 0.",
    ]
    boxes, notices = read(root)
    assert boxes["train"].load(0).target["crowd"].tolist() == [False, False]
    assert notices == []
    with pytest.raises(DataError, match="boxes and no outlines"):
        read(write(), masks=True)


def test_corners_of_a_pose_are_not_a_polygon(write: Callable[..., Path]) -> None:
    root = write("0 0.5 0.5 0.5 0.25 0.1 0.1 0.2 0.2\n", kpt_shape=[2, 2])
    assert read(root)[0]["train"].load(0).target["boxes"].tolist() == [[5, 6, 15, 10]]


@pytest.mark.parametrize(
    ("changes", "ids"),
    [
        ({"train": "../train/images", "val": "../valid/images"}, 2),  # Roboflow
        ({"path": ".", "train": ["train/images", "valid/images"], "val": None}, 3),
        ({"path": "../datasets/not/here"}, 2),
        ({"train": "list.txt"}, 3),
        ({"names": {1: "ant", 0: "zebra"}}, 2),
    ],
)
def test_ways_to_name_the_images(write: Callable[..., Path], changes: dict[str, Any], ids: int) -> None:
    root = write(**changes)
    (root / "list.txt").write_text("./train/images/a.png\ntrain/images/b.png\n\n./valid/images/c.png\n")
    tables, _ = read(root)
    assert len(tables["train"].ids) == ids
    assert tables["train"].ids[0] == "train/images/a.png"
    assert tables["train"].class_names == ("zebra", "ant")
    assert tables["train"].load(0).target["boxes"].tolist() == [[5, 6, 15, 10]]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train\\images", "..\\valid\\images"),
        ("/content/drive/test/pets/train/images", "/content/drive/test/pets/valid/images"),
        ("C:\\pets\\train\\images", "C:\\pets\\valid\\images"),
        ("../../train/images", "pets/valid"),
        ("pets/train.txt", "pets/val.txt"),
        ("train.txt", "val.txt"),
    ],
)
@pytest.mark.parametrize("line", ["pets/{}", "C:\\pets\\{}", "/content/pets/{}", ".\\{}"])
def test_paths_of_another_computer(write: Callable[..., Path], train: str, val: str, line: str) -> None:
    root = write(train=train, val=val, path="/content/pets")
    names = {"train": ["train/images/a.png", "train/images/b.png"], "val": ["valid/images/c.png"]}
    for split, listed in names.items():
        slash = "\\" if "\\" in line else "/"
        (root / f"{split}.txt").write_text("\n".join(line.format(name.replace("/", slash)) for name in listed))
    tables, notices = read(root, strict=True)
    assert {split: list(table.ids) for split, table in tables.items()} == names
    assert notices == []


def test_the_folder_of_the_split_is_kept(write: Callable[..., Path], picture: Picture) -> None:
    """``valid/images`` is not ``images``, and one line of a list is not read in another way than its neighbors."""
    root = write(val="pets/valid/photos", test="pets/test/images")
    for name in ("images/x.png", "photos/x.png", "b.png"):
        picture(root / name)
    tables, notices = read(root)
    assert tables.keys() == {"train"}
    assert notices == [
        "2 entries of data.yaml that lead to no image, left out: val: pets/valid/photos, test: pets/test/images."
    ]
    (root / "list.txt").write_text("pets/train/images/a.png\npets/b.png\n")
    (root / "data.yaml").write_text("{train: list.txt, names: [zebra, ant]}")
    tables, notices = read(root)
    assert tables["train"].ids == ("train/images/a.png", "b.png")
    (root / "list.txt").write_text("train/images/a.png\npets/b.png\n")
    tables, notices = read(root)
    assert notices == ["1 missing images, left out: pets/b.png."]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_that_leads_nowhere_is_reported(write: Callable[..., Path], split: str) -> None:
    root = write(**{split: ["valid/images", "gone/images"]})
    tables, notices = read(root)
    assert tables[split].ids == ("valid/images/c.png",)
    assert f"1 entries of data.yaml that lead to no image, left out: {split}: gone/images." in notices
    with pytest.raises(DataError, match=f"1 entries of data.yaml that lead to no image: {split}: gone/images"):
        read(root, strict=True)


def test_labels_in_the_wrong_place_are_refused(write: Callable[..., Path]) -> None:
    root = write()
    (root / "train" / "labels").rename(root / "train" / "annotations")
    message = "no training image has a label file. For train/images/a.png it would be train/labels/a.txt or"
    with pytest.raises(DataError, match=message):
        read(root)
    with pytest.raises(DataError, match=message):
        read(root, masks=True)
    (root / "train" / "labels").mkdir()
    (root / "train" / "labels" / "a.txt").touch()
    with pytest.raises(DataError, match="None of the 2 training images has an object"):
        read(root)


def test_labels_beside_images(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "train" / "a.png")
    (tmp_path / "train" / "a.txt").write_text("0 0.5 0.5 0.5 0.25 0.9\n")  # with a confidence
    (tmp_path / "my.yaml").write_text("{names: [ant], train: train}")
    assert read(tmp_path)[0]["train"].load(0).target["boxes"].tolist() == [[5, 6, 15, 10]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 0.5 0.5 0.5 0.25", "class 2 of 2"),
        ("-1 0.5 0.5 0.5 0.25", "class -1 of 2"),
        ("0.5 0.5 0.5 0.5 0.25", "class 0.5 of 2"),
        ("0 120 80 20 20", "coordinates outside [0, 1]"),
        ("0 nan 0.5 0.5 0.5", "coordinates outside [0, 1]"),
        ("0 0.5 0.5 0.5", "3 coordinates"),
        ("ant 0.5 0.5 0.5 0.5", "could not convert"),
    ],
)
def test_invalid_lines_are_reported(write: Callable[..., Path], line: str, reason: str) -> None:
    root = write(f"1 0.5 0.5 0.5 0.25\n{line}\n")
    tables, notices = read(root)
    assert len(tables["train"].load(0).target["boxes"]) == 1
    assert len(notices) == 1
    assert f"train/images/a.png, line 2 ({reason}" in notices[0]
    with pytest.raises(DataError, match="1 label lines that cannot be used"):
        read(root, strict=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": []}, "`names` must be a list"),
        ({"names": {"a": 1}}, "`names` must be a list"),
        ({"names": None}, "must have exactly one YAML file with YOLO's `names` and `train`. Got none"),
        ({"train": "nowhere"}, "`train` leads to no image: 'nowhere'"),
        ({"train": {"a": 1}}, "must be a path or a list of paths"),
    ],
)
def test_invalid_data_are_refused(write: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(**changes))


def test_invalid_yaml_is_refused(write: Callable[..., Path]) -> None:
    root = write()
    (root / "data.yaml").write_text("names: [a\n")
    with pytest.raises(DataError, match="cannot be read as YAML"):
        read(root / "data.yaml")


def test_a_yaml_file_that_is_a_bomb(write: Callable[..., Path]) -> None:
    """One that does not describe the data set is passed over, as any other file is."""
    root = write()
    bomb = "a0: &a0 [ha]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))
    (root / "other.yaml").write_text(f"names: [a]\ntrain: a\n{bomb}")
    assert len(read(root)[0]["train"].ids) == 2
    with (root / "data.yaml").open("a") as file:
        file.write(bomb)
    with pytest.raises(DataError, match=r"cannot be read as YAML: its aliases stand for more than 10,000 values"):
        read_yolo(root / "data.yaml", [])


def test_images_of_lists_that_are_missing(write: Callable[..., Path]) -> None:
    root = write(train="list.txt")
    (root / "list.txt").write_text("train/images/a.png\ntrain/images/gone.png\n")
    tables, notices = read(root)
    assert tables["train"].ids == ("train/images/a.png",)
    assert notices == ["1 missing images, left out: train/images/gone.png."]


def test_classes_of_one_name_are_one_class(write: Callable[..., Path]) -> None:
    root = write("0 0.5 0.5 0.5 0.25\n2 0.5 0.5 0.25 0.25\n", names=["ant", "bee", "ant"], nc=3)
    tables, notices = read(root)
    assert tables["train"].class_names == ("ant", "bee")
    assert tables["train"].load(0).target["labels"].tolist() == [0, 0]
    assert notices == ["1 classes with the name of another, one class: ant."]
    with pytest.raises(DataError, match="1 classes with the name of another: ant"):
        read(root, strict=True)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ("[yes, no]", ("yes", "no")),
        ("[on, off]", ("on", "off")),
        ("[1e3, 08]", ("1e3", "08")),
        ("[2024-01-01, ~]", ("2024-01-01", "~")),
        ("{0: yes, 1: no}", ("yes", "no")),
        ("{'0': cat, '1': dog}", ("cat", "dog")),
        ('{"1": dog, 0: cat}', ("cat", "dog")),
    ],
)
def test_names_are_text_as_they_stand_in_the_file(
    write: Callable[..., Path], names: str, classes: tuple[str, ...]
) -> None:
    root = write()
    (root / "data.yaml").write_text(f"names: {names}\ntrain: train/images\nnc: 2\n")
    tables, notices = read(root)
    assert (tables["train"].class_names, notices) == (classes, [])


def test_another_number_of_classes_than_names(write: Callable[..., Path]) -> None:
    root = write(nc=3)
    assert read(root)[1] == ["data.yaml says `nc: 3`, and has 2 names. The names count: data.yaml."]
    with pytest.raises(DataError, match=r"^data\.yaml says `nc: 3`, and has 2 names"):
        read(root, strict=True)


def test_lines_that_repeat_another_are_left_out(write: Callable[..., Path]) -> None:
    root = write("1 0.5 0.5 0.5 0.25\n1 0.5 0.5 0.5 0.25\n0 0.5 0.5 0.5 0.25\n1 .5 .5 .5 .25\n")
    tables, notices = read(root)
    assert tables["train"].load(0).target["labels"].tolist() == [1, 0]
    assert notices == [
        "2 label lines that repeat another, left out: train/images/a.png, line 2, train/images/a.png, line 4."
    ]


def test_a_number_of_a_class_beyond_reason_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="`names` must be a list"):
        read(write(names={10**9: "ant"}))
