"""Class folders as people have them: splits of many names, classes below classes, folders left by programs."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from autotimm.data import ImageDataModule
from autotimm.data.formats import read_folder
from autotimm.data.formats.recognize import recognize
from autotimm.data.image_io import IMAGE_SUFFIXES
from autotimm.data.relabelled import read_labelled
from autotimm.errors import DataError, UsageError
from autotimm.types import DataSpec

Picture = Callable[..., Path]


def write(root: Path, *names: str) -> Path:
    """Files that are only listed: whether they are images is not asked before they are scanned."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def split_folders(root: Path, train: str, test: str) -> Path:
    return write(root, *(f"{folder}/{name}/1.jpg" for folder in (train, test) for name in ("cat", "dog")))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("seg_train", "seg_test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set", "test_set"),
        ("training_set/training_set", "test_set/test_set"),
        ("train/images", "test/images"),
        ("TrainData", "TestData"),
        ("trainset", "testset"),
        ("train_images", "test_images"),
        ("Train", "Test"),
        ("1_train", "2_test"),
        ("dataset-train", "dataset-test"),
    ],
)
def test_names_of_splits(tmp_path: Path, train: str, test: str) -> None:
    split_folders(tmp_path, train, test)
    tables = read_folder(tmp_path, [])
    assert [(split, len(table), table.class_names) for split, table in tables.items()] == [
        ("train", 2, ("cat", "dog")),
        ("test", 2, ("cat", "dog")),
    ]
    assert recognize(tmp_path).task == "classification"
    held_out = read_labelled(tmp_path, DataSpec(("cat", "dog")), "test", [])
    assert {path.relative_to(tmp_path).parts[0] for path in held_out.files()} == {test.partition("/")[0]}


def test_a_folder_of_unlabelled_images_beside_the_splits_is_named(tmp_path: Path) -> None:
    split_folders(tmp_path, "seg_train/seg_train", "seg_test/seg_test")
    write(tmp_path, "seg_pred/seg_pred/1.jpg")
    notices: list[str] = []
    assert [*read_folder(tmp_path, notices)] == ["train", "test"]
    assert notices == [f"{tmp_path.name}/: folders beside seg_train/ are not read: seg_pred."]


@pytest.mark.parametrize(
    "names", [("train", "bus"), ("test tube", "flask"), ("training", "resting"), ("trains", "vale")]
)
def test_classes_that_sound_like_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    write(tmp_path, *(f"{name}/1.jpg" for name in names))
    assert read_folder(tmp_path, [])["train"].class_names == tuple(sorted(names))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("A/cat/1.jpg", "A/dog/1.jpg", "B/cat/2.jpg", "B/dog/2.jpg"), r"A, B hold the same folders, cat, dog\..*name "
         r"splits train/, val/ and test/.* Give class_levels=1 if A is a class, 2 if each of A/cat, A/dog is one\."),
        (("A/bee/1.jpg", "A/cat/1.jpg", "A/dog/1.jpg", "B/cat/2.jpg", "B/dog/2.jpg"), "hold the same .*, cat, dog"),
        (("cat/test/1.jpg", "cat/train/2.jpg", "dog/test/3.jpg", "dog/train/4.jpg"), r"as in test/cat/\."),
        (("flower/daisy/1.jpg", "flower/rose/1.jpg", "tree/1.jpg"), r"class folders hold folders and no image beside "
         r"them, such as flower/daisy, flower/rose\. Give class_levels=1 if flower is a class, 2 if each"),
    ],
)  # fmt: skip
def test_nested_classes_are_refused_with_the_choice(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_folder(write(tmp_path, *files), [])


def test_the_level_of_classes_can_be_given(tmp_path: Path) -> None:
    names = ("flower/daisy", "flower/rose", "tree/oak")
    write(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "val") for name in names))
    top = ImageDataModule(tmp_path, class_levels=1).read("train")
    notices: list[str] = []
    paths = read_folder(write(tmp_path, "train/flower/loose.jpg"), notices, 2)
    assert top is not None
    assert top.class_names == ("flower", "tree")
    assert paths["train"].class_names == paths["val"].class_names == names
    assert paths["val"].ids[0] == "val/flower/daisy/1.jpg"
    assert notices == ["train/: left out 1 images outside of class folders: flower/loose.jpg."]
    held_out = read_labelled(tmp_path, DataSpec(names), "val", [], {"class_levels": 2})
    assert [held_out.labels(index)[0] for index in range(3)] == list(names)


def test_a_level_that_no_folder_has_is_named(tmp_path: Path) -> None:
    write(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg")
    with pytest.raises(DataError, match="2 images but no folders in folders, which class_levels=2 takes for classes"):
        read_folder(tmp_path, [], 2)


def test_levels_are_of_folders_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`class_levels` .* whole number, 1 or more\. Got 0"):
        ImageDataModule(tmp_path, class_levels=0)
    with pytest.raises(UsageError, match="left out where tables"):
        ImageDataModule(train_csv="x.csv", class_levels=2)


def test_folders_that_change_no_class(tmp_path: Path) -> None:
    write(tmp_path, "cat/images/1.jpg", "dog/images/1.jpg", "eel/1.jpg", "eel/more/2.jpg")
    notices: list[str] = []
    table = read_folder(tmp_path, notices)["train"]
    assert table.class_names == ("cat", "dog", "eel")
    assert notices == ["eel/: images of the folders in it are of the class eel too: more."]


@pytest.mark.parametrize(
    "folder", ["@eaDir", "__MACOSX", "$RECYCLE.BIN", "#recycle", "lost+found", "Thumbs", "thumbnails"]
)
def test_folders_of_tools_are_no_classes(tmp_path: Path, folder: str) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", f"{folder}/1.jpg", f"{folder}/cat/1.jpg")
    assert read_folder(tmp_path, [])["train"].class_names == ("cat", "dog")


def test_previews_inside_class_folders_are_no_images(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "dog/1.jpg")
    assert read_folder(tmp_path, [])["train"].ids == ("cat/1.jpg", "dog/1.jpg")


def test_names_in_two_encodings_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write(
        tmp_path, f"train/{composed}/1.jpg", f"train/{decomposed}/2.jpg", "train/bar/1.jpg", f"val/{decomposed}/3.jpg"
    )
    notices: list[str] = []
    tables = read_folder(tmp_path, notices)
    assert tables["train"].class_names == tables["val"].class_names == ("bar", composed)
    assert len(tables["train"]) == 3
    assert notices[0] == f"train/: folders of one name in two encodings are one class: {composed}."
    old = DataSpec(("bar", decomposed))
    assert read_labelled(tmp_path, old, "val", []).class_names == ("bar", decomposed)


@pytest.mark.skipif(".heic" in IMAGE_SUFFIXES, reason="with the extra `heif` these are images")
def test_what_is_ignored_is_counted_where_nothing_is_left(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.HEIC", "cat/2.HEIC", "cat/3", "dog/4.PTH")
    with pytest.raises(DataError, match=r"no images in any of its 2 folders\. Ignored are 2 \.HEIC and 1 without"):
        read_folder(tmp_path, [])
    with pytest.raises(
        DataError, match=r"There are no images\. Ignored are 2 \.HEIC and .*pip install 'autotimm\[heif\]' reads HEIC"
    ):
        recognize(tmp_path)
    write(tmp_path, "eel/1.jpg")
    with pytest.raises(DataError, match=r"cat/, dog/\. Ignored are 2 \.HEIC and 1 without an extension and 1 \.PTH"):
        read_folder(tmp_path, [])
