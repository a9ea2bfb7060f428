"""Data sets of torchvision, from files where torchvision keeps them: nothing is downloaded."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from autotimm import ImageDataModule
from autotimm.data.formats import read_builtin
from autotimm.data.toy import write_toy_folder
from autotimm.errors import DataError
from training import classifier, small_fit, trainer


@pytest.fixture
def eurosat(tmp_path: Path) -> Path:
    """24 images in place of EuroSAT's."""
    write_toy_folder(tmp_path / "data" / "eurosat" / "2750", n=24, num_classes=3, seed=7)
    return tmp_path / "data"


def some_files(root: Path, count: int) -> list[Path]:
    return sorted(root.rglob("*.png"))[::5][:count]


def test_broken_images_are_left_out_and_named(eurosat: Path, tmp_path: Path) -> None:
    cut, empty, text = some_files(eurosat, 3)
    cut.write_bytes(cut.read_bytes()[:60])
    empty.write_bytes(b"")
    text.write_text("no image")
    run = small_fit(eurosat, tmp_path / "runs", dataset_name="EuroSAT", val_split=None)
    assert len((run.path / "files.csv").read_text().splitlines()) == 1 + 21
    data = run.data()
    data.setup()
    assert [problem.path for problem in data.problems] == [cut, empty, text]
    assert "3 of 24 images cannot be read and are left out" in "\n".join(data.notices)


def test_broken_images_are_refused_with_strict(eurosat: Path, tmp_path: Path) -> None:
    some_files(eurosat, 1)[0].write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 24 images cannot be read: train/0000000 \(the file is empty\)"):
        small_fit(eurosat, tmp_path / "runs", dataset_name="EuroSAT", strict=True, val_split=None)
    assert not (tmp_path / "runs").exists()


def test_an_image_damaged_later_is_named(eurosat: Path) -> None:
    table = read_builtin("eurosat", eurosat)["train"]
    path = table.files()[3]
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"{path} cannot be read as an image: the file is empty"):
        table.load(3)


def test_files_of_another_layout(tmp_path: Path) -> None:
    folder = tmp_path / "caltech256" / "256_ObjectCategories"
    for label, name in enumerate(("001.ak47", "002.flag")):
        (folder / name).mkdir(parents=True)
        for number in (1, 2, 3):
            Image.new("L", (8, 8), 40 * label + number).save(folder / name / f"{label + 1:03d}_{number:04d}.jpg")
    table = read_builtin("Caltech256", tmp_path)["train"]
    assert [path.name for path in table.files()] == [f"00{label}_000{n}.jpg" for label in (1, 2) for n in (1, 2, 3)]
    assert all(path.is_file() for path in table.files())
    assert [table.load(index).target for index in range(6)] == [0, 0, 0, 1, 1, 1]
    table.files()[4].write_bytes(b"")
    data = ImageDataModule(tmp_path, dataset_name="Caltech256", image_size=8, num_workers=0)
    data.setup()
    assert [problem.path.name for problem in data.problems] == ["002_0002.jpg"]


def test_a_truncated_archive(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (folder / f"{part}-{kind}-ubyte").write_bytes(b"\0\0")
    with pytest.raises(DataError, match=r"MNIST is not in .*: its files are damaged. Give download=True"):
        read_builtin("MNIST", tmp_path)


def test_missing_data_are_not_an_error_of_the_run_folder(eurosat: Path, tmp_path: Path) -> None:
    data = ImageDataModule(eurosat, dataset_name="EuroSAT", image_size=32, batch_size=8, num_workers=0)
    data.setup()
    shutil.rmtree(eurosat)
    with pytest.raises(DataError, match=r"must be readable\. It is not"):
        trainer(run_dir=tmp_path / "run").fit(classifier(), datamodule=data)
