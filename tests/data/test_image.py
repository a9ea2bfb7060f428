"""The image data module on folders, CSV files and torchvision's data sets, toy and real."""

import copy
import pickle
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table as RichTable
from torchvision.transforms import v2

from autotimm.data import ImageDataModule, Table
from autotimm.data.toy import write_toy_folder
from autotimm.errors import DataError, UsageError
from autotimm.types import Batch

Real = Callable[[str], Path]


def module(*arguments: Any, **options: Any) -> ImageDataModule:
    return ImageDataModule(*arguments, **{"image_size": 32, "num_workers": 0, **options})


def sizes(data: ImageDataModule) -> dict[str, int]:
    return {split: len(table) for split, table in data.tables.items()}


# Real data


def test_clothing(real: Real) -> None:
    data = module(real("cls_clothing"), image_size=64, num_workers=2)
    assert sizes(data) == {"train": 276, "val": 72, "test": 60}
    assert data.class_names == ("dress", "hat", "pants", "shoes", "shorts", "t-shirt")
    assert data.class_counts() == (46,) * 6
    assert not data.notices
    assert data.tables["val"].ids[0].startswith("validation/dress/")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, Batch)
    assert batch.images.shape == (32, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    for name, target in zip(batch.ids, batch.targets.tolist(), strict=True):
        assert name.split("/")[1] == data.class_names[target]
    assert sum(len(b.ids) for b in data.test_dataloader()) == 60
    data.teardown()


def test_sign_digits_in_a_lone_folder(real: Real) -> None:
    root = real("cls_sign_digits")
    data = module(root)
    assert data.class_names == tuple("0123456789")
    assert sizes(data) == {"train": 450, "val": 50}
    assert data.class_counts("val") == (5,) * 10
    assert data.notices == ["The folder cls_sign_digits/ holds only Dataset/: the images are read from there."]
    inside = module(root / "Dataset")
    assert inside.tables["val"].ids == data.tables["val"].ids


def test_cards_with_several_labels(real: Real) -> None:
    root = real("multilabel_cards")
    names = ["nine", "ten", "jack", "queen", "king", "ace"]
    data = module(
        train_csv=root / "train_labels_multihot.csv",
        test_csv=root / "test_labels_multihot.csv",
        image_dir=root / "images",
        label_column=names,
        test_split=0.3,
    )
    assert data.multi_label
    assert data.class_names == tuple(names)
    assert sizes(data) == {"train": 74 - len(data.tables["val"]), "val": len(data.tables["val"]), "test": 26}
    assert 5 <= len(data.tables["val"]) <= 12
    assert data.tables["train"].ids[0].startswith("train/IMG_")
    total = [sum(pair) for pair in zip(data.class_counts(), data.class_counts("val"), strict=True)]
    assert total == [28, 21, 28, 27, 25, 18]
    assert min(data.class_counts("val")) >= 1
    batch = next(iter(data.val_dataloader()))
    assert batch.targets.dtype == torch.float32
    assert batch.targets.shape[1] == 6
    assert set(batch.targets.unique().tolist()) == {0, 1}
    assert any("|" in classes for _, classes, _ in data.assignments())


def test_csv_of_sign_digits_equals_the_folder(real: Real, tmp_path: Path) -> None:
    root = real("cls_sign_digits")
    lines = (root / "train.txt").read_text().split("\n")
    rows = [line.rsplit(" ", 1) for line in lines if line]
    (tmp_path / "train.csv").write_text("filename,class\n" + "".join(f"{name},{label}\n" for name, label in rows))
    data = module(tmp_path / "train.csv", image_dir=root)
    assert sum(sizes(data).values()) == 400
    assert data.class_names == tuple("0123456789")


# Folders


def test_flat_folder(toy: Path) -> None:
    data = module(toy, test_split=0.25, val_split=0.25)
    assert sizes(data) == {"train": 12, "val": 6, "test": 6}
    everything = [name for table in data.tables.values() for name in table.ids]
    assert len(set(everything)) == 24
    assert data.spec.class_names == data.class_names == ("blue_circle", "green_cross", "orange_square")
    assert data.num_classes == 3
    assert (data.spec.image_size, data.spec.eval_batch_size, data.spec.multi_label) == (32, 16, False)
    assert sorted(split for _, _, split in data.assignments()) == ["test"] * 6 + ["train"] * 12 + ["val"] * 6
    assert all(name.startswith(f"{owner}/") for name, owner, _ in data.assignments())


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Valid"])
def test_split_folders(tmp_path: Path, val: str) -> None:
    write_toy_folder(tmp_path, num_classes=2, splits={"train": 20, val: 4, "test": 6})
    data = module(tmp_path, val_split=0.5, test_split=0.4)
    assert sizes(data) == {"train": 20, "val": 4, "test": 6}


def test_a_share_without_effect_is_pointed_out(tmp_path: Path) -> None:
    write_toy_folder(tmp_path, num_classes=2, splits={"train": 20, "val": 4, "test": 6})
    for shares, said in (
        ({}, []),
        ({"val_split": 0}, []),
        ({"val_split": 0.5}, ["val"]),
        ({"test_split": 0.4}, ["test"]),
    ):
        data = module(tmp_path, **shares)
        assert sizes(data) == {"train": 20, "val": 4, "test": 6}
        lines = [f"`{side}_split` has no effect: the data have {side} images of their own." for side in said]
        assert [line for line in data.notices if "no effect" in line] == lines


def test_two_tables_to_train_on_are_refused() -> None:
    with pytest.raises(UsageError, match="`train_csv` of ImageDataModule must be left out where `data_dir` is a table"):
        module("a.csv", train_csv="b.csv")


def test_the_crop_of_evaluation_counts_in_a_training_without_augmentation(toy: Path) -> None:
    own = torch.nn.Identity()
    assert module(toy, augmentation="none", crop_pct=1.0, eval_transforms=own).crop_pct == 1
    with pytest.raises(UsageError, match="`interpolation` of ImageDataModule must be left out"):
        module(toy, interpolation="bicubic", eval_transforms=own, train_transforms=own)


def test_only_what_lacks_is_split_off(tmp_path: Path) -> None:
    write_toy_folder(tmp_path, num_classes=2, splits={"train": 20, "test": 6})
    assert sizes(module(tmp_path, val_split=0.2, test_split=0.4)) == {"train": 16, "val": 4, "test": 6}


def test_byte_order_and_deep_folders(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for name in ("b/10.png", "b/2.png", "B/x/1.PNG", "B/a.png", "a/1.png"):
        picture(tmp_path / name)
    (tmp_path / "a" / "readme.txt").write_text("")
    data = module(tmp_path, val_split=0)
    assert data.class_names == ("B", "a", "b")
    assert data.tables["train"].ids == ("B/a.png", "B/x/1.PNG", "a/1.png", "b/10.png", "b/2.png")
    assert any("left out 1 files without an image extension: readme.txt" in notice for notice in data.notices)


def test_split_does_not_depend_on_what_was_added(tmp_path: Path) -> None:
    write_toy_folder(tmp_path, num_classes=2, n=240, image_size=8)
    before = {name: split for name, _, split in module(tmp_path, val_split=0.3).assignments()}
    write_toy_folder(tmp_path, num_classes=2, n=260, image_size=8)
    after = {name: split for name, _, split in module(tmp_path, val_split=0.3).assignments()}
    assert {name: after[name] for name in before} == before
    assert before != {
        name: split for name, _, split in module(tmp_path, val_split=0.3, seed=1).assignments() if name in before
    }


def test_split_uses_evaluation_transforms(toy: Path) -> None:
    data = module(
        toy, val_split=0.5, train_transforms=lambda image: image[:, :8, :8], eval_transforms=lambda i: i[:, :4, :4]
    )
    assert next(iter(data.train_dataloader())).images.shape[-1] == 8
    assert next(iter(data.val_dataloader())).images.shape[-1] == 4
    assert next(iter(data.predict_loader(toy))).images.shape[-1] == 4


def test_own_transforms_see_a_uint8_image(toy: Path) -> None:
    seen: list[str] = []

    def look(image: Any) -> Any:
        seen.append(f"{type(image).__name__} {image.dtype} {tuple(image.shape)}")
        return v2.functional.to_dtype(image, torch.float32, scale=True)

    batch = next(iter(module(toy, train_transforms=look).train_dataloader()))
    assert set(seen) == {"Image torch.uint8 (3, 32, 32)"}
    assert batch.images.dtype == torch.float32
    assert batch.images.max() <= 1


def test_normalizing_twice_is_refused(toy: Path) -> None:
    transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.2] * 3)])
    with pytest.raises(UsageError, match="Leave out Normalize"):
        module(toy, train_transforms=transform).train_dataloader()


def test_balanced_sampling(tmp_path: Path) -> None:
    write_toy_folder(tmp_path, num_classes=1, n=90, image_size=8)
    write_toy_folder(tmp_path / "more", num_classes=2, n=20, image_size=8)
    (tmp_path / "more" / "green_cross").rename(tmp_path / "green_cross")
    (tmp_path / "more" / "blue_circle").rename(tmp_path / "green_cross" / "no")
    for path in (tmp_path / "green_cross" / "no").iterdir():
        path.unlink()
    (tmp_path / "green_cross" / "no").rmdir()
    (tmp_path / "more").rmdir()
    data = module(tmp_path, image_size=8, balanced_sampling=True, val_split=0.0)
    assert data.class_counts() == (90, 10)
    loader = data.train_dataloader()
    drawn = Counter(target for _ in range(10) for batch in loader for target in batch.targets.tolist())
    assert 0.45 < drawn[1] / sum(drawn.values()) < 0.55
    repeated = [name for batch in loader for name in batch.ids]
    assert len(set(repeated)) < len(repeated)
    images = {}
    for batch in loader:
        for name, image in zip(batch.ids, batch.images, strict=True):
            images.setdefault(name, []).append(image)
    twice = next(found for found in images.values() if len(found) > 1)
    assert not torch.equal(twice[0], twice[1])  # a sample that is drawn twice is augmented twice


def test_seed_none_draws_one_and_records_it(toy: Path) -> None:
    import random

    random.seed(1)
    first = module(toy, seed=None)
    random.seed(1)
    second = module(toy, seed=None)
    assert first.run_seed == second.run_seed
    assert first.run_seed != module(toy, seed=None).run_seed
    assert first.tables["val"].ids == second.tables["val"].ids


def test_run_seed_decides_order_and_augmentation_and_not_the_split(toy: Path) -> None:
    one, other = module(toy), module(toy)
    other.run_seed = 7
    assert one.tables["val"].ids == other.tables["val"].ids
    assert next(iter(one.train_dataloader())).ids != next(iter(other.train_dataloader())).ids


def test_copies_leave_processes_and_trainer_behind(toy: Path) -> None:
    data = module(toy, num_workers=1)
    loader = data.train_dataloader()
    next(iter(loader))
    for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert twin.tables["train"].ids == data.tables["train"].ids
        assert next(iter(twin.val_dataloader())).ids
        twin.teardown()
    data.teardown()


def test_summary_is_a_rich_table_that_prints(toy: Path) -> None:
    summary = module(toy, test_split=0.2).summary()
    assert isinstance(summary, RichTable)
    text = str(summary)
    for word in ("24 images, 3 classes", "blue_circle", "train", "val", "test", "total", "█"):
        assert word in text
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary)
    assert "blue_circle" in console.export_text()


def test_summary_of_many_classes(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for number in range(40):
        picture(tmp_path / f"c{number:02d}" / "1.png")
    text = str(module(tmp_path).summary())
    assert "… 10 more" in text
    assert "• Classes with a single image" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"augmentation": "strong", "train_transforms": torch.nn.Identity()},
            r"`augmentation` of ImageDataModule must",
        ),
        ({"crop_pct": 1.0, "eval_transforms": torch.nn.Identity()}, r"`crop_pct` of ImageDataModule must be left out"),
        ({"download": True}, r"`download` of ImageDataModule must be given with `dataset_name`. Got True"),
        ({"val_split": 1.5}, r"The `val_split` of ImageDataModule must be a number in \[0, 1\)\. Got 1\.5 instead"),
        ({"batch_size": 0}, "`batch_size` of ImageDataModule must be a whole number, 1 or more"),
        ({"image_size": 32.5}, "`image_size`"),
        ({"eval_batch_size": True}, "`eval_batch_size`"),
        ({"num_workers": -1}, "`num_workers`"),
        ({"crop_pct": 0}, "`crop_pct`"),
        ({"seed": -1}, "`seed`"),
        ({"augmentation": "heavy"}, "`augmentation`"),
        ({"val_csv": "v.csv"}, "`train_csv`"),
        ({"image_column": "x"}, "`train_csv`"),
        ({"train_csv": "t.csv", "dataset_name": "MNIST"}, "`dataset_name`"),
        ({"train_transforms": 3}, "`train_transforms`"),
    ],
)
def test_wrong_arguments_fail_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ImageDataModule("photos", **options)


def test_no_data_named() -> None:
    with pytest.raises(UsageError, match=r"`data_dir` of ImageDataModule must be a folder of images\. Got None"):
        ImageDataModule()


def test_own_format(tmp_path: Path) -> None:
    from autotimm.data import DataModule, ImageTable

    root = write_toy_folder(tmp_path, n=8, num_classes=2)

    class Flat(DataModule):
        def read(self, split: str) -> Table | None:
            if split != "train":
                return None
            paths = sorted(root.rglob("*.png"))
            targets = torch.tensor([path.parent.name == "green_cross" for path in paths]).long()
            return ImageTable(paths, [path.name for path in paths], targets, ["no", "yes"])

    data = Flat(image_size=32, num_workers=0, val_split=0.5)
    assert sizes(data) == {"train": 4, "val": 4}


# Prediction


def test_predict_file_folder_and_list(toy: Path) -> None:
    data = module(toy)
    first = sorted(toy.rglob("*.png"))[0]
    assert data.predict_table(first).ids == (first.name,)
    everything = data.predict_table(toy)
    assert everything.ids == tuple(str(path.relative_to(toy)) for path in sorted(toy.rglob("*.png")))
    listed = data.predict_table([first, str(toy / "green_cross")])
    assert listed.ids[0] == str(first)
    assert len(listed) == 9
    batch = next(iter(data.predict_loader(toy)))
    assert batch.targets is None
    assert batch.images.shape == (16, 3, 32, 32)
    assert not data._tables  # prediction needs no training data


# torchvision


def idx(path: Path, values: np.ndarray[Any, Any]) -> None:
    """Write the format of MNIST."""
    head = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    for name, count in (("train", 60), ("t10k", 20)):
        idx(tmp_path / f"MNIST/raw/{name}-images-idx3-ubyte", np.arange(count * 784).reshape(count, 28, 28) % 256)
        idx(tmp_path / f"MNIST/raw/{name}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


@pytest.mark.parametrize("name", ["MNIST", "mnist"])
def test_builtin(mnist: Path, name: str) -> None:
    data = module(mnist, dataset_name=name, val_split=0.2)
    assert sizes(data) == {"train": 50, "val": 10, "test": 20}
    assert data.class_names[0] == "0 - zero"
    batch = next(iter(data.test_dataloader()))
    assert batch.images.shape == (16, 3, 32, 32)
    assert torch.equal(batch.images[:, 0], batch.images[:, 2])
    assert batch.targets.tolist() == [number % 10 for number in range(16)]
    assert batch.ids[0] == "test/0000000"


def test_builtin_of_folders(tmp_path: Path) -> None:
    for name in ("Forest", "River"):
        for number in range(5):
            path = tmp_path / "eurosat" / "2750" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (number, 9, 9)).save(path)
    data = module(tmp_path, dataset_name="EuroSAT")
    assert data.class_names == ("Forest", "River")
    assert sizes(data) == {"train": 8, "val": 2}


def test_builtin_is_not_downloaded_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CIFAR10 is not in .*Give download=True to fetch it into"):
        module(tmp_path, dataset_name="CIFAR10").setup()
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="Did you mean 'CIFAR100' or 'CIFAR10'"):
        module(tmp_path, dataset_name="CIFAR1000").setup()
