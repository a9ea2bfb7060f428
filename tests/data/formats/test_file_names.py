"""Names of images in annotation files: of several files, of none, and written differently than the file."""

import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from autotimm.data.formats import read_boxes_csv, read_coco, read_label_images, read_voc, read_yolo
from autotimm.errors import DataError

Picture = Callable[..., Path]


def write_coco(root: Path, names: Sequence[str]) -> None:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    entries = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [number, 1, 3, 3]} for number in range(len(names))
    ]
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}
    (root / "coco.json").write_text(json.dumps(content))


def write_csv(root: Path, names: Sequence[str]) -> None:
    rows = [f"{name},cat,{number},1,{number + 3},4" for number, name in enumerate(names)]
    (root / "boxes.csv").write_text("\n".join(["filename,class,xmin,ymin,xmax,ymax", *rows]), encoding="utf-8")


def write_voc(root: Path, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        box = f"<xmin>{number + 1}</xmin><ymin>2</ymin><xmax>{number + 3}</xmax><ymax>4</ymax>"
        file = root / "Annotations" / Path(name).with_suffix(".xml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>")


READERS = {"coco": (write_coco, read_coco), "csv": (write_csv, read_boxes_csv), "voc": (write_voc, read_voc)}


@pytest.fixture(params=READERS)
def read(request: pytest.FixtureRequest, tmp_path: Path, picture: Picture) -> Callable[..., Any]:
    """Write images and an annotation for each of some names, and read them: the ids of the images, and the notices."""

    def of_names(files: Sequence[str], names: Sequence[str], **options: Any) -> tuple[list[str], list[str]]:
        for seed, file in enumerate(files):
            picture(tmp_path / file, seed=seed)
        notices: list[str] = []
        write, reader = READERS[request.param]
        write(tmp_path, names)
        return list(reader(tmp_path, notices, **options)["train"].ids), notices

    return of_names


# Two files of one name


def test_a_name_of_two_files_is_ambiguous(read: Callable[..., Any]) -> None:
    """As of two cameras: a/1.png may have been meant, or b/1.png; each of the other names has one file."""
    files, names = ["a/1.png", "a/2.png", "b/1.png", "b/3.png"], ["1.png", "2.png", "3.png"]
    ids, notices = read(files, names)
    assert ids == ["a/2.png", "b/3.png"]
    assert len(notices) == 1
    assert "ambiguous and left out: " in notices[0]
    assert "(a/1.png, b/1.png)" in notices[0]
    with pytest.raises(DataError, match=r"\(a/1\.png, b/1\.png\)"):
        read(files, names, strict=True)


def test_folders_that_hold_the_same_names_are_ambiguous(read: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"No image to train on is left.*ambiguous and left out: .*\(a/1\.png, b/1"):
        read(["a/1.png", "b/1.png", "a/2.png", "b/2.png"], ["1.png", "2.png"])


@pytest.mark.parametrize("other", ["thumbnails", "masks"])
def test_a_folder_of_images_comes_before_one_of_previews(read: Callable[..., Any], other: str) -> None:
    ids, _ = read(["images/1.png", "images/2.png", f"{other}/1.png", f"{other}/2.png"], ["1.png", "2.png"])
    assert ids == ["images/1.png", "images/2.png"]


def test_two_annotated_images_of_one_name_are_not_joined(tmp_path: Path, picture: Picture) -> None:
    """COCO's entries have ids of their own; one image got the objects of both."""
    for name in ("a/1.png", "b/1.png", "a/2.png"):
        picture(tmp_path / name)
    write_coco(tmp_path, ["1.png", "1.png", "2.png"])
    notices: list[str] = []
    table = read_coco(tmp_path, notices)["train"]
    assert (table.ids, table.object_counts()) == (("a/2.png",), (1,))  # type: ignore[attr-defined]
    name = "1.png (a/1.png, b/1.png)"
    assert notices == [f"2 file names that several images have in 1, ambiguous and left out: {name}."]
    with pytest.raises(DataError, match=r"2 file names that several images have in 1: 1\.png"):
        read_coco(tmp_path, [], strict=True)


def test_names_with_folders_are_not_ambiguous(tmp_path: Path, picture: Picture) -> None:
    names = ["a/1.png", "b/1.png"]
    for name in names:
        picture(tmp_path / name)
    write_coco(tmp_path, names)
    write_csv(tmp_path, names)
    for reader in (read_coco, read_boxes_csv):
        notices: list[str] = []
        assert reader(tmp_path, notices, strict=True)["train"].ids == tuple(names)
        assert notices == []


def test_an_xml_file_does_not_take_the_image_of_another(tmp_path: Path, picture: Picture) -> None:
    """The image of b/1.xml is missing: its objects are not those of a/1.png."""
    picture(tmp_path / "a" / "1.png")
    write_voc(tmp_path, ["a/1.png", "b/1.png"])
    (tmp_path / "Annotations" / "a" / "1.xml").rename(tmp_path / "a" / "1.xml")
    notices: list[str] = []
    table = read_voc(tmp_path, notices)["train"]
    assert table.load(0).target["boxes"].tolist() == [[0, 1, 3, 4]]
    assert notices == ["1 XML files without an image, left out: Annotations/b/1.xml."]


@pytest.mark.parametrize("other", ["A.xml", "other.xml"])
def test_an_image_belongs_to_the_xml_file_of_its_name(tmp_path: Path, picture: Picture, other: str) -> None:
    """Before one in another case, and before one that states the name in its ``<filename>``."""
    picture(tmp_path / "a.png")
    write_voc(tmp_path, ["a.png"])
    file = tmp_path / "Annotations" / "a.xml"
    (tmp_path / "Annotations" / other).write_text(
        file.read_text().replace("<annotation>", "<annotation><filename>a.png</filename>")
    )
    notices: list[str] = []
    assert read_voc(tmp_path, notices)["train"].object_counts() == (1,)  # type: ignore[attr-defined]
    assert notices == [f"1 XML files without an image, left out: Annotations/{other}."]


def test_xml_files_that_share_an_image_are_ambiguous(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "photos" / "1.png")
    picture(tmp_path / "photos" / "2.png")
    write_voc(tmp_path, ["a/1.png", "b/1.png", "a/2.png"])
    notices: list[str] = []
    assert read_voc(tmp_path, notices)["train"].ids == ("photos/2.png",)
    shared = "Annotations/a/1.xml, Annotations/b/1.xml"
    assert notices == [f"2 XML files that share an image, ambiguous and left out: {shared}."]


@pytest.mark.parametrize("said", ["<filename>1.jpg</filename>", "<folder>cam</folder>"])
def test_an_xml_file_says_which_of_several_images_it_means(tmp_path: Path, picture: Picture, said: str) -> None:
    for name in ("cam/1.jpg", "other/1.png"):
        picture(tmp_path / name)
    write_voc(tmp_path, ["1.png"])
    file = tmp_path / "Annotations" / "1.xml"
    file.write_text(file.read_text().replace("<annotation>", f"<annotation>{said}"))
    assert read_voc(tmp_path, [])["train"].ids == ("cam/1.jpg",)


# Names that are written differently


def in_other_case(name: str) -> str:
    return name.upper()


def decomposed(name: str) -> str:
    return unicodedata.normalize("NFD", name)


WAYS = [quote, decomposed, in_other_case, lambda name: quote(decomposed(name))]


@pytest.mark.parametrize("way", WAYS, ids=["quoted", "decomposed", "case", "both"])
def test_names_that_are_written_differently_are_found(read: Callable[..., Any], way: Callable[[str], str]) -> None:
    files = ["images/Café 1.png", "images/Café 2.png"]
    names = [way(Path(file).name) for file in files]
    ids, notices = read(files, names)
    assert ids == files
    assert len(notices) == 1
    assert notices[0].startswith("2 ")
    assert "that their images write differently, used all the same: " in notices[0]
    assert "(images/Café 1.png)" in notices[0]
    with pytest.raises(DataError, match=r"that their images write differently: .*Correct these, or leave out `strict`"):
        read(files, names, strict=True)


def test_an_exact_name_comes_before_a_similar_one(read: Callable[..., Any]) -> None:
    assert read(["images/a%20b.png", "images/a b.png"], ["a b.png", "a%20b.png"]) == (
        ["images/a b.png", "images/a%20b.png"], []
    )  # fmt: skip


def test_two_similar_files_are_ambiguous(read: Callable[..., Any]) -> None:
    ids, notices = read(["images/cafe.png", "images/Cafe.png", "images/b.png"], ["CAFE.png", "b.png"])
    assert ids == ["images/b.png"]
    assert any("ambiguous and left out" in line and "images/Cafe.png, images/cafe.png" in line for line in notices)


# Images that are annotated nowhere, and annotations without an image


def test_images_without_annotations_and_annotations_without_images_are_counted(read: Callable[..., Any]) -> None:
    ids, notices = read(["images/1.png", "images/2.png", "images/3.png"], ["1.png", "9.png"])
    assert ids == ["images/1.png"]
    assert len(notices) == 2
    assert any(line.startswith("2 images") and "images/2.png, images/3.png" in line for line in notices)
    assert any(line.startswith(("1 missing images", "1 XML files without an image")) for line in notices)


# YOLO, where names of files are all that connects labels and images


@pytest.fixture
def yolo(tmp_path: Path, picture: Picture) -> Callable[..., Any]:
    """Write images and label files with one box each, and read them: objects per image, and the notices."""

    def of_names(images: Sequence[str], labels: Sequence[str], train: str = "images", **options: Any) -> Any:
        for name in images:
            picture(tmp_path / name)
        for name in labels:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("0 0.5 0.5 0.5 0.5\n")
        (tmp_path / "data.yaml").write_text(f"names: [cat]\ntrain: {train}\n")
        notices: list[str] = []
        table = read_yolo(tmp_path, notices, **options)["train"]
        return {id: len(table.load(row).target["boxes"]) for row, id in enumerate(table.ids)}, notices

    return of_names


@pytest.mark.parametrize("way", WAYS, ids=["quoted", "decomposed", "case", "both"])
@pytest.mark.parametrize("differs", ["labels", "images"])
def test_labels_that_are_written_differently_are_found(
    yolo: Callable[..., Any], way: Callable[[str], str], differs: str
) -> None:
    """Whole sets were taught as images without objects."""
    stems = ["Café 1", "Café 2"]
    written = [way(stem) for stem in stems]
    images = [f"images/{stem}.png" for stem in (written if differs == "images" else stems)]
    labels = [f"labels/{stem}.txt" for stem in (written if differs == "labels" else stems)]
    objects, notices = yolo(images, labels)
    assert objects == dict.fromkeys(images, 1)
    pairs = ", ".join(f"{label} ({Path(image).name})" for label, image in zip(labels, images, strict=True))
    assert notices == [f"2 label files that their images write differently, used all the same: {pairs}."]
    with pytest.raises(DataError, match="2 label files that their images write differently"):
        yolo(images, labels, strict=True)


@pytest.mark.parametrize(
    ("image", "label", "noticed"),
    [("images/1.png", "labels/1.TXT", 1), ("Images/1.png", "Labels/1.txt", 0), ("Images/1.png", "labels/1.txt", 0),
     ("images/1.png", "Labels/1.txt", 0), ("IMAGES/1.png", "LABELS/1.txt", 0), ("photos/1.png", "photos/1.TXT", 1)],
)  # fmt: skip
def test_places_of_labels(yolo: Callable[..., Any], image: str, label: str, noticed: int) -> None:
    objects, notices = yolo([image], [label], train=image.partition("/")[0])
    assert objects == {image: 1}
    assert len(notices) == noticed


def test_images_without_labels_and_labels_without_images_are_counted(yolo: Callable[..., Any]) -> None:
    images = [f"images/{number}.png" for number in (1, 2, 3)]
    labels = ["labels/1.txt", "labels/8.txt", "labels/9.txt"]
    objects, notices = yolo(images, labels)
    assert objects == {"images/1.png": 1, "images/2.png": 0, "images/3.png": 0}
    assert notices == [
        "2 images have no label file, and count as images without objects: images/2.png, images/3.png.",
        "2 label files without an image, left out: labels/8.txt, labels/9.txt.",
    ]
    with pytest.raises(DataError, match=r"^2 label files without an image: labels/8\.txt, labels/9\.txt\. Correct"):
        yolo(images, labels, strict=True)


def test_images_without_labels_are_not_doubtful(yolo: Callable[..., Any], tmp_path: Path) -> None:
    """Background images are part of the format; neither are texts that are no labels, nor labels of unlisted images."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "classes.txt").write_text("cat\n")
    (tmp_path / "list.txt").write_text("images/1.png\nimages/2.png\n")
    objects, notices = yolo(
        ["images/1.png", "images/2.png", "images/3.png"], ["labels/1.txt", "labels/3.txt"], "list.txt", strict=True
    )
    assert objects == {"images/1.png": 1, "images/2.png": 0}
    assert notices == ["1 images have no label file, and count as images without objects: images/2.png."]


def test_images_of_a_list_that_are_written_differently(yolo: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("images/a%201.png\nimages/B.png\n")
    objects, notices = yolo(["images/a 1.png", "images/b.png"], ["labels/a 1.txt", "labels/b.txt"], "list.txt")
    assert objects == {"images/a 1.png": 1, "images/b.png": 1}
    assert notices == [
        "2 file names that their images write differently, used all the same: images/a%201.png (a 1.png), "
        "images/B.png (b.png)."
    ]


def test_a_label_file_is_given_to_one_image(yolo: Callable[..., Any]) -> None:
    objects, notices = yolo(["images/a.png", "images/A.png"], ["labels/a.txt"])
    assert objects == {"images/A.png": 0, "images/a.png": 1}
    assert len(notices) == 1


# Masks


@pytest.mark.parametrize("way", WAYS, ids=["quoted", "decomposed", "case", "both"])
@pytest.mark.parametrize("mask", ["masks/{}.png", "images/{}_mask.png"])
def test_masks_that_are_written_differently_are_found(tmp_path: Path, way: Callable[[str], str], mask: str) -> None:
    names = ["Café 1", "Café 2", "b"]
    for name in names:
        written = mask.format(way(name) if name != "b" else name)
        (tmp_path / written).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), 1).save(tmp_path / written)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{name}.png")
    notices: list[str] = []
    table = read_label_images(tmp_path, notices)["train"]
    assert table.ids == ("images/Café 1.png", "images/Café 2.png", "images/b.png")
    (notice,) = (line for line in notices if "differently" in line)
    assert notice.startswith("2 masks that their images write differently, used all the same: ")
    with pytest.raises(DataError, match="2 masks that their images write differently"):
        read_label_images(tmp_path, [], strict=True)
