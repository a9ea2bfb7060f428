"""Folds and groups: keyed by id, stratified, and never through a group."""

import functools
import operator
from collections import Counter
from pathlib import Path

import pytest
import torch

from autotimm import DetectionDataModule, ImageDataModule
from autotimm.data.folds import Division, assign_folds, check_folds, grouped_split, groups_of
from autotimm.data.keyed_split import keyed_split
from autotimm.data.table import ImageTable
from autotimm.data.toy import toy_classes, write_toy_folder
from autotimm.errors import DataError, UsageError

IDS = [f"{number % 3}/{number:04d}.png" for number in range(90)]
STRATA = [number % 3 for number in range(90)]


def module(root: Path, **options) -> ImageDataModule:
    return ImageDataModule(root, image_size=32, num_workers=0, **options)


def test_every_class_is_spread_over_all_folds_and_the_listing_does_not_matter():
    folds = assign_folds(IDS, STRATA, 5, seed=42)
    assert set(Counter(zip(STRATA, folds, strict=True)).values()) == {6}
    turned = assign_folds(IDS[::-1], STRATA[::-1], 5, seed=42)
    assert turned[::-1] == folds
    assert assign_folds(IDS, STRATA, 5, seed=43) != folds


def test_a_sample_that_is_added_moves_few_of_a_small_class_and_none_of_a_large_one_or_of_another():
    before = assign_folds(IDS, STRATA, 5, seed=1)
    after = assign_folds([*IDS, "0/new.png"], [*STRATA, 0], 5, seed=1)
    moved = [at for at in range(90) if before[at] != after[at]]
    assert len(moved) <= 4
    assert {STRATA[at] for at in moved} <= {0}
    large = [f"{number}.png" for number in range(300)]
    folds = assign_folds(large, None, 5, seed=1)
    assert assign_folds([*large, "new.png"], None, 5, seed=1)[:300] == folds
    assert min(Counter(folds).values()) > 40


def test_remainders_of_small_classes_do_not_all_fall_into_the_same_folds():
    ids = [f"{at}/{number}" for at in range(40) for number in range(6)]
    folds = assign_folds(ids, [at for at in range(40) for _ in range(6)], 5, seed=3, names=[*map(str, range(40))])
    assert max(Counter(folds).values()) < 2 * min(Counter(folds).values())


def test_no_fold_is_empty_while_there_are_as_many_samples_as_folds():
    for seed in range(20):
        folds = assign_folds(["a", "b", "c", "d", "e", "f"], [0, 0, 1, 1, 2, 2], 6, seed)
        assert sorted(folds) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(DataError, match="There are 3 images to train on, fewer than the 4 folds"):
        assign_folds(["a", "b", "c"], None, 4, 0)
    with pytest.raises(DataError, match="There are 2 groups to train on, fewer than the 3 folds"):
        assign_folds(IDS, STRATA, 3, 0, groups=["p" if at < 40 else "q" for at in range(90)])


def test_a_group_is_in_one_fold_and_on_one_side():
    groups = [f"patient{number // 4}" for number in range(90)]
    folds = assign_folds(IDS, STRATA, 4, seed=5, groups=groups)
    assert all(len({fold for fold, group in zip(folds, groups, strict=True) if group == each}) == 1 for each in groups)
    assert {*folds} == {1, 2, 3, 4}
    sides = grouped_split(IDS, STRATA, groups, 0.2, 0.2, seed=5)
    assert sorted(functools.reduce(operator.iadd, sides, [])) == [*range(90)]
    kinds = [{groups[index] for index in side} for side in sides]
    assert not (kinds[0] & kinds[1])
    assert not (kinds[0] & kinds[2])
    assert not (kinds[1] & kinds[2])
    assert all(kinds)


def test_without_groups_the_split_is_what_it_was():
    assert grouped_split(IDS, STRATA, None, 0.2, 0.1, seed=9) == keyed_split(IDS, STRATA, 0.2, 0.1, seed=9)


def test_a_regex_names_groups_and_a_wrong_one_is_refused():
    table = ImageTable(
        ["x"] * 3, ["cat/a_1.png", "cat/a_2.png", "dog/b_1.png"], torch.tensor([0, 0, 1]), ("cat", "dog")
    )
    assert groups_of(table, "/([a-z])_", "fit") == ["a", "a", "b"]
    assert groups_of(table, None, "fit") is None
    for group, problem in (("patient", "regex with a group in parentheses"), ("(a", "as a regex it is wrong"),
                           ("cat/(.)", "It finds no group in 1 of 3 ids, such as dog/b_1.png")):  # fmt: skip
        with pytest.raises(UsageError, match=problem):
            groups_of(table, group, "fit")


def test_a_class_in_one_fold_alone_is_refused_and_one_in_few_is_named():
    table = ImageTable(["x"] * 6, list("abcdef"), torch.tensor([0, 0, 0, 0, 1, 1]), ("cat", "dog"))
    notices: list[str] = []
    check_folds(table, [1, 2, 3, 1, 1, 2], 3, notices, grouped=False)
    assert notices == ["Classes that not each of the 3 folds has, so that some are validated without: dog."]
    with pytest.raises(DataError, match="whose images are all in one group, so that a fold would be trained without"):
        check_folds(table, [1, 2, 3, 1, 1, 1], 3, notices, grouped=True)


def test_a_data_module_divides_its_training_images(tmp_path):
    root = write_toy_folder(tmp_path / "toy", n=30, num_classes=3, seed=1)
    sides = [module(root, folds=3, fold=fold, test_split=0.2).tables for fold in (1, 2, 3)]
    whole = module(root, folds=3, test_split=0.2).tables
    assert "val" not in whole
    assert sorted(id for tables in sides for id in tables["val"].ids) == sorted(whole["train"].ids)
    for tables in sides:
        assert tables["test"].ids == whole["test"].ids
        assert not {*tables["train"].ids} & {*tables["val"].ids}
    assert module(root, folds=3, fold=2, seed=7).tables["val"].ids != module(root, folds=3, fold=2).tables["val"].ids


def test_validation_images_of_its_own_serve_the_training_on_all_images(tmp_path):
    root = write_toy_folder(tmp_path / "toy", splits={"train": 12, "val": 6}, num_classes=3, seed=1)
    whole, fold = module(root, folds=3), module(root, folds=3, fold=1)
    assert (len(whole.tables["train"]), len(whole.tables["val"])) == (12, 6)
    assert {*fold.tables["val"].ids} < {*whole.tables["train"].ids}
    assert any("The validation images of the data are not used" in line for line in fold.notices)
    shared = module(root, group="/([a-z_]+)/")
    assert shared.tables
    assert any("are in train and in the data's own val images" in line for line in shared.notices)


def test_a_column_of_a_table_names_groups(tmp_path):
    root = write_toy_folder(tmp_path / "toy", n=24, num_classes=3, seed=1)
    paths = sorted(root.rglob("*.png"))
    lines = [f"{path.relative_to(root).as_posix()},{path.parent.name},p{at % 8}" for at, path in enumerate(paths)]
    table = root / "labels.csv"
    table.write_text("\n".join(["image,label,patient", *lines]) + "\n")
    data = module(table, group="patient", val_split=0.25)
    patients = [set(data.tables[split].groups or ()) for split in ("train", "val")]
    assert patients[0]
    assert patients[1]
    assert not patients[0] & patients[1]
    assert any("24 images are in 8 groups, such as p0, p1" in line for line in data.notices)
    table.write_text(table.read_text().replace(",p7", ","))
    with pytest.raises(DataError, match="lines without a group in column 'patient'"):
        module(table, group="patient").setup()


def test_a_column_of_a_table_of_boxes_names_groups(tmp_path):
    root = write_toy_folder(tmp_path / "toy", n=24, num_classes=3, seed=1)
    paths = sorted(root.rglob("*.png"))
    lines = [f"{path.relative_to(root).as_posix()},thing,1,1,{right},9,p{at % 8}"
             for at, path in enumerate(paths) for right in (8, 9)]  # fmt: skip
    table = root / "boxes.csv"
    table.write_text("\n".join(["filename,class,xmin,ymin,xmax,ymax,patient", *lines]) + "\n")
    data = DetectionDataModule(table, group="patient", val_split=0.25, num_workers=0)
    patients = [set(data.tables[split].groups or ()) for split in ("train", "val")]
    assert [len(each) for each in patients] == [6, 2]
    assert not patients[0] & patients[1]
    table.write_text("\n".join(["filename,class,xmin,ymin,xmax,ymax,patient", *lines, lines[0][:-2] + "p7"]) + "\n")
    with pytest.raises(DataError, match=r"must name one group for each image in column 'patient'.* has several values"):
        DetectionDataModule(table, group="patient").setup()
    table.write_text("\n".join(["filename,class,xmin,ymin,xmax,ymax,patient", *lines, lines[0][:-2]]) + "\n")
    with pytest.raises(DataError, match="has no value"):
        DetectionDataModule(table, group="patient").setup()
    with pytest.raises(UsageError, match="Only tables of classes and of boxes have columns"):
        DetectionDataModule(table, group="pupil").setup()


@pytest.mark.parametrize(("division", "problem"), [
    (Division(folds=1), "`folds` of ImageDataModule must be a whole number, 2 or more"),
    (Division(fold=1), "`fold` of ImageDataModule must be left out without `folds`"),
    (Division(folds=3, fold=4), "`fold` of ImageDataModule must be a whole number from 1 to 3"),
    (Division(group=""), "`group` of ImageDataModule must be a text"),
])  # fmt: skip
def test_a_division_that_means_nothing_is_refused(division, problem):
    with pytest.raises(UsageError, match=problem):
        module(Path("."), **division._asdict())


def test_a_class_with_a_single_image_is_refused(tmp_path):
    root = write_toy_folder(tmp_path / "toy", n=12, num_classes=3, seed=1)
    for path in sorted((root / toy_classes(3)[0]).iterdir())[1:]:
        path.unlink()
    with pytest.raises(DataError, match="Classes with a single image, so that a fold would be trained without them"):
        module(root, folds=3).setup()
