"""Decoded pictures that are kept: the same bits as without, whatever happens to files, processes and disks."""

import itertools
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import autotimm
import warm
from autotimm import FitConfig, ImageDataModule, UsageError
from autotimm.cli.main import main
from autotimm.data import file_facts, pixel_cache, pixel_store
from autotimm.data.dense import SegmentationDataModule
from autotimm.data.file_facts import Stamp
from autotimm.data.image_channels import read_as
from autotimm.data.image_reading import ImageReading
from autotimm.data.pixel_cache import PixelCache, cache_folder, open_cache
from autotimm.data.pixel_store import Decoded, bytes_by_name, clear
from autotimm.data.toy import write_toy_segmentation
from autotimm.doctor.machine import check_machine
from autotimm.runs.restore import read_manifest

RGB = ImageReading(least=(32, 32))
SIZE = 10**9


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are old enough at once: no program can set a ctime to the past."""
    monkeypatch.setattr(file_facts, "_SETTLED", 0)


@pytest.fixture(autouse=True)
def _own_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is kept in memory is kept in a folder of the test."""
    monkeypatch.setattr(pixel_cache, "_RAM", tmp_path_factory.mktemp("memory"))
    yield
    for lock in pixel_cache._HELD.values():
        lock.close()
    pixel_cache._HELD.clear()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """16 JPEGs of 80 x 60 pixels in two classes."""
    for index in range(16):
        folder = tmp_path / "photos" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((80, 60)).save(folder / f"{index}.jpg")
    return tmp_path / "photos"


def jpegs(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.jpg"))


def disk_cache(photos: Path, size: int = SIZE) -> PixelCache:
    cache = open_cache("disk", size, jpegs(photos), RGB).cache
    assert cache is not None
    return cache


def keep_all(photos: Path, size: int = SIZE) -> PixelCache:
    """A cache of all photographs."""
    cache = disk_cache(photos, size)
    for path in jpegs(photos):
        cache.read(path, RGB)
    cache.flush()
    return cache


def mark(cache: PixelCache, path: Path, reading: ImageReading = RGB) -> None:
    """Put a black picture in the place of one that is kept: what shows it has been taken from the cache."""
    stamp = Stamp.of(path)
    assert stamp is not None
    digest = cache.store.digest(stamp)
    assert digest is not None
    key = pixel_cache._key(digest, reading)
    pixels = cache.store.picture(key)
    assert pixels is not None
    cache.store._use(lambda opened: opened.rows.execute("delete from pictures where key = ?", (key,)), None)
    cache.store.add([Decoded(stamp, digest, key, np.zeros_like(pixels))])


def is_black(image: torch.Tensor) -> bool:
    return not image.any()


def assert_right(cache: PixelCache, paths: list[Path], reading: ImageReading = RGB) -> None:
    for path in paths:
        image, expected = cache.read(path, reading), read_as(path, reading)
        assert torch.equal(image, expected)
        assert (image.stride(), type(image), image.dtype) == (expected.stride(), type(expected), expected.dtype)


def kept_of(cache: PixelCache) -> int:
    """How many pictures are kept."""
    return cache.store._use(lambda opened: opened.rows.execute("select count(*) from pictures").fetchone()[0], -1)


# The same bits


def batches(data: autotimm.DataModule) -> list[str]:
    """The digests of two epochs of training and one of validation."""
    train, val = data.train_dataloader(), data.val_dataloader()
    found = [batch.fingerprints for loader in (train, train, val) for batch in loader]
    data.teardown()
    return found


@pytest.mark.parametrize("mode", ["disk", "ram", "auto"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_and_without(photos, mode, workers):
    def made(**options):
        return ImageDataModule(
            photos, image_size=32, batch_size=3, val_split=0.25, decode="reduced", num_workers=workers, **options
        )

    without = batches(made())
    first, second = made(cache=mode), made(cache=mode)
    assert [batches(first), batches(second)] == [without] * 2  # cold, then warm
    assert second.notices[-1].startswith("cache: ram" if mode == "ram" else "cache: disk")
    assert second._cache is not None
    assert kept_of(second._cache) >= 16


def test_pictures_of_masks_are_kept_too(tmp_path):
    write_toy_segmentation(tmp_path / "toy", splits={"train": 6, "val": 2}, image_size=40)

    def made(**options):
        return SegmentationDataModule(tmp_path / "toy", image_size=32, batch_size=2, num_workers=0, **options)

    cached = made(cache="disk")
    assert batches(made()) == batches(cached) == batches(made(cache="disk"))
    assert kept_of(cached._cache) == 8


def test_a_run_with_a_cache_has_the_weights_of_one_without(photos, tmp_path):
    options = {
        "backbone": "test_resnet", "pretrained": False, "epochs": 2, "image_size": 32, "batch_size": 4, "threads": 1,
        "num_workers": 0, "out": tmp_path / "runs",
    }  # fmt: skip
    without = autotimm.fit(photos, name="without", **options)
    cached = autotimm.fit(photos, name="cached", cache="disk", cache_size="1GB", **options)
    manifests = [read_manifest(run.path) for run in (without, cached)]
    assert manifests[0].run_id == manifests[1].run_id
    assert (cached.path / "ledger.jsonl").read_text() == (without.path / "ledger.jsonl").read_text()
    assert bytes_by_name(cache_folder())
    shutil.rmtree(cache_folder())
    assert cached.verify().verdict == "identical"
    assert not cache_folder().exists()  # what checks a record decodes for itself


def test_what_is_kept_is_what_is_read(photos):
    cache = keep_all(photos)
    path = jpegs(photos)[0]
    mark(cache, path)
    assert is_black(cache.read(path, RGB))
    assert is_black(disk_cache(photos).read(path, RGB))
    assert is_black(pickle.loads(pickle.dumps(cache)).read(path, RGB))


@pytest.mark.parametrize("reading", [ImageReading(), ImageReading(least=(60, 80)), ImageReading(upright=False),
                                     ImageReading(channels=1)])  # fmt: skip
def test_each_way_of_reading_has_pictures_of_its_own(photos, reading):
    path = photos / "gray.png"
    Image.linear_gradient("L").save(path)
    cache = disk_cache(photos)
    cache.read(path, RGB)
    cache.flush()
    mark(cache, path)
    assert_right(cache, [path], reading)
    cache.flush()
    assert kept_of(cache) == 2
    assert_right(cache, [path], reading)


def test_another_version_of_a_decoder_reads_for_itself(photos, monkeypatch):
    cache, path = keep_all(photos), jpegs(photos)[0]
    mark(cache, path)
    monkeypatch.setattr(pixel_cache, "_versions", lambda: ("another",))
    pixel_cache._recipe.cache_clear()
    assert_right(cache, [path])
    assert disk_cache(photos).store.name != cache.store.name
    pixel_cache._recipe.cache_clear()


def test_a_transform_that_changes_its_image_changes_nothing_that_is_kept(photos):
    cache = disk_cache(photos)
    for _ in range(2):
        for path in jpegs(photos):
            cache.read(path, RGB).zero_()
        cache.flush()
    assert_right(cache, jpegs(photos))


def test_the_same_file_in_another_place_is_not_decoded_again(photos):
    cache, path = keep_all(photos), jpegs(photos)[0]
    mark(cache, path)
    copied = shutil.copy(path, photos / "copy.jpg")
    assert is_black(cache.read(copied, RGB))
    cache.flush()
    stamp = Stamp.of(Path(copied))
    assert stamp is not None
    assert cache.store.digest(stamp) is not None  # and its bytes are not read again either


def test_arrays_are_not_kept(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 5), np.uint8))
    cache = open_cache("disk", SIZE, [tmp_path / "a.npy"], ImageReading(5)).cache
    assert cache.read(tmp_path / "a.npy", ImageReading(5)).shape == (5, 4, 4)
    cache.flush()
    assert kept_of(cache) == 0


def test_an_image_that_cannot_be_read_is_the_same_error(photos):
    cache = keep_all(photos)
    (photos / "broken.jpg").write_bytes(b"no image")
    for path in (photos / "broken.jpg", photos / "gone.jpg", photos):
        with pytest.raises(autotimm.DataError) as expected:
            read_as(path, RGB)
        with pytest.raises(autotimm.DataError) as found:
            cache.read(path, RGB)
        assert str(found.value) == str(expected.value)


# Never stale


def touched(path: Path) -> None:
    os.utime(path)


def replaced_in_place(path: Path) -> None:
    """With other bytes of the same number and the same times, as `cp -p` leaves them."""
    info = path.stat()
    other = path.with_suffix(".png")
    Image.effect_noise((80, 60), 40).save(other)
    content = other.read_bytes()[: info.st_size]
    other.unlink()
    path.write_bytes(content.ljust(info.st_size, b"\0") if len(content) < info.st_size else content)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def rewritten(path: Path) -> None:
    Image.new("RGB", (70, 50), (10, 20, 30)).save(path)


def renamed_over(path: Path) -> None:
    info, other = path.stat(), path.with_suffix(".new")
    Image.new("RGB", (70, 50), (10, 20, 30)).save(other, "JPEG")
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    other.replace(path)


def linked_to_another(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / min(name for name in os.listdir(path.parent) if name != path.name))


@pytest.mark.parametrize("change", [touched, rewritten, renamed_over, linked_to_another])
def test_a_changed_file_is_read_again(photos, change):
    cache, path = keep_all(photos), jpegs(photos)[0]
    time.sleep(0.02)  # a tick of the clock that stamps are made of
    change(path)
    for again in (cache, disk_cache(photos)):
        assert_right(again, jpegs(photos))
        again.flush()
        assert_right(again, jpegs(photos))


def test_a_file_of_other_bytes_with_the_same_size_and_times_is_read_again(photos):
    cache, path = keep_all(photos), jpegs(photos)[0]
    mark(cache, path)
    time.sleep(0.02)
    size, mtime = path.stat().st_size, path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[-40] ^= 0xFF  # among the last pixels
    path.write_bytes(content)
    os.utime(path, ns=(mtime, mtime))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (size, mtime)
    assert_right(cache, [path])


def test_a_young_file_is_neither_kept_nor_taken_from_the_cache(photos, monkeypatch):
    cache, path = keep_all(photos), jpegs(photos)[0]
    mark(cache, path)
    monkeypatch.setattr(file_facts, "_SETTLED", 3600 * 10**9)
    assert_right(cache, [path])
    Image.new("RGB", (64, 64)).save(photos / "new.jpg")
    before = kept_of(cache)
    cache.read(photos / "new.jpg", RGB)
    cache.flush()
    assert kept_of(cache) == before


def test_a_file_that_changes_while_it_is_read_is_not_kept(photos, monkeypatch):
    cache, path = disk_cache(photos), jpegs(photos)[0]

    def slow(*args):
        image = read_as(*args)
        time.sleep(0.02)
        rewritten(path)
        return image

    with monkeypatch.context() as context:
        context.setattr(pixel_cache, "read_as", slow)
        cache.read(path, RGB)
    cache.flush()
    assert kept_of(cache) == 0
    assert_right(cache, [path])


# Damaged files


def pixels_file(cache: PixelCache) -> Path:
    return cache.store.home / cache.store.name / "pixels"


def index_file(cache: PixelCache) -> Path:
    return cache.store.home / cache.store.name / "index.sqlite3"


def cut(cache: PixelCache) -> None:
    os.truncate(pixels_file(cache), pixels_file(cache).stat().st_size // 2 + 7)


def overwrite(cache: PixelCache) -> None:
    content = pixels_file(cache).read_bytes()
    rolled = content[len(content) // 3 :] + content[: len(content) // 3]
    pixels_file(cache).write_bytes(rolled)


def flip(cache: PixelCache) -> None:
    content = bytearray(pixels_file(cache).read_bytes())
    for position in range(100, len(content), 1000):
        content[position] ^= 1
    pixels_file(cache).write_bytes(content)


def swap_rows(cache: PixelCache) -> None:
    """Let each row point to the picture of another."""
    cache.store._use(
        lambda opened: opened.rows.executescript(
            "create table old as select * from pictures; delete from pictures; "
            "insert into pictures select a.key, b.start, b.length from old a, old b "
            "where a.rowid % (select count(*) from old) + 1 = b.rowid; drop table old"
        ),
        None,
    )


def nonsense_rows(cache: PixelCache) -> None:
    for row, value in enumerate(("-5", "9223372036854775807", "'text'", "null", "x'00ff'", "1.5"), start=1):
        change = f"update pictures set start = {value}, length = {value} where rowid = {row}"
        cache.store._use(lambda opened, change=change: opened.rows.execute(change), None)


def garbage_index(cache: PixelCache) -> None:
    cache.store.close()
    index_file(cache).write_bytes(np.random.default_rng(0).bytes(20_000))


def half_index(cache: PixelCache) -> None:
    cache.store.close()
    os.truncate(index_file(cache), index_file(cache).stat().st_size // 2 // 512 * 512 + 100)


def no_pixels(cache: PixelCache) -> None:
    cache.store.close()
    pixels_file(cache).unlink()


def no_index(cache: PixelCache) -> None:
    cache.store.close()
    index_file(cache).unlink()


@pytest.mark.parametrize(
    "damage",
    [cut, overwrite, flip, swap_rows, nonsense_rows, garbage_index, half_index, no_pixels, no_index],
)
def test_damage_costs_time_and_nothing_else(photos, damage):
    cache = keep_all(photos)
    damage(cache)
    for again in (cache, disk_cache(photos), disk_cache(photos)):
        assert_right(again, jpegs(photos))
        again.flush()
        again.store.close()
    last = disk_cache(photos)
    assert_right(last, jpegs(photos))
    for path in jpegs(photos):  # it was repaired
        mark(last, path)
        assert is_black(last.read(path, RGB))


def test_a_folder_that_is_removed_meanwhile(photos):
    cache = keep_all(photos)
    shutil.rmtree(cache_folder())
    assert_right(cache, jpegs(photos), ImageReading())
    with pytest.warns(UserWarning, match="No more decoded pictures are kept: no such file or directory"):
        cache.flush()
    again = keep_all(photos)
    mark(again, jpegs(photos)[0])
    assert is_black(again.read(jpegs(photos)[0], RGB))


# Several processes

FORK = multiprocessing.get_context("fork")


def _write(photos: Path, seed: int, turns: int) -> None:
    cache, order, paths = disk_cache(photos), np.random.default_rng(seed), jpegs(photos)
    for least in range(1, turns + 1):
        for count, index in enumerate(order.permutation(len(paths))):
            cache.read(paths[index], ImageReading(least=(least, 32)))
            if count % 3 == 2:
                cache.flush()
        cache.flush()


def writer(photos: Path, seed: int, turns: int = 3) -> multiprocessing.process.BaseProcess:
    """A process that keeps the photographs over and over, as read in one way after the other."""
    process = FORK.Process(target=_write, args=(photos, seed, turns))
    process.start()
    return process


def test_two_processes_write_at_once(photos):
    for process in [writer(photos, seed) for seed in range(2)]:
        process.join(60)
        assert process.exitcode == 0
    cache = disk_cache(photos)
    pictures = [read_as(path, ImageReading(least=(least, 32))) for least in (1, 2, 3) for path in jpegs(photos)]
    assert kept_of(cache) == len(pictures)
    # None of them twice.
    assert pixels_file(cache).stat().st_size <= sum(64 + -(-picture.nbytes // 64) * 64 for picture in pictures)
    for least in (1, 2, 3):
        assert_right(cache, jpegs(photos), ImageReading(least=(least, 32)))


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_while_two_processes_write(photos, kills):
    other = writer(photos, 1000, turns=10**6)
    for seed, delay in enumerate(np.random.default_rng(5).uniform(0.05, 0.25, kills)):
        process = writer(photos, seed, turns=10**6)
        time.sleep(delay)
        process.kill()
        process.join(10)
        assert process.exitcode == -signal.SIGKILL
        cache = disk_cache(photos)
        assert_right(cache, jpegs(photos), ImageReading(least=(1, 32)))
    other.kill()
    other.join(10)
    cache = keep_all(photos)
    assert kept_of(cache) > 16
    for least in range(1, 5):
        assert_right(cache, jpegs(photos), ImageReading(least=(least, 32)))
    mark(cache, jpegs(photos)[0])
    assert is_black(cache.read(jpegs(photos)[0], RGB))  # and it is still used


def _read_in_child(cache: PixelCache, paths: list[Path], results: "multiprocessing.Queue[list[bool]]") -> None:
    file_facts._SETTLED = 0
    results.put([is_black(cache.read(path, RGB)) for path in paths])
    cache.flush()


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_another_process_opens_the_files_for_itself(photos, method):
    cache, path = keep_all(photos), jpegs(photos)[0]
    mark(cache, path)
    Image.new("RGB", (80, 60), (200, 10, 10)).save(photos / "new.jpg")
    cache.read(photos / "new.jpg", RGB)  # waits to be written, in this process alone
    context = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=_read_in_child, args=(cache, jpegs(photos)[:3], results))
    child.start()
    assert results.get(timeout=60) == [True, False, False]
    child.join(60)
    cache.flush()
    assert_right(cache, jpegs(photos)[1:])
    assert kept_of(cache) == 17


def test_a_writer_that_was_stopped_holds_nobody_up(photos, monkeypatch):
    monkeypatch.setattr(pixel_store, "_PATIENCE", 0.05)
    cache = disk_cache(photos)
    assert kept_of(cache) == 0
    with pixel_store._alone(cache.store.home / "write") as is_alone:
        assert is_alone
        started = time.monotonic()
        for path in jpegs(photos):
            cache.read(path, RGB)
            cache.flush()
        assert time.monotonic() - started < 1
    assert kept_of(keep_all(photos)) == 16


# Bounds


def test_the_bound_holds_and_what_is_kept_stays(photos):
    size = 60_000  # of 16 pictures of 14 kB
    with pytest.warns(UserWarning, match=r"No more decoded pictures are kept: the limit of 60 kB"):
        cache = keep_all(photos, size)
    assert 0 < kept_of(cache) < 16
    assert sum(bytes_by_name(cache_folder()).values()) <= size
    assert_right(cache, jpegs(photos))
    cache.flush()  # says nothing again
    assert sum(bytes_by_name(cache_folder()).values()) <= size


def other_sets(photos: Path, number: int) -> list[PixelCache]:
    """The same photographs in other folders, one after the other."""
    caches = []
    for index in range(number):
        shutil.copytree(photos, photos.parent / f"set{index}")
        caches.append(keep_all(photos.parent / f"set{index}"))
        folder = caches[-1].store.home / caches[-1].store.name
        os.utime(folder / "lock", (index, index))
    return caches


def test_the_data_set_that_was_used_last_stays_longest(photos):
    first, second, third = other_sets(photos, 3)
    for cache in (first, third):
        cache.store.close()
    sizes = bytes_by_name(cache_folder())
    keep_all(photos, size=sum(sizes.values()) + 20_000)
    left = {*bytes_by_name(cache_folder())}
    assert first.store.name not in left
    assert {second.store.name, third.store.name, disk_cache(photos).store.name} <= left


def test_a_data_set_in_use_is_not_removed(photos):
    in_use = other_sets(photos, 1)[0]
    with pytest.warns(UserWarning, match="No more decoded"):
        keep_all(photos, size=sum(bytes_by_name(cache_folder()).values()) + 20_000)
    assert kept_of(in_use) == 16
    assert clear(cache_folder()) == sorted(bytes_by_name(cache_folder()))
    in_use.store.close()
    clear(cache_folder())
    assert in_use.store.name not in bytes_by_name(cache_folder())
    assert_right(in_use, jpegs(photos))


def _train_on_a_full_disk(photos: Path, workers: int, errors: Path) -> None:
    file = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    warnings.showwarning = lambda message, *where: os.write(file, f"{message}\n".encode())  # type: ignore[assignment]
    warnings.simplefilter("default")
    warnings.filterwarnings("ignore", "lance is not fork-safe")  # where another test has loaded it before the fork
    options = {"image_size": 32, "batch_size": 2, "val_split": 0.25, "decode": "reduced", "num_workers": workers}
    without = batches(ImageDataModule(photos, **options))
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_000, 65_000))
    for _ in range(2):
        assert batches(ImageDataModule(photos, cache="disk", **options)) == without


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_ends_no_run(photos, tmp_path, workers):
    errors = tmp_path / "errors"
    process = FORK.Process(target=_train_on_a_full_disk, args=(photos, workers, errors))
    process.start()
    process.join(60)
    assert process.exitcode == 0, errors.read_text()
    lines = errors.read_text().splitlines()
    assert {*lines} == {"No more decoded pictures are kept: file too large. The training goes on without."}
    assert len(lines) <= 4  # once by each loader of each of two runs
    assert 0 < kept_of(disk_cache(photos)) < 16
    assert_right(disk_cache(photos), jpegs(photos))


# The modes


def test_auto_says_what_it_does_and_why(photos, monkeypatch):
    opened = open_cache("auto", SIZE, jpegs(photos), RGB)
    assert opened.cache is not None
    assert opened.line.startswith("cache: disk, about 230 kB in ")
    assert "(auto: decoding takes " in opened.line
    tight = open_cache("auto", 100_000, jpegs(photos), RGB)
    assert tight.cache is None
    assert tight.line == "cache: off (auto: 230 kB are needed, and 100 kB is what it may take of the disk)"
    monkeypatch.setattr(pixel_cache, "free_bytes", lambda home: 2_000_000)
    assert "and 200 kB is what" in open_cache("auto", SIZE, jpegs(photos), RGB).line


def test_auto_leaves_alone_what_is_read_as_fast_as_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "_available_memory", lambda home: 0)
    monkeypatch.setattr(
        pixel_cache.time, "thread_time", itertools.count(0, 0.002).__next__
    )  # a clock that no load changes
    Image.new("RGB", (1000, 1000)).save(tmp_path / "a.bmp")
    line = open_cache("auto", SIZE, [tmp_path / "a.bmp"], RGB).line
    assert line.startswith("cache: off (auto: decoding takes ")
    assert line.endswith(" per image, and reading 3 MB back takes 6.0 ms)")


def test_images_that_are_no_files_are_not_kept():
    assert open_cache("disk", SIZE, [], RGB) == (None, "cache: off, since the images are no files")
    assert open_cache("off", SIZE, [], RGB) == (None, "")


def test_the_folder_is_for_this_user_alone(photos, tmp_path):
    keep_all(photos)
    modes = {path.name: path.stat().st_mode & 0o777 for path in [cache_folder(), *cache_folder().rglob("*")]}
    assert {*modes.values()} == {0o700, 0o600}
    shutil.rmtree(cache_folder())
    cache_folder().symlink_to(tmp_path)
    opened = open_cache("disk", SIZE, jpegs(photos), RGB)
    assert opened == (None, f"cache: off, since {cache_folder()} is not a folder of this user's own")


def _train_in_memory(photos: Path) -> None:
    data = ImageDataModule(photos, image_size=32, batch_size=4, num_workers=2, cache="ram")
    list(data.train_dataloader())
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_program_leaves_in_memory_is_removed_by_the_next(photos):
    process = FORK.Process(target=_train_in_memory, args=(photos,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert bytes_by_name(pixel_cache._ram_folder())
    until = time.monotonic() + 20  # the loading processes notice it after some seconds
    while pixel_cache._ram_folder().exists() and time.monotonic() < until:
        open_cache("off", SIZE, [], RGB)
        time.sleep(0.2)
    assert not pixel_cache._ram_folder().exists()


RAM = """
import sys
from pathlib import Path
from autotimm.data import pixel_cache
from autotimm.data.image_reading import ImageReading
pixel_cache._RAM, folder = Path(sys.argv[1]), Path(sys.argv[2])
opened = pixel_cache.open_cache("ram", 10**9, [*folder.rglob("*.jpg")], ImageReading())
opened.cache.read(next(folder.rglob("*.jpg")), ImageReading())
opened.cache.flush()
print(opened.line)
"""


def test_a_program_that_ends_leaves_nothing_in_memory(photos, tmp_path):
    (tmp_path / "shm").mkdir()
    done = warm.run(["-c", RAM, tmp_path / "shm", photos])
    assert done.stdout.startswith("cache: ram, 0 B of at most "), done.stderr
    assert done.stdout.endswith(" until the program ends\n")
    assert not os.listdir(tmp_path / "shm")


def test_memory_is_shared_by_programs_at_the_same_time(photos):
    opened = open_cache("ram", SIZE, jpegs(photos), RGB)
    for path in jpegs(photos):
        opened.cache.read(path, RGB)
    opened.cache.flush()
    mark(opened.cache, jpegs(photos)[0])
    open_cache("off", SIZE, [], RGB)  # removes nothing that is in use
    again = open_cache("ram", SIZE, jpegs(photos), RGB)
    assert is_black(again.cache.read(jpegs(photos)[0], RGB))


def test_doctor_shows_and_clears_what_is_kept(photos, capsys):
    cache = keep_all(photos)
    assert any("decoded images are kept in" in finding.text for finding in check_machine(".", 32, 4, 0))
    assert main(["doctor", "--clear-cache"]) == 1
    assert "1 of 1 data sets are in use and stay. Try again later." in capsys.readouterr().out
    cache.store.close()
    assert main(["doctor", "--clear-cache"]) == 0
    assert " kB were removed from " in capsys.readouterr().out
    assert not bytes_by_name(cache_folder())
    assert main(["doctor", "--clear-cache"]) == 0
    assert "0 B were removed from " in capsys.readouterr().out


def test_options():
    config = FitConfig.from_options("photos", {"cache": "disk", "cache_size": "1.5GB"})
    assert config.cache_size == 1_500_000_000
    assert "cache_size: 1500MB" in config.to_yaml()
    for size in ("20", 20, "20 kb", "7TB"):
        FitConfig.from_options("photos", {"cache": "ram", "cache_size": size})
    for size in ("0GB", "-1GB", "many", "1e9", 0, 1.5, True, "1PB", "9999999999TB"):
        with pytest.raises(UsageError, match="must be a number of bytes, such as 20GB"):
            FitConfig.from_options("photos", {"cache": "ram", "cache_size": size})
        with pytest.raises(UsageError, match="must be a number of bytes, such as 20GB"):
            ImageDataModule("photos", cache_size=size)
    with pytest.raises(UsageError, match="`cache_size` of fit has no effect without `cache`"):
        FitConfig.from_options("photos", {"cache_size": "1GB"})
    with pytest.raises(UsageError, match="one of off, auto, disk, ram"):
        ImageDataModule("photos", cache="on")
