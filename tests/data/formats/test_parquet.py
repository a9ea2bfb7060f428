"""Parquet files as on the Hugging Face hub: images, classes and splits, and nothing of them is trusted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from autotimm import DataError, ImageDataModule
from autotimm.data.formats import parquet_rows
from autotimm.data.formats.listing import Listing
from autotimm.data.formats.packed_sets import ParquetFormat
from autotimm.data.formats.recognize import read_classes, recognize
from autotimm.data.packed.packing import pack
from autotimm.data.table import ImageTable
from training import small_fit

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

IMAGE = {"_type": "Image"}
IMAGES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def classes(*names: str) -> dict[str, Any]:
    """A column of classes, as `datasets` describes it."""
    return {"names": list(names), "_type": "ClassLabel"}


def write(path: Path, images: Sequence[Any], labels: Sequence[Any], features: dict[str, Any] | None = None,
          label: str = "label", kind: Any = None, group: int = 4) -> Path:  # fmt: skip
    """Write a file as `Dataset.to_parquet` does, with few rows in a group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": pa.array(images, IMAGES), label: pa.array(labels, kind)}
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=group)
    return path


@pytest.fixture(scope="module")
def samples(toy_folder: Path) -> list[tuple[bytes, str, str]]:
    """The file, the name and the class of each toy image, in a mixed order."""
    files = sorted(toy_folder.rglob("*.png"), key=lambda file: file.name[::-1])
    return [(file.read_bytes(), f"{file.parent.name}-{file.name}", file.parent.name) for file in files]


@pytest.fixture(scope="module")
def names(samples: list[tuple[bytes, str, str]]) -> list[str]:
    """The names of the classes."""
    return sorted({name for _, _, name in samples}, reverse=True)


@pytest.fixture(scope="module")
def hub(samples: list[tuple[bytes, str, str]], names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the hub: two files for training, one for validation, and a test without classes."""
    folder = tmp_path_factory.mktemp("hub")
    features = {"image": IMAGE, "label": classes(*names)}
    files = {"train-00000-of-00002": samples[:9], "train-00001-of-00002": samples[9:18],
             "validation-00000-of-00001": samples[18:], "test-00000-of-00001": samples[:2]}  # fmt: skip
    for name, part in files.items():
        labels = [-1 if name.startswith("test") else names.index(label) for _, _, label in part]
        images = [{"bytes": content, "path": f"somewhere/{path}"} for content, path, _ in part]
        write(folder / "data" / f"{name}.parquet", images, labels, features)
    return folder


def opened(path: Path, **options: Any) -> ImageDataModule:
    return ImageDataModule(path, **{"image_size": 32, "batch_size": 5, "num_workers": 0, "val_split": 0.25, **options})


def test_images_classes_and_splits_of_the_hub(
    hub: Path, samples: list[tuple[bytes, str, str]], names: list[str], toy_folder: Path
) -> None:
    data = opened(hub)
    train, val = data.tables["train"], data.tables["val"]
    assert "test" not in data.tables
    assert data.class_names == tuple(names)
    assert list(train.ids) == [f"train/{name}" for _, name, _ in samples[:18]]
    assert list(val.ids) == [f"val/{name}" for _, name, _ in samples[18:]]
    folder = opened(toy_folder, val_split=0).tables["train"]
    by_name = {id.replace("/", "-"): place for place, id in enumerate(folder.ids)}
    for place, (_, name, label) in enumerate(samples[:18]):
        sample = train.load(place)
        assert torch.equal(sample.image, folder.load(by_name[name]).image)
        assert names[sample.target] == label
    assert any("test-00000-of-00001.parquet has a class: left out" in notice for notice in data.notices)


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_do_not_depend_on_the_number_of_workers(workers: int, hub: Path) -> None:
    def inputs(workers: int) -> list[tuple[Any, ...]]:
        data = opened(hub, num_workers=workers)
        found = [(batch.ids, batch.fingerprints) for batch in data.train_dataloader()]
        data.teardown()
        return found

    assert inputs(workers) == inputs(0)


def test_run_is_verified_and_packed_rows_have_the_same_bits(hub: Path, tmp_path: Path) -> None:
    run = small_fit(hub, tmp_path / "runs", val_split=None)
    assert run.verify().identical
    pytest.importorskip("litdata")
    packed = pack(opened(hub), "litdata", tmp_path / "packed", progress=False)
    assert run.verify(data=packed.path).identical


def test_several_classes_of_an_image(samples: list[tuple[bytes, str, str]], tmp_path: Path) -> None:
    images = [{"bytes": content, "path": None} for content, _, _ in samples[:6]]
    features = {"image": IMAGE, "labels": {"feature": classes("a", "b"), "_type": "List"}}
    labels = [[0, 1], [], [1], [0], [0], [1]]
    path = write(tmp_path / "some.parquet", images, labels, features, "labels", pa.list_(pa.int64()))
    table = opened(path, val_split=0).tables["train"]
    assert isinstance(table, ImageTable)
    assert table.multi_label
    assert table.targets is not None
    assert table.targets.tolist() == [[1, 1], [0, 0], [0, 1], [1, 0], [1, 0], [0, 1]]
    assert list(table.ids) == [f"train/{number:06d}" for number in range(6)]


@pytest.mark.parametrize(
    ("labels", "expected"), [(["cat", "dog", "cat", "ant"], ("ant", "cat", "dog")), ([10, 2, 10, 3], ("2", "3", "10"))]
)
def test_files_without_metadata(
    labels: list[Any], expected: tuple[str, ...], samples: list[tuple[bytes, str, str]], tmp_path: Path
) -> None:
    table = pa.table({"image": pa.array([content for content, _, _ in samples[:4]]), "label": labels})
    parquet.write_table(table, tmp_path / "plain.parquet")
    data = opened(tmp_path / "plain.parquet", val_split=0)
    assert data.class_names == expected
    assert data.tables["train"].labels(0) == (str(labels[0]),)


@pytest.mark.parametrize("features", [None, {"image": IMAGE, "label": classes("a", "b")}])
def test_the_column_of_classes_is_read_once(
    features: Any, samples: list[tuple[bytes, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    class Counting(parquet_rows.ParquetRows):
        def _labels_of(self, file: Any) -> Any:
            read.append(file.path.name)
            return super()._labels_of(file)

    monkeypatch.setattr(ParquetFormat, "rows", Counting)
    images = [{"bytes": content, "path": name} for content, name, _ in samples[:8]]
    files = {"train-00000-of-00002": [0, 1], "train-00001-of-00002": [1, 0], "test-00000-of-00001": [-1, -1]}
    for at, (name, labels) in enumerate(files.items()):
        write(tmp_path / f"{name}.parquet", images[2 * at : 2 * at + 2], labels, features)
    for listing in (recognize(tmp_path).listing, Listing(tmp_path)):
        assert [len(table) for table in read_classes(listing, []).values()] == [4]
        assert sorted(read) == sorted(f"{name}.parquet" for name in files)
        read.clear()


@pytest.mark.parametrize("labels", [[{"a": 1}, {"a": 2}], [0.5, 1.5], [[{"a": 1}], [{"a": 2}]]])
def test_values_that_are_no_classes_are_an_error(
    labels: list[Any], samples: list[tuple[bytes, str, str]], tmp_path: Path
) -> None:
    path = write(tmp_path / "x.parquet", [{"bytes": content, "path": None} for content, _, _ in samples[:2]], labels)
    with pytest.raises(DataError, match=r"The column `label` of .* must hold classes, as texts or numbers"):
        opened(path).setup("fit")


def test_path_in_a_row_is_not_opened(toy_folder: Path, tmp_path: Path) -> None:
    there = next(toy_folder.rglob("*.png"))
    path = write(tmp_path / "x.parquet", [{"bytes": None, "path": str(there)}] * 4, ["a", "b"] * 2)
    with pytest.raises(DataError, match=r"has no image in it. Give every row an image and a class"):
        opened(path).setup("fit")


def test_class_beyond_the_names_is_an_error(samples: list[tuple[bytes, str, str]], tmp_path: Path) -> None:
    images = [{"bytes": content, "path": None} for content, _, _ in samples[:3]]
    path = write(tmp_path / "x.parquet", images, [0, 1, 2], {"image": IMAGE, "label": classes("a", "b")})
    with pytest.raises(DataError, match=r"The target of train/000002 .* with 2 classes. It is '\[2\]'. Give every row"):
        opened(path).setup("fit")


def test_large_groups_are_an_error(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "_LARGEST_GROUP", 1000)
    with pytest.raises(DataError, match=r"The row groups of .* Write smaller ones"):
        opened(hub).setup("fit")


def test_damaged_file_is_an_error(hub: Path, tmp_path: Path) -> None:
    whole = (hub / "data" / "train-00000-of-00002.parquet").read_bytes()
    for damaged in (whole[:-20], whole[:100], b"PAR1", b""):
        (tmp_path / "x.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=r"x.parquet cannot be read: .* Use an intact copy"):
            opened(tmp_path / "x.parquet").setup("fit")


@pytest.mark.parametrize(
    "columns", [{"label": [1, 2]}, {"image": [b"", b""]}, {"image": ["a", "b"], "label": [1, 2]},
                {"image": [b"", b""], "class": [1, 2], "label": [1, 2]}]
)  # fmt: skip
def test_columns_must_be_plain(columns: dict[str, list[Any]], tmp_path: Path) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"must have one column with image files.* It has "):
        opened(tmp_path / "x.parquet").setup("fit")
