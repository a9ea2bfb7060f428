"""Bad input: a clear error, or left out once with a report. Never at epoch 7."""

import io
import os
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from autotimm.data import ImageDataModule
from autotimm.data.image_facts import scan
from autotimm.data.toy import write_toy_folder
from autotimm.errors import AutotimmError, DataError

Picture = Callable[..., Path]


def module(root: Path | None = None, **options: Any) -> ImageDataModule:
    return ImageDataModule(root, **{"image_size": 32, "num_workers": 0, **options})


def refused(pattern: str, root: Path | None = None, **options: Any) -> None:
    with pytest.raises(AutotimmError, match=pattern) as error:
        module(root, **options).setup()
    assert error.value.exit_code in (2, 3)
    assert str(error.value).endswith((".", "?"))


def load_everything(data: ImageDataModule) -> list[str]:
    """Ids of all samples, loaded over two epochs."""
    train = data.train_dataloader()
    loaders = [train, train, *([data.val_dataloader()] if "val" in data.tables else [])]
    return sorted({name for loader in loaders for batch in loader for name in batch.ids})


# Folders


def test_no_folder(tmp_path: Path) -> None:
    refused(r"nowhere must be a folder of images\. There is none; .*Check the path", tmp_path / "nowhere")


def test_empty_folder(tmp_path: Path) -> None:
    refused(r"holds no images\. Make one folder per class", tmp_path)


def test_class_folders_without_images(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("no image")
    refused(r"holds no images in any of its 2 folders", tmp_path)


def test_images_without_class_folders(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "1.png")
    refused(r"holds 1 images but no class folders.*train_csv", tmp_path)


def test_one_class_only(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "cat" / "1.png")
    picture(tmp_path / "cat" / "2.png")
    refused(r"only one class, 'cat', and classification needs two\. Add a second class", tmp_path)


def test_one_empty_class_folder(toy: Path) -> None:
    (toy / "zebra").mkdir()
    refused(r"Class folders without any image in .*: zebra/\. Add images, or remove", toy)


def test_class_with_one_image_stays_in_training(toy: Path, picture: Picture) -> None:
    picture(toy / "zebra" / "only.png")
    data = module(toy, val_split=0.5, test_split=0.2)
    assert "zebra/only.png" in data.tables["train"].ids
    assert data.notices == ["Classes with a single image, which stays in training: zebra."]
    assert "zebra/only.png" in load_everything(data)


@pytest.mark.parametrize(("first", "second"), [("cat", "Cat"), ("T-shirt", "tshirt"), ("big cat", "big_cat")])
def test_classes_with_names_that_people_take_for_one(tmp_path: Path, picture: Picture, first: str, second: str) -> None:
    for name in (first, second, "A", "a"):  # single characters are classes of an alphabet
        for number in range(2):
            picture(tmp_path / name / f"{number}.png")
    data = module(tmp_path)
    data.setup("fit")
    (notice,) = data.notices
    names = " and ".join(map(repr, sorted([first, second])))
    assert notice == f"Classes whose names differ in case, spaces, dashes or underscores alone: {names}."
    assert (notice.check, notice.total) == ("alike_classes", 1)


def test_extra_class_in_validation(tmp_path: Path, picture: Picture) -> None:
    write_toy_folder(tmp_path, n=0, num_classes=3, splits={"train": 9, "val": 3})
    picture(tmp_path / "val" / "zebra" / "1.png")
    refused(r"classes that train/ does not have: zebra\. Rename", tmp_path)


def test_classes_may_be_missing_in_validation(tmp_path: Path) -> None:
    write_toy_folder(tmp_path, num_classes=3, splits={"train": 9, "valid": 2})
    data = module(tmp_path)
    assert [len(data.tables[split]) for split in ("train", "val")] == [9, 2]
    assert data.notices == ["valid/: no images of 1 of the 3 classes: orange_square."]


def test_validation_without_train(tmp_path: Path) -> None:
    write_toy_folder(tmp_path, num_classes=2, splits={"val": 4, "test": 4})
    refused(r"has test/, val/ but no train/", tmp_path)


def test_val_and_validation(tmp_path: Path) -> None:
    write_toy_folder(tmp_path, num_classes=2, splits={"train": 4, "val": 4, "validation": 4})
    refused(r"has both val/ and validation/\. Keep one", tmp_path)


def test_unlabelled_test_images_are_not_test_data(tmp_path: Path, picture: Picture) -> None:
    write_toy_folder(tmp_path, num_classes=2, splits={"train": 20})
    picture(tmp_path / "test" / "1.png")
    data = module(tmp_path)
    data.setup()
    assert data.notices == ["test/: not used, since it has no class folders."]
    with pytest.raises(DataError, match=r"There is no test data\. Add a test/ folder"):
        data.test_dataloader()


def test_a_class_called_train_is_a_class(tmp_path: Path, picture: Picture) -> None:
    for name in ("bus", "train"):
        picture(tmp_path / name / "1.png")
    assert module(tmp_path).class_names == ("bus", "train")


def test_odd_names(tmp_path: Path, picture: Picture) -> None:
    names = ["grüße 猫/ein bild.png", "grüße 猫/ü.PNG", "with blank/a  b.Jpeg", "with blank/'q\" [x].png"]
    for seed, name in enumerate(names):
        picture(tmp_path / name, seed=seed)
    picture(tmp_path / "with blank" / ".hidden.png")
    picture(tmp_path / ".hidden class" / "1.png")
    data = module(tmp_path, val_split=0.0)
    assert data.class_names == ("grüße 猫", "with blank")
    assert load_everything(data) == sorted(names)
    assert "grüße" in str(data.summary())


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname != "Linux", reason="Linux only: names of any bytes")
def test_names_that_are_not_utf8(tmp_path: Path, picture: Picture) -> None:
    for name in (b"a/\xff.png", b"a/ok.png", b"b\xfe/1.png"):
        picture(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)))
    data = module(tmp_path, val_split=0.0)
    assert load_everything(data) == ["a/\\xff.png", "a/ok.png", "b\\xfe/1.png"]


def test_symlink_loops_end_and_give_no_file_twice(toy: Path) -> None:
    first = sorted(toy.iterdir())[0]
    before = module(toy).setup() or {i for table in module(toy).tables.values() for i in table.ids}
    (first / "back").symlink_to(toy)
    (first / "self").symlink_to(first)
    (first / "0_other").symlink_to(sorted(toy.iterdir())[1])
    (first / "0000.png").symlink_to(sorted(first.glob("*.png"))[0])
    (first / "loop.png").symlink_to(first / "loop.png")
    (first / "dangling.png").symlink_to(toy / "nowhere.png")
    data = module(toy)
    ids = [name for table in data.tables.values() for name in table.ids]
    assert sorted(ids) == sorted(before)
    assert len(data.notices) == 2
    assert "left out 4 links to files listed already" in data.notices[0]
    assert "2 of 26 images cannot be read" in data.notices[1]
    assert "dangling.png (there is no such file)" in data.notices[1]


def test_linked_images_and_folders_are_read(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "store" / "x.png")
    picture(tmp_path / "dogs" / "y.png")
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "x.png").symlink_to(tmp_path / "store" / "x.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "dogs")
    assert load_everything(module(tmp_path / "data", val_split=0.0)) == ["cat/x.png", "dog/y.png"]


def test_single_folder_that_links_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path)
    refused("holds no images", tmp_path)


def test_read_only_folder(toy: Path) -> None:
    for path in [toy, *toy.rglob("*")]:
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    try:
        assert len(load_everything(module(toy))) == 24
    finally:
        for path in [toy, *toy.rglob("*")]:
            path.chmod(0o755)


# Broken images


def bomb(path: Path, side: int = 20000) -> None:
    """A small PNG file that says it has 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def hungry(path: Path, side: int = 9400) -> None:
    """A small JPEG file that says it is progressive CMYK of 88 million pixels: libjpeg would keep all coefficients."""
    file = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(file, "JPEG", progressive=True)
    size = file.getvalue().index(b"\xff\xc2") + 5  # height and width stand behind marker, length and precision
    path.write_bytes(file.getvalue()[:size] + struct.pack(">HH", side, side) + file.getvalue()[size + 4 :])


def truncate(path: Path, source: Path) -> None:
    Image.open(source).resize((200, 200)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "empty.png": (lambda path, _: path.touch(), "the file is empty"),
    "text.jpg": (lambda path, _: path.write_text("this is no image"), "not an image"),
    "half.jpg": (truncate, "truncated"),
    "half.png": (truncate, ""),
    "half.webp": (truncate, ""),
    "bomb.png": (lambda path, _: bomb(path), "decompression bomb limit"),
    "hungry.jpg": (lambda path, _: hungry(path), "takes 1,060 MB of memory, and the limit is 698 MB"),
    "header.png": (lambda path, _: path.write_bytes(b"\x89PNG\r\n\x1a\n"), ""),
    "folder.txt.tif": (lambda path, _: path.write_bytes(b"II*\0" + bytes(40)), ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_image_is_left_out_once(toy: Path, name: str) -> None:
    make, reason = BROKEN[name]
    owner = sorted(toy.iterdir())[1]
    make(owner / name, sorted(owner.glob("*.png"))[0])
    data = module(toy, batch_size=3)
    assert len(load_everything(data)) == 24
    (notice,) = data.notices
    assert notice.startswith(f"1 of 25 images cannot be read and are left out: {owner.name}/{name} (")
    assert reason in notice
    assert [problem.path for problem in data.problems] == [owner / name]
    data.setup()
    assert len(data.notices) == 1
    refused(rf"1 of 25 images cannot be read: {owner.name}/{name} \(.*leave out `strict`", toy, strict=True)


def test_all_broken_images_are_listed_in_one_report(toy: Path) -> None:
    owner = sorted(toy.iterdir())[0]
    for name, (make, _) in BROKEN.items():
        make(owner / name, sorted(owner.glob("0*.png"))[0])
    data = module(toy)
    data.setup()
    (notice,) = data.notices
    assert all(name in notice for name in BROKEN)


def test_a_folder_called_like_an_image(toy: Path) -> None:
    (sorted(toy.iterdir())[0] / "album.png").mkdir()
    assert len(load_everything(module(toy))) == 24


def test_broken_in_validation_too(tmp_path: Path) -> None:
    write_toy_folder(tmp_path, num_classes=2, splits={"train": 8, "val": 4, "test": 4})
    for split in ("val", "test"):
        sorted((tmp_path / split).rglob("*.png"))[0].write_bytes(b"")
    data = module(tmp_path)
    assert {split: len(table) for split, table in data.tables.items()} == {"train": 8, "val": 3, "test": 3}
    assert data.notices[0].startswith("2 of 16 images cannot be read")


def test_class_with_nothing_but_broken_images(toy: Path) -> None:
    (toy / "zebra").mkdir()
    (toy / "zebra" / "1.png").touch()
    refused(r"Classes without a readable training image: zebra\. Add images or remove the class", toy)


def test_everything_broken(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    refused(r"2 of 2 images cannot be read: a/1\.png \(the file is empty\), b/1\.png", tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whose permissions are checked")
def test_file_and_folder_without_permission(toy: Path) -> None:
    path = sorted(toy.rglob("*.png"))[0]
    assert scan([path]) == []
    path.chmod(0)  # size and time of change stay, and so the cache would still call it good
    data = module(toy)
    data.setup()
    assert "permission denied" in data.notices[0]
    path.parent.chmod(0)
    try:
        refused("cannot be listed: Permission denied", toy)
    finally:
        path.parent.chmod(0o755)


# Tables


@pytest.fixture
def table(toy: Path) -> Callable[..., Path]:
    """Write a CSV file beside the toy images."""

    def write(lines: list[str] | None = None, header: str = "image,label", **options: Any) -> Path:
        files = sorted(str(path.relative_to(toy)) for path in toy.glob("*_*/*.png"))
        rows = [f"{name},{name.split('/')[0]}" for name in files]
        path = toy / "train.csv"
        path.write_bytes("\n".join([header, *rows, *(lines or []), ""]).encode(options.get("encoding", "utf-8")))
        return path

    return write


def test_no_csv_and_empty_csv(tmp_path: Path) -> None:
    refused(r"There is no file .*train\.csv", tmp_path, train_csv="train.csv")
    path = tmp_path / "train.csv"
    path.write_text("")
    refused(r"train\.csv is empty\. Write a header line", train_csv=path)
    path.write_text("image,label\n\n")
    refused(r"a header but no row", train_csv=path)


def test_byte_order_mark_semicolons_and_windows_lines(toy: Path) -> None:
    names = sorted(str(path.relative_to(toy)) for path in toy.rglob("*.png"))
    lines = ["image;label", *(f"{name}; {name.split('/')[0]}" for name in names), ""]
    (toy / "train.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    data = module(train_csv=toy / "train.csv")
    assert data.class_names == module(toy).class_names
    assert data.tables["train"].ids == module(toy).tables["train"].ids
    assert not data.notices


def test_not_utf8(table: Callable[..., Path]) -> None:
    refused(r"is not UTF-8 .*Save it as UTF-8", train_csv=table(["grün.png,grün"], encoding="latin-1"))


def test_missing_columns(table: Callable[..., Path]) -> None:
    path = table()
    refused(
        r"no column 'labell', which `label_column` names\. Did you mean 'label'", train_csv=path, label_column="labell"
    )
    refused(
        r"no column 'xyz', which `image_column` names\. Columns are image, label", train_csv=path, image_column="xyz"
    )
    path = table(header="picture,kind")
    refused(r"which column is it\? Give `image_column`, one of picture, kind", train_csv=path)
    refused(r"which column is it\? Give `label_column`", train_csv=path, image_column="picture")
    assert module(train_csv=path, image_column="picture", label_column="kind").num_classes == 3


def test_same_column_twice(table: Callable[..., Path]) -> None:
    refused("columns that occur twice: image", train_csv=table(header="image,image"))


def test_uneven_lines(table: Callable[..., Path]) -> None:
    refused(r"lines that do not have 2 cells like the header: 26", train_csv=table(["a.png,b,c"]))


def test_empty_cells(table: Callable[..., Path]) -> None:
    refused(
        r"1 rows without a label in column label: train\.csv, line 26\. Correct",
        train_csv=table(["a.png,"]),
        strict=True,
    )
    refused(r"line 26 has no file name in column 'image'", train_csv=table([",cat"]))
    refused(r"line 26 has a NUL byte in column 'image'. Save the table", train_csv=table(["a\0.png,blue_circle"]))


def test_missing_files(table: Callable[..., Path], tmp_path: Path) -> None:
    path = table(["gone.png,blue_circle"])
    data = module(train_csv=path)
    assert len(load_everything(data)) == 24
    assert data.notices == ["1 of 25 images cannot be read and are left out: gone.png (there is no such file)."]
    refused(r"1 of 25 images cannot be read: gone\.png", train_csv=path, strict=True)
    (tmp_path / "other").mkdir()
    refused(
        r"none of its 25 files is in .*other, for example .*Give `image_dir`",
        train_csv=path,
        image_dir=tmp_path / "other",
    )
    refused(r"There is no image folder", train_csv=path, image_dir=tmp_path / "nowhere")


def test_paths_that_leave_the_image_folder(table: Callable[..., Path], toy: Path, picture: Picture) -> None:
    outside = picture(toy.parent / "outside.png")
    (toy / "link.png").symlink_to(outside)
    (toy / "folder").symlink_to(toy.parent)
    for cell in (
        "../outside.png",
        str(outside),
        "link.png",
        "folder/outside.png",
        "x/../../outside.png",
        "/etc/passwd",
    ):
        refused(r"line 26 leads outside of the image folder", train_csv=table([f"{cell},blue_circle"]))


def test_absolute_paths_inside_are_fine(table: Callable[..., Path], toy: Path) -> None:
    inside = sorted(toy.rglob("*.png"))[0]
    data = module(
        train_csv=table([f"{inside},{inside.parent.name}", f"./x/../{inside.relative_to(toy)},{inside.parent.name}"])
    )
    assert len(load_everything(data)) == 24
    assert data.notices == ["train.csv: 2 rows that repeat another are counted once."]


def test_duplicate_and_conflicting_rows(table: Callable[..., Path], toy: Path) -> None:
    name = str(sorted(toy.rglob("*.png"))[0].relative_to(toy))
    data = module(train_csv=table([f"{name},{name.split('/')[0]}"] * 2))
    assert len(load_everything(data)) == 24
    assert data.notices == ["train.csv: 2 rows that repeat another are counted once."]
    refused(rf"lines 2 and 26 give {name} different labels", train_csv=table([f"{name},green_cross"]))


def test_label_that_training_does_not_have(table: Callable[..., Path], toy: Path) -> None:
    path = table()
    name = str(sorted(toy.rglob("*.png"))[0].relative_to(toy))
    (toy / "val.csv").write_text(f"image,label\n{name},zebra\n")
    refused(r"val\.csv: labels that the training table does not have: zebra", train_csv=path, val_csv=toy / "val.csv")
    (toy / "val.csv").write_text(f"image,label\n{name},blue_circle\n")
    data = module(train_csv=path, val_csv=toy / "val.csv")
    data.setup()
    assert data.notices == [f"1 images are in both the train and the val table: {name}."]


def test_labels_of_several_must_be_bits(toy: Path) -> None:
    names = sorted(str(path.relative_to(toy)) for path in toy.rglob("*.png"))
    path = toy / "train.csv"
    path.write_text("image,a,b\n" + "".join(f"{name},1,{i % 2}\n" for i, name in enumerate(names)))
    refused(r"For several labels per image: label_column=\['a', 'b'\]", train_csv=path)
    data = module(train_csv=path, label_column=["a", "b"])
    assert data.multi_label
    assert data.class_counts() == (
        len(data.tables["train"]),
        sum(len(x) == 2 for x in map(data.tables["train"].labels, range(len(data.tables["train"])))),
    )
    for cell in ("2", "0.5", "yes", "", "-1"):
        path.write_text(f"image,a,b\n{names[0]},1,0\n{names[1]},0,{cell}\n")
        refused(
            r"line 3, column 'b': a label of several must be 0 or 1\. Got ", train_csv=path, label_column=["a", "b"]
        )


# Prediction


def test_prediction_without_images(tmp_path: Path, toy: Path) -> None:
    data = module(toy)
    for paths, pattern in (
        (tmp_path / "nowhere.png", "There is no file or folder"),
        ([], "No images to predict"),
    ):
        with pytest.raises(DataError, match=pattern):
            data.predict_table(paths)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        data.predict_table(tmp_path / "empty")


def test_prediction_of_a_broken_image(tmp_path: Path, toy: Path, picture: Picture) -> None:
    (tmp_path / "bad.png").write_bytes(b"x")
    good = picture(tmp_path / "good.png")
    data = module(toy)
    with pytest.raises(DataError, match=r"bad\.png \(not an image\)"):
        data.predict_table(tmp_path / "bad.png")
    table = data.predict_table([tmp_path / "bad.png", good, good])
    assert table.ids == (str(good),)
    assert len(data.notices) == 2
    with pytest.raises(DataError, match=r"bad\.png"):
        module(toy, strict=True).predict_table([tmp_path / "bad.png", good])
