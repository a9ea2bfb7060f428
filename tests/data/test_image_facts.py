"""One pass over image files: what is found by headers, what by decoding, and what is remembered."""

import hashlib
import io
import os
import pickle
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autotimm import ImageDataModule
from autotimm.data import file_facts, image_facts
from autotimm.data.file_facts import Problem, image_sizes
from autotimm.data.image_facts import checks_fully, image_digests, scan
from autotimm.data.jpeg import checked_jpeg, plain_size
from autotimm.data.texts import Joined, Paths, Picked, Texts
from autotimm.errors import DataError


def photograph(size: tuple[int, int] = (96, 64), **options: object) -> bytes:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(size)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def noise() -> bytes:
    """A PNG that compresses badly."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_decoding_at_an_eighth_finds_what_decoding_finds(options):
    pytest.importorskip("simplejpeg")
    import simplejpeg

    data, rng = photograph(**options), random.Random(0)
    verdicts = set()
    for _ in range(60):
        changed = bytearray(data)
        changed[rng.randrange(600, len(data) - 2)] ^= 1 << rng.randrange(8)
        try:
            simplejpeg.decode_jpeg(bytes(changed), "RGB")
            is_intact = True
        except ValueError:
            is_intact = False
        assert (checked_jpeg(bytes(changed), True, full=True) is not None) == is_intact
        verdicts.add(is_intact)
    assert verdicts == {True, False}


def test_headers_find_files_that_are_cut_off_empty_or_no_images(tmp_path):
    data = photograph()
    files = {
        "cut.jpg": data[:-40], "cut.png": noise()[:1000], "empty.jpg": b"", "text.jpg": b"no image", "good.jpg": data,
        "longer.jpg": data + bytes(100), "good.png": noise(),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in files]
    for full in (False, True):
        found = {problem.path.name for problem in scan(paths, full=full)}
        assert found == {"cut.jpg", "cut.png", "empty.jpg", "text.jpg"}


@pytest.mark.parametrize("full", [False, True])
def test_digest_and_size_come_from_the_same_pass(tmp_path, full):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(photograph())
    (tmp_path / "turned.jpg").write_bytes(photograph(exif=exif))
    Image.new("L", (5, 7)).save(tmp_path / "c.png")
    paths = sorted(tmp_path.iterdir())
    sizes = image_sizes(paths)
    (facts,) = image_facts.image_facts([*map(str, paths)], full=full)
    assert facts.problems == {}
    for path, fact in zip(paths, facts.known.facts, strict=True):
        assert fact["digest"].tobytes() == hashlib.sha256(path.read_bytes()).digest()
        assert tuple(fact["size"]) == sizes[path]


def test_a_check_of_headers_does_not_stand_for_a_complete_one(tmp_path, monkeypatch):
    monkeypatch.setattr(file_facts, "_SETTLED", 0)
    path = tmp_path / "a.jpg"
    path.write_bytes(photograph())
    decoded: list[bool] = []
    look_at = image_facts.look_at

    def noting(reading, full, names):
        decoded.append(full)
        return look_at(reading, full, names)

    monkeypatch.setattr(image_facts, "look_at", noting)
    for full in (False, False, True, True, False):
        assert scan([path], full=full) == []
    assert decoded == [False, True]
    digests, _, problems = image_digests([str(path)])
    assert (digests[0].tobytes(), problems) == (hashlib.sha256(path.read_bytes()).digest(), {})


def test_a_replaced_file_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(file_facts, "_SETTLED", 0)
    path, other = tmp_path / "a.jpg", tmp_path / "b.jpg"
    path.write_bytes(photograph())
    assert scan([path]) == []
    other.write_bytes(bytes(path.stat().st_size))
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert [problem.path for problem in scan([path])] == [path]


def test_auto_decodes_few_and_small_files(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(1000))
    assert checks_fully("auto", [str(path)] * 20_000)
    assert not checks_fully("auto", [str(path)] * 20_001)
    assert checks_fully("full", [str(path)] * 20_001)
    assert not checks_fully("headers", [str(path)])
    monkeypatch.setattr(image_facts, "MANY_BYTES", 1500)
    assert [checks_fully("auto", [str(path)] * count) for count in (1, 2)] == [True, False]


def test_a_file_that_only_decoding_finds_ends_the_epoch_with_its_name(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(6):
            (tmp_path / label / f"{number}.jpg").write_bytes(photograph())
    broken, data = tmp_path / "cat" / "3.png", noise()
    broken.write_bytes(data[:500] + bytes(100) + data[600:])  # its header is whole, and it has an end
    options = {"image_size": 32, "num_workers": 0, "val_split": 0.0}
    data = ImageDataModule(tmp_path, check="headers", **options)
    loader = data.train_dataloader()
    with pytest.raises(DataError, match=r"cat/3\.png cannot be read"):
        list(loader)
    assert data.notices[0].startswith("The headers of 13 images were checked. ")
    data = ImageDataModule(tmp_path, check="full", **options)
    assert (len(data.tables["train"]), [problem.path for problem in data.problems]) == (12, [broken])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"subsampling": 0}])
def test_a_header_like_the_last_one_says_what_a_new_one_says(options):
    other, rng = photograph((64, 96), **options), random.Random(0)
    for size in ((96, 64), (33, 7), (300, 2)):
        assert plain_size(photograph(size, **options)) == size
    data, verdicts = photograph(**options), set()
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 3))):
            changed[rng.randrange(700)] ^= 1 << rng.randrange(8)
        changed = changed[: rng.choice((len(data), len(data), rng.randrange(len(data))))]
        assert plain_size(other) == (64, 96)  # the last header is an intact one
        assert plain_size(bytes(changed)) == checked_jpeg(bytes(changed), True, full=False)
        verdicts.add(plain_size(bytes(changed)) is None)
    assert verdicts == {True, False}


def test_a_header_with_tags_or_a_bomb_is_looked_at_more_closely(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert plain_size(photograph()) == (96, 64)
    assert plain_size(photograph(exif=exif)) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert plain_size(photograph()) is None


def test_order_and_repetition_of_files_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(file_facts, "_SETTLED", 0)
    monkeypatch.setattr(image_facts, "_WINDOW", 7)
    monkeypatch.setattr(image_facts, "_BLOCKS", {True: 3, False: 3})
    monkeypatch.chdir(tmp_path)
    names, sizes = [], {}
    for number in range(12):
        Path(f"f{number % 3}").mkdir(exist_ok=True)
        name = f"f{number % 3}/{number}.jpg"
        sizes[name] = (10 + number, 20)
        Path(name).write_bytes(photograph(sizes[name]))
        names += [name, str(Path(name).absolute())]
    Path("f0/0.jpg").write_bytes(b"")
    names += ["none.jpg", "f1/", "f1", *names[:3]]
    random.Random(0).shuffle(names)
    expected = [sizes.get(os.path.relpath(name), (0, 0)) if "f0/0.jpg" not in name else (0, 0) for name in names]
    digests = [
        hashlib.sha256(Path(name).read_bytes()).digest() if os.path.isfile(name) else bytes(32) for name in names
    ]
    for _ in range(2):  # cold and warm
        found, problems = [], {}
        for facts in image_facts.image_facts(names, full=False):
            assert facts.start == len(found)
            problems |= {facts.start + place: problem for place, problem in facts.problems.items()}
            found += [tuple(size) for size in facts.known.facts["size"].tolist()]
        assert found == expected
        assert [*problems] == [place for place, size in enumerate(expected) if size == (0, 0)]
        assert all(str(problem.path) == str(Path(names[place])) for place, problem in problems.items())
        known, stamps, broken = image_digests(names)
        assert [digest.tobytes() for digest in known] == digests
        assert stamps.tolist() == file_facts.stamp_rows(names).tolist()
        assert {names[place] for place in broken} == {"none.jpg", "f1/", "f1"}


def test_small_files_in_memory_are_read_by_one_thread(tmp_path):
    threads = []

    def look(names):
        threads.append(threading.current_thread().name)
        return image_facts.look_at(image_facts.current_reading(), False, names)

    def looked(size):
        threads.clear()
        path = tmp_path / "a.bin"
        path.write_bytes(bytes(size))
        with image_facts._Readers(look, False) as readers:
            assert sum(part.files for part in readers([str(path)] * 300)) == 300
        return {name.partition("_")[0] for name in threads}

    assert looked(1 << 17) == {"MainThread", "images"}
    with image_facts._Readers(look, True) as readers:
        threads.clear()
        list(readers([str(tmp_path / "a.bin")] * 3))
    assert threads[0].startswith("images")


class TestTexts:
    MANY = tuple(f"folder {number % 3}/{number}é.jpg" for number in range(9000))
    ODD = ("", "/", "a/", "/a", "a/b/c", "\udcff/\ud800", "é")

    @pytest.mark.parametrize("texts", [(), ODD, MANY, tuple(f"{n}/x" for n in range(9000))])
    def test_they_behave_as_a_tuple(self, texts):
        flat = Texts(texts)
        assert flat == texts
        assert texts == flat
        assert (len(flat), [*flat], hash(flat), flat[2:5]) == (len(texts), [*texts], hash(texts), texts[2:5])
        assert pickle.loads(pickle.dumps(flat)) == flat
        assert flat != (*texts, "more")
        if texts:
            assert (flat[-1], flat[len(flat) // 2], flat.index(texts[-1])) == (
                texts[-1], texts[len(texts) // 2], texts.index(texts[-1]),
            )  # fmt: skip
            assert texts[0] in flat
        with pytest.raises(IndexError):
            flat[len(texts)]

    @pytest.mark.parametrize("names", [("1.jpg", "2.jpg", "3.jpg"), ("é", "\udcff", "x" * 300), ("only",), ()])
    def test_folders_one_after_the_other(self, names):
        groups = [("", names), ("a/", names), ("é/b/", names), ("a/", names)]
        expected = tuple(folder + name for folder, names in groups for name in names)
        flat = Texts.of_folders(iter(groups))
        assert flat == expected == Texts(expected)
        assert pickle.loads(pickle.dumps(flat)) == flat

    def test_parts_and_paths(self):
        flat, places = Texts(self.MANY), np.array([5, 0, 8999])
        expected = tuple(self.MANY[place] for place in places)
        assert Picked(flat, places) == expected == Picked(self.MANY, places)
        assert Joined([flat, (), Picked(flat, places)]) == self.MANY + expected
        assert Joined([flat, expected])[8999:] == (self.MANY[-1], *expected)
        assert Paths(Picked(flat, places))[1:] == tuple(map(Path, expected[1:]))

    def test_they_take_few_bytes(self):
        flat = Texts(f"/data/photographs/train/class {number % 9}/{number:07d}.jpg" for number in range(9000))
        assert len(pickle.dumps(flat)) / 9000 < 21


def test_a_missing_file_is_a_problem(tmp_path):
    _, stamps, problems = image_digests([str(tmp_path / "none.jpg")])
    assert problems == {0: Problem(tmp_path / "none.jpg", "there is no such file")}
    assert not stamps.any()
