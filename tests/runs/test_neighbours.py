"""The nearest training images: those that a plain computation finds, whatever is compared at once."""

import csv
import json
import shutil

import numpy as np
import pytest

import autotimm
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder, write_toy_segmentation
from autotimm.errors import DataError, UsageError
from autotimm.runs import neighbours
from autotimm.runs.neighbours import NOVELTY_RANK, NearestSamples, novelties
from training import small_fit


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neighbours") / "photos"
    return write_toy_folder(folder, splits={"train": 12, "val": 5}, num_classes=3, seed=7)


@pytest.fixture(scope="module")
def run(photos):
    return small_fit(photos, photos.parent / "runs", name="photos", val_split=None)


def found(features, ids, others, most=5, block=3):
    nearest = NearestSamples(features, ids, most)
    for start in range(0, len(ids), block):
        nearest.add(ids[start : start + block], others[start : start + block])
    return nearest.found()


class TestSearch:
    drawn = np.random.default_rng(0)
    features = drawn.normal(size=(40, 300)).astype(np.float32)
    others = drawn.normal(size=(200, 300)).astype(np.float32)
    ids = tuple(f"{number:03}" for number in drawn.permutation(200))

    def test_it_finds_what_a_plain_computation_finds(self):
        a, b = (rows.astype(np.float64) for rows in (self.features, self.others))
        exact = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
        for row, pairs in zip(exact, found(self.features, self.ids, self.others), strict=True):
            order = np.argsort(-row)[:5]
            assert [id for id, _ in pairs] == [self.ids[index] for index in order]
            assert [value for _, value in pairs] == pytest.approx(row[order], abs=1e-6)

    def test_no_bit_depends_on_what_is_compared_at_once(self, monkeypatch):
        expected = found(self.features, self.ids, self.others)
        for block in (1, 7, 64):
            monkeypatch.setattr(neighbours, "_BLOCK", block)
            assert found(self.features, self.ids, self.others, block=block) == expected
        assert [found(row[None], self.ids, self.others)[0] for row in self.features] == expected
        assert found(self.features, self.ids[::-1], self.others[::-1]) == expected

    def test_equal_ones_are_in_the_order_of_their_ids(self):
        same = np.repeat(self.others[:1], 4, axis=0)
        pairs = found(self.features[:1], ["d", "b", "c", "a"], same, most=3, block=1)[0]
        assert [id for id, _ in pairs] == ["a", "b", "c"]
        assert len({value for _, value in pairs}) == 1

    def test_rows_without_direction_and_few_samples(self):
        odd = np.array([[0, 0], [np.nan, 1], [np.inf, 1], [3, 4]], np.float32)
        pairs = found(np.float32([[3, 4], [0, 0]]), ["a", "b", "c", "d"], odd, most=9)
        assert [id for id, _ in pairs[0]] == ["d", "a", "b", "c"]
        assert [value for _, value in pairs[0]] == pytest.approx([1, 0, 0, 0])
        assert [value for _, value in pairs[1]] == [0] * 4


def test_a_training_image_is_nearest_to_itself(run, photos):
    files = sorted((photos / "train").rglob("*.png"))
    together = run.predict(files, neighbours=3)
    for path, one in zip(files, together, strict=True):
        assert [each.similarity for each in one.neighbours] == sorted(
            (each.similarity for each in one.neighbours), reverse=True
        )
        best = one.neighbours[0]
        assert best.similarity == pytest.approx(1, abs=1e-6)
        same = {each.id for each in one.neighbours if each.similarity == best.similarity}
        assert path.relative_to(photos).as_posix() in same
        assert best.labels == (best.id.split("/")[1],)
    assert run.predict(files[5], neighbours=3)[0].neighbours == together[5].neighbours
    assert [one._replace(neighbours=()) for one in together] == run.predict(files)


def test_tables_and_objects_name_them(run, photos, tmp_path, capfd):
    image = sorted((photos / "val").rglob("*.png"))[0]
    (expected,) = run.predict([image], neighbours=2)
    words = ["predict", str(run.path), str(image), "--neighbours", "2"]
    assert main([*words, "--json"]) == 0
    (plain,) = json.loads(capfd.readouterr().out)["predictions"]
    assert plain["neighbours"] == [
        {"id": each.id, "labels": [*each.labels], "similarity": each.similarity} for each in expected.neighbours
    ]
    assert main([*words, "--out", str(tmp_path / "p.csv")]) == 0
    (row,) = csv.DictReader((tmp_path / "p.csv").read_text().splitlines())
    assert row["neighbours"] == "|".join(each.id for each in expected.neighbours)
    assert row["neighbour_labels"] == "|".join(each.labels[0] for each in expected.neighbours)
    assert [float(value) for value in row["similarities"].split("|")] == pytest.approx(
        [each.similarity for each in expected.neighbours]
    )
    capfd.readouterr()
    assert main([*words, "--draw", str(tmp_path / "drawn")]) == 2
    assert "The `--neighbours` of autotimm predict must be given with an --out" in capfd.readouterr().err


def test_of_segmenters(tmp_path):
    data = write_toy_segmentation(tmp_path / "data", splits={"train": 4, "val": 3}, image_size=64)
    run = small_fit(data, tmp_path / "runs", image_size=64, batch_size=4, val_split=None)
    module = run.data()
    module.setup("fit")
    table = module.tables["train"]
    (one,) = run.predict(table.files()[2], neighbours=9)
    assert one.neighbours[0].id == table.ids[2]
    assert one.neighbours[0].labels == table.labels(2)
    assert len(one.neighbours) == 4


@pytest.mark.parametrize("change", ["edited", "removed", "gone"])
def test_training_images_must_be_those_of_the_run(change, tmp_path, capfd):
    data = write_toy_folder(tmp_path / "data", splits={"train": 6, "val": 3}, num_classes=3)
    run = small_fit(data, tmp_path / "runs", val_split=None)
    kept = shutil.copy(sorted((data / "val").rglob("*.png"))[0], tmp_path / "new.png")
    first, second = sorted((data / "train").rglob("*.png"))[:2]
    if change == "edited":
        shutil.copy(second, first)
    elif change == "removed":
        first.unlink()
    else:
        shutil.rmtree(data)
    with pytest.raises(DataError):
        run.predict(kept, neighbours=1)
    assert main(["predict", str(run.path), str(kept), "--neighbours", "1"]) == 3
    if change != "gone":
        sign = "changed" if change == "edited" else "missing"
        assert f"1 are not: {sign}: {first.relative_to(data).as_posix()}" in capfd.readouterr().err.replace("\n", " ")


def test_wrong_numbers_and_lone_checkpoints(run, photos, tmp_path):
    with pytest.raises(UsageError, match="`neighbours` of predict must be a whole number from 1"):
        run.predict(photos, neighbours=0)
    alone = autotimm.Run(shutil.copy(run.checkpoint(), tmp_path / "alone.ckpt"))
    with pytest.raises(DataError, match="must have a list of its training images"):
        alone.predict(photos, neighbours=1)


class TestNovelty:
    def test_it_counts_the_validation_images_that_are_nearer(self):
        drawn = np.random.default_rng(1)
        values, held_out = drawn.normal(size=30).round(1), drawn.normal(size=20).round(1)
        plain = [sum(held > value for held in held_out) / 21 for value in values]
        assert novelties(values, held_out) == plain

    def test_images_of_the_same_kind_are_spread_evenly(self):
        drawn = np.random.default_rng(2)
        found = np.array(novelties(drawn.normal(size=5000), drawn.normal(size=999)))
        assert abs(float((found >= 0.95).mean()) - 0.05) < 0.03

    def test_of_a_run(self, run, photos, tmp_path, capfd):
        trained, new = sorted((photos / "train").rglob("*.png"))[:4], sorted((photos / "val").rglob("*.png"))[:4]
        found = run.predict([*trained, *new], novelty=True)
        assert run.predict(new[1], novelty=True)[0].novelty == found[5].novelty
        assert [one._replace(novelty=None) for one in found] == run.predict([*trained, *new])
        near = run.predict([*trained, *new], neighbours=2, novelty=True)
        assert [one.novelty for one in near] == [one.novelty for one in found]
        assert {len(one.neighbours) for one in near} == {2}
        # A validation image is as far as it was in the evidence: the count is that of those before it.
        ids, kept = run.evidence().ids, run.predict(sorted((photos / "val").rglob("*.png")), neighbours=NOVELTY_RANK)
        fifth = {one.id: one.neighbours[-1].similarity for one in kept}
        assert len(ids) == len(fifth)
        for path, one in zip(new, found[4:], strict=True):
            mine = fifth[str(path)]
            assert one.novelty == pytest.approx(sum(each > mine for each in fifth.values()) / (len(ids) + 1), abs=0.07)
        words = ["predict", str(run.path), str(new[0]), "--novelty"]
        assert main([*words, "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["predictions"][0]["novelty"] == found[4].novelty
        assert main([*words, "--out", str(tmp_path / "p.csv")]) == 0
        (row,) = csv.DictReader((tmp_path / "p.csv").read_text().splitlines())
        assert float(row["novelty"]) == pytest.approx(found[4].novelty)

    def test_other_checkpoints_are_refused(self, run, photos, capfd):
        with pytest.raises(UsageError, match="`novelty` of predict must be left out"):
            run.predict(photos, novelty=True, ckpt="last")
        assert main(["predict", str(run.path), str(photos), "--novelty", "--out", "labels"]) == 2
        assert "The `--novelty` of autotimm predict must be given with an --out" in capfd.readouterr().err
