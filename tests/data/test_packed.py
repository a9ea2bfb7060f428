"""Packed data sets: the samples of the folder, whichever engine holds them, and nothing of them is trusted."""

import json
import os
import re
import shutil
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autotimm import (
    DataError,
    DataModule,
    DetectionDataModule,
    ImageDataModule,
    InstanceSegmentationDataModule,
    SegmentationDataModule,
    UsageError,
)
from autotimm.cli.main import main
from autotimm.constants import ENGINES
from autotimm.data import file_facts, loader
from autotimm.data.annotations.masks import MaskTable
from autotimm.data.data_facts import content
from autotimm.data.packed import row_store
from autotimm.data.packed.packing import pack
from autotimm.data.packed.row_targets import head_of
from autotimm.data.table import Table
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.runs.restore import read_manifest
from autotimm.types import Sample
from training import multi_label_data, small_fit

for engine in ENGINES:
    pytest.importorskip(engine)

Kind = Callable[..., DataModule]


def loaded(data: DataModule) -> dict[str, Any]:
    """All that must not depend on where the images are."""
    batches = [*data.train_dataloader(), *data.eval_loader(data.tables["val"])]
    data.teardown()
    return {
        "ids": [batch.ids for batch in batches],
        "inputs": [batch.fingerprints for batch in batches],
        "content": content(data.tables.values(), progress=False),
        "content read again": content(data.tables.values(), progress=False, cached=False),
        "sides": data.assignments(),
        "spec": data.spec,
        "counts": data.class_amounts(),
    }


def opened(kind: Kind, path: Path, workers: int = 0, **options: Any) -> DataModule:
    return kind(path, **{"image_size": 32, "batch_size": 5, "val_split": 0.25, "num_workers": workers, **options})


@pytest.fixture(scope="module")
def packed_shapes(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The toy images of three classes, packed by each engine; only to be read."""
    folder = tmp_path_factory.mktemp("packed")
    return {name: pack(ImageDataModule(toy_folder), name, folder / name, progress=False).path for name in ENGINES}


# Loading processes of Lance start by a server, which imports torch.
@pytest.mark.parametrize(
    ("engine", "workers"),
    [("lance", 0), ("litdata", 0), ("litdata", 2),
     *(pytest.param(*each, marks=pytest.mark.slow) for each in (("lance", 1), ("lance", 2), ("litdata", 1)))],
)  # fmt: skip
def test_samples_are_those_of_the_folder(
    engine: str, workers: int, toy_folder: Path, packed_shapes: dict[str, Path]
) -> None:
    expected = loaded(opened(ImageDataModule, toy_folder))
    assert loaded(opened(ImageDataModule, packed_shapes[engine], workers)) == expected


def write_object_masks(folder: Path) -> Path:
    """Images with a mask file for each of their objects."""
    for split, number in (("train", 4), ("val", 2)):
        for index in range(number):
            images, masks = folder / split / "images", folder / split / "masks" / f"{index}"
            images.mkdir(parents=True, exist_ok=True)
            masks.mkdir(parents=True)
            pixels = np.random.default_rng(index).integers(0, 255, (48, 40, 3), np.uint8)
            Image.fromarray(pixels).save(images / f"{index}.png")
            for object in range(2 + index % 2):
                mask = np.zeros((48, 40), np.uint8)
                mask[2 + 15 * object : 12 + 15 * object, 5:30] = 255
                Image.fromarray(mask).save(masks / f"{object}.png")
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Kind, Path]]:
    folder = tmp_path_factory.mktemp("dense")
    splits = {"train": 6, "val": 3}
    objects = write_toy_objects(folder / "objects", splits=splits, image_size=64) or folder / "objects"
    regions = write_toy_segmentation(folder / "regions", splits=splits, image_size=64) or folder / "regions"
    return {
        "boxes": (DetectionDataModule, objects),
        "outlines": (InstanceSegmentationDataModule, objects),
        "mask files": (InstanceSegmentationDataModule, write_object_masks(folder / "cells")),
        "regions": (SegmentationDataModule, regions),
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("targets", ["boxes", "outlines", "mask files", "regions"])
def test_targets_are_those_of_the_folder(
    engine: str, targets: str, dense: dict[str, tuple[Kind, Path]], tmp_path: Path
) -> None:
    kind, folder = dense[targets]
    packed = pack(opened(kind, folder), engine, tmp_path / "packed", progress=False)
    assert loaded(opened(kind, packed.path)) == loaded(opened(kind, folder))


@pytest.mark.parametrize("engine", ENGINES)
def test_several_labels_and_the_splits_of_a_table(engine: str, toy_folder: Path, tmp_path: Path) -> None:
    data = multi_label_data(toy_folder, tmp_path)
    packed = pack(data, engine, tmp_path / "packed", progress=False)
    again = opened(ImageDataModule, packed.path, batch_size=8, eval_batch_size=4)
    assert loaded(again) == loaded(multi_label_data(toy_folder, tmp_path))


def test_what_is_packed_can_be_packed_again(packed_shapes: dict[str, Path], tmp_path: Path) -> None:
    again = pack(ImageDataModule(packed_shapes["lance"]), "litdata", tmp_path / "again", progress=False)
    assert again.samples == {"train": 24, "val": 0, "test": 0}
    data, other = (opened(ImageDataModule, path) for path in (again.path, packed_shapes["litdata"]))
    assert loaded(data) == loaded(other)


@pytest.mark.parametrize("engine", ENGINES)
def test_other_channels_and_arrays(engine: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(4):
            values = np.random.default_rng(index).integers(0, 255, (20, 24, 5), np.uint8)
            np.save(tmp_path / "data" / name / f"{index}.npy", values)
    folder = tmp_path / "data"
    packed = pack(opened(ImageDataModule, folder, in_chans=5), engine, tmp_path / "packed", progress=False)
    expected = loaded(opened(ImageDataModule, folder, in_chans=5))
    assert loaded(opened(ImageDataModule, packed.path, in_chans=5)) == expected


def test_a_run_is_verified_on_either(toy_folder: Path, packed_shapes: dict[str, Path], tmp_path: Path) -> None:
    runs = {name: small_fit(path, tmp_path, name=name) for name, path in packed_shapes.items()}
    runs["folder"] = small_fit(toy_folder, tmp_path, name="folder")
    for part in ("ledger.jsonl", "splits.csv", "model.safetensors"):
        assert len({(run.path / part).read_bytes() for run in runs.values()}) == 1
    assert len({json.dumps(read_manifest(run.path).inputs) for run in runs.values()}) == 1
    assert runs["folder"].verify(data=packed_shapes["lance"]).verdict == "identical"
    assert runs["lance"].verify(data=toy_folder).verdict == "identical"


def test_a_model_is_tested_on_packed_images(toy_folder: Path, packed_shapes: dict[str, Path], tmp_path: Path) -> None:
    run = small_fit(toy_folder, tmp_path)
    assert run.test(packed_shapes["lance"]) == run.test(toy_folder) == run.test(packed_shapes["litdata"])


def test_an_image_that_is_damaged_later_is_left_out(toy_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_folder, tmp_path / "data")
    (broken,) = [path for path in sorted((tmp_path / "data").rglob("*.png")) if path.name == "00000.png"][:1]
    id = broken.relative_to(tmp_path / "data").as_posix()
    good = broken.read_bytes()
    broken.write_bytes(good[:40])
    data = ImageDataModule(tmp_path / "data")
    packed = pack(data, "lance", tmp_path / "packed", progress=False)
    assert packed.samples["train"] == 23
    assert id in "".join(data.notices)
    broken.write_bytes(good)
    whole = pack(ImageDataModule(tmp_path / "data"), "lance", tmp_path / "whole", progress=False)
    assert whole.samples["train"] == 24
    replace_image(whole.path, id, good[:40])
    again = opened(ImageDataModule, whole.path)
    assert len(again.tables["train"]) + len(again.tables["val"]) == 23
    assert f"{whole.path}: {id}" in "".join(again.notices) or id in "".join(again.notices)
    with pytest.raises(DataError, match="1 of 24 images cannot be read"):
        opened(ImageDataModule, whole.path, strict=True).setup()


def replace_image(path: Path, id: str, image: bytes) -> None:
    """Write another image into a Lance data set, by a new version of all of it."""
    rewrite(path, lambda row: {**row, "image": image} if row["id"] == id else row)


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], metadata: bytes | None = None) -> None:
    lance, pa = pytest.importorskip("lance"), pytest.importorskip("pyarrow")
    old = lance.dataset(str(path))
    schema = old.schema if metadata is None else old.schema.with_metadata({b"autotimm": metadata})
    rows = [change(row) for row in old.to_table().to_pylist()]
    shutil.rmtree(path)
    lance.write_dataset(pa.Table.from_pylist(rows, schema=schema), str(path))


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "a class that there is not": (
        lambda row: {**row, "target": "[7]"},
        "must be one for classification with 3 classes",
    ),
    "no class": (lambda row: {**row, "target": "[]"}, "must be one for classification"),
    "no JSON": (lambda row: {**row, "target": "[" * 5000}, "must be one for classification"),
    "another split": (lambda row: {**row, "split": "val"}, "is none of those that it describes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rows(damage: str, packed_shapes: dict[str, Path], tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    shutil.copytree(packed_shapes["lance"], tmp_path / "data")
    rewrite(tmp_path / "data", change)
    with pytest.raises(DataError, match=message):
        opened(ImageDataModule, tmp_path / "data").setup()


# Of objects with outlines: what is put into the place of one value of the first object of each row.
OBJECT_DAMAGES: dict[str, dict[str, Any]] = {
    "a class that there is not": {"label": 9},
    "a box of three numbers": {"box": [1.0, 2.0, 3.0]},
    "a box without end": {"box": [1.0, 2.0, 3.0, float("inf")]},
    "an area without end": {"area": float("inf")},
    "a stated box of three numbers": {"stated": [1.0, 2.0, 3.0]},
    "text for a number": {"area": "12"},
    "no outline": {"outline": None},
    "an outline of no polygon": {"outline": {"polygons": []}},
    "half a point": {"outline": {"polygons": [[1.0, 2.0, 3.0]]}},
    "a point without end": {"outline": {"polygons": [[1.0, float("inf")]]}},
    "damaged run lengths": {"outline": {"size": [64, 64], "counts": "\u00e9"}},
    "bytes backwards": {"outline": {"bytes": [9, 3], "bounds": [0, 0, 4, 4]}},
    "negative bounds": {"outline": {"bytes": [0, 3], "bounds": [-1, 0, 4, 4]}},
    "bytes without bounds": {"outline": {"bytes": [0, 3]}},
}


def with_target(row: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    return {**row, "target": json.dumps(change(json.loads(row["target"])))}


def test_damaged_objects(dense: dict[str, tuple[Kind, Path]], tmp_path: Path) -> None:
    kind, folder = dense["outlines"]
    packed = pack(opened(kind, folder), "lance", tmp_path / "packed", progress=False).path
    for number, (damage, values) in enumerate(OBJECT_DAMAGES.items()):
        shutil.copytree(packed, tmp_path / f"{number}")
        damaged = partial(with_target, change=lambda objects, values=values: [objects[0] | values, *objects[1:]])
        rewrite(tmp_path / f"{number}", damaged)
        with pytest.raises(DataError) as error:
            opened(kind, tmp_path / f"{number}").setup()
        said = f"The target of train/00000.png in {tmp_path / f'{number}'} must be one for instance with 3 classes. It"
        assert str(error.value).startswith(said), damage
        assert str(error.value).endswith("Pack the data again."), damage
    boxes = tmp_path / f"{[*OBJECT_DAMAGES].index('half a point')}"
    opened(DetectionDataModule, boxes).setup()  # who wants boxes reads no outlines


@pytest.mark.parametrize("damage", [[[7, 1]], [[0, -1]], [[0]], [[0, 1, 2]], [[0, 0.5]], [0, 1]], ids=str)
def test_damaged_amounts_of_pixels(damage: Any, dense: dict[str, tuple[Kind, Path]], tmp_path: Path) -> None:
    kind, folder = dense["regions"]
    packed = pack(opened(kind, folder), "lance", tmp_path / "packed", progress=False).path
    rewrite(packed, partial(with_target, change=lambda amounts: damage))
    with pytest.raises(DataError, match="must be one for segmentation with"):
        opened(kind, packed).setup()


def test_what_one_description_cannot_hold_is_not_packed(
    toy_folder: Path, dense: dict[str, tuple[Kind, Path]], tmp_path: Path
) -> None:
    shapes = opened(ImageDataModule, toy_folder).tables
    other = opened(ImageDataModule, write_toy_folder(tmp_path / "toy", n=8, num_classes=2)).tables
    with pytest.raises(UsageError, match="the same classes in all splits"):
        head_of({"train": shapes["train"], "val": other["val"]})
    regions = opened(*dense["regions"]).tables
    values = copy(regions["val"])
    assert isinstance(values, MaskTable)
    values.code = replace(values.code, nearest=not values.code.nearest)
    with pytest.raises(UsageError, match="masks whose values mean the same in all splits"):
        head_of({"train": regions["train"], "val": values})

    class Drawn(Table):
        class_names = ("a", "b")

        def load(self, index: int) -> Sample:
            raise NotImplementedError

    with pytest.raises(UsageError, match=r"image files with classes, objects or masks\. Got 'Drawn'"):
        head_of({"train": Drawn()})


# The command


def test_the_command_says_how_to_train_on_what_it_has_packed(
    toy_folder: Path, packed_shapes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy_folder, tmp_path / "photos")
    cut = min((tmp_path / "photos").rglob("*.png"))
    cut.write_bytes(cut.read_bytes()[:100])
    out = tmp_path / "packed"
    assert main(["pack", str(tmp_path / "photos"), "--to", "litdata", "--out", str(out), "--progress", "false"]) == 0
    *notices, packed, train = capsys.readouterr().out.splitlines()
    assert any(line.startswith("notice: ") and cut.name in line for line in notices)
    assert re.fullmatch(r"packed: 23 train, \d+ bytes of images and masks, for classification", packed)
    assert train == f"train: autotimm fit {out}"
    words = ["pack", str(toy_folder), "--to", "litdata", "--out", str(tmp_path / "whole"), "--json"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["packed"], answer["task"], answer["notices"]) == (str(tmp_path / "whole"), "classification", [])
    assert {split: number for split, number in answer["samples"].items() if number} == {"train": 24}
    assert answer["bytes"] == sum(path.stat().st_size for path in toy_folder.rglob("*.png"))
    expected = loaded(opened(ImageDataModule, packed_shapes["litdata"]))
    assert loaded(opened(ImageDataModule, tmp_path / "whole")) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "new"], "needs an engine and a new folder. Give for example --to lance."),
        (["--to", "lance"], "needs an engine and a new folder. Give for example --out photos.lance."),
        (["--to", "lance", "--out", "full"], "full"),
        (["--to", "zip", "--out", "new"], "zip"),
    ],
)
def test_the_command_needs_an_engine_and_a_new_folder(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("kept")
    assert main(["pack", "photos", *words]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


HEADS = {
    "no JSON": ("{", "must be JSON"),
    "a list": ("[]", r"must be 1\. Got None"),
    "another version": ('{"version": 2}', r"must be 1\. Got 2"),
    "no classes": ({"class_names": []}, "must be different names"),
    "classes twice": ({"class_names": ["a", "a", "b"]}, "must be different names"),
    "another kind": ({"kind": "sounds"}, "must be one of classes, boxes"),
    "fewer rows": ({"samples": {"train": 3}}, "none of those that it describes"),
    "more rows": ({"samples": {"train": 30}}, "describes 30 rows, and has 24"),
    "text for a number": ({"samples": {"train": "24"}}, "must be a whole number"),
}


@pytest.mark.parametrize("damage", HEADS)
def test_damaged_descriptions(damage: str, packed_shapes: dict[str, Path], tmp_path: Path) -> None:
    change, message = HEADS[damage]
    shutil.copytree(packed_shapes["litdata"], tmp_path / "data")
    file = tmp_path / "data" / "autotimm.json"
    file.write_text(change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=message):
        opened(ImageDataModule, tmp_path / "data").setup()


class Payload:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_chunks_with_pickles_are_refused(packed_shapes: dict[str, Path], tmp_path: Path) -> None:
    """litData would unpickle them, since the index names the serializer."""
    from litdata import StreamingDataset
    from litdata.streaming.cache import Cache

    data, trace = tmp_path / "data", tmp_path / "trace"
    shutil.copytree(packed_shapes["litdata"], data)
    shutil.rmtree(data / "images")
    (data / "images").mkdir()
    cache = Cache(str(data / "images"), chunk_bytes=1 << 20)
    for index in range(24):
        cache[index] = [b"id", Payload(trace), b""]
    cache.done()
    cache.merge()
    StreamingDataset(str(data / "images"))[0]
    assert trace.exists()  # so it would
    trace.unlink()
    with pytest.raises(DataError, match="must be bytes, three times"):
        opened(ImageDataModule, data).setup()
    assert not trace.exists()


INDICES = {
    "a chunk elsewhere": (lambda index: index["chunks"][0].update(filename="../../x.bin"), "a chunk beside it"),
    "another size": (lambda index: index["chunks"][0].update(chunk_bytes=7), "must have the size"),
    "encryption": (lambda index: index["config"].update(encryption={"algorithm": "fernet"}), "as `autotimm pack`"),
    "another tree": (lambda index: index["config"].update(data_spec="[1, {}]"), "as `autotimm pack` writes it"),
    "fewer images": (lambda index: index["chunks"].clear(), "24 rows and 0 images"),
}  # fmt: skip


@pytest.mark.parametrize("damage", INDICES)
def test_damaged_indices(damage: str, packed_shapes: dict[str, Path], tmp_path: Path) -> None:
    change, message = INDICES[damage]
    shutil.copytree(packed_shapes["litdata"], tmp_path / "data")
    file = tmp_path / "data" / "images" / "index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    with pytest.raises(DataError, match=message):
        opened(ImageDataModule, tmp_path / "data").setup()


def test_images_of_other_rows_are_noticed(packed_shapes: dict[str, Path], tmp_path: Path) -> None:
    """A stream of images that was exchanged for another, of as many."""
    data = tmp_path / "data"
    shutil.copytree(packed_shapes["litdata"], data)
    shutil.rmtree(data / "images")
    from litdata.streaming.cache import Cache

    cache = Cache(str(data / "images"), chunk_bytes=1 << 20)
    for index in range(24):
        cache[index] = [b"other", b"", b""]
    cache.done()
    cache.merge()
    with pytest.raises(DataError, match=r"Row 0 of .* It is that of other"):
        opened(ImageDataModule, data).setup()


@pytest.mark.parametrize("engine", ENGINES)
def test_files_cut_off_or_overwritten(engine: str, packed_shapes: dict[str, Path], tmp_path: Path) -> None:
    """Each file of a data set in turn; whatever it is, the error is ours or the samples are intact."""
    for number, file in enumerate(sorted(path for path in packed_shapes[engine].rglob("*") if path.is_file())):
        for kind in ("cut", "noise"):
            data = tmp_path / f"{number}-{kind}"
            shutil.copytree(packed_shapes[engine], data)
            place = data / file.relative_to(packed_shapes[engine])
            whole = place.read_bytes()
            noise = np.random.default_rng(number).bytes(len(whole) // 2)
            place.write_bytes(whole[: len(whole) // 2] + (noise if kind == "noise" else b""))
            try:
                opened(ImageDataModule, data).setup()
            except DataError:
                continue


def test_data_sets_of_others_are_refused(tmp_path: Path) -> None:
    lance, pa = pytest.importorskip("lance"), pytest.importorskip("pyarrow")
    lance.write_dataset(pa.table({"id": ["a"], "pixels": [b"x"]}), str(tmp_path / "other.lance"))
    with pytest.raises(DataError, match=r"must be one that `autotimm pack` wrote. It has the columns id \(string\)"):
        ImageDataModule(tmp_path / "other.lance").setup()
    from litdata.streaming.cache import Cache

    cache = Cache(str(tmp_path / "other"), chunk_bytes=1 << 20)
    cache[0] = [b"a", b"b"]
    cache.done()
    cache.merge()
    with pytest.raises(DataError, match=r"There is no autotimm.json"):
        ImageDataModule(tmp_path / "other").setup()


def test_other_tasks_and_orientations(dense: dict[str, tuple[Kind, Path]], tmp_path: Path) -> None:
    packed = pack(opened(*dense["outlines"]), "lance", tmp_path / "packed", progress=False).path
    boxes = opened(DetectionDataModule, packed)
    assert loaded(boxes) == loaded(opened(*dense["boxes"]))
    with pytest.raises(DataError, match=r"must have data for segmentation\. It has 9 packed images"):
        opened(SegmentationDataModule, packed).setup()
    with pytest.raises(DataError, match="Give ignore_exif=False"):
        opened(DetectionDataModule, packed, ignore_exif=True).setup()


def test_places_that_cannot_be_written_to(toy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UsageError, match="must be a new or empty folder"):
        pack(ImageDataModule(toy_folder), "lance", tmp_path / "full")
    with pytest.raises(UsageError, match="must be one of lance, litdata"):
        pack(ImageDataModule(toy_folder), "zip", tmp_path / "new")


def test_rows_are_read_at_once_and_let_go(packed_shapes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "AT_ONCE", 16)
    data = opened(ImageDataModule, packed_shapes["lance"], batch_size=18)
    table = data.tables["train"]
    packed = table.packed()
    assert packed is not None
    asked: list[int] = []
    read = type(packed.rows).read
    monkeypatch.setattr(type(packed.rows), "read", lambda rows, places: asked.append(len(places)) or read(rows, places))
    next(iter(data.train_dataloader()))
    assert asked[-2:] == [16, 2]
    assert len(packed.rows._held) == 2


def test_limits_of_sizes(packed_shapes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_store, "_LARGEST_FILE", 100)
    with pytest.raises(DataError, match="must have at most 100 bytes"):
        opened(ImageDataModule, packed_shapes["lance"]).setup()


def test_caches_have_no_effect(packed_shapes: dict[str, Path]) -> None:
    data = opened(ImageDataModule, packed_shapes["lance"], cache="disk")
    data.setup()
    assert "cache: off, since the images are no files" in data.notices
    assert torch.equal(data.tables["train"].load(0).image, data.tables["train"].load(0).image)


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_checked_once_until_a_file_changes(
    engine: str, packed_shapes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_facts, "_SETTLED", 0)
    monkeypatch.setattr(row_store, "_KEPT", 10)
    path = Path(shutil.copytree(packed_shapes[engine], tmp_path / engine))
    looked: list[int] = []
    facts_of_rows = row_store.facts_of_rows

    def noting(rows: Any, total: int, **options: Any) -> Any:
        looked.append(total)
        return facts_of_rows(rows, total, **options)

    monkeypatch.setattr(row_store, "facts_of_rows", noting)

    def start(**options: Any) -> dict[str, Any]:
        data = opened(ImageDataModule, path, **options)
        found = {"content": content(data.tables.values(), progress=False), "notices": data.notices}
        packed = data.tables["train"].packed()
        assert packed is not None
        return found | {"sizes": [packed.rows.size(place) for place in packed.places.tolist()]}

    first, number = start(check="full"), len(opened(ImageDataModule, path).tables["train"])
    assert start(check="full") == first
    assert start(check="headers")["content"] == first["content"]
    whole = looked[0]
    assert whole >= number
    assert looked == [whole, 0, 0, 0]
    start(ignore_exif=True)  # other rules
    largest = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    os.utime(largest)
    assert start(check="full") == first
    assert looked[4:] == [whole, whole]
